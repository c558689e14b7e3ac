//! Cuts a byte stream into lines of bounded length.

use crate::limits::MAX_LINE_BYTES;

/// The other end sent a line beyond [`MAX_LINE_BYTES`]; nothing after it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is longer than {MAX_LINE_BYTES} bytes")]
pub struct LineTooLong;

/// Bytes that arrived and are not yet a whole line.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// Bytes at the front that were given out already.
    taken: usize,
    /// Bytes at the front that hold no line feed.
    searched: usize,
}

impl LineBuffer {
    /// Adds what arrived. At most one read's worth stays beyond a line's limit, because
    /// [`next_line`](Self::next_line) refuses longer lines.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line without its line feed, or `None` until more has arrived.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        let end = self.bytes.iter().skip(self.searched).position(|byte| *byte == b'\n');
        let line_end = end.map_or(self.bytes.len(), |offset| self.searched + offset);
        if line_end - self.taken > MAX_LINE_BYTES {
            return Err(LineTooLong);
        }
        if end.is_none() {
            self.searched = line_end;
            return Ok(None);
        }
        let start = std::mem::replace(&mut self.taken, line_end + 1);
        self.searched = self.taken;
        Ok(self.bytes.get(start..line_end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_come_out_however_they_arrive(
            lines in prop::collection::vec("[a-z]{0,20}", 0..10),
            piece in 1usize..30,
        ) {
            let stream = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            let mut buffer = LineBuffer::default();
            let mut out = Vec::new();
            for bytes in stream.as_bytes().chunks(piece) {
                buffer.push(bytes);
                while let Some(line) = buffer.next_line().unwrap() {
                    out.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            prop_assert_eq!(out, lines);
        }
    }

    #[test]
    fn a_line_at_the_limit_passes_and_one_beyond_does_not() {
        let mut buffer = LineBuffer::default();
        buffer.push(&vec![b'x'; MAX_LINE_BYTES]);
        assert_eq!(buffer.next_line(), Ok(None));
        buffer.push(b"\n");
        assert_eq!(buffer.next_line().unwrap().map(<[u8]>::len), Some(MAX_LINE_BYTES));
        buffer.push(&vec![b'x'; MAX_LINE_BYTES + 1]);
        assert_eq!(buffer.next_line(), Err(LineTooLong));
    }
}
