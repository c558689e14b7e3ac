//! How a target is named.

use std::fmt;
use std::str::FromStr;

use api::{Endpoint, parse_size, show_size};
use vfio::pci::Bdf;

/// What load is put on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A device that stores nothing: what is above it is measured alone.
    Null {
        /// Its size.
        bytes: u64,
    },
    /// Memory, empty at first and gone afterwards.
    Ram {
        /// Its size.
        bytes: u64,
    },
    /// A file, or a block device of the kernel.
    File {
        /// Where it is.
        path: String,
    },
    /// A namespace of an SSD, through our own driver.
    Pcie {
        /// The SSD's PCI address.
        bdf: Bdf,
        /// The namespace.
        nsid: u32,
    },
    /// A namespace of a target, over NVMe over Fabrics.
    Fabrics {
        /// Where the target listens.
        endpoint: Endpoint,
        /// The subsystem.
        nqn: String,
        /// The namespace.
        nsid: u32,
    },
}

impl Address {
    /// Whether something may be there that a write would destroy.
    pub fn keeps_data(&self) -> bool {
        !matches!(self, Address::Null { .. } | Address::Ram { .. })
    }

    /// Whether we choose the size of its logical blocks.
    pub fn has_any_block_size(&self) -> bool {
        !matches!(self, Address::Pcie { .. } | Address::Fabrics { .. })
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "{text:?} is none of null:SIZE, ram:SIZE, file:PATH, pcie:BDF[/NSID], \
                 rdma://ADDR[:PORT]/NQN[/NSID], tcp://ADDR[:PORT]/NQN[/NSID]"
            )
        };
        let (kind, rest) = text.split_once(':').ok_or_else(unknown)?;
        match kind {
            "null" => Ok(Address::Null { bytes: parse_size(rest)? }),
            "ram" => Ok(Address::Ram { bytes: parse_size(rest)? }),
            "file" if rest.is_empty() => Err("file: names no file".to_owned()),
            "file" => Ok(Address::File { path: rest.to_owned() }),
            "pcie" => {
                let (bdf, nsid) = rest.split_once('/').unwrap_or((rest, "1"));
                let nsid = parse_nsid(nsid)?;
                let bdf = bdf.parse().map_err(|error: vfio::VfioError| error.to_string())?;
                Ok(Address::Pcie { bdf, nsid })
            }
            "rdma" | "tcp" => {
                let (endpoint, name) = rest
                    .strip_prefix("//")
                    .and_then(|rest| rest.split_once('/'))
                    .ok_or_else(unknown)?;
                // An NQN may have slashes, as those that volumes get by default: only what looks
                // like a namespace is one.
                let (nqn, nsid) = match name.rsplit_once('/') {
                    Some((nqn, nsid)) if nsid.bytes().all(|byte| byte.is_ascii_digit()) => {
                        (nqn, parse_nsid(nsid)?)
                    }
                    _ => (name, 1),
                };
                api::check_nqn(nqn).map_err(|reason| format!("{nqn:?} {reason}"))?;
                let endpoint = format!("{kind}://{endpoint}").parse()?;
                Ok(Address::Fabrics { endpoint, nqn: nqn.to_owned(), nsid })
            }
            _ => Err(unknown()),
        }
    }
}

fn parse_nsid(text: &str) -> Result<u32, String> {
    let nsid = text.parse().ok().filter(|nsid| (1..=0xFFFF_FFFE).contains(nsid));
    nsid.ok_or_else(|| format!("{text:?} is no namespace, which is a number from 1 on"))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Null { bytes } => write!(f, "null:{}", show_size(*bytes).replace(' ', "")),
            Address::Ram { bytes } => write!(f, "ram:{}", show_size(*bytes).replace(' ', "")),
            Address::File { path } => write!(f, "file:{path}"),
            Address::Pcie { bdf, nsid } => write!(f, "pcie:{bdf}/{nsid}"),
            Address::Fabrics { endpoint, nqn, nsid } => write!(f, "{endpoint}/{nqn}/{nsid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_shown() {
        for text in ["null:1GiB", "ram:64MiB", "file:/dev/a b:c", "pcie:0000:01:00.0/2"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("null:1G".parse(), Ok(Address::Null { bytes: 1 << 30 }));
        let first = "pcie:0000:01:00.0".parse::<Address>().unwrap();
        assert_eq!(first.to_string(), "pcie:0000:01:00.0/1");
        let fabrics = "tcp://[fd00::1]/nqn.2026-11.io.forebay:a".parse::<Address>().unwrap();
        assert_eq!(fabrics.to_string(), "tcp://[fd00::1]:4420/nqn.2026-11.io.forebay:a/1");
        assert_eq!(fabrics.to_string().parse(), Ok(fabrics));
        let rdma = "rdma://10.0.0.1:4421/nqn.2026-11.io.forebay:a/2";
        assert_eq!(rdma.parse::<Address>().unwrap().to_string(), rdma);
        for volume in ["tank/data", "tank/5/1", "tank/data.r1"] {
            let text = format!("tcp://10.0.0.1:4420/nqn.2026-11.io.forebay:{volume}");
            let shown = text.parse::<Address>().unwrap().to_string();
            assert_eq!(shown.strip_suffix("/1").unwrap(), text.trim_end_matches("/1"));
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_would_be_one() {
        for text in ["", "null", "tape:1", "jobs.toml", "tcp://[::1]:4420", "tcp:10.0.0.1/nqn"] {
            assert!(text.parse::<Address>().unwrap_err().contains("pcie:BDF"), "{text}");
        }
        for text in [
            "null:0",
            "ram:x",
            "file:",
            "pcie:01:00",
            "pcie:0000:01:00.0/0",
            "tcp://h/nqn.2026-11.io:a",
            "tcp://[::1]/x",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
