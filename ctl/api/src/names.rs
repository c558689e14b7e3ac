//! Checks of names and sizes that need no state. Each returns the reason as a sentence's end,
//! to stand behind the name of the parameter.

use crate::endpoint::Endpoint;
use crate::limits::{
    BLOCK_BYTES, MAX_BDEV_NAME_BYTES, MAX_LABEL_KEY_BYTES, MAX_NQN_BYTES, MAX_SIZE_BYTES,
    MAX_VOLUME_NAME_BYTES, NQN_PREFIX,
};

/// The well-known name of every discovery subsystem (NVMe Base 2.1, section 4.7).
const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

/// The name of an export's subsystem where none is given. Valid whenever the bdev's name is.
pub fn default_nqn(bdev: &str) -> String {
    format!("{NQN_PREFIX}{bdev}")
}

/// The line that attaches a subsystem on a Linux host, ready for a shell.
pub fn connect_command(endpoint: Endpoint, nqn: &str) -> String {
    let Endpoint { transport, address } = endpoint;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:@/+".contains(c);
    let nqn = if nqn.chars().all(plain) {
        nqn.to_owned()
    } else {
        format!("'{}'", nqn.replace('\'', r"'\''"))
    };
    format!("nvme connect -t {transport} -a {} -s {} -n {nqn}", address.ip(), address.port())
}

/// Checks a name that is to be a subsystem of ours.
pub fn check_subsystem_nqn(nqn: &str) -> Result<(), String> {
    if nqn == DISCOVERY_NQN {
        return Err("is the name of the discovery subsystem".to_owned());
    }
    check_nqn(nqn)
}

/// Checks the name of a host.
pub fn check_host_nqn(nqn: &str) -> Result<(), String> {
    if nqn == DISCOVERY_NQN {
        return Err("is the name of the discovery subsystem, not of a host".to_owned());
    }
    check_nqn(nqn)
}

/// Checks an NVMe qualified name (NVMe Base 2.1, section 4.7): either `nqn.yyyy-mm.domain:string`
/// or `nqn.2014-08.org.nvmexpress:uuid:UUID`, and nothing that would not survive a command line.
pub fn check_nqn(nqn: &str) -> Result<(), String> {
    let form = "nqn.yyyy-mm.reversed.domain:name";
    if nqn.len() > MAX_NQN_BYTES {
        return Err(format!("has {} bytes, {MAX_NQN_BYTES} are allowed", nqn.len()));
    }
    if let Some(c) = nqn.chars().find(|c| c.is_control() || c.is_whitespace()) {
        return Err(format!("contains the character {c:?}"));
    }
    if let Some(uuid) = nqn.strip_prefix(UUID_PREFIX) {
        let fits = uuid.len() == 36
            && uuid.char_indices().all(|(index, c)| match index {
                8 | 13 | 18 | 23 => c == '-',
                _ => c.is_ascii_hexdigit(),
            });
        return if fits { Ok(()) } else { Err(format!("{uuid:?} is no UUID")) };
    }
    let rest = nqn.strip_prefix("nqn.").ok_or_else(|| format!("does not begin like {form}"))?;
    let (date, rest) = rest.split_once('.').ok_or_else(|| format!("is not like {form}"))?;
    let date_fits = date.split_once('-').is_some_and(|(year, month)| {
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let in_year = |month: u8| (1..=12).contains(&month);
        year.len() == 4
            && digits(year)
            && month.len() == 2
            && digits(month)
            && month.parse().is_ok_and(in_year)
    });
    if !date_fits {
        return Err(format!("{date:?} is no date like 2026-11"));
    }
    let (domain, name) = rest.split_once(':').ok_or_else(|| format!("is not like {form}"))?;
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if !domain.split('.').all(label) {
        return Err(format!("{domain:?} is no domain name"));
    }
    if name.is_empty() {
        return Err("nothing stands behind the colon".to_owned());
    }
    Ok(())
}

