//! What the names mean: in the mount, and in the target, where paths may lose leading components.
//!
//! An entry gives a meaning to its own name, and to those of hard links that have waited for it. Each of these is a
//! binding. They are numbered: whoever takes the same entries in the same order gets the same numbers.

use std::collections::HashMap;

use super::select::Selection;
use crate::entry::{Entry, EntryKind, EntryPath, Metadata};
use crate::index::insert::{Inserted, Refusal};
use crate::index::{Arrival, Index, Ino, Kind};
use crate::replay::Item;

/// A name gets its meaning.
pub(in crate::materialize) struct Binding {
    pub(in crate::materialize) number: u64,
    pub(in crate::materialize) path: EntryPath,
    pub(in crate::materialize) ino: Ino,
    /// Of a hard link, the name that it repeats.
    pub(in crate::materialize) target: Option<EntryPath>,
    pub(in crate::materialize) place: Place,
}

/// What a binding means for its place in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::materialize) enum Place {
    /// It has none: it is not selected.
    None,
    /// Nothing is left of its path.
    Stripped,
    /// Nothing had it, or a directory that stays.
    Free,
    /// It has had it before.
    Same,
    /// This had it before.
    Replaces(Ino),
    /// It cannot have it, since others have lost their leading components too.
    Refused(Refusal),
}

/// The entries taken so far, as a tree.
pub(in crate::materialize) struct Bindings<'a> {
    selection: &'a Selection,
    /// So many leading components of each path are left away.
    strip: usize,
    /// Whether owners count by their names.
    by_name: bool,
    /// The tree of the mount.
    pub(in crate::materialize) index: Index,
    /// The tree of the target, where paths lose leading components.
    stripped: Option<Stripped>,
    /// Metadata with the names of owners, which the index does not keep, where these count.
    owners: HashMap<Ino, Box<Metadata>>,
    next: u64,
}

/// A tree of shortened paths.
struct Stripped {
    index: Index,
    /// By the inode there, the one of the mount.
    inos: Vec<Ino>,
}

impl<'a> Bindings<'a> {
    pub(in crate::materialize) fn new(
        selection: &'a Selection,
        strip: usize,
        by_name: bool,
        new_index: impl Fn() -> Index,
    ) -> Self {
        let stripped = (strip > 0).then(|| Stripped { index: new_index(), inos: vec![Ino::ROOT] });
        Bindings { selection, strip, by_name, index: new_index(), stripped, owners: HashMap::new(), next: 0 }
    }

    /// The next entry, with where its contents are. What the mount refused gives nothing.
    pub(in crate::materialize) fn take(&mut self, item: &Item) -> Vec<Binding> {
        let Item { entry, place, lost, .. } = item;
        let before = self.index.resolve(entry.path.as_bytes());
        let mut late = Vec::new();
        let inserted = self.index.insert(entry, &mut |l| {
            late.extend(l.bound.ok().map(|ino| (l.link.clone(), l.target.clone(), l.before, ino)));
        });
        let Ok(Inserted::Bound(ino)) = inserted else { return Vec::new() };
        let target = match &entry.kind {
            EntryKind::HardLink { target } => Some(target.clone()),
            _ => None,
        };
        if target.is_none() {
            if entry.kind.stored_len() > 0 {
                self.index.set_place(ino, place.clone());
                let arrival = lost.map_or(Arrival::Complete, |received| Arrival::Truncated { received });
                self.index.set_arrival(ino, arrival);
            }
            if self.by_name {
                self.owners.insert(ino, Box::new(entry.metadata.clone()));
            }
        }
        let mut bindings = Vec::with_capacity(1 + late.len());
        bindings.push(self.bind(entry.path.clone(), target, before, ino));
        for (path, target, before, ino) in late {
            bindings.push(self.bind(path, Some(target), before, ino));
        }
        bindings
    }

    fn bind(&mut self, path: EntryPath, target: Option<EntryPath>, before: Option<Ino>, ino: Ino) -> Binding {
        let number = self.next;
        self.next += 1;
        let place = match &mut self.stripped {
            _ if !self.selection.wants(&path) => Place::None,
            Some(stripped) => {
                self.selection.saw(path.components().count());
                match path.without_first(self.strip) {
                    Some(left) => stripped.bind(&self.index, &path, left, ino),
                    None => Place::Stripped,
                }
            }
            None => match before {
                None => Place::Free,
                Some(before) if before == ino => Place::Same,
                Some(before) => Place::Replaces(before),
            },
        };
        Binding { number, path, ino, target, place }
    }

