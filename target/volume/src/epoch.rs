//! Grace periods: when has every core ended every I/O that it began before?
//!
//! The owner counts *epochs*. A lane takes the present one at the beginning of each turn and
//! publishes the oldest that it still has an I/O of, or this one when it has none. What the owner
//! took out of the map in epoch `e` nobody can reach any more once the epoch has changed and each
//! lane has published a later one than `e`.
//!
//! A lane that polls without I/O publishes each epoch as it comes, so it holds nothing up. One that
//! stops polling says so ([`LaneEpoch::park`]).
//!
//! A lane writes only its own cache line, and only when something changed; the epoch's line is
//! written only when there is something to wait for.

use crate::limits::LANE_EPOCHS;
use crate::sync::{AtomicU64, Ordering, fence};

/// What a parked lane publishes.
const PARKED: u64 = u64::MAX;

/// An atomic with its cache line, and the one that the prefetcher takes with it, for itself.
#[repr(align(128))]
struct Padded(AtomicU64);

/// What owner and lanes share.
pub struct Epochs {
    global: Padded,
    lanes: Box<[Padded]>,
}

impl Epochs {
    /// For so many lanes, all parked.
    pub fn new(lanes: usize) -> Epochs {
        Epochs {
            global: Padded(AtomicU64::new(1)),
            lanes: (0..lanes).map(|_| Padded(AtomicU64::new(PARKED))).collect(),
        }
    }
}

/// The epoch that an I/O was begun in, kept with the I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u8);

const _: () = assert!(LANE_EPOCHS <= 1 << u8::BITS);

/// A lane's side.
pub struct LaneEpoch {
    lane: usize,
    /// The epoch of this turn. At most `LANE_EPOCHS - 1` above `oldest`.
    now: u64,
    /// No I/O in flight is of an earlier one.
    oldest: u64,
    /// As published; [`PARKED`] when parked.
    published: u64,
    in_flight: u32,
    /// I/Os in flight of each epoch, by its remainder.
    counts: [u32; LANE_EPOCHS],
}

impl LaneEpoch {
    /// The side of lane `lane`, parked.
    pub fn new(lane: usize) -> LaneEpoch {
        LaneEpoch {
            lane,
            now: 0,
            oldest: 0,
            published: PARKED,
            in_flight: 0,
            counts: [0; LANE_EPOCHS],
        }
    }

    /// Begins a turn: what was read from the map in earlier ones, and does not belong to an I/O in
    /// flight, must not be used any more.
    #[inline]
    pub fn begin_turn(&mut self, epochs: &Epochs) {
        if self.published == PARKED {
            return self.unpark(epochs);
        }
        // Acquire: what the owner took out before it began this epoch is not seen from here on.
        let global = epochs.global.0.load(Ordering::Acquire);
        if self.in_flight == 0 {
            self.oldest = global;
        } else {
            while self.oldest < self.now && self.counts[self.oldest as usize % LANE_EPOCHS] == 0 {
                self.oldest += 1;
            }
        }
        // An epoch too early only makes the owner wait longer.
        self.now = global.min(self.oldest + (LANE_EPOCHS as u64 - 1));
        if self.published != self.oldest {
            self.published = self.oldest;
            // Release: what was read from the map under earlier epochs has been read.
            epochs.lanes[self.lane].0.store(self.oldest, Ordering::Release);
        }
    }

    /// An I/O begins in this turn, with what this turn read from the map.
    #[inline]
    pub fn begin_io(&mut self) -> Tag {
        debug_assert!(self.published != PARKED, "an I/O outside of a turn");
        let place = self.now as usize % LANE_EPOCHS;
        self.counts[place] += 1;
        self.in_flight += 1;
        Tag(place as u8)
    }

    /// It has ended.
    #[inline]
    pub fn end_io(&mut self, tag: Tag) {
        self.counts[usize::from(tag.0)] -= 1;
        self.in_flight -= 1;
    }

    /// I/Os that have not ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// There will be no turn until the next `begin_turn`, which may never come.
    ///
    /// # Panics
    /// With I/Os in flight: they are what everybody waits for.
    pub fn park(&mut self, epochs: &Epochs) {
        assert!(self.in_flight == 0, "a lane with I/Os in flight cannot be parked");
        self.published = PARKED;
        epochs.lanes[self.lane].0.store(PARKED, Ordering::Release);
    }

    fn unpark(&mut self, epochs: &Epochs) {
        let global = epochs.global.0.load(Ordering::Acquire);
        epochs.lanes[self.lane].0.store(global, Ordering::Release);
        // Either the owner sees that this lane is back, or this lane sees all that the owner took
        // out before it looked: the owner has such a fence before it looks.
        fence(Ordering::SeqCst);
        (self.now, self.oldest, self.published) = (global, global, global);
    }
}

/// The owner's side.
#[derive(Debug)]
pub struct OwnerEpoch {
    now: u64,
    /// Nobody uses anything that was taken out in an earlier epoch than this.
    floor: u64,
    /// Whether something was taken out in the present one.
    used: bool,
}

impl Default for OwnerEpoch {
    fn default() -> OwnerEpoch {
        OwnerEpoch::new()
    }
}

impl OwnerEpoch {
    /// The owner of fresh [`Epochs`].
    pub fn new() -> OwnerEpoch {
        OwnerEpoch { now: 1, floor: 1, used: false }
    }

    /// The epoch of something that was taken out of the map just now.
    #[inline]
    pub fn retire(&mut self) -> u64 {
        self.used = true;
        self.now
    }

    /// Begins a new epoch if something was taken out in this one, and looks where the lanes are.
    /// The present epoch.
    pub fn try_advance(&mut self, epochs: &Epochs) -> u64 {
        if self.used {
            self.used = false;
            self.now += 1;
            epochs.global.0.store(self.now, Ordering::Release);
        }
        if self.floor < self.now {
            // See `LaneEpoch::unpark`.
            fence(Ordering::SeqCst);
            let published = epochs.lanes.iter().map(|lane| lane.0.load(Ordering::Acquire));
            self.floor = published.fold(self.now, u64::min);
        }
        self.now
    }

    /// Whether the grace period of what was taken out in epoch `epoch` is over.
    #[inline]
    pub fn is_over(&self, epoch: u64) -> bool {
        epoch < self.floor
    }
}
