//! What every crate's manifest says.

use toml::{Table, Value};

use super::{Finding, line_of};
use crate::tree::Tree;

/// Keys of `[package]` that come from the workspace.
const INHERITED: &[&str] = &["version", "edition", "rust-version", "license", "publish"];

/// Crates that are workspaces of their own and so cannot inherit: cargo-fuzz wants that.
const OWN_WORKSPACE: &[&str] = &["tests/fuzz"];

/// Stands in for the crate of that version on crates.io (decision 0002).
const OWN_VERSION: &[&str] = &["driver/rdma-sys"];

const WHY: &str = "every manifest inherits from the workspace, and folder name = crate name";

/// Checks every crate's manifest.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for folder in tree.crates().filter(|folder| !OWN_WORKSPACE.contains(folder)) {
        let path = format!("{folder}/Cargo.toml");
        let text = tree.files.get(&path).map_or("", String::as_str);
        match text.parse::<Table>() {
            Ok(manifest) => findings.extend(
                wrong_keys(folder, &manifest)
                    .into_iter()
                    .map(|(key, what)| Finding::new(&path, line_of(text, key), what, WHY)),
            ),
            Err(error) => {
                let what = format!("does not parse: {}", error.message());
                findings.push(Finding::new(&path, 1, what, WHY));
            }
        }
    }
    findings
}

/// Keys that are wrong or missing, each with what is wrong.
fn wrong_keys(folder: &str, manifest: &Table) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    let package = manifest.get("package");
    let get = |key: &str| package.and_then(|package| package.get(key));
    let folder_name = folder.rsplit('/').next().unwrap_or(folder);
    if get("name").and_then(Value::as_str) != Some(folder_name) {
        wrong.push(("name", format!("the name is not {folder_name:?}")));
    }
    if get("description").and_then(Value::as_str).is_none_or(str::is_empty) {
        wrong.push(("[package]", "no description".to_owned()));
    }
    for key in INHERITED {
        let excepted = *key == "version" && OWN_VERSION.contains(&folder);
        if !excepted && !inherits(get(key)) {
            wrong.push((key, format!("no {key}.workspace = true")));
        }
    }
    if !inherits(manifest.get("lints")) {
        wrong.push(("[lints]", "no [lints] workspace = true".to_owned()));
    }
    wrong
}

fn inherits(value: Option<&Value>) -> bool {
    value.and_then(|value| value.get("workspace")).and_then(Value::as_bool) == Some(true)
}
