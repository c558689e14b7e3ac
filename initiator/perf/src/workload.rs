//! What a core does next: a sequence of I/Os that follows from the workload and the seed alone.

use std::ops::Range;

use rand::RngExt as _;
use rand_distr::{Distribution as _, Zipf};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng as _;

/// What an I/O does, as far as figures are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Blocks into memory.
    Read,
    /// Memory into blocks.
    Write,
    /// What was written is on stable media.
    Flush,
    /// Blocks become zero.
    WriteZeroes,
    /// Blocks are given up.
    Deallocate,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Kind; 5] =
        [Kind::Read, Kind::Write, Kind::Flush, Kind::WriteZeroes, Kind::Deallocate];

    /// Its name in tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
            Kind::WriteZeroes => "write zeroes",
            Kind::Deallocate => "deallocate",
        }
    }

    /// Whether it changes blocks.
    #[inline]
    pub fn changes_blocks(self) -> bool {
        matches!(self, Kind::Write | Kind::WriteZeroes | Kind::Deallocate)
    }
}

/// One I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub kind: Kind,
    /// Its first block; 0 for a flush.
    pub slba: u64,
    /// How many; 0 for a flush.
    pub block_count: u32,
}

/// Where I/Os go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// One behind the other, from the start again at the end.
    Sequential,
    /// Anywhere, each place as likely as any other.
    Random,
    /// Some places far more often than others: the k-th most frequent one k^exponent times less
    /// often than the first. They are scattered.
    Zipf {
        /// The exponent.
        exponent: f64,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Where.
    pub pattern: Pattern,
    /// Bytes of an I/O, each with the weight of its kind.
    pub sizes: Vec<(u32, u32)>,
    /// Of a hundred I/Os, so many are reads.
    pub read_percent: u32,
    /// Of a hundred others, so many write zeroes.
    pub write_zeroes_percent: u32,
    /// Of a hundred others, so many deallocate; what is left writes.
    pub deallocate_percent: u32,
    /// A flush after so many I/Os that change blocks.
    pub flush_every: Option<u32>,
    /// Writes are on stable media when they complete.
    pub fua: bool,
}

impl Workload {
    /// Whether it changes blocks.
    pub fn changes_blocks(&self) -> bool {
        self.read_percent < 100
    }

    /// The kinds that it has.
    pub fn kinds(&self) -> Vec<Kind> {
        let others = self.changes_blocks();
        let writes = self.write_zeroes_percent + self.deallocate_percent < 100;
        let has = |kind: &Kind| match kind {
            Kind::Read => self.read_percent > 0,
            Kind::Write => others && writes,
            Kind::Flush => others && self.flush_every.is_some(),
            Kind::WriteZeroes => others && self.write_zeroes_percent > 0,
            Kind::Deallocate => others && self.deallocate_percent > 0,
        };
        Kind::ALL.into_iter().filter(has).collect()
    }

    /// Bytes of the largest I/O.
    pub fn max_bytes(&self) -> u32 {
        self.sizes.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0)
    }
}

/// Gives out the I/Os of one core. Those of several cores are independent: each has a part of the
/// blocks, and a stretch of the random numbers, to itself.
#[derive(Debug)]
pub struct Generator {
    workload: Workload,
    rng: Xoshiro256PlusPlus,
    part: Range<u64>,
    sizes: Vec<Size>,
    total_weight: u32,
    cursor: u64,
    since_flush: u32,
}

/// I/Os of one size, and the places where they may be: multiples of it.
#[derive(Debug)]
struct Size {
    weight: u32,
    block_count: u32,
    places: u64,
    zipf: Option<Zipf<f64>>,
    /// Scatters the ranks of a Zipf distribution: it has no factor in common with `places`, so that
    /// each place is that of one rank.
    stride: u64,
}

