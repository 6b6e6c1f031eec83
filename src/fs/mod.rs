//! The filesystem over a store, in our own types: attributes, handles, reads that wait.
//!
//! Nothing here knows FUSE. Reads are answered through a closure, at once or when the bytes have come; see
//! `parking`.

mod ahead;
mod behind;
mod handles;
mod killed;
mod opens;
mod parking;
mod reply;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::index::{Arrival, Attributes, Index, Ino, Kind, Place};
use crate::store::{Read, Store};
use ahead::{Bringing, Step, Walks};
use behind::Passes;
use handles::Handles;
use parking::{Parked, Parking};

pub use ahead::Window;
pub use behind::Span;
pub use handles::Opened;
pub use opens::Opens;
pub use parking::Reader;
pub use reply::Reply;
use reply::errno;

/// The attribute by which a file says how far it has arrived. Answered by name, and not listed, so that copying
/// tools do not carry it along.
pub const STATE_XATTR: &str = "user.restorefs.state";

/// Once the stream is over nothing changes; the kernel may remember for this long.
const FOR_EVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// A mounted store. `B` stands for a blob that the kernel was given, to read it without us.
pub struct Filesystem<B> {
    store: Arc<Store>,
    parking: Arc<Parking>,
    handles: Handles<B>,
    opens: Arc<Opens>,
    /// Of files, by their inodes.
    walks: Mutex<Walks>,
    /// Of directories, by their order.
    listings: Mutex<Walks>,
    passes: Mutex<Passes>,
}

/// What is in a directory, for one `readdir`.
pub struct Listed<'a> {
    /// Where to go on behind it.
    pub cookie: u64,
    /// Its name.
    pub name: &'a OsStr,
    /// Its attributes.
    pub attributes: Attributes,
}

/// `SEEK_DATA` or `SEEK_HOLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is not in a hole.
    Data,
    /// The next byte that is in a hole, or the end.
    Hole,
}

impl<B> Filesystem<B> {
    /// Serves `store`. From now on arrivals answer the reads that wait for them.
    pub fn new(store: Arc<Store>) -> io::Result<Self> {
        let parking = Parking::new(store.clone())?;
        let lot = Arc::downgrade(&parking);
        store.set_listener(move |ino| {
            if let Some(lot) = lot.upgrade() {
                lot.arrived(ino);
            }
        });
        Ok(Filesystem {
            store,
            parking,
            handles: Handles::default(),
            opens: Arc::default(),
            walks: Mutex::default(),
            listings: Mutex::default(),
            passes: Mutex::default(),
        })
    }

    /// What ends waiting: for whoever unmounts.
    pub fn closer(&self) -> Closer {
        Closer(self.parking.clone())
    }

    /// What is open, by users of the mount.
    pub fn opens(&self) -> &Arc<Opens> {
        &self.opens
    }

    /// For how long names and attributes may be remembered.
    pub fn ttl(&self) -> Duration {
        // While entries arrive, a later one may take the name of an earlier one.
        if self.store.is_over() { FOR_EVER } else { Duration::ZERO }
    }

    /// Whether nothing changes any more.
    pub fn is_over(&self) -> bool {
        self.store.is_over()
    }

