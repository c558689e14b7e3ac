//! A job: options that have been checked, as far as they can be without the target.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use bdev::Geometry;

use crate::address::Address;
use crate::error::PerfError;
use crate::limits::{MAX_CORES, MAX_DEPTH, MAX_IO_BYTES};
use crate::options::{JobOptions, PatternName};
use crate::text::{Bytes, Cpus, Sizes};
use crate::workload::{Pattern, Workload};

/// What to run, where, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Its name in what is printed.
    pub name: String,
    /// The target.
    pub address: Address,
    /// Bytes of a logical block, where we choose.
    pub logical_block: u32,
    /// What is done.
    pub workload: Workload,
    /// I/Os in flight on each core.
    pub depth: usize,
    /// The CPU of each core.
    pub cpus: Vec<usize>,
    /// How long is measured.
    pub runtime: Option<Duration>,
    /// How many bytes are moved.
    pub bytes: Option<u64>,
    /// How long it runs before that.
    pub warm_up: Duration,
    /// I/Os a second on all cores, or as many as there may be.
    pub rate: Option<u64>,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range, or all there are.
    pub size: Option<u64>,
    /// What the sequence of I/Os follows from.
    pub seed: u64,
    /// The acknowledgement log.
    pub verify: Option<PathBuf>,
    /// An SSD is taken whatever it bears.
    pub force: bool,
    /// Who we are to a target on the fabric.
    pub host_nqn: Option<String>,
    /// Digests of headers on the fabric.
    pub header_digest: bool,
    /// Digests of data on the fabric.
    pub data_digest: bool,
    /// Where the plot goes.
    pub plot: Option<PathBuf>,
}

/// The default where neither a time nor bytes are given.
const RUNTIME: Duration = Duration::from_secs(10);

impl Job {
    /// Checks options.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn new(options: &JobOptions) -> Result<Self, PerfError> {
        let name = options.name.clone().unwrap_or_else(|| "run".to_owned());
        let wrong = |option: &'static str, reason: String| PerfError::Option {
            job: name.clone(),
            option,
            reason,
        };
        let target = options.target.as_deref().unwrap_or_default();
        let address: Address = target.parse().map_err(|reason| wrong("target", reason))?;
        let workload = workload(options).map_err(|(option, reason)| wrong(option, reason))?;
        let depth = options.depth.unwrap_or(32);
        check_depth(depth).map_err(|reason| wrong("--depth", reason))?;
        let cpus = cpus(options.cores, options.cpus.as_ref())
            .map_err(|(option, reason)| wrong(option, reason))?;
        let logical_block =
            logical_block(options, &address).map_err(|reason| wrong("--logical-block", reason))?;
        for (option, is_zero) in [
            ("--runtime", options.runtime.is_some_and(|time| time.0.is_zero())),
            ("--rate", options.rate == Some(0)),
            ("--flush-every", options.flush_every == Some(0)),
        ] {
            if is_zero {
                return Err(wrong(option, "0 is too little".to_owned()));
            }
        }
        if options.verify.is_some() && matches!(address, Address::Null { .. }) {
            return Err(wrong("--verify", "null stores nothing that could be verified".into()));
        }
        // Kept apart from `force`, which lets an SSD be taken and read.
        if workload.changes_blocks() && address.keeps_data() && !options.destroy_data {
            return Err(PerfError::NeedsConsent { job: name, target: address.to_string() });
        }
        let runtime = options.runtime.map(|time| time.0);
        Ok(Self {
            address,
            logical_block,
            workload,
            depth,
            cpus,
            runtime: runtime.or(options.bytes.is_none().then_some(RUNTIME)),
            bytes: options.bytes.map(|bytes| bytes.0),
            warm_up: options.warm_up.map(|time| time.0).unwrap_or_default(),
            rate: options.rate,
            offset: options.offset.map_or(0, |bytes| bytes.0),
            size: options.size.map(|bytes| bytes.0),
            seed: options.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0),
            verify: options.verify.clone(),
            force: options.force || options.destroy_data,
            host_nqn: options.host_nqn.clone(),
            header_digest: options.hdr_digest,
            data_digest: options.data_digest,
            plot: options.plot.clone(),
            name,
        })
    }

    /// The blocks that are used, once it is known what the target is made of.
    ///
    /// # Errors
    /// They are not there, or an I/O does not fit.
    pub fn blocks(&self, geometry: &Geometry) -> Result<Range<u64>, PerfError> {
        let block = u64::from(geometry.block_bytes);
        let wrong = |option: &'static str, reason: String| PerfError::Option {
            job: self.name.clone(),
            option,
            reason,
        };
        let whole = |option: &'static str, bytes: u64| match bytes.is_multiple_of(block) {
            true => Ok(bytes / block),
            false => {
                let reason = format!("{bytes} bytes are no multiple of a block, {block} bytes");
                Err(wrong(option, reason))
            }
        };
        for (bytes, _) in &self.workload.sizes {
            whole("--block-size", u64::from(*bytes))?;
        }
        let total = geometry.block_count;
        let start = whole("--offset", self.offset)?;
        if start >= total {
            return Err(wrong("--offset", format!("the target has {} bytes", total * block)));
        }
        let count = self.size.map_or(Ok(total - start), |bytes| whole("--size", bytes))?;
        if count > total - start {
            let left = (total - start) * block;
            return Err(wrong("--size", format!("the target has {left} bytes from there on")));
        }
        let unit = u64::from(self.workload.max_bytes()) / block;
        let cores = self.cpus.len() as u64;
        if count / cores < unit {
            let reason = format!(
                "{} bytes for each of {cores} cores are less than an I/O of {} bytes",
                count / cores * block,
                unit * block
            );
            return Err(wrong("--size", reason));
        }
        if self.workload.deallocate_percent > 0
            && self.verify.is_some()
            && !geometry.deallocate_reads_zeroes
        {
            let reason = "what this target reads after it is not certain: no --verify with it";
            return Err(wrong("--deallocate", reason.to_owned()));
        }
        Ok(start..start + count)
    }
}