impl Generator {
    /// For core `core`, whose blocks are `part`. Each size of the workload is a multiple of
    /// `block_bytes`, and fits into the part.
    pub fn new(workload: &Workload, seed: u64, core: usize, part: Range<u64>, block: u32) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        // Each jump is 2^128 numbers.
        (0..core).for_each(|_| rng.jump());
        let size = |&(bytes, weight): &(u32, u32)| {
            let block_count = bytes / block;
            let places = (part.end - part.start) / u64::from(block_count);
            assert!(places > 0, "a part smaller than an I/O");
            let zipf = match workload.pattern {
                Pattern::Zipf { exponent } => Zipf::new(places as f64, exponent).ok(),
                Pattern::Sequential | Pattern::Random => None,
            };
            Size { weight, block_count, places, zipf, stride: stride(places) }
        };
        let sizes: Vec<Size> = workload.sizes.iter().map(size).collect();
        Self {
            total_weight: sizes.iter().map(|size| size.weight).sum(),
            workload: workload.clone(),
            rng,
            cursor: part.start,
            part,
            sizes,
            since_flush: 0,
        }
    }

    /// The next I/O.
    #[inline]
    pub fn next_step(&mut self) -> Step {
        if self.workload.flush_every.is_some_and(|every| self.since_flush >= every) {
            self.since_flush = 0;
            return Step { kind: Kind::Flush, slba: 0, block_count: 0 };
        }
        let kind = self.pick_kind();
        self.since_flush += u32::from(kind.changes_blocks());
        let index = self.pick_size();
        let Size { block_count, places, zipf, stride, .. } = &self.sizes[index];
        let blocks = u64::from(*block_count);
        let slba = match (self.workload.pattern, zipf) {
            (Pattern::Zipf { .. }, Some(zipf)) => {
                let rank = (zipf.sample(&mut self.rng) as u64).clamp(1, *places) - 1;
                let place = u128::from(rank) * u128::from(*stride) % u128::from(*places);
                self.part.start + place as u64 * blocks
            }
            (Pattern::Sequential, _) => {
                if self.part.end - self.cursor < blocks {
                    self.cursor = self.part.start;
                }
                self.cursor += blocks;
                self.cursor - blocks
            }
            _ => self.part.start + self.rng.random_range(0..*places) * blocks,
        };
        Step { kind, slba, block_count: *block_count }
    }

    /// No number is drawn where there is nothing to choose.
    #[inline]
    fn pick_kind(&mut self) -> Kind {
        let Workload { read_percent, write_zeroes_percent, deallocate_percent, .. } = self.workload;
        let mut draw = |percent| match percent {
            0 => false,
            100 => true,
            percent => self.rng.random_range(0..100) < percent,
        };
        if draw(read_percent) {
            return Kind::Read;
        }
        if write_zeroes_percent + deallocate_percent == 0 {
            return Kind::Write;
        }
        match self.rng.random_range(0..100) {
            drawn if drawn < write_zeroes_percent => Kind::WriteZeroes,
            drawn if drawn < write_zeroes_percent + deallocate_percent => Kind::Deallocate,
            _ => Kind::Write,
        }
    }

    #[inline]
    fn pick_size(&mut self) -> usize {
        if self.sizes.len() == 1 {
            return 0;
        }
        let mut drawn = self.rng.random_range(0..self.total_weight);
        for (index, size) in self.sizes.iter().enumerate() {
            match drawn.checked_sub(size.weight) {
                Some(rest) => drawn = rest,
                None => return index,
            }
        }
        0
    }
}

/// About the golden part of `places`, and without a factor in common with it.
fn stride(places: u64) -> u64 {
    let golden = (places as f64 * 0.618_033_988_75) as u64;
    (golden.max(1)..).find(|&candidate| common_factor(candidate, places) == 1).unwrap_or(1)
}

