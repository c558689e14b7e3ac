//! Features (NVMe Base 2.1, section 5.1.25) and their identifiers.

use crate::command::Sqe;
use crate::opcode::admin;

/// Feature identifiers.
pub mod fid {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error Recovery, of the NVM command set.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Interrupt Coalescing, of memory-based transports.
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    /// Interrupt Vector Configuration, of memory-based transports.
    pub const INTERRUPT_VECTOR: u8 = 0x09;
    /// Write Atomicity Normal, of the NVM command set.
    pub const WRITE_ATOMICITY: u8 = 0x0A;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0B;
    /// Host Memory Buffer, of memory-based transports.
    pub const HOST_MEMORY_BUFFER: u8 = 0x0D;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 0x0E;
    /// Keep Alive Timer, milliseconds.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0F;
    /// Host Behavior Support.
    pub const HOST_BEHAVIOR: u8 = 0x16;
    /// I/O Command Set Profile.
    pub const COMMAND_SET_PROFILE: u8 = 0x19;
    /// Host Identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
    /// Namespace Write Protection Configuration.
    pub const NAMESPACE_WRITE_PROTECTION: u8 = 0x84;
}

/// Which value Get Features asks for: CDW10 bits 10:8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Select(pub u8);

impl Select {
    /// Current.
    pub const CURRENT: Self = Self(0);
    /// Default.
    pub const DEFAULT: Self = Self(1);
    /// Saved.
    pub const SAVED: Self = Self(2);
    /// Supported capabilities.
    pub const SUPPORTED: Self = Self(3);

    /// Of a Get Features command.
    pub fn of(sqe: &Sqe) -> Self {
        Self((sqe.cdw10.get() >> 8 & 7) as u8)
    }
}

/// Answer to [`Select::SUPPORTED`]: the feature can be changed.
pub const SUPPORTED_CHANGEABLE: u32 = 1 << 2;

/// Feature identifier of Get and Set Features.
pub fn feature_id(sqe: &Sqe) -> u8 {
    sqe.cdw10.get() as u8
}

/// Set Features with its dword, not saved.
pub fn set(fid: u8, value: u32) -> Sqe {
    let mut sqe = Sqe::new(admin::SET_FEATURES, 0);
    sqe.cdw10 = u32::from(fid).into();
    sqe.cdw11 = value.into();
    sqe
}

/// Get Features.
pub fn get(fid: u8, select: Select) -> Sqe {
    let mut sqe = Sqe::new(admin::GET_FEATURES, 0);
    sqe.cdw10 = (u32::from(fid) | u32::from(select.0 & 7) << 8).into();
    sqe
}

/// Save, of Set Features.
pub fn save(sqe: &Sqe) -> bool {
    sqe.cdw10.get() >> 31 != 0
}

/// Queue counts of feature 07h, 0's based on the wire: submission in the low half, completion in
/// the high half. As counts from 1; `None` for FFFFh, which is not allowed.
pub fn queue_counts(dword: u32) -> Option<(u32, u32)> {
    let (sq_z, cq_z) = (dword & 0xFFFF, dword >> 16);
    (sq_z != 0xFFFF && cq_z != 0xFFFF).then_some((sq_z + 1, cq_z + 1))
}

/// Feature 07h for these counts, each 1 to 65,535.
pub fn queue_counts_dword(submission: u32, completion: u32) -> u32 {
    debug_assert!((1..=0xFFFF).contains(&submission) && (1..=0xFFFF).contains(&completion));
    (submission - 1) | (completion - 1) << 16
}

/// Feature 06h: the volatile write cache is enabled.
pub const WRITE_CACHE_ENABLED: u32 = 1 << 0;

/// Feature 81h: the host identifier is extended, 128 bits.
pub const HOST_IDENTIFIER_EXTENDED: u32 = 1 << 0;

/// Feature 0Bh: SMART events, one bit for each critical warning.
pub const EVENT_SMART: u32 = 0xFF;
/// Feature 0Bh: Attached Namespace Attribute Notices.
pub const EVENT_NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
/// Feature 0Bh: Firmware Activation Notices.
pub const EVENT_FIRMWARE_ACTIVATION: u32 = 1 << 9;
/// Feature 0Bh: Asymmetric Namespace Access Change Notices.
pub const EVENT_ANA_CHANGE: u32 = 1 << 11;
/// Feature 0Bh: Discovery Log Page Change Notices.
pub const EVENT_DISCOVERY_LOG: u32 = 1 << 31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_counts_are_zeroes_based_on_the_wire() {
        assert_eq!(queue_counts_dword(4, 2), 0x0001_0003);
        assert_eq!(queue_counts(0x0001_0003), Some((4, 2)));
        assert_eq!(queue_counts(0), Some((1, 1)));
        assert_eq!(queue_counts(0xFFFE_FFFE), Some((65_535, 65_535)));
        assert_eq!(queue_counts(0x0000_FFFF), None);
        assert_eq!(queue_counts(0xFFFF_0000), None);
    }

    #[test]
    fn commands() {
        let sqe = set(fid::NUMBER_OF_QUEUES, 0x0001_0003);
        assert_eq!((sqe.opcode(), feature_id(&sqe), save(&sqe)), (9, 7, false));
        assert_eq!(sqe.cdw11.get(), 0x0001_0003);
        let sqe = get(fid::VOLATILE_WRITE_CACHE, Select::SUPPORTED);
        assert_eq!((sqe.opcode(), sqe.cdw10.get()), (0x0A, 0x306));
        assert_eq!((feature_id(&sqe), Select::of(&sqe)), (6, Select::SUPPORTED));
        assert!(save(&Sqe { cdw10: (1 << 31).into(), ..Sqe::default() }));
    }
}
