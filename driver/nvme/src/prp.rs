//! Physical region pages (NVMe Base 2.1, section 4.3.1).

use dma::DmaSpan;

use crate::limits::PAGE_BYTES;

/// The two PRP entries for one run of bytes, filling `list` where they do not suffice. The run
/// starts at a multiple of 4 and is at least one byte and at most
/// [`MAX_TRANSFER_BYTES`](crate::limits::MAX_TRANSFER_BYTES) long.
#[inline]
pub(crate) fn entries(data: DmaSpan, list: DmaSpan) -> (u64, u64) {
    let (start, page) = (data.iova(), u64::from(PAGE_BYTES));
    let second = (start & !(page - 1)) + page;
    let end = start + u64::from(data.len());
    if end <= second {
        return (start, 0);
    }
    if end <= second + page {
        return (start, second);
    }
    let mut at = second;
    let mut offset = 0;
    while at < end {
        list.write_obj(offset, &at.to_le_bytes());
        (at, offset) = (at + page, offset + 8);
    }
    (start, list.iova())
}

#[cfg(test)]
mod tests {
    use dma::Arena;

    use super::*;
    use crate::limits::{MAX_TRANSFER_BYTES, PRP_LIST_BYTES};

    #[test]
    fn one_two_and_many_pages() {
        let arena = Arena::plain_pages(4 << 20).unwrap();
        let data = arena.carve(2 << 20, 4096).unwrap();
        let list = arena.carve(PRP_LIST_BYTES as usize, 4096).unwrap();
        let base = data.iova();
        assert_eq!(entries(data.subspan(0, 4096), list), (base, 0));
        assert_eq!(entries(data.subspan(4, 4092), list), (base + 4, 0));
        assert_eq!(entries(data.subspan(4, 4093), list), (base + 4, base + 4096));
        assert_eq!(entries(data.subspan(0, 8192), list), (base, base + 4096));
        assert_eq!(entries(data.subspan(8, 8192), list), (base + 8, list.iova()));
        assert_eq!(list.read_obj::<u64>(0), base + 4096);
        assert_eq!(list.read_obj::<u64>(8), base + 8192);
        // The longest, badly aligned: exactly a full list.
        entries(data.subspan(4092, MAX_TRANSFER_BYTES), list);
        assert_eq!(list.read_obj::<u64>(PRP_LIST_BYTES - 8), base + (1 << 20));
    }
}
