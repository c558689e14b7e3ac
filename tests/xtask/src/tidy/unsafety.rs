//! Where unsafe code may live.

use super::{Finding, Source};
use crate::tree::Tree;

/// The only crates that may contain unsafe code.
const UNSAFE_CRATES: &[&str] = &[
    "driver/dma",
    "driver/vfio",
    "driver/verbs",
    "driver/uring",
    "driver/sockets",
    "driver/rdma-sys",
];

const WHY: &str = "unsafe code lives in driver/{dma,vfio,verbs,uring,sockets,rdma-sys} only";

/// Counts `unsafe` per crate and reports it where it may not be. Every crate root elsewhere
/// must forbid it, because the workspace lint alone can be lowered again further down.
pub fn check(tree: &Tree, sources: &[Source<'_>]) -> (Vec<(String, usize)>, Vec<Finding>) {
    let mut counts = Vec::new();
    let mut findings = Vec::new();
    for folder in tree.crates() {
        let prefix = format!("{folder}/");
        let inside = sources.iter().filter(|source| source.path.starts_with(&prefix));
        let mut count = 0;
        for source in inside {
            let lines: Vec<usize> =
                source.words.iter().filter(|(word, _)| word == "unsafe").map(|w| w.1).collect();
            count += lines.len();
            if UNSAFE_CRATES.contains(&folder) {
                continue;
            }
            findings.extend(lines.iter().map(|&l| Finding::new(source.path, l, "unsafe", WHY)));
            findings.extend(source.lowered_unsafe_lint().map(|line| {
                Finding::new(source.path, line, "the lint unsafe_code is lowered", WHY)
            }));
            let forbids = source.inner_attributes.iter().any(|text| text == "forbid(unsafe_code)");
            if is_crate_root(source.path) && !forbids {
                let what = "no #![forbid(unsafe_code)]";
                findings.push(Finding::new(source.path, 1, what, WHY));
            }
        }
        if count > 0 {
            counts.push((folder.to_owned(), count));
        }
    }
    (counts, findings)
}

/// Whether the file is the root of a library or a program (not of a test, example or bench).
pub fn is_crate_root(path: &str) -> bool {
    match path.splitn(3, '/').nth(2) {
        Some("src/lib.rs" | "src/main.rs") => true,
        Some(inside) => inside.strip_prefix("src/bin/").is_some_and(|name| !name.contains('/')),
        None => false,
    }
}
