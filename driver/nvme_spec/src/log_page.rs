//! Log pages (NVMe Base 2.1, section 5.1.12).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command::Sqe;
use crate::{U16, U32, U64};

/// Log page identifiers.
pub mod lid {
    /// Supported Log Pages.
    pub const SUPPORTED: u8 = 0x00;
    /// Error Information.
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information.
    pub const SMART: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE_SLOT: u8 = 0x03;
    /// Changed Attached Namespace List.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands Supported and Effects.
    pub const EFFECTS: u8 = 0x05;
    /// Asymmetric Namespace Access.
    pub const ANA: u8 = 0x0C;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
    /// Reservation Notification.
    pub const RESERVATION: u8 = 0x80;
}

/// The fields of a Get Log Page command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetLogPage {
    /// Log page identifier.
    pub lid: u8,
    /// Log specific parameter, 7 bits.
    pub lsp: u8,
    /// Retain Asynchronous Event.
    pub rae: bool,
    /// Bytes to return: on the wire a 0's based count of dwords in two parts.
    pub bytes: u64,
    /// Log page offset in bytes.
    pub offset: u64,
    /// The offset is an index rather than a number of bytes.
    pub offset_is_index: bool,
    /// Log specific identifier.
    pub lsi: u16,
}

impl GetLogPage {
    /// Reads the fields of a command.
    pub fn of(sqe: &Sqe) -> Self {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        let numd_z = u64::from(cdw11 & 0xFFFF) << 16 | u64::from(cdw10 >> 16);
        Self {
            lid: cdw10 as u8,
            lsp: (cdw10 >> 8 & 0x7F) as u8,
            rae: cdw10 >> 15 & 1 != 0,
            bytes: (numd_z + 1) * 4,
            offset: u64::from(sqe.cdw13.get()) << 32 | u64::from(sqe.cdw12.get()),
            offset_is_index: sqe.cdw14.get() >> 23 & 1 != 0,
            lsi: (cdw11 >> 16) as u16,
        }
    }

    /// Writes the fields into a command; `bytes` is a multiple of 4.
    pub fn set(&self, sqe: &mut Sqe) {
        let numd_z = (self.bytes / 4).saturating_sub(1);
        let cdw10 = u32::from(self.lid)
            | u32::from(self.lsp & 0x7F) << 8
            | u32::from(self.rae) << 15
            | (numd_z as u32 & 0xFFFF) << 16;
        sqe.cdw10 = cdw10.into();
        sqe.cdw11 = ((numd_z >> 16) as u32 & 0xFFFF | u32::from(self.lsi) << 16).into();
        sqe.cdw12 = (self.offset as u32).into();
        sqe.cdw13 = ((self.offset >> 32) as u32).into();
        sqe.cdw14 = (u32::from(self.offset_is_index) << 23).into();
    }
}

/// A 16-byte counter of a log page or of Identify.
pub const fn counter(field: [u8; 16]) -> u128 {
    u128::from_le_bytes(field)
}

/// One entry of the error log, 64 bytes (figure "Error Information Log Entry").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ErrorEntry {
    /// Number of the error; 0: no entry.
    pub error_count: U64,
    /// Submission queue identifier.
    pub sqid: U16,
    /// Command identifier.
    pub cid: U16,
    /// Status field of the completion.
    pub status_field: U16,
    /// Which byte and bit of the command is wrong; FFFFh: none in particular.
    pub parameter_error_location: U16,
    /// First block with the error.
    pub lba: U64,
    /// Namespace.
    pub nsid: U32,
    /// Vendor specific log page with more.
    pub vendor_log: u8,
    /// Transport type.
    pub trtype: u8,
    /// Command set indicator.
    pub csi: u8,
    /// Opcode.
    pub opcode: u8,
    /// Command specific.
    pub command_specific: U64,
    /// Transport type specific.
    pub transport_specific: U16,
    #[doc(hidden)]
    pub reserved_42: [u8; 21],
    /// Version of the entry's layout: 1 when command set indicator and opcode are valid.
    pub log_page_version: u8,
}

const _: () = assert!(size_of::<ErrorEntry>() == 64);
const _: () = assert!(std::mem::offset_of!(ErrorEntry, nsid) == 24);
const _: () = assert!(std::mem::offset_of!(ErrorEntry, command_specific) == 32);

