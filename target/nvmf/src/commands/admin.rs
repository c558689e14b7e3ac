//! Asynchronous Event Request and Abort (NVMe Base 2.1, sections 5.1.1 and 5.1.2).

use nvme_spec::command::Sqe;
use nvme_spec::status::Status;

use crate::limits::{MAX_ABORTS, MAX_ASYNC_EVENT_REQUESTS};
use crate::output::{Answer, CommandKey, Outcome, Output};
use crate::target::Target;

impl Target {
    /// Keeps the request until there is an event.
    pub(crate) fn async_event_request(
        &mut self,
        cntlid: u16,
        command: CommandKey,
        sqe: &Sqe,
    ) -> Outcome {
        let controller = self.controllers.get_mut(&cntlid).ok_or(Status::INTERNAL_ERROR)?;
        if controller.event_requests.len() >= MAX_ASYNC_EVENT_REQUESTS {
            return Err(Status::ASYNC_EVENT_REQUEST_LIMIT_EXCEEDED.with_dnr().into());
        }
        controller.event_requests.push_back((command, sqe.cid()));
        self.deliver_event(cntlid);
        Ok(Answer::Later)
    }

    /// Bit 0 of the result says that the command was not aborted.
    pub(crate) fn abort(&mut self, cntlid: u16, command: CommandKey, sqe: &Sqe) -> Outcome {
        let controller = self.controllers.get_mut(&cntlid).ok_or(Status::INTERNAL_ERROR)?;
        let (sqid, cid) = (sqe.cdw10.get() as u16, (sqe.cdw10.get() >> 16) as u16);
        if sqid == 0 {
            // Of the admin queue only event requests are still waiting when this is read.
            let at = controller.event_requests.iter().position(|&(_, waiting)| waiting == cid);
            let Some((aborted, _)) = at.and_then(|at| controller.event_requests.remove(at)) else {
                return Answer::result(1);
            };
            self.respond(aborted, 0, Status::COMMAND_ABORT_REQUESTED, Vec::new());
            return Answer::result(0);
        }
        let Some(&queue) = controller.io_queues.get(&sqid) else {
            return Answer::result(1);
        };
        if controller.aborts.len() >= MAX_ABORTS {
            return Err(Status::ABORT_COMMAND_LIMIT_EXCEEDED.into());
        }
        controller.aborts.push(command);
        self.outputs.push_back(Output::Abort { queue, cid, command });
        Ok(Answer::Later)
    }
}
