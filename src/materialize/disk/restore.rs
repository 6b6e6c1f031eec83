//! From entries to batches: what each of them means for the names on disk, by an index of our own.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::batch::{Batch, Workers};
use super::create::Task;
use super::creator::Creator;
use super::early::Early;
use super::links::{Link, Unmade, What};
use super::metadata;
use super::target::Target;
use crate::entry::{EntryKind, EntryPath};
use crate::index::{Arrival, Ino, Kind, Name};
use crate::materialize::error::{Error, Failure};
use crate::materialize::options::{Options, Overwrite};
use crate::materialize::plan::{Binding, Bindings, Latest, Place};
use crate::materialize::report::{self, Report, weight};
use crate::replay::{Bytes, Item};

const IN_UNMADE: &str = "the directory that it is in could not be restored";

/// The one that takes entries: into the tree of names, and into batches.
pub(in crate::materialize) struct Restore<'a> {
    pub(super) options: &'a Options,
    pub(super) bindings: Bindings<'a>,
    pub(super) target: Target,
    pub(super) creator: &'a Creator,
    report: &'a Report,
    workers: Workers<'a>,
    batch: Batch,
    /// What is superseded, where that is known.
    latest: Option<Latest>,
    /// The number of the binding that is being made.
    now: u64,
    /// Entries that have been put into batches.
    handed: u64,
    /// Batches that have been sent and are not finished.
    under_way: usize,
    /// Of what has several names, those that it was made by; the last is tried first.
    names: HashMap<Ino, Vec<Name>>,
    /// What has taken the place of something: what is in the target by its name may be an earlier version that
    /// looks the same.
    doubtful: HashSet<Ino>,
    /// What there is already of a file that is arriving.
    pub(super) early: Option<Early>,
    /// Directories that could not be made, and have been named.
    unmade: HashSet<Ino>,
    /// Where the entry before went.
    parent: (Vec<u8>, Ino),
}

impl<'a> Restore<'a> {
    pub(in crate::materialize) fn new(
        options: &'a Options,
        bindings: Bindings<'a>,
        latest: Option<Latest>,
        mut target: Target,
        creator: &'a Creator,
        report: &'a Report,
        workers: Workers<'a>,
    ) -> Self {
        target.is_root(Ino::ROOT);
        Restore {
            options,
            bindings,
            latest,
            now: 0,
            target,
            creator,
            report,
            workers,
            batch: Batch::default(),
            handed: 0,
            under_way: 0,
            names: HashMap::new(),
            doubtful: HashSet::new(),
            early: None,
            unmade: HashSet::new(),
            parent: (Vec::new(), Ino::ROOT),
        }
    }

    /// The directories, once everything is made.
    pub(in crate::materialize) fn into_target(self) -> Target {
        self.target
    }

    /// The next entry: into the index, and into the batch.
    pub(in crate::materialize) fn take(&mut self, item: Item) -> Result<(), Error> {
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
        // What is refused has been named by the mount.
        let bindings = self.bindings.take(&item);
        let mut item = Some(item);
        for binding in bindings {
            let own = item.take().filter(|item| !matches!(item.entry.kind, EntryKind::HardLink { .. }));
            self.make(&binding, own)?;
        }
        Ok(())
    }

    /// Makes what a binding means: the item that it came with, or another name of what is there.
    fn make(&mut self, binding: &Binding, item: Option<Item>) -> Result<(), Error> {
        let &Binding { number, ref path, ino, ref target, place } = binding;
        self.now = number;
        if let Some(target) = target
            && !self.names.contains_key(&ino)
            && self.place_of(target) != self.place_of(path)
            && let Some(name) = self.bindings.index.name(target.as_bytes()).filter(|_| self.is_made(target, ino))
        {
            // The first name that is repeated is the one that it came with.
            self.names.insert(ino, vec![name]);
        }
        if let Place::Replaces(_) = place {
            self.doubtful.insert(ino);
        }
        match place {
            Place::None => return Ok(()),
            Place::Stripped => {
                return match item {
                    // It stands for the root of the target.
                    Some(item) if item.entry.kind == EntryKind::Directory => self.directory(path, false),
                    _ => Ok(()),
                };
            }
            Place::Refused(refusal) => {
                self.report.problem(path.as_bytes(), format!("without its first components, {refusal}"));
                return Ok(());
            }
            // The same name of the same file again changes nothing.
            Place::Same if target.is_some() => return Ok(()),
            Place::Free | Place::Same | Place::Replaces(_) => {}
        }
        if self.latest.as_ref().is_some_and(|latest| latest.supersedes(path, number)) {
            return Ok(());
        }
        let replaces_ours = self.takes_place(binding)?;
        let mtime = self.bindings.index.attributes(ino).map(|a| a.mtime);
        match item {
            Some(item) if item.entry.kind == EntryKind::Directory => self.directory(path, replaces_ours),
            _ if mtime.is_some_and(|mtime| !self.options.selection.is_new(mtime)) => {
                if replaces_ours {
                    self.report.problem(
                        path.as_bytes(),
                        "the version that came last is older than --newer-than; the one before it stays",
                    );
                }
                self.pass_over(path, replaces_ours);
                Ok(())
            }
            Some(item) => self.task(ino, item, replaces_ours),
            None => self.link(path, ino, replaces_ours),
        }
    }

