//! A large file while it is arriving: what is there of it is copied into a file of the target that has no name. It gets
//! one when it is whole; until then nothing is to be seen of it, and whatever ends us, nothing stays of it.
//!
//! Only an aid: where it cannot be done, the file is copied when it is there.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, fstat, ioctl_ficlone, linkat, openat, openat2, unlinkat,
};
use rustix::io::Errno;

use super::Overwrite;
use super::copy;
use super::create::Creator;
use super::metadata::{apply, disinherit};
use super::report::Report;
use super::restore::Restore;
use crate::entry::{Entry, EntryKind};
use crate::index::Place;
use crate::proof::{Sums, Unproved};
use crate::replay::Item;

/// It is looked for more when so much has come.
pub(super) const STEP: u64 = 4 << 20;

/// A file without a name, and what is in it.
pub(super) struct Early {
    blob: u64,
    /// None: it is not to be copied before it is whole.
    file: Option<File>,
    device: u64,
    copied: AtomicU64,
    /// The checksums of what was copied.
    sums: Mutex<Sums>,
}

impl Early {
    /// Whether it is of what is stored there.
    pub(super) fn is_of(&self, place: &Place) -> bool {
        self.file.is_some() && matches!(place, Place::Blob(number) if *number == self.blob)
    }

    /// Makes what is whole by now, under a name that is free. False: it cannot have one in this directory.
    pub(super) fn make(&self, creator: &Creator, dir: BorrowedFd<'_>, name: &CStr, item: &Item) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        if fstat(dir)?.st_dev != self.device {
            return Ok(false);
        }
        let Entry { path, metadata, kind } = &*item.entry;
        self.fill_up(creator, kind.stored_len())?;
        if !creator.contents.proves(self.blob, &self.sums.lock()) {
            return Err(Unproved::Differs { at: 0, len: kind.stored_len() }.into());
        }
        match linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), dir, name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => {}
            // Among others where the directory is of the same file system, but not of the same mount.
            Err(Errno::XDEV | Errno::NOENT | Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        // It has been made in another directory, which may have given it something.
        let applied = disinherit(file.as_fd(), creator.owners.group())
            .and_then(|()| apply(file.as_fd(), metadata, &creator.owners, false, path.as_bytes(), &creator.report));
        if applied.is_err() {
            let _ = unlinkat(dir, name, AtFlags::empty());
        }
        applied.map(|()| true)
    }

    /// Copies what is there up to `end`, and has not been copied.
    fn fill_up(&self, creator: &Creator, end: u64) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let from = self.copied.load(Ordering::Relaxed);
        let wrote = |n| {
            self.copied.fetch_add(n, Ordering::Relaxed);
            creator.report.wrote(n);
        };
        copy::copy_early(&creator.contents, self.blob, from..end, file, &mut self.sums.lock(), &wrote)
    }

    /// What was copied is of no use.
    pub(super) fn give_up(&mut self, report: &Report) {
        if self.file.take().is_some() {
            report.unwrote(self.copied.load(Ordering::Relaxed));
        }
    }
}

impl Restore<'_> {
    /// Copies what has arrived of a file.
    pub(super) fn copy_early(&mut self, entry: &Entry, blob: u64) {
        if self.early.as_ref().is_none_or(|early| early.blob != blob) {
            self.early = Some(self.begin_early(entry, blob));
        }
        let Some(early) = &mut self.early else { return };
        if early.file.is_none() {
            return;
        }
        let copied = self
            .creator
            .contents
            .blob_length(blob)
            .map_err(io::Error::from)
            .and_then(|length| early.fill_up(self.creator, length.min(entry.kind.stored_len())));
        if copied.is_err() {
            // A full disk, above all. It is told when the file is made.
            early.give_up(self.report);
        }
    }

    fn begin_early(&mut self, entry: &Entry, blob: u64) -> Early {
        let file = if self.is_worth_it(entry) { self.nameless(entry, blob) } else { None };
        let device = file.as_ref().and_then(|file| fstat(file).ok()).map_or(0, |stat| stat.st_dev);
        Early { blob, file, device, copied: AtomicU64::new(0), sums: Mutex::default() }
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
