//! What the user of a device decides.

use std::time::Duration;

use crate::limits::{DISABLE_LIMIT, MAX_QUEUE_ENTRIES};

/// How a device is driven.
#[derive(Clone, Debug)]
pub struct Config {
    /// Cores that do I/O. Each namespace gets a queue pair for each, as far as the controller has
    /// as many.
    pub cores: u16,
    /// Entries of an I/O queue: one more than the commands in flight; 2 to 1024.
    pub queue_entries: u16,
    /// After this long a command is aborted.
    pub command_limit: Duration,
    /// This much later the controller is reset.
    pub abort_grace: Duration,
    /// How long a reset may take, from noticing to serving again.
    pub recovery_limit: Duration,
    /// How long an admin command may take.
    pub admin_limit: Duration,
    /// Use shadow doorbells where the controller has them.
    pub shadow_doorbells: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cores: 1,
            queue_entries: 256,
            command_limit: Duration::from_secs(5),
            abort_grace: Duration::from_secs(1),
            recovery_limit: Duration::from_secs(9),
            admin_limit: Duration::from_secs(4),
            shadow_doorbells: true,
        }
    }
}

impl Config {
    /// When a command ends at the latest after it was taken, whatever the controller does, unless
    /// nothing keeps the controller from its memory: 15 s by default, half of what Linux hosts
    /// wait.
    pub fn end_within(&self) -> Duration {
        self.command_limit + self.abort_grace + self.recovery_limit
    }

    /// After this long no part of a command is sent any more: one sent now may need its own time,
    /// then an abort, then to be taken from the controller, and ends in time.
    pub(crate) fn send_within(&self) -> Duration {
        self.recovery_limit.saturating_sub(DISABLE_LIMIT)
    }

    pub(crate) fn entries(&self, mqes_z: u16) -> u16 {
        self.queue_entries.clamp(2, MAX_QUEUE_ENTRIES).min(mqes_z.saturating_add(1))
    }
}
