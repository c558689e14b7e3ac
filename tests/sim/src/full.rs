//! A pool that is filled up: what the contract says of that, tried while nothing else goes on.

use std::ops::Range;

use bdev::Op;

use crate::calls::Plan;
use crate::failure::Failure;
use crate::life::Life;

const CLUSTER_BYTES: u64 = 64 << 10;
/// Writes that are refused before the pool counts as full.
const REFUSALS: usize = 4;
/// Turns after which everything that is on its way to be free is so, were nobody to wait for it.
const LONG: u64 = 150_000;

/// A cluster of a volume.
#[derive(Clone, Debug)]
struct Piece {
    name: String,
    blocks: Range<u64>,
}

impl Life {
    /// Writes all volumes full, or the pool; then does all that goes on in a full one.
    pub(crate) fn fill_up(&mut self) -> Result<(), Failure> {
        self.wait_for_all()?;
        let mut pieces = self.pieces();
        self.random.shuffle(&mut pieces);
        let (mut written, mut refused) = (Vec::new(), Vec::new());
        while refused.len() < REFUSALS
            && let Some(piece) = pieces.pop()
        {
            let available = self.available()?;
            match self.write(&piece)? {
                true => written.push(piece),
                // Nothing else is going on: each write takes one cluster at most.
                false if available > 0 => return Err(refusal(&piece, available)),
                false => refused.push(piece),
            }
        }
        let Some(last) = written.last().cloned() else { return Ok(()) };
        if !self.write(&last)? {
            return Err(refusal(&last, 0));
        }
        self.submit_and_wait(&last.name, Op::Flush, Vec::new())?;
        let parts = last.blocks.start + 1..last.blocks.end.max(last.blocks.start + 2) - 1;
        if !parts.is_empty() {
            self.submit_and_wait(&last.name, Op::Deallocate { ranges: 1 }, vec![parts])?;
        }
        if let Some(other) = refused.pop()
            && !self.model.is_reserved(&last.name)
        {
            self.reuse(&last, &other)?;
        }
        self.change_when_full()
    }

    /// What is given back can be had at once: a write waits until it is free.
    fn reuse(&mut self, last: &Piece, other: &Piece) -> Result<(), Failure> {
        let ranges = vec![last.blocks.clone()];
        self.submit_and_wait(&last.name, Op::Deallocate { ranges: 1 }, ranges)?;
        if self.write(other)? {
            return Ok(());
        }
        // Metadata may have had it first.
        for _ in 0..LONG {
            self.turn_any()?;
        }
        match self.available()? {
            0 => Ok(()),
            available => Err(refusal(other, available)),
        }
    }

    /// Rollback and deletion take no space.
    fn change_when_full(&mut self) -> Result<(), Failure> {
        let (snapshots, volumes): (Vec<String>, Vec<String>) =
            self.model.names().map(str::to_owned).partition(|name| self.model.is_snapshot(name));
        if !snapshots.is_empty() {
            self.plan_rollback(&volumes, &snapshots);
            self.wait_for_all()?;
        }
        let name = self.random.pick(&volumes).clone();
        self.script.extend([Plan::Close(name.clone()), Plan::Delete(name)]);
        self.wait_for_all()
    }

    /// Every cluster of every volume that takes writes.
    fn pieces(&self) -> Vec<Piece> {
        let open = self.pool.objects.iter();
        let writable = open.filter(|(_, open)| !open.handle.read_only() && !open.closing);
        let pieces = writable.flat_map(|(name, open)| {
            let per_cluster = CLUSTER_BYTES / u64::from(open.handle.block_bytes());
            let blocks = open.handle.block_count();
            let starts = (0..blocks).step_by(per_cluster as usize);
            starts.map(move |start| Piece {
                name: name.clone(),
                blocks: start..(start + per_cluster).min(blocks),
            })
        });
        pieces.collect()
    }

    fn available(&mut self) -> Result<u64, Failure> {
        Ok(self.pool.info()?.available_bytes / CLUSTER_BYTES)
    }

    /// Whether a write was taken.
    fn write(&mut self, piece: &Piece) -> Result<bool, Failure> {
        let full = self.full;
        let op = Op::Write { fua: false };
        self.submit_and_wait(&piece.name, op, vec![piece.blocks.clone()])?;
        Ok(self.full == full)
    }

    /// An I/O with nothing beside it; its end is looked at as that of any other.
    fn submit_and_wait(
        &mut self,
        name: &str,
        op: Op,
        parts: Vec<Range<u64>>,
    ) -> Result<(), Failure> {
        if !self.submit_io(0, name, op, &parts, false) {
            return Err(Failure::Stuck { waiting: format!("{op:?} on {name} is not taken") });
        }
        self.wait_for_all()
    }

    fn wait_for_all(&mut self) -> Result<(), Failure> {
        while self.is_busy() || self.is_calling() {
            self.turn_any()?;
        }
        Ok(())
    }

    fn turn_any(&mut self) -> Result<(), Failure> {
        let lane = self.random.below(self.pool.lanes() as u64) as usize;
        self.turn(lane)
    }
}

fn refusal(piece: &Piece, available: u64) -> Failure {
    let status = format!("Capacity Exceeded while there are {available} clusters for it");
    Failure::Status { what: format!("a write of {piece:?}"), status }
}
