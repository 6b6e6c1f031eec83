//! The index and the contents together: what an [`intake`] fills and the filesystem serves.
//!
//! Bytes are written before the index says that they are there, so a read by what the index says gives archived bytes.
//! Waiting readers are woken after the index has changed. What is read from the spool is compared with its checksum: a
//! disk that lost something gives an error, and the file counts as damaged (`settle`).

mod durable;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod give_back;
pub mod intake;
pub mod recover;
pub mod settle;
mod superseded;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rustix::process::{Resource, getrlimit};

use crate::entry::SparseMap;
use crate::index::{Arrival, Index, Ino, Place};
use crate::monitor::{Monitor, Verdict};
use crate::proof::{Reader, copy_from};
use crate::spool::Spool;

use superseded::Superseded;
/// Told when more of an inode's contents are there, or when no more will come.
type Listener = Box<dyn Fn(Ino) + Send + Sync>;

/// A tree with its contents.
pub struct Store {
    index: RwLock<Index>,
    spool: OnceLock<Spool>,
    archive: OnceLock<Archive>,
    held: Mutex<Held>,
    superseded: Superseded,
    listener: OnceLock<Listener>,
    wanted: OnceLock<Listener>,
    over: AtomicBool,
    /// Whether the disk has said that it has everything in the spool.
    settled: AtomicBool,
    abandoned: AtomicBool,
    /// The journal could not be made to say that the stream is complete.
    unfinished: AtomicBool,
    /// Files whose stored bytes could not be read back.
    damaged: Mutex<BTreeSet<Ino>>,
    when_over: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// An archive whose contents are read in place, as it was when it was mounted.
#[derive(Debug)]
struct Archive {
    file: Arc<File>,
    size: u64,
    mtime: (i64, i64),
}

impl Archive {
    fn is_changed(&self) -> bool {
        self.file.metadata().map_or(true, |m| m.len() != self.size || (m.mtime(), m.mtime_nsec()) != self.mtime)
    }
}

/// The blobs of files that readers hold, open from the first read on.
#[derive(Default)]
struct Held {
    blobs: HashMap<Ino, Option<Arc<File>>>,
    open: u64,
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes: all that was asked for, up to the end of the file.
    Bytes(usize),
    /// Not all of it is there; more is coming. Of the file, this much from its beginning is.
    NotYet {
        /// Bytes from the beginning of the file.
        known: u64,
    },
    /// Not all of it is there, and no more will come.
    Lost,
}

impl Store {
    /// An empty tree without contents.
    pub fn new(index: Index) -> Self {
        Store {
            index: RwLock::new(index),
            spool: OnceLock::new(),
            archive: OnceLock::new(),
            held: Mutex::default(),
            superseded: Superseded::default(),
            listener: OnceLock::new(),
            wanted: OnceLock::new(),
            over: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            unfinished: AtomicBool::new(false),
            damaged: Mutex::default(),
            when_over: OnceLock::new(),
        }
    }

    /// The tree. What fills the store waits while it is held.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read()
    }

