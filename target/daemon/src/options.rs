//! The command line of `forebay-target`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use api::Endpoint;
use clap::Parser;
use dma::Arena;
use reactor::IdlePolicy;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// A block storage target in user space: exports SSDs and other block devices over NVMe/RDMA
/// and NVMe/TCP.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Options {
    /// How many CPUs to use: the first ones this process may run on
    #[arg(long, value_name = "COUNT", default_value_t = 1, conflicts_with = "cpus")]
    pub(crate) cores: usize,

    /// Which CPUs to use, such as 2,3,8
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) cpus: Vec<usize>,

    /// Address that hosts connect to, over RDMA unless it begins with tcp://, on port 4420 unless
    /// another is given; may be repeated
    #[arg(long, value_name = "[tcp://]ADDR[:PORT]")]
    pub(crate) listen: Vec<Endpoint>,

    /// DMA memory in MiB, from hugepages
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    pub(crate) memory: usize,

    /// Take ordinary memory instead of hugepages: for machines where no SSD is driven by Forebay
    #[arg(long)]
    pub(crate) no_hugepages: bool,

    /// Sleep this long when there was nothing to do for a while, instead of polling on; saves CPU
    /// time and costs latency
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) idle_sleep: Option<u64>,

    /// Control socket
    #[arg(long, env = "FOREBAY_SOCKET", default_value = api::DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,

    /// Where exports are kept over restarts
    #[arg(long, value_name = "DIR", default_value = "/var/lib/forebay")]
    pub(crate) state_dir: PathBuf,

    /// What to log: error, warn, info, debug, or as tracing's `EnvFilter` has it
    #[arg(long, env = "FOREBAY_LOG", default_value = "info")]
    pub(crate) log: String,
}

impl Options {
    /// The CPUs for the reactors.
    ///
    /// # Errors
    /// More are wanted than there are, or one that is not there, or one twice.
    pub(crate) fn cpus(&self) -> anyhow::Result<Vec<usize>> {
        let allowed = core_affinity::get_core_ids().context("reading the CPUs of this process")?;
        let allowed: Vec<usize> = allowed.into_iter().map(|core| core.id).collect();
        if self.cpus.is_empty() {
            anyhow::ensure!(
                (1..=allowed.len()).contains(&self.cores),
                "--cores {}: this process may run on {} CPUs",
                self.cores,
                allowed.len()
            );
            return Ok(allowed[..self.cores].to_vec());
        }
        for (at, cpu) in self.cpus.iter().enumerate() {
            anyhow::ensure!(
                allowed.contains(cpu) && !self.cpus[..at].contains(cpu),
                "--cpus: CPU {cpu} is not one of {allowed:?}, or named twice"
            );
        }
        Ok(self.cpus.clone())
    }

    /// The DMA memory.
    ///
    /// # Errors
    /// It is not to be had; the error says what to do.
    pub(crate) fn arena(&self) -> anyhow::Result<&'static Arena> {
        let bytes = self.memory.checked_mul(1 << 20).context("--memory is too large")?;
        if self.no_hugepages {
            return Ok(Arena::plain_pages(bytes)?);
        }
        Arena::hugepages(bytes).with_context(|| {
            format!("taking {} MiB of DMA memory (--memory; see also --no-hugepages)", self.memory)
        })
    }

    pub(crate) fn idle_policy(&self) -> IdlePolicy {
        match self.idle_sleep {
            None => IdlePolicy::default(),
            Some(us) => IdlePolicy {
                yield_turns: 10_000,
                nap: Duration::from_micros(us),
                ..IdlePolicy::default()
            },
        }
    }
}

/// A filter of what is logged, from a level or from more in tracing's notation.
///
/// Unless that says otherwise, `vfio-ioctls` logs nothing: it returns all its errors, and logs two
/// of them besides, which say that the kernel was faster than it when an SSD was unplugged
/// (decision 0008).
pub(crate) fn log_filter(text: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(format!("vfio_ioctls=off,{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nap_of_no_time_is_refused() {
        assert!(Options::try_parse_from(["forebay-target", "--idle-sleep", "0"]).is_err());
        assert!(Options::try_parse_from(["forebay-target", "--idle-sleep", "1"]).is_ok());
    }

    #[test]
    fn the_log_leaves_out_what_is_expected_of_an_unplugged_ssd() {
        assert_eq!(log_filter("info").unwrap().to_string(), "vfio_ioctls=off,info");
        let asked_for = log_filter("info,vfio_ioctls=error").unwrap().to_string();
        assert_eq!(asked_for, "vfio_ioctls=error,info");
        assert!(log_filter("a=b=c").is_err());
    }

    #[test]
    fn cpus_that_are_not_there_are_refused() {
        let options = |args: &[&str]| Options::parse_from([&["forebay-target"], args].concat());
        assert_eq!(options(&[]).cpus().unwrap().len(), 1);
        assert!(options(&["--cores", "0"]).cpus().is_err());
        assert!(options(&["--cores", "10000"]).cpus().is_err());
        assert!(options(&["--cpus", "10000"]).cpus().is_err());
        assert!(options(&["--cpus", "0,0"]).cpus().is_err());
    }
}
