//! Where a name in a directory is found: the hash of both, and the number of the dentry.
//!
//! An archive has the names of a directory together. One table would scatter them over all of its memory, and each new
//! name would wait for that; so there are many, and a directory has its names in one of them: it is small enough for the
//! processor's cache, and grows alone. With all names in one directory it is one table again.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::ino::Ino;

/// 32 KiB of empty tables; with ten million names each is of some 100 KiB.
const PART_BITS: u32 = 10;

/// Directories that came together are in the same part: they are looked into together, too.
const NEAR_BITS: u32 = 8;

/// The table of names.
#[derive(Debug)]
pub(super) struct Table {
    parts: Box<[HashTable<(u32, u32)>]>,
    hasher: RandomState,
    bytes: usize,
}

impl Table {
    pub(super) fn new() -> Self {
        let parts = std::iter::repeat_with(HashTable::new).take(1 << PART_BITS).collect();
        Table { parts, hasher: RandomState::new(), bytes: 0 }
    }

    pub(super) fn hash(&self, parent: Ino, name: &[u8]) -> u32 {
        self.hasher.hash_one((parent.0, name)) as u32
    }

    /// The dentry of this hash that `is` says to be the one.
    pub(super) fn find(&self, parent: Ino, hash: u32, is: impl Fn(u32) -> bool) -> Option<u32> {
        let found = self.parts[part(parent)].find(spread(hash), |&(h, d)| h == hash && is(d));
        found.map(|&(_, d)| d)
    }

    /// Adds a dentry that is not in it.
    pub(super) fn add(&mut self, parent: Ino, hash: u32, dentry: u32) {
        let part = &mut self.parts[part(parent)];
        let before = part.allocation_size();
        part.insert_unique(spread(hash), (hash, dentry), |&(hash, _)| spread(hash));
        self.bytes += part.allocation_size() - before;
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + size_of_val(&*self.parts)
    }
}

fn part(parent: Ino) -> usize {
    (mix(parent.0 >> NEAR_BITS) >> (64 - PART_BITS)) as usize
}

/// A part takes its bucket from the low bits and its tag from the high ones of 64.
fn spread(hash: u32) -> u64 {
    mix(u64::from(hash))
}

fn mix(bits: u64) -> u64 {
    bits.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
