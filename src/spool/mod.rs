//! Contents on disk: a journal of every entry with the contents of small files, and one blob for each large one.
//!
//! ```text
//! restorefs-PID-X/    0700, X is random
//!   spool.json        format version, source, threshold
//!   lock              held by the daemon while it lives
//!   journal           records, in order of arrival
//!   blobs/N           contents of one file each, at their offsets in it or, where its holes are many, packed
//! ```
//!
//! The page cache outlives the daemon, but not the machine: [`Spool::make_durable`], called every few seconds, says in
//! the journal up to where everything is on the disk. [`Spool::sync`] brings all of it there at the end, and says whether
//! the disk took it. What is left of a spool whose daemon is gone is opened by [`Left`](left::Left). Blobs have checksums
//! (see [`crate::proof`]), which are in the journal too; the journal's records have their own. A full disk is not an error:
//! writing waits for room, and the monitor says so.

mod about;
mod config;
mod discard;
mod durable;
mod form;
mod found;
pub mod left;
mod lock;
mod registry;
mod unsynced;

use std::collections::HashMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::path::Arg;
use rustix::process::{Resource, getrlimit};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::monitor::{Monitor, SpoolUse};
use crate::proof::Sums;
use crate::record;
pub use about::{About, Unusable};
pub use config::Config;
pub use discard::{Error as DiscardError, discard};
use form::PAGE;
pub use form::{BLOB_THRESHOLD, Form};
pub use found::{DIRECTORY, Ended, LeftOver, left_over};
use unsynced::Unsynced;

/// So often a full disk is asked again.
const RETRY: Duration = Duration::from_millis(250);

/// Checksums of a blob are recorded while it arrives, whenever there are this many new ones (1 MiB of contents): what is
/// behind the last of them is not recovered after a crash.
const SUMS_STEP: u64 = 16;

/// So many blobs are synced one by one. More take less time together.
const FEW: usize = 32;

/// Magic numbers of filesystems that live in memory, from statfs(2).
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;

/// A write that takes longer than this is reported: the disk hangs, or is frozen.
const STALLED: Duration = Duration::from_secs(10);

/// A spool that is being written and read.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    directory: OwnedFd,
    blobs_directory: OwnedFd,
    journal: File,
    /// Held by whoever appends to the journal.
    appending: Mutex<()>,
    written: AtomicU64,
    blob_bytes: AtomicU64,
    /// The checksums of each blob, by its number.
    blobs: RwLock<HashMap<u64, Arc<Mutex<Sums>>>>,
    /// The number of the next one.
    next_blob: AtomicU64,
    unsynced: Mutex<Unsynced>,
    /// Held by whoever syncs: what another one is about to sync is not on the disk yet.
    syncing: Mutex<()>,
    most_few: usize,
    /// Since when each thread has been waiting for its disk.
    busy: Mutex<HashMap<ThreadId, Instant>>,
    in_memory: bool,
    limit: Option<u64>,
    keep: bool,
    /// It stays when the mount ends, for a reason that came up later.
    retired: AtomicBool,
    /// It was left by an earlier daemon, and not all has come since: then it stays too.
    unfinished: AtomicBool,
    removed: AtomicBool,
    monitor: Arc<Monitor>,
    about: File,
    /// The length of the journal when it was opened again.
    left_length: u64,
    /// It was opened again to be read only.
    read_only: bool,
    _lock: File,
}

/// Its files, opened.
struct Parts {
    path: PathBuf,
    directory: OwnedFd,
    blobs_directory: OwnedFd,
    journal: File,
    about: File,
    lock: File,
    /// The length of a journal that an earlier daemon has left.
    left: Option<u64>,
    read_only: bool,
}

/// The contents of one file, being written from its beginning to its end.
#[derive(Debug)]
pub struct Blob {
    number: u64,
    file: Arc<File>,
    /// Where the pages end that are counted already.
    counted: u64,
    sums: Arc<Mutex<Sums>>,
    /// Extents whose checksums the journal has.
    recorded: u64,
}

impl Blob {
    /// Its number, by which [`Spool::open_blob`] finds it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Checksums that the journal does not have, encoded, and the extent that they begin with: when there are enough of
    /// them to be worth a record or, where nothing more comes, `all` of them.
    pub fn unrecorded_sums(&mut self, all: bool) -> Option<(u64, Vec<u8>)> {
        let sums = self.sums.lock();
        let (first, whole) = (self.recorded, sums.whole());
        if !all && whole < first + SUMS_STEP {
            return None;
        }
        self.recorded = whole;
        let encoded = sums.encode(first, all);
        (!encoded.is_empty()).then_some((first, encoded))
    }
}

