//! What can be typed, or written into a file of jobs.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Deserialize;

use crate::error::PerfError;
use crate::text::{self, Bytes, Cpus, Sizes, Time};

/// Puts load on a block device, measures it, and verifies what it holds.
#[derive(Debug, Parser)]
#[command(
    name = "forebay-perf",
    version,
    after_help = "Exit codes: 0 success; 1 an I/O failed, or a block is not what was written; \
                  2 nothing was run: wrong usage, or a target or log that cannot be had."
)]
pub struct Arguments {
    /// Print JSON for scripts instead of tables
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put load on a target, or run the jobs of a file
    #[command(after_help = "Targets: null:SIZE, ram:SIZE, file:PATH (a file or a block device of \
                            the kernel), pcie:BDF[/NSID] (an SSD, through our own driver), \
                            rdma:// or tcp://ADDR[:PORT]/NQN[/NSID] (a target, over NVMe/RDMA or \
                            NVMe/TCP).")]
    Run(Box<RunArguments>),
    /// Read back everything that an acknowledgement log knows of, and check it
    Verify(VerifyArguments),
    /// Print completions for a shell
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page
    Man,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// A target, or a file of jobs whose name ends in .toml. Options given here go before those of
    /// the file
    #[arg(value_name = "TARGET|JOBS.toml")]
    pub what: String,
    /// The options.
    #[command(flatten)]
    pub options: JobOptions,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// The acknowledgement log, which `run --verify` has written
    pub log: PathBuf,
    /// The target
    pub target: String,
    /// Bytes of a read
    #[arg(long, default_value = "128k", value_name = "SIZE")]
    pub block_size: Bytes,
    /// Reads in flight on each core
    #[arg(long, default_value_t = 32, value_name = "COUNT")]
    pub depth: usize,
    /// How many CPUs to use: the last ones this process may run on
    #[arg(long, value_name = "COUNT", conflicts_with = "cpus")]
    pub cores: Option<usize>,
    /// Which CPUs to use, such as 2,3,8
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<Cpus>,
    /// Take the SSD although it bears data, or vfio-pci has it already
    #[arg(long)]
    pub force: bool,
    /// Who we are to a target on the fabric [default: /etc/nvme/hostnqn, or nobody in particular]
    #[arg(long, value_name = "NQN")]
    pub host_nqn: Option<String>,
    /// Digests of headers on the fabric
    #[arg(long)]
    pub hdr_digest: bool,
    /// Digests of data on the fabric
    #[arg(long)]
    pub data_digest: bool,
}

/// Where I/Os go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatternName {
    /// One behind the other
    Sequential,
    /// Anywhere
    Random,
    /// Some places far more often than others
    Zipf,
}

