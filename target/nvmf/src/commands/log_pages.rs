//! Get Log Page (NVMe Base 2.1, section 5.1.12).

use nvme_spec::command::Sqe;
use nvme_spec::identify::pad;
use nvme_spec::log_page::{
    EFFECT_LOGICAL_BLOCKS, EFFECT_SUPPORTED, Effects, FirmwareSlots, GetLogPage, Smart, lid,
};
use nvme_spec::opcode::{admin, nvm};
use nvme_spec::status::Status;
use zerocopy::{FromZeros, IntoBytes};

use crate::controller::{Controller, Notice};
use crate::limits::MAX_ERROR_ENTRIES;
use crate::output::{Answer, Outcome};
use crate::subsystem::{HealthCounters, Subsystem};
use crate::target::{Target, check_room};

/// What a controller with namespaces has, and a discovery controller.
const LIDS: [u8; 6] = [
    lid::SUPPORTED,
    lid::ERROR,
    lid::SMART,
    lid::FIRMWARE_SLOT,
    lid::CHANGED_NAMESPACES,
    lid::EFFECTS,
];
const DISCOVERY_LIDS: [u8; 2] = [lid::SUPPORTED, lid::DISCOVERY];

/// Supported Log Pages: one descriptor of 4 bytes for each identifier.
const SUPPORTED_PAGES_BYTES: usize = 1024;
/// Supported Log Pages: the page is there.
const LSUPP: u8 = 1;
/// AFI: slot 1 is active.
const ACTIVE_SLOT_1: u8 = 1;
/// Available spare below which a device would warn, percent.
const SPARE_THRESHOLD_PERCENT: u8 = 10;
/// A data unit of the SMART log.
const DATA_UNIT_BYTES: u64 = 512_000;

impl Target {
    pub(crate) fn get_log_page(&mut self, cntlid: u16, sqe: &Sqe) -> Outcome {
        let request = GetLogPage::of(sqe);
        let controller = self.controllers.get(&cntlid).ok_or(Status::INTERNAL_ERROR)?;
        let subsystem = self.subsystem_of(controller.subsystem);
        let has_page = match controller.is_discovery() {
            true => DISCOVERY_LIDS.contains(&request.lid),
            false => LIDS.contains(&request.lid),
        };
        if !has_page {
            return Err(Status::INVALID_LOG_PAGE.with_dnr().into());
        }
        // There are no logs of a single namespace.
        let namespace_is_good = request.lid != lid::SMART || matches!(sqe.nsid(), 0 | u32::MAX);
        let offset_is_good = request.offset.is_multiple_of(4) && !request.offset_is_index;
        if !namespace_is_good
            || !offset_is_good
            || request.bytes > u64::from(self.config.mdts_bytes)
        {
            return Err(Status::INVALID_FIELD.with_dnr().into());
        }
        check_room(sqe, request.bytes)?;
        let page = match request.lid {
            lid::SUPPORTED => supported_pages(controller.is_discovery()),
            lid::ERROR => error_log(controller),
            lid::SMART => smart_log(controller, subsystem),
            lid::FIRMWARE_SLOT => firmware_slots(&self.config.firmware),
            lid::CHANGED_NAMESPACES => changed_namespaces(controller),
            lid::EFFECTS => effects(),
            _ => self.discovery_log(controller),
        };
        let part = part_of(&page, &request)?;
        if !request.rae {
            self.clear_event(cntlid, request.lid);
        }
        Answer::data(part)
    }

    /// The host has read what an event is about: the next one may be given.
    fn clear_event(&mut self, cntlid: u16, read: u8) {
        let Some(controller) = self.controllers.get_mut(&cntlid) else { return };
        if matches!(read, lid::CHANGED_NAMESPACES | lid::DISCOVERY) {
            controller.changed.clear();
            controller.notice = Notice::Clear;
        }
    }
}

