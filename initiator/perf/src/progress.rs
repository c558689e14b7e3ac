//! How far a run is, while it runs: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::report::{show_count, show_rate, total};
use crate::run::Progress;

/// How often a line is printed where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows progress on standard error.
pub struct Display {
    name: String,
    bar: Option<ProgressBar>,
    /// What was shown last, to show what was done since.
    last: (Duration, u64, u64),
    next_line: Duration,
    is_sweep: bool,
}

impl Display {
    /// For a job.
    pub fn new(name: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} % {msg}");
            let bar = ProgressBar::new(1000).with_prefix(name.to_owned());
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let last = (Duration::ZERO, 0, 0);
        Self { name: name.to_owned(), bar, last, next_line: LINE_INTERVAL, is_sweep: false }
    }

    /// Shows it.
    pub fn show(&mut self, progress: &Progress) {
        let Progress { elapsed, warm_up, total: length, counts, total_bytes, .. } = *progress;
        if progress.is_sweep && !self.is_sweep {
            // It counts anew.
            (self.is_sweep, self.last, self.next_line) =
                (true, (Duration::ZERO, 0, 0), LINE_INTERVAL);
        }
        let is_due = self.bar.is_some() || elapsed >= self.next_line;
        if !is_due {
            return;
        }
        self.next_line = elapsed + LINE_INTERVAL;
        let (ios, bytes) = total(&counts);
        let failed = match progress.failures {
            0 => String::new(),
            count => format!(", {count} FAILED"),
        };
        let text = if elapsed < warm_up {
            "warming up".to_owned()
        } else {
            let (before, ios_before, bytes_before) = self.last;
            let seconds = (elapsed - before.max(warm_up).min(elapsed)).as_secs_f64().max(1e-3);
            let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
            let (iops, bytes_per_s) = (rate(ios, ios_before), rate(bytes, bytes_before));
            let what = if self.is_sweep { "reading back: " } else { "" };
            format!("{what}{} IOPS, {}{failed}", show_count(iops), show_rate(bytes_per_s))
        };
        self.last = (elapsed, ios, bytes);
        let of_time = length.map(|length| elapsed.as_secs_f64() / length.as_secs_f64());
        let of_bytes = total_bytes.map(|total| bytes as f64 / total as f64);
        let done = of_time.into_iter().chain(of_bytes).fold(0.0, f64::max).min(1.0);
        match &self.bar {
            Some(bar) => {
                bar.set_position((done * 1000.0) as u64);
                bar.set_message(text);
            }
            None => {
                // Nothing is lost with a line of progress.
                let name = &self.name;
                let _ =
                    writeln!(std::io::stderr(), "{name}: {:.0} s: {text}", elapsed.as_secs_f64());
            }
        }
    }

    /// Takes the bar away.
    pub fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
