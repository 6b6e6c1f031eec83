//! What the names mean in the end, where some of them come more than once: learnt in a first pass, before anything is
//! made.
//!
//! What is superseded is then not made at all, so that a second run rewrites nothing that is right; and what a run
//! before has made of one version is not taken for another that happens to have its size and time.

use std::collections::{HashMap, HashSet};

use super::Options;
use super::replay::Item;
use crate::entry::EntryPath;
use crate::index::{Index, Ino, Kind};

/// The names as they are when everything that is there by now has been taken.
pub(super) struct Latest {
    /// Gives the same numbers to the same entries as any other that takes them in the same order.
    index: Index,
    /// What has the names that are left when leading components are left away.
    stripped: HashMap<u64, Ino>,
    doubtful: HashSet<Ino>,
}

impl Latest {
    pub(super) fn new(index: Index) -> Self {
        Latest { index, stripped: HashMap::new(), doubtful: HashSet::new() }
    }

    /// The next entry. `key` stands for the place of a path in the target.
    pub(super) fn take(&mut self, item: &Item, options: &Options, key: impl Fn(&EntryPath) -> Option<u64>) {
        let path = &item.entry.path;
        let before = self.index.resolve(path.as_bytes());
        let mut late = Vec::new();
        let inserted =
            self.index.insert(&item.entry, &mut |l| late.extend(l.bound.ok().map(|ino| (l.link.clone(), ino))));
        let Ok(crate::index::Inserted::Bound(ino)) = inserted else { return };
        self.bound(path, before, ino, options, &key);
        for (path, ino) in late {
            // What it took the place of is not known any more.
            self.doubtful.insert(ino);
            self.bound(&path, None, ino, options, &key);
        }
    }

    fn bound(
        &mut self,
        path: &EntryPath,
        before: Option<Ino>,
        ino: Ino,
        options: &Options,
        key: &impl Fn(&EntryPath) -> Option<u64>,
    ) {
        let other = match key(path) {
            Some(key) if options.strip > 0 && options.selection.wants(path) => self.stripped.insert(key, ino),
            _ => None,
        };
        if [before, other].into_iter().flatten().any(|before| before != ino && self.is_file(before)) {
            self.doubtful.insert(ino);
        }
    }

    fn is_file(&self, ino: Ino) -> bool {
        self.index.attributes(ino).is_some_and(|a| a.kind == Kind::File)
    }

    fn is_directory(&self, ino: Ino) -> bool {
        self.index.attributes(ino).is_some_and(|a| a.kind == Kind::Directory)
    }

    /// Whether something else has this path in the end; by its `key`, also when leading components are left away.
    pub(super) fn supersedes(&self, path: &EntryPath, key: Option<u64>, ino: Ino) -> bool {
        self.knows(ino)
            && (self.index.resolve(path.as_bytes()).is_some_and(|there| there != ino)
                || key.is_some_and(|key| self.supersedes_key(key, ino)))
    }

    /// The same, when leading components are left away. Directories are one there.
    pub(super) fn supersedes_key(&self, key: u64, ino: Ino) -> bool {
        self.knows(ino) && !self.is_directory(ino) && self.stripped.get(&key).is_some_and(|&there| there != ino)
    }

    /// What came later is not in it.
    fn knows(&self, ino: Ino) -> bool {
        ino.0 <= self.index.inodes() as u64
    }

    /// Whether what is on the disk under a name of this inode may be an earlier version that looks the same.
    pub(super) fn is_doubtful(&self, ino: Ino) -> bool {
        self.doubtful.contains(&ino)
    }
}
