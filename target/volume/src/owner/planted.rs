//! Bugs to be planted, so that the simulator can show that it finds them.
//!
//! A missing freeze of the lanes is not among them: in the simulator a lane finds a place and
//! submits in one step, and only threads can come between. That is for loom.

/// One thing left out. In a build without debug assertions none can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A first touch is acknowledged before its data has been written.
    AckBeforeData,
    /// It is acknowledged before its record has been written.
    AckBeforeRecord,
    /// Closing does not flush the devices.
    CloseWithoutFlush,
    /// "Closed up to" is not written with FUA.
    MarkWithoutFua,
    /// Guards go before "closed up to" is durable.
    UnguardBeforeMark,
    /// An open block is overwritten in place.
    OverwriteOpen,
    /// What was released is used again before the release is durable.
    ReuseBeforeClosed,
    /// What was released is used again while I/Os of the earlier map are in flight.
    ReuseBeforeGrace,
    /// A block of an own cluster is used again at once after it was deallocated.
    ReuseBlocks,
    /// An entry goes on with the cluster that it had, also when that is on its way to be free.
    KeepPlaces,
    /// What was released is used again while a checkpoint is written that may name it.
    ReuseInCheckpoint,
    /// Two first touches of one block are not told apart.
    OverlapNotResolved,
    /// A first touch that ends after a snapshot is not in it, although its record is before.
    LateTouchNotInSnapshot,
    /// A snapshot may be read before writes that began earlier have ended.
    SnapshotNotSettled,
    /// A FUA write is acknowledged with a volatile mapping.
    FuaMappingVolatile,
    /// The checkpoint's pages are not flushed before the superblock names them.
    SwitchWithoutFlush,
    /// Old pages and the journal are used again before the superblock is durable.
    ReuseBeforeSwitch,
    /// A checkpoint is taken to hold what was appended, and not only what is in the maps.
    CheckpointDropsPending,
    /// A checkpoint begins although a mapping is pending whose record is before a change.
    CheckpointBehindChange,
    /// Replay does not verify open records.
    ReplayUnverified,
    /// Recovery writes before what it has read is durable.
    RecoverWithoutFlush,
    /// The journal goes on with the old incarnation after recovery.
    OldIncarnation,
    /// A device that comes is used before a superblock that names it is durable.
    DeviceUsedUnnamed,
    /// Blocks are overwritten in place while they are moved.
    MoveOwn,
    /// A copy of a cluster is named before it has been written.
    MoveUnwritten,
    /// A copy of a cluster is overwritten in place before a checkpoint names it.
    MoveUnheld,
    /// What is free in the windows of other streams is not given.
    WindowsKept,
    /// A write is refused although something is being released.
    RefusedBeforeReleases,
    /// Entries of a reserved volume stay covered when a snapshot shares them.
    SharedStaysCovered,
}

impl Planted {
    /// All of them.
    pub const ALL: &[Planted] = &[
        Planted::AckBeforeData,
        Planted::AckBeforeRecord,
        Planted::CloseWithoutFlush,
        Planted::MarkWithoutFua,
        Planted::UnguardBeforeMark,
        Planted::OverwriteOpen,
        Planted::ReuseBeforeClosed,
        Planted::ReuseBeforeGrace,
        Planted::ReuseBlocks,
        Planted::KeepPlaces,
        Planted::ReuseInCheckpoint,
        Planted::OverlapNotResolved,
        Planted::LateTouchNotInSnapshot,
        Planted::SnapshotNotSettled,
        Planted::FuaMappingVolatile,
        Planted::SwitchWithoutFlush,
        Planted::ReuseBeforeSwitch,
        Planted::CheckpointDropsPending,
        Planted::CheckpointBehindChange,
        Planted::ReplayUnverified,
        Planted::RecoverWithoutFlush,
        Planted::OldIncarnation,
        Planted::DeviceUsedUnnamed,
        Planted::MoveOwn,
        Planted::MoveUnwritten,
        Planted::MoveUnheld,
        Planted::WindowsKept,
        Planted::RefusedBeforeReleases,
        Planted::SharedStaysCovered,
    ];
}

/// The bug of a pool, if any.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bugs(#[cfg(debug_assertions)] Option<Planted>);

impl Bugs {
    #[cfg(debug_assertions)]
    pub(crate) fn new(planted: Option<Planted>) -> Self {
        Self(planted)
    }

    #[cfg(not(debug_assertions))]
    pub(crate) fn new(_: Option<Planted>) -> Self {
        Self()
    }

    #[cfg(debug_assertions)]
    #[inline]
    pub(crate) fn is(self, planted: Planted) -> bool {
        self.0 == Some(planted)
    }

    #[cfg(not(debug_assertions))]
    #[inline]
    pub(crate) fn is(self, _: Planted) -> bool {
        false
    }
}
