//! A plain TCP request and response on two cores: what any NVMe/TCP target on this machine pays for
//! the network alone, to be measured in the same run as one.
//!
//! ```text
//! cargo run --release -p sockets --example echo -- REQUEST RESPONSE DEPTH SECONDS [uring]
//! ```
//!
//! REQUEST and RESPONSE are bytes. The first core answers, the second asks and keeps DEPTH requests
//! on their way; both poll. With `uring` the answering side receives and sends by io_uring, one
//! system call a turn, rather than by a call for each. Prints responses a second and the time that
//! one takes, in nanoseconds.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};

const BUFFER_BYTES: usize = 256 * 1024;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<usize> = arguments.iter().map_while(|word| word.parse().ok()).collect();
    let ([request, response, depth, seconds], uring) = match (&numbers[..], arguments.get(4)) {
        (&[a, b, c, d], None) if a * b * c * d > 0 => ([a, b, c, d], false),
        (&[a, b, c, d], Some(word)) if a * b * c * d > 0 && word == "uring" => ([a, b, c, d], true),
        _ => {
            eprintln!("usage: echo REQUEST RESPONSE DEPTH SECONDS [uring]");
            std::process::exit(2);
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let answering = thread::spawn(move || {
        pin(0);
        let (stream, _) = listener.accept().expect("the asking side");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        match uring {
            false => answer(stream, request, response),
            true => answer_by_uring(&stream, request, response),
        }
    });
    pin(1);
    let stream = TcpStream::connect(address).expect("the answering side");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let duration = Duration::from_secs(seconds as u64);
    let (count, elapsed) = ask(stream, request, response, depth, duration).expect("asking");
    // The asking side ends in the middle of it, which is an error to the other.
    let _ = answering.join();
    let ns = elapsed.as_nanos() as f64 / count as f64;
    println!("{request}/{response} QD{depth}: {:.0} a second, {ns:.0} ns", 1e9 / ns);
}

fn pin(core: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(core).expect("a core");
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).expect("two cores");
}

/// Nothing to do, for a call that would have had to wait.
fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn answer(mut stream: TcpStream, request: usize, response: usize) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let (mut input, output) = (vec![0; BUFFER_BYTES], vec![7; BUFFER_BYTES]);
    let (mut have, mut owed) = (0, 0);
    loop {
        match unless_blocked(stream.read(&mut input))? {
            Some(0) => return Ok(()),
            Some(bytes) => have += bytes,
            None => {}
        }
        owed += have / request * response;
        have %= request;
        while owed > 0 {
            match unless_blocked(stream.write(&output[..owed.min(BUFFER_BYTES)]))? {
                Some(bytes) => owed -= bytes,
                None => break,
            }
        }
    }
}

fn answer_by_uring(stream: &TcpStream, request: usize, response: usize) -> io::Result<()> {
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_coop_taskrun()
        .setup_defer_taskrun()
        .build(8)?;
    ring.submitter().register_files(&[stream.as_raw_fd()])?;
    let (mut input, output) = (vec![0u8; BUFFER_BYTES], vec![7u8; BUFFER_BYTES]);
    let (mut have, mut owed) = (0, 0);
    let (mut receiving, mut sending) = (false, false);
    loop {
        if !receiving {
            let length = input.len() as u32;
            let entry = opcode::Recv::new(types::Fixed(0), input.as_mut_ptr(), length).build();
            // SAFETY: the buffer lives until the ring is dropped, and nothing else touches it.
            unsafe { ring.submission().push(&entry.user_data(0)) }.expect("room");
            receiving = true;
        }
        if !sending && owed > 0 {
            let length = owed.min(BUFFER_BYTES) as u32;
            let entry = opcode::Send::new(types::Fixed(0), output.as_ptr(), length).build();
            // SAFETY: as above; it is only read.
            unsafe { ring.submission().push(&entry.user_data(1)) }.expect("room");
            sending = true;
        }
        // With deferred task work completions come only when the kernel is asked for them: for what
        // is there, without waiting.
        let flags = 1; // IORING_ENTER_GETEVENTS
        let count = ring.submission().len() as u32;
        // SAFETY: no argument points anywhere.
        unsafe { ring.submitter().enter::<libc::sigset_t>(count, 0, flags, None) }?;
        for done in ring.completion() {
            let bytes = usize::try_from(done.result())
                .map_err(|_| io::Error::from_raw_os_error(-done.result()))?;
            match done.user_data() {
                0 if bytes == 0 => return Ok(()),
                0 => (receiving, have) = (false, have + bytes),
                _ => (sending, owed) = (false, owed - bytes),
            }
        }
        owed += have / request * response;
        have %= request;
    }
}

fn ask(
    mut stream: TcpStream,
    request: usize,
    response: usize,
    depth: usize,
    duration: Duration,
) -> io::Result<(u64, Duration)> {
    stream.set_nonblocking(true)?;
    let (mut input, output) = (vec![0; BUFFER_BYTES], vec![1; request * depth]);
    let begin = Instant::now();
    let (mut to_send, mut have, mut count) = (request * depth, 0, 0u64);
    while begin.elapsed() < duration {
        while to_send > 0 {
            match unless_blocked(stream.write(&output[..to_send.min(output.len())]))? {
                Some(bytes) => to_send -= bytes,
                None => break,
            }
        }
        if let Some(bytes) = unless_blocked(stream.read(&mut input))? {
            have += bytes;
            let done = have / response;
            have %= response;
            count += done as u64;
            to_send += done * request;
        }
    }
    Ok((count, begin.elapsed()))
}
