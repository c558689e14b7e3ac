//! Words that the house does not use in names, because it has another for the same thing.

use super::{Finding, Source};

/// The word, and the one to use.
const FORBIDDEN: &[(&str, &str)] = &[
    ("client", "host"),
    ("clients", "hosts"),
    ("server", "controller, subsystem or target"),
    ("servers", "controllers, subsystems or targets"),
    ("qpair", "IoQueuePair, Queue or RdmaQp"),
    ("qpairs", "IoQueuePair, Queue or RdmaQp"),
    ("ctrlr", "NvmeDevice or Controller"),
    ("ctrlrs", "NvmeDevice or Controller"),
    ("lvol", "volume"),
    ("lvols", "volume"),
];

/// Folders whose names follow the glossary.
const CHECKED: &[&str] = &["driver/", "target/"];

/// Names there are C's, not ours.
const FOREIGN: &[&str] = &["driver/rdma-sys/"];

/// Beginnings of C's names where ours use them.
const FOREIGN_NAMES: &[&str] = &["IBV_", "ibv_", "RDMA_", "rdma_"];

const WHY: &str = "one word, one meaning: docs/glossary.md";

/// Checks every identifier, word by word: `ctrlr_id` and `CtrlrId` are found, `observer` is not.
pub fn check(sources: &[Source<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        let starts = |prefixes: &[&str]| prefixes.iter().any(|p| source.path.starts_with(p));
        if !starts(CHECKED) || starts(FOREIGN) {
            continue;
        }
        for (identifier, line) in &source.words {
            if FOREIGN_NAMES.iter().any(|prefix| identifier.starts_with(prefix)) {
                continue;
            }
            for word in split(identifier) {
                if let Some((_, instead)) = FORBIDDEN.iter().find(|(bad, _)| *bad == word) {
                    let what = format!("{identifier}: say {instead}");
                    findings.push(Finding::new(source.path, *line, what, WHY));
                }
            }
        }
    }
    findings
}

/// The words of an identifier in lower case, split at underscores and capitals.
fn split(identifier: &str) -> Vec<String> {
    let mut words = Vec::new();
    for part in identifier.split('_').filter(|part| !part.is_empty()) {
        let all_capitals = !part.chars().any(char::is_lowercase);
        let mut word = String::new();
        for c in part.chars() {
            if c.is_uppercase() && !all_capitals && !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            word.extend(c.to_lowercase());
        }
        words.push(word);
    }
    words
}
