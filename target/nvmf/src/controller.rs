//! One controller: what a host connected to, from its admin Connect to the end of its last queue.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nvme_spec::aer::{AsyncEvent, event_type, notice};
use nvme_spec::command::Sqe;
use nvme_spec::log_page::{ErrorEntry, lid};
use nvme_spec::registers::{Cc, Csts};
use nvme_spec::status::Status;
use zerocopy::FromZeros;

use crate::limits::{
    DISCOVERY_IDLE_TIMEOUT, IDLE_TIMEOUT, KEEP_ALIVE_GRANULARITY_MS, MAX_ERROR_ENTRIES,
};
use crate::output::{CommandKey, QueueKey, SubsystemId};
use crate::verbs::Transport;

/// Where a controller is between CC.EN and CSTS.RDY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerState {
    /// CC.EN is 0, and so is CSTS.RDY.
    Disabled,
    /// CSTS.RDY is 1.
    Ready,
    /// CC.EN was cleared; CSTS.RDY is 1 until the last I/O queue is gone.
    Disabling,
    /// Enabled with a configuration that does not exist: CSTS.CFS is 1 until CC.EN is cleared.
    Failed,
}

/// Shutdown by CC.SHN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shutdown {
    None,
    /// Until the last I/O queue is gone.
    Occurring,
    Complete,
}

/// The one notice that a controller may have to give: of namespaces, or of discovery entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    Clear,
    /// Waits for an Asynchronous Event Request.
    Pending,
    /// Given. Another one is not, until the host has read the log page that tells more.
    Reported,
}

#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) cntlid: u16,
    pub(crate) subsystem: SubsystemId,
    pub(crate) host_nqn: String,
    pub(crate) host_id: [u8; 16],
    pub(crate) admin: QueueKey,
    pub(crate) transport: Transport,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) io_queues: BTreeMap<u16, QueueKey>,
    pub(crate) state: ControllerState,
    pub(crate) shutdown: Shutdown,
    pub(crate) cc: Cc,
    /// Every queue of it has been told to close.
    pub(crate) ending: bool,
    pub(crate) kato_ms: u32,
    /// When the host last gave a sign of life.
    pub(crate) heard: Instant,
    /// Since when it is disabled or shut down.
    pub(crate) idle_since: Instant,
    pub(crate) features: Features,
    /// Asynchronous Event Requests that wait, oldest first, with their command identifiers.
    pub(crate) event_requests: VecDeque<(CommandKey, u16)>,
    pub(crate) notice: Notice,
    /// Abort commands that the data path works on.
    pub(crate) aborts: Vec<CommandKey>,
    /// Namespaces that changed since the host last asked.
    pub(crate) changed: BTreeSet<u32>,
    /// Namespaces that were removed since the host last listed those there are.
    pub(crate) removed: BTreeSet<u32>,
    /// Newest first.
    pub(crate) errors: VecDeque<ErrorEntry>,
    pub(crate) error_count: u64,
}

/// Features that a host may change; a controller reset brings the defaults back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    pub(crate) arbitration: u32,
    pub(crate) over_temperature_kelvin: u16,
    pub(crate) under_temperature_kelvin: u16,
    pub(crate) async_events: u32,
    /// I/O queues granted; `None` until the host asks.
    pub(crate) io_queues: Option<u16>,
}

/// Warning composite temperature threshold.
pub(crate) const WARNING_KELVIN: u16 = 343;
/// Critical composite temperature threshold.
pub(crate) const CRITICAL_KELVIN: u16 = 353;

impl Default for Features {
    fn default() -> Self {
        Self {
            // Arbitration burst 111b: no limit.
            arbitration: 7,
            over_temperature_kelvin: WARNING_KELVIN,
            under_temperature_kelvin: 0,
            async_events: 0,
            io_queues: None,
        }
    }
}

impl Controller {
    pub(crate) fn is_discovery(&self) -> bool {
        self.subsystem == SubsystemId::DISCOVERY
    }