    /// Has `work` fill it. Whoever waits is told how that ended, even where a fault of ours ends it.
    pub fn fill(&self, monitor: &Monitor, work: impl FnOnce()) {
        if std::panic::catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.cut();
            monitor.end(Verdict::Failed { cause: "receiving ended with a panic: please report it".into() });
        }
    }

    /// Contents go to this spool from now on. Only the first call counts.
    pub fn set_spool(&self, spool: Spool) {
        let _ = self.spool.set(spool);
    }

    /// Contents lie in this archive, which must not change from now on. Only the first call counts.
    pub fn set_archive(&self, file: Arc<File>) -> io::Result<()> {
        let metadata = file.metadata()?;
        let mtime = (metadata.mtime(), metadata.mtime_nsec());
        let _ = self.archive.set(Archive { file, size: metadata.len(), mtime });
        Ok(())
    }

    /// Whether somebody has written to the archive that is mounted in place. What it holds now is not known.
    pub fn is_changed(&self) -> bool {
        self.archive.get().is_some_and(Archive::is_changed)
    }

    /// Who is told of arrivals. Only the first call counts.
    pub fn set_listener(&self, listener: impl Fn(Ino) + Send + Sync + 'static) {
        let _ = self.listener.set(Box::new(listener));
    }

    /// Who is told that somebody waits for the contents of an inode. Only the first call counts.
    pub fn set_wanted(&self, listener: impl Fn(Ino) + Send + Sync + 'static) {
        let _ = self.wanted.set(Box::new(listener));
    }

    /// Somebody waits for contents of `ino`: where they can come sooner, they do.
    pub fn want(&self, ino: Ino) {
        if let Some(listener) = self.wanted.get() {
            listener(ino);
        }
    }

    /// The spool, where there is one.
    pub fn spool(&self) -> Option<&Spool> {
        self.spool.get()
    }

    /// The archive, where it is mounted in place.
    pub fn archive(&self) -> Option<&File> {
        self.archive.get().map(|archive| &*archive.file)
    }

    /// Something changed with the contents of `ino`, and the index says so already.
    fn notify(&self, ino: Ino) {
        if let Some(listener) = self.listener.get() {
            listener(ino);
        }
    }

    /// What is done as soon as the stream is over, before anybody is told so. Only the first call counts.
    pub fn set_when_over(&self, action: impl Fn() + Send + Sync + 'static) {
        let _ = self.when_over.set(Box::new(action));
    }

    /// The stream is over; nothing changes any more.
    fn set_over(&self) {
        if !self.over.swap(true, Ordering::AcqRel)
            && let Some(action) = self.when_over.get()
        {
            action();
        }
    }

    /// The stream is over, and what has not arrived is cut: whoever waits for it is told.
    pub fn cut(&self) {
        let cut = self.index.write().cut_all();
        self.set_over();
        for ino in cut {
            self.notify(ino);
        }
    }

    /// Whether the stream is over.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// A reader holds this file from now on.
    pub fn hold(&self, ino: Ino) {
        self.held.lock().blobs.entry(ino).or_default();
    }

    /// Nobody holds it any more.
    pub fn let_go(&self, ino: Ino) {
        let mut held = self.held.lock();
        let blob = held.blobs.remove(&ino).flatten();
        held.open -= u64::from(blob.is_some());
    }

    /// A blob, for reading.
    pub fn open_blob(&self, number: u64) -> io::Result<File> {
        self.spool_or_fail()?.open_blob(number)
    }

    /// The blob of a file that is read. Stays open while a reader holds the file; but when many are open, it is
    /// opened for each read: readers must not take the descriptors that receiving needs.
    fn blob(&self, ino: Ino, number: u64) -> io::Result<Arc<File>> {
        if let Some(Some(open)) = self.held.lock().blobs.get(&ino) {
            return Ok(open.clone());
        }
        let file = Arc::new(self.open_blob(number)?);
        let most = getrlimit(Resource::Nofile).current.map_or(u64::MAX, |limit| limit / 2);
        let mut held = self.held.lock();
        let room = held.open < most;
        if let Some(blob @ None) = held.blobs.get_mut(&ino)
            && room
        {
            *blob = Some(file.clone());
            held.open += 1;
        }
        Ok(file)
    }

    /// Whether a file is, or may come to be, in a blob.
    pub fn may_have_blobs(&self) -> bool {
        match self.spool.get() {
            Some(spool) => !self.is_over() || spool.has_blobs(),
            None => false,
        }
    }

    /// The size of a file, how much of it is known from its beginning, and whether more will come.
    pub fn known(&self, ino: Ino) -> Option<(u64, u64, bool)> {
        known(&self.index.read(), ino)
    }

    /// Reads `len` bytes at `offset`, fewer only at the end of the file, to the beginning of `buf`, which grows as
    /// needed.
    ///
    /// # Errors
    /// The archive or the spool cannot be read, or what is read is not what was stored.
    pub fn read(&self, ino: Ino, offset: u64, len: usize, buf: &mut Vec<u8>) -> io::Result<Read> {
        let (place, sparse, stored, size, known, coming) = {
            let index = self.index.read();
            let missing = || io::Error::from_raw_os_error(libc::ESTALE);
            let (size, known, coming) = known(&index, ino).ok_or_else(missing)?;
            let stored = index.attributes(ino).ok_or_else(missing)?.stored;
            (index.place(ino).ok_or_else(missing)?, index.sparse(ino).cloned(), stored, size, known, coming)
        };
        let end = size.min(offset.saturating_add(len as u64));
        if end > known && offset < end {
            return Ok(if coming { Read::NotYet { known } } else { Read::Lost });
        }
        let len = end.saturating_sub(offset) as usize;
        if buf.len() < len {
            buf.resize(len, 0);
        }
        let buf = &mut buf[..len];
        if len > 0
            && let Err(e) = self.read_place(ino, &place, sparse.as_deref(), stored, offset, buf)
        {
            // What nothing names any more may have been given back.
            let is_named = self.index.read().attributes(ino).is_some_and(|a| a.nlink > 0);
            if is_named && is_damage(&place, &e) {
                self.damaged.lock().insert(ino);
            }
            return Err(e);
        }
        Ok(Read::Bytes(len))
    }

    /// Fills `buf` with what is known to have arrived.
    fn read_place(
        &self,
        ino: Ino,
        place: &Place,
        sparse: Option<&SparseMap>,
        stored: u64,
        offset: u64,
        buf: &mut [u8],
    ) -> io::Result<()> {
        match place {
            Place::Empty => {
                buf.fill(0);
                Ok(())
            }
            Place::Archive(start) => {
                let archive = self.archive.get().ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
                spread(sparse, offset, buf, |buf, at| {
                    archive.file.read_exact_at(buf, start + at)?;
                    // After the read: what is unchanged now was when it was read.
                    if archive.is_changed() {
                        return Err(io::Error::other("the archive has been changed since it was mounted"));
                    }
                    Ok(())
                })
            }
            Place::Journal(at) => {
                let bytes = self.spool_or_fail()?.read_data(*at, stored)?;
                spread(sparse, offset, buf, |buf, at| copy_from(&bytes, buf, at))
            }
            Place::Memory(bytes) => spread(sparse, offset, buf, |buf, at| copy_from(bytes, buf, at)),
            Place::Blob(number) | Place::Packed(number) => {
                let sums =
                    self.spool_or_fail()?.sums(*number).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                let file = self.blob(ino, *number)?;
                let mut reader = Reader::new(&file, sparse.filter(|_| matches!(place, Place::Blob(_))), &sums);
                spread(sparse, offset, buf, |buf, at| reader.read(buf, at))
            }
        }
    }

    fn spool_or_fail(&self) -> io::Result<&Spool> {
        self.spool.get().ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))
    }
}

