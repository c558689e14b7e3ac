//! The program itself.
#![allow(missing_docs)]

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay-perf"));
    command.current_dir(folder).args(line.split_whitespace());
    command
}

fn run(folder: &Path, line: &str) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command(folder, line).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn folder_with_file(bytes: u64) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    File::create_new(folder.path().join("disk")).unwrap().set_len(bytes).unwrap();
    folder
}

fn written(folder: &Path) -> bool {
    std::fs::read(folder.join("disk")).unwrap().iter().any(|&byte| byte != 0)
}

#[test]
fn a_run_prints_a_table_with_its_seed() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, _) = run(folder.path(), "run null:1G --bytes 100M --read 50 --seed 42");
    assert_eq!(code, 0, "{out}");
    for text in ["4 KiB random 50 % reads on null:1GiB", "seed 42", "P99.999", "read", "write"] {
        assert!(out.contains(text), "{text}: {out}");
    }
    assert!(out.contains("ns of a core for each"), "{out}");
}

#[test]
fn json_has_every_figure_and_nothing_else_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let line = "run ram:64M --json --bytes 64M --read 0 --flush-every 8 --block-size 4k:3,8k:1";
    let (code, out, _) = run(folder.path(), line);
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &value["passed"]), (0, &Value::Bool(true)));
    let job = &value["jobs"][0];
    let ops: Vec<_> = job["ops"].as_array().unwrap().iter().collect();
    assert_eq!((&ops[0]["op"], &ops[1]["op"]), (&"write".into(), &"flush".into()));
    let writes = ops[0]["ios"].as_u64().unwrap();
    let flushes = ops[1]["ios"].as_u64().unwrap();
    assert!(writes > 8_000 && flushes.abs_diff(writes / 8) <= 1, "{out}");
    assert_eq!(ops[0]["latencies"], writes);
    assert!(ops[0]["p99_999_ns"].as_u64() >= ops[0]["p50_ns"].as_u64());
}

#[test]
fn the_series_covers_the_measured_time_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let line = "run ram:16M --json --runtime 2500ms --warm-up 500ms --rate 1000";
    let (code, out, _) = run(folder.path(), line);
    let value: Value = serde_json::from_str(&out).unwrap();
    let job = &value["jobs"][0];
    let series = job["series"].as_array().unwrap();
    assert_eq!((code, job["measured_s"].as_f64()), (0, Some(2.5)));
    assert!((2..=3).contains(&series.len()), "{out}");
    assert_eq!(series.last().unwrap()["end_s"].as_f64(), Some(2.5), "{out}");
    let mut before = 0.0;
    let done = series.iter().map(|point| {
        let end = point["end_s"].as_f64().unwrap();
        point["iops"].as_f64().unwrap() * (end - std::mem::replace(&mut before, end))
    });
    let done: f64 = done.sum();
    assert_eq!(done.round() as u64, job["ops"][0]["ios"].as_u64().unwrap());
}

#[test]
fn a_target_that_bears_data_is_not_touched_without_consent() {
    let folder = folder_with_file(1 << 20);
    let (code, out, error) = run(folder.path(), "run file:disk --read 50 --bytes 1M");
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(error.contains("file:disk") && error.contains("--destroy-data"), "{error}");
    assert!(!written(folder.path()));
    assert_eq!(run(folder.path(), "run file:disk --bytes 1M").0, 0, "reading is free");
    assert!(!written(folder.path()));
    let (code, _, error) = run(folder.path(), "run file:disk --read 50 --bytes 1M --destroy-data");
    assert_eq!(code, 0, "{error}");
    assert!(written(folder.path()));
}

#[test]
fn a_file_of_jobs_is_checked_before_anything_runs() {
    let folder = folder_with_file(1 << 20);
    let path = folder.path().join("jobs.toml");
    let good = "[defaults]\ntarget = 'file:disk'\nbytes = '1M'\ndestroy-data = true\n\
                [[job]]\nname = 'fill'\nread = 0\npattern = 'sequential'\n";
    for (bad, words) in [
        ("[[job]]\ndepth = 0\n", "--depth"),
        ("[[job]]\nqueue = 5\n", "queue"),
        ("[[job]]\ntarget = 'tape:0'\n", "tape:0"),
    ] {
        std::fs::write(&path, format!("{good}{bad}")).unwrap();
        let (code, _, error) = run(folder.path(), "run jobs.toml");
        assert!(code == 2 && error.contains(words), "{error}");
        assert!(!written(folder.path()), "{bad}");
    }
    std::fs::write(&path, format!("{good}[[job]]\nread = 100\n")).unwrap();
    let (code, out, error) = run(folder.path(), "run jobs.toml --seed 7");
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("fill: 4 KiB sequential writes") && out.contains("job2: "), "{out}");
    assert_eq!(out.matches("seed 7").count(), 2, "a flag goes before the file");
    assert!(written(folder.path()));
}

