//! What bounds the core, on the data path and in the control half.

use std::time::Duration;

/// Most queues of one core, admin queues included.
pub const MAX_QUEUES_PER_CORE: usize = 1024;

/// Most subsystems, the discovery subsystem not counted.
pub const MAX_SUBSYSTEMS: usize = 1024;

/// Most namespaces of a subsystem: the highest NSID.
pub const MAX_NAMESPACES: usize = 1024;

/// Most ranges of a Dataset Management command (NVM Command Set, NR has 8 bits).
pub const MAX_DSM_RANGES: u32 = nvme_spec::nvm::MAX_DSM_RANGES;

// One Dataset Management command's ranges fit the smallest buffer.
const _: () = assert!(
    (MAX_DSM_RANGES * nvme_spec::nvm::DSM_RANGE_BYTES) as usize <= dma::limits::MIN_BLOCK_BYTES
);
// The changed-namespace log can name every namespace.
const _: () = assert!(MAX_NAMESPACES <= nvme_spec::log_page::CHANGED_NAMESPACES_MAX);

/// Most bytes that a host sends with an admin or fabrics command.
pub const MAX_CONTROL_DATA_BYTES: u32 = 4096;
const _: () =
    assert!(MAX_CONTROL_DATA_BYTES as usize >= size_of::<nvme_spec::fabrics::ConnectData>());

/// Most hosts that a subsystem allows by name.
pub const MAX_HOSTS_PER_SUBSYSTEM: usize = 1024;

/// Most listeners of a target.
pub const MAX_LISTENERS: usize = 64;

/// Most controllers of a target, discovery controllers included.
pub const MAX_CONTROLLERS: usize = 1024;

/// Most fabrics queues of a target on all cores.
pub const MAX_QUEUES: usize = 16 * 1024;

/// Most I/O queues that a controller grants, whatever the configuration says.
pub const MAX_IO_QUEUES: u16 = 1024;

/// Most entries of a queue, whatever the configuration says.
pub const MAX_QUEUE_ENTRIES: u16 = 4096;

/// Asynchronous Event Requests that a controller keeps (AERL + 1).
pub const MAX_ASYNC_EVENT_REQUESTS: usize = 4;

/// Abort commands that a controller works on at a time (ACL + 1).
pub const MAX_ABORTS: usize = 4;

/// Entries of a controller's error log (ELPE + 1).
pub const MAX_ERROR_ENTRIES: usize = 64;

/// Granularity of keep-alive time-outs; KAS is this in units of 100 ms.
pub const KEEP_ALIVE_GRANULARITY_MS: u32 = 1000;

/// How long a new connection may take to send its Connect command.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a controller that is disabled or shut down keeps its admin queue, so that the host can
/// read its properties or enable it again. The specification asks for at least 2 minutes.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(125);

/// How long a discovery controller without keep-alive waits for the next command.
pub const DISCOVERY_IDLE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a host may take to close the connection of an I/O queue that it disconnected.
pub const DISCONNECT_LINGER: Duration = Duration::from_secs(1);

/// CAP.TO in units of 500 ms, and RTD3E: how long an orderly end of all I/O may take.
pub const READY_TIMEOUT_500MS: u8 = 60;

// Every controller can have an admin queue and at least one I/O queue.
const _: () = assert!(MAX_CONTROLLERS * 2 <= MAX_QUEUES);
// CNTLIDs 1 to FFEFh go round-robin: enough are left that one just freed is not the next.
const _: () = assert!(MAX_CONTROLLERS < nvme_spec::fabrics::CNTLID_MAX as usize / 4);
// AERL, ACL and ELPE are 0's based bytes.
const _: () = assert!(MAX_ASYNC_EVENT_REQUESTS <= 256 && MAX_ABORTS <= 256);
const _: () = assert!(MAX_ERROR_ENTRIES <= 256);
const _: () = assert!(KEEP_ALIVE_GRANULARITY_MS.is_multiple_of(100));
