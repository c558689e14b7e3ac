//! What a block must hold: the last acknowledged write, or one that was sent after it.

use crate::block::{Found, Label};

/// What is known of a block. Writes of one block are never in flight together, and their
/// generations grow; so whatever was sent after the last acknowledged write is either there or not,
/// and all that is to be remembered are the two ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expect {
    /// Generation of the last acknowledged write, 0 for none; [`ZEROES`] where it left zeroes.
    acked: u64,
    /// Generation of the last write that was sent; [`ZEROES`] where one that was sent after
    /// `acked` would leave zeroes.
    sent: u64,
}

const ZEROES: u64 = 1 << 63;

/// What should have been found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The last acknowledged write.
    pub generation: u64,
    /// It left zeroes.
    pub zeroes: bool,
    /// The last of the writes that were sent after it, of which nobody knows what became.
    pub or_until: Option<u64>,
}

impl Expect {
    /// A write is about to be sent.
    #[inline]
    pub fn note_sent(&mut self, generation: u64, zeroes: bool) {
        let flag = if zeroes { ZEROES } else { self.sent & ZEROES };
        self.sent = generation | flag;
    }

    /// The last write that was sent is acknowledged.
    #[inline]
    pub fn note_acked(&mut self, generation: u64, zeroes: bool) {
        self.acked = if zeroes { generation | ZEROES } else { generation };
        self.sent = generation;
    }

    /// Whether there is anything that it must hold.
    #[inline]
    pub fn is_known(self) -> bool {
        self.acked != 0
    }

    /// The last acknowledged write, and those that may have followed.
    pub fn expected(self) -> Expected {
        let (generation, sent) = (self.acked & !ZEROES, self.sent & !ZEROES);
        let or_until = (sent > generation).then_some(sent);
        Expected { generation, zeroes: self.acked & ZEROES != 0, or_until }
    }

    /// Whether a whole block of ours is what it must hold.
    #[inline]
    pub fn allows(self, label: Label, seed: u64, lba: u64) -> bool {
        let (acked, sent) = (self.acked & !ZEROES, self.sent & !ZEROES);
        let generation = label.generation;
        let is_acked = generation == acked && self.acked & ZEROES == 0;
        let may_have_followed = generation > acked && generation <= sent;
        (label.seed, label.lba) == (seed, lba) && (is_acked || may_have_followed)
    }

    /// Whether what was found is what it must hold.
    pub fn allows_found(self, found: &Found, seed: u64, lba: u64) -> bool {
        match found {
            Found::Intact(label) => self.allows(*label, seed, lba),
            Found::Zeroes => (self.acked | self.sent) & ZEROES != 0,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(expect: Expect, generation: u64) -> bool {
        let label = Label { seed: 1, lba: 2, generation };
        expect.allows_found(&Found::Intact(label), 1, 2)
    }

    #[test]
    fn an_acknowledged_write_stands_alone() {
        let mut expect = Expect::default();
        assert!(!expect.is_known());
        expect.note_sent(5, false);
        assert!(!expect.is_known());
        expect.note_acked(5, false);
        assert!(expect.is_known());
        assert!(!allows(expect, 4) && allows(expect, 5) && !allows(expect, 6));
        assert!(!expect.allows_found(&Found::Zeroes, 1, 2));
        let elsewhere = Found::Intact(Label { seed: 1, lba: 3, generation: 5 });
        assert!(!expect.allows_found(&elsewhere, 1, 2));
        let other_log = Found::Intact(Label { seed: 9, lba: 2, generation: 5 });
        assert!(!expect.allows_found(&other_log, 1, 2));
    }

    #[test]
    fn what_was_sent_and_not_acknowledged_is_there_or_not() {
        let mut expect = Expect::default();
        expect.note_acked(5, false);
        expect.note_sent(7, false);
        expect.note_sent(9, false);
        assert!(!allows(expect, 4) && !allows(expect, 10));
        assert!([5, 7, 9].iter().all(|&generation| allows(expect, generation)));
        let expected = Expected { generation: 5, zeroes: false, or_until: Some(9) };
        assert_eq!(expect.expected(), expected);
        expect.note_acked(9, false);
        assert!(!allows(expect, 7) && allows(expect, 9), "the last one is certain again");
    }

    #[test]
    fn zeroes_are_zeroes_until_the_next_write() {
        let mut expect = Expect::default();
        expect.note_acked(5, true);
        assert!(expect.allows_found(&Found::Zeroes, 1, 2) && !allows(expect, 5));
        expect.note_sent(6, false);
        assert!(expect.allows_found(&Found::Zeroes, 1, 2) && allows(expect, 6));
        expect.note_acked(6, false);
        assert!(!expect.allows_found(&Found::Zeroes, 1, 2) && allows(expect, 6));
        expect.note_sent(7, true);
        expect.note_sent(8, false);
        assert!(expect.allows_found(&Found::Zeroes, 1, 2), "7 may have been the last");
        assert!(allows(expect, 6) && allows(expect, 8));
    }
}
