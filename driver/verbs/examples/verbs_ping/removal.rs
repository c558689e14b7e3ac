//! The device is pulled out under a connection, and comes back.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use verbs::{Access, CmEvent, CmId, ConnParams, EventChannel, RdmaQp};

use crate::{PATIENCE, Resources, Work, next_event, qp_limits, sge, wr_id};

/// Connects, waits for the device to be removed, gives everything back, and connects again as soon
/// as the device is there again.
pub fn run(address: SocketAddr) -> Result<()> {
    let channel = EventChannel::new()?;
    let connected = Connected::new(&channel, address)?;
    println!("removal: connected");
    let mut affected: HashSet<_> = connected.ids.iter().map(CmId::key).collect();
    while !affected.is_empty() {
        match next_event(&channel)? {
            CmEvent::DeviceRemoval { id } => {
                ensure!(affected.remove(&id), "told twice");
                println!("removal: {id:?} is to go");
            }
            CmEvent::Disconnected { .. } => {}
            other => bail!("unexpected: {other:?}"),
        }
    }
    for end in &connected.ends {
        end.0.to_error()?;
    }
    drop(connected);
    println!("removal: everything given back");

    let start = Instant::now();
    while let Err(error) = channel.create_id()?.bind(address) {
        ensure!(start.elapsed() < PATIENCE, "the device does not come back: {error}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Connected::new(&channel, address)?;
    println!("removal: ok");
    Ok(())
}

/// Both ends of a connection, and the listener.
struct Connected {
    ends: [(RdmaQp, Resources); 2],
    ids: [CmId; 3],
}

impl Connected {
    fn new(channel: &EventChannel, address: SocketAddr) -> Result<Self> {
        let listener = channel.create_id()?;
        listener.bind(address)?;
        listener.listen(1)?;
        let initiator = channel.create_id()?;
        initiator.resolve_addr(address, PATIENCE)?;
        next_event(channel)?;
        initiator.resolve_route(PATIENCE)?;
        next_event(channel)?;
        let near = end(&initiator)?;
        initiator.connect(&ConnParams::default(), &[])?;
        let target = match next_event(channel)? {
            CmEvent::ConnectRequest { id, .. } => id,
            other => bail!("unexpected: {other:?}"),
        };
        let far = end(&target)?;
        target.accept(&ConnParams::default(), &[])?;
        for _ in 0..2 {
            let event = next_event(channel)?;
            ensure!(matches!(event, CmEvent::Established { .. }), "{event:?}");
        }
        Ok(Self { ends: [near, far], ids: [listener, initiator, target] })
    }
}

/// A QP with a receive outstanding.
fn end(id: &CmId) -> Result<(RdmaQp, Resources)> {
    let resources = Resources::new(id, Access::default())?;
    let cq = resources.cq.handle();
    let mut qp = RdmaQp::new(id, &resources.mr, &cq, &cq, qp_limits())?;
    qp.recv(wr_id(Work::Recv, 0), &[sge(resources.inbox(0))])?;
    qp.flush()?;
    Ok((qp, resources))
}
