//! Every check finds a violation that was planted for it, and nothing in a clean tree.

use std::path::Path;
use std::process::Command;

use super::{Finding, check};
use crate::tree::Tree;

const CLEAN_LIB: &str = "//! A crate.\n#![forbid(unsafe_code)]\n\n/// One.\npub fn one() {}\n";

fn manifest(name: &str) -> String {
    let mut text = format!("[package]\nname = \"{name}\"\ndescription = \"d\"\n");
    for key in ["version", "edition", "rust-version", "license", "publish"] {
        text.push_str(&format!("{key}.workspace = true\n"));
    }
    text + "\n[lints]\nworkspace = true\n\n[dependencies]\n"
}

/// A small tree that breaks no rule.
fn clean_tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "Cargo.toml", "[workspace]\n");
    write(root.path(), ".cargo/config.toml", "[build]\ntarget-dir = \"build\"\n");
    write(root.path(), ".gitignore", "/build\n");
    for folder in ["driver/dma", "target/bdev", "target/nvmf", "tests/emulated_nvme"] {
        let name = folder.rsplit('/').next().unwrap();
        write(root.path(), &format!("{folder}/Cargo.toml"), &manifest(name));
        write(root.path(), &format!("{folder}/src/lib.rs"), CLEAN_LIB);
    }
    root
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn findings(root: &Path) -> Vec<Finding> {
    check(&Tree::read(root).unwrap()).findings
}

/// Plants `text` at `path` in a clean tree and returns what is found, as printed.
fn planted(path: &str, text: &str) -> Vec<String> {
    let root = clean_tree();
    write(root.path(), path, text);
    findings(root.path()).iter().map(ToString::to_string).collect()
}

#[track_caller]
fn assert_found(path: &str, text: &str, beginning: &str) {
    let found = planted(path, text);
    assert!(found.len() == 1 && found[0].starts_with(beginning), "{beginning}: {found:#?}");
}

fn lib(body: &str) -> String {
    format!("{CLEAN_LIB}{body}")
}

#[test]
fn a_clean_tree_has_no_findings() {
    assert_eq!(findings(clean_tree().path()), Vec::new());
}

#[test]
fn an_arrow_upwards_is_found() {
    let text = manifest("bdev") + "nvmf.workspace = true\n";
    let beginning = "target/bdev/Cargo.toml:14: target/bdev depends on target/nvmf (dep";
    assert_found("target/bdev/Cargo.toml", &text, beginning);
    let text = manifest("nvmf") + "bdev.workspace = true\n";
    assert_eq!(planted("target/nvmf/Cargo.toml", &text), Vec::<String>::new());
}

#[test]
fn a_renamed_arrow_upwards_is_found() {
    let text = manifest("bdev") + "core = { package = \"nvmf\", path = \"../nvmf\" }\n";
    assert_found("target/bdev/Cargo.toml", &text, "target/bdev/Cargo.toml:14: target/bdev dep");
}

#[test]
fn test_crates_are_for_tests_only() {
    let text = manifest("nvmf") + "emulated_nvme.workspace = true\n";
    assert_found("target/nvmf/Cargo.toml", &text, "target/nvmf/Cargo.toml:14: target/nvmf dep");
    let text = manifest("nvmf") + "[dev-dependencies]\nemulated_nvme.workspace = true\n";
    assert_eq!(planted("target/nvmf/Cargo.toml", &text), Vec::<String>::new());
}

#[test]
fn an_unknown_crate_is_found() {
    let root = clean_tree();
    write(root.path(), "target/extra/Cargo.toml", &manifest("extra"));
    let found = findings(root.path());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].what, "target/extra is not in the table of crates");
}

#[test]
fn unsafe_outside_its_crates_is_found() {
    let block = lib("/// Two.\npub fn two() { unsafe { std::hint::unreachable_unchecked() } }\n");
    assert_found("target/bdev/src/lib.rs", &block, "target/bdev/src/lib.rs:7: unsafe");
    let attribute = lib("#[unsafe(no_mangle)]\nfn three() {}\n");
    assert_found("target/bdev/src/lib.rs", &attribute, "target/bdev/src/lib.rs:6: unsafe");
    let in_macro = lib("macro_rules! m { () => { unsafe {} } }\n");
    assert_found("target/bdev/src/lib.rs", &in_macro, "target/bdev/src/lib.rs:6: unsafe");
}

#[test]
fn the_word_unsafe_in_text_is_not_unsafe() {
    let text = lib("// unsafe\n/* unsafe { } */\nconst S: &str = \"unsafe { }\";\n");
    assert_eq!(planted("target/bdev/src/lib.rs", &text), Vec::<String>::new());
}

#[test]
fn unsafe_is_counted_where_it_may_be() {
    let root = clean_tree();
    let text = "//! D.\n#![allow(unsafe_code)]\nunsafe fn f() {}\nfn g() { unsafe { f() } }\n";
    write(root.path(), "driver/dma/src/lib.rs", text);
    let report = check(&Tree::read(root.path()).unwrap());
    assert_eq!(report.findings, Vec::new());
    assert_eq!(report.unsafe_counts, [("driver/dma".to_owned(), 2)]);
}

#[test]
fn a_lowered_or_missing_lint_is_found() {
    let text = lib("#[allow(dead_code, unsafe_code)]\nmod m {}\n");
    let beginning = "target/bdev/src/lib.rs:6: the lint unsafe_code is lowered";
    assert_found("target/bdev/src/lib.rs", &text, beginning);
    let beginning = "target/bdev/src/lib.rs:1: no #![forbid(unsafe_code)]";
    assert_found("target/bdev/src/lib.rs", "//! A crate.\n", beginning);
}

