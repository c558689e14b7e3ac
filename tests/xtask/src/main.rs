//! Checks of the house that no compiler makes: `cargo xtask tidy`; and `cargo xtask bench`, which
//! builds and runs the bench of volumes.
//!
//! The tree is read once into memory (`tree`), every check in `tidy/` looks at that and returns
//! findings, and each finding is printed as `path:line: what (why)`. One finding fails the run.
//!
//! It does not format or test anything: `tests/run` calls the tools that do.
#![forbid(unsafe_code)]

mod tidy;
mod tree;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

const USAGE: &str = "usage: cargo xtask tidy [ROOT]
       cargo xtask bench [--quick] [--json] [--only PART,...]";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if std::env::args().nth(1).as_deref() == Some("bench") {
        return run_bench(arguments.skip(1));
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

/// Builds the bench of volumes in release, and runs it with these arguments.
fn run_bench(arguments: impl Iterator<Item = String>) -> ExitCode {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let example =
        ["run", "--quiet", "--release", "-p", "volume", "--example", "volume_bench", "--"];
    match Command::new(cargo).args(example).args(arguments).status() {
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
