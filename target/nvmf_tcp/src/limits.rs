//! What a connection takes, and what bounds it.

use nvme_spec::tcp::MAXH2CDATA_MIN;

/// Most bytes of data that the host may put into one H2CData: a whole transfer.
pub const MAX_H2C_DATA_BYTES: u32 = 1 << 20;

const _: () = assert!(MAX_H2C_DATA_BYTES >= MAXH2CDATA_MIN && MAX_H2C_DATA_BYTES.is_multiple_of(4));
