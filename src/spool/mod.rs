//! Contents on disk: a journal of every entry with the contents of small files, and one blob for each large one.
//!
//! ```text
//! restorefs-PID-N/    0700
//!   spool.json        format version, source, threshold
//!   lock              held by the daemon while it lives
//!   journal           records, in order of arrival
//!   blobs/N           contents of one file each, at their offsets in it
//! ```
//!
//! Nothing is synced while it arrives: the page cache outlives the daemon. A full disk is not an error:
//! writing waits for room, and the monitor says so.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::monitor::{Monitor, SpoolUse};
use crate::record;

/// Files of this many stored bytes and more get a blob: it can be opened, linked and passed through on its
/// own. Below it the cost of creating one is most of the work.
pub const BLOB_THRESHOLD: u64 = 128 << 10;

/// The unit in which filesystems give room: a file with holes takes a whole one for each piece, however small.
const PAGE: u64 = 4096;

/// So often a full disk is asked again.
const RETRY: Duration = Duration::from_millis(250);

/// Where to spool, and how much.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory in which the spool's own directory is made.
    pub directory: PathBuf,
    /// The most that it may hold, in bytes.
    pub limit: Option<u64>,
    /// Whether it stays when the mount ends.
    pub keep: bool,
    /// What is spooled, for `spool.json`.
    pub source: String,
}

/// A spool that is being written and read.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    journal: File,
    written: AtomicU64,
    blob_bytes: AtomicU64,
    blobs: AtomicU64,
    limit: Option<u64>,
    keep: bool,
    removed: AtomicBool,
    monitor: Arc<Monitor>,
    _lock: File,
}

/// The contents of one file, being written from its beginning to its end.
#[derive(Debug)]
pub struct Blob {
    number: u64,
    file: File,
    /// Where the pages end that are counted already.
    counted: u64,
}

impl Blob {
    /// Its number, by which [`Spool::open_blob`] finds it.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// Receiving was stopped while it waited for room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody said stop while there was no room.
    #[error("stopped while waiting for room in the spool")]
    Stopped,
    /// The disk failed.
    #[error("cannot write the spool '{path}': {cause}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

impl Spool {
    /// Makes the directory and everything in it.
    pub fn create(config: &Config, monitor: Arc<Monitor>) -> io::Result<Spool> {
        let path = make_private(&config.directory)?;
        let file =
            |name: &str| OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path.join(name));
        let lock = file("lock")?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        let about = serde_json::json!({
            "format": "restorefs-spool", "version": record::VERSION, "source": config.source,
            "blob_threshold": BLOB_THRESHOLD, "pid": std::process::id(),
        });
        file("spool.json")?.write_all_at(format!("{about:#}\n").as_bytes(), 0)?;
        let journal = file("journal")?;
        DirBuilder::new().mode(0o700).create(path.join("blobs"))?;
        let spool = Spool {
            path,
            journal,
            written: AtomicU64::new(0),
            blob_bytes: AtomicU64::new(0),
            blobs: AtomicU64::new(0),
            limit: config.limit,
            keep: config.keep,
            removed: AtomicBool::new(false),
            monitor,
            _lock: lock,
        };
        spool.report();
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

    /// Appends whole frames to the journal, waiting for room while `stopped` does not say otherwise.
    pub fn append(&self, frames: &[u8], stopped: &dyn Fn() -> bool) -> Result<(), Error> {
        let len = frames.len() as u64;
        self.write(&self.journal, &self.path.join("journal"), frames, self.position(), len, stopped)?;
        self.written.fetch_add(len, Ordering::Release);
        self.report();
        Ok(())
    }

    /// Begins a blob, waiting for room. A file with holes gets its `size` now, since holes are never written; any
    /// other grows, since a size that is only claimed may be more than the disk takes.
    pub fn create_blob(&self, size: Option<u64>, stopped: &dyn Fn() -> bool) -> Result<Blob, Error> {
        let number = self.blobs.fetch_add(1, Ordering::Release);
        let path = self.blob_path(number);
        let file = self.when_there_is_room(&path, stopped, || {
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            if let Some(Err(e)) = size.map(|size| file.set_len(size)) {
                std::fs::remove_file(&path)?;
                return Err(e);
            }
            Ok(Some(file))
        })?;
        Ok(Blob { number, file, counted: 0 })
    }

