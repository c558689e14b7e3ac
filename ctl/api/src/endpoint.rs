//! Where hosts connect.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::DEFAULT_PORT;

/// A fabrics transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// NVMe/RDMA.
    Rdma,
    /// NVMe/TCP.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rdma => "rdma",
            Self::Tcp => "tcp",
        })
    }
}

/// An address and the transport that is spoken there. As text `rdma://10.0.0.1:4420` or
/// `tcp://[fd00::1]:4420`; read without a transport it is RDMA, and without a port 4420.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    /// The transport.
    pub transport: Transport,
    /// Address and port, which is never 0.
    pub address: SocketAddr,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport, self.address)
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (transport, rest) = match text.split_once("://") {
            None => (Transport::Rdma, text),
            Some(("rdma", rest)) => (Transport::Rdma, rest),
            Some(("tcp", rest)) => (Transport::Tcp, rest),
            Some((other, _)) => return Err(format!("{other} is no transport: rdma or tcp")),
        };
        let bare = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(rest);
        let with_port = || bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DEFAULT_PORT));
        let address = rest.parse::<SocketAddr>().or_else(|_| with_port()).map_err(|_| {
            format!("{text:?} is no address like 10.0.0.1, [fd00::1]:4421 or tcp://10.0.0.1")
        })?;
        match address.port() {
            0 => Err("port 0".to_owned()),
            _ => Ok(Self { transport, address }),
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transport_and_port_need_not_be_said() {
        for (text, endpoint) in [
            ("10.0.0.1", "rdma://10.0.0.1:4420"),
            ("rdma://10.0.0.1:4421", "rdma://10.0.0.1:4421"),
            ("tcp://10.0.0.1", "tcp://10.0.0.1:4420"),
            ("fd00::1", "rdma://[fd00::1]:4420"),
            ("[fd00::1]:9", "rdma://[fd00::1]:9"),
            ("tcp://[fd00::1]", "tcp://[fd00::1]:4420"),
            ("tcp://fd00::1", "tcp://[fd00::1]:4420"),
        ] {
            let parsed: Endpoint = text.parse().unwrap();
            assert_eq!(parsed.to_string(), endpoint);
            assert_eq!(endpoint.parse(), Ok(parsed));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |text: &str| text.parse::<Endpoint>().unwrap_err();
        assert!(error("eth0").contains("\"eth0\" is no address like"));
        assert!(error("tcp://host:1").contains("is no address like"));
        assert_eq!(error("10.0.0.1:0"), "port 0");
        assert_eq!(error("quic://10.0.0.1"), "quic is no transport: rdma or tcp");
    }
}
