//! Status codes (NVMe Base 2.1, section 4.2.3; NVM Command Set 1.1, section 2.3).

use std::fmt;

/// The status field of a completion without its phase bit: status code in bits 7:0, status code
/// type in 10:8, command retry delay in 12:11, More in 13, Do Not Retry in 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(u16);

const DNR: u16 = 1 << 14;
const MORE: u16 = 1 << 13;
const CODE_MASK: u16 = 0x7FF;

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $sct:literal, $sc:literal, $text:literal;)*) => {
        impl Status {
            $(
                $(#[$doc])*
                #[doc = concat!($text, ".")]
                pub const $name: Status = Status($sct << 8 | $sc);
            )*

            /// The specification's name for the status, where it has one.
            pub fn name(self) -> Option<&'static str> {
                match self.code_and_type() {
                    $(Status::$name => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    // Generic command status (type 0).
    SUCCESS = 0, 0x00, "Successful Completion";
    INVALID_OPCODE = 0, 0x01, "Invalid Command Opcode";
    INVALID_FIELD = 0, 0x02, "Invalid Field in Command";
    COMMAND_ID_CONFLICT = 0, 0x03, "Command ID Conflict";
    DATA_TRANSFER_ERROR = 0, 0x04, "Data Transfer Error";
    ABORTED_POWER_LOSS = 0, 0x05, "Commands Aborted due to Power Loss Notification";
    INTERNAL_ERROR = 0, 0x06, "Internal Error";
    COMMAND_ABORT_REQUESTED = 0, 0x07, "Command Abort Requested";
    ABORTED_SQ_DELETION = 0, 0x08, "Command Aborted due to SQ Deletion";
    ABORTED_FAILED_FUSED = 0, 0x09, "Command Aborted due to Failed Fused Command";
    ABORTED_MISSING_FUSED = 0, 0x0A, "Command Aborted due to Missing Fused Command";
    INVALID_NAMESPACE_OR_FORMAT = 0, 0x0B, "Invalid Namespace or Format";
    COMMAND_SEQUENCE_ERROR = 0, 0x0C, "Command Sequence Error";
    INVALID_SGL_SEGMENT_DESCRIPTOR = 0, 0x0D, "Invalid SGL Segment Descriptor";
    INVALID_SGL_DESCRIPTOR_COUNT = 0, 0x0E, "Invalid Number of SGL Descriptors";
    DATA_SGL_LENGTH_INVALID = 0, 0x0F, "Data SGL Length Invalid";
    METADATA_SGL_LENGTH_INVALID = 0, 0x10, "Metadata SGL Length Invalid";
    SGL_DESCRIPTOR_TYPE_INVALID = 0, 0x11, "SGL Descriptor Type Invalid";
    INVALID_USE_OF_CMB = 0, 0x12, "Invalid Use of Controller Memory Buffer";
    PRP_OFFSET_INVALID = 0, 0x13, "PRP Offset Invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = 0, 0x14, "Atomic Write Unit Exceeded";
    OPERATION_DENIED = 0, 0x15, "Operation Denied";
    SGL_OFFSET_INVALID = 0, 0x16, "SGL Offset Invalid";
    HOST_IDENTIFIER_INCONSISTENT = 0, 0x18, "Host Identifier Inconsistent Format";
    KEEP_ALIVE_EXPIRED = 0, 0x19, "Keep Alive Timer Expired";
    KEEP_ALIVE_TIMEOUT_INVALID = 0, 0x1A, "Keep Alive Timeout Invalid";
    ABORTED_PREEMPT = 0, 0x1B, "Command Aborted due to Preempt and Abort";
    SANITIZE_FAILED = 0, 0x1C, "Sanitize Failed";
    SANITIZE_IN_PROGRESS = 0, 0x1D, "Sanitize In Progress";
    SGL_DATA_BLOCK_GRANULARITY_INVALID = 0, 0x1E, "SGL Data Block Granularity Invalid";
    NOT_SUPPORTED_FOR_QUEUE_IN_CMB = 0, 0x1F, "Command Not Supported for Queue in CMB";
    NAMESPACE_WRITE_PROTECTED = 0, 0x20, "Namespace is Write Protected";
    COMMAND_INTERRUPTED = 0, 0x21, "Command Interrupted";
    TRANSIENT_TRANSPORT_ERROR = 0, 0x22, "Transient Transport Error";
    PROHIBITED_BY_LOCKDOWN = 0, 0x23, "Command Prohibited by Command and Feature Lockdown";
    ADMIN_COMMAND_MEDIA_NOT_READY = 0, 0x24, "Admin Command Media Not Ready";
    LBA_OUT_OF_RANGE = 0, 0x80, "LBA Out of Range";
    CAPACITY_EXCEEDED = 0, 0x81, "Capacity Exceeded";
    NAMESPACE_NOT_READY = 0, 0x82, "Namespace Not Ready";
    RESERVATION_CONFLICT = 0, 0x83, "Reservation Conflict";
    FORMAT_IN_PROGRESS = 0, 0x84, "Format In Progress";

    // Command specific status (type 1).
    COMPLETION_QUEUE_INVALID = 1, 0x00, "Completion Queue Invalid";
    INVALID_QUEUE_IDENTIFIER = 1, 0x01, "Invalid Queue Identifier";
    INVALID_QUEUE_SIZE = 1, 0x02, "Invalid Queue Size";
    ABORT_COMMAND_LIMIT_EXCEEDED = 1, 0x03, "Abort Command Limit Exceeded";
    ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED = 1, 0x05, "Asynchronous Event Request Limit Exceeded";
    INVALID_FIRMWARE_SLOT = 1, 0x06, "Invalid Firmware Slot";
    INVALID_FIRMWARE_IMAGE = 1, 0x07, "Invalid Firmware Image";
    INVALID_INTERRUPT_VECTOR = 1, 0x08, "Invalid Interrupt Vector";
    INVALID_LOG_PAGE = 1, 0x09, "Invalid Log Page";
    INVALID_FORMAT = 1, 0x0A, "Invalid Format";
    INVALID_QUEUE_DELETION = 1, 0x0C, "Invalid Queue Deletion";
    FEATURE_NOT_SAVEABLE = 1, 0x0D, "Feature Identifier Not Saveable";
    FEATURE_NOT_CHANGEABLE = 1, 0x0E, "Feature Not Changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 1, 0x0F, "Feature Not Namespace Specific";
    NAMESPACE_NOT_ATTACHED = 1, 0x1A, "Namespace Not Attached";
    INVALID_CONTROLLER_IDENTIFIER = 1, 0x1F, "Invalid Controller Identifier";
    COMMAND_SET_NOT_SUPPORTED = 1, 0x29, "I/O Command Set Not Supported";
    COMMAND_SET_NOT_ENABLED = 1, 0x2A, "I/O Command Set Not Enabled";
    INVALID_COMMAND_SET = 1, 0x2C, "Invalid I/O Command Set";

    // Command specific status of fabrics commands (Base 2.1, section 6, Connect command). I/O
    // commands use some of the same codes: see below.
    CONNECT_INCOMPATIBLE_FORMAT = 1, 0x80,
        "Connect Incompatible Format or Conflicting Attributes";
    CONNECT_CONTROLLER_BUSY = 1, 0x81,
        "Connect Controller Busy or Invalid Protection Information";
    CONNECT_INVALID_PARAMETERS = 1, 0x82,
        "Connect Invalid Parameters or Attempted Write to Read Only Range";
    CONNECT_RESTART_DISCOVERY = 1, 0x83,
        "Connect Restart Discovery or Command Size Limit Exceeded";
    CONNECT_INVALID_HOST = 1, 0x84, "Connect Invalid Host";
    DISCONNECT_INVALID_QUEUE_TYPE = 1, 0x85, "Invalid Queue Type";
    DISCOVER_RESTART = 1, 0x90, "Discover Restart";
    AUTHENTICATION_REQUIRED = 1, 0x91, "Authentication Required";

    // Media and data integrity errors (type 2).
    WRITE_FAULT = 2, 0x80, "Write Fault";
    UNRECOVERED_READ_ERROR = 2, 0x81, "Unrecovered Read Error";
    GUARD_CHECK_ERROR = 2, 0x82, "End-to-end Guard Check Error";
    APPLICATION_TAG_CHECK_ERROR = 2, 0x83, "End-to-end Application Tag Check Error";
    REFERENCE_TAG_CHECK_ERROR = 2, 0x84, "End-to-end Reference Tag Check Error";
    COMPARE_FAILURE = 2, 0x85, "Compare Failure";
    ACCESS_DENIED = 2, 0x86, "Access Denied";
    DEALLOCATED_OR_UNWRITTEN = 2, 0x87, "Deallocated or Unwritten Logical Block";

    // Path related status (type 3).
    INTERNAL_PATH_ERROR = 3, 0x00, "Internal Path Error";
    ANA_PERSISTENT_LOSS = 3, 0x01, "Asymmetric Access Persistent Loss";
    ANA_INACCESSIBLE = 3, 0x02, "Asymmetric Access Inaccessible";
    ANA_TRANSITION = 3, 0x03, "Asymmetric Access Transition";
    CONTROLLER_PATHING_ERROR = 3, 0x60, "Controller Pathing Error";
    HOST_PATHING_ERROR = 3, 0x70, "Host Pathing Error";
    ABORTED_BY_HOST = 3, 0x71, "Command Aborted By Host";
}

/// Command specific status of I/O commands (NVM Command Set 1.1, section 2.3). A code of this type
/// means what the command it answers makes of it; these equal codes of the Connect command.
impl Status {
    /// Conflicting Attributes.
    pub const CONFLICTING_ATTRIBUTES: Self = Self::new(1, 0x80);
    /// Invalid Protection Information.
    pub const INVALID_PROTECTION_INFORMATION: Self = Self::new(1, 0x81);
    /// Attempted Write to Read Only Range.
    pub const WRITE_TO_READ_ONLY_RANGE: Self = Self::new(1, 0x82);
    /// Command Size Limit Exceeded.
    pub const COMMAND_SIZE_LIMIT_EXCEEDED: Self = Self::new(1, 0x83);
}

impl Status {
    /// A status of this type (3 bits) and code, to be retried.
    pub const fn new(sct: u8, sc: u8) -> Self {
        Self(((sct & 7) as u16) << 8 | sc as u16)
    }

    /// From the 16-bit status field of a completion, whose bit 0 is the phase tag.
    #[inline]
    pub const fn from_field(field: u16) -> Self {
        Self(field >> 1)
    }

    /// The 16-bit status field of a completion, with the phase tag 0.
    #[inline]
    pub const fn to_field(self) -> u16 {
        self.0 << 1
    }

    /// The same with Do Not Retry set: the command would fail the same way again.
    #[inline]
    pub const fn with_dnr(self) -> Self {
        Self(self.0 | DNR)
    }

    /// The same with More set: the error log has more about it.
    pub const fn with_more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// Do Not Retry.
    pub const fn dnr(self) -> bool {
        self.0 & DNR != 0
    }

    /// More: the error log has more about it.
    pub const fn more(self) -> bool {
        self.0 & MORE != 0
    }

    /// Status code.
    pub const fn code(self) -> u8 {
        self.0 as u8
    }

    /// Status code type.
    pub const fn code_type(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// Command retry delay: which of the controller's three delays to wait; 0: none.
    pub const fn retry_delay(self) -> u8 {
        (self.0 >> 11 & 3) as u8
    }

    /// Only code and type, for comparing with the constants.
    #[inline]
    pub const fn code_and_type(self) -> Self {
        Self(self.0 & CODE_MASK)
    }

    /// Successful completion.
    #[inline]
    pub const fn is_success(self) -> bool {
        self.0 & CODE_MASK == 0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().unwrap_or("unknown status"))?;
        write!(f, " ({}:{:02X}h", self.code_type(), self.code())?;
        f.write_str(if self.dnr() { ", do not retry)" } else { ")" })
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_holds_type_code_and_dnr() {
        let status = Status::CONNECT_INVALID_HOST.with_dnr();
        assert_eq!(status.to_field(), 0x4184 << 1);
        assert_eq!(Status::from_field(status.to_field() | 1), status, "the phase is not status");
        assert_eq!((status.code_type(), status.code(), status.dnr()), (1, 0x84, true));
        assert_eq!(status.code_and_type(), Status::CONNECT_INVALID_HOST);
        assert_eq!(status.to_string(), "Connect Invalid Host (1:84h, do not retry)");
        assert_eq!(Status::new(7, 0xFF).to_string(), "unknown status (7:FFh)");
    }

    #[test]
    fn all_ones_decode_field_by_field() {
        let status = Status::from_field(u16::MAX);
        assert_eq!((status.code_type(), status.code()), (7, 0xFF));
        assert_eq!((status.retry_delay(), status.more(), status.dnr()), (3, true, true));
        assert_eq!(status.to_field(), 0xFFFE);
        let retry = Status::from_field(0x1022 << 1);
        assert_eq!((retry.retry_delay(), retry.more(), retry.dnr()), (2, false, false));
        assert_eq!(retry.code_and_type(), Status::TRANSIENT_TRANSPORT_ERROR);
        assert!(Status::SUCCESS.with_more().more() && Status::SUCCESS.with_more().is_success());
        assert!(!retry.is_success());
    }
}
