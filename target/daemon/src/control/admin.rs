//! Commands that are not I/Os, between the cores that carry them and the control half that answers.

use std::time::Instant;

use dma::DmaSpan;
use nvme_spec::command::Sqe;
use nvme_spec::fabrics;
use nvme_spec::opcode::{self, DataDirection};
use nvme_spec::status::Status;
use nvmf::engine::{QueueId, QueueParams, QueueRole, RequestId};
use nvmf::{CommandKey, Output, QueueInfo, QueueKey, QueueKind, Transport};

use super::{Control, CoreQueue};
use crate::limits::MAX_ABORTS;
use crate::message::CoreMessage;

/// A command that a core waits for.
pub(super) struct Pending {
    request: RequestId,
    /// Where data for the host goes.
    data: Option<DmaSpan>,
}

impl Control {
    /// A core has taken a connection: the control half hears of it, and the host may come in.
    pub(super) fn handle_opened(&mut self, key: u64, queue: QueueId) {
        self.queues.insert(key, CoreQueue { id: queue, closing: false });
        let Some(connection) = self.connections.get(key) else { return };
        let (transport, doomed) = (connection.transport, connection.doomed);
        let info = QueueInfo {
            transport,
            local: connection.local,
            peer: connection.peer,
            qid: connection.qid,
            entries: connection.entries,
        };
        self.target.handle_queue_opened(Instant::now(), QueueKey(key), info);
        let stays = match transport {
            _ if doomed => false,
            Transport::Rdma => self.rdma.as_mut().is_some_and(|rdma| rdma.accept(key)),
            Transport::Tcp => true,
        };
        if !stays {
            self.close_queue(key);
        }
    }

    pub(super) fn handle_command(
        &mut self,
        key: u64,
        request: RequestId,
        sqe: &Sqe,
        data: Option<DmaSpan>,
    ) {
        let command = CommandKey { queue: QueueKey(key), request: request.0 };
        let mut data_in = Vec::new();
        if let Some(span) = data.filter(|_| takes_data(sqe)) {
            data_in.resize(span.len() as usize, 0);
            span.read(0, &mut data_in);
        }
        self.commands.insert(command, Pending { request, data });
        self.target.handle_command(Instant::now(), command, sqe, &data_in);
    }

    /// Does what the control half wants done.
    pub(super) fn handle_outputs(&mut self) {
        while let Some(output) = self.target.poll_output() {
            match output {
                Output::BindQueue { queue, kind, subsystem, sq_entries, flow_control, .. } => {
                    let role = match kind {
                        QueueKind::Io { .. } => QueueRole::Io,
                        QueueKind::Admin | QueueKind::Discovery => QueueRole::Admin,
                    };
                    let subsystem = subsystem.0;
                    let params = QueueParams { role, subsystem, sq_entries, flow_control };
                    if let Some(connection) = self.connections.get_mut(queue.0) {
                        (connection.bound, connection.entries) = (true, sq_entries);
                    }
                    if let Some(&CoreQueue { id, .. }) = self.queues.get(&queue.0) {
                        self.tell_core_of(queue.0, CoreMessage::BindQueue { queue: id, params });
                    }
                }
                Output::Respond { command, result, status, data } => {
                    self.answer(command, result, status, &data);
                }
                Output::Abort { queue, cid, command } => self.abort(queue, cid, command),
                Output::CloseQueue { queue } => self.close_queue(queue.0),
            }
        }
    }

    fn answer(&mut self, command: CommandKey, result: u64, status: Status, data: &[u8]) {
        // A command that was abandoned has been answered already.
        let Some(pending) = self.commands.remove(&command) else { return };
        let mut data_bytes = 0;
        if let Some(span) = pending.data {
            let fits = data.len().min(span.len() as usize);
            span.write(0, &data[..fits]);
            data_bytes = fits as u32;
        }
        let request = pending.request;
        let answer = CoreMessage::Answer { request, result, status, data_bytes };
        self.tell_core_of(command.queue.0, answer);
    }

    /// The queue is closed: its commands end without the control half, which may still hold some
    /// (Asynchronous Event Requests above all) and whose answers come to nothing.
    pub(super) fn abandon_commands(&mut self, key: u64) {
        let of_queue = |command: &&CommandKey| command.queue == QueueKey(key);
        let commands: Vec<_> = self.commands.keys().filter(of_queue).copied().collect();
        for command in commands {
            self.answer(command, 0, Status::ABORTED_SQ_DELETION, &[]);
        }
    }

    fn abort(&mut self, queue: QueueKey, cid: u16, command: CommandKey) {
        let queued = self.queues.get(&queue.0).filter(|_| self.aborts.len() < MAX_ABORTS);
        let Some(&CoreQueue { id, .. }) = queued else {
            return self.target.handle_aborted(command, false);
        };
        let token = self.next_token;
        self.next_token += 1;
        self.aborts.insert(token, command);
        self.tell_core_of(queue.0, CoreMessage::Abort { queue: id, cid, token });
    }

    pub(super) fn handle_aborted(&mut self, token: u64, ended: bool) {
        if let Some(command) = self.aborts.remove(&token) {
            self.target.handle_aborted(command, ended);
        }
    }
}

fn takes_data(sqe: &Sqe) -> bool {
    let code = match sqe.opcode() {
        opcode::FABRICS => fabrics::fctype(sqe),
        other => other,
    };
    DataDirection::of(code) == DataDirection::HostToController
}
