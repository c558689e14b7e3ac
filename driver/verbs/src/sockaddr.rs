//! Socket addresses between Rust and C.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use libc::{AF_INET, AF_INET6, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage};

/// A socket address that C can read.
#[repr(C)]
pub(crate) union RawAddr {
    storage: sockaddr_storage,
    any: sockaddr,
    v4: sockaddr_in,
    v6: sockaddr_in6,
}

impl RawAddr {
    pub(crate) fn new(address: SocketAddr) -> Self {
        // SAFETY: zero is a valid value of plain C structs.
        let mut raw: RawAddr = unsafe { std::mem::zeroed() };
        match address {
            SocketAddr::V4(address) => {
                raw.v4 = sockaddr_in {
                    sin_family: AF_INET as u16,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                };
            }
            SocketAddr::V6(address) => {
                raw.v6 = sockaddr_in6 {
                    sin6_family: AF_INET6 as u16,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
            }
        }
        raw
    }

    /// What the functions of rdma_cm take; they do not write through it.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut sockaddr {
        &raw mut self.any
    }
}

/// The IP address and port in `storage`; `None` where it holds anything else.
pub(crate) fn from_storage(storage: &sockaddr_storage) -> Option<SocketAddr> {
    let raw = RawAddr { storage: *storage };
    // SAFETY: all variants are plain integers, and the storage is large enough for each.
    let (family, v4, v6) = unsafe { (raw.storage.ss_family, raw.v4, raw.v6) };
    match i32::from(family) {
        AF_INET => {
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        AF_INET6 => {
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_to_c_and_back() {
        for text in ["10.0.0.1:4420", "[fe80::1%3]:4420", "0.0.0.0:0"] {
            let address: SocketAddr = text.parse().unwrap();
            let raw = RawAddr::new(address);
            // SAFETY: every variant is plain integers.
            assert_eq!(from_storage(unsafe { &raw.storage }), Some(address));
        }
        // SAFETY: as above.
        let nothing: sockaddr_storage = unsafe { std::mem::zeroed() };
        assert_eq!(from_storage(&nothing), None);
    }

    #[test]
    fn ports_and_addresses_are_in_network_order() {
        let raw = RawAddr::new("10.0.0.1:4420".parse().unwrap());
        // SAFETY: the address is of the v4 variant.
        let v4 = unsafe { raw.v4 };
        assert_eq!(v4.sin_port.to_ne_bytes(), [0x11, 0x44]);
        assert_eq!(v4.sin_addr.s_addr.to_ne_bytes(), [10, 0, 0, 1]);
    }
}
