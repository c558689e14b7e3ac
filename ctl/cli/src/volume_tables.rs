//! Pools, volumes and snapshots as tables and trees for people.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use api::results::{
    Extent, FoundPool, PoolFault, PoolInfo, PoolReport, PoolState, VolumeInfo, VolumeKind,
};
use api::{Labels, show_size};

use crate::tables::{list, or_dash, table};

pub(crate) fn pools(infos: &[PoolInfo]) -> String {
    let header = ["POOL", "STATE", "SIZE", "FREE", "USED", "VOLUMES", "BDEVS", "WARNINGS"];
    table(
        &header,
        infos.iter().map(|info| {
            let open = info.state == PoolState::Open;
            let if_open = |text: String| if open { text } else { "-".to_owned() };
            [
                info.name.clone(),
                state_text(info),
                if_open(show_size(info.size_bytes)),
                if_open(show_size(info.free_bytes)),
                if_open(format!("{} %", info.used_percent)),
                if_open(info.volumes.to_string()),
                list(&info.bdevs),
                list(&warnings(info)),
            ]
        }),
    )
}

/// One pool, a fact a line.
pub(crate) fn pool(info: &PoolInfo) -> String {
    let mut facts = vec![
        ("pool", info.name.clone()),
        ("uuid", info.uuid.clone()),
        ("state", state_text(info)),
        ("block devices", list(&info.bdevs)),
    ];
    if info.state == PoolState::Open {
        facts.extend([
            ("size", show_size(info.size_bytes)),
            ("free", show_size(info.free_bytes)),
            ("reserved", show_size(info.kept_bytes)),
            ("left for others", show_size(info.available_bytes)),
            ("being released", show_size(info.releasing_bytes)),
            ("used", format!("{} %, warns at 80 and 90 %", info.used_percent)),
            ("journal", format!("{} of {} blocks", info.journal_used, info.journal_blocks)),
            ("volumes", info.volumes.to_string()),
            ("warnings", list(&warnings(info))),
        ]);
    }
    for device in &info.devices {
        let journal = if device.journal { ", journal" } else { "" };
        let growth = match device.growth_bytes {
            0 => String::new(),
            bytes => format!(", larger by {}: forebay pool grow", show_size(bytes)),
        };
        let used = format!("{} used", show_size(device.used_bytes));
        let size = show_size(device.size_bytes);
        facts.push(("block device", format!("{}: {size}, {used}{journal}{growth}", device.bdev)));
    }
    if let Some(removal) = &info.removal {
        let (left, total) = (show_size(removal.left_bytes), show_size(removal.total_bytes));
        facts.push(("being removed", format!("{}: {left} of {total} left", removal.bdev)));
    }
    for damaged in &info.damaged {
        facts.push(("damaged", format!("{}: {}", damaged.name, damaged.reason)));
    }
    lines(&facts)
}

/// What a check found, a line each.
pub(crate) fn report(report: &PoolReport) -> String {
    let fault = |fault: &PoolFault| {
        let colon = if fault.volumes.is_empty() { "" } else { ": " };
        let repairable = if fault.repairable { " (there is another copy)" } else { "" };
        format!("{}{colon}{}{repairable}", fault.volumes.join(", "), fault.what)
    };
    let mut lines: Vec<String> = report.faults.iter().map(fault).collect();
    lines.extend(report.notes.iter().map(|note| format!("note: {note}")));
    if report.repaired {
        lines.push("repaired: all copies are written anew".to_owned());
    } else if report.faults.is_empty() {
        lines.push("nothing is wrong".to_owned());
    }
    lines.join("\n")
}

/// Pools that could be imported.
pub(crate) fn found(found: &[FoundPool]) -> String {
    table(
        &["POOL", "UUID", "BDEVS", "COMPLETE", "EXPORTED"],
        found.iter().map(|pool| {
            let (there, expected) = (pool.bdevs.len(), pool.bdevs_expected);
            let complete = match there < expected as usize {
                true => format!("no: {there} of {expected}"),
                false => "yes".to_owned(),
            };
            let exported = if pool.exported { "yes" } else { "no: its target ended" }.to_owned();
            [pool.name.clone(), pool.uuid.clone(), list(&pool.bdevs), complete, exported]
        }),
    )
}

pub(crate) fn extents(extents: &[Extent]) -> String {
    table(
        &["START", "BYTES"],
        extents.iter().map(|extent| [extent.start.to_string(), extent.bytes.to_string()]),
    )
}

