//! Where hosts connect: addresses of the command line, and those that exports have asked for.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use api::{ErrorCode, RpcError};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nvmf::{Listener, Transport};

use super::Control;

impl Control {
    /// Opens the doors at start: those of the command line must open; those that exports asked for
    /// may open later, when their address is there.
    ///
    /// # Errors
    /// An address of the command line is no RDMA device's, or its port is taken.
    pub(crate) fn restore_listeners(&mut self, configured: &[SocketAddr]) -> anyhow::Result<()> {
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
        addresses: &[SocketAddr],
    ) -> Result<Vec<SocketAddr>, RpcError> {
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
    fn open_listener(&mut self, address: SocketAddr) -> anyhow::Result<bool> {
        if self.listeners.contains(&address) {
            return Ok(false);
        }
        let rdma = self.rdma.as_mut();
        rdma.context("this machine has no RDMA; see the log of forebay-target")?.listen(address)?;
        if let Err(error) = self.show_listener(address) {
            self.close_listener(address);
            return Err(error);
        }
        tracing::info!(%address, "listening");
        Ok(true)
    }

    fn listen_later(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        match &mut self.rdma {
            Some(rdma) if !self.listeners.contains(&address) => rdma.listen_later(address),
            _ => return Ok(()),
        }
        self.show_listener(address)
    }

    fn show_listener(&mut self, addr: SocketAddr) -> anyhow::Result<()> {
        self.target.add_listener(Listener { transport: Transport::Rdma, addr })?;
        self.listeners.push(addr);
        Ok(())
    }

    /// Closes an address; who came in by it stays.
    pub(super) fn close_listener(&mut self, addr: SocketAddr) {
        if let Some(rdma) = &mut self.rdma {
            rdma.stop_listening(addr);
        }
        // One that was never shown need not be hidden.
        let _ = self.target.remove_listener(Listener { transport: Transport::Rdma, addr });
        self.listeners.retain(|&open| open != addr);
        tracing::info!(address = %addr, "not listening any more");
    }

    /// Closes what neither the command line nor an export asks for.
    pub(super) fn close_unused_listeners(&mut self) {
        let wanted = |address: &SocketAddr| {
            let mut exports = self.state.exports.iter();
            self.configured.contains(address)
                || exports.any(|export| export.listeners.contains(address))
        };
        let unused: Vec<_> = self.listeners.iter().copied().filter(|a| !wanted(a)).collect();
        unused.into_iter().for_each(|address| self.close_listener(address));
    }

    /// What a host can be told to connect to: a listener on all addresses stands for those that
    /// RDMA devices have.
    pub(super) fn reachable_addresses(&self) -> Vec<SocketAddr> {
        let expand = |&listener: &SocketAddr| match listener.ip().is_unspecified() {
            false => vec![listener],
            true => {
                let with_port = |ip| SocketAddr::new(ip, listener.port());
                self.rdma_addresses(listener.is_ipv4()).into_iter().map(with_port).collect()
            }
        };
        self.listeners.iter().flat_map(expand).collect()
    }

    fn rdma_addresses(&self, ipv4: bool) -> Vec<IpAddr> {
        let Some(rdma) = &self.rdma else { return Vec::new() };
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
        addresses.filter(usable).filter(|&ip| rdma.has_address(ip)).collect()
    }
}