    pub(crate) fn csts(&self) -> Csts {
        let ready = matches!(self.state, ControllerState::Ready | ControllerState::Disabling);
        let shst = match self.shutdown {
            Shutdown::None => Csts::SHST_NORMAL,
            Shutdown::Occurring => Csts::SHST_OCCURRING,
            Shutdown::Complete => Csts::SHST_COMPLETE,
        };
        Csts::new(ready, self.state == ControllerState::Failed, shst)
    }

    /// Whether I/O queues may connect.
    pub(crate) fn takes_io_queues(&self) -> bool {
        self.state == ControllerState::Ready && self.shutdown == Shutdown::None && !self.ending
    }

    /// The last I/O queue may be gone: finishes a disable or shutdown that waited for that.
    pub(crate) fn settle(&mut self, now: Instant) {
        if !self.io_queues.is_empty() {
            return;
        }
        if self.state == ControllerState::Disabling {
            self.state = ControllerState::Disabled;
            self.idle_since = now;
            self.features = Features::default();
            self.notice = Notice::Clear;
            self.changed.clear();
            self.removed.clear();
        }
        if self.shutdown == Shutdown::Occurring {
            self.shutdown = Shutdown::Complete;
            self.idle_since = now;
        }
    }

    /// When to give up on the host, unless it says something first.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.ending {
            return None;
        }
        // A controller that is not running has no keep-alive (NVMe Base 2.1, section 3.9), but the
        // association does not last for ever.
        if self.state != ControllerState::Ready || self.shutdown != Shutdown::None {
            return Some(self.idle_since + IDLE_TIMEOUT);
        }
        match self.kato_ms {
            0 if self.is_discovery() => Some(self.heard + DISCOVERY_IDLE_TIMEOUT),
            0 => None,
            kato_ms => Some(self.heard + Duration::from_millis(u64::from(kato_ms))),
        }
    }

    /// Notes that something happened which the host wants to know of, if it said so.
    pub(crate) fn raise(&mut self, enable_bit: u32) {
        if self.features.async_events & enable_bit != 0 && self.notice == Notice::Clear {
            self.notice = Notice::Pending;
        }
    }

    /// The event and the request to answer with it, when there are both.
    pub(crate) fn take_event(&mut self) -> Option<(CommandKey, AsyncEvent)> {
        if self.notice != Notice::Pending {
            return None;
        }
        let (command, _) = self.event_requests.pop_front()?;
        self.notice = Notice::Reported;
        let (information, log_page) = match self.is_discovery() {
            true => (notice::DISCOVERY_LOG_CHANGE, lid::DISCOVERY),
            false => (notice::NAMESPACE_ATTRIBUTE_CHANGED, lid::CHANGED_NAMESPACES),
        };
        Some((command, AsyncEvent::new(event_type::NOTICE, information, log_page)))
    }

    /// Puts a failed command into the error log.
    pub(crate) fn note_error(&mut self, sqe: &Sqe, status: Status) {
        self.error_count += 1;
        let mut entry = ErrorEntry::new_zeroed();
        entry.error_count = self.error_count.into();
        entry.cid = sqe.cid().into();
        entry.status_field = status.to_field().into();
        entry.parameter_error_location = 0xFFFF.into();
        entry.nsid = sqe.nsid;
        entry.opcode = sqe.opcode();
        self.errors.truncate(MAX_ERROR_ENTRIES - 1);
        self.errors.push_front(entry);
    }
}

/// A keep-alive time-out as it is granted: rounded up to the granularity.
pub(crate) fn granted_kato_ms(wanted_ms: u32) -> u32 {
    let largest = u32::MAX / KEEP_ALIVE_GRANULARITY_MS * KEEP_ALIVE_GRANULARITY_MS;
    wanted_ms.min(largest).next_multiple_of(KEEP_ALIVE_GRANULARITY_MS)
}