pub(crate) fn volumes(infos: &[VolumeInfo]) -> String {
    let header = ["NAME", "KIND", "SIZE", "DATA", "OWN", "COMES FROM", "LABELS", "CLAIMED BY"];
    table(
        &header,
        infos.iter().map(|info| {
            [
                info.name.clone(),
                kind_text(info).to_owned(),
                show_size(info.size_bytes),
                show_counted(info.mapped_bytes),
                show_counted(info.unique_bytes),
                or_dash(info.parent.as_deref()),
                labels(&info.labels),
                or_dash(info.claimed_by.as_deref()),
            ]
        }),
    )
}

/// One volume or snapshot, a fact a line.
pub(crate) fn volume(info: &VolumeInfo) -> String {
    let created = UNIX_EPOCH.checked_add(Duration::from_secs(info.created_s));
    let created = created.filter(|_| info.created_s < LAST_YEAR_S);
    let created = created.map(|at| humantime::format_rfc3339_seconds(at).to_string());
    let mut facts = vec![
        (kind_text(info), info.name.clone()),
        ("uuid", info.uuid.clone()),
        ("size", format!("{}, blocks of {}", show_size(info.size_bytes), info.block_bytes)),
        ("data", show_counted(info.mapped_bytes)),
        ("own", format!("{}: what deleting it frees", show_counted(info.unique_bytes))),
        ("comes from", or_dash(info.parent.as_deref())),
    ];
    if info.reserved {
        facts.push(("reserved", format!("{} more are kept for it", show_size(info.kept_bytes))));
    }
    if info.kind == VolumeKind::Snapshot {
        facts.push(("snapshot of", or_dash(info.line.as_deref())));
        facts.push(("group", or_dash(info.group.as_deref())));
    }
    facts.extend([
        ("created", or_dash(created.as_deref())),
        ("labels", labels(&info.labels)),
        ("claimed by", or_dash(info.claimed_by.as_deref())),
    ]);
    if !info.description.is_empty() {
        facts.push(("description", info.description.clone()));
    }
    lines(&facts)
}

/// Begin of the year 10000, which is later than what can be shown.
const LAST_YEAR_S: u64 = 253_402_300_800;

/// Snapshots below their volume, clones below the snapshot that they come from.
pub(crate) fn tree(infos: &[VolumeInfo]) -> String {
    let by_name: BTreeMap<&str, &VolumeInfo> =
        infos.iter().map(|info| (info.name.as_str(), info)).collect();
    let mut below: BTreeMap<Option<&str>, Vec<&VolumeInfo>> = BTreeMap::new();
    for info in infos {
        let above = above(info, &by_name).filter(|name| by_name.contains_key(name));
        below.entry(above).or_default().push(info);
    }
    for list in below.values_mut() {
        list.sort_by_key(|info| (info.created_s, info.name.as_str()));
    }
    let mut rows = Vec::new();
    let mut path: Vec<(&VolumeInfo, String, &str)> = Vec::new();
    let roots = below.get(&None).into_iter().flatten().rev();
    path.extend(roots.map(|info| (*info, String::new(), "")));
    while let Some((info, indent, branch)) = path.pop() {
        rows.push([
            format!("{indent}{branch}{}", info.name),
            kind_text(info).to_owned(),
            show_size(info.size_bytes),
            show_counted(info.unique_bytes),
            or_dash(info.claimed_by.as_deref()),
        ]);
        let indent = match branch {
            "" => indent,
            "└─ " => indent + "   ",
            _ => indent + "│  ",
        };
        let children = below.get(&Some(info.name.as_str())).into_iter().flatten().rev();
        for (index, child) in children.enumerate() {
            let branch = if index == 0 { "└─ " } else { "├─ " };
            path.push((*child, indent.clone(), branch));
        }
    }
    table(&["NAME", "KIND", "SIZE", "OWN", "CLAIMED BY"], rows.into_iter())
}

/// What stands above it: of a snapshot its volume, of a clone the snapshot of another volume.
fn above<'a>(info: &'a VolumeInfo, all: &BTreeMap<&str, &'a VolumeInfo>) -> Option<&'a str> {
    if info.kind == VolumeKind::Snapshot {
        return info.line.as_deref();
    }
    let mut seen = BTreeSet::new();
    let mut parent = info.parent.as_deref();
    while let Some(snapshot) = parent.and_then(|name| all.get(name))
        && snapshot.line.as_deref() == Some(info.name.as_str())
        && seen.insert(snapshot.name.as_str())
    {
        parent = snapshot.parent.as_deref();
    }
    parent.filter(|parent| !seen.contains(parent))
}

