//! Which names get another meaning among the entries that are there when a restore begins: learnt in a first pass, before
//! anything is made.
//!
//! What is superseded is then not made at all, so that a second run rewrites nothing that is right. What comes after the
//! first pass is never superseded.

use std::collections::HashMap;

use super::bindings::{Binding, Place};
use crate::entry::EntryPath;

/// The names that have been replaced.
#[derive(Default)]
pub(in crate::materialize) struct Latest {
    /// By the place in the target, the number of the last binding.
    last: HashMap<Box<[u8]>, u64>,
    strip: usize,
}

impl Latest {
    pub(in crate::materialize) fn new(strip: usize) -> Self {
        Latest { strip, ..Latest::default() }
    }

    /// The next binding of the first pass.
    pub(in crate::materialize) fn take(&mut self, binding: &Binding) {
        if let Place::Replaces(_) = binding.place
            && let Some(left) = binding.path.without_first(self.strip)
        {
            self.last.insert(left.into(), binding.number);
        }
    }

    fn last(&self, path: &EntryPath) -> Option<u64> {
        if self.last.is_empty() {
            return None;
        }
        self.last.get(path.without_first(self.strip)?).copied()
    }

    /// Whether what this path means after the binding of that number is replaced by a later one.
    pub(in crate::materialize) fn supersedes(&self, path: &EntryPath, number: u64) -> bool {
        self.last(path).is_some_and(|last| number < last)
    }

    /// Whether what it meant just before that binding is replaced by it or by a later one of the first pass, so that it was
    /// never made.
    pub(in crate::materialize) fn superseded_before(&self, path: &EntryPath, number: u64) -> bool {
        self.last(path).is_some_and(|last| number <= last)
    }
}
