//! Get and Set Features (NVMe Base 2.1, sections 5.1.11 and 5.1.25). No feature can be saved.

use nvme_spec::command::Sqe;
use nvme_spec::features::{
    SUPPORTED_CHANGEABLE, Select, feature_id, fid, queue_counts, queue_counts_dword, save,
};
use nvme_spec::identify::{OAES_DISCOVERY_LOG, OAES_NAMESPACE_ATTRIBUTE};
use nvme_spec::status::Status;

use crate::controller::{Controller, Features, granted_kato_ms};
use crate::output::{Answer, Outcome, Refusal};
use crate::subsystem::Subsystem;
use crate::target::{Target, check_room};

/// Asynchronous Event Configuration: SMART / health critical warnings, which are never given.
const ASYNC_SMART_MASK: u32 = 0xFF;

/// Extended Host Identifier, in CDW11: 16 bytes, as fabrics demands.
const EXHID: u32 = 1;

impl Target {
    pub(crate) fn get_features(&mut self, cntlid: u16, sqe: &Sqe) -> Outcome {
        let most_queues = self.config.max_io_queues;
        let controller = self.controllers.get(&cntlid).ok_or(Status::INTERNAL_ERROR)?;
        let subsystem = self.subsystem_of(controller.subsystem);
        let id = feature_id(sqe);
        if !is_supported(id, controller, subsystem) {
            return Err(invalid_field());
        }
        let defaults = Features::default();
        let features = match Select::of(sqe) {
            Select::CURRENT => &controller.features,
            // What cannot be saved has its default in the saved place.
            Select::DEFAULT | Select::SAVED => &defaults,
            Select::SUPPORTED => {
                let fixed = matches!(id, fid::HOST_IDENTIFIER | fid::ERROR_RECOVERY);
                return Answer::result(u64::from(if fixed { 0 } else { SUPPORTED_CHANGEABLE }));
            }
            _ => return Err(invalid_field()),
        };
        let is_current = Select::of(sqe) == Select::CURRENT;
        let value = match id {
            fid::ARBITRATION => features.arbitration,
            fid::TEMPERATURE_THRESHOLD => match temperature_of(sqe)? {
                Threshold::Over => u32::from(features.over_temperature_kelvin),
                Threshold::Under => u32::from(features.under_temperature_kelvin),
            },
            fid::VOLATILE_WRITE_CACHE => 1,
            fid::NUMBER_OF_QUEUES => {
                let granted = u32::from(features.io_queues.unwrap_or(most_queues));
                queue_counts_dword(granted, granted)
            }
            fid::ASYNC_EVENT_CONFIGURATION => features.async_events,
            fid::KEEP_ALIVE_TIMER if is_current => controller.kato_ms,
            fid::HOST_IDENTIFIER => {
                if sqe.cdw11.get() & EXHID == 0 {
                    return Err(invalid_field());
                }
                check_room(sqe, controller.host_id.len() as u64)?;
                return Answer::data(controller.host_id.to_vec());
            }
            // Power state 0 is the only one; errors are recovered without a time limit; the default
            // is no keep-alive.
            _ => 0,
        };
        Answer::result(u64::from(value))
    }

