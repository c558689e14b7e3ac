//! Controller properties: PCIe registers, and what Property Get and Set reach over fabrics
//! (NVMe Base 2.1, section 3.1.4).

/// Controller Capabilities, 8 bytes.
pub const CAP: u32 = 0x00;
/// Version, 4 bytes.
pub const VS: u32 = 0x08;
/// Interrupt Mask Set, 4 bytes.
pub const INTMS: u32 = 0x0C;
/// Interrupt Mask Clear, 4 bytes.
pub const INTMC: u32 = 0x10;
/// Controller Configuration, 4 bytes.
pub const CC: u32 = 0x14;
/// Controller Status, 4 bytes.
pub const CSTS: u32 = 0x1C;
/// NVM Subsystem Reset, 4 bytes.
pub const NSSR: u32 = 0x20;
/// Admin Queue Attributes, 4 bytes.
pub const AQA: u32 = 0x24;
/// Admin Submission Queue Base Address, 8 bytes.
pub const ASQ: u32 = 0x28;
/// Admin Completion Queue Base Address, 8 bytes.
pub const ACQ: u32 = 0x30;
/// Controller Ready Timeouts, 4 bytes.
pub const CRTO: u32 = 0x68;
/// Where doorbells begin.
pub const DOORBELLS: u32 = 0x1000;

/// What to write to NSSR for a subsystem reset: "NVMe".
pub const NSSR_RESET: u32 = 0x4E56_4D65;

/// Offset of the submission queue tail doorbell of queue `qid`, with the stride exponent of CAP.
/// An offset that 32 bits do not hold comes out as the largest one, which lies in no BAR.
#[inline]
pub const fn sq_tail_doorbell(qid: u16, dstrd: u8) -> u32 {
    doorbell(2 * qid as u32, dstrd)
}

/// Offset of the completion queue head doorbell of queue `qid`.
#[inline]
pub const fn cq_head_doorbell(qid: u16, dstrd: u8) -> u32 {
    doorbell(2 * qid as u32 + 1, dstrd)
}

const fn doorbell(index: u32, dstrd: u8) -> u32 {
    DOORBELLS.saturating_add(index.saturating_mul(4 << (dstrd & 0xF)))
}

/// Controller Capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    /// Maximum Queue Entries Supported, 0's based.
    pub const fn mqes_z(self) -> u16 {
        self.0 as u16
    }

    /// Contiguous Queues Required.
    pub const fn cqr(self) -> bool {
        self.0 >> 16 & 1 != 0
    }

    /// Timeout, in units of 500 ms: how long CSTS.RDY may take to follow CC.EN.
    pub const fn to(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Doorbell Stride: doorbells are 4 << DSTRD bytes apart.
    pub const fn dstrd(self) -> u8 {
        (self.0 >> 32 & 0xF) as u8
    }

    /// NVM Subsystem Reset Supported.
    pub const fn nssrs(self) -> bool {
        self.0 >> 36 & 1 != 0
    }

    /// Command Sets Supported: bit 0 NVM, bit 6 one or more I/O command sets, bit 7 none.
    pub const fn css(self) -> u8 {
        (self.0 >> 37) as u8
    }

    /// Memory Page Size Minimum: 4096 << MPSMIN bytes.
    pub const fn mpsmin(self) -> u8 {
        (self.0 >> 48 & 0xF) as u8
    }

    /// Memory Page Size Maximum: 4096 << MPSMAX bytes.
    pub const fn mpsmax(self) -> u8 {
        (self.0 >> 52 & 0xF) as u8
    }

    /// Controller Ready Modes Supported: bit 0 with media, bit 1 independent of media. With any,
    /// CRTO tells the time-outs more finely than TO.
    pub const fn crms(self) -> u8 {
        (self.0 >> 59 & 3) as u8
    }

    /// Capabilities with these values and all else zero; bit 0 of CSS set.
    pub const fn new(mqes_z: u16, cqr: bool, to: u8) -> Self {
        Self(mqes_z as u64 | (cqr as u64) << 16 | (to as u64) << 24 | 1 << 37)
    }
}

/// Controller Configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cc(pub u32);

impl Cc {
    /// Enabled, NVM command set (or all that are supported), memory pages of 4096 << `mps` bytes,
    /// and queue entries of 64 and 16 bytes.
    pub const fn enabled(css: u8, mps: u8) -> Self {
        Self(1 | (css as u32 & 7) << 4 | (mps as u32 & 0xF) << 7 | 6 << 16 | 4 << 20)
    }

    /// I/O Command Set Selected: NVM.
    pub const CSS_NVM: u8 = 0;
    /// I/O Command Set Selected: all that are supported.
    pub const CSS_ALL: u8 = 6;
    /// I/O Command Set Selected: none, admin commands only.
    pub const CSS_ADMIN_ONLY: u8 = 7;
    /// Shutdown Notification: normal.
    pub const SHN_NORMAL: u8 = 1;
    /// Shutdown Notification: abrupt.
    pub const SHN_ABRUPT: u8 = 2;

    /// Enable.
    pub const fn en(self) -> bool {
        self.0 & 1 != 0
    }

    /// The same with Enable clear.
    pub const fn disabled(self) -> Self {
        Self(self.0 & !1)
    }

