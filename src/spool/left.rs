//! A spool whose daemon is gone, opened again: to be mounted as it is, or to be filled further.

use std::fs::{DirEntry, File, read_dir};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, openat, renameat, statat, unlinkat};
use rustix::path::Arg;

use super::about::{About, MAX_LENGTH, Unusable};
use super::form::PAGE;
use super::{Blob, Config, Parts, Spool, create_file, lock, open_directory, open_file};
use crate::entry::escape_path;
use crate::monitor::Monitor;
use crate::proof::Sums;
use crate::record::{self, Record};

/// Where a new `spool.json` is written before it takes the place of the old one.
const NEW_ABOUT: &str = "spool.json.new";

/// Why a spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A part of it cannot be opened.
    #[error("cannot open the spool '{path}'", path = escape_path(.path))]
    Open {
        /// Which part.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It is none, or none that can be read.
    #[error("'{path}' is no spool that can be mounted", path = escape_path(.path))]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        cause: Unusable,
    },
    /// Whoever owns it could have put anything into it.
    #[error(
        "the spool '{path}' belongs to another user (uid {owner}): mount it as that user",
        path = escape_path(.path)
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// A daemon serves it.
    #[error(
        "the spool '{path}' is in use by PID {pid} ('restorefs status' lists the mounts)",
        path = escape_path(.path)
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who has its lock open; where that cannot be seen, who fills it by its own account.
        pid: u32,
    },
}

/// Whether a path looks like a spool: a directory with a `spool.json`.
pub fn is_spool(path: &Path) -> bool {
    std::fs::symlink_metadata(path.join("spool.json")).is_ok_and(|found| found.is_file())
}

/// A spool without a daemon; it is locked, so no other can take it.
#[derive(Debug)]
pub struct Left {
    path: PathBuf,
    directory: OwnedFd,
    blobs_directory: OwnedFd,
    journal: File,
    length: u64,
    about_file: File,
    about: About,
    lock: File,
    go_on: bool,
}

impl Left {
    /// Opens it, to be filled further if `go_on`, else to be read only.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, go_on: bool) -> Result<Left, OpenError> {
        let failed = |name: &str, cause: io::Error| {
            let path = if name.is_empty() { path.into() } else { path.join(name) };
            OpenError::Open { path, cause }
        };
        let unusable = |cause| OpenError::Unusable { path: path.into(), cause };
        // The directory may be named through a link; what is in it may not be one.
        let path = &path.canonicalize().map_err(|e| failed("", e))?;
        let directory = open_directory(CWD, path).map_err(|e| failed("", e))?;
        let metadata = rustix::fs::fstat(&directory).map_err(|e| failed("", e.into()))?;
        let about_file = open_file(&directory, "spool.json").map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => unusable(Unusable::Missing),
            _ => failed("spool.json", e),
        })?;
        let mut text = Vec::new();
        (&about_file).take(MAX_LENGTH).read_to_end(&mut text).map_err(|e| unusable(Unusable::Read(e)))?;
        let about = About::decode(&text).map_err(unusable)?;
        if metadata.st_uid != rustix::process::geteuid().as_raw() {
            return Err(OpenError::Owner { path: path.clone(), owner: metadata.st_uid });
        }
        let lock = open_file(&directory, "lock").map_err(|e| failed("lock", e))?;
        if !lock::take(&lock).map_err(|e| failed("lock", e))? {
            return Err(OpenError::InUse { path: path.clone(), pid: holder(&lock).unwrap_or(about.pid) });
        }
        let journal = if go_on { open_to_write(&directory, "journal") } else { open_file(&directory, "journal") };
        let journal = journal.map_err(|e| failed("journal", e))?;
        let length = journal.metadata().map_err(|e| failed("journal", e))?.len();
        let blobs_directory = open_directory(&directory, "blobs").map_err(|e| failed("blobs", e))?;
        Ok(Left { path: path.clone(), directory, blobs_directory, journal, length, about_file, about, lock, go_on })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of itself.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The length of its journal.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// A spool again. It stays when its mount ends, until it has been filled to the end.
    pub fn into_spool(self, limit: Option<u64>, keep: bool, monitor: Arc<Monitor>) -> io::Result<Spool> {
        let parts = Parts {
            path: self.path,
            directory: self.directory,
            blobs_directory: self.blobs_directory,
            journal: self.journal,
            about: self.about_file,
            lock: self.lock,
            left: Some(self.length),
            read_only: !self.go_on,
        };
        let config = Config { limit, keep, ..Config::default() };
        Spool::of(parts, &config, monitor)
    }
}

