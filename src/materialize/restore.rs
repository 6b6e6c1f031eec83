//! From entries to batches: what each of them means for the names on disk, by an index of our own.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

use parking_lot::Mutex;

use super::batch::{Batch, explain};
use super::create::{Creator, Task, key_of};
use super::early::Early;
use super::latest::Latest;
use super::links::{Link, What};
use super::replay::{Bytes, Item};
use super::report::{self, Report, weight};
use super::target::Target;
use super::{Error, Options, metadata};
use crate::entry::{Entry, EntryKind, EntryPath, Metadata};
use crate::index::{Index, Ino, Inserted, Kind};

const IN_UNMADE: &str = "the directory that it is in could not be restored";

/// The one that takes entries: into the index, and into batches.
pub(super) struct Restore<'a> {
    pub(super) options: &'a Options,
    pub(super) index: Index,
    pub(super) target: Target,
    pub(super) creator: &'a Creator,
    pub(super) report: &'a Report,
    pub(super) fatal: &'a Mutex<Option<(String, io::Error)>>,
    pub(super) batch: Batch,
    pub(super) send: SyncSender<Batch>,
    pub(super) finished: Receiver<Vec<Link>>,
    /// What is superseded, where that is known.
    pub(super) latest: Option<Latest>,
    /// Entries that have been put into batches.
    pub(super) handed: u64,
    /// Batches that have been sent and are not finished.
    pub(super) under_way: usize,
    /// Where the contents of an inode are that was restored by another name than its first.
    pub(super) firsts: HashMap<Ino, EntryPath>,
    /// What has the names that are left when leading components are left away, where they are.
    pub(super) stripped: HashMap<u64, Ino>,
    /// What there is already of a file that is arriving.
    pub(super) early: Option<Early>,
    /// Directories that could not be made, and have been named.
    pub(super) unmade: HashSet<Ino>,
    /// Metadata with the names of owners, which the index does not keep, where these count.
    pub(super) names: HashMap<Ino, Box<Metadata>>,
    /// Where the entry before went.
    pub(super) parent: (Vec<u8>, Ino),
}

