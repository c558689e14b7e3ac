//! NVMe as the specifications lay it out: NVM Express Base 2.1, NVM Command Set 1.1, NVMe over RDMA
//! Transport 1.1 and NVMe over TCP Transport 1.1.
//!
//! Layouts are `zerocopy` structs of little-endian fields with const asserts on their sizes and on
//! the offsets that matter; any bytes are a valid value. Codes are integers, or newtypes over them,
//! with named constants, so that a value nobody has assigned yet is just another value. Numbers
//! that are 0's based on the wire end in `_z` and are converted here, once.
//!
//! What it does not do: decide anything. Whether a value makes sense is its reader's business.
#![forbid(unsafe_code)]

pub mod admin;
pub mod aer;
pub mod command;
pub mod fabrics;
pub mod features;
pub mod identify;
pub mod log_page;
pub mod nvm;
pub mod opcode;
pub mod rdma;
pub mod registers;
pub mod sgl;
pub mod status;
pub mod tcp;

pub use zerocopy::little_endian::{U16, U32, U64};
