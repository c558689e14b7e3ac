//! The program itself against a daemon that is played by the test.
#![allow(missing_docs)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use api::{Call, ErrorCode, Request, Response, RpcError};
use serde_json::{Value, json};

fn forebay(socket: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("--socket").arg(socket).args(line.split_whitespace());
    command
}

/// Runs the program once; the daemon answers its one call with `outcome`. Returns the call too.
fn run(line: &str, outcome: Result<Value, RpcError>) -> (Call, Output) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        let request = Request::parse(line.as_bytes()).unwrap();
        stream.write_all(&Response { id: request.id, outcome }.to_line()).unwrap();
        request.call
    });
    let output = forebay(&path, line).output().unwrap();
    (daemon.join().unwrap(), output)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn ram0() -> Value {
    json!({"name": "ram0", "kind": "ram", "size_bytes": 1 << 30, "block_bytes": 4096,
           "health": "live", "claimed_by": null, "path": null})
}

#[test]
fn a_table_for_people() {
    let (_, output) = run("bdev list", Ok(json!([ram0()])));
    let words: Vec<String> = text(&output.stdout).split_whitespace().map(str::to_owned).collect();
    let expected = "NAME KIND SIZE BLOCK HEALTH CLAIMED BY PATH ram0 ram 1 GiB 4096 live - -";
    assert_eq!(words.join(" "), expected);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn json_for_scripts_is_the_result_as_it_came() {
    let (_, output) = run("bdev list --json", Ok(json!([ram0()])));
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), json!([ram0()]));
}

#[test]
fn arguments_become_parameters() {
    let (call, _) = run("bdev create ram ram0 1G --block-size 512", Ok(ram0()));
    let Call::BdevCreate(create) = call else { panic!("{call:?}") };
    assert_eq!((create.size_bytes, create.block_bytes), (Some(1 << 30), 512));
}

fn export(changes: Value) -> Value {
    let mut info = json!({"bdev": "ram0", "nqn": api::default_nqn("ram0"), "nsid": 1, "state": "up",
        "reason": null, "uuid": "u", "nguid": "n", "serial": "s", "any_host": true, "hosts": [],
        "connect_commands": [], "listeners": []});
    let fields = info.as_object_mut().unwrap();
    fields.extend(changes.as_object().unwrap().clone());
    info
}

#[test]
fn an_export_prints_the_line_for_the_host() {
    let command = "nvme connect -t rdma -a 10.0.0.1 -s 4420 -n nqn.2026-11.io.forebay:ram0";
    let info = export(json!({"connect_commands": [command]}));
    let (_, output) = run("export ram0 --any-host --listen 10.0.0.1", Ok(info));
    let text = text(&output.stdout);
    assert!(text.contains("On the host:") && text.lines().any(|line| line.trim() == command));
}

#[test]
fn an_export_that_no_host_can_reach_says_so() {
    let (_, output) = run("export ram0 --any-host", Ok(export(json!({}))));
    let text = text(&output.stdout);
    assert!(text.contains("No host can reach it") && text.contains("--listen ADDR"), "{text}");
    assert!(!text.contains("On the host:"), "{text}");
}

#[test]
fn exports_that_are_down_say_why() {
    let down = export(json!({"state": "down", "reason": "ssd0n1 is lost", "hosts": ["nqn.a"]}));
    let (_, output) = run("exports", Ok(json!([export(json!({})), down])));
    let text = text(&output.stdout);
    let words = |line: usize| text.lines().nth(line).unwrap().split_whitespace();
    assert!(words(1).eq("ram0 nqn.2026-11.io.forebay:ram0 1 up u any -".split(' ')), "{text}");
    let wanted = "1 down: ssd0n1 is lost u any; by name: nqn.a -";
    assert!(words(2).skip(2).eq(wanted.split(' ')), "{text}");
}

#[test]
fn every_host_can_be_denied_again() {
    let nqn = "nqn.2026-11.io.forebay:ram0";
    let access = json!({"nqn": nqn, "any_host": false, "hosts": []});
    let (call, _) = run(&format!("host deny {nqn} --any-host"), Ok(access));
    let Call::HostDeny(change) = call else { panic!("{call:?}") };
    assert_eq!((change.host, change.any_host), (None, true));
}

#[test]
fn a_refusal_shows_what_was_found_and_what_to_do() {
    let error = RpcError::new(ErrorCode::NeedsForce, "0000:01:00.0 bears data")
        .with_found(vec!["ext4".to_owned()])
        .with_advice("add --force");
    let (_, output) = run("device bind 0000:01:00.0", Err(error));
    let expected = "forebay: 0000:01:00.0 bears data\n  found: ext4\n  next: add --force\n";
    assert_eq!((text(&output.stderr).as_str(), output.status.code()), (expected, Some(1)));
}

#[test]
fn a_refusal_is_json_for_scripts() {
    let error = RpcError::new(ErrorCode::InUse, "busy").with_found(vec!["dm-3".to_owned()]);
    let (_, output) = run("device bind 0000:01:00.0 --json", Err(error));
    let printed: Value = serde_json::from_slice(&output.stderr).unwrap();
    let error = json!({"code": -32003, "message": "busy", "data": {"found": ["dm-3"]}});
    assert_eq!(printed, json!({"error": error, "exit_code": 1}));
    assert!(output.stdout.is_empty());
}

/// A daemon for several rounds, each on a connection of its own.
#[test]
fn watched_stats_are_an_object_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut command = forebay(&path, "stats --watch 1 --json");
    let mut program = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        let request = Request::parse(line.as_bytes()).unwrap();
        let stats = api::results::Stats { uptime_ms: 7, ..Default::default() };
        stream.write_all(&Response::result(request.id, &stats).to_line()).unwrap();
        let printed: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(printed["uptime_ms"], 7);
    }
    program.kill().unwrap();
    program.wait().unwrap();
}

#[test]
fn a_missing_daemon_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none");
    let output = forebay(&path, "version").output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("sudo forebay-target"));
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    for line in ["completions bash", "man"] {
        let mut child = forebay(folder.path(), line)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert_eq!((child.wait().unwrap().code(), errors.as_str()), (Some(0), ""), "{line}");
    }
}
