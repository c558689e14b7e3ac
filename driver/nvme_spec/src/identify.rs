//! Identify data structures (NVMe Base 2.1, section 5.1.13; NVM Command Set 1.1, section 4.1.5).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command::Sqe;
use crate::opcode::admin;
use crate::{U16, U32, U64};

/// Controller or Namespace Structure: what an Identify command asks for.
pub mod cns {
    /// Namespace, of the NVM command set.
    pub const NAMESPACE: u8 = 0x00;
    /// Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace list.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace identification descriptors.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// Namespace, specific to an I/O command set.
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    /// Controller, specific to an I/O command set.
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    /// Active namespace list of an I/O command set.
    pub const COMMAND_SET_ACTIVE_NAMESPACES: u8 = 0x07;
    /// Namespace, independent of the I/O command set.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// Allocated namespace list.
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    /// Namespace that is allocated, attached or not.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controllers that a namespace is attached to.
    pub const NAMESPACE_CONTROLLERS: u8 = 0x12;
    /// Controllers of the subsystem.
    pub const CONTROLLERS: u8 = 0x13;
    /// I/O command sets.
    pub const COMMAND_SETS: u8 = 0x1C;
}

/// Bytes of every Identify data structure.
pub const IDENTIFY_BYTES: usize = 4096;

/// I/O command set identifier of the NVM command set.
pub const CSI_NVM: u8 = 0x00;

/// NSID that stands for all namespaces.
pub const NSID_ALL: u32 = 0xFFFF_FFFF;

/// Most namespaces that one namespace list (CNS 02h, 07h, 10h) holds.
pub const NAMESPACE_LIST_MAX: usize = IDENTIFY_BYTES / 4;

/// The fields of an Identify command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identify {
    /// What is asked for: one of [`cns`].
    pub cns: u8,
    /// Controller identifier, where CNS takes one.
    pub cntid: u16,
    /// I/O command set identifier, where CNS takes one.
    pub csi: u8,
}

impl Identify {
    /// Reads the fields of a command.
    pub fn of(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        let csi = (sqe.cdw11.get() >> 24) as u8;
        Self { cns: cdw10 as u8, cntid: (cdw10 >> 16) as u16, csi }
    }

    /// As a command about this namespace.
    pub fn to_sqe(self, nsid: u32) -> Sqe {
        let mut sqe = Sqe::new(admin::IDENTIFY, nsid);
        sqe.cdw10 = (u32::from(self.cns) | u32::from(self.cntid) << 16).into();
        sqe.cdw11 = (u32::from(self.csi) << 24).into();
        sqe
    }
}

/// The namespaces of a list (CNS 02h, 07h, 10h): ends at the first zero.
pub fn namespaces(list: &[u8]) -> impl Iterator<Item = u32> {
    let (nsids, _) = list.as_chunks::<4>();
    nsids.iter().map(|&nsid| u32::from_le_bytes(nsid)).take_while(|&nsid| nsid != 0)
}