    pub(crate) fn set_features(&mut self, cntlid: u16, sqe: &Sqe) -> Outcome {
        let most_queues = self.most_io_queues(cntlid);
        let controller = self.controllers.get(&cntlid).ok_or(Status::INTERNAL_ERROR)?;
        let (id, value) = (feature_id(sqe), sqe.cdw11.get());
        if !is_supported(id, controller, self.subsystem_of(controller.subsystem)) {
            return Err(invalid_field());
        }
        if save(sqe) {
            return Err(Status::FEATURE_NOT_SAVEABLE.with_dnr().into());
        }
        if !matches!(sqe.nsid(), 0 | u32::MAX) {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.with_dnr().into());
        }
        let controller = self.controllers.get_mut(&cntlid).ok_or(Status::INTERNAL_ERROR)?;
        match id {
            fid::ARBITRATION => controller.features.arbitration = value,
            fid::TEMPERATURE_THRESHOLD => {
                let kelvin = value as u16;
                match temperature_of(sqe)? {
                    Threshold::Over => controller.features.over_temperature_kelvin = kelvin,
                    Threshold::Under => controller.features.under_temperature_kelvin = kelvin,
                }
            }
            fid::POWER_MANAGEMENT | fid::ERROR_RECOVERY if value != 0 => {
                return Err(invalid_field());
            }
            fid::VOLATILE_WRITE_CACHE if value & 1 == 0 => {
                return Err(Status::FEATURE_NOT_CHANGEABLE.with_dnr().into());
            }
            fid::NUMBER_OF_QUEUES => return set_queue_count(controller, value, most_queues),
            fid::ASYNC_EVENT_CONFIGURATION => {
                let known = match controller.is_discovery() {
                    true => OAES_DISCOVERY_LOG,
                    false => OAES_NAMESPACE_ATTRIBUTE,
                };
                if value & !(known | ASYNC_SMART_MASK) != 0 {
                    return Err(invalid_field());
                }
                controller.features.async_events = value;
            }
            fid::KEEP_ALIVE_TIMER => controller.kato_ms = granted_kato_ms(value),
            // The Connect command has given it for good.
            fid::HOST_IDENTIFIER => return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into()),
            _ => {}
        }
        Answer::done()
    }

    /// What a controller may be granted: a host that gets more than there is memory for fails to
    /// connect its last queues, and gives up the controller.
    fn most_io_queues(&self, cntlid: u16) -> u16 {
        let others = self.controllers.values().filter(|other| other.cntlid != cntlid);
        let taken = |other: &Controller| {
            u32::from(other.features.io_queues.unwrap_or(0)).max(other.io_queues.len() as u32)
        };
        let left = self.config.io_queue_budget.saturating_sub(others.map(taken).sum());
        u16::try_from(left).unwrap_or(u16::MAX).clamp(1, self.config.max_io_queues)
    }
}

/// Queues are counted once, before the first of them connects.
fn set_queue_count(controller: &mut Controller, value: u32, most_queues: u16) -> Outcome {
    let (submission, completion) = queue_counts(value).ok_or_else(invalid_field)?;
    if !controller.io_queues.is_empty() {
        return Err(Status::COMMAND_SEQUENCE_ERROR.with_dnr().into());
    }
    let wanted = submission.min(completion).min(u32::from(most_queues));
    // `wanted` is at most `most_queues`, which is a u16.
    controller.features.io_queues = Some(wanted as u16);
    Answer::result(u64::from(queue_counts_dword(wanted, wanted)))
}

fn is_supported(id: u8, controller: &Controller, subsystem: Option<&Subsystem>) -> bool {
    match id {
        fid::ASYNC_EVENT_CONFIGURATION | fid::KEEP_ALIVE_TIMER | fid::HOST_IDENTIFIER => true,
        fid::VOLATILE_WRITE_CACHE => subsystem.is_some_and(Subsystem::has_volatile_cache),
        fid::ARBITRATION
        | fid::POWER_MANAGEMENT
        | fid::TEMPERATURE_THRESHOLD
        | fid::ERROR_RECOVERY
        | fid::NUMBER_OF_QUEUES => !controller.is_discovery(),
        _ => false,
    }
}

enum Threshold {
    Over,
    Under,
}

/// Which threshold of which sensor (CDW11 bits 19:16 and 21:20). There is the composite sensor
/// alone; a threshold of all sensors (1111b) is its threshold.
fn temperature_of(sqe: &Sqe) -> Result<Threshold, Refusal> {
    let (sensor, threshold) = (sqe.cdw11.get() >> 16 & 0xF, sqe.cdw11.get() >> 20 & 3);
    match (sensor, threshold) {
        (0 | 0xF, 0) => Ok(Threshold::Over),
        (0 | 0xF, 1) => Ok(Threshold::Under),
        _ => Err(invalid_field()),
    }
}

fn invalid_field() -> Refusal {
    Status::INVALID_FIELD.with_dnr().into()
}