fn kind_text(info: &VolumeInfo) -> &'static str {
    match (info.kind, info.read_only) {
        (VolumeKind::Snapshot, _) => "snapshot",
        (VolumeKind::Volume, true) => "read-only volume",
        (VolumeKind::Volume, false) => "volume",
    }
}

fn state_text(info: &PoolInfo) -> String {
    let state = match info.state {
        PoolState::Open => "open",
        PoolState::Changing => "changing",
        PoolState::Down => "down",
    };
    info.reason.as_ref().map_or_else(|| state.to_owned(), |reason| format!("{state}: {reason}"))
}

fn warnings(info: &PoolInfo) -> Vec<String> {
    let damaged = info.damaged.iter().map(|damaged| format!("{} is damaged", damaged.name));
    info.warnings.iter().cloned().chain(damaged).collect()
}

fn labels(labels: &Labels) -> String {
    list(&labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>())
}

fn lines(facts: &[(&str, String)]) -> String {
    let line = |(name, value): &(&str, String)| format!("{name:<18}{value}");
    facts.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A size that is only counted where volumes are listed.
fn show_counted(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), show_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, kind: VolumeKind, parent: Option<&str>, line: Option<&str>) -> VolumeInfo {
        VolumeInfo {
            name: name.to_owned(),
            kind,
            parent: parent.map(str::to_owned),
            line: line.map(str::to_owned),
            uuid: "u".to_owned(),
            read_only: false,
            reserved: false,
            kept_bytes: 0,
            size_bytes: 1 << 30,
            block_bytes: 4096,
            mapped_bytes: Some(0),
            unique_bytes: Some(0),
            labels: Labels::new(),
            description: String::new(),
            created_s: 0,
            group: None,
            claimed_by: None,
        }
    }

    #[test]
    fn clones_stand_below_the_snapshot_they_come_from() {
        use VolumeKind::{Snapshot, Volume};
        let infos = [
            info("t/a", Volume, Some("t/a.2"), None),
            info("t/a.1", Snapshot, None, Some("t/a")),
            info("t/a.2", Snapshot, Some("t/a.1"), Some("t/a")),
            // A clone that has a snapshot of its own.
            info("t/c", Volume, Some("t/c.1"), None),
            info("t/c.1", Snapshot, Some("t/a.1"), Some("t/c")),
            info("t/d", Volume, Some("t/a.1"), None),
            info("t/gone.1", Snapshot, None, None),
        ];
        let tree = tree(&infos);
        let names: Vec<&str> =
            tree.lines().skip(1).map(|line| line.split("  ").next().unwrap_or("")).collect();
        let text = tree.lines().skip(1).collect::<Vec<_>>().join("\n");
        let expected = [
            "t/a ",
            "├─ t/a.1 ",
            "│  ├─ t/c ",
            "│  │  └─ t/c.1 ",
            "│  └─ t/d ",
            "└─ t/a.2 ",
            "t/gone.1 ",
        ];
        assert_eq!(names.len(), expected.len(), "{text}");
        for (line, begin) in text.lines().zip(expected) {
            assert!(line.starts_with(begin), "{begin}: {text}");
        }
    }

    #[test]
    fn a_pool_that_is_down_says_why() {
        let mut info = PoolInfo {
            name: "tank".to_owned(),
            uuid: "u".to_owned(),
            state: PoolState::Down,
            reason: Some("missing: ssd0n1".to_owned()),
            bdevs: vec!["ssd0n1".to_owned()],
            size_bytes: 0,
            free_bytes: 0,
            kept_bytes: 0,
            available_bytes: 0,
            releasing_bytes: 0,
            used_percent: 0,
            journal_used: 0,
            journal_blocks: 0,
            volumes: 0,
            damaged: Vec::new(),
            devices: Vec::new(),
            removal: None,
            warnings: Vec::new(),
        };
        for text in [pools(std::slice::from_ref(&info)), pool(&info)] {
            assert!(text.contains("down: missing: ssd0n1"), "{text}");
        }
        (info.state, info.reason) = (PoolState::Open, None);
        info.warnings.push("91 % full, warns at 90 %".to_owned());
        for text in [pools(std::slice::from_ref(&info)), pool(&info)] {
            assert!(text.contains("91 % full"), "{text}");
        }
    }
}
