//! Bounds of the driver.

use std::time::Duration;

use nvme_spec::nvm::DSM_RANGE_BYTES;

/// Memory page of the controller as we set it (CC.MPS 0), in bytes.
pub const PAGE_BYTES: u32 = 4096;

/// Most bytes in one command; longer I/O is split. A controller may allow less (MDTS).
pub const MAX_TRANSFER_BYTES: u32 = 1 << 20;

/// Most bytes that one Write Zeroes covers, so that no command takes long.
pub const MAX_WRITE_ZEROES_BYTES: u32 = 8 << 20;

/// Bytes of a command's PRP list: one entry for each page but the first of the longest transfer,
/// which may start anywhere in its first page.
pub const PRP_LIST_BYTES: u32 = MAX_TRANSFER_BYTES / PAGE_BYTES * 8;

/// Entries of the admin queues.
pub const ADMIN_ENTRIES: u16 = 32;

/// Most entries of an I/O queue.
pub const MAX_QUEUE_ENTRIES: u16 = 1024;

/// Most I/O queue pairs of one controller.
pub const MAX_IO_QUEUES: u16 = 64;

/// Most namespaces of one controller that are used.
pub const MAX_NAMESPACES: usize = 64;

/// Most Asynchronous Event Requests kept at the controller.
pub const MAX_EVENTS: u8 = 4;

/// Most Abort commands kept at the controller. It may take fewer (ACL).
pub const MAX_ABORTS: u8 = 4;

/// Most ranges of one Dataset Management command; longer lists are split.
pub const MAX_RANGES: u32 = PRP_LIST_BYTES / DSM_RANGE_BYTES;

/// Resets within [`RESET_WINDOW`] after which a controller is given up.
pub const MAX_RESETS: usize = 5;

/// See [`MAX_RESETS`].
pub const RESET_WINDOW: Duration = Duration::from_secs(60);

/// How long I/O in flight may take when the device is to end in order.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// How long a controller may take to shut down when it has nothing else to do.
pub const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// The same, when somebody waits for I/O that has not ended.
pub const HURRIED_SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// How long a controller may take to be contained by CC.EN before bus mastering is turned off.
pub const DISABLE_LIMIT: Duration = Duration::from_secs(3);

/// Bits of a command identifier that name a slot; the others count its uses.
pub const SLOT_BITS: u32 = 10;

const _: () = assert!(MAX_QUEUE_ENTRIES as u32 <= 1 << SLOT_BITS && SLOT_BITS < 16);
const _: () = assert!(ADMIN_ENTRIES as u32 * 64 <= PAGE_BYTES);
// A PRP list must not cross a page.
const _: () = assert!(PRP_LIST_BYTES.is_power_of_two() && PRP_LIST_BYTES <= PAGE_BYTES);
// Events, aborts and one command.
const _: () = assert!((MAX_EVENTS as u16) + (MAX_ABORTS as u16) + 1 < ADMIN_ENTRIES);
// Both doorbells of every queue fit in a page of shadow doorbells.
const _: () = assert!((MAX_IO_QUEUES as u32 + 1) * 8 <= PAGE_BYTES);
