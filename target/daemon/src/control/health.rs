//! What hosts read in the SMART / Health log: their own commands, and the state of the SSDs behind.

use std::time::{Duration, Instant};

use nvme_spec::log_page::Smart;
use nvmf::HealthCounters;

use super::Control;
use super::device_info::narrow;
use super::stats::Wanted;
use crate::message::CoreStats;

/// How often the cores are asked what hosts did, while there are hosts.
const PERIOD: Duration = Duration::from_secs(2);

impl Control {
    /// Has the health of every subsystem brought up to date, every now and then.
    pub(super) fn poll_health(&mut self, now: Instant) {
        let asked = self.stats_wanted.iter().any(|w| matches!(w.wanted, Wanted::Health));
        if now >= self.health_due && !asked && self.target.controllers().next().is_some() {
            self.health_due = now + PERIOD;
            self.collect_stats(Wanted::Health);
        }
    }

    pub(super) fn update_health(&mut self, cores: &[CoreStats]) {
        for export in &self.state.exports {
            let Some(subsystem) = self.target.subsystem(&export.nqn) else { continue };
            let id = subsystem.id().0;
            let mut health = HealthCounters::default();
            let channels = cores.iter().flat_map(|core| &core.channels);
            for channel in channels.filter(|channel| channel.subsystem == id) {
                health.reads += channel.reads;
                health.writes += channel.writes;
                health.read_bytes += channel.read_bytes;
                health.write_bytes += channel.write_bytes;
            }
            for saved in &export.namespaces {
                let pool = self.pools.pool_of(&saved.bdev).map(|(_, pool)| pool.bdevs.as_slice());
                for bdev in pool.unwrap_or(std::slice::from_ref(&saved.bdev)) {
                    if let Some(smart) = self.smart_of_bdev(bdev) {
                        worsen(&mut health, smart);
                    }
                }
            }
            // It is there: it was just looked up.
            let _ = self.target.set_health(&export.nqn, health);
        }
    }
}

/// A subsystem is as bad as the worst SSD behind it; errors of all count.
fn worsen(health: &mut HealthCounters, smart: &Smart) {
    let kelvin = smart.temperature_kelvin.get();
    health.temperature_kelvin = health.temperature_kelvin.max(kelvin);
    health.critical_warning |= smart.critical_warning;
    health.available_spare = health.available_spare.min(smart.available_spare);
    health.percentage_used = health.percentage_used.max(smart.percentage_used);
    health.media_errors = health.media_errors.saturating_add(narrow(smart.media_errors));
    health.power_on_hours = health.power_on_hours.max(narrow(smart.power_on_hours));
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn a_subsystem_is_as_bad_as_the_worst_ssd_behind_it() {
        let mut health = HealthCounters::default();
        assert_eq!(health.temperature_kelvin, 0, "memory has none");
        let mut smart = Smart::new_zeroed();
        for (kelvin, spare, used, errors, warning) in [(310, 100, 3, 1, 0), (305, 40, 1, 2, 4)] {
            smart.temperature_kelvin = kelvin.into();
            (smart.available_spare, smart.percentage_used) = (spare, used);
            smart.media_errors[0] = errors;
            smart.critical_warning = warning;
            worsen(&mut health, &smart);
        }
        let HealthCounters { temperature_kelvin, available_spare, percentage_used, .. } = health;
        assert_eq!((temperature_kelvin, available_spare, percentage_used), (310, 40, 3));
        assert_eq!((health.media_errors, health.critical_warning), (3, 4));
    }
}
