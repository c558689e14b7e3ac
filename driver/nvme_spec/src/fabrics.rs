//! Fabrics commands (NVMe Base 2.1, section 6) and qualified names (section 4.7).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::command::Sqe;
use crate::{U16, U32, U64};

/// Fabrics command types.
pub mod fctype_of {
    /// Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect.
    pub const CONNECT: u8 = 0x01;
    /// Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
    /// Authentication Send.
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    /// Authentication Receive.
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
    /// Disconnect.
    pub const DISCONNECT: u8 = 0x08;
}

/// The well-known name of the discovery subsystem.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// What the names begin with that consist of a UUID.
pub const UUID_NQN_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// Longest NQN in bytes, without the null that ends it.
pub const NQN_MAX_BYTES: usize = 223;

/// CNTLID of a Connect that lets the controller be chosen (dynamic controller model).
pub const CNTLID_DYNAMIC: u16 = 0xFFFF;

/// Highest CNTLID that a controller may have.
pub const CNTLID_MAX: u16 = 0xFFEF;

/// FCTYPE of a fabrics command.
#[inline]
pub fn fctype(sqe: &Sqe) -> u8 {
    sqe.nsid.get() as u8
}

/// Connect command (figure "Connect Command").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Connect {
    /// 7Fh.
    pub opcode: u8,
    /// PSDT in 7:6.
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// 01h.
    pub fctype: u8,
    #[doc(hidden)]
    pub reserved_5: [u8; 19],
    /// One SGL descriptor, for the data.
    pub sgl: [u8; 16],
    /// Record format: 0.
    pub recfmt: U16,
    /// Queue identifier: 0 for the admin queue.
    pub qid: U16,
    /// Entries of the submission queue, 0's based.
    pub sqsize_z: U16,
    /// Connect attributes.
    pub cattr: u8,
    #[doc(hidden)]
    pub reserved_47: u8,
    /// Keep alive time-out in milliseconds; 0: none.
    pub kato_ms: U32,
    #[doc(hidden)]
    pub reserved_52: [u8; 12],
}

const _: () = assert!(size_of::<Connect>() == 64);
const _: () = assert!(std::mem::offset_of!(Connect, recfmt) == 40);
const _: () = assert!(std::mem::offset_of!(Connect, kato_ms) == 48);

/// CATTR: the host does not use SQHD (submission queue flow control disabled).
pub const CATTR_DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;

/// CATTR bits 1:0: priority of the queue.
pub const CATTR_PRIORITY_MASK: u8 = 0b11;

/// Data of a Connect command, 1024 bytes (figure "Connect Command - Data").
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// Host identifier.
    pub hostid: [u8; 16],
    /// Controller identifier, FFFFh on an admin queue.
    pub cntlid: U16,
    #[doc(hidden)]
    pub reserved_18: [u8; 238],
    /// Subsystem NQN, ended by a null.
    pub subnqn: [u8; 256],
    /// Host NQN, ended by a null.
    pub hostnqn: [u8; 256],
    #[doc(hidden)]
    pub reserved_768: [u8; 256],
}

const _: () = assert!(size_of::<ConnectData>() == 1024);
const _: () = assert!(std::mem::offset_of!(ConnectData, subnqn) == 256);

/// DW0 of an accepted Connect: the controller, and no authentication required (figure "Connect
/// Response").
pub const fn connect_result(cntlid: u16) -> u64 {
    cntlid as u64
}

/// DW0 of an accepted Connect: the host must authenticate before anything else.
pub const AUTHREQ_ATR: u32 = 1 << 17;
/// DW0 of an accepted Connect: the host must authenticate and set up a secure channel.
pub const AUTHREQ_ASCR: u32 = 1 << 18;

/// DW0 of a refused Connect: which field is wrong. `in_data`: the offset is one in the data rather
/// than in the command (figure "Connect Response - Dword 0 Value Based on Status Code").
pub const fn invalid_parameter(offset: u16, in_data: bool) -> u64 {
    offset as u64 | (in_data as u64) << 16
}

/// Property Get and Property Set command.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Property {
    /// 7Fh.
    pub opcode: u8,
    /// Flags.
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// 00h or 04h.
    pub fctype: u8,
    #[doc(hidden)]
    pub reserved_5: [u8; 35],
    /// Attributes: size in bits 2:0, 0 for 4 bytes and 1 for 8 bytes.
    pub attrib: u8,
    #[doc(hidden)]
    pub reserved_41: [u8; 3],
    /// Offset of the property.
    pub offset: U32,
    /// Value, of Property Set.
    pub value: U64,
    #[doc(hidden)]
    pub reserved_56: [u8; 8],
}

const _: () = assert!(size_of::<Property>() == 64);
const _: () = assert!(std::mem::offset_of!(Property, offset) == 44);
const _: () = assert!(std::mem::offset_of!(Property, value) == 48);

/// ATTRIB bits 2:0: the property has 4 bytes.
pub const PROPERTY_4_BYTES: u8 = 0;
/// ATTRIB bits 2:0: the property has 8 bytes.
pub const PROPERTY_8_BYTES: u8 = 1;

/// Record format of a Disconnect command: CDW10 bits 15:0.
pub fn disconnect_recfmt(sqe: &Sqe) -> u16 {
    sqe.cdw10.get() as u16
}