/// Options of a job: on the command line and, by the same names, in a file of jobs.
#[derive(Clone, Debug, Default, PartialEq, Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct JobOptions {
    /// Name of the job in what is printed
    #[arg(long)]
    pub name: Option<String>,
    /// The target, in a file of jobs only.
    #[arg(skip)]
    pub target: Option<String>,
    /// Where I/Os go [default: random]
    #[arg(long)]
    pub pattern: Option<PatternName>,
    /// Exponent of the Zipf distribution [default: 0.99]
    #[arg(long, value_name = "NUMBER")]
    pub zipf_exponent: Option<f64>,
    /// Of a hundred I/Os, so many are reads; the others write [default: 100]
    #[arg(long, value_name = "PERCENT")]
    pub read: Option<u32>,
    /// Of a hundred I/Os that are no reads, so many write zeroes [default: 0]
    #[arg(long, value_name = "PERCENT")]
    pub write_zeroes: Option<u32>,
    /// Of a hundred I/Os that are no reads, so many deallocate [default: 0]
    #[arg(long, value_name = "PERCENT")]
    pub deallocate: Option<u32>,
    /// Flush after so many I/Os that change blocks [default: never]
    #[arg(long, value_name = "COUNT")]
    pub flush_every: Option<u32>,
    /// Writes are on stable media when they complete
    #[arg(long)]
    pub fua: bool,
    /// Bytes of an I/O, or several sizes with weights: 4k:80,64k:20 [default: 4k]
    #[arg(long, value_name = "SIZE[:WEIGHT],…")]
    #[serde(deserialize_with = "text::deserialize")]
    pub block_size: Option<Sizes>,
    /// I/Os in flight on each core [default: 32]
    #[arg(long, value_name = "COUNT")]
    pub depth: Option<usize>,
    /// How many CPUs to use: the last ones this process may run on [default: 1]
    #[arg(long, value_name = "COUNT", conflicts_with = "cpus")]
    pub cores: Option<usize>,
    /// Which CPUs to use, such as 2,3,8
    #[arg(long, value_name = "LIST")]
    #[serde(deserialize_with = "text::deserialize")]
    pub cpus: Option<Cpus>,
    /// How long to measure: 10s, 500ms, 1h [default: 10s, unless --bytes is given]
    #[arg(long, value_name = "TIME")]
    #[serde(deserialize_with = "text::deserialize")]
    pub runtime: Option<Time>,
    /// How many bytes to move
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "text::deserialize")]
    pub bytes: Option<Bytes>,
    /// How long to run before measuring begins [default: 0]
    #[arg(long, value_name = "TIME")]
    #[serde(deserialize_with = "text::deserialize")]
    pub warm_up: Option<Time>,
    /// I/Os a second, on all cores together; latency then counts from when an I/O was due
    /// [default: as fast as the target completes them]
    #[arg(long, value_name = "IOPS")]
    pub rate: Option<u64>,
    /// Where the range of the target begins that is used [default: 0]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "text::deserialize")]
    pub offset: Option<Bytes>,
    /// How long that range is [default: to the end]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "text::deserialize")]
    pub size: Option<Bytes>,
    /// Size of a logical block of null, ram and file targets: 512 or 4096 [default: 4096]
    #[arg(long, value_name = "SIZE")]
    #[serde(deserialize_with = "text::deserialize")]
    pub logical_block: Option<Bytes>,
    /// What the sequence of I/Os, and their data, follow from [default: another one each time]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Write blocks that can be told apart, keep a log of what was acknowledged in this file, check
    /// what is read against it, and read everything back at the end
    #[arg(long, value_name = "LOG")]
    pub verify: Option<PathBuf>,
    /// What the target holds may be lost: needed for everything but reads, unless it is null or ram
    #[arg(long)]
    pub destroy_data: bool,
    /// Take the SSD although it bears data, or vfio-pci has it already
    #[arg(long)]
    pub force: bool,
    /// Who we are to a target on the fabric [default: /etc/nvme/hostnqn, or nobody in particular]
    #[arg(long, value_name = "NQN")]
    pub host_nqn: Option<String>,
    /// Digests of headers on the fabric
    #[arg(long)]
    pub hdr_digest: bool,
    /// Digests of data on the fabric
    #[arg(long)]
    pub data_digest: bool,
    /// Draw latency and throughput into this SVG file
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

/// A file of jobs: what they have in common, and each of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobsFile {
    #[serde(default)]
    defaults: JobOptions,
    job: Vec<JobOptions>,
}

impl JobOptions {
    /// These options, and where they say nothing those of `other`.
    fn or(&self, other: &Self) -> Self {
        // CPUs are said by number or by name, and either replaces both.
        let has_cores = self.cores.is_some() || self.cpus.is_some();
        let cores = if has_cores { self } else { other };
        Self {
            name: self.name.clone().or_else(|| other.name.clone()),
            target: self.target.clone().or_else(|| other.target.clone()),
            pattern: self.pattern.or(other.pattern),
            zipf_exponent: self.zipf_exponent.or(other.zipf_exponent),
            read: self.read.or(other.read),
            write_zeroes: self.write_zeroes.or(other.write_zeroes),
            deallocate: self.deallocate.or(other.deallocate),
            flush_every: self.flush_every.or(other.flush_every),
            fua: self.fua || other.fua,
            block_size: self.block_size.clone().or_else(|| other.block_size.clone()),
            depth: self.depth.or(other.depth),
            cores: cores.cores,
            cpus: cores.cpus.clone(),
            runtime: self.runtime.or(other.runtime),
            bytes: self.bytes.or(other.bytes),
            warm_up: self.warm_up.or(other.warm_up),
            rate: self.rate.or(other.rate),
            offset: self.offset.or(other.offset),
            size: self.size.or(other.size),
            logical_block: self.logical_block.or(other.logical_block),
            seed: self.seed.or(other.seed),
            verify: self.verify.clone().or_else(|| other.verify.clone()),
            destroy_data: self.destroy_data || other.destroy_data,
            force: self.force || other.force,
            host_nqn: self.host_nqn.clone().or_else(|| other.host_nqn.clone()),
            hdr_digest: self.hdr_digest || other.hdr_digest,
            data_digest: self.data_digest || other.data_digest,
            plot: self.plot.clone().or_else(|| other.plot.clone()),
        }
    }
}

