//! Who may depend on whom.

use toml::{Table, Value};

use super::{Finding, line_of};
use crate::tree::Tree;

/// Every crate, bottom to top. A crate depends only on crates that stand before it.
///
/// The crates of `tests/` come last, so that nothing above them can depend on one; a
/// dev-dependency may, because it never ships.
pub const ORDER: &[&str] = &[
    "driver/rdma-sys",
    "driver/nvme_spec",
    "driver/dma",
    "driver/vfio",
    "driver/verbs",
    "driver/uring",
    "driver/sockets",
    "driver/nvme_tcp",
    "driver/nvme",
    "ctl/api",
    "ctl/cli",
    "target/reactor",
    "initiator/host",
    "target/bdev",
    "target/volume",
    "target/nvmf",
    "target/nvmf_rdma",
    "target/nvmf_tcp",
    "target/daemon",
    "initiator/perf",
    "tests/emulated_nvme",
    "tests/sim",
    "tests/conformance",
    "tests/fuzz_replay",
    "tests/fuzz",
    "tests/xtask",
];

const WHY: &str = "a crate depends only on crates above it in docs/architecture.md";

/// Checks that every crate has its place and that no dependency points upwards.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let root = parse(tree, "Cargo.toml").unwrap_or_default();
    let shared = root.get("workspace").and_then(|workspace| workspace.get("dependencies"));
    let mut findings = Vec::new();
    for folder in tree.crates() {
        let path = format!("{folder}/Cargo.toml");
        let Some(place) = ORDER.iter().position(|name| *name == folder) else {
            let what = format!("{folder} is not in the table of crates");
            findings.push(Finding::new(&path, 1, what, WHY));
            continue;
        };
        // A manifest that does not parse is reported by `manifests`.
        let Some(manifest) = parse(tree, &path) else { continue };
        let text = tree.files.get(&path).map_or("", String::as_str);
        for (section, dependencies) in sections(&manifest) {
            for (key, value) in dependencies {
                let name = package_name(key, value, shared);
                let Some(other) = ORDER.iter().position(|f| f.ends_with(&format!("/{name}")))
                else {
                    continue;
                };
                let for_tests = section == "dev-dependencies" && ORDER[other].starts_with("tests/");
                if other >= place && !for_tests {
                    let what = format!("{folder} depends on {} ({section})", ORDER[other]);
                    findings.push(Finding::new(&path, line_of(text, key), what, WHY));
                }
            }
        }
    }
    findings
}

fn parse(tree: &Tree, path: &str) -> Option<Table> {
    tree.files.get(path)?.parse().ok()
}

/// The dependency tables of a manifest with their names, those below `[target.…]` too.
fn sections(manifest: &Table) -> Vec<(&'static str, &Table)> {
    const KINDS: [&str; 3] = ["dependencies", "build-dependencies", "dev-dependencies"];
    let platforms = manifest.get("target").and_then(Value::as_table);
    let tables = platforms.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    std::iter::once(manifest)
        .chain(tables)
        .flat_map(|table| {
            KINDS.into_iter().filter_map(|kind| Some((kind, table.get(kind)?.as_table()?)))
        })
        .collect()
}

/// The package behind a dependency: renamed here, renamed in the workspace, or called by its name.
fn package_name<'a>(key: &'a str, value: &'a Value, shared: Option<&'a Value>) -> &'a str {
    let renamed = |value: &'a Value| value.get("package").and_then(Value::as_str);
    renamed(value)
        .or_else(|| value.get("workspace").and(shared?.get(key)).and_then(renamed))
        .unwrap_or(key)
}
