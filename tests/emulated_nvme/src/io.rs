//! I/O commands.

use dma::DmaSpan;
use nvme_spec::command::Sqe;
use nvme_spec::nvm::{DSM_RANGE_BYTES, DsmRange, ReadWrite, dsm_range_count};
use nvme_spec::opcode::nvm;
use nvme_spec::status::Status;

use crate::Fault;
use crate::core::Core;
use crate::media::Media;

const PAGE: u64 = 4096;

impl Core {
    pub(crate) fn execute_io(&mut self, qid: u16, sqe: &Sqe) {
        let execution = |fault| matches!(fault, Fault::Hold | Fault::BadStatus(_));
        let status = match self.take_next(execution) {
            Some(Fault::Hold) => return self.held.push((qid, *sqe)),
            Some(Fault::BadStatus(status)) => status,
            _ => self.do_io(sqe).err().unwrap_or(Status::SUCCESS),
        };
        let completion = |fault| matches!(fault, Fault::StaleCid | Fault::DoubledCompletion);
        match self.take_next(completion) {
            Some(Fault::StaleCid) => {
                // The same slot, another use of it; then no slot at all.
                self.complete(qid, sqe.cid() ^ 0x8000, 0, Status::INTERNAL_ERROR);
                self.complete(qid, 0xFFFF, 0, Status::INTERNAL_ERROR);
            }
            Some(Fault::DoubledCompletion) => self.complete(qid, sqe.cid(), 0, status),
            _ => {}
        }
        self.complete(qid, sqe.cid(), 0, status);
    }

    pub(crate) fn do_io(&mut self, sqe: &Sqe) -> Result<(), Status> {
        let fields = ReadWrite::of(sqe);
        let at = (sqe.nsid() as usize).wrapping_sub(1);
        let media = self.media.get(at).ok_or(Status::INVALID_NAMESPACE_OR_FORMAT)?;
        let (block_bytes, block_count) = (media.block_bytes as u64, media.block_count());
        let (slba, blocks) = (fields.slba(), u64::from(fields.block_count()));
        let offset = (slba.wrapping_mul(block_bytes)) as usize;
        let bytes = blocks * block_bytes;
        if matches!(sqe.opcode(), nvm::READ | nvm::WRITE | nvm::COMPARE | nvm::WRITE_ZEROES)
            && slba.checked_add(blocks).is_none_or(|end| end > block_count)
        {
            return Err(Status::LBA_OUT_OF_RANGE);
        }
        let wzsl = self.setup.limits.wzsl;
        if sqe.opcode() == nvm::WRITE_ZEROES && wzsl > 0 && bytes > PAGE << wzsl {
            self.violation(format!("Write Zeroes of {bytes} bytes"));
        }
        // A controller that is known to ignore FUA does.
        let fua = fields.fua() && self.setup.ids != (0x1b36, 0x0010);
        match sqe.opcode() {
            nvm::READ => {
                let mut from = offset;
                for span in self.data(sqe, bytes)? {
                    span.write(0, self.media[at].bytes(from, span.len() as usize));
                    from += span.len() as usize;
                }
            }
            nvm::WRITE => {
                let data = self.gather(sqe, bytes)?;
                self.media[at].write(offset, &data, fua);
            }
            nvm::COMPARE => {
                let data = self.gather(sqe, bytes)?;
                if self.media[at].bytes(offset, data.len()) != data {
                    return Err(Status::COMPARE_FAILURE);
                }
            }
            nvm::WRITE_ZEROES => self.media[at].write(offset, &vec![0; bytes as usize], fua),
            nvm::FLUSH => Media::flush(&mut self.media[at]),
            nvm::DATASET_MANAGEMENT => self.deallocate(at, sqe)?,
            _ => return Err(Status::INVALID_OPCODE),
        }
        Ok(())
    }

    fn deallocate(&mut self, at: usize, sqe: &Sqe) -> Result<(), Status> {
        let count = dsm_range_count(sqe);
        let list = self.gather(sqe, u64::from(count * DSM_RANGE_BYTES))?;
        let limits = self.setup.limits;
        let mut left = if limits.dmsl == 0 { u64::MAX } else { limits.dmsl };
        if limits.dmrl > 0 && count > limits.dmrl.into() {
            self.violation(format!("{count} ranges in one command"));
        }
        for bytes in list.chunks_exact(DSM_RANGE_BYTES as usize) {
            let range: DsmRange =
                zerocopy::FromBytes::read_from_bytes(bytes).map_err(|_| Status::INVALID_FIELD)?;
            let (slba, blocks) = (range.slba.get(), u64::from(range.block_count.get()));
            if limits.dmrsl > 0 && blocks > limits.dmrsl.into() || blocks > left {
                self.violation(format!("a range of {blocks} blocks in one command"));
            }
            left = left.saturating_sub(blocks);
            let media = &mut self.media[at];
            if slba.checked_add(blocks).is_none_or(|end| end > media.block_count()) {
                return Err(Status::LBA_OUT_OF_RANGE);
            }
            let block_bytes = media.block_bytes;
            let zeroes = vec![0; blocks as usize * block_bytes];
            media.write(slba as usize * block_bytes, &zeroes, false);
        }
        Ok(())
    }

    fn gather(&mut self, sqe: &Sqe, bytes: u64) -> Result<Vec<u8>, Status> {
        let mut all = Vec::new();
        for span in self.data(sqe, bytes)? {
            let mut part = vec![0; span.len() as usize];
            span.read(0, &mut part);
            all.extend_from_slice(&part);
        }
        Ok(all)
    }

    /// Walks the PRPs of a command, page by page, as strictly as a controller may.
    fn data(&mut self, sqe: &Sqe, bytes: u64) -> Result<Vec<DmaSpan>, Status> {
        let limit = if self.setup.mdts == 0 { u64::MAX } else { PAGE << self.setup.mdts };
        if bytes > limit || !sqe.prp1().is_multiple_of(4) {
            self.violation(format!("{bytes} bytes at {:#x} in one command", sqe.prp1()));
            return Err(Status::INVALID_FIELD);
        }
        let first = bytes.min(PAGE - sqe.prp1() % PAGE);
        let mut pages = vec![(sqe.prp1(), first)];
        let mut left = bytes - first;
        if left > PAGE {
            let mut list = sqe.prp2();
            while left > 0 {
                let entry = self.span(list, 8).ok_or(Status::DATA_TRANSFER_ERROR)?;
                pages.push((entry.read_obj::<u64>(0), left.min(PAGE)));
                left -= left.min(PAGE);
                list += 8;
                if list.is_multiple_of(PAGE) && left > 0 {
                    self.violation("a PRP list crosses its page".to_owned());
                    return Err(Status::INVALID_FIELD);
                }
            }
        } else if left > 0 {
            pages.push((sqe.prp2(), left));
        }
        let mut spans = Vec::new();
        for (index, (iova, len)) in pages.into_iter().enumerate() {
            if index > 0 && !iova.is_multiple_of(PAGE) {
                self.violation(format!("PRP entry {index} is {iova:#x}"));
                return Err(Status::INVALID_FIELD);
            }
            spans.push(self.span(iova, len as u32).ok_or(Status::DATA_TRANSFER_ERROR)?);
        }
        Ok(spans)
    }
}