impl Restore<'_> {
    /// The next entry: into the index, and into the batch.
    pub(super) fn take(&mut self, item: Item) -> Result<(), Error> {
        let stored = item.entry.kind.stored_len();
        self.report.read.fetch_add(weight(stored), Ordering::Relaxed);
        let before = self.handed;
        self.bind(item)?;
        if self.handed == before {
            self.report.done(stored);
        }
        Ok(())
    }

    fn bind(&mut self, item: Item) -> Result<(), Error> {
        if self.batch.is_full(self.target.most_open()) {
            self.flush(false)?;
        }
        let before = self.index.resolve(item.entry.path.as_bytes());
        let mut late = Vec::new();
        // What is refused has been told by the mount.
        let inserted = self
            .index
            .insert(&item.entry, &mut |l| late.extend(l.bound.ok().map(|ino| (l.link.clone(), l.target.clone(), ino))));
        let Ok(Inserted::Bound(ino)) = inserted else { return Ok(()) };
        let path = item.entry.path.clone();
        let replaced = self.takes_place(&path, before, ino)?;
        if self.creator.owners.by_name.is_some() && !matches!(item.entry.kind, EntryKind::HardLink { .. }) {
            self.names.insert(ino, Box::new(item.entry.metadata.clone()));
        }
        match &item.entry.kind {
            EntryKind::HardLink { target } => {
                let target = target.clone();
                // A link to the same inode again changes nothing.
                if before != Some(ino) {
                    self.link(&path, &target, ino, replaced)?;
                }
            }
            EntryKind::Directory => {
                if self.options.selection.wants(&path) && !self.is_superseded(&path, ino) {
                    self.directory(&path, replaced)?;
                }
            }
            _ => {
                if item.entry.kind.stored_len() > 0 {
                    self.index.set_place(ino, item.place.clone());
                    self.index.set_arrival(
                        ino,
                        match item.lost {
                            Some(received) => crate::index::Arrival::Truncated { received },
                            None => crate::index::Arrival::Complete,
                        },
                    );
                }
                if self.options.selection.wants(&path) && !self.is_superseded(&path, ino) {
                    if self.options.selection.is_new(item.entry.metadata.mtime) {
                        self.task(ino, item, replaced)?;
                    } else {
                        self.pass_over(&path, replaced);
                    }
                }
            }
        }
        for (link, target, ino) in late {
            // It may take the place of something in this batch.
            self.flush(true)?;
            let replaced = self.takes_place(&link, None, ino)?;
            self.link(&link, &target, ino, replaced)?;
        }
        Ok(())
    }

    /// Whether what is to be made takes the place of something that we made: `before`, or what has the same name when
    /// leading components are left away. That has to be there before it can be replaced.
    fn takes_place(&mut self, path: &EntryPath, before: Option<Ino>, ino: Ino) -> Result<bool, Error> {
        let mut before = before.filter(|&before| before != ino && !self.is_superseded(path, before));
        if self.options.strip > 0
            && let Some(key) = self.creator.key(path)
            && self.options.selection.wants(path)
        {
            let directory = |ino| self.index.attributes(ino).is_some_and(|a| a.kind == Kind::Directory);
            let latest = self.latest.as_ref();
            let superseded = |other| latest.is_some_and(|latest| latest.supersedes_key(key, other));
            let other = self.stripped.insert(key, ino).filter(|&other| other != ino && !superseded(other));
            before = before.or(other.filter(|&other| !directory(other) || !directory(ino)));
        }
        if before.is_none() {
            return Ok(false);
        }
        self.flush(true)?;
        self.parent = (Vec::new(), Ino::ROOT);
        // In a second run it may have met what is about to come, and does not matter any more.
        self.report.forget(path.as_bytes());
        // A directory may have been there before; what was merged into it is not to be lost.
        let was_there = before.is_some_and(|before| self.target.has(before) && !self.target.is_made(before));
        Ok(!was_there && !self.creator.has_kept(path))
    }

    /// Nothing is made under this name. Unless something of ours has it, what has it is somebody else's.
    fn pass_over(&self, path: &EntryPath, has_ours: bool) {
        if !has_ours {
            self.creator.pass_over(path);
        }
    }

    /// Whether this path means something else in the end.
    fn is_superseded(&self, path: &EntryPath, ino: Ino) -> bool {
        let key = || (self.options.strip > 0).then(|| self.creator.key(path)).flatten();
        self.latest.as_ref().is_some_and(|latest| latest.supersedes(path, key(), ino))
    }

    /// Something with contents of its own.
    pub(super) fn task(&mut self, ino: Ino, item: Item, replaces_ours: bool) -> Result<(), Error> {
        let path = item.entry.path.clone();
        if let Some(received) = item.lost {
            if let Some(mut early) = self.early.take() {
                early.give_up(self.report);
            }
            let stored = item.entry.kind.stored_len();
            self.report.problem(path.as_bytes(), format!("only {received} of its {stored} bytes have arrived"));
            self.pass_over(&path, replaces_ours);
            return Ok(());
        }
        let Some((dir, name)) = self.place(&path)? else { return Ok(()) };
        if let Some((chunk, len)) = item.bytes.as_ref().map(Bytes::kept)
            && std::mem::replace(&mut self.batch.chunk, chunk) != chunk
        {
            self.batch.bytes += len;
        }
        let inherits = self.target.inherits(self.parent.1);
        let doubtful = self.latest.as_ref().is_some_and(|latest| latest.is_doubtful(ino));
        self.handed += 1;
        // Where another file has come since, it is of no use any more.
        let early = self.early.take().filter(|early| early.is_of(&item.place));
        self.batch.tasks.push(Task { dir, name, item, inherits, replaces_ours, doubtful, early });
        Ok(())
    }

    /// A second name of `ino`, which `target` is the first of.
    fn link(&mut self, path: &EntryPath, target: &EntryPath, ino: Ino, replaces_ours: bool) -> Result<(), Error> {
        let selection = &self.options.selection;
        let Some(attributes) = self.index.attributes(ino) else { return Ok(()) };
        if !selection.wants(path) || self.is_superseded(path, ino) {
            return Ok(());
        }
        if !selection.is_new(attributes.mtime) {
            self.pass_over(path, replaces_ours);
            return Ok(());
        }
        if let Some(crate::index::Arrival::Truncated { received }) = self.index.arrival(ino) {
            self.report
                .problem(path.as_bytes(), format!("only {received} of its {} bytes have arrived", attributes.stored));
            self.pass_over(path, replaces_ours);
            return Ok(());
        }
        let first = match (self.batch.firsts.get(&ino), self.firsts.get(&ino)) {
            (Some(first), _) => Some(first.clone()),
            (_, Some(first)) if self.is_at(first, ino) => Some(first.clone()),
            _ if selection.wants(target) && self.is_at(target, ino) => Some(target.clone()),
            _ => None,
        };
        let Some(first) = first else {
            // Its first name is not restored: this one gets the contents.
            self.firsts.insert(ino, path.clone());
            let Some(item) = self.copy_of(ino, path) else { return Ok(()) };
            return self.task(ino, item, replaces_ours);
        };
        let Some(from) = self.place(&first)? else { return Ok(()) };
        let Some((dir, name)) = self.place(path)? else { return Ok(()) };
        let Some(metadata) = self.metadata(ino) else { return Ok(()) };
        let what = What {
            kind: attributes.kind,
            size: attributes.size,
            mtime: attributes.mtime,
            owner: self.creator.owners.of(&metadata),
        };
        self.batch.firsts.insert(ino, first.clone());
        self.handed += 1;
        self.batch.links.push(Link { ino, from, first, dir, name, path: path.clone(), replaces_ours, what });
        Ok(())
    }

    /// What has the first name is something else. The second gets the contents, and further ones are made from that.
    fn without_first(&mut self, link: Link) -> Result<(), Error> {
        let Link { ino, first, path, replaces_ours, .. } = link;
        match self.firsts.get(&ino) {
            Some(other) if *other != first => self.link(&path, &first, ino, replaces_ours),
            _ => {
                self.firsts.insert(ino, path.clone());
                let Some(item) = self.copy_of(ino, &path) else { return Ok(()) };
                self.task(ino, item, replaces_ours)
            }
        }
    }

    /// Whether a path, if it is restored at all, is a name of this inode by now.
    pub(super) fn is_at(&self, path: &EntryPath, ino: Ino) -> bool {
        self.index.resolve(path.as_bytes()) == Some(ino)
            && !self.is_superseded(path, ino)
            && (self.options.strip == 0
                || self.creator.key(path).is_some_and(|key| self.stripped.get(&key) == Some(&ino)))
    }

    /// The entry that an inode came from, under another name.
    fn copy_of(&self, ino: Ino, path: &EntryPath) -> Option<Item> {
        let kind = kind_of(&self.index, ino)?;
        let entry = Box::new(Entry { path: path.clone(), kind, metadata: self.metadata(ino)? });
        Some(Item { entry, place: self.index.place(ino)?, bytes: None, lost: None })
    }

    /// What the index knows of an inode's metadata.
    pub(super) fn metadata(&self, ino: Ino) -> Option<Metadata> {
        if let Some(metadata) = self.names.get(&ino) {
            return Some((**metadata).clone());
        }
        metadata_of(&self.index, ino)
    }

    /// The directory that an entry goes into, and its name there. None where it has no place: it is the root, it is
    /// stripped away, or one of its parents could not be made.
    fn place(&mut self, path: &EntryPath) -> Result<Option<(Arc<OwnedFd>, CString)>, Error> {
        let Some((parent, name)) = path.split() else { return Ok(None) };
        if path.components().count() <= self.options.strip {
            return Ok(None);
        }
        let ino = if self.parent.0 == parent { self.parent.1 } else { self.parents(parent)? };
        if self.parent.0 != parent {
            self.parent = (parent.to_vec(), ino);
            self.batch.directories.insert(ino);
        }
        if !self.target.has(ino) {
            self.report.problem(path.as_bytes(), IN_UNMADE);
            return Ok(None);
        }
        match self.target.get(ino) {
            Ok(dir) => Ok(CString::new(name).ok().map(|name| (dir, name))),
            Err(e) => self.problem(path.as_bytes(), e).map(|()| None),
        }
    }

    /// Makes what is missing of a directory and its parents.
    fn parents(&mut self, path: &[u8]) -> Result<Ino, Error> {
        let mut at = Ino::ROOT;
        let mut length = 0;
        for (depth, name) in path.split(|&b| b == b'/').filter(|name| !name.is_empty()).enumerate() {
            length += name.len() + usize::from(length > 0);
            // All of them are in the index, since what is in them is.
            let Some(ino) = self.index.lookup(at, name) else { break };
            if !self.target.has(ino) {
                if depth < self.options.strip {
                    self.target.is_root(ino);
                } else if !self.unmade.contains(&ino)
                    && let (true, Ok(name)) = (self.target.has(at), CString::new(name))
                    && let Err(e) = self.target.make(ino, at, name, self.index.is_implied(ino))
                {
                    self.unmade.insert(ino);
                    self.problem(&path[..length], e)?;
                }
            }
            at = ino;
        }
        Ok(at)
    }

    /// A directory that is to be there, also when it is empty.
    fn directory(&mut self, path: &EntryPath, replaces_ours: bool) -> Result<(), Error> {
        let Some((_, name)) = path.split() else { return Ok(()) };
        let Some(ino) = self.index.resolve(path.as_bytes()) else { return Ok(()) };
        if replaces_ours && let Some((dir, name)) = self.place(path)? {
            // Of ours, and no directory, or it would not have been replaced.
            let _ = rustix::fs::unlinkat(&dir, &*name, rustix::fs::AtFlags::empty());
        }
        let known = self.target.has(ino);
        self.parents(path.as_bytes())?;
        if !self.target.has(ino) && !self.unmade.contains(&ino) {
            self.report.problem(path.as_bytes(), IN_UNMADE);
        }
        if !known && self.target.has(ino) && !name.is_empty() {
            let count = if self.target.is_made(ino) { &self.report.entries } else { &self.report.unchanged };
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// An error of one entry is a problem; one of the target as a whole ends it.
    pub(super) fn problem(&self, path: &[u8], cause: io::Error) -> Result<(), Error> {
        if self.creator.is_fatal(&cause) {
            return Err(Error::Entry { path: report::told(path), cause });
        }
        self.report.problem(path, explain(&cause));
        Ok(())
    }

    /// Hands over what is gathered; with `wait`, until it and all before it are made.
    pub(super) fn flush(&mut self, wait: bool) -> Result<(), Error> {
        loop {
            if !self.batch.tasks.is_empty() || !self.batch.links.is_empty() {
                if let Some(task) = self.batch.tasks.last() {
                    self.report.current(task.item.entry.path.as_bytes());
                }
                // The other side lives as long as we do.
                let _ = self.send.send(std::mem::take(&mut self.batch));
                self.under_way += 1;
            }
            while self.under_way > 0 && (wait || self.under_way > 1) {
                let without = self.finished.recv().unwrap_or_default();
                self.under_way -= 1;
                for link in without {
                    self.without_first(link)?;
                }
            }
            if let Some((path, cause)) = self.fatal.lock().take() {
                return Err(Error::Entry { path, cause });
            }
            if !wait || self.batch.tasks.is_empty() && self.batch.links.is_empty() {
                return Ok(());
            }
        }
    }

    /// The metadata of directories: nothing is made in them any more.
    pub(super) fn finish(&mut self) -> Result<(), Error> {
        self.index.finish(&mut |_, _| {});
        for (ino, made) in self.target.deepest_first() {
            let path = self.target.path(ino);
            let dir = match self.target.get(ino) {
                Ok(dir) => dir,
                // It has been replaced since, by something else of ours.
                Err(e) if self.is_replaced(ino, &e) => continue,
                Err(e) => {
                    self.problem(&path, e)?;
                    continue;
                }
            };
            let is_packed = |name: &[u8]| match self.options.strip {
                0 => self.index.lookup(ino, name).is_some(),
                _ => key_of(path.split(|&b| b == b'/').filter(|name| !name.is_empty()).chain([name]))
                    .is_some_and(|key| self.stripped.contains_key(&key)),
            };
            if !made && let Err(e) = self.creator.temporary.clean(dir.as_fd(), is_packed) {
                self.problem(&path, e)?;
            }
            let stands_for_root = ino != Ino::ROOT && self.target.is_stripped(ino);
            let whole = ino != Ino::ROOT || (self.options.strip == 0 && self.options.selection.is_all());
            if stands_for_root || !whole || (!made && self.index.is_implied(ino)) {
                continue;
            }
            let Some(metadata) = self.metadata(ino) else { continue };
            let applied = if self.index.is_implied(ino) {
                rustix::fs::fchmod(&dir, rustix::fs::Mode::from_raw_mode(0o755))
                    .and_then(|()| rustix::fs::futimens(&dir, &metadata::times(&metadata)))
                    .map_err(io::Error::from)
            } else {
                metadata::apply(dir.as_fd(), &metadata, &self.creator.owners, false, &path, self.report)
            };
            if let Err(e) = applied {
                self.problem(&path, e)?;
            }
        }
        Ok(())
    }

    /// Whether a directory that cannot be opened any more has made room for a later entry.
    fn is_replaced(&self, ino: Ino, cause: &io::Error) -> bool {
        if self.options.strip > 0 {
            return matches!(cause.raw_os_error(), Some(libc::ENOTDIR | libc::ENOENT | libc::ELOOP));
        }
        let mut at = ino;
        while at != Ino::ROOT {
            match self.index.parent(at) {
                Some(parent) if self.index.list(parent, 0).any(|(_, _, child)| child == at) => at = parent,
                _ => return true,
            }
        }
        false
    }
}

/// What an inode is, other than a directory.
pub(super) fn kind_of(index: &Index, ino: Ino) -> Option<EntryKind> {
    let a = index.attributes(ino)?;
    Some(match a.kind {
        Kind::File => EntryKind::File { size: a.size, sparse: index.sparse(ino).cloned() },
        Kind::Symlink => EntryKind::Symlink { target: index.target(ino)?.into() },
        Kind::CharDevice => EntryKind::CharDevice { device: a.device? },
        Kind::BlockDevice => EntryKind::BlockDevice { device: a.device? },
        Kind::Fifo => EntryKind::Fifo,
        Kind::Socket => EntryKind::Socket,
        Kind::Directory => return None,
    })
}

/// What belongs to it.
pub(super) fn metadata_of(index: &Index, ino: Ino) -> Option<Metadata> {
    let a = index.attributes(ino)?;
    let xattrs = index.xattrs(ino)?;
    Some(Metadata { mode: a.mode, uid: a.uid, gid: a.gid, mtime: a.mtime, xattrs, ..Metadata::default() })
}