    /// Writes a piece of a blob, waiting for room. None may be in front of one that has been written.
    pub fn write_blob(&self, blob: &mut Blob, bytes: &[u8], at: u64, stopped: &dyn Fn() -> bool) -> Result<(), Error> {
        let end = (at + bytes.len() as u64).next_multiple_of(PAGE);
        let need = end.saturating_sub(blob.counted.max(at / PAGE * PAGE));
        self.write(&blob.file, &self.blob_path(blob.number), bytes, at, need, stopped)?;
        blob.counted = end;
        self.blob_bytes.fetch_add(need, Ordering::Relaxed);
        self.report();
        Ok(())
    }

    /// Brings everything in it to the disk. One syncfs(2): blobs may be many.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.journal)?)
    }

    /// Whether what was written is still there, by name and length: the journal, and blobs with the lengths they have to
    /// have. Whoever cleans up a directory, or cuts a file, does not ask who has it open.
    pub fn check(&self, blobs: impl IntoIterator<Item = (u64, u64)>) -> io::Result<()> {
        let is_there = |path: PathBuf, least: u64| {
            let cause = match std::fs::symlink_metadata(&path) {
                Ok(found) if found.len() >= least => return Ok(()),
                Ok(found) => io::Error::other(format!("only {} of {least} bytes are left of it", found.len())),
                Err(e) => e,
            };
            let what = format!("'{}' was taken away or cut from outside: {cause}", path.display());
            Err(io::Error::new(cause.kind(), what))
        };
        is_there(self.path.join("journal"), self.position())?;
        blobs.into_iter().try_for_each(|(number, len)| is_there(self.blob_path(number), len))
    }

    /// The journal, to be read only, and the directory of the blobs.
    pub fn reopen(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((File::open(self.path.join("journal"))?.into(), File::open(self.path.join("blobs"))?.into()))
    }

    /// Whether any blob was begun.
    pub fn has_blobs(&self) -> bool {
        self.blobs.load(Ordering::Acquire) > 0
    }

    /// A blob, for reading.
    pub fn open_blob(&self, number: u64) -> io::Result<File> {
        File::open(self.blob_path(number))
    }

    /// Fills `buf` from the journal.
    pub fn read_journal(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        self.journal.read_exact_at(buf, at)
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
            let full = match attempt() {
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

    /// Removes it from the disk, unless it is to be kept. Only the first call counts.
    pub fn remove(&self) {
        if !self.keep
            && !self.removed.swap(true, Ordering::Relaxed)
            && let Err(e) = std::fs::remove_dir_all(&self.path)
        {
            log::warn!("cannot remove the spool '{}': {e}", self.path.display());
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

/// A directory of our own that did not exist before. The name is only a name: safety comes from `mkdir`,
/// which never takes one that is there.
fn make_private(parent: &Path) -> io::Result<PathBuf> {
    for attempt in 0..1000u32 {
        let path = parent.join(format!("restorefs-{}-{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_waits_until_it_is_stopped_and_the_spool_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { directory: dir.path().into(), limit: Some(10), keep: false, source: "test".into() };
        let monitor = Monitor::new();
        let spool = Spool::create(&config, monitor.clone()).unwrap();
        spool.append(b"12345678", &|| false).unwrap();
        assert!(matches!(spool.append(b"123", &|| true), Err(Error::Stopped)));
        assert!(monitor.status().paused.unwrap().contains("--spool-limit"));
        let mut back = [0; 8];
        spool.read_journal(&mut back, 0).unwrap();
        assert_eq!(&back, b"12345678");
        let path = spool.path().to_owned();
        drop(spool);
        assert!(!path.exists());
    }
    #[test]
    fn the_limit_counts_what_pieces_between_holes_take() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { directory: dir.path().into(), limit: Some(3 * PAGE), keep: false, source: "test".into() };
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
        let config = Config { directory: dir.path().into(), limit: None, keep: false, source: "test".into() };
        let spool = Spool::create(&config, Monitor::new()).unwrap();
        assert!(matches!(spool.create_blob(Some(u64::MAX), &|| true), Err(Error::Write { .. })));
        assert_eq!(spool.path().join("blobs").read_dir().unwrap().count(), 0);
    }
}
