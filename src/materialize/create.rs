//! One entry to the disk: by one name in an open directory, never through a link, never half of it in the place of
//! something that was there.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, fstat, linkat, makedev, mknodat, openat, renameat,
    renameat_with, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::metadata::{Owners, apply, apply_at, drop_acl_at, drop_acls};
use super::replay::Item;
use super::report::Report;
use super::temporary::TemporaryNames;
use super::{Contents, Overwrite};
use crate::entry::{Entry, EntryKind, EntryPath, Metadata, SparseMap};
use crate::index::Place;

/// What all workers need.
pub(super) struct Creator {
    pub(super) contents: Contents,
    pub(super) owners: Owners,
    pub(super) overwrite: Overwrite,
    pub(super) report: Arc<Report>,
    pub(super) temporary: TemporaryNames,
    /// So many leading components of each path are left away.
    pub(super) strip: usize,
    /// Names that are not ours and stay: see [`Creator::key`].
    pub(super) kept: Mutex<HashSet<u64>>,
}

/// An entry to be made.
pub(super) struct Task {
    pub(super) dir: Arc<OwnedFd>,
    pub(super) name: CString,
    pub(super) item: Item,
    /// The directory gives its group or an ACL to what is made in it.
    pub(super) inherits: bool,
    /// What has the name now was made by us just before: it is replaced whatever was said of overwriting.
    pub(super) replaces_ours: bool,
}

/// A second name for what is there.
pub(super) struct Link {
    pub(super) from: (Arc<OwnedFd>, CString),
    pub(super) dir: Arc<OwnedFd>,
    pub(super) name: CString,
    pub(super) path: EntryPath,
    pub(super) replaces_ours: bool,
}

/// What would be done with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is made.
    Make,
    /// It is made in the place of something else.
    Replace,
    /// It is right already.
    Leave,
    /// Something else is there, and stays.
    Keep,
}

/// What to do about a name that is taken.
enum Taken {
    /// It is right already.
    Right,
    /// It stays, by what was said of overwriting.
    Keep,
    Replace,
}

