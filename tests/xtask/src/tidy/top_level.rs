//! What may stand in the root of the tree.

use super::Finding;
use crate::tree::Tree;

const ALLOWED: &[&str] = &[
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "build",
    "ctl",
    "docs",
    "driver",
    "initiator",
    "qemu-testbed",
    "target",
    "tests",
];

/// Checks the names in the root: the rooms, the files that every project has, dot-files.
pub fn check(tree: &Tree) -> Vec<Finding> {
    tree.top_level
        .iter()
        .filter(|name| {
            let name = name.as_str();
            !ALLOWED.contains(&name) && !name.starts_with('.') && !name.starts_with("LICENSE")
        })
        .map(|name| Finding::new(name, 1, "does not belong in the root", "the top level is fixed"))
        .collect()
}
