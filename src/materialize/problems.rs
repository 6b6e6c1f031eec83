//! The problems that a restore has told so far: all of them, each in bounded memory, until what was wrong is so no more.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use serde::Serialize;

use crate::entry::shortened;

/// No path and no reason is kept longer.
const MAX_TEXT: usize = 1024;

/// Bytes of both; further problems are only counted.
const MAX_KEPT: usize = 256 << 20;

/// An entry that is not on the disk as it was packed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which entry, escaped for printing.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

#[derive(Debug)]
pub(super) struct Problems {
    most: usize,
    bytes: usize,
    all: Vec<Option<Told>>,
    /// Where the last problem of each path is, by a hash of the path.
    last: HashMap<u64, usize>,
    keys: RandomState,
}

#[derive(Debug)]
struct Told {
    problem: Problem,
    /// Where the one before it with the same hash is.
    before: Option<usize>,
}

impl Default for Problems {
    fn default() -> Self {
        Problems { most: MAX_KEPT, bytes: 0, all: Vec::new(), last: HashMap::new(), keys: RandomState::new() }
    }
}

impl Problems {
    pub(super) fn push(&mut self, path: String, reason: String) {
        if self.bytes >= self.most {
            return;
        }
        let key = self.keys.hash_one(&path);
        let problem = Problem { path: shortened(path, MAX_TEXT), reason: shortened(reason, MAX_TEXT) };
        self.bytes += problem.path.len() + problem.reason.len();
        let before = self.last.insert(key, self.all.len());
        self.all.push(Some(Told { problem, before }));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    /// Drops what was told of a path. Returns how many problems that were.
    pub(super) fn forget(&mut self, path: String) -> u64 {
        let mut at = self.last.remove(&self.keys.hash_one(&path));
        let path = shortened(path, MAX_TEXT);
        let mut dropped = 0;
        // Two paths with one hash are as good as impossible; the text is compared all the same, since what is dropped is
        // told to nobody.
        while let Some(told) = at.and_then(|at| self.all.get_mut(at)) {
            at = told.as_ref().and_then(|told| told.before);
            if let Some(gone) = told.take_if(|told| told.problem.path == path) {
                self.bytes -= gone.problem.path.len() + gone.problem.reason.len();
                dropped += 1;
            }
        }
        dropped
    }

    /// All that are left, in the order in which they were told.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.all.iter().flatten().map(|told| &told.problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(kept: &Problems) -> Vec<&str> {
        kept.iter().map(|problem| &*problem.path).collect()
    }

    #[test]
    fn what_is_right_again_is_forgotten_and_nothing_else() {
        let mut kept = Problems::default();
        for n in 0..30_000 {
            kept.push(format!("f{}", n % 10_000), n.to_string());
        }
        for n in 1..10_000 {
            assert_eq!(kept.forget(format!("f{n}")), 3);
            assert_eq!(kept.forget(format!("f{n}")), 0);
        }
        assert_eq!(paths(&kept), ["f0"; 3]);
        assert_eq!(kept.forget("f0".into()), 3);
        assert!(kept.is_empty() && kept.bytes == 0);
        kept.push("f0".into(), "again".into());
        assert_eq!(paths(&kept), ["f0"]);
    }

    #[test]
    fn long_paths_that_look_alike_are_told_apart() {
        let mut kept = Problems::default();
        let path = |middle: &str| format!("{}{middle}{}", "a".repeat(4000), "z".repeat(4000));
        kept.push(path("1"), String::new());
        kept.push(path("2"), "r".repeat(5000));
        assert!(kept.iter().all(|problem| problem.path.len() <= MAX_TEXT && problem.reason.len() <= MAX_TEXT));
        assert_eq!((kept.forget(path("2")), kept.forget(path("3")), paths(&kept).len()), (1, 0, 1));
    }

    #[test]
    fn there_is_a_bound() {
        let mut kept = Problems { most: 10 * MAX_TEXT, ..Problems::default() };
        for n in 0..100 {
            kept.push(format!("{n}{}", "x".repeat(MAX_TEXT)), String::new());
        }
        assert!((9..=11).contains(&kept.iter().count()), "{}", kept.iter().count());
    }
}
