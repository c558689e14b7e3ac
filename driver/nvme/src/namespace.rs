//! A namespace, checked.

use nvme_spec::identify::{
    DLFEAT_READS_ZEROES, IdentifyNamespace, NSATTR_WRITE_PROTECTED, NSFEAT_ATOMICS, NSFEAT_OPTIMAL,
    descriptors, nidt,
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
    /// Blocks written all or nothing at power loss; at least 1.
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
    /// From what Identify Namespace said; `awupf_z` is the controller's.
    pub(crate) fn check(
        nsid: u32,
        identify: &IdentifyNamespace,
        awupf_z: u16,
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
        let own = identify.nsfeat & NSFEAT_ATOMICS != 0;
        let atomic_z = if own { identify.nawupf.get() } else { awupf_z };
        let optimal = identify.nsfeat & NSFEAT_OPTIMAL != 0;
        let preferred_z = if optimal { identify.npwg_z.get() } else { 0 };
        Ok(Self {
            nsid,
            block_bytes,
            block_count,
            deallocate_reads_zeroes: identify.dlfeat & 7 == DLFEAT_READS_ZEROES,
            atomic_write_blocks: u32::from(atomic_z) + 1,
            preferred_write_blocks: u32::from(preferred_z) + 1,
            write_protected: identify.nsattr & NSATTR_WRITE_PROTECTED != 0,
            uuid: None,
            nguid: nonzero(&identify.nguid),
            eui64: nonzero(&identify.eui64),
        })
    }

    /// Adds what the identification descriptors say.
    pub(crate) fn describe(&mut self, list: &[u8]) {
        for (kind, identifier) in descriptors(list) {
            match kind {
                nidt::UUID => self.uuid = identifier.try_into().ok().as_ref().and_then(nonzero),
                nidt::NGUID => self.nguid = identifier.try_into().ok().as_ref().and_then(nonzero),
                nidt::EUI64 => self.eui64 = identifier.try_into().ok().as_ref().and_then(nonzero),
                _ => {}
            }
        }
    }
}

fn nonzero<const N: usize>(bytes: &[u8; N]) -> Option<[u8; N]> {
    (*bytes != [0; N]).then_some(*bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn only_what_can_be_driven_passes() {
        let mut identify = IdentifyNamespace::new_zeroed();
        let check = |identify: &IdentifyNamespace| Namespace::check(1, identify, 7);
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
}