    /// The entry of this name.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attributes, Errno> {
        let index = self.store.index();
        let ino = index.lookup(parent, name.as_bytes()).ok_or(Errno::NOENT)?;
        index.attributes(ino).ok_or(Errno::NOENT)
    }

    /// What `stat` tells.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        self.store.index().attributes(ino).ok_or(Errno::NOENT)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        self.store.index().target(ino).map(<[u8]>::to_vec).ok_or(Errno::INVAL)
    }

    /// Whether an open can matter: not when every file is read by its number.
    pub fn is_open_needed(&self) -> bool {
        self.store.may_have_blobs()
    }

    /// Opens a file for reading. A complete blob is offered to `give`, which gives it to the kernel if that can
    /// take it; not while handles are open of which we serve the reads, and not before the disk is known to have
    /// everything: the kernel compares no checksums.
    pub fn open(&self, ino: Ino, give: impl FnOnce(&File) -> Option<B>) -> Result<Opened<B>, Errno> {
        let (arrival, place) = {
            let index = self.store.index();
            index.arrival(ino).zip(index.place(ino)).ok_or(Errno::NOENT)?
        };
        let give = || match (arrival, &place) {
            (Arrival::Complete, Place::Blob(number)) if self.store.is_settled() && !self.store.is_damaged(ino) => {
                let blob = self.store.open_blob(*number).map_err(errno).ok()?;
                give(&blob)
            }
            _ => None,
        };
        match (arrival, &place) {
            (Arrival::Complete, Place::Empty | Place::Archive(_) | Place::Journal(_) | Place::Memory(_)) => {
                Ok(Opened::Free)
            }
            _ => Ok(self.handles.open(ino, give, || self.store.hold(ino))),
        }
    }

    /// Closes what was [kept](Opened::Kept).
    pub fn close(&self, ino: Ino) {
        self.handles.close(ino, || self.store.let_go(ino));
    }

    /// Reads, now or when the bytes have come. A direct read also gives fewer bytes than were asked for where the
    /// file was cut.
    pub fn read(&self, ino: Ino, offset: u64, len: usize, reader: Reader, reply: Reply) {
        self.parking.read(Parked { ino, offset, len, reader, reply });
    }

    /// A file is read from its beginning. Which small ones behind it are worth bringing to the kernel before it asks;
    /// none while entries arrive: then a page may be locked by a read that waits.
    pub fn ahead(&self, ino: Ino, offset: u64) -> Option<Window> {
        if offset > 0 || !self.is_over() || self.small(ino).flatten().is_none() {
            return None;
        }
        self.walks.lock().asked(ino.0)
    }

    /// Hands the contents of the files of a window to `bring`, until that says that it has enough.
    pub fn bring(&self, window: Window, mut bring: impl FnMut(Ino, &[u8]) -> bool) {
        let mut bringing = Bringing::new(window, ahead::BYTES);
        let mut buf = Vec::new();
        loop {
            let ino = Ino(bringing.next(self.walks.lock().position(&window)));
            match bringing.step(self.small(ino)) {
                Step::LeaveOut => {}
                Step::Done => break,
                Step::Bring => match self.store.read(ino, 0, ahead::LARGEST as usize, &mut buf) {
                    Ok(Read::Bytes(len)) if bring(ino, &buf[..len]) => {}
                    // Whoever reads it is told what is wrong with it.
                    _ => break,
                },
            }
        }
        self.walks.lock().brought(&window, &bringing.result());
    }

    /// A window that is not brought.
    pub fn forgo(&self, window: &Window) {
        self.walks.lock().forgone(window);
    }

    /// A directory is listed from its beginning. Which ones behind it are worth listing before somebody asks; none while
    /// entries arrive: then nothing of it is remembered.
    pub fn listed(&self, ino: Ino, offset: u64) -> Option<Window> {
        if offset > 0 || !self.is_over() {
            return None;
        }
        let at = self.store.index().directory_number(ino)?;
        self.listings.lock().asked(at as u64)
    }

    /// A window of directories that is not listed.
    pub fn forgo_listing(&self, window: &Window) {
        self.listings.lock().forgone(window);
    }

    /// Hands the paths of the directories of a window to `list`, until that says that it has enough. Returns the number of
    /// the one where the next window begins.
    pub fn list_ahead(&self, window: Window, mut list: impl FnMut(&Path) -> bool) -> u64 {
        let mut bringing = Bringing::new(window, ahead::ENTRIES);
        loop {
            let at = bringing.next(self.listings.lock().position(&window));
            let directory = self.directory(at as usize);
            match bringing.step(directory.as_ref().map(|found| found.as_ref().map(|(_, entries)| *entries))) {
                Step::LeaveOut => {}
                Step::Done => break,
                Step::Bring => match directory.flatten() {
                    Some((path, _)) if list(&path) => {}
                    _ => break,
                },
            }
        }
        let brought = bringing.result();
        self.listings.lock().brought(&window, &brought);
        brought.end
    }

    /// The path of a directory below the root, and how many entries it has; nothing of one that is not there any more,
    /// has too many, or lies too deep. None behind the last.
    fn directory(&self, number: usize) -> Option<Option<(PathBuf, u64)>> {
        let index = self.store.index();
        let ino = index.directory_at(number)?;
        let entries = index.list(ino, 0).take(ahead::ENTRIES as usize).count() as u64;
        let path = index.directory_path(number, libc::PATH_MAX as usize).filter(|_| entries < ahead::ENTRIES);
        Some(path.map(|path| (OsString::from_vec(path).into(), entries + 1)))
    }

    /// A file is read. What of it the kernel can forget, since the reader has left it behind; nothing while entries
    /// arrive: then a page may be locked by a read that waits.
    pub fn behind(&self, ino: Ino, offset: u64, len: usize) -> Option<Span> {
        if !self.is_over() {
            return None;
        }
        let size = self.store.index().attributes(ino)?.size;
        if size < behind::LEAST {
            return None;
        }
        self.passes.lock().read(ino, offset, len as u64, size, Instant::now())
    }

    /// What the kernel could not be told to forget.
    pub fn remembered(&self, span: &Span) {
        self.passes.lock().remembered(span);
    }

    /// The size of a small file that is complete and read by us; None behind the last inode.
    fn small(&self, ino: Ino) -> Option<Option<u64>> {
        let index = self.store.index();
        let attributes = index.attributes(ino)?;
        let small = attributes.kind == Kind::File && (1..=ahead::LARGEST).contains(&attributes.size);
        let ours = || {
            index.arrival(ino) == Some(Arrival::Complete) && !matches!(index.place(ino), None | Some(Place::Blob(_)))
        };
        Some((small && ours()).then_some(attributes.size))
    }

    /// Calls `add` for the entries of a directory behind `cookie`, `.` and `..` first, until it says that
    /// there is no more room.
    pub fn list(&self, ino: Ino, cookie: u64, mut add: impl FnMut(Listed<'_>) -> bool) -> Result<(), Errno> {
        let index = self.store.index();
        let parent = index.parent(ino).ok_or(Errno::NOTDIR)?;
        for (own, name, of) in [(1, ".", ino), (2, "..", parent)] {
            let attributes = index.attributes(of).ok_or(Errno::NOENT)?;
            if cookie < own && add(Listed { cookie: own, name: OsStr::new(name), attributes }) {
                return Ok(());
            }
        }
        for (next, name, ino) in index.list(ino, cookie.saturating_sub(2)) {
            let attributes = index.attributes(ino).ok_or(Errno::IO)?;
            if add(Listed { cookie: next + 2, name: OsStr::from_bytes(name), attributes }) {
                break;
            }
        }
        Ok(())
    }

    /// The value of an extended attribute.
    pub fn xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>, Errno> {
        let index = self.store.index();
        if name == STATE_XATTR {
            return state(&self.store, &index, ino).map(String::into_bytes).ok_or(Errno::NODATA);
        }
        let xattrs = index.xattrs(ino).ok_or(Errno::NOENT)?;
        xattrs.get(name.as_bytes()).map(<[u8]>::to_vec).ok_or(Errno::NODATA)
    }

    /// The names of the extended attributes, each ended by a NUL.
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        let xattrs = self.store.index().xattrs(ino).ok_or(Errno::NOENT)?;
        Ok(xattrs.iter().flat_map(|(name, _)| name.iter().copied().chain([0])).collect())
    }

    /// Where data or a hole begins.
    pub fn seek(&self, ino: Ino, offset: u64, seek: Seek) -> Result<u64, Errno> {
        let index = self.store.index();
        let size = index.attributes(ino).ok_or(Errno::NOENT)?.size;
        if offset >= size {
            return Err(Errno::NXIO);
        }
        match (index.sparse(ino), seek) {
            (Some(map), Seek::Data) => map.next_data(offset).ok_or(Errno::NXIO),
            (Some(map), Seek::Hole) => Ok(map.next_hole(offset)),
            (None, Seek::Data) => Ok(offset),
            (None, Seek::Hole) => Ok(size),
        }
    }

    /// Bytes and inodes of the whole, for `df`.
    pub fn totals(&self) -> (u64, u64) {
        let index = self.store.index();
        (index.contents(), index.inodes() as u64)
    }
}

/// Answers every read that waits, and every later one, with an error.
pub struct Closer(Arc<Parking>);

impl Closer {
    /// Does it.
    pub fn close(&self) {
        self.0.close();
    }
}

/// How far a file has arrived, as [`STATE_XATTR`] says it.
pub fn state(store: &Store, index: &Index, ino: Ino) -> Option<String> {
    let attributes = index.attributes(ino)?;
    if attributes.kind != Kind::File {
        return None;
    }
    let stored = attributes.stored;
    if stored > 0 && (store.is_changed() || index.is_changed(ino)) {
        return Some("changed".into());
    }
    if store.is_damaged(ino) {
        return Some("damaged".into());
    }
    Some(match index.arrival(ino)? {
        Arrival::Announced => "announced".into(),
        Arrival::Arriving { received } => format!("arriving {received}/{stored}"),
        Arrival::Complete => "complete".into(),
        Arrival::Truncated { received } => format!("truncated {received}/{stored}"),
    })
}