impl Spool {
    /// The length of the journal that an earlier daemon has left. Nothing of it counts before it has been looked at.
    pub fn left_length(&self) -> u64 {
        self.left_length
    }

    /// Its journal counts up to here.
    pub fn found_until(&self, offset: u64) {
        self.written.store(offset, Ordering::Release);
        self.report();
    }

    /// Counts a blob that the journal tells of. False where there is none.
    pub fn found_blob(&self, number: u64) -> bool {
        self.slot(number);
        match statat(&self.blobs_directory, number.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if rustix::fs::FileType::from_raw_mode(found.st_mode).is_file() => {
                self.blob_bytes.fetch_add(found.st_blocks as u64 * 512, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }

    /// Says what the checksums of a blob are.
    pub fn set_sums(&self, number: u64, sums: Sums) {
        *self.slot(number).lock() = sums;
    }

    /// The checksums of a blob that may not be known yet. Numbers are not given a second time.
    pub(super) fn slot(&self, number: u64) -> Arc<Mutex<Sums>> {
        let mut blobs = self.blobs.write();
        self.next_blob.fetch_max(number.saturating_add(1), Ordering::Relaxed);
        blobs.entry(number).or_default().clone()
    }

    /// Makes it this process's own, to be filled further: `frames` follow what counts of the journal, with a durable point;
    /// blobs that it does not tell of are removed.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn take_over(
        &self,
        about: About,
        mountpoint: &Path,
        frames: &[u8],
        is_known: impl Fn(u64) -> bool,
    ) -> io::Result<()> {
        rustix::fs::syncfs(&self.journal)?;
        // The last durable point may be behind what counts. Until there is another, all of it would be lost with the power.
        let upto = self.position() + frames.len() as u64;
        let mut frames = frames.to_vec();
        record::encode(&Record::Durable { upto }, &[], &mut frames);
        self.append_now(&frames)?;
        self.journal.set_len(self.position())?;
        self.journal.sync_data()?;
        let mut buf = Vec::with_capacity(64 << 10);
        let mut unknown = Vec::new();
        let listing = open_directory(&self.blobs_directory, ".")?;
        let mut names = RawDir::new(&listing, buf.spare_capacity_mut());
        while let Some(name) = names.next() {
            let name = name?;
            let number = name.file_name().to_str().ok().and_then(|name| name.parse().ok());
            if number.is_some_and(|number| !is_known(number)) {
                unknown.push(name.file_name().to_owned());
            }
        }
        for name in unknown {
            unlinkat(&self.blobs_directory, name, AtFlags::empty())?;
        }
        match unlinkat(&self.directory, NEW_ABOUT, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        let new = create_file(&self.directory, NEW_ABOUT)?;
        new.write_all_at(&about.taken_over(mountpoint.into()).encode(), 0)?;
        new.sync_all()?;
        renameat(&self.directory, NEW_ABOUT, &self.directory, "spool.json")?;
        Ok(rustix::fs::fsync(&self.directory)?)
    }

    /// Goes on with a blob of which `sums` is known; what is behind that is dropped. One that is `spread` has holes
    /// and keeps its length.
    ///
    /// # Errors
    /// It cannot be opened or cut.
    pub fn reopen_blob(&self, number: u64, sums: Sums, spread: bool) -> io::Result<Blob> {
        let file = open_to_write(&self.blobs_directory, number.to_string())?;
        let length = sums.covered();
        if !spread {
            file.set_len(length)?;
        }
        let file = Arc::new(file);
        self.unsynced.lock().add(file.clone(), self.most_few);
        let recorded = sums.whole();
        let slot = self.slot(number);
        *slot.lock() = sums;
        let counted = if spread { file.metadata()?.size().min(length) } else { length };
        Ok(Blob { number, file, counted: counted.next_multiple_of(PAGE), sums: slot, recorded })
    }
}

/// Another process that has the lock open. Who mounts a spool as it is does not write its PID into it.
fn holder(lock: &File) -> Option<u32> {
    let own = lock.metadata().ok()?;
    let is_lock = |fd: io::Result<DirEntry>| {
        fd.and_then(|fd| fd.path().metadata()).is_ok_and(|fd| (fd.dev(), fd.ino()) == (own.dev(), own.ino()))
    };
    let pids = read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut others = pids.filter(|pid| *pid != std::process::id());
    others.find(|pid| read_dir(format!("/proc/{pid}/fd")).is_ok_and(|mut fds| fds.any(is_lock)))
}

fn open_to_write(directory: &OwnedFd, name: impl Arg) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?.into())
}
