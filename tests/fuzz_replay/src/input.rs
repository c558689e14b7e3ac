//! Bytes read as a script.

use nvme_spec::command::Sqe;
use nvme_spec::sgl::SglDescriptor;
use zerocopy::{FromBytes, IntoBytes};

/// What is left of an input. Beyond its end everything is zero.
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take<T: FromBytes + IntoBytes>(&mut self) -> T {
        let mut value = T::new_zeroed();
        let count = size_of::<T>().min(self.0.len());
        let (head, rest) = self.0.split_at(count);
        value.as_mut_bytes()[..count].copy_from_slice(head);
        self.0 = rest;
        value
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.take()
    }

    /// One of the entries of a table, which is not empty.
    pub(crate) fn one_of<T: Copy>(&mut self, table: &[T]) -> T {
        table[usize::from(self.byte()) % table.len()]
    }

    /// A number that is small, next to `edge`, or anything.
    pub(crate) fn near(&mut self, edge: u64) -> u64 {
        match self.byte() % 4 {
            0 | 1 => u64::from(self.byte()) % 16,
            2 => edge.wrapping_sub(8).wrapping_add(u64::from(self.byte()) % 16),
            _ => self.take(),
        }
    }

    /// A descriptor for `bytes` of data that makes sense, mostly.
    pub(crate) fn sgl(&mut self, bytes: u32) -> SglDescriptor {
        match self.byte() % 8 {
            0..=2 => SglDescriptor::keyed(0x1_0000, bytes, 0xBEEF, false),
            3 => SglDescriptor::keyed(0x1_0000, bytes, 0xBEEF, true),
            4 => SglDescriptor::in_capsule(u64::from(self.byte()) * 4, bytes),
            5 => SglDescriptor::transport(bytes),
            6 => SglDescriptor::keyed(self.take(), self.take::<u32>() & 0xFF_FFFF, 1, false),
            _ => SglDescriptor(self.take()),
        }
    }

    /// Any command at all.
    pub(crate) fn sqe(&mut self) -> Sqe {
        self.take()
    }
}
