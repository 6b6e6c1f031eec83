//! What would be done, for each entry, without doing it.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, open};

use super::create::Creator;
use super::latest::Latest;
use super::replay::Item;
use super::{Action, Error, Options};
use crate::entry::{Entry, EntryPath, escape};
use crate::index::{Index, Ino, Inserted};

/// Looks at the target as it is now.
pub(super) struct DryRun<'a> {
    pub(super) options: &'a Options,
    pub(super) creator: &'a Creator,
    pub(super) index: Index,
    pub(super) latest: Option<Latest>,
    pub(super) tell: fn(&EntryPath, Action),
}

impl DryRun<'_> {
    /// Tells of an entry, and of the links that have waited for it.
    pub(super) fn take(&mut self, item: &Item) -> Result<(), Error> {
        let entry = &*item.entry;
        let mut bound: Vec<(EntryPath, Ino)> = Vec::new();
        let inserted = self.index.insert(entry, &mut |late| {
            bound.extend(late.bound.ok().map(|ino| (late.link.clone(), ino)));
        });
        if let Ok(Inserted::Bound(ino)) = inserted {
            bound.insert(0, (entry.path.clone(), ino));
        }
        for (path, ino) in bound {
            let Some(a) = self.index.attributes(ino) else { continue };
            let stripped = path.components().count() <= self.options.strip;
            let new = a.kind == crate::index::Kind::Directory || self.options.selection.is_new(a.mtime);
            let key = (self.options.strip > 0).then(|| self.creator.key(&path)).flatten();
            let superseded = self.latest.as_ref().is_some_and(|latest| latest.supersedes(&path, key, ino));
            if stripped || !new || superseded || !self.options.selection.wants(&path) {
                continue;
            }
            let action = self.action(&path, entry);
            let action = action.map_err(|cause| Error::Entry { path: escape(path.as_bytes()), cause })?;
            (self.tell)(&path, action);
        }
        Ok(())
    }

    fn action(&self, path: &EntryPath, entry: &Entry) -> io::Result<Action> {
        let components: Vec<&[u8]> = path.components().skip(self.options.strip).collect();
        let Some((name, parents)) = components.split_last() else { return Ok(Action::Leave) };
        let mut parent = self.options.target.clone();
        parent.extend(parents.iter().map(|name| OsStr::from_bytes(name)));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open(&parent, flags, Mode::empty()).ok();
        let name = CString::new(*name).map_err(io::Error::from)?;
        self.creator.would(dir.as_ref().map(AsFd::as_fd), &name, entry)
    }
}
