//! One claim on a file, between processes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use bdev::{BdevError, FileBdev};

/// Names the file to the second process: this test binary, run again.
const PATH: &str = "FOREBAY_TEST_CLAIM_PATH";

/// In the second process, holds the file until its input ends; in a test run of its own, nothing.
#[test]
fn second_process() {
    let Ok(path) = std::env::var(PATH) else { return };
    let _bdev = FileBdev::open("theirs", &path, 512).unwrap();
    println!("claimed");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().lines().next();
}

fn spawn(path: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "claims::second_process", "--nocapture"])
        .env(PATH, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let claimed = lines.map_while(Result::ok).any(|line| line.ends_with("claimed"));
    assert!(claimed, "the second process could not open the file");
    child
}

#[test]
fn a_file_that_another_process_holds_is_refused_and_the_process_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk").display().to_string();
    FileBdev::create("ours", &path, 1 << 20).unwrap();
    let mut child = spawn(&path);
    let error = FileBdev::open("ours", &path, 512).expect_err("in use");
    assert!(matches!(error, BdevError::Claimed { .. }), "{error}");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let text = error.to_string();
    // Where /proc/locks shows the inode of the file, which overlay file systems do not.
    if !text.contains("another process") {
        assert!(text.contains(&format!("process {}", child.id())), "{text}");
    }
    assert!(FileBdev::open("ours", &path, 512).is_ok(), "free again");
}

#[test]
fn a_process_that_dies_leaves_no_claim() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk").display().to_string();
    FileBdev::create("ours", &path, 1 << 20).unwrap();
    let mut child = spawn(&path);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(FileBdev::open("ours", &path, 512).is_ok());
}