/// Identify Controller (figure "Identify Controller Data Structure, I/O Command Set Independent").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs)] // field names and units are the figure's own
pub struct IdentifyController {
    pub vid: U16,
    pub ssvid: U16,
    /// Serial number, padded with spaces.
    pub sn: [u8; 20],
    /// Model number, padded with spaces.
    pub mn: [u8; 40],
    /// Firmware revision, padded with spaces.
    pub fr: [u8; 8],
    pub rab: u8,
    pub ieee: [u8; 3],
    /// Controller Multi-Path I/O and Namespace Sharing Capabilities.
    pub cmic: u8,
    /// Maximum Data Transfer Size: a power of two of the smallest memory page; 0: no limit.
    pub mdts: u8,
    pub cntlid: U16,
    pub ver: U32,
    /// RTD3 Resume Latency, microseconds.
    pub rtd3r: U32,
    /// RTD3 Entry Latency, microseconds.
    pub rtd3e: U32,
    /// Optional Asynchronous Events Supported.
    pub oaes: U32,
    /// Controller Attributes.
    pub ctratt: U32,
    pub rrls: U16,
    #[doc(hidden)]
    pub reserved_102: [u8; 9],
    /// Controller Type: 1 I/O, 2 discovery, 3 administrative.
    pub cntrltype: u8,
    pub fguid: [u8; 16],
    /// Command Retry Delay Times, in units of 100 ms.
    pub crdt: [U16; 3],
    #[doc(hidden)]
    pub reserved_134: [u8; 119],
    pub nvmsr: u8,
    pub vwci: u8,
    pub mec: u8,
    /// Optional Admin Command Support.
    pub oacs: U16,
    /// Abort Command Limit, 0's based.
    pub acl_z: u8,
    /// Asynchronous Event Request Limit, 0's based.
    pub aerl_z: u8,
    /// Firmware Updates.
    pub frmw: u8,
    /// Log Page Attributes.
    pub lpa: u8,
    /// Error Log Page Entries, 0's based.
    pub elpe_z: u8,
    /// Number of Power States Support, 0's based.
    pub npss_z: u8,
    pub avscc: u8,
    pub apsta: u8,
    /// Warning Composite Temperature Threshold, kelvins.
    pub wctemp: U16,
    /// Critical Composite Temperature Threshold, kelvins.
    pub cctemp: U16,
    pub mtfa: U16,
    pub hmpre: U32,
    pub hmmin: U32,
    /// Total NVM Capacity, bytes.
    pub tnvmcap: [u8; 16],
    pub unvmcap: [u8; 16],
    pub rpmbs: U32,
    pub edstt: U16,
    pub dsto: u8,
    pub fwug: u8,
    /// Keep Alive Support: granularity in units of 100 ms; 0: none.
    pub kas: U16,
    pub hctma: U16,
    pub mntmt: U16,
    pub mxtmt: U16,
    pub sanicap: U32,
    pub hmminds: U32,
    pub hmmaxd: U16,
    pub nsetidmax: U16,
    pub endgidmax: U16,
    pub anatt: u8,
    pub anacap: u8,
    pub anagrpmax: U32,
    pub nanagrpid: U32,
    pub pels: U32,
    pub domain_identifier: U16,
    #[doc(hidden)]
    pub reserved_358: [u8; 10],
    pub megcap: [u8; 16],
    #[doc(hidden)]
    pub reserved_384: [u8; 2],
    /// Command Quiesce Time, milliseconds: how long the controller may work on commands after it
    /// has noticed that it lost its host.
    pub cqt: U16,
    #[doc(hidden)]
    pub reserved_388: [u8; 124],
    /// Submission Queue Entry Size: required in 3:0, maximum in 7:4, as powers of two.
    pub sqes: u8,
    /// Completion Queue Entry Size.
    pub cqes: u8,
    /// Maximum Outstanding Commands.
    pub maxcmd: U16,
    /// Number of Namespaces: the highest NSID.
    pub nn: U32,
    /// Optional NVM Command Support.
    pub oncs: U16,
    pub fuses: U16,
    pub fna: u8,
    /// Volatile Write Cache.
    pub vwc: u8,
    /// Atomic Write Unit Normal, blocks, 0's based.
    pub awun_z: U16,
    /// Atomic Write Unit Power Fail, blocks, 0's based.
    pub awupf_z: U16,
    pub icsvscc: u8,
    pub nwpc: u8,
    pub acwu: U16,
    pub cdfs: U16,
    /// SGL Support.
    pub sgls: U32,
    /// Maximum Number of Allowed Namespaces.
    pub mnan: U32,
    pub maxdna: [u8; 16],
    pub maxcna: U32,
    #[doc(hidden)]
    pub reserved_564: [u8; 204],
    /// Subsystem NQN, ended by a null.
    pub subnqn: [u8; 256],
    #[doc(hidden)]
    pub reserved_1024: [u8; 768],
    /// I/O Queue Command Capsule Supported Size, in units of 16 bytes.
    pub ioccsz: U32,
    /// I/O Queue Response Capsule Supported Size, in units of 16 bytes.
    pub iorcsz: U32,
    /// In Capsule Data Offset, in units of 16 bytes.
    pub icdoff: U16,
    /// Fabrics Controller Attributes.
    pub fcatt: u8,
    /// Maximum SGL Data Block Descriptors.
    pub msdbd: u8,
    /// Optional Fabrics Commands Support.
    pub ofcs: U16,
    /// Discovery Controller Type: 0 not reported, 1 direct, 2 central.
    pub dctype: u8,
    #[doc(hidden)]
    pub reserved_1807: [u8; 241],
    /// Power state descriptors.
    pub psd: [[u8; 32]; 32],
    #[doc(hidden)]
    pub vendor: [u8; 1024],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<IdentifyController>() == IDENTIFY_BYTES);
    assert!(offset_of!(IdentifyController, mdts) == 77);
    assert!(offset_of!(IdentifyController, cntrltype) == 111);
    assert!(offset_of!(IdentifyController, cntlid) == 78);
    assert!(offset_of!(IdentifyController, ctratt) == 96);
    assert!(offset_of!(IdentifyController, crdt) == 128);
    assert!(offset_of!(IdentifyController, oacs) == 256);
    assert!(offset_of!(IdentifyController, aerl_z) == 259);
    assert!(offset_of!(IdentifyController, tnvmcap) == 280);
    assert!(offset_of!(IdentifyController, kas) == 320);
    assert!(offset_of!(IdentifyController, anatt) == 342);
    assert!(offset_of!(IdentifyController, cqt) == 386);
    assert!(offset_of!(IdentifyController, sqes) == 512);
    assert!(offset_of!(IdentifyController, maxcmd) == 514);
    assert!(offset_of!(IdentifyController, nn) == 516);
    assert!(offset_of!(IdentifyController, oncs) == 520);
    assert!(offset_of!(IdentifyController, vwc) == 525);
    assert!(offset_of!(IdentifyController, awupf_z) == 528);
    assert!(offset_of!(IdentifyController, sgls) == 536);
    assert!(offset_of!(IdentifyController, subnqn) == 768);
    assert!(offset_of!(IdentifyController, ioccsz) == 1792);
    assert!(offset_of!(IdentifyController, msdbd) == 1803);
    assert!(offset_of!(IdentifyController, dctype) == 1806);
    assert!(offset_of!(IdentifyController, psd) == 2048);
};

