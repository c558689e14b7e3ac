//! `forebay-target`: takes SSDs from the kernel, exports block devices over RDMA, and does what
//! `forebay` asks on the control socket.
//!
//! It is the composition root: it reads the command line and the saved state, takes the arena,
//! starts one reactor per CPU and then becomes the control thread. What each of them does is in
//! `core` and `control`.
//!
//! What it does not do: detach from its terminal, rotate logs, or restart itself: that is the
//! service manager's business.
#![forbid(unsafe_code)]

mod control;
mod core;
mod limits;
mod lock;
mod message;
mod options;
mod state;
mod state_file;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use dma::{Arena, Pool};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nvmf::engine::EngineConfig;
use nvmf::{Target, TargetConfig};
use reactor::Reactor;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::control::{Control, Parts, Rdma, Tcp};
use crate::core::Core;
use crate::limits::{
    CORE_RING, MAX_CONNECTIONS, MAX_TRANSFER_BYTES, MIN_DATA_BYTES, QUEUE_SHARE, REQUESTS_PER_CORE,
};
use crate::lock::Lock;
use crate::message::{ControlRing, CoreMessage};
use crate::options::{Options, log_filter};
use crate::state_file::{StateFile, make_directory};

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever RUST_BACKTRACE says: it is for whoever typed the command.
            eprintln!("forebay-target: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let filter = log_filter(&options.log).context("--log")?;
    let (filter, log) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).init();
    // Before anything is taken that another daemon may have.
    let _locks = take_locks(options)?;
    let cpus = options.cpus()?;
    let state_file = StateFile::new(&options.state_dir);
    let state = state_file.load()?;
    let arena = options.arena()?;
    let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let ring = ControlRing::new(cpus.len() * REQUESTS_PER_CORE as usize + MAX_CONNECTIONS, bell);
    let shares = Shares::new(arena, cpus.len())?;
    let cores = start_cores(options, &cpus, arena, &shares, &ring)?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let rdma = match Rdma::new(arena, cores.len()) {
            Ok(rdma) => Some(rdma),
            Err(error) if options.listen.iter().all(|it| it.transport == api::Transport::Tcp) => {
                tracing::warn!(%error, "nothing can be exported over RDMA");
                None
            }
            Err(error) => return Err(error),
        };
        let target = Target::new(TargetConfig {
            mdts_bytes: MAX_TRANSFER_BYTES,
            max_queue_entries: nvmf_rdma::limits::MAX_QUEUE_ENTRIES,
            in_capsule_bytes: nvmf_rdma::limits::IN_CAPSULE_BYTES,
            io_queue_budget: shares.io_queues() * cores.len() as u32,
            // Hosts may still know CNTLIDs of an earlier run.
            cntlid_seed: uuid::Uuid::new_v4().as_u128() as u16,
            ..TargetConfig::default()
        });
        let tcp = Tcp::new().context("setting up TCP")?;
        let parts = Parts { target, cores, ring, rdma, tcp, state, state_file, arena, log };
        let mut control = Control::new(parts);
        let calls = match restore(&mut control, options).await {
            Ok(()) => control::listen(&options.socket),
            Err(error) => Err(error),
        };
        let calls = match calls {
            Ok(calls) => calls,
            Err(error) => {
                control.end_exports().await;
                control.end_pools().await;
                control.end_devices().await;
                return Err(error);
            }
        };
        tracing::info!(socket = %options.socket.display(), "ready");
        let result = control.run(calls).await;
        let _ = std::fs::remove_file(&options.socket);
        result
    })
}

/// The block devices first, then who may use them, then the doors: a host that comes back early
/// finds the connection refused, which it retries, rather than its subsystem unknown.
async fn restore(control: &mut Control, options: &Options) -> anyhow::Result<()> {
    control.restore_devices().await;
    control.restore_bdevs();
    control.restore_pools().await;
    control.restore_exports();
    control.settle().await?;
    control.restore_listeners(&options.listen)
}

/// One daemon has a state directory, and one a control socket; either may be another's.
fn take_locks(options: &Options) -> anyhow::Result<[Lock; 2]> {
    let take = |directory: &Path, file: &Path, what: &Path| {
        make_directory(directory).with_context(|| format!("making {}", directory.display()))?;
        Ok::<_, anyhow::Error>(Lock::take(file, what)?)
    };
    let (state, socket) = (&options.state_dir, &options.socket);
    let mut beside = socket.clone().into_os_string();
    beside.push(".lock");
    let directory = socket.parent().unwrap_or(Path::new(""));
    Ok([take(state, &state.join("lock"), state)?, take(directory, beside.as_ref(), socket)?])
}

/// What each core has of the arena.
struct Shares {
    /// For data.
    data: usize,
    /// For connections.
    memory: usize,
}

impl Shares {
    fn new(arena: &Arena, cores: usize) -> anyhow::Result<Self> {
        // The rest is for the queues of SSDs, and for what rounding takes.
        let share = arena.bytes_left() / cores / 8 * 7;
        let block = MAX_TRANSFER_BYTES as usize;
        let (data, memory) = (share / 4 * 3 / block * block, share / 4 / block * block);
        anyhow::ensure!(
            data >= MIN_DATA_BYTES && memory >= block,
            "{} bytes of DMA memory are too few for {cores} cores; raise --memory",
            arena.bytes(),
        );
        Ok(Self { data, memory })
    }

    /// I/O queues of the largest size that a core has memory for; a sixteenth is left for admin
    /// queues.
    fn io_queues(&self) -> u32 {
        ((self.memory - self.memory / 16) / nvmf_rdma::limits::largest_queue_bytes()) as u32
    }
}

/// Starts a reactor on each CPU, each with its share of the arena.
fn start_cores(
    options: &Options,
    cpus: &[usize],
    arena: &'static Arena,
    shares: &Shares,
    ring: &Arc<ControlRing>,
) -> anyhow::Result<Vec<Reactor<CoreMessage>>> {
    let block = MAX_TRANSFER_BYTES as usize;
    let config = EngineConfig {
        requests: REQUESTS_PER_CORE,
        max_transfer_bytes: MAX_TRANSFER_BYTES,
        queue_share: QUEUE_SHARE,
    };
    let start = |(core, &cpu): (usize, &usize)| {
        let data = Pool::new(arena, shares.data, block)?;
        let memory = Pool::new(arena, shares.memory, block)?;
        let ring = Arc::clone(ring);
        let name = format!("reactor-{core}");
        let worker = Core::new(core, config, data, memory, ring)?;
        let make = move || worker;
        Reactor::spawn(&name, cpu, CORE_RING, options.idle_policy(), make)
            .with_context(|| format!("core {core}"))
    };
    cpus.iter().enumerate().map(start).collect()
}
