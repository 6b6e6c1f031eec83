//! What would be done, for each entry, without doing it.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, open, statat};

use super::bindings::{Binding, Bindings, Place};
use super::create::Creator;
use super::latest::Latest;
use super::report::Report;
use super::{Action, Error, Options};
use crate::entry::{Entry, EntryPath, escape};
use crate::index::{Ino, Kind};
use crate::replay::Item;

/// Looks at the target as it is now.
pub(super) struct DryRun<'a> {
    pub(super) options: &'a Options,
    pub(super) creator: &'a Creator,
    pub(super) report: &'a Report,
    pub(super) bindings: Bindings<'a>,
    pub(super) latest: Option<Latest>,
    pub(super) tell: fn(&EntryPath, Action),
    /// By which name the contents come of what has several.
    pub(super) firsts: HashMap<Ino, EntryPath>,
}

impl DryRun<'_> {
    /// Tells of an entry, and of the links that have waited for it.
    pub(super) fn take(&mut self, item: &Item) -> Result<(), Error> {
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
            let new = a.kind == Kind::Directory || self.options.selection.is_new(a.mtime);
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
    fn link(&mut self, path: &EntryPath, target: EntryPath, ino: Ino) -> io::Result<Action> {
        let first = match self.firsts.get(&ino) {
            Some(first) => first.clone(),
            None if self.options.selection.wants(&target) => target,
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
            (Some(there), _) if self.creator.keeps(entry.metadata.mtime, &there) => Action::Keep,
            _ => Action::Replace,
        })
    }

    fn action(&self, path: &EntryPath, entry: &Entry) -> io::Result<Action> {
        let Some((dir, name)) = self.place(path)? else { return Ok(Action::Leave) };
        self.creator.would(dir.as_ref().map(AsFd::as_fd), &name, entry)
    }

    /// The directory that a path is in, where that is there, and its name there.
    fn place(&self, path: &EntryPath) -> io::Result<Option<(Option<OwnedFd>, CString)>> {
        let components: Vec<&[u8]> = path.components().skip(self.options.strip).collect();
        let Some((name, parents)) = components.split_last() else { return Ok(None) };
        let mut parent = self.options.target.clone();
        parent.extend(parents.iter().map(|name| OsStr::from_bytes(name)));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open(&parent, flags, Mode::empty()).ok();
        let name = CString::new(*name).map_err(io::Error::from)?;
        Ok(Some((dir, name)))
    }
}
