//! Private data of RDMA connect requests.

use nvmf_rdma::ConnectRequest;
use nvmf_rdma::limits::{MAX_QUEUE_ENTRIES, send_depth, slots};

/// Parses the bytes as private data. What is taken keeps the promises that sizes are computed from.
pub fn private_data(bytes: &[u8]) {
    match ConnectRequest::parse(bytes) {
        Ok(request) => {
            assert!((2..=MAX_QUEUE_ENTRIES).contains(&request.entries));
            assert!(request.qid != 0 || request.cntlid == 0);
            assert!(slots(request.entries) > u32::from(request.entries));
            assert!(send_depth(request.entries) >= 2 * slots(request.entries));
            let le = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            assert_eq!((le(0), le(2)), (0, request.qid));
            assert_eq!(le(6), request.entries - 1);
            assert!(le(4) >= request.entries, "the host has room for every response");
        }
        Err(error) => {
            assert!((1..=9).contains(&error.status()));
            assert!(!error.to_string().is_empty());
        }
    }
}
