//! Attaches a namespace, writes a block, reads it back, and detaches.
//!
//! ```text
//! cargo run -p host --example attach -- tcp 192.0.2.7:4420 nqn.2026-11.io.example:disk 1
//! cargo run -p host --example attach -- rdma 192.0.2.7:4420 nqn.2026-11.io.example:disk 1
//! ```
//!
//! It overwrites the first block of the namespace.

use anyhow::{Context, ensure};
use dma::Arena;
use host::{Attached, Options};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [transport, addr, subnqn, nsid] = &arguments[..] else {
        anyhow::bail!("usage: attach tcp|rdma ADDRESS:PORT SUBSYSTEM-NQN NSID");
    };
    let transport = transport.parse().map_err(anyhow::Error::msg)?;
    let addr = addr.parse().with_context(|| format!("{addr} is not ADDRESS:PORT"))?;
    let nsid = nsid.parse().with_context(|| format!("{nsid} is not a namespace identifier"))?;

    let arena = Arena::plain_pages(4 << 20)?;
    let mut disk = Attached::attach(Options::new(transport, addr, subnqn), nsid, arena)?;
    let namespace = disk.namespace();
    println!("{} blocks of {} bytes", namespace.block_count, namespace.block_bytes);

    let block = namespace.block_bytes as usize;
    let (written, read) = (arena.carve(block, block)?, arena.carve(block, block)?);
    written.write(0, b"written over fabrics");
    disk.write(0, written)?;
    disk.flush()?;
    disk.read(0, read)?;
    ensure!(read.read_obj::<[u8; 20]>(0) == *b"written over fabrics", "read something else");
    println!("wrote a block and read it back");
    disk.detach()?;
    Ok(())
}