/// SMART / Health Information, 512 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Smart {
    /// Critical warning bits.
    pub critical_warning: u8,
    /// Composite temperature, kelvins.
    pub temperature_kelvin: U16,
    /// Available spare, percent.
    pub available_spare: u8,
    /// Available spare threshold, percent.
    pub spare_threshold: u8,
    /// Percentage used.
    pub percentage_used: u8,
    /// Endurance group critical warning.
    pub endurance_warning: u8,
    #[doc(hidden)]
    pub reserved_7: [u8; 25],
    /// Data units read: thousands of 512 bytes, rounded up; little-endian, as all that follow.
    pub data_units_read: [u8; 16],
    /// Data units written.
    pub data_units_written: [u8; 16],
    /// Host read commands.
    pub host_reads: [u8; 16],
    /// Host write commands.
    pub host_writes: [u8; 16],
    /// Controller busy time, minutes.
    pub busy_minutes: [u8; 16],
    /// Power cycles.
    pub power_cycles: [u8; 16],
    /// Power on hours.
    pub power_on_hours: [u8; 16],
    /// Unsafe shutdowns.
    pub unsafe_shutdowns: [u8; 16],
    /// Media and data integrity errors.
    pub media_errors: [u8; 16],
    /// Error log entries over the life of the controller.
    pub error_entries: [u8; 16],
    /// Warning composite temperature time, minutes.
    pub warning_minutes: U32,
    /// Critical composite temperature time, minutes.
    pub critical_minutes: U32,
    /// Temperature sensors, kelvins.
    pub sensors_kelvin: [U16; 8],
    #[doc(hidden)]
    pub reserved_216: [u8; 296],
}

const _: () = assert!(size_of::<Smart>() == 512);
const _: () = assert!(std::mem::offset_of!(Smart, data_units_read) == 32);
const _: () = assert!(std::mem::offset_of!(Smart, sensors_kelvin) == 200);

/// Critical warning: spare capacity is below its threshold.
pub const WARNING_SPARE: u8 = 1 << 0;
/// Critical warning: a temperature is beyond its threshold.
pub const WARNING_TEMPERATURE: u8 = 1 << 1;
/// Critical warning: reliability is degraded.
pub const WARNING_RELIABILITY: u8 = 1 << 2;
/// Critical warning: all media are read only.
pub const WARNING_READ_ONLY: u8 = 1 << 3;
/// Critical warning: the backup of volatile memory failed.
pub const WARNING_VOLATILE_MEMORY: u8 = 1 << 4;

/// Firmware Slot Information, 512 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FirmwareSlots {
    /// Active Firmware Info: active slot in 2:0, slot after the next reset in 6:4.
    pub afi: u8,
    #[doc(hidden)]
    pub reserved_1: [u8; 7],
    /// Firmware revisions of the slots.
    pub frs: [[u8; 8]; 7],
    #[doc(hidden)]
    pub reserved_64: [u8; 448],
}

const _: () = assert!(size_of::<FirmwareSlots>() == 512);

/// Commands Supported and Effects, 4096 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Effects {
    /// By opcode of admin commands.
    pub admin: [U32; 256],
    /// By opcode of I/O commands.
    pub io: [U32; 256],
    #[doc(hidden)]
    pub reserved_2048: [u8; 2048],
}

const _: () = assert!(size_of::<Effects>() == 4096);

/// Effects: the command is supported.
pub const EFFECT_SUPPORTED: u32 = 1 << 0;
/// Effects: the command may change the content of logical blocks.
pub const EFFECT_LOGICAL_BLOCKS: u32 = 1 << 1;
/// Effects: the command may change the capabilities of a namespace.
pub const EFFECT_NAMESPACE_CAPABILITIES: u32 = 1 << 2;
/// Effects: the command may change which namespaces there are.
pub const EFFECT_NAMESPACE_INVENTORY: u32 = 1 << 3;
/// Effects: the command may change the capabilities of the controller.
pub const EFFECT_CONTROLLER_CAPABILITIES: u32 = 1 << 4;

/// Entries of the Changed Attached Namespace List; more are told by a first entry of FFFFFFFFh.
pub const CHANGED_NAMESPACES_MAX: usize = 1024;

/// Header of the discovery log, 1024 bytes (figure "Discovery Log Page").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryHeader {
    /// Generation counter: changes whenever the log does.
    pub genctr: U64,
    /// Number of entries.
    pub numrec: U64,
    /// Record format: 0.
    pub recfmt: U16,
    #[doc(hidden)]
    pub reserved_18: [u8; 1006],
}

const _: () = assert!(size_of::<DiscoveryHeader>() == 1024);

/// One entry of the discovery log, 1024 bytes (figure "Discovery Log Page Entry Data Structure").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryEntry {
    /// Transport type: one of [`trtype`].
    pub trtype: u8,
    /// Address family: one of [`adrfam`].
    pub adrfam: u8,
    /// Subsystem type: one of [`subtype`].
    pub subtype: u8,
    /// Transport requirements.
    pub treq: u8,
    /// Port identifier.
    pub portid: U16,
    /// Controller identifier, FFFFh in the dynamic controller model.
    pub cntlid: U16,
    /// Entries of the largest admin submission queue.
    pub asqsz: U16,
    /// Entry flags.
    pub eflags: U16,
    #[doc(hidden)]
    pub reserved_12: [u8; 20],
    /// Service identifier: port number, ASCII, padded with spaces.
    pub trsvcid: [u8; 32],
    #[doc(hidden)]
    pub reserved_64: [u8; 192],
    /// Subsystem NQN, ended by a null.
    pub subnqn: [u8; 256],
    /// Transport address, ASCII, padded with spaces.
    pub traddr: [u8; 256],
    /// Transport specific address subtype.
    pub tsas: [u8; 256],
}