fn common_factor(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The part of core `core` of `cores` of the blocks, in whole units of `unit` blocks where there
/// are as many.
pub fn part(blocks: &Range<u64>, unit: u64, core: usize, cores: usize) -> Range<u64> {
    let units = (blocks.end - blocks.start) / unit;
    let at = |core: usize| blocks.start + units * core as u64 / cores as u64 * unit;
    // What is no whole unit is the last one's.
    let end = if core + 1 == cores { blocks.end } else { at(core + 1) };
    at(core)..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(pattern: Pattern) -> Workload {
        Workload {
            pattern,
            sizes: vec![(4096, 1)],
            read_percent: 100,
            write_zeroes_percent: 0,
            deallocate_percent: 0,
            flush_every: None,
            fua: false,
        }
    }

    fn steps(workload: &Workload, seed: u64, core: usize, count: usize) -> Vec<Step> {
        let mut generator = Generator::new(workload, seed, core, 100..1124, 512);
        (0..count).map(|_| generator.next_step()).collect()
    }

    #[test]
    fn a_seed_makes_the_same_sequence_again_and_cores_have_their_own() {
        let random = workload(Pattern::Random);
        assert_eq!(steps(&random, 1, 0, 100), steps(&random, 1, 0, 100));
        assert_ne!(steps(&random, 1, 0, 100), steps(&random, 2, 0, 100));
        assert_ne!(steps(&random, 1, 0, 100), steps(&random, 1, 1, 100));
    }

    #[test]
    fn sequential_is_one_behind_the_other_and_begins_again() {
        let found = steps(&workload(Pattern::Sequential), 1, 0, 129);
        let slbas: Vec<u64> = found.iter().map(|step| step.slba).collect();
        assert!(slbas[..128].iter().copied().eq((100..1124).step_by(8)));
        assert_eq!(slbas[128], 100);
    }

    #[test]
    fn every_pattern_stays_within_its_part_whatever_the_size() {
        for pattern in [Pattern::Sequential, Pattern::Random, Pattern::Zipf { exponent: 1.2 }] {
            let sizes = vec![(512, 1), (4096, 3), (300 * 512, 2)];
            let mixed = Workload { sizes, ..workload(pattern) };
            for step in steps(&mixed, 3, 2, 10_000) {
                assert!(step.slba >= 100 && step.slba + u64::from(step.block_count) <= 1124);
            }
        }
    }

    #[test]
    fn random_reaches_every_place() {
        let mut seen = [0u32; 128];
        for step in steps(&workload(Pattern::Random), 5, 0, 12_800) {
            seen[(step.slba - 100) as usize / 8] += 1;
        }
        assert!(seen.iter().all(|&count| (50..=160).contains(&count)), "{seen:?}");
    }

    #[test]
    fn zipf_prefers_some_places_by_the_power_law_and_scatters_them() {
        let mut seen = vec![(0u32, 0usize); 128];
        for step in steps(&workload(Pattern::Zipf { exponent: 1.0 }), 5, 0, 100_000) {
            let place = (step.slba - 100) as usize / 8;
            seen[place] = (seen[place].0 + 1, place);
        }
        seen.sort_by(|a, b| b.cmp(a));
        // Of 128 places the first has 1 / (1 + 1/2 + … + 1/128) = 18.4 %, the second half of that.
        assert!((17_500..19_300).contains(&seen[0].0), "{:?}", seen[0]);
        assert!((8_700..9_700).contains(&seen[1].0), "{:?}", seen[1]);
        assert!(seen[0].1.abs_diff(seen[1].1) > 8, "neighbours");
        assert!(seen[127].0 > 0, "every place has a rank");
    }

    #[test]
    fn kinds_and_sizes_come_in_the_shares_that_were_asked_for() {
        let mixed = Workload {
            sizes: vec![(4096, 80), (65536, 20)],
            read_percent: 70,
            write_zeroes_percent: 10,
            deallocate_percent: 20,
            flush_every: Some(10),
            ..workload(Pattern::Random)
        };
        let found = steps(&mixed, 9, 0, 100_000);
        let count = |test: &dyn Fn(&&Step) -> bool| found.iter().filter(test).count();
        let of = |kind: Kind| count(&|step: &&Step| step.kind == kind);
        let flushes = of(Kind::Flush);
        let others = 100_000 - flushes;
        let near = |found: usize, wanted: usize| found.abs_diff(wanted) < wanted / 10;
        assert!(near(of(Kind::Read), others * 70 / 100));
        assert!(near(of(Kind::WriteZeroes), others * 3 / 100));
        assert!(near(of(Kind::Deallocate), others * 6 / 100));
        let changing = others - of(Kind::Read);
        assert!(flushes.abs_diff(changing / 10) <= 1);
        assert!(near(count(&|step: &&Step| step.block_count == 128), others * 20 / 100));
        assert_eq!(mixed.kinds(), Kind::ALL);
    }

    #[test]
    fn parts_cover_all_blocks_once() {
        for cores in 1..6 {
            let parts: Vec<_> = (0..cores).map(|core| part(&(7..1003), 8, core, cores)).collect();
            assert_eq!((parts[0].start, parts[cores - 1].end), (7, 1003));
            assert!(parts.windows(2).all(|two| two[0].end == two[1].start));
            assert!(parts.iter().all(|part| part.end - part.start >= 8));
        }
    }
}
