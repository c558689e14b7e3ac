//! Fields of admin commands that have no module of their own: queues (NVMe Base 2.1, sections
//! 5.2.1 to 5.2.4) and Abort (section 5.1.1).
//!
//! Queue sizes are numbers of entries here and 0's based on the wire.

use crate::command::Sqe;
use crate::opcode::admin;

/// CDW11 of both Create commands: the queue is physically contiguous.
const PHYSICALLY_CONTIGUOUS: u32 = 1 << 0;
/// CDW11 of Create I/O Completion Queue: interrupts are enabled.
const INTERRUPTS_ENABLED: u32 = 1 << 1;

/// Create I/O Completion Queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateCq {
    /// Queue identifier.
    pub qid: u16,
    /// Entries of the queue, 2 to 65,536.
    pub entries: u32,
    /// The queue is one contiguous run of memory, at PRP1.
    pub contiguous: bool,
    /// Interrupt vector, when interrupts are enabled.
    pub interrupt_vector: Option<u16>,
    /// Address of the queue, or of its PRP list.
    pub prp1: u64,
}

impl CreateCq {
    /// Reads the fields of a command.
    pub fn of(sqe: &Sqe) -> Self {
        let (qid, entries) = qid_and_entries(sqe);
        let cdw11 = sqe.cdw11.get();
        Self {
            qid,
            entries,
            contiguous: cdw11 & PHYSICALLY_CONTIGUOUS != 0,
            interrupt_vector: (cdw11 & INTERRUPTS_ENABLED != 0).then_some((cdw11 >> 16) as u16),
            prp1: sqe.prp1(),
        }
    }

    /// As a command.
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = create(admin::CREATE_CQ, self.qid, self.entries, self.prp1);
        let interrupts =
            self.interrupt_vector.map_or(0, |vector| u32::from(vector) << 16 | INTERRUPTS_ENABLED);
        sqe.cdw11 = (interrupts | contiguity(self.contiguous)).into();
        sqe
    }
}

/// Create I/O Submission Queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateSq {
    /// Queue identifier.
    pub qid: u16,
    /// Entries of the queue, 2 to 65,536.
    pub entries: u32,
    /// The queue is one contiguous run of memory, at PRP1.
    pub contiguous: bool,
    /// Priority, 0 (urgent) to 3 (low); ignored in round robin arbitration.
    pub priority: u8,
    /// Completion queue.
    pub cqid: u16,
    /// Address of the queue, or of its PRP list.
    pub prp1: u64,
}

impl CreateSq {
    /// Reads the fields of a command.
    pub fn of(sqe: &Sqe) -> Self {
        let (qid, entries) = qid_and_entries(sqe);
        let cdw11 = sqe.cdw11.get();
        Self {
            qid,
            entries,
            contiguous: cdw11 & PHYSICALLY_CONTIGUOUS != 0,
            priority: (cdw11 >> 1 & 3) as u8,
            cqid: (cdw11 >> 16) as u16,
            prp1: sqe.prp1(),
        }
    }

    /// As a command.
    pub fn to_sqe(&self) -> Sqe {
        let mut sqe = create(admin::CREATE_SQ, self.qid, self.entries, self.prp1);
        let cdw11 = contiguity(self.contiguous)
            | u32::from(self.priority & 3) << 1
            | u32::from(self.cqid) << 16;
        sqe.cdw11 = cdw11.into();
        sqe
    }
}

fn contiguity(contiguous: bool) -> u32 {
    if contiguous { PHYSICALLY_CONTIGUOUS } else { 0 }
}

fn create(opcode: u8, qid: u16, entries: u32, prp1: u64) -> Sqe {
    debug_assert!((2..=0x1_0000).contains(&entries));
    let mut sqe = Sqe::new(opcode, 0);
    sqe.set_prps(prp1, 0);
    sqe.cdw10 = (u32::from(qid) | (entries.wrapping_sub(1) & 0xFFFF) << 16).into();
    sqe
}

fn qid_and_entries(sqe: &Sqe) -> (u16, u32) {
    let cdw10 = sqe.cdw10.get();
    (cdw10 as u16, (cdw10 >> 16) + 1)
}

/// Delete I/O Submission Queue.
pub fn delete_sq(qid: u16) -> Sqe {
    Sqe { cdw10: u32::from(qid).into(), ..Sqe::new(admin::DELETE_SQ, 0) }
}

/// Delete I/O Completion Queue; its submission queues are deleted before it.
pub fn delete_cq(qid: u16) -> Sqe {
    Sqe { cdw10: u32::from(qid).into(), ..Sqe::new(admin::DELETE_CQ, 0) }
}

/// Queue that a Delete command names.
pub fn deleted_qid(sqe: &Sqe) -> u16 {
    sqe.cdw10.get() as u16
}

/// Abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// Submission queue of the command to abort.
    pub sqid: u16,
    /// Its command identifier.
    pub cid: u16,
}

impl Abort {
    /// Reads the fields of a command.
    pub fn of(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self { sqid: cdw10 as u16, cid: (cdw10 >> 16) as u16 }
    }

    /// As a command.
    pub fn to_sqe(self) -> Sqe {
        let cdw10 = u32::from(self.sqid) | u32::from(self.cid) << 16;
        Sqe { cdw10: cdw10.into(), ..Sqe::new(admin::ABORT, 0) }
    }
}

/// DW0 of the completion of an Abort: set when the command was not aborted.
pub const ABORT_NOT_ABORTED: u32 = 1 << 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_commands() {
        let cq = CreateCq {
            qid: 3,
            entries: 256,
            contiguous: true,
            interrupt_vector: None,
            prp1: 0x1234_5000,
        };
        let sqe = cq.to_sqe();
        assert_eq!((sqe.opcode(), sqe.cdw10.get(), sqe.cdw11.get()), (5, 0x00FF_0003, 1));
        assert_eq!(CreateCq::of(&sqe), cq);
        let with_vector = CreateCq { interrupt_vector: Some(9), ..cq };
        assert_eq!(with_vector.to_sqe().cdw11.get(), 0x0009_0003);
        assert_eq!(CreateCq::of(&with_vector.to_sqe()), with_vector);

        let sq = CreateSq {
            qid: 4,
            entries: 65_536,
            contiguous: true,
            priority: 2,
            cqid: 3,
            prp1: 0x6000,
        };
        let sqe = sq.to_sqe();
        assert_eq!((sqe.opcode(), sqe.cdw10.get(), sqe.cdw11.get()), (1, 0xFFFF_0004, 0x0003_0005));
        assert_eq!(CreateSq::of(&sqe), sq);

        assert_eq!((delete_sq(4).opcode(), deleted_qid(&delete_sq(4))), (0, 4));
        assert_eq!((delete_cq(3).opcode(), deleted_qid(&delete_cq(3))), (4, 3));
    }

    #[test]
    fn abort_names_queue_and_command() {
        let abort = Abort { sqid: 2, cid: 0xABCD };
        assert_eq!(abort.to_sqe().cdw10.get(), 0xABCD_0002);
        assert_eq!(Abort::of(&abort.to_sqe()), abort);
    }
}