/// OACS: Doorbell Buffer Config.
pub const OACS_DOORBELL_BUFFER: u16 = 1 << 8;
/// ONCS: Compare.
pub const ONCS_COMPARE: u16 = 1 << 0;
/// ONCS: Dataset Management.
pub const ONCS_DATASET_MANAGEMENT: u16 = 1 << 2;
/// ONCS: Write Zeroes.
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
/// VWC: a volatile write cache is present.
pub const VWC_PRESENT: u8 = 1 << 0;
/// VWC bits 2:1: Flush with NSID FFFFFFFFh is not supported.
pub const VWC_FLUSH_ALL_UNSUPPORTED: u8 = 0b10 << 1;
/// OAES: Namespace Attribute Notices.
pub const OAES_NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
/// OAES: Discovery Log Page Change Notices.
pub const OAES_DISCOVERY_LOG: u32 = 1 << 31;
/// CTRATT: 128-bit host identifiers.
pub const CTRATT_HOSTID_128: u32 = 1 << 0;
/// CTRATT: any command counts as a keep-alive (Traffic Based Keep Alive).
pub const CTRATT_TBKAS: u32 = 1 << 6;
/// CMIC: the subsystem may have more than one port.
pub const CMIC_MULTI_PORT: u8 = 1 << 0;
/// CMIC: the subsystem may have more than one controller.
pub const CMIC_MULTI_CONTROLLER: u8 = 1 << 1;
/// SGLS: SGLs are supported, without alignment requirement.
pub const SGLS_SUPPORTED: u32 = 0b01;
/// SGLS: Keyed SGL Data Block descriptors.
pub const SGLS_KEYED: u32 = 1 << 2;
/// SGLS: the address of a Data Block may be an offset into the capsule.
pub const SGLS_OFFSET: u32 = 1 << 20;
/// SGLS: Transport SGL Data Block descriptors.
pub const SGLS_TRANSPORT: u32 = 1 << 21;
/// LPA: the Commands Supported and Effects log page.
pub const LPA_EFFECTS: u8 = 1 << 1;
/// LPA: Get Log Page takes 32-bit lengths and offsets.
pub const LPA_EXTENDED: u8 = 1 << 2;
/// CNTRLTYPE: I/O controller.
pub const CNTRLTYPE_IO: u8 = 1;
/// CNTRLTYPE: discovery controller.
pub const CNTRLTYPE_DISCOVERY: u8 = 2;

