//! Whether a file that is arriving is worth copying before it is whole, and where to.

use std::fs::File;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, ioctl_ficlone, openat, openat2};
use rustix::io::Errno;

use super::early::Early;
use super::restore::Restore;
use crate::entry::{Entry, EntryKind};
use crate::materialize::options::Overwrite;

impl Restore<'_> {
    /// Copies what has arrived of a file.
    pub(in crate::materialize) fn copy_early(&mut self, entry: &Entry, blob: u64) {
        if self.early.as_ref().is_none_or(|early| !early.is_in(blob)) {
            let file = if self.is_worth_it(entry) { self.nameless(entry, blob) } else { None };
            self.early = Some(Early::new(blob, file));
        }
        if let Some(early) = &mut self.early {
            early.copy(self.creator, entry.kind.stored_len());
        }
    }

    /// Whether a file will be made, as far as can be told now.
    fn is_worth_it(&self, entry: &Entry) -> bool {
        let EntryKind::File { size, sparse: None } = &entry.kind else { return false };
        let selection = &self.options.selection;
        let components: Vec<&[u8]> = entry.path.components().skip(self.options.strip).collect();
        if components.is_empty() || !selection.wants(&entry.path) || !selection.is_new(entry.metadata.mtime) {
            return false;
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat2(&*self.target.root(), &*components.join(&b'/'), flags, Mode::empty(), resolve) {
            // What is there may be right already.
            Ok(there) => {
                let changes = matches!(self.creator.overwrite, Overwrite::IfChanged | Overwrite::Always);
                fstat(&there).is_ok_and(|there| {
                    changes
                        && FileType::from_raw_mode(there.st_mode) == FileType::RegularFile
                        && u64::try_from(there.st_size) != Ok(*size)
                })
            }
            Err(e) => e == Errno::NOENT,
        }
    }

    /// A file without a name. None where the target has none, or where the whole will take no time.
    fn nameless(&mut self, entry: &Entry, blob: u64) -> Option<File> {
        // Group and label come from the directory that it is made in.
        let parent = entry.path.split().and_then(|(parent, _)| self.bindings.index.resolve(parent));
        let dir = match parent.filter(|parent| self.target.has(*parent)) {
            Some(parent) => self.target.get(parent).ok()?,
            None => self.target.root(),
        };
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = File::from(openat(&dir, c".", flags, Mode::RUSR | Mode::WUSR).ok()?);
        let blob = self.creator.contents.blob(blob).ok()?;
        ioctl_ficlone(&file, blob).is_err().then_some(file)
    }
}
