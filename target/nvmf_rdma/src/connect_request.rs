//! What a host asks for when it connects (NVMe over RDMA Transport 1.1, section 3.3).

use nvme_spec::rdma::{RequestPrivateData, reject};
use thiserror::Error;
use zerocopy::FromBytes;

use crate::limits::MAX_QUEUE_ENTRIES;

/// The private data of a connect request, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Queue identifier: 0 for an admin queue.
    pub qid: u16,
    /// Entries of the submission queue, from 2 to [`MAX_QUEUE_ENTRIES`].
    pub entries: u16,
    /// The controller that an I/O queue is to join; 0 for an admin queue.
    pub cntlid: u16,
}

/// Why private data is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ConnectRequestError {
    /// Shorter than its format.
    #[error("{bytes} bytes of private data")]
    Length {
        /// Bytes that arrived.
        bytes: usize,
    },
    /// A format that we do not know.
    #[error("private data of format {recfmt}")]
    Format {
        /// RECFMT.
        recfmt: u16,
    },
    /// A submission queue that is too small or larger than we grant.
    #[error("queue {qid} with {entries} entries, which is not within 2 to {MAX_QUEUE_ENTRIES}")]
    Entries {
        /// QID.
        qid: u16,
        /// HSQSIZE, not 0's based.
        entries: u32,
    },
    /// The host could not take the responses to all the commands it may send.
    #[error("queue {qid} takes {entries} commands and {responses} responses")]
    Responses {
        /// QID.
        qid: u16,
        /// HSQSIZE, not 0's based.
        entries: u32,
        /// HRQSIZE.
        responses: u16,
    },
}

impl ConnectRequestError {
    /// The status to reject the connection with, one of [`reject`].
    pub fn status(self) -> u16 {
        match self {
            Self::Length { .. } => reject::INVALID_LENGTH,
            Self::Format { .. } => reject::INVALID_RECFMT,
            Self::Entries { .. } => reject::INVALID_HSQSIZE,
            Self::Responses { .. } => reject::INVALID_HRQSIZE,
        }
    }
}

impl ConnectRequest {
    /// Parses private data as it arrived: the connection manager pads it, so that more bytes than
    /// the format has mean nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConnectRequestError> {
        let Ok((data, _)) = RequestPrivateData::read_from_prefix(bytes) else {
            return Err(ConnectRequestError::Length { bytes: bytes.len() });
        };
        let recfmt = data.recfmt.get();
        if recfmt != 0 {
            return Err(ConnectRequestError::Format { recfmt });
        }
        let (qid, responses) = (data.qid.get(), data.hrqsize.get());
        let entries = u32::from(data.hsqsize_z.get()) + 1;
        let granted = u16::try_from(entries).ok();
        let Some(granted) = granted.filter(|n| (2..=MAX_QUEUE_ENTRIES).contains(n)) else {
            return Err(ConnectRequestError::Entries { qid, entries });
        };
        if responses < granted {
            return Err(ConnectRequestError::Responses { qid, entries, responses });
        }
        let cntlid = if qid == 0 { 0 } else { data.cntlid.get() };
        Ok(Self { qid, entries: granted, cntlid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(recfmt: u16, qid: u16, hrqsize: u16, hsqsize_z: u16) -> Vec<u8> {
        let mut bytes = vec![0; 56];
        for (at, value) in [recfmt, qid, hrqsize, hsqsize_z, 7].into_iter().enumerate() {
            bytes[2 * at..2 * at + 2].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn private_data_of_the_linux_host() {
        let admin = ConnectRequest::parse(&request(0, 0, 32, 31));
        assert_eq!(admin, Ok(ConnectRequest { qid: 0, entries: 32, cntlid: 0 }));
        let io = ConnectRequest::parse(&request(0, 3, 128, 127));
        assert_eq!(io, Ok(ConnectRequest { qid: 3, entries: 128, cntlid: 7 }));
    }

    #[test]
    fn bad_private_data_is_named() {
        let status = |bytes: &[u8]| ConnectRequest::parse(bytes).unwrap_err().status();
        assert_eq!(status(&[]), reject::INVALID_LENGTH);
        assert_eq!(status(&[0; 31]), reject::INVALID_LENGTH);
        assert_eq!(status(&request(1, 0, 32, 31)), reject::INVALID_RECFMT);
        assert_eq!(status(&request(0, 1, 128, 0)), reject::INVALID_HSQSIZE);
        assert_eq!(status(&request(0, 1, 128, 128)), reject::INVALID_HSQSIZE);
        assert_eq!(status(&request(0, 1, 128, u16::MAX)), reject::INVALID_HSQSIZE);
        assert_eq!(status(&request(0, 1, 16, 31)), reject::INVALID_HRQSIZE);
        assert!(ConnectRequest::parse(&request(0, 1, 2, 1)).is_ok(), "the smallest queue");
    }
}
