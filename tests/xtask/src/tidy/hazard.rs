//! `target/` is a source folder here and Cargo's default build folder: `cargo clean` with the
//! default would delete sources.

use toml::{Table, Value};

use super::{Finding, line_of};
use crate::tree::Tree;

const CONFIG: &str = ".cargo/config.toml";
const WHY: &str = "target/ holds sources, and Cargo must never build or clean there";

/// Checks that nothing builds into `target/` and that git keeps all of it.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for path in &tree.untracked_manifests {
        findings.push(Finding::new(path, 1, "not tracked by git", WHY));
    }
    for path in &tree.build_output {
        findings.push(Finding::new(path, 1, "build output in the source folder", WHY));
    }
    let config = tree.files.get(CONFIG).map_or("", String::as_str);
    let table: Table = config.parse().unwrap_or_default();
    let target_dir = table.get("build").and_then(|build| build.get("target-dir"));
    if target_dir.and_then(Value::as_str) != Some("build") {
        let line = line_of(config, "target-dir");
        findings.push(Finding::new(CONFIG, line, "no build.target-dir = \"build\"", WHY));
    }
    let ignored = tree.files.get(".gitignore").map_or("", String::as_str);
    for (index, line) in ignored.lines().enumerate() {
        let pattern = line.trim().trim_start_matches("**/").trim_start_matches('/');
        if pattern == "target" || pattern.starts_with("target/") {
            findings.push(Finding::new(".gitignore", index + 1, "ignores target/", WHY));
        }
    }
    findings
}
