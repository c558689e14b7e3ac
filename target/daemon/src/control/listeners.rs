//! Where hosts connect: addresses of the command line, and those that exports have asked for.

use std::net::{IpAddr, SocketAddr};

use api::{Endpoint, ErrorCode, RpcError, Transport};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nvmf::Listener;

use super::Control;

impl Control {
    /// Opens the doors at start: those of the command line must open; those that exports asked for
    /// may open later, when their address is there.
    ///
    /// # Errors
    /// An address of the command line is no RDMA device's, or its port is taken.
    pub(crate) fn restore_listeners(&mut self, configured: &[Endpoint]) -> anyhow::Result<()> {
        self.configured = configured.to_vec();
        for &address in configured {
            self.open_listener(address)?;
        }
        let exports = self.state.exports.iter();
        let saved: Vec<_> = exports.flat_map(|export| export.listeners.clone()).collect();
        for address in saved {
            if let Err(error) = self.open_listener(address) {
                tracing::warn!(%address, error = format!("{error:#}"),
                    "not listening yet; it is tried again and again");
                self.listen_later(address)?;
            }
        }
        Ok(())
    }

    /// Opens addresses that are not open yet, all of them or none, and says which.
    pub(super) fn open_listeners(
        &mut self,
        addresses: &[Endpoint],
    ) -> Result<Vec<Endpoint>, RpcError> {
        let mut opened = Vec::new();
        for &address in addresses {
            match self.open_listener(address) {
                Ok(true) => opened.push(address),
                Ok(false) => {}
                Err(error) => {
                    opened.into_iter().for_each(|address| self.close_listener(address));
                    let message = format!("listening on {address}: {error:#}");
                    return Err(RpcError::new(ErrorCode::Failed, message));
                }
            }
        }
        Ok(opened)
    }

    /// Whether it was opened now.
    fn open_listener(&mut self, endpoint: Endpoint) -> anyhow::Result<bool> {
        if self.listeners.contains(&endpoint) {
            return Ok(false);
        }
        match (endpoint.transport, &mut self.rdma) {
            (Transport::Tcp, _) => self.tcp.listen(endpoint.address)?,
            (Transport::Rdma, Some(rdma)) => rdma.listen(endpoint.address)?,
            (Transport::Rdma, None) => anyhow::bail!(
                "this machine has no RDMA, as the log of forebay-target says; tcp://{} is NVMe/TCP",
                endpoint.address
            ),
        }
        if let Err(error) = self.show_listener(endpoint) {
            self.close_listener(endpoint);
            return Err(error);
        }
        tracing::info!(%endpoint, "listening");
        Ok(true)
    }

    fn listen_later(&mut self, endpoint: Endpoint) -> anyhow::Result<()> {
        if self.listeners.contains(&endpoint) {
            return Ok(());
        }
        match (endpoint.transport, &mut self.rdma) {
            (Transport::Tcp, _) => self.tcp.listen_later(endpoint.address),
            (Transport::Rdma, Some(rdma)) => rdma.listen_later(endpoint.address),
            (Transport::Rdma, None) => return Ok(()),
        }
        self.show_listener(endpoint)
    }

    fn show_listener(&mut self, endpoint: Endpoint) -> anyhow::Result<()> {
        self.target.add_listener(shown(endpoint))?;
        self.listeners.push(endpoint);
        Ok(())
    }

    /// Closes an address; who came in by it stays.
    pub(super) fn close_listener(&mut self, endpoint: Endpoint) {
        match (endpoint.transport, &mut self.rdma) {
            (Transport::Tcp, _) => self.tcp.stop_listening(endpoint.address),
            (Transport::Rdma, Some(rdma)) => rdma.stop_listening(endpoint.address),
            (Transport::Rdma, None) => {}
        }
        // One that was never shown need not be hidden.
        let _ = self.target.remove_listener(shown(endpoint));
        self.listeners.retain(|&open| open != endpoint);
        tracing::info!(%endpoint, "not listening any more");
    }

    /// Closes what neither the command line nor an export asks for.
    pub(super) fn close_unused_listeners(&mut self) {
        let wanted = |address: &Endpoint| {
            let mut exports = self.state.exports.iter();
            self.configured.contains(address)
                || exports.any(|export| export.listeners.contains(address))
        };
        let unused: Vec<_> = self.listeners.iter().copied().filter(|a| !wanted(a)).collect();
        unused.into_iter().for_each(|address| self.close_listener(address));
    }

    /// What a host can be told to connect to: a listener on all addresses stands for those that
    /// RDMA devices have, or those of all interfaces for TCP.
    pub(super) fn reachable_endpoints(&self) -> Vec<Endpoint> {
        let expand = |&listener: &Endpoint| {
            let Endpoint { transport, address } = listener;
            if !address.ip().is_unspecified() {
                return vec![listener];
            }
            let ips = interface_addresses(address.is_ipv4());
            let ips: Vec<IpAddr> = match (transport, &self.rdma) {
                (Transport::Tcp, _) => ips,
                (Transport::Rdma, Some(rdma)) => {
                    ips.into_iter().filter(|&ip| rdma.has_address(ip)).collect()
                }
                (Transport::Rdma, None) => Vec::new(),
            };
            let with_port = |ip| SocketAddr::new(ip, address.port());
            ips.into_iter().map(|ip| Endpoint { transport, address: with_port(ip) }).collect()
        };
        self.listeners.iter().flat_map(expand).collect()
    }
}

/// The addresses of this machine's interfaces that others could reach it at.
fn interface_addresses(ipv4: bool) -> Vec<IpAddr> {
    let interfaces = getifaddrs().into_iter().flatten();
    let interfaces = interfaces.filter(|one| one.flags.contains(InterfaceFlags::IFF_UP));
    let address = |address: nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    // A link-local address needs the host's own name of the link, which nobody here knows.
    let usable = |ip: &IpAddr| match ip {
        IpAddr::V4(_) => ipv4,
        IpAddr::V6(v6) => !ipv4 && !v6.is_unicast_link_local(),
    };
    let addresses = interfaces.filter_map(|one| one.address.and_then(address));
    let mut usable: Vec<_> = addresses.filter(usable).collect();
    if usable.iter().any(|ip| !ip.is_loopback()) {
        usable.retain(|ip| !ip.is_loopback());
    }
    usable
}

/// A listener as hosts find it by discovery.
fn shown(Endpoint { transport, address }: Endpoint) -> Listener {
    let transport = match transport {
        Transport::Rdma => nvmf::Transport::Rdma,
        Transport::Tcp => nvmf::Transport::Tcp,
    };
    Listener { transport, addr: address }
}
