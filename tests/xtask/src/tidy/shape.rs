//! Sizes of files, lines and functions, and the opening words of a crate.

use super::unsafety::is_crate_root;
use super::{Finding, Source};
use crate::tree::Tree;

/// Longest file, in lines.
const FILE_LINES_MAX: usize = 800;
/// Longest line of Rust, in characters.
const LINE_CHARS_MAX: usize = 100;
/// Longest function, in lines. About 70 is the aim; beyond this one it is no longer "about".
const FUNCTION_LINES_MAX: usize = 100;

/// Files written by a program, to which sizes do not apply.
const GENERATED: &[&str] = &["driver/rdma-sys/src/bindings"];

/// Endings of files whose length counts.
const COUNTED: &[&str] = &[".rs", ".sh", ".md", ".py"];

/// Checks sizes, and that each crate says what it is.
pub fn check(tree: &Tree, sources: &[Source<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in &tree.files {
        let lines = text.lines().count();
        let counts = COUNTED.iter().any(|end| path.ends_with(end)) && !is_generated(path);
        if counts && lines > FILE_LINES_MAX {
            let what = format!("{lines} lines");
            findings.push(Finding::new(path, 1, what, "files have at most 800 lines"));
        }
    }
    for source in sources.iter().filter(|source| !is_generated(source.path)) {
        findings.extend(check_source(source));
    }
    findings
}

fn check_source(source: &Source<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let chars = line.chars().count();
        if chars > LINE_CHARS_MAX {
            let what = format!("{chars} columns");
            let why = "lines have at most 100 columns";
            findings.push(Finding::new(source.path, index + 1, what, why));
        }
    }
    for (name, line, lines) in &source.functions {
        if *lines > FUNCTION_LINES_MAX {
            let what = format!("fn {name} has {lines} lines");
            let why = "functions have about 70 lines, 100 at the very most";
            findings.push(Finding::new(source.path, *line, what, why));
        }
    }
    if is_crate_root(source.path) && !source.text.starts_with("//!") {
        let why = "a crate begins by saying what it is, how it works, what it does not do";
        findings.push(Finding::new(source.path, 1, "does not begin with //!", why));
    }
    findings
}

fn is_generated(path: &str) -> bool {
    GENERATED.iter().any(|prefix| path.starts_with(prefix))
}
