//! The index and the contents together: what ingest fills and the filesystem serves.
//!
//! Bytes are written before the index says that they are there, so whoever reads by what the index says reads
//! archived bytes. Whoever waits for more is told after the index has changed.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use rustix::process::{Resource, getrlimit};

use crate::index::{Arrival, Index, Ino, Place};
use crate::spool::Spool;

/// Told when more of an inode's contents are there, or when no more will come.
type Listener = Box<dyn Fn(Ino) + Send + Sync>;

/// A tree with its contents.
pub struct Store {
    /// The tree.
    pub index: RwLock<Index>,
    spool: OnceLock<Spool>,
    archive: OnceLock<Archive>,
    /// Cloned by every handle that holds a blob open: counts them.
    held: Arc<()>,
    listener: OnceLock<Listener>,
    wanted: OnceLock<Listener>,
    over: std::sync::atomic::AtomicBool,
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

/// Where to read a file from, taken once at open.
#[derive(Debug)]
pub struct Contents {
    blob: Option<(File, Arc<()>)>,
}

/// What a read came to.
#[derive(Debug)]
pub enum Read {
    /// These bytes: all that was asked for, up to the end of the file.
    Bytes(Vec<u8>),
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
            held: Arc::default(),
            listener: OnceLock::new(),
            wanted: OnceLock::new(),
            over: std::sync::atomic::AtomicBool::new(false),
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

    /// The stream is over; nothing changes any more.
    pub fn set_over(&self) {
        self.over.store(true, std::sync::atomic::Ordering::Release);
    }

    /// Whether the stream is over.
    pub fn is_over(&self) -> bool {
        self.over.load(std::sync::atomic::Ordering::Acquire)
    }

    /// What a handle keeps: the blob, where the file has one by now. When many are held, it is opened for each read:
    /// readers must not take the descriptors that receiving needs.
    pub fn open(&self, ino: Ino) -> io::Result<Contents> {
        let place = self.index.read().place(ino);
        let most = getrlimit(Resource::Nofile).current.map_or(u64::MAX, |limit| limit / 2);
        let blob = match place {
            Some(Place::Blob(number)) if (Arc::strong_count(&self.held) as u64) < most => {
                Some((self.spool_or_fail()?.open_blob(number)?, self.held.clone()))
            }
            _ => None,
        };
        Ok(Contents { blob })
    }

    /// The size of a file, how much of it is known from its beginning, and whether more will come.
    pub fn known(&self, ino: Ino) -> Option<(u64, u64, bool)> {
        known(&self.index.read(), ino)
    }

    /// Reads `len` bytes at `offset`, fewer only at the end of the file.
    pub fn read(&self, contents: &Contents, ino: Ino, offset: u64, len: usize) -> io::Result<Read> {
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
        let mut buf = vec![0; len];
        if len == 0 {
            return Ok(Read::Bytes(buf));
        }
        match (&place, &sparse) {
            (Place::Empty, _) => {}
            // Blobs hold the bytes at their places in the file, holes and all.
            (Place::Blob(number), _) => match &contents.blob {
                Some((file, _)) => file.read_exact_at(&mut buf, offset)?,
                None => self.spool_or_fail()?.open_blob(*number)?.read_exact_at(&mut buf, offset)?,
            },
            (place, None) => self.read_stored(place, &mut buf, offset)?,
            (place, Some(map)) => {
                for (segment, stored) in map.within(offset, len as u64) {
                    let at = (segment.offset - offset) as usize;
                    self.read_stored(place, &mut buf[at..at + segment.len as usize], stored)?;
                }
            }
        }
        Ok(Read::Bytes(buf))
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
