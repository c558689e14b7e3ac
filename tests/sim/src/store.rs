//! A device's media with its cache: for each sector all the values it may have after power loss.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use crate::media::Media;
use crate::random::Random;

/// Media, and what is above it until a flush. Sectors are the device's logical blocks: what is
/// written all or nothing.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    media: Media,
    sector_bytes: u32,
    /// Values newer than the media's, oldest first; a list here is never empty.
    cache: BTreeMap<u64, Vec<Version>>,
}

/// One value of a sector.
#[derive(Clone, Debug)]
struct Version {
    /// The write that it is of.
    write: u64,
    /// When that completed, if it has.
    completed: Option<u64>,
    data: Arc<[u8]>,
    /// Where in the data the sector begins.
    at: u32,
}

impl Store {
    pub(crate) fn new(media: Media, sector_bytes: u32) -> Self {
        Self { media, sector_bytes, cache: BTreeMap::new() }
    }

    pub(crate) fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    /// The device has so many bytes now.
    pub(crate) fn grow(&mut self, bytes: u64) {
        self.media.grow(bytes);
    }

    /// What a read finds from a sector on: the newest values. The bytes lie in one page.
    pub(crate) fn read(&self, sector: u64, bytes: &mut [u8]) {
        let size = self.sector_bytes as usize;
        self.media.read(sector * size as u64, bytes);
        let end = sector + (bytes.len() / size) as u64;
        for (&at, versions) in self.cache.range(sector..end) {
            if let Some(version) = versions.last() {
                let start = (at - sector) as usize * size;
                bytes[start..start + size].copy_from_slice(version.bytes(self.sector_bytes));
            }
        }
    }

    /// A write puts its value of a sector into the cache.
    pub(crate) fn apply(&mut self, write: u64, sector: u64, data: &Arc<[u8]>, at: u32) {
        let version = Version { write, completed: None, data: Arc::clone(data), at };
        self.cache.entry(sector).or_default().push(version);
    }

    /// A write completes at a time; `stable` when it is on media with that. A value that a flush
    /// wrote out already, or that a newer stable one replaced, is not here any more.
    pub(crate) fn complete(&mut self, write: u64, sectors: Range<u64>, now: u64, stable: bool) {
        for sector in sectors {
            let Some(versions) = self.cache.get_mut(&sector) else { continue };
            let Some(at) = versions.iter().position(|version| version.write == write) else {
                continue;
            };
            versions[at].completed = Some(now);
            if stable {
                self.write_out(sector, at);
            }
        }
    }

    /// A flush that was submitted at a time completes: what had completed by then is on media.
    pub(crate) fn flush(&mut self, submitted: u64) {
        let is_covered = |version: &Version| version.completed.is_some_and(|at| at < submitted);
        let covered = |(&sector, versions): (&u64, &Vec<Version>)| {
            versions.iter().rposition(is_covered).map(|at| (sector, at))
        };
        let covered: Vec<_> = self.cache.iter().filter_map(covered).collect();
        for (sector, at) in covered {
            self.write_out(sector, at);
        }
    }

    /// The value at this place of a sector's list is on media; those before it never will be.
    fn write_out(&mut self, sector: u64, at: usize) {
        let Some(versions) = self.cache.get_mut(&sector) else { return };
        let bytes = versions[at].bytes(self.sector_bytes);
        self.media.write(sector * u64::from(self.sector_bytes), bytes);
        versions.drain(..=at);
        if versions.is_empty() {
            self.cache.remove(&sector);
        }
    }

    /// The process died: everything in the cache is there, and nothing is in flight any more.
    pub(crate) fn end_process(&mut self) {
        for version in self.cache.values_mut().flatten() {
            version.completed = Some(0);
        }
    }

    /// Power was lost: each sector has the media's value or one of those above it.
    pub(crate) fn lose_power(&mut self, fates: &mut Fates) {
        for (sector, mut versions) in std::mem::take(&mut self.cache) {
            versions.retain(|version| fates.survives(version.write));
            // Writes of one sector reach the media in the order of the cache, but the last ones
            // may not have by then.
            let last = match versions.len() {
                0 => continue,
                length if fates.random.one_in(4) => fates.random.below(length as u64) as usize,
                length => length - 1,
            };
            let bytes = versions[last].bytes(self.sector_bytes);
            self.media.write(sector * u64::from(self.sector_bytes), bytes);
        }
    }
}

impl Version {
    fn bytes(&self, sector_bytes: u32) -> &[u8] {
        &self.data[self.at as usize..(self.at + sector_bytes) as usize]
    }
}

/// What becomes of the writes that nothing has made stable, when everything ends.
#[derive(Debug)]
pub(crate) struct Fates {
    random: Random,
    /// Of eight writes, how many survive whole, and how many of the others in part.
    whole: u64,
    torn: u64,
    decided: HashMap<u64, Fate>,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Whole,
    /// Each sector for itself.
    Torn,
    Lost,
}

impl Fates {
    /// Odds that differ from end to end: all lost, all there, and everything between.
    pub(crate) fn new(mut random: Random) -> Self {
        let whole = *random.pick(&[0, 1, 4, 4, 7, 8]);
        let torn = *random.pick(&[0, 2, 4]);
        Self { random, whole, torn, decided: HashMap::new() }
    }

    /// Whether the next sector of a write is there. Writes are decided on as wholes first: if each
    /// sector had its own luck, no long one would ever survive.
    pub(crate) fn survives(&mut self, write: u64) -> bool {
        let fate = *self.decided.entry(write).or_insert_with(|| {
            if self.random.chance(self.whole, 8) {
                Fate::Whole
            } else if self.random.chance(self.torn, 8) {
                Fate::Torn
            } else {
                Fate::Lost
            }
        });
        match fate {
            Fate::Whole => true,
            Fate::Torn => self.random.one_in(2),
            Fate::Lost => false,
        }
    }
}
