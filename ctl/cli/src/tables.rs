//! Results as tables for people.

use api::results::{
    BdevInfo, ConnectionInfo, DeviceHealth, DeviceInfo, ExportInfo, ExportState, HostAccess, Stats,
    VersionInfo,
};
use api::show_size;
use comfy_table::Table;
use comfy_table::presets;

pub(crate) fn devices(infos: &[DeviceInfo]) -> String {
    let header = [
        "ADDRESS",
        "MODEL",
        "SERIAL",
        "DRIVER",
        "GROUP",
        "USED BY",
        "FOUND ON IT",
        "BDEVS",
        "HEALTH",
    ];
    table(
        &header,
        infos.iter().map(|info| {
            [
                info.bdf.clone(),
                or_dash(info.model.as_deref()),
                or_dash(info.serial.as_deref()),
                driver(info),
                or_dash(info.iommu_group.map(|group| group.to_string()).as_deref()),
                list(&info.used_by),
                contents(info),
                list(&info.bdevs),
                info.health.as_ref().map_or_else(|| "-".to_owned(), health),
            ]
        }),
    )
}

/// One controller, a fact a line.
pub(crate) fn device(info: &DeviceInfo) -> String {
    let mut facts = vec![
        ("address", info.bdf.clone()),
        ("model", or_dash(info.model.as_deref())),
        ("serial number", or_dash(info.serial.as_deref())),
        ("PCI id", format!("{:04x}:{:04x}", info.vendor_id, info.device_id)),
        ("driver", driver(info)),
        ("IOMMU group", or_dash(info.iommu_group.map(|group| group.to_string()).as_deref())),
        ("used by", list(&info.used_by)),
        ("found on it", contents(info)),
        ("block devices", list(&info.bdevs)),
    ];
    if let Some(health) = &info.health {
        let celsius = health.temperature_celsius;
        facts.extend([
            ("warnings", list(&health.warnings)),
            ("temperature", celsius.map_or("-".to_owned(), |celsius| format!("{celsius} °C"))),
            (
                "spare",
                format!(
                    "{} %, warns at {} %",
                    health.spare_percent, health.spare_threshold_percent
                ),
            ),
            ("used", format!("{} %", health.used_percent)),
            ("media errors", health.media_errors.to_string()),
            ("unsafe shutdowns", health.unsafe_shutdowns.to_string()),
            ("on for", format!("{} h", health.power_on_hours)),
            ("written", show_size(health.written_bytes)),
        ]);
    }
    let line = |(name, value): &(&str, String)| format!("{name:<18}{value}");
    facts.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn driver(info: &DeviceInfo) -> String {
    if info.open { "forebay".to_owned() } else { or_dash(info.driver.as_deref()) }
}

fn contents(info: &DeviceInfo) -> String {
    match &info.contents_unknown {
        Some(reason) => format!("unknown: {reason}"),
        None => list(&info.signatures),
    }
}

fn health(health: &DeviceHealth) -> String {
    let state = if health.warnings.is_empty() {
        "good".to_owned()
    } else {
        format!("warns of {}", health.warnings.join(", "))
    };
    match health.temperature_celsius {
        Some(celsius) => format!("{state}, {celsius} °C"),
        None => state,
    }
}

pub(crate) fn bdevs(infos: &[BdevInfo]) -> String {
    let header = ["NAME", "KIND", "SIZE", "BLOCK", "HEALTH", "CLAIMED BY", "PATH"];
    table(
        &header,
        infos.iter().map(|info| {
            [
                info.name.clone(),
                info.kind.clone(),
                show_size(info.size_bytes),
                info.block_bytes.to_string(),
                info.health.clone(),
                or_dash(info.claimed_by.as_deref()),
                or_dash(info.path.as_deref()),
            ]
        }),
    )
}

/// One export: what it is, and the lines to run on the host.
pub(crate) fn export(info: &ExportInfo) -> String {
    let mut text = format!(
        "{} is exported as namespace {} of {}\nuuid {}, serial {}\nhosts: {}\n\n",
        info.bdev,
        info.nsid,
        info.nqn,
        info.uuid,
        info.serial,
        hosts_text(info.any_host, &info.hosts)
    );
    if info.connect_commands.is_empty() {
        text.push_str(
            "No host can reach it: forebay-target listens on no address of this machine.\n\
             Start it with --listen ADDR (RDMA) or --listen tcp://ADDR, or export with it.",
        );
        return text;
    }
    text.push_str("On the host:");
    for command in &info.connect_commands {
        text.push_str("\n  ");
        text.push_str(command);
    }
    text
}

pub(crate) fn exports(infos: &[ExportInfo]) -> String {
    let header = ["BDEV", "SUBSYSTEM", "NSID", "STATE", "UUID", "HOSTS", "LISTENERS"];
    table(
        &header,
        infos.iter().map(|info| {
            let listeners: Vec<String> = info
                .listeners
                .iter()
                .map(|listener| format!("{} {}", listener.transport, listener.address))
                .collect();
            [
                info.bdev.clone(),
                info.nqn.clone(),
                info.nsid.to_string(),
                state_text(info),
                info.uuid.clone(),
                hosts_text(info.any_host, &info.hosts),
                list(&listeners),
            ]
        }),
    )
}

pub(crate) fn hosts(all: &[HostAccess]) -> String {
    table(
        &["SUBSYSTEM", "HOSTS"],
        all.iter().map(|access| [access.nqn.clone(), hosts_text(access.any_host, &access.hosts)]),
    )
}

pub(crate) fn connections(infos: &[ConnectionInfo]) -> String {
    let header = [
        "SUBSYSTEM",
        "HOST",
        "CNTLID",
        "FROM",
        "TO",
        "QID",
        "CORE",
        "DEPTH",
        "IN FLIGHT",
        "COMMANDS",
    ];
    table(
        &header,
        infos.iter().flat_map(|info| {
            info.queues.iter().map(|queue| {
                [
                    info.nqn.clone(),
                    info.host_nqn.clone(),
                    info.cntlid.to_string(),
                    info.host_address.to_string(),
                    format!("{} {}", info.transport, info.local_address),
                    queue.qid.to_string(),
                    queue.core.to_string(),
                    queue.depth.to_string(),
                    queue.in_flight.to_string(),
                    queue.commands.to_string(),
                ]
            })
        }),
    )
}

pub(crate) fn stats(stats: &Stats) -> String {
    let cores = ["CORE", "TURNS", "BUSY", "BUSY MS", "I/OS", "NS PER I/O", "WAITS", "COPIED"];
    let cores = table(
        &cores,
        stats.cores.iter().map(|core| {
            [
                core.core.to_string(),
                core.turns.to_string(),
                core.busy_turns.to_string(),
                (core.busy_ns / 1_000_000).to_string(),
                core.ios.to_string(),
                core.busy_ns_per_io.to_string(),
                (core.buffer_waits.saturating_add(core.channel_waits)).to_string(),
                show_size(core.copied_bytes),
            ]
        }),
    );
    let namespaces =
        ["SUBSYSTEM", "NSID", "READS", "WRITES", "OTHERS", "READ", "WRITTEN", "ERRORS"];
    let namespaces = table(
        &namespaces,
        stats.namespaces.iter().map(|one| {
            [
                one.nqn.clone(),
                one.nsid.to_string(),
                one.reads.to_string(),
                one.writes.to_string(),
                one.others.to_string(),
                show_size(one.read_bytes),
                show_size(one.write_bytes),
                one.errors.to_string(),
            ]
        }),
    );
    let channels = ["BDEV", "CORE", "SUBMITTED", "IN FLIGHT", "ERRORS"];
    let channels = table(
        &channels,
        stats.channels.iter().map(|one| {
            [
                one.bdev.clone(),
                one.core.to_string(),
                one.submitted.to_string(),
                one.in_flight.to_string(),
                one.errors.to_string(),
            ]
        }),
    );
    [cores, namespaces, channels, queue_pairs(stats), carriers(stats), memory(stats)].join("\n\n")
}

fn queue_pairs(stats: &Stats) -> String {
    let header = ["SSD", "QID", "SUBMITTED", "COMPLETED", "ERRORS", "STALE", "DOORBELLS"];
    table(
        &header,
        stats.queue_pairs.iter().map(|one| {
            [
                one.bdf.clone(),
                one.qid.to_string(),
                one.submissions.to_string(),
                one.completions.to_string(),
                one.errors.to_string(),
                one.stale.to_string(),
                one.doorbells.to_string(),
            ]
        }),
    )
}

fn carriers(stats: &Stats) -> String {
    let header = ["CARRIER", "CORE", "CAPSULES", "READS", "WRITES", "POSTS", "SYSCALLS"];
    table(
        &header,
        stats.carriers.iter().map(|one| {
            [
                one.transport.clone(),
                one.core.to_string(),
                one.capsules.to_string(),
                one.reads.to_string(),
                one.writes.to_string(),
                one.posts.to_string(),
                one.system_calls.to_string(),
            ]
        }),
    )
}

fn memory(stats: &Stats) -> String {
    let arena = &stats.memory;
    let whole = [
        "arena".to_owned(),
        "-".to_owned(),
        show_size(arena.arena_bytes),
        show_size(arena.free_bytes),
    ];
    let pools = arena.pools.iter().map(|pool| {
        [
            pool.name.clone(),
            pool.core.to_string(),
            show_size(pool.size_bytes),
            show_size(pool.free_bytes),
        ]
    });
    table(&["MEMORY", "CORE", "SIZE", "FREE"], std::iter::once(whole).chain(pools))
}

pub(crate) fn version(info: &VersionInfo) -> String {
    let seconds = info.uptime_ms / 1000;
    format!(
        "forebay {}\nforebay-target {} (protocol {}, process {}, up {seconds} s)",
        env!("CARGO_PKG_VERSION"),
        info.version,
        info.protocol,
        info.pid
    )
}

pub(crate) fn table<const N: usize>(
    header: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.to_vec());
    }
    table.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>().join("\n")
}