const _: () = assert!(size_of::<DiscoveryEntry>() == 1024);
const _: () = assert!(std::mem::offset_of!(DiscoveryEntry, subnqn) == 256);
const _: () = assert!(std::mem::offset_of!(DiscoveryEntry, trsvcid) == 32);
const _: () = assert!(std::mem::offset_of!(DiscoveryEntry, traddr) == 512);
const _: () = assert!(std::mem::offset_of!(DiscoveryEntry, tsas) == 768);

/// Transport types.
pub mod trtype {
    /// RDMA.
    pub const RDMA: u8 = 1;
    /// Fibre Channel.
    pub const FC: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 3;
}

/// Address families.
pub mod adrfam {
    /// IPv4.
    pub const IPV4: u8 = 1;
    /// IPv6.
    pub const IPV6: u8 = 2;
}

/// Subsystem types.
pub mod subtype {
    /// Another discovery subsystem.
    pub const REFERRAL: u8 = 1;
    /// A subsystem with namespaces.
    pub const NVM: u8 = 2;
    /// This discovery subsystem.
    pub const CURRENT_DISCOVERY: u8 = 3;
}

/// TREQ bits 1:0: a secure channel is not required.
pub const TREQ_SECURE_CHANNEL_NOT_REQUIRED: u8 = 0b10;
/// TREQ bit 2: submission queue flow control can be disabled.
pub const TREQ_SQ_FLOW_CONTROL_OPTIONAL: u8 = 1 << 2;

/// TSAS of RDMA: QP service type, reliable connected.
pub const RDMA_QPTYPE_RC: u8 = 1;
/// TSAS of RDMA: provider type RoCE v2; 1: none given.
pub const RDMA_PRTYPE_ROCE_V2: u8 = 4;
/// TSAS of RDMA: connection management by RDMA_IP_CM.
pub const RDMA_CMS_RDMA_CM: u8 = 1;

/// TSAS byte 0 of TCP: no security.
pub const TCP_SECTYPE_NONE: u8 = 0;
/// TSAS byte 0 of TCP: TLS 1.3.
pub const TCP_SECTYPE_TLS_1_3: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_zeroes_based_dwords_in_two_parts() {
        let page = GetLogPage {
            lid: lid::DISCOVERY,
            lsp: 0x7F,
            rae: true,
            bytes: 4 * 0x1_0001,
            offset: 0x1_0000_0400,
            offset_is_index: false,
            lsi: 0xABCD,
        };
        let mut sqe = Sqe::default();
        page.set(&mut sqe);
        assert_eq!((sqe.cdw10.get(), sqe.cdw11.get()), (0x0000_FF70, 0xABCD_0001));
        assert_eq!((sqe.cdw12.get(), sqe.cdw13.get()), (0x400, 1));
        assert_eq!(GetLogPage::of(&sqe), page);
        let all_ones = Sqe::read_from_bytes(&[0xFF; 64]).unwrap();
        assert_eq!(GetLogPage::of(&all_ones).bytes, 4 << 32);
    }

    #[test]
    fn discovery_entry_of_an_rdma_port() {
        let mut bytes = [0; 1024];
        bytes[..10].copy_from_slice(&[1, 1, 2, 6, 1, 0, 0xFF, 0xFF, 32, 0]);
        bytes[32..36].copy_from_slice(b"4420");
        bytes[256..258].copy_from_slice(b"nq");
        bytes[512..516].copy_from_slice(b"10.0");
        bytes[768..771].copy_from_slice(&[1, 4, 1]);
        let entry = DiscoveryEntry::read_from_bytes(&bytes).unwrap();
        assert_eq!((entry.trtype, entry.adrfam), (trtype::RDMA, adrfam::IPV4));
        assert_eq!(entry.subtype, subtype::NVM);
        assert_eq!(entry.treq, TREQ_SECURE_CHANNEL_NOT_REQUIRED | TREQ_SQ_FLOW_CONTROL_OPTIONAL);
        assert_eq!((entry.portid.get(), entry.cntlid.get(), entry.asqsz.get()), (1, 0xFFFF, 32));
        assert_eq!((&entry.trsvcid[..4], &entry.subnqn[..2]), (&b"4420"[..], &b"nq"[..]));
        assert_eq!(&entry.traddr[..4], b"10.0");
        let tsas = [RDMA_QPTYPE_RC, RDMA_PRTYPE_ROCE_V2, RDMA_CMS_RDMA_CM];
        assert_eq!(entry.tsas[..3], tsas);
    }

    #[test]
    fn smart_counters() {
        let mut bytes = [0; 512];
        bytes[..4].copy_from_slice(&[WARNING_TEMPERATURE, 0x43, 0x01, 100]);
        bytes[32] = 7;
        bytes[47] = 1;
        bytes[160] = 9;
        let smart = Smart::read_from_bytes(&bytes).unwrap();
        assert_eq!((smart.temperature_kelvin.get(), smart.available_spare), (323, 100));
        assert_eq!(counter(smart.data_units_read), 1 << 120 | 7);
        assert_eq!(counter(smart.media_errors), 9);
    }
}