    /// Whether a path means this inode by now, and has its place in the target.
    pub(in crate::materialize) fn has_place(&self, path: &EntryPath, ino: Ino) -> bool {
        self.index.resolve(path.as_bytes()) == Some(ino)
            && match (&self.stripped, path.without_first(self.strip)) {
                (_, None) => false,
                (Some(stripped), Some(left)) => stripped.resolve(left) == Some(ino),
                (None, Some(_)) => true,
            }
            && self.selection.wants(path)
    }

    /// What has this path in the target.
    pub(in crate::materialize) fn in_target(&self, path: &[u8]) -> Option<Ino> {
        match &self.stripped {
            Some(stripped) => stripped.resolve(path),
            None => self.index.resolve(path),
        }
    }

    /// The tree of the target, where more may be in it than is selected; [`Bindings::ino`] gives the inodes of the mount.
    pub(in crate::materialize) fn target(&self) -> &Index {
        self.stripped.as_ref().map_or(&self.index, |stripped| &stripped.index)
    }

    /// The inode of the mount for one of [`Bindings::target`].
    pub(in crate::materialize) fn ino(&self, of_target: Ino) -> Option<Ino> {
        match &self.stripped {
            Some(stripped) => stripped.ino(of_target),
            None => Some(of_target),
        }
    }

    /// What belongs to an inode.
    pub(in crate::materialize) fn metadata(&self, ino: Ino) -> Option<Metadata> {
        if let Some(metadata) = self.owners.get(&ino) {
            return Some((**metadata).clone());
        }
        let a = self.index.attributes(ino)?;
        let xattrs = self.index.xattrs(ino)?;
        Some(Metadata { mode: a.mode, uid: a.uid, gid: a.gid, mtime: a.mtime, xattrs, ..Metadata::default() })
    }

    /// The entry that an inode came from, under another name. None of a directory.
    pub(in crate::materialize) fn copy_of(&self, ino: Ino, path: &EntryPath) -> Option<Item> {
        let a = self.index.attributes(ino)?;
        let kind = match a.kind {
            Kind::File => EntryKind::File { size: a.size, sparse: self.index.sparse(ino).cloned() },
            Kind::Symlink => EntryKind::Symlink { target: self.index.target(ino)?.into() },
            Kind::CharDevice => EntryKind::CharDevice { device: a.device? },
            Kind::BlockDevice => EntryKind::BlockDevice { device: a.device? },
            Kind::Fifo => EntryKind::Fifo,
            Kind::Socket => EntryKind::Socket,
            Kind::Directory => return None,
        };
        let entry = Box::new(Entry { path: path.clone(), kind, metadata: self.metadata(ino)? });
        Some(Item { entry, place: self.index.place(ino)?, bytes: None, lost: None })
    }
}

impl Stripped {
    fn bind(&mut self, mount: &Index, path: &EntryPath, left: &[u8], ino: Ino) -> Place {
        let directory = |ino| mount.attributes(ino).is_some_and(|a| a.kind == Kind::Directory);
        let before = self.resolve(left);
        if before == Some(ino) {
            return Place::Same;
        }
        let Ok(short) = EntryPath::parse(left) else { return Place::Stripped };
        // Only its being a directory counts here.
        let kind = if directory(ino) { EntryKind::Directory } else { EntryKind::Fifo };
        let known = self.index.inodes();
        let inserted = self.index.insert(&Entry { path: short, kind, metadata: Metadata::default() }, &mut |_| {});
        // Directories that it is in may be new, also where it is refused itself.
        for made in known..self.index.inodes() {
            self.inos.push(ino);
            debug_assert_eq!(self.inos.len(), made + 1);
        }
        if self.index.inodes() > known + 1 || inserted.is_err() {
            let begin = path.as_bytes().len() - left.len();
            for (end, _) in left.iter().enumerate().filter(|(_, b)| **b == b'/') {
                if let Some(here) = self.index.resolve(&left[..end])
                    && here.0 > known as u64
                    && let Some(there) = mount.resolve(&path.as_bytes()[..begin + end])
                {
                    self.inos[here.0 as usize - 1] = there;
                }
            }
        }
        match inserted {
            Ok(Inserted::Bound(here)) => {
                self.inos[here.0 as usize - 1] = ino;
                match before {
                    Some(before) if !directory(before) || !directory(ino) => Place::Replaces(before),
                    _ => Place::Free,
                }
            }
            Ok(Inserted::Waits) => Place::Stripped,
            Err(refusal) => Place::Refused(refusal),
        }
    }

    fn resolve(&self, path: &[u8]) -> Option<Ino> {
        self.ino(self.index.resolve(path)?)
    }

    fn ino(&self, here: Ino) -> Option<Ino> {
        self.inos.get((here.0 as usize).checked_sub(1)?).copied()
    }
}
