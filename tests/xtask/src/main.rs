//! Checks of the house that no compiler makes: `cargo xtask tidy`.
//!
//! The tree is read once into memory (`tree`), every check in `tidy/` looks at that and returns
//! findings, and each finding is printed as `path:line: what (why)`. One finding fails the run.
//!
//! `cargo xtask sim` runs the simulator of `tests/sim` in release, `cargo xtask bench` the bench of
//! volumes, with the arguments given.
//!
//! It does not format, build or test anything else: `tests/run` calls the tools that do.
#![forbid(unsafe_code)]

mod tidy;
mod tree;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

const USAGE: &str = "usage: cargo xtask tidy [ROOT]
       cargo xtask sim [--seeds N] [--help]
       cargo xtask bench [--quick] [--json] [--only PART,...]";

/// What is built in release and run, with the arguments given. They are programs of their own, so
/// that the checks build quickly.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("sim", &["--package", "sim"]),
    ("bench", &["--package", "volume", "--example", "volume_bench"]),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let first = std::env::args().nth(1);
    if let Some((_, target)) = PROGRAMS.iter().find(|(name, _)| first.as_deref() == Some(name)) {
        return run(target, arguments.skip(1));
    }
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (Some("tidy"), root, None) => match run_tidy(root.map(PathBuf::from)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("xtask: {error:#}");
                ExitCode::from(2)
            }
        },
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Builds a program in release and runs it.
fn run(target: &[&str], arguments: impl Iterator<Item = String>) -> ExitCode {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["run", "--quiet", "--release"]).args(target).arg("--").args(arguments);
    match command.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: cargo does not run: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs every check over the tree at `root` (by default the workspace that this crate is part of)
/// and prints the outcome. True when nothing was found.
fn run_tidy(root: Option<PathBuf>) -> Result<bool> {
    let root = root.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.."));
    let root = root.canonicalize().with_context(|| format!("no such tree: {}", root.display()))?;
    let tree = tree::Tree::read(&root)?;
    let report = tidy::check(&tree);
    for (crate_folder, count) in &report.unsafe_counts {
        println!("unsafe: {count:4} in {crate_folder}");
    }
    for finding in &report.findings {
        println!("{finding}");
    }
    let (files, findings) = (tree.files.len(), report.findings.len());
    println!("tidy: {files} files, {findings} findings");
    Ok(findings == 0)
}