    /// Whether a binding takes the place of something that we made. That has to be there before it can be replaced.
    fn takes_place(&mut self, binding: &Binding) -> Result<bool, Error> {
        let &Binding { number, ref path, place, .. } = binding;
        let Place::Replaces(before) = place else { return Ok(false) };
        if self.latest.as_ref().is_some_and(|latest| latest.superseded_before(path, number)) {
            return Ok(false);
        }
        self.flush(true)?;
        self.parent = (Vec::new(), Ino::ROOT);
        if self.options.strip > 0 {
            // A directory that was replaced can come again, as the same inode.
            self.target.replaced(binding.ino);
            self.unmade.remove(&binding.ino);
        }
        self.check_others(before, path)?;
        // In a second run it may have met what is about to come, and does not matter any more.
        self.report.forget(path.as_bytes());
        // A directory may have been there before; what was merged into it is not to be lost.
        let was_there = self.target.has(before) && !self.target.is_made(before);
        Ok(!was_there && !self.creator.has_kept(path))
    }

    /// What loses a name here lives on under others. In a second run it was perhaps taken for right by its looks, and was
    /// the version that is about to come.
    fn check_others(&mut self, ino: Ino, lost: &EntryPath) -> Result<(), Error> {
        let index = &self.bindings.index;
        if self.options.overwrite != Overwrite::IfChanged
            || index.attributes(ino).is_none_or(|a| a.kind != Kind::File || a.nlink == 0)
            || index.arrival(ino) != Some(Arrival::Complete)
        {
            return Ok(());
        }
        let Some(first) = self.first_name(ino, lost) else { return Ok(()) };
        let Some(item) = self.bindings.copy_of(ino, &first) else { return Ok(()) };
        let Some((dir, name)) = self.place(&first)? else { return Ok(()) };
        // What cannot be read has been named already, or will be.
        if self.creator.holds(dir.as_fd(), &name, &item).unwrap_or(true) {
            return Ok(());
        }
        for name in self.names.remove(&ino).unwrap_or_default() {
            if let Some(path) = self.bindings.index.path(name).and_then(|path| EntryPath::parse(&path).ok())
                && self.place_of(&path) != self.place_of(lost)
                && self.is_made(&path, ino)
            {
                self.link(&path, ino, true)?;
            }
        }
        self.flush(true)
    }

    /// Nothing is made under this name. Unless something of ours has it, what has it is somebody else's.
    fn pass_over(&self, path: &EntryPath, has_ours: bool) {
        if !has_ours {
            self.creator.pass_over(path);
        }
    }

    /// What this path means did not arrive as a whole.
    fn cut(&self, path: &EntryPath, received: u64, stored: u64, has_ours: bool) {
        let stays = if has_ours { "; the version that came before it stays" } else { "" };
        let arrived = if received == 0 && self.report.broke_off() {
            // How much of it is there was still to be said.
            format!("not all of its {stored} bytes have arrived")
        } else {
            format!("only {received} of its {stored} bytes have arrived")
        };
        self.report.problem(path.as_bytes(), arrived + stays);
        self.pass_over(path, has_ours);
    }