#[test]
fn what_was_written_is_verified_by_another_process() {
    let folder = folder_with_file(4 << 20);
    let line = "run file:disk --read 50 --bytes 8M --destroy-data --verify log --cores 1";
    let (code, out, error) = run(folder.path(), line);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("blocks are what was written"), "{out}");
    let (code, out, error) = run(folder.path(), "verify log file:disk");
    assert_eq!(code, 0, "{out}{error}");

    // A block's data where another's should be.
    let path = folder.path().join("disk");
    let mut bytes = std::fs::read(&path).unwrap();
    let is_written = |lba: usize| bytes[lba * 4096..][..4096].iter().any(|&byte| byte != 0);
    let found: Vec<usize> = (0..1024).filter(|&lba| is_written(lba)).take(2).collect();
    let (one, other) = (found[0], found[1]);
    bytes.copy_within(other * 4096..(other + 1) * 4096, one * 4096);
    std::fs::write(&path, bytes).unwrap();
    let (code, out, _) = run(folder.path(), "verify log file:disk");
    assert_eq!(code, 1, "{out}");
    for text in [
        "1 of".to_owned(),
        format!("block {one} (byte {})", one * 4096),
        format!("found:    block {other}, generation"),
        "misplaced".to_owned(),
        "written:  20".to_owned(),
    ] {
        assert!(out.contains(&text), "{text}: {out}");
    }
    let (code, out, _) = run(folder.path(), "verify log file:disk --json");
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 1);
    assert_eq!(value["jobs"][0]["verified"]["first_bad"]["lba"], one);
}

/// Killed at any moment, again and again, with writes in flight.
#[test]
fn a_process_that_is_killed_leaves_a_log_that_is_right() {
    let folder = folder_with_file(1 << 20);
    let line = "run file:disk --read 20 --runtime 1h --destroy-data --verify log --depth 64";
    for round in 0..5 {
        let mut child = command(folder.path(), line).stderr(Stdio::null()).spawn().unwrap();
        let log = folder.path().join("log");
        let length = || std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let before = length();
        while length() < before + 40 * 2_000 {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let (code, out, error) = run(folder.path(), "verify log file:disk");
        assert_eq!(code, 0, "round {round}: {out}{error}");
    }
}

#[test]
fn a_signal_ends_a_run_in_good_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = command(folder.path(), "run null:1G --runtime 1h")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first line of progress: it runs.
    let mut byte = [0];
    child.stderr.as_mut().unwrap().read_exact(&mut byte).unwrap();
    Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(out.contains("ended before its time") && out.contains("read"), "{out}");
}

#[test]
fn a_plot_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, error) = run(folder.path(), "run ram:16M --read 50 --bytes 64M --plot a.svg");
    assert_eq!(code, 0, "{error}");
    let svg = std::fs::read_to_string(folder.path().join("a.svg")).unwrap();
    for text in ["<svg", "Latency", "99.9", "read", "write", "I/Os a second"] {
        assert!(svg.contains(text), "{text}");
    }
    let (code, _, error) = run(folder.path(), "run null:1G --bytes 1M --plot no/where.svg");
    assert!(code == 1 && error.contains("no/where.svg"), "{error}");
}

#[test]
fn wrong_usage_is_explained_and_changes_nothing() {
    let folder = folder_with_file(1 << 20);
    std::fs::write(folder.path().join("thesis"), "On Storage").unwrap();
    for (line, words) in [
        ("run", "TARGET"),
        ("run file:nothing", "truncate"),
        ("run nothing.toml", "nothing.toml"),
        ("run null:1G --depth 5000", "1 to 1023"),
        ("run file:disk --offset 2M", "--offset"),
        ("run file:disk --read 0 --destroy-data --verify /nowhere/log", "/nowhere/log"),
        ("run file:disk --read 0 --destroy-data --verify thesis", "no acknowledgement log"),
        ("verify nolog file:disk", "nolog"),
        ("verify disk file:disk", "no acknowledgement log"),
    ] {
        let (code, out, error) = run(folder.path(), line);
        assert_eq!((code, out.as_str()), (2, ""), "{line}");
        assert!(error.contains(words), "{line}: {error}");
        assert!(!written(folder.path()), "{line}");
    }
    assert_eq!(std::fs::read(folder.path().join("thesis")).unwrap(), b"On Storage");
    let (code, _, error) = run(folder.path(), "run file:disk --read 0 --json");
    let value: Value = serde_json::from_str(&error).unwrap();
    assert!(code == 2 && value["error"]["advice"].as_str().unwrap().contains("--destroy-data"));
}

#[test]
fn completions_and_the_manual_are_printed() {
    let folder = tempfile::tempdir().unwrap();
    for (line, words) in [("completions bash", "forebay-perf"), ("man", "acknowledgement log")] {
        let (code, out, _) = run(folder.path(), line);
        assert!(code == 0 && out.contains(words), "{line}");
    }
}
