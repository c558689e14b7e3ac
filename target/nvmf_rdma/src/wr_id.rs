//! What a work request id says.

use nvmf::engine::{QueueId, RequestId};

/// The kind of a work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Receive,
    Read,
    Write,
    Send,
}

/// Request in the low 32 bits, then 24 bits of the queue's generation, then the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrId(u64);

const GENERATION_MASK: u64 = (1 << 24) - 1;

impl WrId {
    #[inline]
    pub(crate) fn new(kind: Kind, queue: QueueId, id: RequestId) -> Self {
        Self(u64::from(id.0) | generation(queue) << 32 | (kind as u64) << 56)
    }

    #[inline]
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    #[inline]
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) fn request(self) -> RequestId {
        RequestId(self.0 as u32)
    }

    #[inline]
    pub(crate) fn is_of(self, queue: QueueId) -> bool {
        self.0 >> 32 & GENERATION_MASK == generation(queue)
    }

    #[inline]
    pub(crate) fn kind(self) -> Kind {
        match self.0 >> 56 {
            0 => Kind::Receive,
            1 => Kind::Read,
            2 => Kind::Write,
            _ => Kind::Send,
        }
    }
}

fn generation(queue: QueueId) -> u64 {
    queue.to_bits() >> 32 & GENERATION_MASK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let queue = QueueId::from_bits(0x0123_4567_0000_0003);
        for kind in [Kind::Receive, Kind::Read, Kind::Write, Kind::Send] {
            let wr_id = WrId::from_bits(WrId::new(kind, queue, RequestId(u32::MAX)).to_bits());
            assert_eq!((wr_id.kind(), wr_id.request()), (kind, RequestId(u32::MAX)));
            assert!(wr_id.is_of(queue));
            assert!(!wr_id.is_of(QueueId::from_bits(0x0123_4568_0000_0003)));
        }
    }
}
