//! The source tree, read once.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// Folders that hold no sources of ours, as paths from the root.
const SKIPPED: &[&str] = &[
    ".git",
    "build",
    "qemu-testbed/cache",
    "target/debug",
    "target/release",
    "tests/fuzz/artifacts",
    "tests/fuzz/build",
    "tests/fuzz/corpus",
    "tests/fuzz/target",
];

/// Folders that hold crates, one folder per crate.
const CRATE_PARENTS: &[&str] = &["driver", "ctl", "target", "initiator", "tests"];

/// Every text file of a source tree, by its path from the root.
#[derive(Debug, Default)]
pub struct Tree {
    /// Path to contents. Files that are not UTF-8 have empty contents.
    pub files: BTreeMap<String, String>,
    /// Names of everything directly in the root.
    pub top_level: Vec<String>,
    /// Folders in `target/` that only Cargo makes.
    pub build_output: Vec<String>,
    /// Manifests under `target/` that git does not track; empty when the tree is no git work tree.
    pub untracked_manifests: Vec<String>,
}

impl Tree {
    /// Reads the tree at `root`. Symbolic links are not followed.
    pub fn read(root: &Path) -> Result<Tree> {
        let mut tree = Tree::default();
        for entry in std::fs::read_dir(root).with_context(|| format!("{}", root.display()))? {
            tree.top_level.push(entry?.file_name().to_string_lossy().into_owned());
        }
        tree.top_level.sort();
        tree.read_folder(root, "")?;
        for name in ["target/debug", "target/release"] {
            if root.join(name).exists() {
                tree.build_output.push(name.to_owned());
            }
        }
        tree.untracked_manifests = untracked_manifests(root);
        Ok(tree)
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
            let entry = entry?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() && !SKIPPED.contains(&path.as_str()) {
                self.read_folder(&entry.path(), &format!("{path}/"))?;
            } else if kind.is_file() {
                let bytes = std::fs::read(entry.path()).with_context(|| path.clone())?;
                self.files.insert(path, String::from_utf8(bytes).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Folders of all crates, such as `driver/dma`, in alphabetical order.
    pub fn crates(&self) -> impl Iterator<Item = &str> {
        self.files.keys().filter_map(|path| {
            let folder = path.strip_suffix("/Cargo.toml")?;
            let (parent, name) = folder.split_once('/')?;
            (CRATE_PARENTS.contains(&parent) && !name.contains('/')).then_some(folder)
        })
    }

    /// Rust files below `folder`, with their contents.
    pub fn rust_files(&self, folder: &str) -> impl Iterator<Item = (&str, &str)> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        self.files
            .iter()
            .filter(move |(path, _)| path.starts_with(&prefix) && path.ends_with(".rs"))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }
}

fn untracked_manifests(root: &Path) -> Vec<String> {
    // Without --exclude-standard: a manifest that .gitignore hides is the worst case of all.
    let output = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "--others", "--", "target"])
        .output();
    let Ok(output) = output else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|path| path.ends_with("/Cargo.toml"))
        .map(str::to_owned)
        .collect()
}
