//! `forebay`: the command line of the daemon.
//!
//! `arguments` says what can be typed, `run` turns it into calls on the control socket, `tables`
//! shows results to people; those of pools, volumes and snapshots are in files of their own. With
//! `--json` a result is printed as it came, for scripts, and an error as an object on standard
//! error.
//!
//! Exit codes: 0 success; 1 the daemon refused or failed; 2 wrong usage; 3 the daemon cannot be
//! reached. It keeps no state and never touches a device itself.
#![forbid(unsafe_code)]

mod arguments;
mod error;
mod run;
mod run_volumes;
mod tables;
mod volume_arguments;
mod volume_tables;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

use arguments::Arguments;
use error::CliError;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = io::stdout().lock();
    match run::run(&arguments, &mut out).and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has enough, as in `forebay stats | head`.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // Nothing is left to do when standard error is gone too.
            let report = if arguments.json { error.report_json() } else { error.report() };
            let _ = writeln!(io::stderr(), "{report}");
            ExitCode::from(error.exit_code())
        }
    }
}
