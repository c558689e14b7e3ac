//! The memory of one command's data.

use dma::DmaSpan;

use crate::limits::MAX_SPANS;

/// The runs of memory that a command's data lies in, in order; none at all without data.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spans {
    runs: [Option<DmaSpan>; MAX_SPANS],
    bytes: u32,
}

impl Spans {
    /// No data.
    pub const NONE: Self = Self { runs: [None; MAX_SPANS], bytes: 0 };

    /// Several runs; `None` when they are more than [`MAX_SPANS`], or longer together than 32 bits
    /// tell.
    pub fn gather(runs: &[DmaSpan]) -> Option<Self> {
        let mut spans = Self::NONE;
        if runs.len() > MAX_SPANS {
            return None;
        }
        for (to, from) in spans.runs.iter_mut().zip(runs) {
            *to = Some(*from);
            spans.bytes = spans.bytes.checked_add(from.len())?;
        }
        Some(spans)
    }

    /// Bytes in all runs together.
    #[inline]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// The only run, if there is just one.
    #[inline]
    pub fn only(&self) -> Option<DmaSpan> {
        match self.runs {
            [only, None, ..] => only,
            _ => None,
        }
    }

    /// What begins `offset` bytes in and lies in one run: at most `len` bytes, at least one unless
    /// there is nothing.
    #[inline]
    pub(crate) fn part(&self, offset: u32, len: u32) -> Option<DmaSpan> {
        let mut offset = offset;
        for run in self.runs.iter().flatten() {
            if offset < run.len() {
                return Some(run.subspan(offset, len.min(run.len() - offset)));
            }
            offset -= run.len();
        }
        None
    }
}

impl From<DmaSpan> for Spans {
    fn from(span: DmaSpan) -> Self {
        let mut runs = [None; MAX_SPANS];
        runs[0] = Some(span);
        Self { runs, bytes: span.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dma::Arena;

    #[test]
    fn parts_lie_in_one_run_each() {
        let arena = Arena::plain_pages(1 << 20).unwrap();
        let span = arena.carve(4096, 4096).unwrap();
        let runs = [span.subspan(0, 100), span.subspan(512, 50), span.subspan(1024, 1000)];
        let spans = Spans::gather(&runs).unwrap();
        assert_eq!((spans.bytes(), spans.only().is_none()), (1150, true));
        let part = |offset, len| {
            spans.part(offset, len).map(|part| ((part.iova() - span.iova()) as u32, part.len()))
        };
        assert_eq!(part(0, 1150), Some((0, 100)));
        assert_eq!(part(99, 10), Some((99, 1)));
        assert_eq!(part(100, 10), Some((512, 10)));
        assert_eq!(part(150, 5000), Some((1024, 1000)));
        assert_eq!(part(1149, 5000), Some((2023, 1)));
        assert_eq!(part(1150, 1), None);
        assert_eq!(Spans::from(span).only().map(|span| span.len()), Some(4096));
        assert!(Spans::NONE.only().is_none());
        assert!(Spans::gather(&[span; MAX_SPANS + 1]).is_none());
    }
}
