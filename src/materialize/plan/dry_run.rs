//! What would be done, for each entry, without doing it.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, Stat, open, statat};

use super::bindings::{Binding, Bindings, Place};
use super::latest::Latest;
use super::select::Selection;
use crate::entry::{Entry, EntryPath, Timestamp, escape};
use crate::index::{Ino, Kind};
use crate::materialize::error::{Error, Failure};
use crate::materialize::report::Report;
use crate::replay::Item;

/// What would be done with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is made.
    Make,
    /// It is made in the place of something else.
    Replace,
    /// It is right already.
    Leave,
    /// Something else is there, and stays.
    Keep,
}

/// How it is told what would become of what is in the target.
pub(in crate::materialize) trait Look {
    /// What would be done with an entry whose name in `dir` this is; without a directory, it is not there yet.
    fn would(&self, dir: Option<BorrowedFd<'_>>, name: &CStr, entry: &Entry) -> Result<Action, Failure>;

    /// Whether `there`, which has the name of a hard link, stays, by what was said of overwriting.
    fn keeps(&self, mtime: Timestamp, there: &Stat) -> bool;
}

/// Looks at the target as it is now.
pub(in crate::materialize) struct DryRun<'a> {
    pub(in crate::materialize) target: &'a Path,
    pub(in crate::materialize) selection: &'a Selection,
    pub(in crate::materialize) strip: usize,
    pub(in crate::materialize) look: &'a dyn Look,
    pub(in crate::materialize) report: &'a Report,
    pub(in crate::materialize) bindings: Bindings<'a>,
    pub(in crate::materialize) latest: Option<Latest>,
    pub(in crate::materialize) tell: fn(&EntryPath, Action),
    /// By which name the contents come of what has several.
    pub(in crate::materialize) firsts: HashMap<Ino, EntryPath>,
}

impl DryRun<'_> {
    /// Tells of an entry, and of the links that have waited for it.
    pub(in crate::materialize) fn take(&mut self, item: &Item) -> Result<(), Error> {
        for binding in self.bindings.take(item) {
            let Binding { path, ino, target, number, place } = binding;
            let Some(a) = self.bindings.index.attributes(ino) else { continue };
            match place {
                Place::None | Place::Stripped => continue,
                Place::Refused(refusal) => {
                    self.report.problem(path.as_bytes(), format!("without its first components, {refusal}"));
                    continue;
                }
                Place::Same if target.is_some() || path.is_root() => continue,
                _ => {}
            }
            let new = a.kind == Kind::Directory || self.selection.is_new(a.mtime);
            if !new || self.latest.as_ref().is_some_and(|latest| latest.supersedes(&path, number)) {
                continue;
            }
            let action = match target {
                Some(target) => self.link(&path, target, ino),
                None => self.action(&path, &item.entry),
            };
            let action = action.map_err(|cause| Error::Entry { path: escape(path.as_bytes()), cause })?;
            (self.tell)(&path, action);
        }
        Ok(())
    }

    /// What would be done with another name.
    fn link(&mut self, path: &EntryPath, target: EntryPath, ino: Ino) -> Result<Action, Failure> {
        let first = match self.firsts.get(&ino) {
            Some(first) => first.clone(),
            None if self.selection.wants(&target) => target,
            None => path.clone(),
        };
        self.firsts.insert(ino, first.clone());
        let Some(Item { entry, .. }) = self.bindings.copy_of(ino, path) else { return Ok(Action::Leave) };
        if first == *path {
            return self.action(path, &entry);
        }
        let stat = |path: &EntryPath| {
            let (dir, name) = self.place(path).ok()??;
            statat(dir?, &*name, AtFlags::SYMLINK_NOFOLLOW).ok()
        };
        let (there, first) = (stat(path), stat(&first));
        Ok(match (there, first) {
            (None, _) => Action::Make,
            (Some(there), Some(first)) if (there.st_dev, there.st_ino) == (first.st_dev, first.st_ino) => Action::Leave,
            (Some(there), _) if self.look.keeps(entry.metadata.mtime, &there) => Action::Keep,
            _ => Action::Replace,
        })
    }

    fn action(&self, path: &EntryPath, entry: &Entry) -> Result<Action, Failure> {
        let Some((dir, name)) = self.place(path)? else { return Ok(Action::Leave) };
        self.look.would(dir.as_ref().map(AsFd::as_fd), &name, entry)
    }

    /// The directory that a path is in, where that is there, and its name there.
    fn place(&self, path: &EntryPath) -> Result<Option<(Option<OwnedFd>, CString)>, Failure> {
        let components: Vec<&[u8]> = path.components().skip(self.strip).collect();
        let Some((name, parents)) = components.split_last() else { return Ok(None) };
        let mut parent = self.target.to_owned();
        parent.extend(parents.iter().map(|name| OsStr::from_bytes(name)));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open(&parent, flags, Mode::empty()).ok();
        let name = CString::new(*name).map_err(std::io::Error::from)?;
        Ok(Some((dir, name)))
    }
}