#[test]
fn the_target_hazard_is_found() {
    let beginning = ".cargo/config.toml:1: no build.target-dir";
    assert_found(".cargo/config.toml", "[alias]\n", beginning);
    let beginning = ".cargo/config.toml:2: no build.target-dir";
    assert_found(".cargo/config.toml", "[build]\ntarget-dir = \"target\"\n", beginning);
    assert_found("target/debug/x", "", "target/debug:1: build output");
    for pattern in ["target", "/target", "target/", "/target/*", "**/target"] {
        let text = format!("/build\n{pattern}\n");
        assert_found(".gitignore", &text, ".gitignore:2: ignores target/");
    }
}

#[test]
fn an_untracked_manifest_is_found() {
    let root = clean_tree();
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(root.path()).args(arguments).output();
        assert!(output.unwrap().status.success(), "git {arguments:?}");
    };
    git(&["init", "-q"]);
    git(&["add", "target/bdev"]);
    let found = findings(root.path());
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].path, "target/nvmf/Cargo.toml");
}

#[test]
fn sizes_are_found() {
    let text = lib(&"// x\n".repeat(796));
    assert_found("target/bdev/src/lib.rs", &text, "target/bdev/src/lib.rs:1: 801 lines");
    let text = lib(&format!("// {}\n", "x".repeat(98)));
    assert_found("target/bdev/src/lib.rs", &text, "target/bdev/src/lib.rs:6: 101 columns");
    let text = lib(&format!("struct S;\nimpl S {{\nfn f() {{\n{}}}\n}}\n", "\n".repeat(99)));
    assert_found("target/bdev/src/lib.rs", &text, "target/bdev/src/lib.rs:8: fn f has 101");
    let text = format!("// {}\n", "x".repeat(98)).repeat(801);
    assert_eq!(planted("driver/rdma-sys/src/bindings.rs", &text), Vec::<String>::new());
}

#[test]
fn a_crate_without_its_opening_words_is_found() {
    let text = "#![forbid(unsafe_code)]\n//! Late.\n";
    let beginning = "target/bdev/src/lib.rs:1: does not begin with //!";
    assert_found("target/bdev/src/lib.rs", text, beginning);
}

#[test]
fn a_file_that_is_not_rust_is_found() {
    assert_found("target/bdev/src/x.rs", "fn {\n", "target/bdev/src/x.rs:1: does not parse");
}

#[test]
fn strangers_in_the_root_are_found() {
    assert_found("notes.txt", "", "notes.txt:1: does not belong in the root");
    assert_eq!(planted("LICENSE-MIT", ""), Vec::<String>::new());
}

#[test]
fn incomplete_manifests_are_found() {
    for line in manifest("bdev").lines().filter(|line| line.contains("workspace = true")) {
        let text = manifest("bdev").replace(&format!("\n{line}\n"), "\n");
        assert_found("target/bdev/Cargo.toml", &text, "target/bdev/Cargo.toml:");
    }
    let text = manifest("other");
    let beginning = "target/bdev/Cargo.toml:2: the name is not \"bdev\"";
    assert_found("target/bdev/Cargo.toml", &text, beginning);
    assert_found("target/bdev/Cargo.toml", "[package\n", "target/bdev/Cargo.toml:1: does not");
}

#[test]
fn forbidden_words_are_found_in_names_only() {
    for name in ["ctrlr_id", "ServerPort", "NVME_QPAIR_MAX", "lvol"] {
        let text = lib(&format!("type X = {name};\n"));
        let beginning = format!("target/bdev/src/lib.rs:6: {name}: say ");
        assert_found("target/bdev/src/lib.rs", &text, &beginning);
    }
    let text = lib("// client\nconst A: &str = \"server\";\ntype Observer = Clientele;\n");
    assert_eq!(planted("target/bdev/src/lib.rs", &text), Vec::<String>::new());
    let text = lib("type X = client;\n");
    assert_eq!(planted("tests/emulated_nvme/src/lib.rs", &text), Vec::<String>::new());
}

#[test]
fn promises_name_tests_that_exist() {
    let root = clean_tree();
    write(root.path(), "target/bdev/src/claim.rs", "mod tests { #[test] fn held() {} }\n");
    write(root.path(), "qemu-testbed/scenarios/demo.sh", "");
    let table = |cell: &str| format!("| promise | test |\n| --- | --- |\n| p | {cell} |\n");
    for (cell, count) in [
        ("`bdev::claim::tests::held`", 0),
        ("`qemu-testbed/scenarios/demo.sh`", 0),
        ("`bdev::claim::tests::lost`", 1),
        ("`bdev::volume::held`", 1),
        ("`nvmf::claim::tests::held`", 1),
        ("`nothing::held`", 1),
        ("`qemu-testbed/scenarios/none.sh`", 1),
        ("`held`", 1),
        ("by hope", 1),
    ] {
        write(root.path(), "docs/promises.md", &table(cell));
        let found = findings(root.path());
        assert_eq!(found.len(), count, "{cell}: {found:#?}");
        assert!(found.iter().all(|finding| finding.line == 3));
    }
}

#[test]
fn the_number_of_a_promise_is_given_once() {
    let root = clean_tree();
    write(root.path(), "qemu-testbed/scenarios/demo.sh", "");
    let row = |number: u32| format!("| {number} | p | `qemu-testbed/scenarios/demo.sh` |\n");
    let table = |rows: &str| format!("| | promise | test |\n| --- | --- | --- |\n{rows}");
    let text = format!("{}\n{}", table(&(row(1) + &row(2))), table(&(row(4) + &row(2))));
    write(root.path(), "docs/promises.md", &text);
    let found = findings(root.path());
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].line, 9);
}