/// Receiving was stopped while it waited for room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody said stop while there was no room.
    #[error("stopped while waiting for room in the spool")]
    Stopped,
    /// The disk failed.
    #[error("cannot write the spool '{path}'")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

impl Error {
    /// Whether the file is larger than its filesystem, or the limit of the process (RLIMIT_FSIZE), lets it be.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Error::Write { cause, .. } if cause.kind() == io::ErrorKind::FileTooLarge)
    }
}

impl Spool {
    /// Makes the directory and everything in it.
    pub fn create(config: &Config, monitor: Arc<Monitor>) -> io::Result<Spool> {
        let path = make_private(&config.directory)?;
        let directory = open_directory(CWD, &path)?;
        let lock = create_file(&directory, "lock")?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        let about = create_file(&directory, "spool.json")?;
        about.write_all_at(&About::new(config).encode(), 0)?;
        let journal = create_file(&directory, "journal")?;
        mkdirat(&directory, "blobs", Mode::RWXU)?;
        let blobs_directory = open_directory(&directory, "blobs")?;
        Spool::of(
            Parts { path, directory, blobs_directory, journal, about, lock, left: None, read_only: false },
            config,
            monitor,
        )
    }

    fn of(parts: Parts, config: &Config, monitor: Arc<Monitor>) -> io::Result<Spool> {
        let Parts { path, directory, blobs_directory, journal, about, lock, left, read_only } = parts;
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let in_memory = matches!(rustix::fs::fstatfs(&journal)?.f_type as i64, TMPFS | RAMFS);
        let spool = Spool {
            path,
            directory,
            blobs_directory,
            journal,
            appending: Mutex::default(),
            written: AtomicU64::new(0),
            blob_bytes: AtomicU64::new(0),
            blobs: RwLock::default(),
            next_blob: AtomicU64::new(0),
            unsynced: Mutex::default(),
            syncing: Mutex::default(),
            most_few: usize::try_from(descriptors / 16).unwrap_or(FEW).min(FEW),
            busy: Mutex::default(),
            in_memory,
            limit: config.limit,
            keep: config.keep,
            retired: AtomicBool::new(false),
            unfinished: AtomicBool::new(left.is_some()),
            removed: AtomicBool::new(false),
            monitor,
            about,
            left_length: left.unwrap_or(0),
            read_only,
            _lock: lock,
        };
        spool.report();
        registry::add(&spool.path);
        Ok(spool)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in it.
    pub fn bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed) + self.blob_bytes.load(Ordering::Relaxed)
    }

    /// The length of the journal: where the next frame goes.
    pub fn position(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Appends whole frames to the journal, waiting for room while `stopped` does not say otherwise. Returns the offset at
    /// which they begin. Several threads may append: the frames of one call stay together.
    pub fn append(&self, frames: &[u8], stopped: &dyn Fn() -> bool) -> Result<u64, Error> {
        let at = self.when_there_is_room(&self.path.join("journal"), stopped, || {
            let over = self.limit.is_some_and(|limit| self.bytes().saturating_add(frames.len() as u64) > limit);
            // While one waits, another may append what needs no room to speak of.
            if over { Ok(None) } else { self.append_now(frames).map(Some) }
        })?;
        self.report();
        Ok(at)
    }

    /// Appends whole frames, or fails where there is no room; the limit does not count.
    fn append_now(&self, frames: &[u8]) -> io::Result<u64> {
        let _appending = self.appending.lock();
        let at = self.position();
        self.journal.write_all_at(frames, at)?;
        self.written.store(at + frames.len() as u64, Ordering::Release);
        Ok(at)
    }

    /// Begins a blob, waiting for room. A file with holes gets its `size` now, since holes are never written; any
    /// other grows, since a size that is only claimed may be more than the disk takes.
    pub fn create_blob(&self, size: Option<u64>, stopped: &dyn Fn() -> bool) -> Result<Blob, Error> {
        let sums = Arc::new(Mutex::new(Sums::default()));
        let number = self.next_blob.fetch_add(1, Ordering::Relaxed);
        self.blobs.write().insert(number, sums.clone());
        let path = self.blob_path(number);
        let file = self.when_there_is_room(&path, stopped, || {
            let file = create_file(&self.blobs_directory, number.to_string())?;
            if let Some(Err(e)) = size.map(|size| file.set_len(size)) {
                unlinkat(&self.blobs_directory, number.to_string(), AtFlags::empty())?;
                return Err(e);
            }
            Ok(Some(file))
        })?;
        let file = Arc::new(file);
        self.unsynced.lock().add(file.clone(), self.most_few);
        Ok(Blob { number, file, counted: 0, sums, recorded: 0 })
    }

    /// Removes a blob that nobody needs any more.
    ///
    /// # Errors
    /// It stays then.
    pub fn remove_blob(&self, number: u64) -> io::Result<()> {
        let name = number.to_string();
        let found = rustix::fs::statat(&self.blobs_directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        unlinkat(&self.blobs_directory, &name, AtFlags::empty())?;
        let bytes = found.st_blocks as u64 * 512;
        let less = |all: u64| Some(all.saturating_sub(bytes));
        let _ = self.blob_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        *self.slot(number).lock() = Sums::default();
        self.report();
        Ok(())
    }

    /// Writes the stored bytes of a blob that follow those written so far, to `at`, waiting for room.
    pub fn write_blob(&self, blob: &mut Blob, bytes: &[u8], at: u64, stopped: &dyn Fn() -> bool) -> Result<(), Error> {
        let end = (at + bytes.len() as u64).next_multiple_of(PAGE);
        let need = end.saturating_sub(blob.counted.max(at / PAGE * PAGE));
        self.write(&blob.file, &self.blob_path(blob.number), bytes, at, need, stopped)?;
        blob.sums.lock().update(bytes);
        blob.counted = end;
        self.blob_bytes.fetch_add(need, Ordering::Relaxed);
        self.report();
        Ok(())
    }

    /// Whether it lies in memory: then nothing that was written can be lost on the way to a disk.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// For how long its disk has not come back from a write, if that is unusual.
    pub fn stalled(&self) -> Option<Duration> {
        self.busy.lock().values().map(Instant::elapsed).max().filter(|busy| *busy >= STALLED)
    }

    /// The checksums of a blob.
    pub fn sums(&self, number: u64) -> Option<Arc<Mutex<Sums>>> {
        self.blobs.read().get(&number).cloned()
    }

    /// Has what is read of it from now on come from the disk, not from memory.
    pub fn forget_cached(&self, file: &File) {
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    }

    /// Whether the journal is still there, by name and length: whoever cleans up a directory, or cuts a file, does not ask
    /// who has it open.
    ///
    /// # Errors
    /// It is gone, or shorter than what was written.
    pub fn check(&self) -> io::Result<()> {
        let path = self.path.join("journal");
        let cause = match std::fs::symlink_metadata(&path) {
            Ok(found) if found.len() >= self.position() => return Ok(()),
            Ok(found) => io::Error::other(format!("only {} of {} bytes are left of it", found.len(), self.position())),
            Err(e) => e,
        };
        let what = format!("'{}' was removed or cut by something else: {cause}", path.display());
        Err(io::Error::new(cause.kind(), what))
    }

    /// Compares every record of the journal with its checksum.
    ///
    /// # Errors
    /// As [`record::check`].
    pub fn check_journal(&self) -> io::Result<()> {
        record::check(&self.journal, self.position())
    }

    /// Whether a blob is there, by name, with this length at least.
    pub fn has_blob(&self, number: u64, least: u64) -> bool {
        std::fs::symlink_metadata(self.blob_path(number)).is_ok_and(|found| found.is_file() && found.len() >= least)
    }

    /// The journal, to be read only, and the directory of the blobs.
    pub fn reopen(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((open_file(&self.directory, "journal")?.into(), open_directory(&self.directory, "blobs")?))
    }

    /// Whether any blob was begun.
    pub fn has_blobs(&self) -> bool {
        !self.blobs.read().is_empty()
    }

    /// A blob, for reading.
    pub fn open_blob(&self, number: u64) -> io::Result<File> {
        open_file(&self.blobs_directory, number.to_string())
    }

    /// The contents of a small file of `stored` bytes, or what arrived of them, from the record at `at` of the journal.
    ///
    /// # Errors
    /// As [`record::read_data`].
    pub fn read_data(&self, at: u64, stored: u64) -> io::Result<Vec<u8>> {
        record::read_data(&self.journal, at, stored)
    }

    /// The journal.
    pub fn journal(&self) -> &File {
        &self.journal
    }

    fn blob_path(&self, number: u64) -> PathBuf {
        self.path.join("blobs").join(number.to_string())
    }

    /// Writes what takes `need` bytes of the limit.
    fn write(
        &self,
        file: &File,
        path: &Path,
        mut bytes: &[u8],
        mut at: u64,
        need: u64,
        stopped: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        while !bytes.is_empty() {
            let n = self.when_there_is_room(path, stopped, || {
                let over = self.limit.is_some_and(|limit| self.bytes().saturating_add(need) > limit);
                if over { Ok(None) } else { file.write_at(bytes, at).map(Some) }
            })?;
            bytes = &bytes[n..];
            at += n as u64;
        }
        Ok(())
    }

    /// Tries again and again while the disk is full, or the limit is reached: then `attempt` gives `None`.
    fn when_there_is_room<T>(
        &self,
        path: &Path,
        stopped: &dyn Fn() -> bool,
        mut attempt: impl FnMut() -> io::Result<Option<T>>,
    ) -> Result<T, Error> {
        let mut waiting = false;
        loop {
            let thread = std::thread::current().id();
            self.busy.lock().insert(thread, Instant::now());
            let attempted = attempt();
            self.busy.lock().remove(&thread);
            let full = match attempted {
                Ok(Some(done)) => {
                    if waiting {
                        self.monitor.paused(None);
                    }
                    return Ok(done);
                }
                Ok(None) => format!("the spool '{}' has reached its limit (--spool-limit)", self.path.display()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                    format!("no room for the spool '{}': {e}", self.path.display())
                }
                Err(cause) => return Err(Error::Write { path: path.to_owned(), cause }),
            };
            if !waiting {
                waiting = true;
                self.monitor.paused(Some(full));
            }
            if stopped() {
                return Err(Error::Stopped);
            }
            std::thread::sleep(RETRY);
        }
    }

    /// It stays when the mount ends, whatever was said before.
    pub fn keep(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Everything has come: one that an earlier daemon has left is like any other from now on.
    pub fn finished(&self) {
        self.unfinished.store(false, Ordering::Relaxed);
    }

    /// Whether it stays when the mount ends.
    pub fn is_kept(&self) -> bool {
        let (retired, unfinished) = (&self.retired, &self.unfinished);
        self.keep || retired.load(Ordering::Relaxed) || unfinished.load(Ordering::Relaxed)
    }

    /// Removes it from the disk, unless it is to be kept. Only the first call counts.
    pub fn remove(&self) {
        if self.is_kept() || self.removed.swap(true, Ordering::Relaxed) {
            return;
        }
        let removed = discard::remove_contents(&self.directory, &mut 0);
        match removed.and_then(|()| std::fs::remove_dir(&self.path)) {
            Ok(()) => registry::remove(&self.path),
            Err(e) => log::warn!("cannot remove the spool '{}': {e}", self.path.display()),
        }
    }

    fn report(&self) {
        self.monitor.spool(SpoolUse {
            directory: self.path.display().to_string(),
            bytes: self.bytes(),
            limit: self.limit,
        });
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Opens a directory that is not a link. What is in it is opened through it: whoever may rename the directories above
/// cannot put others in their place.
fn open_directory(above: impl AsFd, name: impl Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(above, name, flags, Mode::empty())?)
}

fn create_file(directory: &OwnedFd, name: impl Arg) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?.into())
}

fn open_file(directory: &OwnedFd, name: impl Arg) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat(directory, name, flags, Mode::empty())?.into())
}

