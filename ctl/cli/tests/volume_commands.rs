//! Commands for pools, volumes and snapshots against a daemon that is played by the test.
#![allow(missing_docs)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

use api::{Call, ErrorCode, Request, Response, RpcError};
use serde_json::{Value, json};

/// Runs the program once; the daemon answers its calls, which are returned, with these outcomes.
fn run(line: &str, outcomes: Vec<Result<Value, RpcError>>) -> (Vec<Call>, Output) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let daemon = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut calls = Vec::new();
        for outcome in outcomes {
            let Some(Ok(line)) = lines.next() else { break };
            let request = Request::parse(line.as_bytes()).unwrap();
            stream.write_all(&Response { id: request.id, outcome }.to_line()).unwrap();
            calls.push(request.call);
        }
        calls
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("--socket").arg(&path).args(line.split_whitespace()).stdin(Stdio::null());
    let output = command.output().unwrap();
    (daemon.join().unwrap(), output)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn volume(name: &str, kind: &str) -> Value {
    json!({"name": name, "kind": kind, "parent": null, "line": null, "uuid": "u",
        "read_only": false, "reserved": true, "kept_bytes": 4096, "size_bytes": 1 << 30,
        "block_bytes": 4096, "mapped_bytes": 8192, "unique_bytes": 65536,
        "labels": {"tier": "gold"}, "description": "", "created_s": 0,
        "group": null, "claimed_by": null})
}

#[test]
fn arguments_become_parameters() {
    let line = "volume create tank/a 1G --block-size 512 --label a=b --label c=";
    let (calls, output) = run(line, vec![Ok(volume("tank/a", "volume"))]);
    let [Call::VolumeCreate(create)] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!((create.size_bytes, create.block_bytes), (1 << 30, 512));
    assert_eq!((create.labels["a"].as_str(), create.labels["c"].as_str()), ("b", ""));
    assert!(text(&output.stdout).contains("created           1970-01-01T00:00:00Z"));
    assert!(!create.reserve && text(&output.stdout).contains("4 KiB more are kept for it"));
    let (calls, _) = run("volume create tank/a 1G --reserve", vec![Ok(volume("tank/a", "volume"))]);
    assert!(matches!(calls.as_slice(), [Call::VolumeCreate(create)] if create.reserve));
    for (line, on) in [("volume reserve tank/a", true), ("volume reserve tank/a --off", false)] {
        let (calls, _) = run(line, vec![Ok(volume("tank/a", "volume"))]);
        assert!(matches!(calls.as_slice(), [Call::VolumeReserve(change)] if change.reserve == on));
    }
    let line = "volume label tank/a x=1 y-";
    let (calls, _) = run(line, vec![Ok(volume("tank/a", "volume"))]);
    let [Call::VolumeLabel(label)] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!((&label.labels["x"], &label.labels["y"]), (&Some("1".to_owned()), &None));
    let line = "pool create tank r s --journal 1M --force";
    let (calls, _) = run(line, vec![Err(RpcError::new(ErrorCode::InUse, "busy"))]);
    let [Call::PoolCreate(create)] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!((create.bdevs.len(), create.journal_bytes, create.force), (2, Some(1 << 20), true));
}

