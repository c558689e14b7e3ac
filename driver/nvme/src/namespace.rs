//! A namespace, checked.

use nvme_spec::identify::{
    CSI_NVM, DLFEAT_READS_ZEROES, IdentifyNamespace, NSATTR_WRITE_PROTECTED, NSFEAT_ATOMICS,
    NSFEAT_OPTIMAL, descriptors, nidt,
};

use crate::error::NamespaceFault;

/// A namespace that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Namespace identifier.
    pub nsid: u32,
    /// Bytes in a logical block: 512 or 4096.
    pub block_bytes: u32,
    /// Number of logical blocks.
    pub block_count: u64,
    /// Deallocated blocks read as zeroes.
    pub deallocate_reads_zeroes: bool,
    /// Blocks that one write changes all or none of, at power loss too; at least 1.
    pub atomic_write_blocks: u32,
    /// Preferred granularity and alignment of writes, in blocks; at least 1.
    pub preferred_write_blocks: u32,
    /// It refuses writes.
    pub write_protected: bool,
    /// UUID, where it has one.
    pub uuid: Option<[u8; 16]>,
    /// NGUID, where it has one.
    pub nguid: Option<[u8; 16]>,
    /// EUI-64, where it has one.
    pub eui64: Option<[u8; 8]>,
}

impl Namespace {
    /// From what Identify Namespace said; `awupf_z` and the longest transfer are the controller's.
    pub(crate) fn check(
        nsid: u32,
        identify: &IdentifyNamespace,
        awupf_z: u16,
        transfer_bytes: u32,
    ) -> Result<Self, NamespaceFault> {
        let (format, block_count) = (identify.format(), identify.nsze.get());
        let block_bytes = match format.lbads {
            9 => 512,
            12 => 4096,
            lbads => return Err(NamespaceFault::BlockSize { lbads }),
        };
        if format.ms.get() != 0 {
            return Err(NamespaceFault::Metadata { bytes: format.ms.get() });
        }
        let bytes = block_count.checked_mul(u64::from(block_bytes));
        if block_count == 0 || bytes.is_none_or(|bytes| bytes > i64::MAX as u64) {
            return Err(NamespaceFault::Size { blocks: block_count });
        }
        // What the controller promises holds for one command: not for I/O that is split, and not
        // for one that crosses a boundary, where there are any.
        let atomic_z = match identify.nsfeat & NSFEAT_ATOMICS != 0 {
            false => awupf_z,
            true if identify.nabspf.get() == 0 && identify.nabo.get() == 0 => identify.nawupf.get(),
            true => 0,
        };
        let atomic_blocks = (u32::from(atomic_z) + 1).min(transfer_bytes / block_bytes);
        let optimal = identify.nsfeat & NSFEAT_OPTIMAL != 0;
        let preferred_z = if optimal { identify.npwg_z.get() } else { 0 };
        Ok(Self {
            nsid,
            block_bytes,
            block_count,
            deallocate_reads_zeroes: identify.dlfeat & 7 == DLFEAT_READS_ZEROES,
            atomic_write_blocks: atomic_blocks,
            preferred_write_blocks: u32::from(preferred_z) + 1,
            write_protected: identify.nsattr & NSATTR_WRITE_PROTECTED != 0,
            uuid: None,
            nguid: nonzero(&identify.nguid),
            eui64: nonzero(&identify.eui64),
        })
    }

    /// Adds what the identification descriptors say.
    pub(crate) fn describe(&mut self, list: &[u8]) -> Result<(), NamespaceFault> {
        for (kind, identifier) in descriptors(list) {
            match kind {
                nidt::UUID => self.uuid = identifier.try_into().ok().as_ref().and_then(nonzero),
                nidt::NGUID => self.nguid = identifier.try_into().ok().as_ref().and_then(nonzero),
                nidt::EUI64 => self.eui64 = identifier.try_into().ok().as_ref().and_then(nonzero),
                nidt::CSI if identifier != [CSI_NVM] => {
                    let csi = identifier.first().copied().unwrap_or_default();
                    return Err(NamespaceFault::CommandSet { csi });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether whoever knows `old` can go on with this: the same namespace, with room for every
    /// block and every promise.
    pub(crate) fn can_stand_for(&self, old: &Self) -> bool {
        let identity = |one: &Self| (one.nsid, one.block_bytes, one.uuid, one.nguid, one.eui64);
        identity(self) == identity(old)
            && self.block_count >= old.block_count
            && self.atomic_write_blocks >= old.atomic_write_blocks
            && (self.deallocate_reads_zeroes || !old.deallocate_reads_zeroes)
    }
}

fn nonzero<const N: usize>(bytes: &[u8; N]) -> Option<[u8; N]> {
    (*bytes != [0; N]).then_some(*bytes)
}

#[cfg(test)]
mod tests {
    use nvme_spec::identify::push_descriptor;
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn only_what_can_be_driven_passes() {
        let mut identify = IdentifyNamespace::new_zeroed();
        let check = |identify: &IdentifyNamespace| Namespace::check(1, identify, 7, 1 << 20);
        assert_eq!(check(&identify), Err(NamespaceFault::BlockSize { lbads: 0 }));
        identify.lbaf[0].lbads = 255;
        assert_eq!(check(&identify), Err(NamespaceFault::BlockSize { lbads: 255 }));
        identify.lbaf[0].lbads = 12;
        assert_eq!(check(&identify), Err(NamespaceFault::Size { blocks: 0 }));
        identify.nsze = u64::MAX.into();
        assert_eq!(check(&identify), Err(NamespaceFault::Size { blocks: u64::MAX }));
        identify.nsze = 100.into();
        let good = check(&identify).unwrap();
        assert_eq!((good.block_bytes, good.block_count, good.atomic_write_blocks), (4096, 100, 8));
        identify.lbaf[0].ms = 8.into();
        assert_eq!(check(&identify), Err(NamespaceFault::Metadata { bytes: 8 }));
    }

    #[test]
    fn atomicity_is_what_holds_for_every_write() {
        let mut identify = IdentifyNamespace::new_zeroed();
        (identify.lbaf[0].lbads, identify.nsze) = (9, 100.into());
        let blocks = |identify: &IdentifyNamespace, awupf_z| {
            Namespace::check(1, identify, awupf_z, 8192).unwrap().atomic_write_blocks
        };
        assert_eq!(blocks(&identify, 0), 1);
        assert_eq!(blocks(&identify, 7), 8);
        assert_eq!(blocks(&identify, 0xFFFF), 16, "longer writes are split");
        (identify.nsfeat, identify.nawupf) = (NSFEAT_ATOMICS, 3.into());
        assert_eq!(blocks(&identify, 7), 4, "its own");
        identify.nabspf = 7.into();
        assert_eq!(blocks(&identify, 7), 1, "a write may cross a boundary");
        (identify.nabspf, identify.nabo) = (0.into(), 1.into());
        assert_eq!(blocks(&identify, 7), 1);
    }

    #[test]
    fn only_the_nvm_command_set_is_driven() {
        let mut identify = IdentifyNamespace::new_zeroed();
        (identify.lbaf[0].lbads, identify.nsze) = (9, 100.into());
        let mut namespace = Namespace::check(1, &identify, 0, 4096).unwrap();
        let mut list = Vec::new();
        push_descriptor(&mut list, nidt::CSI, &[0]);
        assert_eq!(namespace.describe(&list), Ok(()));
        push_descriptor(&mut list, nidt::CSI, &[2]);
        assert_eq!(namespace.describe(&list), Err(NamespaceFault::CommandSet { csi: 2 }));
    }
}