/// A directory of our own that did not exist before. Its name cannot be guessed, so nobody can take all of them first;
/// safety comes from `mkdir`, which never takes one that is there.
fn make_private(parent: &Path) -> io::Result<PathBuf> {
    loop {
        let mut random = [0; 8];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let path = parent.join(format!("restorefs-{}-{:016x}", std::process::id(), u64::from_ne_bytes(random)));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_waits_until_it_is_stopped_and_the_spool_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            directory: dir.path().into(),
            limit: Some(10),
            keep: false,
            source: "test".into(),
            ..Config::default()
        };
        let monitor = Monitor::new();
        let spool = Spool::create(&config, monitor.clone()).unwrap();
        spool.append(b"12345678", &|| false).unwrap();
        assert!(matches!(spool.append(b"123", &|| true), Err(Error::Stopped)));
        assert!(monitor.status().paused.unwrap().contains("--spool-limit"));
        let mut back = [0; 8];
        spool.journal().read_exact_at(&mut back, 0).unwrap();
        assert_eq!(&back, b"12345678");
        let path = spool.path().to_owned();
        drop(spool);
        assert!(!path.exists());
    }

    #[test]
    fn what_one_call_appends_stays_together_where_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            directory: dir.path().into(),
            limit: None,
            keep: false,
            source: "test".into(),
            ..Config::default()
        };
        let spool = Spool::create(&config, Monitor::new()).unwrap();
        let append = |byte: u8| {
            let append = |n: usize| (spool.append(&vec![byte; n], &|| true).unwrap(), vec![byte; n]);
            (1..200).map(append).collect::<Vec<_>>()
        };
        let mut pieces = std::thread::scope(|scope| {
            let threads = [1, 2, 3].map(|byte| {
                scope.spawn({
                    let append = &append;
                    move || append(byte)
                })
            });
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        pieces.sort_unstable_by_key(|(at, _)| *at);
        let mut end = 0;
        for (at, piece) in pieces {
            assert_eq!(at, end);
            end += piece.len() as u64;
            let mut back = vec![0; piece.len()];
            spool.journal().read_exact_at(&mut back, at).unwrap();
            assert!(back == piece);
        }
        assert_eq!(spool.position(), end);
    }

    #[test]
    fn whoever_renames_what_is_above_has_no_other_file_opened() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            directory: dir.path().into(),
            limit: None,
            keep: true,
            source: "test".into(),
            ..Config::default()
        };
        let spool = Spool::create(&config, Monitor::new()).unwrap();
        let mut blob = spool.create_blob(None, &|| true).unwrap();
        spool.write_blob(&mut blob, b"ours", 0, &|| true).unwrap();
        let theirs = dir.path().join("theirs");
        std::fs::create_dir_all(theirs.join("blobs")).unwrap();
        std::fs::write(theirs.join("blobs/0"), "theirs").unwrap();
        std::fs::rename(spool.path(), dir.path().join("aside")).unwrap();
        std::os::unix::fs::symlink(&theirs, spool.path()).unwrap();
        let read = |file| io::read_to_string::<File>(file).unwrap();
        assert_eq!(read(spool.open_blob(0).unwrap()), "ours");
        spool.create_blob(None, &|| true).unwrap();
        assert!(dir.path().join("aside/blobs/1").exists() && !theirs.join("blobs/1").exists());
        // Nor through a link in the place of a blob.
        std::fs::remove_file(dir.path().join("aside/blobs/0")).unwrap();
        std::os::unix::fs::symlink(theirs.join("blobs/0"), dir.path().join("aside/blobs/0")).unwrap();
        assert!(spool.open_blob(0).is_err());
    }

    #[test]
    fn prepared_names_take_no_spool_away() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        for n in 0..1000 {
            std::fs::create_dir(dir.path().join(format!("restorefs-{}-{n}", std::process::id()))).unwrap();
        }
        let config = Config {
            directory: dir.path().into(),
            limit: None,
            keep: false,
            source: "test".into(),
            ..Config::default()
        };
        let spool = Spool::create(&config, Monitor::new()).unwrap();
        assert_eq!(spool.path().metadata().unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn the_limit_counts_what_pieces_between_holes_take() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            directory: dir.path().into(),
            limit: Some(3 * PAGE),
            keep: false,
            source: "test".into(),
            ..Config::default()
        };
        let spool = Spool::create(&config, Monitor::new()).unwrap();
        let mut blob = spool.create_blob(Some(1 << 30), &|| true).unwrap();
        for at in [0, 1, 5000, 6000] {
            spool.write_blob(&mut blob, b"x", at, &|| true).unwrap();
        }
        assert_eq!(spool.bytes(), 2 * PAGE);
        assert!(matches!(spool.write_blob(&mut blob, b"xx", 5 * PAGE - 1, &|| true), Err(Error::Stopped)));
        spool.write_blob(&mut blob, b"x", 1 << 29, &|| true).unwrap();
        assert_eq!(spool.bytes(), 3 * PAGE);
        assert!(matches!(spool.write_blob(&mut blob, b"x", 1 << 30, &|| true), Err(Error::Stopped)));
    }

    #[test]
    fn a_blob_that_cannot_be_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            directory: dir.path().into(),
            limit: None,
            keep: false,
            source: "test".into(),
            ..Config::default()
        };
        let spool = Spool::create(&config, Monitor::new()).unwrap();
        assert!(matches!(spool.create_blob(Some(u64::MAX), &|| true), Err(Error::Write { .. })));
        assert_eq!(spool.path().join("blobs").read_dir().unwrap().count(), 0);
    }
}