fn workload(options: &JobOptions) -> Result<Workload, (&'static str, String)> {
    let percent = |option: &'static str, value: Option<u32>, default: u32| match value {
        Some(value) if value > 100 => Err((option, format!("{value} of a hundred"))),
        value => Ok(value.unwrap_or(default)),
    };
    let read_percent = percent("--read", options.read, 100)?;
    let write_zeroes_percent = percent("--write-zeroes", options.write_zeroes, 0)?;
    let deallocate_percent = percent("--deallocate", options.deallocate, 0)?;
    if write_zeroes_percent + deallocate_percent > 100 {
        return Err(("--deallocate", "more than a hundred with --write-zeroes".to_owned()));
    }
    let exponent = options.zipf_exponent.unwrap_or(0.99);
    let pattern = match options.pattern.unwrap_or(PatternName::Random) {
        PatternName::Zipf if !(0.0..=10.0).contains(&exponent) => {
            return Err(("--zipf-exponent", format!("{exponent}; 0 to 10 is possible")));
        }
        PatternName::Zipf => Pattern::Zipf { exponent },
        _ if options.zipf_exponent.is_some() => {
            return Err(("--zipf-exponent", "only with --pattern zipf".to_owned()));
        }
        PatternName::Sequential => Pattern::Sequential,
        PatternName::Random => Pattern::Random,
    };
    // Options that would do nothing are a mistake about what is measured.
    for (option, is_set) in [
        ("--write-zeroes", write_zeroes_percent > 0),
        ("--deallocate", deallocate_percent > 0),
        ("--flush-every", options.flush_every.is_some()),
        ("--fua", options.fua),
    ] {
        if is_set && read_percent == 100 {
            return Err((option, "without effect on a job that only reads (see --read)".into()));
        }
    }
    let sizes = options.block_size.clone().unwrap_or(Sizes(vec![(4096, 1)]));
    let size = |(bytes, weight): (u64, u32)| match bytes {
        1..=MAX_IO_BYTES => Ok((bytes as u32, weight)),
        _ => Err(("--block-size", format!("{bytes} bytes; at most {MAX_IO_BYTES} are possible"))),
    };
    Ok(Workload {
        pattern,
        sizes: sizes.0.into_iter().map(size).collect::<Result<_, _>>()?,
        read_percent,
        write_zeroes_percent,
        deallocate_percent,
        flush_every: options.flush_every,
        fua: options.fua,
    })
}

/// Whether so many I/Os can be in flight.
pub fn check_depth(depth: usize) -> Result<(), String> {
    match depth {
        1..=MAX_DEPTH => Ok(()),
        _ => Err(format!("{depth} I/Os in flight; 1 to {MAX_DEPTH} are possible")),
    }
}

fn logical_block(options: &JobOptions, address: &Address) -> Result<u32, String> {
    match options.logical_block {
        None => Ok(4096),
        Some(_) if !address.has_any_block_size() => Err("the target has its own".to_owned()),
        Some(Bytes(bytes)) => {
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            api::check_block_bytes(bytes).map(|()| bytes)
        }
    }
}