#[test]
fn a_check_that_finds_something_exits_with_1() {
    let report = |faults: Value, repaired: bool| {
        json!({"name": "tank", "uuid": "u", "open": false, "faults": faults, "notes": ["n"],
            "repaired": repaired})
    };
    let fault = json!([{"volumes": ["tank/a"], "what": "page 7", "repairable": true}]);
    let (_, output) = run("pool check tank", vec![Ok(report(json!([]), false))]);
    assert_eq!(text(&output.stdout), "note: n\nnothing is wrong\n");
    assert_eq!(output.status.code(), Some(0));
    let (_, output) = run("pool check tank", vec![Ok(report(fault.clone(), false))]);
    assert!(text(&output.stdout).starts_with("tank/a: page 7 (there is another copy)\n"));
    assert_eq!(output.status.code(), Some(1));
    let (calls, output) = run("pool check tank --repair", vec![Ok(report(fault.clone(), true))]);
    assert!(matches!(calls.as_slice(), [Call::PoolCheck(check)] if check.repair));
    assert_eq!(output.status.code(), Some(0));
    let (_, output) = run("pool check tank --json", vec![Ok(report(fault.clone(), false))]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((printed, output.status.code()), (report(fault, false), Some(1)));
}

#[test]
fn a_snapshot_to_roll_back_to_is_named_with_its_pool_or_without() {
    for snapshot in ["a.s", "tank/a.s"] {
        let line = format!("volume rollback tank/a {snapshot} --keep k");
        let (calls, _) = run(&line, vec![Ok(volume("tank/a", "volume"))]);
        let [Call::VolumeRollback(rollback)] = calls.as_slice() else { panic!("{calls:?}") };
        assert_eq!((rollback.snapshot.as_str(), rollback.force), ("a.s", false));
    }
    let (calls, output) = run("volume rollback tank/a other/a.s", vec![]);
    assert_eq!((calls.len(), output.status.code()), (0, Some(2)));
}

#[test]
fn a_difference_is_asked_for_until_its_end() {
    let part = |start: u64, next: Value| {
        json!({"extents": [{"start": start, "bytes": 4096}],
        "next": next})
    };
    let outcomes = vec![Ok(part(0, json!(65536))), Ok(part(65536, Value::Null))];
    let (calls, output) = run("snapshot diff tank/a.s tank/a --json", outcomes);
    let [Call::SnapshotDiff(_), Call::SnapshotDiff(second)] = calls.as_slice() else {
        panic!("{calls:?}")
    };
    assert_eq!((second.from.as_deref(), second.start), (Some("tank/a.s"), 65536));
    let extents: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(extents, json!([{"start": 0, "bytes": 4096}, {"start": 65536, "bytes": 4096}]));
}

#[test]
fn volumes_and_snapshots_are_a_table_or_json() {
    let infos = json!([volume("tank/a", "volume"), volume("tank/a.s", "snapshot")]);
    let (_, output) = run("volume list tank", vec![Ok(infos.clone())]);
    let table = text(&output.stdout);
    let words: Vec<&str> = table.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(words.join(" "), "tank/a.s snapshot 1 GiB 8 KiB 64 KiB - tier=gold -");
    let (_, output) = run("volume list --json", vec![Ok(infos.clone())]);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), infos);
}

#[test]
fn several_are_deleted_until_one_is_refused() {
    let refusal = RpcError::new(ErrorCode::InUse, "tank/b is exported");
    let line = "volume delete tank/a tank/b tank/c";
    let (calls, output) = run(line, vec![Ok(json!({})), Err(refusal)]);
    assert_eq!((calls.len(), output.status.code()), (2, Some(1)));
    assert_eq!(text(&output.stdout), "tank/a: deleted\n");
    assert!(text(&output.stderr).contains("tank/b is exported"));
    let line = "snapshot delete tank/a.s tank/b.s --json";
    let (calls, output) = run(line, vec![Ok(json!({})), Ok(json!({}))]);
    assert!(matches!(calls.as_slice(), [Call::SnapshotDelete(_), Call::SnapshotDelete(_)]));
    let deleted: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(deleted, json!(["tank/a.s", "tank/b.s"]));
}

#[test]
fn what_bears_a_label_is_deleted_only_when_somebody_says_yes() {
    let infos = json!([volume("tank/a", "volume"), volume("tank/a.s", "snapshot")]);
    let line = "volume delete --label tier=gold";
    let (calls, output) = run(line, vec![Ok(infos.clone())]);
    assert_eq!((calls.len(), output.status.code()), (1, Some(2)));
    assert!(text(&output.stderr).contains("tank/a would be deleted; --yes does it"));
    let (calls, output) = run(&format!("{line} --yes"), vec![Ok(infos), Ok(json!({}))]);
    let [Call::VolumeList(_), Call::VolumeDelete(delete)] = calls.as_slice() else {
        panic!("{calls:?}")
    };
    assert_eq!((delete.volume.as_str(), output.status.code()), ("tank/a", Some(0)));
}