/// Checks the name of a bdev: letters, digits, `-`, `_` and `.`, with a letter or digit first.
pub fn check_bdev_name(name: &str) -> Result<(), String> {
    check_plain_name(name, MAX_BDEV_NAME_BYTES)
}

/// Checks the name of a pool, or that of a volume or snapshot without its pool: as a bdev's.
pub fn check_pool_name(name: &str) -> Result<(), String> {
    check_plain_name(name, MAX_VOLUME_NAME_BYTES)
}

/// Checks the name of a volume or snapshot: `POOL/NAME`.
pub fn check_volume_name(name: &str) -> Result<(), String> {
    let (pool, volume) = split_volume_name(name)
        .ok_or_else(|| format!("{name:?} is not like POOL/NAME; `forebay volume list` has them"))?;
    check_pool_name(pool)?;
    check_pool_name(volume)
}

/// Checks the name of what can be exported: a bdev, a volume or a snapshot.
pub fn check_export_name(name: &str) -> Result<(), String> {
    match split_volume_name(name) {
        Some(_) => check_volume_name(name),
        None => check_bdev_name(name),
    }
}

/// Pool and volume of a name like `POOL/NAME`.
pub fn split_volume_name(name: &str) -> Option<(&str, &str)> {
    name.split_once('/')
}

/// The name of a volume's snapshot: snapshots of one group have names that end alike.
pub fn snapshot_of(volume: &str, name: &str) -> String {
    format!("{volume}.{name}")
}

/// Checks the key of a label: nothing that would not survive `key=value` on a command line.
pub fn check_label_key(key: &str) -> Result<(), String> {
    if key.is_empty() || key.len() > MAX_LABEL_KEY_BYTES {
        return Err(format!(
            "a key has 1 to {MAX_LABEL_KEY_BYTES} bytes; {key:?} has {}",
            key.len()
        ));
    }
    match key.chars().find(|c| !(c.is_ascii_alphanumeric() || "-_./".contains(*c))) {
        Some(c) => Err(format!("key {key:?} contains {c:?}; letters, digits, - _ . / are allowed")),
        None if key.ends_with('-') => Err(format!("key {key:?} ends with a dash")),
        None => Ok(()),
    }
}

fn check_plain_name(name: &str, max_bytes: usize) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.len() > max_bytes {
        return Err(format!("has {} bytes, {max_bytes} are allowed", name.len()));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(format!("{name:?} does not begin with a letter or digit"));
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || "-_.".contains(*c))) {
        Some(c) => Err(format!("{name:?} contains {c:?}; letters, digits, - _ . are allowed")),
        None => Ok(()),
    }
}

/// Checks the address of a PCI function, such as `0000:01:00.0`. The domain may be left out when it
/// is 0, and has more than four digits behind some SSD controllers.
pub fn check_bdf(bdf: &str) -> Result<(), String> {
    let hex = |text: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let fits = || {
        let (rest, function) = bdf.rsplit_once('.')?;
        let (rest, device) = rest.rsplit_once(':')?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
        let device_fits = hex(device, 2..=2) && u8::from_str_radix(device, 16).ok()? < 32;
        let function_fits = matches!(function.as_bytes(), [b'0'..=b'7']);
        (hex(domain, 4..=8) && hex(bus, 2..=2) && device_fits && function_fits).then_some(())
    };
    fits().ok_or_else(|| format!("{bdf:?} is no PCI address like 0000:01:00.0"))
}

/// Checks the size of a logical block.
pub fn check_block_bytes(block_bytes: u32) -> Result<(), String> {
    if BLOCK_BYTES.contains(&block_bytes) {
        return Ok(());
    }
    Err(format!("{block_bytes} is no size of a logical block: 512 or 4096"))
}

