//! What the owner knows of each node and line, by number.

use std::ops::{Index, IndexMut};

use crate::format::Extent;

/// A root, directory or leaf.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Node {
    /// Nodes that name it, and releases that still do. 1 for a root.
    pub(super) refs: u32,
    /// Entries or children that are not zero.
    pub(super) used: u32,
    /// The checkpoint that is to write it; 0 when it is on disk as it is in memory.
    pub(super) due: u32,
    /// Where it is on disk.
    pub(super) extent: Extent,
}

/// All nodes of one kind. Number 0 is none of them.
pub(super) struct Nodes {
    all: Vec<Node>,
    free: Vec<u32>,
}

impl Nodes {
    pub(super) fn new() -> Nodes {
        Nodes { all: vec![Node::default()], free: Vec::new() }
    }

    /// A number that nobody has, with one reference to it.
    pub(super) fn add(&mut self) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.all.push(Node::default());
            number(self.all.len() - 1)
        });
        self[number] = Node { refs: 1, ..Node::default() };
        number
    }

    /// Takes the number back; where it was on disk.
    pub(super) fn remove(&mut self, number: u32) -> Extent {
        self.free.push(number);
        std::mem::take(&mut self[number]).extent
    }

    /// Numbers up to the highest that was ever given.
    pub(super) fn numbers(&self) -> std::ops::Range<u32> {
        1..number(self.all.len())
    }
}

impl Index<u32> for Nodes {
    type Output = Node;
    #[inline]
    fn index(&self, number: u32) -> &Node {
        &self.all[number as usize]
    }
}

impl IndexMut<u32> for Nodes {
    #[inline]
    fn index_mut(&mut self, number: u32) -> &mut Node {
        &mut self.all[number as usize]
    }
}

/// All lines: how many entries and releases name each. Number 0 is none of them.
pub(super) struct Lines {
    refs: Vec<u32>,
    free: Vec<u32>,
}

impl Lines {
    pub(super) fn new() -> Lines {
        Lines { refs: vec![0], free: Vec::new() }
    }

    /// A number that nobody has, with one reference to it.
    pub(super) fn add(&mut self) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.refs.push(0);
            number(self.refs.len() - 1)
        });
        self.refs[number as usize] = 1;
        number
    }

    pub(super) fn remove(&mut self, number: u32) {
        self.refs[number as usize] = 0;
        self.free.push(number);
    }

    pub(super) fn numbers(&self) -> std::ops::Range<u32> {
        1..number(self.refs.len())
    }
}

impl Index<u32> for Lines {
    type Output = u32;
    #[inline]
    fn index(&self, number: u32) -> &u32 {
        &self.refs[number as usize]
    }
}

impl IndexMut<u32> for Lines {
    #[inline]
    fn index_mut(&mut self, number: u32) -> &mut u32 {
        &mut self.refs[number as usize]
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).expect("nodes have numbers of 32 bits")
}
