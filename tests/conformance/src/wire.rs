//! A network in memory that cuts bytes anywhere, and may break at any byte.

use std::time::Instant;

use host::protocol::{Connection, Event};
use nvme_tcp::Piece;

use crate::random::Random;
use crate::target_side::TargetSide;

/// How moving bytes went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pump {
    /// Some have moved.
    Moved,
    /// There was nothing to move.
    Idle,
    /// The connection is gone.
    Broken,
}

/// One connection between a host and a target.
#[derive(Debug)]
pub struct Wire {
    key: u64,
    random: Random,
    /// Bytes that it carries before it breaks, both ways together.
    left: u64,
    broken: bool,
}

impl Wire {
    /// Connects to the target.
    pub fn new(now: Instant, target: &mut TargetSide, seed: u64) -> Self {
        let peer = "10.0.0.2:50000".parse().expect("an address");
        let key = target.open(now, peer);
        Self { key, random: Random::new(seed), left: u64::MAX, broken: false }
    }

    /// From now on it carries so many bytes and then breaks.
    pub fn break_after(&mut self, bytes: u64) {
        self.left = bytes;
    }

    /// Moves a few bytes each way; what the host makes of them goes to `events`.
    pub fn pump(
        &mut self,
        now: Instant,
        host: &mut Connection,
        target: &mut TargetSide,
        events: &mut Vec<Event>,
    ) -> Pump {
        if self.broken {
            return Pump::Broken;
        }
        let sent = self.carry_to_target(now, host, target);
        collect(host, events);
        let received = self.carry_to_host(now, host, target, events);
        self.left -= (sent + received).min(self.left);
        if self.left == 0 || received == 0 && target.has_ended(self.key) {
            target.close(now, self.key);
            self.broken = true;
            return Pump::Broken;
        }
        if sent + received > 0 { Pump::Moved } else { Pump::Idle }
    }

    fn carry_to_target(
        &mut self,
        now: Instant,
        host: &mut Connection,
        target: &mut TargetSide,
    ) -> u64 {
        let mut bytes = Vec::new();
        let most = self.most();
        for piece in host.pieces() {
            let from = bytes.len();
            match piece {
                Piece::Bytes(run) => bytes.extend_from_slice(run),
                Piece::Span(span) => {
                    bytes.resize(from + span.len() as usize, 0);
                    span.read(0, &mut bytes[from..]);
                }
            }
            if bytes.len() >= most {
                break;
            }
        }
        bytes.truncate(most);
        host.handle_sent(bytes.len());
        target.receive(now, self.key, &bytes);
        bytes.len() as u64
    }

    fn carry_to_host(
        &mut self,
        now: Instant,
        host: &mut Connection,
        target: &mut TargetSide,
        events: &mut Vec<Event>,
    ) -> u64 {
        let bytes = target.send(now, self.key, self.most());
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let payload = host.payload().filter(|_| self.random.below(2) == 0);
            let taken = match payload {
                Some(span) => {
                    let direct = rest.len().min(span.len() as usize);
                    span.write(0, &rest[..direct]);
                    host.handle_payload(direct as u32);
                    direct
                }
                None => host.handle_input(rest),
            };
            rest = &rest[taken..];
            let before = events.len();
            collect(host, events);
            if taken == 0 && events.len() == before {
                break;
            }
        }
        bytes.len() as u64
    }

    /// How many bytes go next: often few, sometimes many.
    fn most(&mut self) -> usize {
        let most = match self.random.below(4) {
            0 => self.random.below(8) + 1,
            1 => self.random.below(200) + 1,
            _ => self.random.below(20_000) + 1,
        };
        most.min(self.left) as usize
    }
}

fn collect(host: &mut Connection, events: &mut Vec<Event>) {
    while let Some(event) = host.poll_event() {
        events.push(event);
    }
}