/// Whether this is a name that the specification allows: `nqn.yyyy-mm.reverse.domain:name`, or
/// `nqn.2014-08.org.nvmexpress:uuid:` and a UUID, in UTF-8 of at most 223 bytes. The domain may
/// stand without a name, as in the name of the discovery subsystem.
pub fn is_valid_nqn(nqn: &str) -> bool {
    if nqn.len() > NQN_MAX_BYTES || nqn.chars().any(char::is_control) {
        return false;
    }
    if let Some(uuid) = nqn.strip_prefix(UUID_NQN_PREFIX) {
        return is_uuid(uuid);
    }
    let Some(rest) = nqn.strip_prefix("nqn.") else { return false };
    let (authority, name) = match rest.split_once(':') {
        Some((authority, name)) => (authority, Some(name)),
        None => (rest, None),
    };
    let Some((date, domain)) = authority.split_once('.') else { return false };
    let date = date.as_bytes();
    let month =
        |tens: u8, ones: u8| matches!((tens, ones), (b'0', b'1'..=b'9') | (b'1', b'0'..=b'2'));
    let date_is_good = matches!(date, [year @ .., b'-', tens, ones]
        if year.len() == 4 && year.iter().all(u8::is_ascii_digit) && month(*tens, *ones));
    let label_is_good = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    date_is_good && domain.split('.').all(label_is_good) && name != Some("")
}

/// Whether this is a UUID as RFC 4122 writes it, in either case.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// The text of a null-ended field; `None` when no null ends it or it is not UTF-8.
pub fn text(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|&byte| byte == 0)?;
    std::str::from_utf8(&field[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let longest = format!("nqn.2026-11.io.forebay:{}", "x".repeat(200));
        assert_eq!(longest.len(), NQN_MAX_BYTES);
        for good in [
            DISCOVERY_NQN,
            "nqn.2026-11.io.forebay:training",
            "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555",
            "nqn.2014-08.org.nvmexpress:uuid:ABCDEF01-2222-3333-4444-abcdef012345",
            &longest,
        ] {
            assert!(is_valid_nqn(good), "{good}");
        }
        let long = format!("nqn.2026-11.io.forebay:{}", "x".repeat(201));
        for bad in [
            "",
            "nqn.",
            "nqn.2026-13.io.x:y",
            "nqn.2026-11:y",
            "nqn.2026-1.io:y",
            "iqn.2026-11.io:y",
            "nqn.2026-11.io..x:y",
            "nqn.2026-11.io.x:",
            "nqn.2026-11.io.x:a\nb",
            "nqn.2014-08.org.nvmexpress:uuid:",
            "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-55555555555",
            "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-55555555555g",
            "nqn.2014-08.org.nvmexpress:uuid:111111112222-3333-4444-5555555555555",
            &long,
        ] {
            assert!(!is_valid_nqn(bad), "{bad}");
        }
        assert_eq!(text(b"ab\0cd"), Some("ab"));
        assert_eq!(text(b"abcd"), None);
    }

    #[test]
    fn connect_command_of_an_io_queue() {
        let bytes: [u8; 64] = [
            0x7F, 0x40, 0x34, 0x12, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // opcode to fctype
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // SGL: no address,
            0, 4, 0, 0, 0, 0, 0, 0x01, 0, 0, 3, 0, 127, 0, 0x04,
            0, // 1024 bytes in the capsule
            0x98, 0x3A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // kato
        ];
        let connect = Connect::read_from_bytes(&bytes).unwrap();
        assert_eq!((connect.opcode, connect.cid.get()), (crate::opcode::FABRICS, 0x1234));
        assert_eq!(connect.fctype, fctype_of::CONNECT);
        assert_eq!((connect.recfmt.get(), connect.qid.get()), (0, 3));
        assert_eq!((connect.sqsize_z.get(), connect.kato_ms.get()), (127, 15_000));
        assert_eq!(connect.cattr, CATTR_DISABLE_SQ_FLOW_CONTROL);
        // The same bytes as a command of unknown kind.
        let sqe = Sqe::read_from_bytes(&bytes).unwrap();
        assert_eq!((fctype(&sqe), sqe.psdt()), (fctype_of::CONNECT, crate::sgl::PSDT_SGL));
        assert_eq!(sqe.sgl(), crate::sgl::SglDescriptor::in_capsule(0, 1024));
    }

    #[test]
    fn connect_data_and_answers() {
        let mut bytes = [0; 1024];
        bytes[15] = 0xA5;
        bytes[16..18].copy_from_slice(&[0xFF, 0xFF]);
        bytes[256..260].copy_from_slice(b"sub\0");
        bytes[512..517].copy_from_slice(b"host\0");
        let data = ConnectData::read_from_bytes(&bytes).unwrap();
        assert_eq!((data.hostid[15], data.cntlid.get()), (0xA5, CNTLID_DYNAMIC));
        assert_eq!((text(&data.subnqn), text(&data.hostnqn)), (Some("sub"), Some("host")));
        assert_eq!(connect_result(0xFFEF), 0xFFEF);
        assert_eq!(invalid_parameter(256, true), 0x1_0100);
        assert_eq!(invalid_parameter(42, false), 42);
    }

    #[test]
    fn property_set_of_cc() {
        let mut bytes = [0; 64];
        bytes[..5].copy_from_slice(&[0x7F, 0x40, 1, 0, 0]);
        bytes[44..52].copy_from_slice(&[0x14, 0, 0, 0, 1, 0, 0x46, 0]);
        let property = Property::read_from_bytes(&bytes).unwrap();
        assert_eq!((property.fctype, property.attrib), (fctype_of::PROPERTY_SET, PROPERTY_4_BYTES));
        assert_eq!(property.offset.get(), crate::registers::CC);
        assert_eq!(property.value.get(), 0x0046_0001);
    }
}
