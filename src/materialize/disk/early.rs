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
use rustix::fs::{AtFlags, CWD, fstat, linkat, unlinkat};
use rustix::io::Errno;

use super::copy;
use super::creator::Creator;
use super::metadata::{apply, disinherit};
use crate::entry::Entry;
use crate::index::Place;
use crate::materialize::error::Failure;
use crate::materialize::report::Report;
use crate::proof::{Sums, Unproved};
use crate::replay::Item;

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
    /// Begins with what arrives in a blob; without a file, it is not to be copied before it is whole.
    pub(super) fn new(blob: u64, file: Option<File>) -> Self {
        let device = file.as_ref().and_then(|file| fstat(file).ok()).map_or(0, |stat| stat.st_dev);
        Early { blob, file, device, copied: AtomicU64::new(0), sums: Mutex::default() }
    }

    /// Whether what arrives in a blob is this.
    pub(super) fn is_in(&self, blob: u64) -> bool {
        self.blob == blob
    }

    /// Whether it is of what is stored there.
    pub(super) fn is_of(&self, place: &Place) -> bool {
        self.file.is_some() && matches!(place, Place::Blob(number) if *number == self.blob)
    }

    /// Makes what is whole by now, under a name that is free. False: it cannot have one in this directory.
    pub(super) fn make(
        &self,
        creator: &Creator,
        dir: BorrowedFd<'_>,
        name: &CStr,
        item: &Item,
    ) -> Result<bool, Failure> {
        let Some(file) = &self.file else { return Ok(false) };
        if fstat(dir)?.st_dev != self.device {
            return Ok(false);
        }
        let Entry { path, metadata, kind } = &*item.entry;
        self.fill_up(creator, kind.stored_len())?;
        if !creator.contents.proves(self.blob, &self.sums.lock()) {
            return Err(io::Error::from(Unproved::Differs { at: 0, len: kind.stored_len() }).into());
        }
        match linkat(CWD, format!("/proc/self/fd/{}", file.as_raw_fd()), dir, name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => {}
            // Among others where the directory is of the same file system, but not of the same mount.
            Err(Errno::XDEV | Errno::NOENT | Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => return Ok(false),
            Err(e) => return Err(e.into()),
        }
        // It has been made in another directory, which may have given it something.
        let applied = disinherit(file.as_fd(), creator.owners.group())
            .map_err(Failure::from)
            .and_then(|()| apply(file.as_fd(), metadata, &creator.owners, false, path.as_bytes(), &creator.report));
        if applied.is_err() {
            let _ = unlinkat(dir, name, AtFlags::empty());
        }
        applied.map(|()| true)
    }

    /// Copies what has arrived of `stored` bytes.
    pub(super) fn copy(&mut self, creator: &Creator, stored: u64) {
        if self.file.is_none() {
            return;
        }
        let length = creator.contents.blob_length(self.blob).map_err(Failure::from);
        if length.and_then(|length| self.fill_up(creator, length.min(stored))).is_err() {
            // A full disk, above all. It is told when the file is made.
            self.give_up(&creator.report);
        }
    }

    /// Copies what is there up to `end`, and has not been copied.
    fn fill_up(&self, creator: &Creator, end: u64) -> Result<(), Failure> {
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
