//! A connection with its socket, and with what was received and not taken in yet.

use dma::{DmaBuffer, DmaSpan};
use nvme_tcp::Piece;
use nvmf::engine::{QueueId, RequestId};
use sockets::{Gather, Moved, Socket};

use crate::carrier::CarrierStats;
use crate::connection::{Connection, ConnectionConfig, ConnectionEvent};
use crate::limits::INPUT_BYTES;

/// How receiving went.
pub(crate) enum Received {
    /// There is something to take in.
    Some,
    /// Nothing was there.
    Nothing,
    /// The connection has ended.
    End,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) queue: QueueId,
    pub(crate) key: u64,
    pub(crate) socket: Option<Socket>,
    pub(crate) connection: Connection,
    /// Requests of the engine, by slot.
    pub(crate) ids: Vec<RequestId>,
    /// Memory of the capsules, by slot.
    pub(crate) pages: Vec<DmaBuffer>,
    /// The host wants SQHD: a response is needed even where it says nothing else.
    pub(crate) flow_control: bool,
    /// There may be something to receive.
    pub(crate) readable: bool,
    /// The peer sends nothing more than what is there: the end has to be received, too.
    pub(crate) ending: bool,
    /// Not yet received from in this turn.
    pub(crate) may_receive: bool,
    /// There is no room to send until the poller says so.
    pub(crate) blocked: bool,
    /// It ends when what waits has been sent.
    pub(crate) last_words: bool,
    pub(crate) broken: bool,
    /// It is in a list of connections to look at.
    pub(crate) queued: bool,
    /// It is in the list of connections with something to send.
    pub(crate) touched: bool,
    input: Box<[u8; INPUT_BYTES]>,
    /// What of the input is not taken in yet.
    begin: usize,
    end: usize,
}

impl Link {
    pub(crate) fn new(
        (queue, key): (QueueId, u64),
        socket: Socket,
        config: ConnectionConfig,
        pages: Vec<DmaBuffer>,
        ids: &[RequestId],
    ) -> Self {
        Self {
            queue,
            key,
            socket: Some(socket),
            connection: Connection::new(config, &spans(&pages)),
            ids: ids.to_vec(),
            pages,
            flow_control: true,
            readable: false,
            ending: false,
            may_receive: false,
            blocked: false,
            last_words: false,
            broken: false,
            queued: false,
            touched: false,
            input: Box::new([0; INPUT_BYTES]),
            begin: 0,
            end: 0,
        }
    }

    pub(crate) fn grow(&mut self, pages: Vec<DmaBuffer>, ids: &[RequestId]) {
        self.connection.grow(&spans(&pages));
        self.pages.extend(pages);
        self.ids.extend_from_slice(ids);
    }

    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.socket.is_some() && !self.broken
    }

    #[inline]
    pub(crate) fn has_input(&self) -> bool {
        self.begin < self.end
    }

    /// What the input leads to.
    #[inline]
    pub(crate) fn next_event(&mut self) -> Option<ConnectionEvent> {
        loop {
            let event = self.connection.poll_event();
            if event.is_some() {
                return event;
            }
            let taken = self.connection.handle_input(&self.input[self.begin..self.end]);
            self.begin += taken;
            if taken == 0 && !self.connection.has_event() {
                return None;
            }
        }
    }

    /// Receives once: data of the PDU that has begun goes straight to where it belongs.
    #[inline]
    pub(crate) fn receive(&mut self) -> Received {
        let Some(socket) = &self.socket else { return Received::End };
        debug_assert!(self.begin == self.end, "what was received is taken in first");
        let payload = self.connection.payload();
        let payload_bytes = payload.map_or(0, |span| span.len() as usize);
        self.may_receive = false;
        match socket.receive(payload, &mut self.input[..]) {
            Ok(Moved::Bytes(bytes)) => {
                let direct = bytes.min(payload_bytes);
                if direct > 0 {
                    self.connection.handle_payload(direct as u32);
                }
                (self.begin, self.end) = (0, bytes - direct);
                // Less than there was room for: that was all, unless the end is behind it.
                self.readable = self.ending || bytes == payload_bytes + INPUT_BYTES;
                Received::Some
            }
            Ok(Moved::Blocked) => {
                self.readable = false;
                Received::Nothing
            }
            Ok(Moved::Ended) => Received::End,
            Err(error) => {
                tracing::debug!(key = self.key, %error, "a TCP connection broke");
                Received::End
            }
        }
    }

    /// Sends what waits, as far as there is room; `false`: the connection is over.
    #[inline]
    pub(crate) fn send(&mut self, stats: &mut CarrierStats) -> bool {
        let Some(socket) = &self.socket else { return true };
        while !self.blocked && !self.connection.is_idle() {
            let mut gather = Gather::new();
            for piece in self.connection.pieces() {
                let fits = match piece {
                    Piece::Bytes(bytes) => gather.push_bytes(bytes),
                    Piece::Span(span) => gather.push_span(span),
                };
                if !fits {
                    break;
                }
            }
            let wanted = gather.bytes();
            stats.send_calls += 1;
            match socket.send(&mut gather) {
                Ok(Moved::Bytes(bytes)) => {
                    self.connection.handle_sent(bytes);
                    self.blocked = bytes < wanted;
                }
                Ok(Moved::Blocked | Moved::Ended) => self.blocked = true,
                Err(error) => {
                    tracing::debug!(key = self.key, %error, "a TCP connection broke");
                    return false;
                }
            }
        }
        !self.last_words
    }

    /// Notes that there is something to send.
    #[inline]
    pub(crate) fn touch(&mut self, index: usize, touched: &mut Vec<usize>) {
        if !std::mem::replace(&mut self.touched, true) {
            touched.push(index);
        }
    }

    /// Notes that it is to be looked at.
    #[inline]
    pub(crate) fn queue(&mut self, index: usize, list: &mut Vec<usize>) {
        if !std::mem::replace(&mut self.queued, true) {
            list.push(index);
        }
    }
}

fn spans(pages: &[DmaBuffer]) -> Vec<DmaSpan> {
    pages.iter().map(DmaBuffer::span).collect()
}