/// LBA format: 4 bytes (NVM Command Set, figure "LBA Format Data Structure").
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata Size, bytes.
    pub ms: U16,
    /// LBA Data Size: a power of two.
    pub lbads: u8,
    /// Relative Performance.
    pub rp: u8,
}

/// Identify Namespace (figure "Identify Namespace Data Structure, NVM Command Set").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs)] // field names and units are the figure's own
pub struct IdentifyNamespace {
    /// Namespace Size, blocks.
    pub nsze: U64,
    /// Namespace Capacity, blocks.
    pub ncap: U64,
    /// Namespace Utilization, blocks.
    pub nuse: U64,
    pub nsfeat: u8,
    /// Number of LBA Formats, 0's based.
    pub nlbaf_z: u8,
    /// Formatted LBA Size: format index in 3:0 and 6:5.
    pub flbas: u8,
    pub mc: u8,
    pub dpc: u8,
    pub dps: u8,
    /// Namespace Multi-path I/O and Namespace Sharing Capabilities.
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    /// Deallocate Logical Block Features.
    pub dlfeat: u8,
    pub nawun: U16,
    pub nawupf: U16,
    pub nacwu: U16,
    pub nabsn: U16,
    pub nabo: U16,
    pub nabspf: U16,
    /// Namespace Optimal I/O Boundary, blocks.
    pub noiob: U16,
    pub nvmcap: [u8; 16],
    /// Namespace Preferred Write Granularity, blocks, 0's based.
    pub npwg_z: U16,
    /// Namespace Preferred Write Alignment, blocks, 0's based.
    pub npwa_z: U16,
    /// Namespace Preferred Deallocate Granularity, blocks, 0's based.
    pub npdg_z: U16,
    /// Namespace Preferred Deallocate Alignment, blocks, 0's based.
    pub npda_z: U16,
    /// Namespace Optimal Write Size, blocks, 0's based.
    pub nows_z: U16,
    pub mssrl: U16,
    pub mcl: U32,
    pub msrc: u8,
    #[doc(hidden)]
    pub reserved_81: [u8; 11],
    pub anagrpid: U32,
    #[doc(hidden)]
    pub reserved_96: [u8; 3],
    /// Namespace Attributes: bit 0, currently write protected.
    pub nsattr: u8,
    pub nvmsetid: U16,
    pub endgid: U16,
    pub nguid: [u8; 16],
    pub eui64: [u8; 8],
    pub lbaf: [LbaFormat; 64],
    #[doc(hidden)]
    pub vendor: [u8; 3712],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<IdentifyNamespace>() == IDENTIFY_BYTES);
    assert!(offset_of!(IdentifyNamespace, nmic) == 30);
    assert!(offset_of!(IdentifyNamespace, dlfeat) == 33);
    assert!(offset_of!(IdentifyNamespace, noiob) == 46);
    assert!(offset_of!(IdentifyNamespace, nvmcap) == 48);
    assert!(offset_of!(IdentifyNamespace, npwg_z) == 64);
    assert!(offset_of!(IdentifyNamespace, anagrpid) == 92);
    assert!(offset_of!(IdentifyNamespace, nsattr) == 99);
    assert!(offset_of!(IdentifyNamespace, nguid) == 104);
    assert!(offset_of!(IdentifyNamespace, eui64) == 120);
    assert!(offset_of!(IdentifyNamespace, lbaf) == 128);
};