    fn place_of<'p>(&self, path: &'p EntryPath) -> Option<&'p [u8]> {
        path.without_first(self.options.strip)
    }

    /// Whether this path means this inode by now, and was made so.
    fn is_made(&self, path: &EntryPath, ino: Ino) -> bool {
        self.bindings.has_place(path, ino)
            && self.latest.as_ref().is_none_or(|latest| !latest.supersedes(path, self.now))
    }

    /// Something with contents of its own.
    fn task(&mut self, ino: Ino, item: Item, replaces_ours: bool) -> Result<(), Error> {
        let path = item.entry.path.clone();
        if let Some(received) = item.lost {
            if let Some(mut early) = self.early.take() {
                early.give_up(self.report);
            }
            let stored = item.entry.kind.stored_len();
            self.cut(&path, received, stored, replaces_ours);
            return Ok(());
        }
        let Some((dir, name)) = self.place(&path)? else { return Ok(()) };
        if let Some((chunk, len)) = item.bytes.as_ref().map(Bytes::kept)
            && std::mem::replace(&mut self.batch.chunk, chunk) != chunk
        {
            self.batch.bytes += len;
        }
        let inherits = self.target.inherits(self.parent.1);
        let doubtful = self.doubtful.contains(&ino);
        self.handed += 1;
        // Where another file has come since, it is of no use any more.
        let early = self.early.take().filter(|early| early.is_of(&item.place));
        self.batch.tasks.push(Task { ino, dir, name, item, inherits, replaces_ours, doubtful, early });
        Ok(())
    }

    /// Another name of `ino`.
    fn link(&mut self, path: &EntryPath, ino: Ino, replaces_ours: bool) -> Result<(), Error> {
        let Some(attributes) = self.bindings.index.attributes(ino) else { return Ok(()) };
        if let Some(Arrival::Truncated { received }) = self.bindings.index.arrival(ino) {
            self.cut(path, received, attributes.stored, replaces_ours);
            return Ok(());
        }
        let first = match self.batch.firsts.get(&ino) {
            Some(first) => Some(first.clone()),
            None => self.first_name(ino, path),
        };
        if let Some(name) = self.bindings.index.name(path.as_bytes()) {
            self.names.entry(ino).or_default().push(name);
        }
        let Some(first) = first else {
            // It is there by no other name: this one gets the contents.
            let Some(item) = self.bindings.copy_of(ino, path) else { return Ok(()) };
            return self.task(ino, item, replaces_ours);
        };
        let Some(from) = self.place(&first)? else { return Ok(()) };
        let Some((dir, name)) = self.place(path)? else { return Ok(()) };
        let Some(metadata) = self.bindings.metadata(ino) else { return Ok(()) };
        let what = What {
            kind: attributes.kind,
            size: attributes.size,
            mtime: attributes.mtime,
            owner: self.creator.owners.of(&metadata),
            doubtful: self.doubtful.contains(&ino).then(|| self.bindings.copy_of(ino, path)).flatten(),
        };
        self.batch.firsts.insert(ino, first.clone());
        self.handed += 1;
        self.batch.links.push(Link { ino, from, first, dir, name, path: path.clone(), replaces_ours, what });
        Ok(())
    }

    /// A name by which `ino` is in the target, other than `path`. One that was there before us is taken where there is no
    /// other: it may be somebody else's.
    fn first_name(&mut self, ino: Ino, path: &EntryPath) -> Option<EntryPath> {
        let mut kept = None;
        let mut rest = self.names.get(&ino)?.len();
        while rest > 0 {
            rest -= 1;
            let name = self.names.get(&ino)?[rest];
            let known = self.bindings.index.path(name).and_then(|path| EntryPath::parse(&path).ok());
            match known {
                // It stands for the same place.
                Some(known) if self.place_of(&known) == self.place_of(path) => {}
                Some(known) if self.is_made(&known, ino) => {
                    if !self.creator.has_kept(&known) {
                        return Some(known);
                    }
                    kept.get_or_insert(known);
                }
                _ => {
                    self.names.get_mut(&ino)?.swap_remove(rest);
                }
            }
        }
        kept
    }

    /// What the names that these were to be made from have is something else. One of them gets the contents where there is
    /// no other name, and further ones are made from that.
    fn without_first(&mut self, links: Vec<(Link, Unmade)>) -> Result<(), Error> {
        for (link, why) in &links {
            let gone: Vec<Name> =
                [&link.first, &link.path].into_iter().filter_map(|p| self.bindings.index.name(p.as_bytes())).collect();
            if let Some(names) = self.names.get_mut(&link.ino) {
                match why {
                    Unmade::OtherFile => names.retain(|name| !gone.contains(name)),
                    Unmade::NoMoreLinks => names.clear(),
                }
            }
        }
        for (Link { ino, path, replaces_ours, .. }, _) in links {
            self.link(&path, ino, replaces_ours)?;
        }
        Ok(())
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
            let Some(ino) = self.bindings.index.lookup(at, name) else { break };
            if !self.target.has(ino) {
                if depth < self.options.strip {
                    self.target.is_root(ino);
                } else if !self.unmade.contains(&ino)
                    && let (true, Ok(name)) = (self.target.has(at), CString::new(name))
                    && let Err(e) = self.target.make(ino, at, name, self.bindings.index.is_implied(ino))
                {
                    self.unmade.insert(ino);
                    if let Ok(path) = EntryPath::parse(&path[..length]) {
                        self.creator.pass_over(&path);
                    }
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
        let Some(ino) = self.bindings.index.resolve(path.as_bytes()) else { return Ok(()) };
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
    fn problem(&self, path: &[u8], cause: impl Into<Failure>) -> Result<(), Error> {
        let cause = cause.into();
        if self.creator.is_fatal(&cause) {
            return Err(Error::Entry { path: report::told(path), cause });
        }
        self.report.problem(path, cause.explain());
        Ok(())
    }

    /// Hands over what is gathered; with `wait`, until it and all before it are made.
    pub(in crate::materialize) fn flush(&mut self, wait: bool) -> Result<(), Error> {
        loop {
            if !self.batch.tasks.is_empty() || !self.batch.links.is_empty() {
                if let Some(task) = self.batch.tasks.last() {
                    self.report.current(task.item.entry.path.as_bytes());
                }
                self.workers.hand_over(std::mem::take(&mut self.batch));
                self.under_way += 1;
            }
            while self.under_way > 0 && (wait || self.under_way > 1) {
                let without = self.workers.wait();
                self.under_way -= 1;
                self.without_first(without)?;
            }
            if let Some((path, cause)) = self.workers.failure() {
                return Err(Error::Entry { path, cause });
            }
            if !wait || self.batch.tasks.is_empty() && self.batch.links.is_empty() {
                return Ok(());
            }
        }
    }

    /// The metadata of directories: nothing is made in them any more.
    pub(in crate::materialize) fn finish(&mut self) -> Result<(), Error> {
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
            let is_packed = |name: &[u8]| {
                let parts: &[&[u8]] = if path.is_empty() { &[name] } else { &[&path, name] };
                self.bindings.in_target(&parts.join(&b'/')).is_some()
            };
            if !made && let Err(e) = self.creator.temporary.clean(dir.as_fd(), is_packed) {
                self.problem(&path, e)?;
            }
            let stands_for_root = ino != Ino::ROOT && self.target.is_stripped(ino);
            let whole = ino != Ino::ROOT || (self.options.strip == 0 && self.options.selection.is_all());
            // Of several directories that have become one, the last counts.
            let is_other = ino != Ino::ROOT && self.bindings.in_target(&path) != Some(ino);
            let implied = self.bindings.index.is_implied(ino);
            if stands_for_root || !whole || is_other || (!made && implied) {
                continue;
            }
            let Some(metadata) = self.bindings.metadata(ino) else { continue };
            let applied = if implied {
                rustix::fs::fchmod(&dir, rustix::fs::Mode::from_raw_mode(0o755))
                    .and_then(|()| rustix::fs::futimens(&dir, &metadata::times(&metadata)))
                    .map_err(Failure::from)
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
    fn is_replaced(&self, ino: Ino, cause: &std::io::Error) -> bool {
        if self.options.strip > 0 {
            return matches!(Errno::from_io_error(cause), Some(Errno::NOTDIR | Errno::NOENT | Errno::LOOP));
        }
        let index = &self.bindings.index;
        let mut at = ino;
        while at != Ino::ROOT {
            match index.parent(at) {
                Some(parent) if index.list(parent, 0).any(|(_, _, child)| child == at) => at = parent,
                _ => return true,
            }
        }
        false
    }
}
