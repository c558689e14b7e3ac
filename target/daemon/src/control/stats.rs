//! Counters, collected from the cores.

use api::results::{
    CarrierStats, ChannelStats, CoreStats, MemoryStats, NamespaceStats, PoolStats, Stats,
};
use serde_json::json;

use super::Control;
use super::socket::Reply;
use crate::limits::MAX_CALLS;
use crate::message::{self, CoreMessage, PoolUse};

/// What the counters of every core are wanted for.
pub(super) enum Wanted {
    Stats(Reply),
    Connections(Reply),
    /// What hosts read in the SMART log.
    Health,
}

/// Somebody who waits for the cores.
pub(super) struct Waiting {
    pub(super) wanted: Wanted,
    stats: Vec<Option<message::CoreStats>>,
}

impl Control {
    pub(super) fn collect_stats(&mut self, wanted: Wanted) {
        assert!(self.stats_wanted.len() <= MAX_CALLS, "one for each call, and one for health");
        let stats = self.cores.iter().map(|_| None).collect();
        self.stats_wanted.push_back(Waiting { wanted, stats });
        for core in 0..self.cores.len() {
            self.tell(core, CoreMessage::CollectStats);
        }
    }

    /// Cores answer in the order they were asked: the first that still waits for this core gets it.
    pub(super) fn handle_stats(&mut self, core: usize, stats: message::CoreStats) {
        let waiting = self.stats_wanted.iter_mut().find(|waiting| waiting.stats[core].is_none());
        if let Some(waiting) = waiting {
            waiting.stats[core] = Some(stats);
        }
        let complete = |waiting: &Waiting| waiting.stats.iter().all(Option::is_some);
        while self.stats_wanted.front().is_some_and(complete) {
            let Some(Waiting { wanted, stats }) = self.stats_wanted.pop_front() else { return };
            let stats: Vec<_> = stats.into_iter().flatten().collect();
            let (reply, result) = match wanted {
                Wanted::Stats(reply) => (reply, json!(self.stats_of(&stats))),
                Wanted::Connections(reply) => {
                    let loads: Vec<_> = stats.iter().flat_map(|s| s.queues.clone()).collect();
                    (reply, json!(self.connection_list(&loads)))
                }
                Wanted::Health => {
                    self.update_health(&stats);
                    continue;
                }
            };
            let _ = reply.send(Ok(result));
        }
    }

    fn stats_of(&self, all: &[message::CoreStats]) -> Stats {
        let mut result = Stats {
            uptime_ms: self.started.elapsed().as_millis() as u64,
            memory: MemoryStats {
                arena_bytes: self.arena.bytes() as u64,
                free_bytes: self.arena.bytes_left() as u64,
                pools: Vec::new(),
            },
            queue_pairs: self.queue_pair_stats(),
            ..Stats::default()
        };
        for (core, stats) in (0u32..).zip(all) {
            let reactor = self.cores[core as usize].stats();
            let ios = stats.engine.ios;
            result.cores.push(CoreStats {
                core,
                turns: reactor.turns,
                busy_turns: reactor.busy_turns,
                busy_ns: reactor.busy_ns,
                ios,
                busy_ns_per_io: reactor.busy_ns.checked_div(ios).unwrap_or(0),
                buffer_waits: stats.engine.buffer_waits,
                channel_waits: stats.engine.channel_waits,
                copied_bytes: stats.copied_bytes,
            });
            result.carriers.push(rdma_stats(core, &stats.rdma));
            result.carriers.push(tcp_stats(core, &stats.tcp));
            let pool = |name: &str, pool: PoolUse| PoolStats {
                name: name.to_owned(),
                core,
                size_bytes: pool.size,
                free_bytes: pool.free,
            };
            result.memory.pools.push(pool("data", stats.data));
            result.memory.pools.push(pool("connections", stats.connections));
            for channel in &stats.channels {
                self.add_channel(&mut result, core, channel);
            }
        }
        result
    }

    fn add_channel(&self, result: &mut Stats, core: u32, channel: &message::ChannelStats) {
        let nqn = self.nqn_of(channel.subsystem);
        let bdev = self.bdev_of(&nqn, channel.nsid);
        result.channels.push(ChannelStats {
            bdev,
            core,
            submitted: channel.reads + channel.writes + channel.others,
            errors: channel.errors,
            in_flight: channel.in_flight,
        });
        let same = |n: &NamespaceStats| n.nqn == nqn && n.nsid == channel.nsid;
        let at = result.namespaces.iter().position(same).unwrap_or_else(|| {
            let nsid = channel.nsid;
            result.namespaces.push(NamespaceStats { nqn, nsid, ..NamespaceStats::default() });
            result.namespaces.len() - 1
        });
        let namespace = &mut result.namespaces[at];
        namespace.reads += channel.reads;
        namespace.writes += channel.writes;
        namespace.others += channel.others;
        namespace.read_bytes += channel.read_bytes;
        namespace.write_bytes += channel.write_bytes;
        namespace.errors += channel.errors;
    }

    fn nqn_of(&self, subsystem: u32) -> String {
        let mut subsystems = self.target.subsystems();
        let found = subsystems.find(|candidate| candidate.id().0 == subsystem);
        found.map(|found| found.nqn().to_owned()).unwrap_or_default()
    }

    fn bdev_of(&self, nqn: &str, nsid: u32) -> String {
        let export = self.state.exports.iter().find(|export| export.nqn == nqn);
        let saved = export.and_then(|e| e.namespaces.iter().find(|saved| saved.nsid == nsid));
        saved.map(|saved| saved.bdev.clone()).unwrap_or_default()
    }
}

fn rdma_stats(core: u32, carrier: &nvmf_rdma::CarrierStats) -> CarrierStats {
    CarrierStats {
        transport: "rdma".to_owned(),
        core,
        capsules: carrier.capsules,
        responses: carrier.responses,
        reads: carrier.reads,
        writes: carrier.writes,
        posts: carrier.reads + carrier.writes + carrier.responses,
        system_calls: carrier.send_chains,
    }
}

fn tcp_stats(core: u32, carrier: &nvmf_tcp::CarrierStats) -> CarrierStats {
    CarrierStats {
        transport: "tcp".to_owned(),
        core,
        capsules: carrier.capsules,
        responses: carrier.responses,
        reads: carrier.fetches,
        writes: carrier.data_responses,
        posts: carrier.fetches + carrier.data_responses + carrier.responses,
        system_calls: carrier.poll_calls + carrier.receive_calls + carrier.send_calls,
    }
}