impl Creator {
    /// Makes an entry.
    pub(super) fn create(&self, task: &Task) -> io::Result<()> {
        let (dir, name, entry) = (task.dir.as_fd(), &*task.name, &*task.item.entry);
        let made = match self.first(dir, name, task) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                let there = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let taken = if task.replaces_ours { Taken::Replace } else { self.taken(dir, name, entry, &there)? };
                match taken {
                    Taken::Right => {
                        self.mend(dir, name, entry, &there)?;
                        self.report.unchanged.fetch_add(1, Ordering::Relaxed);
                        return Ok(());
                    }
                    Taken::Keep => {
                        self.keep(&task.item.entry.path);
                        return Ok(());
                    }
                    Taken::Replace => self.replace(dir, name, &there, |new| self.make(dir, new, task)),
                }
            }
            made => made,
        };
        made?;
        self.report.entries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Where the name is free.
    fn first(&self, dir: BorrowedFd<'_>, name: &CStr, task: &Task) -> io::Result<()> {
        if !matches!(self.overwrite, Overwrite::Never | Overwrite::IfNewer) {
            return self.make(dir, name, task);
        }
        // Another run would keep what it finds: it must not find the half of something.
        if statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(Errno::EXIST.into());
        }
        let temporary = self.temporary.next();
        self.make(dir, &temporary, task)?;
        let moved = match renameat_with(dir, &*temporary, dir, name, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => renameat(dir, &*temporary, dir, name),
            moved => moved,
        };
        if moved.is_err() {
            let _ = unlinkat(dir, &*temporary, AtFlags::empty());
        }
        Ok(moved?)
    }

    /// Makes a second name.
    pub(super) fn link(&self, link: &Link) -> io::Result<()> {
        let (dir, name) = (link.dir.as_fd(), &*link.name);
        let from = (link.from.0.as_fd(), &*link.from.1);
        let make = |name: &CStr| linkat(from.0, from.1, dir, name, AtFlags::empty()).map_err(io::Error::from);
        match make(name) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {
                let there = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let wanted = statat(from.0, from.1, AtFlags::SYMLINK_NOFOLLOW)?;
                if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino) {
                    self.report.unchanged.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                let time = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
                let keep = match self.overwrite {
                    Overwrite::Never => true,
                    Overwrite::IfNewer => time(&wanted) <= time(&there),
                    Overwrite::IfChanged | Overwrite::Always => false,
                };
                if keep && !link.replaces_ours {
                    self.keep(&link.path);
                    return Ok(());
                }
                self.replace(dir, name, &there, make)?;
            }
            made => made?,
        }
        self.report.entries.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Stands for the place of a path in the target. None: it has none there.
    pub(super) fn key(&self, path: &EntryPath) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        let mut components = path.components().skip(self.strip).peekable();
        components.peek()?;
        components.for_each(|component| component.hash(&mut hasher));
        Some(hasher.finish())
    }

    fn keep(&self, path: &EntryPath) {
        self.report.kept.fetch_add(1, Ordering::Relaxed);
        self.kept.lock().extend(self.key(path));
    }

    /// Whether what has this name in the target is not ours and stays.
    pub(super) fn has_kept(&self, path: &EntryPath) -> bool {
        self.key(path).is_some_and(|key| self.kept.lock().contains(&key))
    }

    /// Under a name that is not taken, with everything that belongs to it.
    fn make(&self, dir: BorrowedFd<'_>, name: &CStr, task: &Task) -> io::Result<()> {
        let Task { item, inherits, .. } = task;
        let Entry { path, kind, metadata } = &*item.entry;
        let (owners, report) = (&self.owners, &*self.report);
        let at = |symlink: bool| {
            if *inherits && !symlink {
                drop_acl_at(dir, name)?;
            }
            apply_at(dir, name, metadata, symlink, owners, path.as_bytes(), report)
        };
        match kind {
            EntryKind::File { size, sparse } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(openat(dir, name, flags, owners.first_mode(metadata))?);
                let filled = self
                    .fill(&file, *size, sparse.as_deref(), item)
                    .and_then(|()| if *inherits { drop_acls(file.as_fd()) } else { Ok(()) })
                    .and_then(|()| apply(file.as_fd(), metadata, owners, !inherits, path.as_bytes(), report));
                if filled.is_err() {
                    // What is not whole does not stay under a name of the archive.
                    let _ = unlinkat(dir, name, AtFlags::empty());
                }
                filled
            }
            EntryKind::Symlink { target } => {
                symlinkat(&**target, dir, name)?;
                at(true)
            }
            EntryKind::CharDevice { device } | EntryKind::BlockDevice { device } => {
                let kind = match kind {
                    EntryKind::CharDevice { .. } => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                mknodat(dir, name, kind, first_mode(metadata), makedev(device.major, device.minor))?;
                at(false)
            }
            EntryKind::Fifo | EntryKind::Socket => {
                let kind = if *kind == EntryKind::Fifo { FileType::Fifo } else { FileType::Socket };
                mknodat(dir, name, kind, first_mode(metadata), 0)?;
                at(false)
            }
            // Made elsewhere.
            EntryKind::Directory | EntryKind::HardLink { .. } => Ok(()),
        }
    }

    /// Beside what is there, then over it.
    fn replace(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        there: &Stat,
        make: impl FnOnce(&CStr) -> io::Result<()>,
    ) -> io::Result<()> {
        let temporary = self.temporary.next();
        make(&temporary)?;
        let moved = match FileType::from_raw_mode(there.st_mode) {
            // Only an empty one goes; the error says that it is not.
            FileType::Directory => unlinkat(dir, name, AtFlags::REMOVEDIR),
            _ => Ok(()),
        }
        .and_then(|()| renameat(dir, &*temporary, dir, name));
        if moved.is_err() {
            let _ = unlinkat(dir, &*temporary, AtFlags::empty());
        }
        Ok(moved?)
    }

    /// What would be done with an entry whose name in `dir` this is; without a directory, it is not there yet.
    pub(super) fn would(&self, dir: Option<BorrowedFd<'_>>, name: &CStr, entry: &Entry) -> io::Result<Action> {
        let Some(dir) = dir else { return Ok(Action::Make) };
        let there = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => there,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Action::Make),
            Err(e) => return Err(e.into()),
        };
        if entry.kind == EntryKind::Directory && FileType::from_raw_mode(there.st_mode) == FileType::Directory {
            return Ok(Action::Leave);
        }
        Ok(match self.taken(dir, name, entry, &there)? {
            Taken::Right => Action::Leave,
            Taken::Keep => Action::Keep,
            Taken::Replace => Action::Replace,
        })
    }

    /// What to do about `there`, which has the name of `entry`.
    fn taken(&self, dir: BorrowedFd<'_>, name: &CStr, entry: &Entry, there: &Stat) -> io::Result<Taken> {
        let mtime = entry.metadata.mtime;
        let their_time = (there.st_mtime, i64::try_from(there.st_mtime_nsec).unwrap_or_default());
        let our_time = (mtime.seconds(), i64::from(mtime.nanos()));
        Ok(match self.overwrite {
            Overwrite::Never => Taken::Keep,
            Overwrite::Always => Taken::Replace,
            Overwrite::IfNewer if our_time <= their_time => Taken::Keep,
            Overwrite::IfNewer => Taken::Replace,
            // The time is set last: what has it has everything else.
            Overwrite::IfChanged if our_time == their_time && same(dir, name, entry, there)? => {
                // With more than one name it may be somebody else's too, and is not ours to change.
                if there.st_nlink > 1 && self.differs(entry, there) { Taken::Replace } else { Taken::Right }
            }
            Overwrite::IfChanged => Taken::Replace,
        })
    }

    /// Whether the owner or the mode of `there` is not that of `entry`.
    fn differs(&self, entry: &Entry, there: &Stat) -> bool {
        let metadata = &entry.metadata;
        let symlink = matches!(entry.kind, EntryKind::Symlink { .. });
        self.owners.root && (there.st_uid, there.st_gid) != self.owners.of(metadata)
            || !symlink && there.st_mode & 0o7777 != u32::from(self.owners.mode(metadata))
    }

    /// Owner and mode of what is otherwise right.
    fn mend(&self, dir: BorrowedFd<'_>, name: &CStr, entry: &Entry, there: &Stat) -> io::Result<()> {
        if !self.differs(entry, there) {
            return Ok(());
        }
        let metadata = &entry.metadata;
        let symlink = matches!(entry.kind, EntryKind::Symlink { .. });
        let (path, report) = (entry.path.as_bytes(), &*self.report);
        if let EntryKind::File { .. } = entry.kind {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let fd = openat(dir, name, flags, Mode::empty())?;
            let now = fstat(&fd)?;
            if (now.st_dev, now.st_ino, now.st_nlink) == (there.st_dev, there.st_ino, there.st_nlink) {
                apply(fd.as_fd(), metadata, &self.owners, false, path, report)?;
            }
            return Ok(());
        }
        apply_at(dir, name, metadata, symlink, &self.owners, path, report)
    }

    fn fill(&self, file: &File, size: u64, sparse: Option<&SparseMap>, item: &Item) -> io::Result<()> {
        let Some(map) = sparse else {
            match &item.bytes {
                Some(bytes) => file.write_all_at(bytes.get(), 0)?,
                None if size > 0 => self.contents.copy(&item.place, 0, file, 0, size)?,
                None => {}
            }
            self.report.bytes.fetch_add(size, Ordering::Relaxed);
            return Ok(());
        };
        let mut stored = 0;
        for segment in map.segments() {
            match &item.bytes {
                Some(bytes) => {
                    let from = stored as usize;
                    file.write_all_at(&bytes.get()[from..from + segment.len as usize], segment.offset)?;
                }
                None => {
                    // A blob has them at their offsets in the file.
                    let from = if matches!(item.place, Place::Blob(_)) { segment.offset } else { stored };
                    self.contents.copy(&item.place, from, file, segment.offset, segment.len)?;
                }
            }
            stored += segment.len;
        }
        file.set_len(size)?;
        self.report.bytes.fetch_add(stored, Ordering::Relaxed);
        Ok(())
    }
}

