//! A target behind a listener on loopback, on a thread of its own.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::target_side::TargetSide;

/// What is wrong with the network.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerConfig {
    /// Each connection breaks after a number of bytes below this, counted both ways.
    pub break_below: Option<u64>,
    /// Connections break no more after so many have.
    pub breaks: u32,
    /// Where the numbers come from.
    pub seed: u64,
    /// The first connection that has carried so many bytes carries no more, and stays open.
    pub stall_after: Option<u64>,
}

/// A target that listens until it is dropped.
pub struct Server {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u32>>,
}

impl Server {
    /// Listens at a free port of `ip`.
    pub fn start(ip: &str, config: ServerConfig) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let addr = listener.local_addr().expect("an address");
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || serve(&listener, addr, config, &told));
        Self { addr, stop, thread: Some(thread) }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it: how many connections it broke.
    pub fn stop(mut self) -> u32 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(0, |thread| thread.join().expect("the target lives"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Peer {
    stream: TcpStream,
    /// Taken from the target, and not sent yet.
    output: Vec<u8>,
    /// Bytes until it breaks.
    left: u64,
    /// Bytes that it has carried.
    carried: u64,
    stalled: bool,
}

fn serve(listener: &TcpListener, addr: SocketAddr, config: ServerConfig, stop: &AtomicBool) -> u32 {
    let mut target = TargetSide::new(Instant::now(), addr);
    let mut random = Random::new(config.seed);
    let mut peers: BTreeMap<u64, Peer> = BTreeMap::new();
    let (mut broken, mut stall_after) = (0, config.stall_after);
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let mut idle = true;
        if let Ok((stream, peer)) = listener.accept() {
            stream.set_nonblocking(true).expect("a socket");
            stream.set_nodelay(true).expect("a socket");
            let breaks = config.break_below.filter(|_| broken < config.breaks);
            let left = breaks.map_or(u64::MAX, |below| random.below(below));
            let key = target.open(now, peer);
            let output = Vec::new();
            peers.insert(key, Peer { stream, output, left, carried: 0, stalled: false });
            idle = false;
        }
        let mut gone = Vec::new();
        for (&key, peer) in &mut peers {
            match exchange(now, key, peer, &mut target) {
                Some(0) => {}
                Some(bytes) => {
                    idle = false;
                    peer.left -= bytes.min(peer.left);
                    peer.carried += bytes;
                    peer.stalled = stall_after.take_if(|most| peer.carried >= *most).is_some();
                    if peer.left == 0 {
                        broken += 1;
                        gone.push(key);
                    }
                }
                None => gone.push(key),
            }
        }
        for key in gone {
            // The socket first: what the target gives back after it may be used again.
            peers.remove(&key);
            target.close(now, key);
        }
        target.turn(now);
        if idle {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    broken
}

/// Moves what there is, both ways: how many bytes; `None`: the connection is over.
fn exchange(now: Instant, key: u64, peer: &mut Peer, target: &mut TargetSide) -> Option<u64> {
    if peer.stalled {
        return Some(0);
    }
    let mut moved = 0;
    let mut input = [0; 64 << 10];
    match peer.stream.read(&mut input) {
        Ok(0) => return None,
        Ok(bytes) => {
            target.receive(now, key, &input[..bytes]);
            moved += bytes as u64;
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(_) => return None,
    }
    if peer.output.is_empty() {
        peer.output = target.send(now, key, 256 << 10);
    }
    if !peer.output.is_empty() {
        match peer.stream.write(&peer.output) {
            Ok(bytes) => {
                peer.output.drain(..bytes);
                moved += bytes as u64;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    } else if target.has_ended(key) {
        return None;
    }
    Some(moved)
}