/// The CPUs: those named, or the last ones that this process may run on, because a daemon takes
/// the first ones.
pub fn cpus(
    cores: Option<usize>,
    named: Option<&Cpus>,
) -> Result<Vec<usize>, (&'static str, String)> {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    let allowed: Vec<usize> = allowed.into_iter().map(|core| core.id).collect();
    match (cores, named) {
        (Some(_), Some(_)) => Err(("--cores", "not together with --cpus".to_owned())),
        (cores, None) => {
            let count = cores.unwrap_or(1);
            let most = allowed.len().min(MAX_CORES);
            if !(1..=most).contains(&count) {
                return Err(("--cores", format!("{count}; 1 to {most} are possible here")));
            }
            Ok(allowed[allowed.len() - count..].to_vec())
        }
        (None, Some(Cpus(cpus))) => {
            let wrong = |(at, cpu): (usize, &usize)| {
                at >= MAX_CORES || !allowed.contains(cpu) || cpus[..at].contains(cpu)
            };
            match cpus.iter().enumerate().find(|one| wrong(*one)) {
                Some((_, cpu)) => {
                    let reason = format!("CPU {cpu} is not one of {allowed:?}, or named twice");
                    Err(("--cpus", reason))
                }
                None => Ok(cpus.clone()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::options::{Arguments, Command};

    fn job(line: &str) -> Result<Job, String> {
        let line = format!("forebay-perf run {line}");
        let arguments = Arguments::try_parse_from(line.split_whitespace())
            .map_err(|error| error.to_string())?;
        let Command::Run(run) = arguments.command else { panic!("{line}") };
        let options = run.jobs().map_err(|error| error.to_string())?;
        Job::new(&options[0]).map_err(|error| error.to_string())
    }

    #[test]
    fn options_that_cannot_be_are_named() {
        for (line, option) in [
            ("tape:1", "target"),
            ("null:1G --depth 0", "--depth"),
            ("null:1G --depth 1024", "--depth"),
            ("null:1G --read 101", "--read"),
            ("null:1G --read 0 --write-zeroes 60 --deallocate 60", "--deallocate"),
            ("null:1G --write-zeroes 5", "--write-zeroes"),
            ("null:1G --fua", "--fua"),
            ("null:1G --flush-every 3", "--flush-every"),
            ("null:1G --read 0 --flush-every 0", "--flush-every"),
            ("null:1G --zipf-exponent 1", "--zipf-exponent"),
            ("null:1G --pattern zipf --zipf-exponent NaN", "--zipf-exponent"),
            ("null:1G --block-size 5M", "--block-size"),
            ("null:1G --block-size 4k:x", "--block-size"),
            ("null:1G --runtime 0", "--runtime"),
            ("null:1G --rate 0", "--rate"),
            ("null:1G --cores 0", "--cores"),
            ("null:1G --cores 100000", "--cores"),
            ("null:1G --cpus 100000", "--cpus"),
            ("null:1G --cpus 0,0", "--cpus"),
            ("null:1G --cpus 0 --cores 1", "--cores"),
            ("null:1G --logical-block 1024", "--logical-block"),
            ("pcie:0000:01:00.0 --logical-block 512", "--logical-block"),
            ("null:1G --read 0 --verify x.log", "--verify"),
            ("null:1G --frobnicate", "--frobnicate"),
        ] {
            let error = job(line).expect_err(line);
            assert!(error.contains(option), "{line}: {error}");
        }
    }

    #[test]
    fn only_null_and_ram_are_written_to_without_consent() {
        for target in ["file:/tmp/x", "pcie:0000:01:00.0"] {
            assert!(job(target).is_ok());
            let error = job(&format!("{target} --read 99")).unwrap_err();
            assert!(error.contains(target), "{error}");
            assert!(job(&format!("{target} --read 99 --force")).is_err(), "that lets it be taken");
            assert!(job(&format!("{target} --read 99 --destroy-data")).is_ok());
        }
        assert!(job("ram:1M --read 0").is_ok() && job("null:1M --read 0").is_ok());
    }

    #[test]
    fn blocks_are_checked_against_the_target() {
        let geometry = |block_bytes, deallocate_reads_zeroes| Geometry {
            block_bytes,
            block_count: 1000,
            volatile_write_cache: false,
            deallocate_reads_zeroes,
            atomic_write_blocks: 1,
            preferred_write_blocks: 1,
        };
        let blocks = |line: &str, zeroes| {
            let blocks = job(&format!("ram:1M {line}")).unwrap().blocks(&geometry(4096, zeroes));
            blocks.map_err(|error| error.to_string())
        };
        assert_eq!(blocks("", true), Ok(0..1000));
        assert_eq!(blocks("--offset 4k --size 8k", true), Ok(1..3));
        for (line, option) in [
            ("--block-size 512", "--block-size"),
            ("--block-size 4k,6k", "--block-size"),
            ("--offset 512", "--offset"),
            ("--offset 4000k", "--offset"),
            ("--offset 8k --size 4000k", "--size"),
            ("--size 6k", "--size"),
            ("--size 4k --block-size 8k", "--size"),
        ] {
            let error = blocks(line, true).expect_err(line);
            assert!(error.contains(option), "{line}: {error}");
        }
        let line = "--read 0 --deallocate 5 --verify x";
        assert!(blocks(line, true).is_ok());
        assert!(blocks(line, false).unwrap_err().contains("--deallocate"));
    }
}
