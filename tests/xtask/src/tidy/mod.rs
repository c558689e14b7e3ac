//! The checks, and what they report.

mod arrows;
mod hazard;
mod manifests;
mod promises;
mod shape;
mod source;
#[cfg(test)]
mod tests;
mod top_level;
mod unsafety;
mod words;

use std::fmt;

use crate::tree::Tree;
use source::Source;

/// Something that breaks a rule of the house.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Path from the root of the tree.
    pub path: String,
    /// 1-based line; 1 when the finding is about the whole file.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// The rule that it breaks.
    pub why: &'static str,
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>, why: &'static str) -> Finding {
        Finding { path: path.to_owned(), line, what: what.into(), why }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {} ({})", self.path, self.line, self.what, self.why)
    }
}

/// The outcome of all checks.
#[derive(Debug, Default)]
pub struct Report {
    /// Sorted by path and line.
    pub findings: Vec<Finding>,
    /// Crate folder and number of `unsafe` in it, for crates that have any.
    pub unsafe_counts: Vec<(String, usize)>,
}

/// Runs every check.
pub fn check(tree: &Tree) -> Report {
    let mut report = Report::default();
    let mut sources = Vec::new();
    for (path, text) in tree.rust_files("") {
        match Source::parse(path, text) {
            Ok(source) => sources.push(source),
            Err(finding) => report.findings.push(finding),
        }
    }
    report.findings.extend(top_level::check(tree));
    report.findings.extend(hazard::check(tree));
    report.findings.extend(manifests::check(tree));
    report.findings.extend(arrows::check(tree));
    report.findings.extend(shape::check(tree, &sources));
    report.findings.extend(words::check(&sources));
    report.findings.extend(promises::check(tree, &sources));
    let (counts, findings) = unsafety::check(tree, &sources);
    report.unsafe_counts = counts;
    report.findings.extend(findings);
    report.findings.sort();
    report
}

/// The line on which `needle` first stands in `text`; 1 when it does not.
fn line_of(text: &str, needle: &str) -> usize {
    text.lines().position(|line| line.contains(needle)).map_or(1, |index| index + 1)
}
