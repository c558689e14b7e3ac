//! What an I/O touches, checked once more where it is done.

use dma::DmaSpan;
use nvme_spec::nvm::DsmRange;
use nvme_spec::status::Status;

use crate::{Geometry, Io, Op};

/// The bytes that an I/O touches: on the device, and in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) data: Option<DmaSpan>,
}

/// Checks an I/O against the device. The protocol core has done so already: this is what keeps a
/// mistake there from becoming somebody else's data.
///
/// # Errors
/// The status that the I/O ends with.
#[inline]
pub(crate) fn check(io: &Io, geometry: &Geometry) -> Result<Span, Status> {
    let bytes = u64::from(io.block_count) * u64::from(geometry.block_bytes);
    let whole = match io.op {
        Op::Flush => return Ok(Span { offset: 0, bytes: 0, data: None }),
        Op::Deallocate { ranges } => {
            let wanted = u64::from(ranges) * size_of::<DsmRange>() as u64;
            return data(io, wanted).map(|data| Span { offset: 0, bytes: 0, data: Some(data) });
        }
        Op::WriteZeroes { .. } => None,
        Op::Read | Op::Write { .. } | Op::Compare => Some(data(io, bytes)?),
    };
    let offset = block_range(io.slba, u64::from(io.block_count), geometry)?;
    Ok(Span { offset, bytes, data: whole })
}

/// The byte ranges of a deallocate, each checked: offset and length.
pub(crate) fn ranges<'a>(
    ranges: u16,
    data: DmaSpan,
    geometry: &'a Geometry,
) -> impl Iterator<Item = Result<(u64, u64), Status>> + 'a {
    (0..u32::from(ranges)).map(move |index| {
        let range: DsmRange = data.read_obj(index * size_of::<DsmRange>() as u32);
        let blocks = u64::from(range.block_count.get());
        let offset = block_range(range.slba.get(), blocks, geometry)?;
        Ok((offset, blocks * u64::from(geometry.block_bytes)))
    })
}

#[inline]
fn block_range(slba: u64, block_count: u64, geometry: &Geometry) -> Result<u64, Status> {
    match slba.checked_add(block_count) {
        Some(end) if end <= geometry.block_count => Ok(slba * u64::from(geometry.block_bytes)),
        _ => Err(Status::LBA_OUT_OF_RANGE.with_dnr()),
    }
}

#[inline]
fn data(io: &Io, bytes: u64) -> Result<DmaSpan, Status> {
    match io.buffer {
        Some(span) if u64::from(span.len()) >= bytes => Ok(span.subspan(0, bytes as u32)),
        _ => Err(Status::INTERNAL_ERROR.with_dnr()),
    }
}