pub(crate) fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

pub(crate) fn list(items: &[String]) -> String {
    if items.is_empty() { "-".to_owned() } else { items.join(", ") }
}

fn state_text(info: &ExportInfo) -> String {
    let state = match info.state {
        ExportState::Up => "up",
        ExportState::Starting => "starting",
        ExportState::Down => "down",
    };
    info.reason.as_ref().map_or_else(|| state.to_owned(), |reason| format!("{state}: {reason}"))
}

fn hosts_text(any_host: bool, hosts: &[String]) -> String {
    match (any_host, hosts) {
        (false, hosts) => list(hosts),
        (true, []) => "any".to_owned(),
        (true, hosts) => format!("any; by name: {}", list(hosts)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> DeviceInfo {
        DeviceInfo {
            bdf: "0000:01:00.0".into(),
            vendor_id: 0x1b36,
            device_id: 0x10,
            model: None,
            serial: Some("S1".into()),
            driver: Some("nvme".into()),
            iommu_group: Some(7),
            open: false,
            used_by: Vec::new(),
            signatures: Vec::new(),
            contents_unknown: None,
            bdevs: Vec::new(),
            health: None,
        }
    }

    #[test]
    fn contents_that_cannot_be_told_do_not_look_like_none() {
        let unknown =
            DeviceInfo { contents_unknown: Some("wipefs: no such file".into()), ..info() };
        for text in [devices(std::slice::from_ref(&unknown)), device(&unknown)] {
            assert!(text.contains("unknown: wipefs: no such file"), "{text}");
        }
        assert!(!devices(&[info()]).contains("unknown"));
    }

    #[test]
    fn an_ssd_that_warns_is_seen_in_the_list() {
        let health = DeviceHealth {
            warnings: vec!["spare".into(), "temperature".into()],
            temperature_celsius: Some(81),
            spare_percent: 3,
            spare_threshold_percent: 10,
            used_percent: 104,
            media_errors: 9,
            unsafe_shutdowns: 2,
            power_on_hours: 5,
            written_bytes: 1 << 40,
        };
        let info = DeviceInfo { open: true, health: Some(health), ..info() };
        let text = devices(std::slice::from_ref(&info));
        assert!(text.contains("warns of spare, temperature, 81 °C"), "{text}");
        let text = device(&info);
        for fact in ["3 %, warns at 10 %", "104 %", "media errors      9", "forebay"] {
            assert!(text.contains(fact), "{text}");
        }
    }
}