impl RunArguments {
    /// The options of each job.
    ///
    /// # Errors
    /// The file cannot be read, or not be understood: the error names line and key.
    pub fn jobs(&self) -> Result<Vec<JobOptions>, PerfError> {
        let path = Path::new(&self.what);
        if path.extension().is_none_or(|extension| extension != "toml") {
            let target = Some(self.what.clone());
            return Ok(vec![JobOptions { target, ..self.options.clone() }]);
        }
        let text = std::fs::read_to_string(path).map_err(|source| PerfError::File {
            action: "reading",
            path: path.to_owned(),
            source,
        })?;
        let failed = |reason: String| PerfError::Jobs { path: path.to_owned(), reason };
        let file = parse(&text).map_err(|error| failed(error.to_string()))?;
        let jobs = file.job.iter().zip(1..).map(|(job, number)| {
            let job = self.options.or(job).or(&file.defaults);
            JobOptions { name: job.name.clone().or_else(|| Some(format!("job{number}"))), ..job }
        });
        let jobs: Vec<_> = jobs.collect();
        shared_file(&jobs).map_or(Ok(jobs), |reason| Err(failed(reason)))
    }
}

fn parse(text: &str) -> Result<JobsFile, toml::de::Error> {
    toml::from_str(text)
}

/// Two jobs that draw into one file: the second would replace what the first has drawn.
fn shared_file(jobs: &[JobOptions]) -> Option<String> {
    let mut plots: Vec<_> = jobs.iter().filter_map(|job| job.plot.as_ref()).collect();
    plots.sort();
    let twice = plots.windows(2).find(|two| two[0] == two[1])?[0];
    Some(format!("two jobs have plot = {:?}", twice.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_file_of_jobs_has_the_options_by_the_names_of_the_flags() {
        let text = "[defaults]\ntarget = 'null:1G'\nruntime = 2\ncpus = '0,1'\n\
                    [[job]]\nname = 'a'\nblock-size = '4k:80,64k:20'\ncores = 1\n\
                    [[job]]\nruntime = '500ms'\nzipf-exponent = 1.2\npattern = 'zipf'\n";
        let file = parse(text).unwrap();
        let jobs: Vec<_> = file.job.iter().map(|job| job.or(&file.defaults)).collect();
        assert_eq!(jobs[0].runtime, Some("2s".parse().unwrap()));
        assert_eq!(jobs[0].block_size, Some("4k:80,64k:20".parse().unwrap()));
        assert_eq!((jobs[0].cores, &jobs[0].cpus), (Some(1), &None), "either replaces both");
        assert_eq!(jobs[1].runtime, Some("500ms".parse().unwrap()));
        assert_eq!(jobs[1].cpus, Some(Cpus(vec![0, 1])));
        // Each flag is an option of a file, and the other way round.
        let command = Arguments::command();
        let run = command.find_subcommand("run").unwrap();
        let known = parse("[[job]]\nno-such-option = 1").unwrap_err().to_string();
        for flag in run.get_arguments().filter_map(clap::Arg::get_long) {
            let own = ["json", "help", "version"].contains(&flag);
            assert!(own || known.contains(&format!("`{flag}`")), "{flag}: {known}");
        }
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named_with_its_line_and_key() {
        for (text, line, key) in [
            ("[[job]]\ntarget = 'null:1G'\nqueue-depth = 3", "line 3", "queue-depth"),
            ("[defaults]\nblock-size = '4x'\n[[job]]", "line 2", "block-size"),
            ("[[job]]\ndepth = -1", "line 2", "depth"),
            ("[[job]]\npattern = 'odd'", "line 2", "pattern"),
            ("[[jobs]]\n", "line 1", "jobs"),
            ("[[job]]\nread = ", "line 2", "read"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(line) && error.contains(key), "{text}: {error}");
        }
        assert!(parse("").unwrap_err().to_string().contains("`job`"));
    }
}