/// NSFEAT: thin provisioning.
pub const NSFEAT_THIN: u8 = 1 << 0;
/// NSFEAT: NAWUN, NAWUPF and NACWU are defined.
pub const NSFEAT_ATOMICS: u8 = 1 << 1;
/// NSFEAT: NPWG, NPWA, NPDG, NPDA and NOWS are defined.
pub const NSFEAT_OPTIMAL: u8 = 1 << 4;
/// NMIC: the namespace may be attached to more than one controller.
pub const NMIC_SHARED: u8 = 1 << 0;
/// DLFEAT bits 2:0: deallocated blocks read as zeroes.
pub const DLFEAT_READS_ZEROES: u8 = 1;
/// DLFEAT: Write Zeroes with Deallocate is supported.
pub const DLFEAT_WRITE_ZEROES_DEALLOCATES: u8 = 1 << 3;
/// NSATTR: the namespace is write protected.
pub const NSATTR_WRITE_PROTECTED: u8 = 1 << 0;

impl IdentifyNamespace {
    /// Index of the LBA format in use. Its upper bits have a meaning only where there are more
    /// than 16 formats.
    pub fn format_index(&self) -> usize {
        let upper = if self.nlbaf_z < 16 { 0 } else { self.flbas >> 5 & 3 };
        usize::from(self.flbas & 0xF | upper << 4)
    }

    /// The LBA format in use.
    pub fn format(&self) -> LbaFormat {
        self.lbaf[self.format_index() & 63]
    }
}

/// Namespace, independent of the I/O command set (CNS 08h); the rest of its 4096 bytes is zero.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs)] // as above
pub struct IndependentNamespace {
    pub nsfeat: u8,
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    pub anagrpid: U32,
    pub nsattr: u8,
    #[doc(hidden)]
    pub reserved_9: u8,
    pub nvmsetid: U16,
    pub endgid: U16,
    /// Namespace Status: bit 0, ready.
    pub nstat: u8,
    #[doc(hidden)]
    pub reserved_15: [u8; 4081],
}

const _: () = assert!(size_of::<IndependentNamespace>() == IDENTIFY_BYTES);

/// Controller, specific to the NVM command set (CNS 06h, CSI 00h); limits are powers of two of the
/// smallest memory page, like MDTS, and 0 where there is none.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NvmController {
    /// Verify Size Limit.
    pub vsl: u8,
    /// Write Zeroes Size Limit.
    pub wzsl: u8,
    /// Write Uncorrectable Size Limit.
    pub wusl: u8,
    /// Dataset Management Ranges Limit.
    pub dmrl: u8,
    /// Dataset Management Range Size Limit, blocks.
    pub dmrsl: U32,
    /// Dataset Management Size Limit, blocks.
    pub dmsl: U64,
    #[doc(hidden)]
    pub reserved_16: [u8; 4080],
}

const _: () = assert!(size_of::<NvmController>() == IDENTIFY_BYTES);
const _: () = assert!(std::mem::offset_of!(NvmController, dmsl) == 8);

/// Namespace, specific to the NVM command set (CNS 05h, CSI 00h).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NvmNamespace {
    /// Logical Block Storage Tag Mask.
    pub lbstm: U64,
    /// Protection Information Capabilities.
    pub pic: u8,
    #[doc(hidden)]
    pub reserved_9: [u8; 3],
    /// Extended LBA Formats: storage tag size in 6:0, protection information format in 8:7.
    pub elbaf: [U32; 64],
    #[doc(hidden)]
    pub reserved_268: [u8; 3828],
}

const _: () = assert!(size_of::<NvmNamespace>() == IDENTIFY_BYTES);
const _: () = assert!(std::mem::offset_of!(NvmNamespace, elbaf) == 12);

/// Namespace Identification Descriptor types (figure "Namespace Identification Descriptor").
pub mod nidt {
    /// EUI-64, 8 bytes.
    pub const EUI64: u8 = 0x1;
    /// NGUID, 16 bytes.
    pub const NGUID: u8 = 0x2;
    /// UUID, 16 bytes.
    pub const UUID: u8 = 0x3;
    /// Command set identifier, 1 byte.
    pub const CSI: u8 = 0x4;
}

/// Fills `field` with `text`, cut or padded with spaces, as serial and model numbers are.
pub fn pad(field: &mut [u8], text: &str) {
    field.fill(b' ');
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = if from.is_ascii_graphic() || from == b' ' { from } else { b'?' };
    }
}

