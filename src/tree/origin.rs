//! Where the contents of a file are, and how they are read later, when the tree may have changed.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use rustix::io::Errno;
use rustix::process::{Uid, geteuid};

use super::directories::{DirId, Directories};
use crate::entry::{EntryPath, SparseMap, Timestamp};

/// How things are looked at: themselves, and what is there only.
pub(super) const LOOK: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::NO_AUTOMOUNT);

/// Where the contents of a file are, and what they were when the walk came by.
///
/// Small, since one is kept for each file of a tree until it is sent.
#[derive(Clone, Debug)]
pub struct Origin {
    pub(super) directory: DirId,
    pub(super) name: Box<CStr>,
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    /// Whatever changes the contents changes it too, and it cannot be set back.
    pub(super) ctime_seconds: i64,
    pub(super) ctime_nanos: u32,
    pub(super) sparse: Option<Arc<SparseMap>>,
}

const _: () = assert!(size_of::<Origin>() <= 72);

impl Origin {
    /// The length of the file, holes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of data that [`Contents::read`] gives: those that are not in holes.
    pub fn stored_len(&self) -> u64 {
        self.sparse.as_ref().map_or(self.size, |map| map.stored_len())
    }

    /// Where the data lies, where it has holes: as in the entry.
    pub fn sparse(&self) -> Option<&Arc<SparseMap>> {
        self.sparse.as_ref()
    }

    /// Device and inode.
    pub fn inode(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// When the inode was changed last, in any way.
    pub fn ctime(&self) -> Timestamp {
        Timestamp::new(self.ctime_seconds, self.ctime_nanos)
    }
}

/// Why contents cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing of this name any more.
    #[error("it has vanished")]
    Vanished,
    /// There is something else.
    #[error("something else is in its place")]
    Replaced,
    /// It is there.
    #[error("it cannot be opened: {0}")]
    Io(#[from] io::Error),
}

impl OpenError {
    /// Whether this process or machine is out of something, and the file is not to blame.
    pub fn is_ours(&self) -> bool {
        let OpenError::Io(e) = self else { return false };
        let errno = e.raw_os_error().map(Errno::from_raw_os_error);
        matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
    }
}

/// Opens what a walk has come by. Cheap to clone, and one for all threads.
#[derive(Clone, Debug)]
pub struct Opener {
    pub(super) directories: Arc<Directories>,
}

impl Opener {
    /// Opens the contents. That they are still what was announced is only certain when
    /// [`Contents::is_unchanged`] says so after the last read.
    pub fn open(&self, origin: &Origin) -> Result<Contents, OpenError> {
        let directory = self.directories.open(origin.directory).map_err(why)?;
        let is_it = |stat: &Stat| (stat.st_dev, stat.st_ino) == origin.inode() && is_file(stat);
        let stat = statat(&directory, &*origin.name, LOOK).map_err(why)?;
        if !is_it(&stat) {
            return Err(OpenError::Replaced);
        }
        let file = File::from(self.open_name(directory.as_fd(), &origin.name, &stat).map_err(why)?);
        if !is_it(&fstat(&file).map_err(io::Error::from)?) {
            return Err(OpenError::Replaced);
        }
        Ok(Contents {
            file,
            size: origin.size,
            sparse: origin.sparse.clone(),
            ctime: (origin.ctime_seconds, origin.ctime_nanos),
        })
    }

    /// What a file is sent as.
    pub fn path(&self, origin: &Origin) -> Vec<u8> {
        // Whatever was announced has a path.
        let directory = self.directories.path(origin.directory).unwrap_or_else(|_| EntryPath::root());
        let name = origin.name.to_bytes();
        if directory.is_root() { name.to_vec() } else { [directory.as_bytes(), name].join(&b'/') }
    }

    /// Opens a regular file by its name. Whoever swaps it in this very moment can have something else opened, but not
    /// read; O_NONBLOCK keeps a FIFO from being waited for.
    fn open_name(&self, directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // Only the owner, and root, may leave the time of access alone.
        let noatime = if may_leave_atime(stat) { OFlags::NOATIME } else { OFlags::empty() };
        match openat(directory, name, flags | noatime, Mode::empty()) {
            // Root without the right to, or somebody else has a lease on it: that is to be waited for.
            Err(Errno::PERM | Errno::AGAIN) => {
                let place = open_place(directory, name)?;
                let stat = fstat(&place)?;
                if is_file(&stat) { open_file(place.as_fd(), &stat) } else { Err(Errno::LOOP.into()) }
            }
            opened => Ok(opened?),
        }
    }
}

fn may_leave_atime(stat: &Stat) -> bool {
    static US: OnceLock<Uid> = OnceLock::new();
    // Asked once: it is a system call, and this is called for each file.
    let us = US.get_or_init(geteuid);
    us.is_root() || us.as_raw() == stat.st_uid
}

fn why(e: impl Into<io::Error>) -> OpenError {
    let e = e.into();
    match e.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::STALE) => OpenError::Vanished,
        Some(Errno::NOTDIR | Errno::LOOP) => OpenError::Replaced,
        _ => OpenError::Io(e),
    }
}

pub(super) fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// A descriptor that only stands for the inode: nothing is opened, whatever it is.
pub(super) fn open_place(directory: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Opens the regular file that a place stands for: an inode keeps its type, so it can be nothing else.
pub(super) fn open_file(place: BorrowedFd<'_>, stat: &Stat) -> io::Result<OwnedFd> {
    let link = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    if may_leave_atime(stat) {
        match openat(CWD, &*link, flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => {}
            opened => return Ok(opened?),
        }
    }
    Ok(openat(CWD, &*link, flags, Mode::empty())?)
}

/// The contents of a file, open.
#[derive(Debug)]
pub struct Contents {
    file: File,
    size: u64,
    sparse: Option<Arc<SparseMap>>,
    ctime: (i64, u32),
}

impl Contents {
    /// Reads stored bytes, those in holes left out, from `stored_offset` on; never more than were announced. Fewer than
    /// there is room for, or none, means that it is at the end, or that the file has become shorter.
    pub fn read(&mut self, stored_offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let Some(map) = &self.sparse else {
            let left = self.size.saturating_sub(stored_offset);
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            return read_at(&self.file, &mut buf[..len], stored_offset);
        };
        let mut done = 0;
        for piece in map.place(stored_offset, buf.len() as u64) {
            // No longer than `buf`, altogether.
            let len = piece.len as usize;
            let n = read_at(&self.file, &mut buf[done..done + len], piece.offset)?;
            done += n;
            if n < len {
                break;
            }
        }
        Ok(done)
    }

    /// Whether it is still what was announced.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        let stat = fstat(&self.file)?;
        Ok(u64::try_from(stat.st_size) == Ok(self.size) && ctime(&stat) == self.ctime)
    }

    /// The file itself, open for reading: to be read at offsets only.
    pub fn file(&self) -> &File {
        &self.file
    }
}

pub(super) fn ctime(stat: &Stat) -> (i64, u32) {
    (stat.st_ctime, stat.st_ctime_nsec as u32)
}

fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
