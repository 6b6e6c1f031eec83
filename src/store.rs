//! The index and the contents together: what ingest fills and the filesystem serves.
//!
//! Bytes are written before the index says that they are there, so whoever reads by what the index says reads
//! archived bytes. Whoever waits for more is told after the index has changed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustix::process::{Resource, getrlimit};

use crate::index::{Arrival, Index, Ino, Place};
use crate::monitor::{Monitor, Verdict};
use crate::spool::Spool;

/// Told when more of an inode's contents are there, or when no more will come.
type Listener = Box<dyn Fn(Ino) + Send + Sync>;

/// A tree with its contents.
pub struct Store {
    /// The tree.
    pub index: RwLock<Index>,
    spool: OnceLock<Spool>,
    archive: OnceLock<Archive>,
    held: Mutex<Held>,
    listener: OnceLock<Listener>,
    wanted: OnceLock<Listener>,
    over: AtomicBool,
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
            listener: OnceLock::new(),
            wanted: OnceLock::new(),
            over: AtomicBool::new(false),
            when_over: OnceLock::new(),
        }
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
    pub fn notify(&self, ino: Ino) {
        if let Some(listener) = self.listener.get() {
            listener(ino);
        }
    }

    /// What is done as soon as the stream is over, before anybody is told so. Only the first call counts.
    pub fn set_when_over(&self, action: impl Fn() + Send + Sync + 'static) {
        let _ = self.when_over.set(Box::new(action));
    }

    /// The stream is over; nothing changes any more.
    pub fn set_over(&self) {
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
    pub fn read(&self, ino: Ino, offset: u64, len: usize, buf: &mut Vec<u8>) -> io::Result<Read> {
        let (place, sparse, size, known, coming) = {
            let index = self.index.read();
            let missing = || io::Error::from_raw_os_error(libc::ESTALE);
            let (size, known, coming) = known(&index, ino).ok_or_else(missing)?;
            (index.place(ino).ok_or_else(missing)?, index.sparse(ino).cloned(), size, known, coming)
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
        match (&place, &sparse) {
            _ if len == 0 => {}
            (Place::Empty, _) => buf.fill(0),
            // Blobs hold the bytes at their places in the file, holes and all.
            (Place::Blob(number), _) => self.blob(ino, *number)?.read_exact_at(buf, offset)?,
            (place, None) => self.read_stored(place, buf, offset)?,
            (place, Some(map)) => {
                buf.fill(0);
                for (segment, stored) in map.within(offset, len as u64) {
                    let at = (segment.offset - offset) as usize;
                    self.read_stored(place, &mut buf[at..at + segment.len as usize], stored)?;
                }
            }
        }
        Ok(Read::Bytes(len))
    }

    fn read_stored(&self, place: &Place, buf: &mut [u8], at: u64) -> io::Result<()> {
        match place {
            Place::Archive(start) => match self.archive.get() {
                Some(archive) => {
                    archive.file.read_exact_at(buf, start + at)?;
                    // After the read: what is unchanged now was when it was read.
                    if archive.is_changed() {
                        return Err(io::Error::other("the archive has been changed since it was mounted"));
                    }
                    Ok(())
                }
                None => Err(io::Error::from_raw_os_error(libc::EIO)),
            },
            Place::Journal(start) => self.spool_or_fail()?.read_journal(buf, start + at),
            Place::Memory(bytes) => {
                let at = at as usize;
                let from = bytes.get(at..at + buf.len()).ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))?;
                buf.copy_from_slice(from);
                Ok(())
            }
            Place::Empty | Place::Blob(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    fn spool_or_fail(&self) -> io::Result<&Spool> {
        self.spool.get().ok_or_else(|| io::Error::from_raw_os_error(libc::EIO))
    }
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