/// Checks the size of a bdev: at least one block, and whole blocks.
pub fn check_size(size_bytes: u64, block_bytes: u32) -> Result<(), String> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(u64::from(block_bytes)) {
        return Err(format!("{size_bytes} is no multiple of the block size, {block_bytes}"));
    }
    if size_bytes > MAX_SIZE_BYTES {
        return Err(format!("{size_bytes} is more than {MAX_SIZE_BYTES}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_nqns_pass() {
        let uuid = "nqn.2014-08.org.nvmexpress:uuid:0f7e1e3a-96f5-4b0a-a0f3-2f4d7cb8f6de";
        for nqn in [uuid, "nqn.2026-11.io.forebay:ram0", "nqn.2020-01.a:b:c", "nqn.1999-12.x.y-z:ü"]
        {
            assert_eq!(check_nqn(nqn), Ok(()), "{nqn}");
        }
        let longest = "x".repeat(MAX_BDEV_NAME_BYTES);
        assert_eq!(check_bdev_name(&longest), Ok(()));
        assert_eq!(check_subsystem_nqn(&default_nqn(&longest)), Ok(()));
    }

    #[test]
    fn bad_nqns_are_refused() {
        let long = format!("nqn.2026-11.io.forebay:{}", "x".repeat(201));
        for nqn in [
            "",
            "nqn",
            "nqn.",
            "iqn.2026-11.io:x",
            "nqn.2026-13.io:x",
            "nqn.2026-00.io:x",
            "nqn.26-11.io:x",
            "nqn.2026-+1.io:x",
            "nqn.2026-11.io",
            "nqn.2026-11.io:",
            "nqn.2026-11.:x",
            "nqn.2026-11.a..b:x",
            "nqn.2026-11.io:a b",
            "nqn.2026-11.io:a\n",
            "nqn.2014-08.org.nvmexpress:uuid:1234",
            long.as_str(),
        ] {
            assert!(check_nqn(nqn).is_err(), "{nqn}");
        }
        assert!(check_subsystem_nqn(DISCOVERY_NQN).is_err());
        assert!(check_host_nqn(DISCOVERY_NQN).is_err());
    }

    #[test]
    fn names_addresses_and_sizes() {
        for name in ["", "-a", ".a", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(check_bdev_name(name).is_err(), "{name}");
        }
        for name in ["a/b", "tank/data.before", "1/2"] {
            assert_eq!(check_volume_name(name), Ok(()), "{name}");
        }
        for name in ["", "a", "a/", "/a", "a/b/c", "a/-b", &format!("a/{}", "x".repeat(64))] {
            assert!(check_volume_name(name).is_err(), "{name}");
        }
        assert!(check_export_name("ram0").is_ok() && check_export_name("a/b").is_ok());
        for key in ["", "a=b", "a b", "a-", &"x".repeat(64)] {
            assert!(check_label_key(key).is_err(), "{key}");
        }
        for bdf in ["0000:01:00.0", "01:00.0", "10000:01:1f.7", "0000:3B:00.0"] {
            assert_eq!(check_bdf(bdf), Ok(()), "{bdf}");
        }
        for bdf in [
            "",
            "01:00",
            "000:01:00.0",
            "0000:01:20.0",
            "0000:01:00.8",
            "0000:01:00.0 ",
            "0000:0G:00.0",
            "0000:+1:00.0",
            "0000-01:00.0",
        ] {
            assert!(check_bdf(bdf).is_err(), "{bdf}");
        }
        assert!(check_block_bytes(1024).is_err());
        assert_eq!(check_size(4096, 4096), Ok(()));
        for size in [0, 512, 4097, MAX_SIZE_BYTES + 4096] {
            assert!(check_size(size, 4096).is_err(), "{size}");
        }
    }

    #[test]
    fn connect_lines_are_safe_for_a_shell() {
        let v4 = "10.0.0.1:4420".parse().unwrap();
        let line = connect_command(v4, "nqn.2026-11.io.forebay:ram0");
        assert_eq!(line, "nvme connect -t rdma -a 10.0.0.1 -s 4420 -n nqn.2026-11.io.forebay:ram0");
        let v6 = "tcp://[fd00::1]:4421".parse().unwrap();
        let line = connect_command(v6, "nqn.2026-11.io:$(x)'");
        assert_eq!(line, r"nvme connect -t tcp -a fd00::1 -s 4421 -n 'nqn.2026-11.io:$(x)'\'''");
    }
}