    /// I/O Command Set Selected.
    pub const fn css(self) -> u8 {
        (self.0 >> 4 & 7) as u8
    }

    /// Memory Page Size.
    pub const fn mps(self) -> u8 {
        (self.0 >> 7 & 0xF) as u8
    }

    /// Arbitration Mechanism Selected.
    pub const fn ams(self) -> u8 {
        (self.0 >> 11 & 7) as u8
    }

    /// Shutdown Notification: 0 none, 1 normal, 2 abrupt.
    pub const fn shn(self) -> u8 {
        (self.0 >> 14 & 3) as u8
    }

    /// The same with this shutdown notification.
    pub const fn with_shn(self, shn: u8) -> Self {
        Self(self.0 & !(3 << 14) | (shn as u32 & 3) << 14)
    }

    /// I/O Submission Queue Entry Size, as a power of two.
    pub const fn iosqes(self) -> u8 {
        (self.0 >> 16 & 0xF) as u8
    }

    /// I/O Completion Queue Entry Size, as a power of two.
    pub const fn iocqes(self) -> u8 {
        (self.0 >> 20 & 0xF) as u8
    }
}

/// Controller Status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Csts(pub u32);

impl Csts {
    /// Shutdown Status: normal operation.
    pub const SHST_NORMAL: u8 = 0;
    /// Shutdown Status: shutdown is being processed.
    pub const SHST_OCCURRING: u8 = 1;
    /// Shutdown Status: shutdown is complete.
    pub const SHST_COMPLETE: u8 = 2;

    /// From its parts.
    pub const fn new(rdy: bool, cfs: bool, shst: u8) -> Self {
        Self(rdy as u32 | (cfs as u32) << 1 | (shst as u32 & 3) << 2)
    }

    /// Ready.
    pub const fn rdy(self) -> bool {
        self.0 & 1 != 0
    }

    /// Controller Fatal Status.
    pub const fn cfs(self) -> bool {
        self.0 & 2 != 0
    }

    /// Shutdown Status.
    pub const fn shst(self) -> u8 {
        (self.0 >> 2 & 3) as u8
    }

    /// NVM Subsystem Reset Occurred.
    pub const fn nssro(self) -> bool {
        self.0 >> 4 & 1 != 0
    }

    /// Processing Paused.
    pub const fn pp(self) -> bool {
        self.0 >> 5 & 1 != 0
    }
}

/// Controller Ready Timeouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crto(pub u32);

impl Crto {
    /// Controller Ready With Media Timeout, in units of 500 ms.
    pub const fn crwmt(self) -> u16 {
        self.0 as u16
    }

    /// Controller Ready Independent of Media Timeout, in units of 500 ms.
    pub const fn crimt(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// Admin Queue Attributes for queues of these many entries, 2 to 4096; on the wire 0's based.
pub const fn aqa(sq_entries: u16, cq_entries: u16) -> u32 {
    assert!(sq_entries >= 2 && sq_entries <= 4096 && cq_entries >= 2 && cq_entries <= 4096);
    (sq_entries as u32 - 1) | (cq_entries as u32 - 1) << 16
}

/// Entries of the admin submission and completion queues that Admin Queue Attributes give.
pub const fn aqa_entries(aqa: u32) -> (u16, u16) {
    ((aqa & 0xFFF) as u16 + 1, (aqa >> 16 & 0xFFF) as u16 + 1)
}

/// A version as VS and Identify report it.
pub const fn version(major: u16, minor: u8, tertiary: u8) -> u32 {
    (major as u32) << 16 | (minor as u32) << 8 | tertiary as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_of_qemus_controller() {
        let cap = Cap(0x0040_0820_0f01_07ff);
        assert_eq!((cap.mqes_z(), cap.cqr(), cap.to(), cap.dstrd()), (2047, true, 15, 0));
        assert_eq!((cap.css() & 1, cap.mpsmin(), cap.mpsmax()), (1, 0, 4));
        assert_eq!(sq_tail_doorbell(1, 0), 0x1008);
        assert_eq!(cq_head_doorbell(1, 2), 0x1030);
        assert_eq!(sq_tail_doorbell(u16::MAX, 15), u32::MAX, "beyond any BAR");
        assert_eq!(sq_tail_doorbell(1, u8::MAX), sq_tail_doorbell(1, 15), "four bits");
        assert_eq!(Cap(3 << 59).crms(), 3);
        let crto = Crto(0x0010_0020);
        assert_eq!((crto.crwmt(), crto.crimt()), (0x20, 0x10));
    }

    #[test]
    fn configuration_bits() {
        assert_eq!(Cc::enabled(0, 0).0, 0x0046_0001);
        assert_eq!(Cc::enabled(0, 0).with_shn(1).shn(), 1);
        assert_eq!(aqa(32, 64), 0x003F_001F);
        assert_eq!(aqa_entries(0x003F_001F), (32, 64));
        assert_eq!(aqa_entries(u32::MAX), (4096, 4096), "reserved bits are not entries");
        assert!(Csts(1 << 5).pp() && !Csts(1 << 5).nssro());
        assert_eq!(version(2, 1, 0), 0x0002_0100);
    }
}
