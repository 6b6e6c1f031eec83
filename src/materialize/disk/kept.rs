//! Names of the target that are not ours: something else has them, and keeps them. There can be as many as entries, so each
//! is remembered by 16 bytes.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

/// Paths in the target, each by two hashes under keys of this run: so wide that no two paths meet by accident, and no
/// archive can have been packed so that they do.
#[derive(Default)]
pub(super) struct Kept {
    keys: [RandomState; 2],
    paths: Mutex<HashSet<[u64; 2]>>,
}

impl Kept {
    pub(super) fn add(&self, path: &[u8]) {
        self.paths.lock().insert(self.hash(path));
    }

    pub(super) fn remove(&self, path: &[u8]) {
        self.paths.lock().remove(&self.hash(path));
    }

    pub(super) fn has(&self, path: &[u8]) -> bool {
        self.paths.lock().contains(&self.hash(path))
    }

    fn hash(&self, path: &[u8]) -> [u64; 2] {
        self.keys.each_ref().map(|key| key.hash_one(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_nobody_foresees_their_hashes() {
        let (kept, other) = (Kept::default(), Kept::default());
        kept.add(b"a/b");
        assert!(kept.has(b"a/b") && !kept.has(b"a") && !kept.has(b"ab"));
        assert_ne!(kept.hash(b"a/b"), other.hash(b"a/b"));
        assert_ne!(kept.hash(b"a/b")[0], kept.hash(b"a/b")[1]);
        kept.remove(b"a/b");
        assert!(!kept.has(b"a/b"));
    }
}