/// The text of a field that is padded with spaces; what is not printable becomes a question mark.
pub fn trimmed(field: &[u8]) -> String {
    let printable = |&byte: &u8| {
        if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '?' }
    };
    let end = field.iter().rposition(|&byte| byte != b' ' && byte != 0).map_or(0, |at| at + 1);
    field[..end].iter().map(printable).collect()
}

/// The descriptors of a CNS 03h list: type and identifier of each. Ends at the first that is empty
/// or does not fit.
pub fn descriptors(mut list: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[nidt, nidl, _, _], rest) = list.split_first_chunk::<4>()?;
        if nidl == 0 {
            return None;
        }
        let (identifier, rest) = rest.split_at_checked(usize::from(nidl))?;
        list = rest;
        Some((nidt, identifier))
    })
}

/// Appends a descriptor to a CNS 03h list.
pub fn push_descriptor(list: &mut Vec<u8>, nidt: u8, identifier: &[u8]) {
    let nidl = u8::try_from(identifier.len()).expect("identifiers have up to 16 bytes");
    list.extend_from_slice(&[nidt, nidl, 0, 0]);
    list.extend_from_slice(identifier);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_lists_go_there_and_back_and_bad_ones_end() {
        let mut list = Vec::new();
        push_descriptor(&mut list, nidt::UUID, &[7; 16]);
        push_descriptor(&mut list, nidt::CSI, &[0]);
        list.resize(4096, 0);
        let all: Vec<_> = descriptors(&list).collect();
        assert_eq!(all, [(nidt::UUID, &[7u8; 16][..]), (nidt::CSI, &[0u8][..])]);
        assert_eq!(descriptors(&[3, 16, 0, 0, 1]).count(), 0, "longer than the list");
        assert_eq!(descriptors(&[3]).count(), 0);
    }

    #[test]
    fn commands_and_namespace_lists() {
        let identify = Identify { cns: cns::COMMAND_SET_NAMESPACE, cntid: 0x0102, csi: 2 };
        let sqe = identify.to_sqe(7);
        assert_eq!((sqe.opcode(), sqe.nsid()), (6, 7));
        assert_eq!((sqe.cdw10.get(), sqe.cdw11.get()), (0x0102_0005, 0x0200_0000));
        assert_eq!(Identify::of(&sqe), identify);

        let list = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0];
        assert!(namespaces(&list).eq([1, 0x100]));
        assert_eq!(namespaces(&[1, 0, 0]).count(), 0, "shorter than one");
        assert_eq!(namespaces(&[0xFF; IDENTIFY_BYTES]).count(), NAMESPACE_LIST_MAX);
    }

    #[test]
    fn format_in_use() {
        let mut bytes = [0; IDENTIFY_BYTES];
        bytes[..8].copy_from_slice(&[0, 0, 1, 0, 0, 0, 0, 0]);
        bytes[25] = 7; // eight formats
        bytes[26] = 0x64; // format 4, were there more than 16: 52
        bytes[128 + 4 * 4..][..4].copy_from_slice(&[8, 0, 12, 0]);
        bytes[128 + 52 * 4..][..4].copy_from_slice(&[0, 0, 9, 0]);
        let namespace = IdentifyNamespace::read_from_bytes(&bytes).unwrap();
        assert_eq!(namespace.nsze.get(), 0x1_0000);
        assert_eq!((namespace.format().lbads, namespace.format().ms.get()), (12, 8));
        let many = IdentifyNamespace { nlbaf_z: 63, ..namespace };
        assert_eq!((many.format_index(), many.format().lbads), (52, 9));
        let all_ones = IdentifyNamespace::read_from_bytes(&[0xFF; IDENTIFY_BYTES]).unwrap();
        assert_eq!((all_ones.format_index(), all_ones.format().lbads), (63, 0xFF));
    }

    #[test]
    fn text_fields() {
        let mut field = [0; 8];
        pad(&mut field, "ab\u{e9}");
        assert_eq!(&field[..2], b"ab");
        assert_eq!(trimmed(b"QEMU NVMe Ctrl   \0"), "QEMU NVMe Ctrl");
    }
}