/// Fills `buf`, which is a part of a file, with the stored bytes that belong there, and zeros where it has holes.
fn spread(
    sparse: Option<&SparseMap>,
    offset: u64,
    buf: &mut [u8],
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let Some(map) = sparse else { return read(buf, offset) };
    buf.fill(0);
    for (segment, stored) in map.within(offset, buf.len() as u64) {
        let at = (segment.offset - offset) as usize;
        read(&mut buf[at..at + segment.len as usize], stored)?;
    }
    Ok(())
}

fn known(index: &Index, ino: Ino) -> Option<(u64, u64, bool)> {
    let size = index.attributes(ino)?.size;
    let until = |received| index.sparse(ino).map_or(received, |map| map.known_until(received));
    Some(match index.arrival(ino)? {
        Arrival::Complete => (size, size, false),
        Arrival::Announced => (size, until(0), true),
        Arrival::Arriving { received } => (size, until(received), true),
        Arrival::Truncated { received } => (size, until(received), false),
    })
}

/// Whether an error of a read means that what was stored is lost, and not that the reader has run out of something.
fn is_damage(place: &Place, e: &io::Error) -> bool {
    let is_spooled = matches!(place, Place::Journal(_) | Place::Blob(_) | Place::Packed(_));
    is_spooled && !matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR))
}