/// Nobody but us until it has its owner.
fn first_mode(metadata: &Metadata) -> Mode {
    Mode::from_raw_mode((metadata.mode & 0o700).into())
}

/// Whether what is there is the same kind of thing with the same contents, as far as `stat` tells.
fn same(dir: BorrowedFd<'_>, name: &CStr, entry: &Entry, there: &Stat) -> io::Result<bool> {
    let kind = FileType::from_raw_mode(there.st_mode);
    Ok(match &entry.kind {
        EntryKind::File { size, .. } => kind == FileType::RegularFile && u64::try_from(there.st_size) == Ok(*size),
        EntryKind::Symlink { target } => {
            kind == FileType::Symlink && rustix::fs::readlinkat(dir, name, Vec::new())?.as_bytes() == &**target
        }
        EntryKind::CharDevice { device } => {
            kind == FileType::CharacterDevice && there.st_rdev == makedev(device.major, device.minor)
        }
        EntryKind::BlockDevice { device } => {
            kind == FileType::BlockDevice && there.st_rdev == makedev(device.major, device.minor)
        }
        EntryKind::Fifo => kind == FileType::Fifo,
        EntryKind::Socket => kind == FileType::Socket,
        EntryKind::Directory | EntryKind::HardLink { .. } => false,
    })
}

/// Whether an error is of one entry, or of the target as a whole.
pub(super) fn is_fatal(e: &io::Error) -> bool {
    let errno = e.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        errno,
        Some(
            Errno::NOSPC
                | Errno::DQUOT
                | Errno::ROFS
                | Errno::IO
                | Errno::NOTCONN
                | Errno::MFILE
                | Errno::NFILE
                | Errno::NOMEM
                | Errno::NODEV
                | Errno::STALE
        )
    )
}
