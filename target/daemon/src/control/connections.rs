//! The connections of all transports, as the control thread knows them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nvmf::Transport;

use crate::limits::MAX_CONNECTIONS;

/// A connection, from when it came in until nothing of it is left.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) core: usize,
    pub(crate) transport: Transport,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    /// Queue identifier in the connection request, where the transport has one.
    pub(crate) qid: Option<u16>,
    /// Entries of its queue; before Connect, as many as it may ask for.
    pub(crate) entries: u16,
    /// Its Connect was accepted.
    pub(crate) bound: bool,
    /// It is to be closed, as soon as its core has taken it.
    pub(crate) doomed: bool,
}

/// By key, which is never used again: the oldest has the lowest.
#[derive(Debug)]
pub(crate) struct Connections {
    open: BTreeMap<u64, Connection>,
    next_key: u64,
    cores: usize,
}

impl Connections {
    pub(crate) fn new(cores: usize) -> Self {
        Self { open: BTreeMap::new(), next_key: 1, cores }
    }

    pub(crate) fn add(&mut self, connection: Connection) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        self.open.insert(key, connection);
        key
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<Connection> {
        self.open.remove(&key)
    }

    pub(crate) fn get(&self, key: u64) -> Option<&Connection> {
        self.open.get(&key)
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut Connection> {
        self.open.get_mut(&key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.open.len() >= MAX_CONNECTIONS
    }

    /// The core with the fewest entries of queues: those of one controller spread by themselves.
    pub(crate) fn least_loaded(&self) -> usize {
        let mut load = vec![0; self.cores];
        for connection in self.open.values() {
            load[connection.core] += u32::from(connection.entries);
        }
        (0..self.cores).min_by_key(|&core| load[core]).unwrap_or_default()
    }

    /// The oldest connection of a transport without an accepted Connect, where there are at least
    /// `count` of them.
    pub(crate) fn oldest_unbound(&self, transport: Transport, count: usize) -> Option<u64> {
        let mut unbound = self.open.iter().filter(|(_, connection)| {
            connection.transport == transport && !connection.bound && !connection.doomed
        });
        let oldest = unbound.next().map(|(&key, _)| key)?;
        (unbound.count() + 1 >= count).then_some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(core: usize, entries: u16, bound: bool) -> Connection {
        let address = "10.0.0.1:4420".parse().unwrap();
        Connection {
            core,
            transport: Transport::Tcp,
            peer: address,
            local: address,
            qid: None,
            entries,
            bound,
            doomed: false,
        }
    }

    #[test]
    fn queues_spread_over_cores() {
        let mut connections = Connections::new(3);
        let mut cores = Vec::new();
        for _ in 0..6 {
            let core = connections.least_loaded();
            cores.push(core);
            connections.add(connection(core, 128, false));
        }
        assert_eq!(cores, [0, 1, 2, 0, 1, 2]);
        let key = connections.add(connection(1, 128, true));
        connections.add(connection(0, 32, true));
        assert_eq!(connections.least_loaded(), 2);
        connections.remove(key);
        assert_eq!(connections.least_loaded(), 1);
    }

    #[test]
    fn the_oldest_that_has_not_connected() {
        let mut connections = Connections::new(1);
        connections.add(connection(0, 32, true));
        let oldest = connections.add(connection(0, 128, false));
        assert_eq!(connections.oldest_unbound(Transport::Tcp, 2), None);
        let next = connections.add(connection(0, 128, false));
        assert_eq!(connections.oldest_unbound(Transport::Tcp, 2), Some(oldest));
        assert_eq!(connections.oldest_unbound(Transport::Rdma, 0), None);
        connections.get_mut(oldest).unwrap().doomed = true;
        assert_eq!(connections.oldest_unbound(Transport::Tcp, 1), Some(next));
    }
}
