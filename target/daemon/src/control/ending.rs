//! The end in good order: hosts first, then the cores, then pools, then the SSDs.
//!
//! Hosts see their connections go and come back to the next process. An SSD is told to shut down,
//! which flushes what it caches, and stays with vfio-pci: its exports are served again after the
//! restart.

use std::time::{Duration, Instant};

use super::Control;
use crate::limits::{DEVICES_END_LIMIT, EXPORTS_END_LIMIT, POOLS_END_LIMIT};

impl Control {
    /// Ends every connection and takes every namespace from the cores.
    pub(crate) async fn end_exports(&mut self) {
        let limit = Instant::now() + EXPORTS_END_LIMIT;
        self.listeners.clone().into_iter().for_each(|address| self.close_listener(address));
        let closed = |control: &mut Self| {
            // Again each time: a connection may have been on its way to its core.
            control.target.close_queues();
            control.connections.is_empty()
        };
        if !self.wait_until(limit, closed).await {
            tracing::warn!("connections are left");
        }
        for export in self.state.exports.clone() {
            for saved in &export.namespaces {
                self.withdraw(&export.nqn, saved);
            }
        }
        if !self.wait_until(limit, |control| control.changes.is_empty()).await {
            tracing::warn!("a core does not give its namespaces up");
        }
    }

    /// Has every pool take a checkpoint, and closes it.
    pub(crate) async fn end_pools(&mut self) {
        self.begin_close_pools();
        let limit = Instant::now() + POOLS_END_LIMIT;
        if !self.wait_until(limit, |control| control.pools.open.is_empty()).await {
            tracing::warn!("a pool does not close; its journal is replayed at the next start");
        }
    }

    /// Shuts every SSD down.
    pub(crate) async fn end_devices(&mut self) {
        let now = Instant::now();
        self.begin_close_devices(now);
        let limit = now + DEVICES_END_LIMIT;
        if !self.wait_until(limit, |control| control.devices_ended()).await {
            tracing::error!("an SSD does not end: its caches may not be flushed");
        }
    }

    /// Lets cores and devices go on until something is so, or time is up.
    pub(super) async fn wait_until(
        &mut self,
        limit: Instant,
        mut is_so: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        loop {
            self.drain_ring();
            self.poll_devices(Instant::now());
            self.poll_pools(Instant::now());
            let done = is_so(self);
            self.handle_outputs();
            self.flush_backlog();
            if done || Instant::now() >= limit {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
