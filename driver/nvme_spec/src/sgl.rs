//! SGL descriptors (NVMe Base 2.1, section 4.3.2).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// PSDT in CDW0: the data pointer is an SGL descriptor.
pub const PSDT_SGL: u8 = 0b01;

/// Descriptor type: Data Block.
pub const TYPE_DATA_BLOCK: u8 = 0x0;
/// Descriptor type: Bit Bucket.
pub const TYPE_BIT_BUCKET: u8 = 0x1;
/// Descriptor type: Segment.
pub const TYPE_SEGMENT: u8 = 0x2;
/// Descriptor type: Last Segment.
pub const TYPE_LAST_SEGMENT: u8 = 0x3;
/// Descriptor type: Keyed Data Block.
pub const TYPE_KEYED_DATA_BLOCK: u8 = 0x4;
/// Descriptor type: Transport Data Block.
pub const TYPE_TRANSPORT_DATA_BLOCK: u8 = 0x5;

/// Descriptor sub type: the address is an address.
pub const SUBTYPE_ADDRESS: u8 = 0x0;
/// Descriptor sub type: the address is an offset into the capsule.
pub const SUBTYPE_OFFSET: u8 = 0x1;
/// Descriptor sub type of transport data blocks (NVMe/TCP).
pub const SUBTYPE_TRANSPORT: u8 = 0xA;
/// Descriptor sub type of keyed data blocks (NVMe/RDMA): the response invalidates the key.
pub const SUBTYPE_INVALIDATE_KEY: u8 = 0xF;

/// One SGL descriptor, 16 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(transparent)]
pub struct SglDescriptor(pub [u8; 16]);

impl SglDescriptor {
    /// Keyed Data Block: length 24 bits, key 32 bits.
    pub fn keyed(address: u64, length: u32, key: u32, invalidate: bool) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..11].copy_from_slice(&length.to_le_bytes()[..3]);
        bytes[11..15].copy_from_slice(&key.to_le_bytes());
        let subtype = if invalidate { SUBTYPE_INVALIDATE_KEY } else { SUBTYPE_ADDRESS };
        bytes[15] = TYPE_KEYED_DATA_BLOCK << 4 | subtype;
        Self(bytes)
    }

    /// Data Block at an offset into the capsule.
    pub fn in_capsule(offset: u64, length: u32) -> Self {
        Self::data_block(offset, length, TYPE_DATA_BLOCK << 4 | SUBTYPE_OFFSET)
    }

    /// Transport Data Block.
    pub fn transport(length: u32) -> Self {
        Self::data_block(0, length, TYPE_TRANSPORT_DATA_BLOCK << 4 | SUBTYPE_TRANSPORT)
    }

    fn data_block(address: u64, length: u32, identifier: u8) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[15] = identifier;
        Self(bytes)
    }

    /// Descriptor type.
    #[inline]
    pub fn descriptor_type(&self) -> u8 {
        self.0[15] >> 4
    }

    /// Descriptor sub type.
    #[inline]
    pub fn subtype(&self) -> u8 {
        self.0[15] & 0xF
    }

    /// Address or offset.
    #[inline]
    pub fn address(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    /// Length in bytes of all types but keyed ones.
    #[inline]
    pub fn length(&self) -> u32 {
        u32::from_le_bytes([self.0[8], self.0[9], self.0[10], self.0[11]])
    }

    /// Length in bytes of a keyed data block, 24 bits.
    #[inline]
    pub fn keyed_length(&self) -> u32 {
        u32::from_le_bytes([self.0[8], self.0[9], self.0[10], 0])
    }

    /// Key of a keyed data block.
    #[inline]
    pub fn key(&self) -> u32 {
        u32::from_le_bytes([self.0[11], self.0[12], self.0[13], self.0[14]])
    }
}

const _: () = assert!(size_of::<SglDescriptor>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_descriptor_bytes() {
        let sgl = SglDescriptor::keyed(0x1122_3344_5566_7788, 0x00AB_CDEF, 0xDEAD_BEEF, true);
        assert_eq!(
            sgl.0,
            [
                0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xEF, 0xCD, 0xAB, 0xEF, 0xBE, 0xAD,
                0xDE, 0x4F
            ]
        );
        assert_eq!(sgl.keyed_length(), 0x00AB_CDEF);
        assert_eq!(sgl.key(), 0xDEAD_BEEF);
        assert_eq!(sgl.descriptor_type(), TYPE_KEYED_DATA_BLOCK);
        assert_eq!(sgl.subtype(), SUBTYPE_INVALIDATE_KEY);
        assert_eq!(SglDescriptor::keyed(0, 1, 2, false).0[15], 0x40);
    }

    #[test]
    fn data_blocks_in_capsules_and_transports() {
        let sgl = SglDescriptor::in_capsule(0x40, 0x0102_0304);
        assert_eq!(sgl.0, [0x40, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0x01]);
        assert_eq!((sgl.address(), sgl.length()), (0x40, 0x0102_0304));
        assert_eq!(SglDescriptor::transport(512).0[15], 0x5A);
    }
}
