//! Bounds of the arena and of the pools in it.

/// The smallest block a pool hands out, in bytes: one memory page of an NVMe controller (CC.MPS 0).
pub const MIN_BLOCK_BYTES: usize = 4096;

/// The largest block a pool can hand out, in bytes.
pub const MAX_BLOCK_BYTES: usize = 4 << 20;

/// The longest span, in bytes: its length fits in 32 bits. Pools that are larger have several.
pub const MAX_SPAN_BYTES: usize = 2 << 30;

/// I/O virtual address of the arena's first byte. Above 4 GiB it stays clear of the window that
/// x86 keeps for message-signalled interrupts (FEE0_0000h).
pub const IOVA_BASE: u64 = 4 << 30;

/// The largest arena, in bytes: keeps offsets in 40 bits and the last address within the 39-bit
/// address width of the smallest IOMMU page tables in use.
pub const MAX_ARENA_BYTES: usize = 256 << 30;

const _: () = assert!(MIN_BLOCK_BYTES.is_power_of_two() && MAX_BLOCK_BYTES.is_power_of_two());
const _: () = assert!(MIN_BLOCK_BYTES < MAX_BLOCK_BYTES);
const _: () = assert!(MAX_SPAN_BYTES.is_power_of_two() && MAX_BLOCK_BYTES <= MAX_SPAN_BYTES);
const _: () = assert!(MAX_SPAN_BYTES <= u32::MAX as usize);
const _: () = assert!(IOVA_BASE + (MAX_ARENA_BYTES as u64) < 1 << 39);
const _: () = assert!(IOVA_BASE.is_multiple_of(MAX_BLOCK_BYTES as u64));
