//! Every promise names the test that keeps it.

use std::collections::HashSet;

use super::{Finding, Source};
use crate::tree::Tree;

const PROMISES: &str = "docs/promises.md";
const WHY_NUMBERS: &str = "others refer to a promise by its number";
const WHY: &str = "a promise without a test that exists is only a hope";

/// Checks each row of the tables in `docs/promises.md`, once that file exists.
///
/// A row names tests in backquotes: `crate::module::test_name`, or
/// `qemu-testbed/scenarios/NAME.sh`. At least one is there, and all that are there exist. A row's
/// number is no other row's.
pub fn check(tree: &Tree, sources: &[Source<'_>]) -> Vec<Finding> {
    let Some(text) = tree.files.get(PROMISES) else { return Vec::new() };
    let lines: Vec<&str> = text.lines().collect();
    let mut findings = Vec::new();
    let mut numbers = HashSet::new();
    for (index, line) in lines.iter().enumerate() {
        let header = lines.get(index + 1).is_some_and(|next| is_rule(next));
        if !line.trim_start().starts_with('|') || is_rule(line) || header {
            continue;
        }
        let number = line.split('|').nth(1).unwrap_or_default().trim();
        if !numbers.insert(number) {
            let what = format!("number {number} is given twice");
            findings.push(Finding::new(PROMISES, index + 1, what, WHY_NUMBERS));
        }
        let mut named = 0;
        for reference in line.split('`').skip(1).step_by(2) {
            let exists = if reference.starts_with("qemu-testbed/") {
                tree.files.contains_key(reference)
            } else if reference.contains("::") {
                test_exists(tree, sources, reference)
            } else {
                continue;
            };
            named += 1;
            if !exists {
                let what = format!("no such test: {reference}");
                findings.push(Finding::new(PROMISES, index + 1, what, WHY));
            }
        }
        if named == 0 {
            findings.push(Finding::new(PROMISES, index + 1, "the row names no test", WHY));
        }
    }
    findings
}

/// Whether the line is the one between a table's header and its rows.
fn is_rule(line: &str) -> bool {
    let line = line.trim();
    line.starts_with('|') && line.contains('-') && line.chars().all(|c| "|-: ".contains(c))
}

/// Whether `crate::modules::function` is in the sources: the crate, a file in whose path or
/// `mod` items all the modules stand, and a function of that name in it (in a macro too).
fn test_exists(tree: &Tree, sources: &[Source<'_>], reference: &str) -> bool {
    let parts: Vec<&str> = reference.split("::").collect();
    let [name, modules @ .., function] = parts.as_slice() else { return false };
    let Some(folder) = tree.crates().find(|f| f.rsplit('/').next() == Some(*name)) else {
        return false;
    };
    let prefix = format!("{folder}/");
    sources.iter().filter(|source| source.path.starts_with(&prefix)).any(|source| {
        let follows = |keyword: &str, name: &str| {
            source.words.windows(2).any(|pair| pair[0].0 == keyword && pair[1].0 == name)
        };
        let in_path = |module: &str| source.path.split(['/', '.']).any(|part| part == module);
        follows("fn", function) && modules.iter().all(|m| in_path(m) || follows("mod", m))
    })
}