/// What the host asked for of a page; beyond the page's end there are zeroes, but it cannot begin
/// there.
fn part_of(page: &[u8], request: &GetLogPage) -> Result<Vec<u8>, Status> {
    let rest = usize::try_from(request.offset).ok().and_then(|offset| page.get(offset..));
    let rest = rest.ok_or(Status::INVALID_FIELD.with_dnr())?;
    let bytes = usize::try_from(request.bytes).map_err(|_| Status::INVALID_FIELD.with_dnr())?;
    let mut part = rest.get(..bytes).unwrap_or(rest).to_vec();
    part.resize(bytes, 0);
    Ok(part)
}

fn supported_pages(discovery: bool) -> Vec<u8> {
    let mut page = vec![0; SUPPORTED_PAGES_BYTES];
    let lids: &[u8] = if discovery { &DISCOVERY_LIDS } else { &LIDS };
    for (index, descriptor) in page.chunks_exact_mut(4).enumerate() {
        if let [first, ..] = descriptor
            && lids.iter().any(|&lid| usize::from(lid) == index)
        {
            *first = LSUPP;
        }
    }
    page
}

fn error_log(controller: &Controller) -> Vec<u8> {
    let mut page = Vec::with_capacity(MAX_ERROR_ENTRIES * 64);
    for entry in &controller.errors {
        page.extend_from_slice(entry.as_bytes());
    }
    page.resize(MAX_ERROR_ENTRIES * 64, 0);
    page
}

fn smart_log(controller: &Controller, subsystem: Option<&Subsystem>) -> Vec<u8> {
    let health = subsystem.map_or_else(HealthCounters::default, |subsystem| subsystem.health);
    let wide = |number: u64| u128::from(number).to_le_bytes();
    let mut smart = Smart::new_zeroed();
    smart.critical_warning = health.critical_warning;
    smart.temperature_kelvin = health.temperature_kelvin.into();
    smart.available_spare = health.available_spare;
    smart.spare_threshold = SPARE_THRESHOLD_PERCENT;
    smart.percentage_used = health.percentage_used;
    smart.data_units_read = wide(health.read_bytes.div_ceil(DATA_UNIT_BYTES));
    smart.data_units_written = wide(health.write_bytes.div_ceil(DATA_UNIT_BYTES));
    smart.host_reads = wide(health.reads);
    smart.host_writes = wide(health.writes);
    smart.power_on_hours = wide(health.power_on_hours);
    smart.media_errors = wide(health.media_errors);
    smart.error_entries = wide(controller.error_count);
    smart.as_bytes().to_vec()
}

fn firmware_slots(revision: &str) -> Vec<u8> {
    let mut slots = FirmwareSlots::new_zeroed();
    slots.afi = ACTIVE_SLOT_1;
    let [first, ..] = &mut slots.frs;
    pad(first, revision);
    slots.as_bytes().to_vec()
}

/// As many as there can be namespaces, so that the log never overflows.
fn changed_namespaces(controller: &Controller) -> Vec<u8> {
    let mut page: Vec<u8> = controller.changed.iter().flat_map(|nsid| nsid.to_le_bytes()).collect();
    page.resize(4 * nvme_spec::log_page::CHANGED_NAMESPACES_MAX, 0);
    page
}

fn effects() -> Vec<u8> {
    let mut effects = Effects::new_zeroed();
    for opcode in [
        admin::GET_LOG_PAGE,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT_REQUEST,
        admin::KEEP_ALIVE,
    ] {
        effects.admin[usize::from(opcode)] = EFFECT_SUPPORTED.into();
    }
    for opcode in [nvm::FLUSH, nvm::READ, nvm::COMPARE] {
        effects.io[usize::from(opcode)] = EFFECT_SUPPORTED.into();
    }
    for opcode in [nvm::WRITE, nvm::WRITE_ZEROES, nvm::DATASET_MANAGEMENT] {
        effects.io[usize::from(opcode)] = (EFFECT_SUPPORTED | EFFECT_LOGICAL_BLOCKS).into();
    }
    effects.as_bytes().to_vec()
}
