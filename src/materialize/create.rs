//! One entry to the disk: by one name in an open directory, never through a link, never half of it in the place of
//! something that was there.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, StatVfsMountFlags, fstatvfs, makedev, mknodat, openat,
    renameat, renameat_with, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::early::Early;
use super::metadata::{Held, Owners, apply, disinherit};
use super::report::Report;
use super::temporary::TemporaryNames;
use super::{Overwrite, copy};
use crate::entry::{Entry, EntryKind, EntryPath, Metadata, Segment, SparseMap};
use crate::index::{Ino, Kind};
use crate::replay::{Contents, Error as ReplayError, Item};

/// What all workers need.
pub(super) struct Creator {
    pub(super) contents: Contents,
    pub(super) owners: Owners,
    pub(super) overwrite: Overwrite,
    pub(super) report: Arc<Report>,
    pub(super) temporary: TemporaryNames,
    /// So many leading components of each path are left away.
    pub(super) strip: usize,
    /// The target, as soon as it is open.
    pub(super) root: OnceLock<Arc<OwnedFd>>,
    /// Nothing is made, not even to find out what the target takes.
    pub(super) looks_only: bool,
    /// Names that are not ours and stay: see [`Creator::key`].
    pub(super) kept: Mutex<HashSet<u64>>,
    /// Which entry a file was found to be, where it has several names, by device and number.
    pub(super) found: Mutex<HashMap<(u64, u64), Ino>>,
}

/// An entry to be made.
pub(super) struct Task {
    pub(super) ino: Ino,
    pub(super) dir: Arc<OwnedFd>,
    pub(super) name: CString,
    pub(super) item: Item,
    /// The directory gives its group or an ACL to what is made in it.
    pub(super) inherits: bool,
    /// What has the name now was made by us just before: it is replaced whatever was said of overwriting.
    pub(super) replaces_ours: bool,
    /// What has the name now may be an earlier version that looks the same.
    pub(super) doubtful: bool,
    /// What was copied of it while it arrived.
    pub(super) early: Option<Early>,
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
                match if task.replaces_ours { Taken::Replace } else { self.taken(dir, name, task, &there)? } {
                    Taken::Right => {
                        self.report.unchanged.fetch_add(1, Ordering::Relaxed);
                        self.report.done(entry.kind.stored_len());
                        return Ok(());
                    }
                    Taken::Keep => {
                        self.keep(&entry.path);
                        self.report.done(entry.kind.stored_len());
                        return Ok(());
                    }
                    Taken::Replace => self.replace(dir, name, &there, |new| self.make(dir, new, task)),
                }
            }
            made => made,
        };
        self.report.done(0);
        made?;
        self.is_ours(&entry.path);
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

    /// Stands for the place of a path in the target. None: it has none there.
    pub(super) fn key(&self, path: &EntryPath) -> Option<u64> {
        key_of(path.components().skip(self.strip))
    }

    /// Whether an error is of one entry, or of the target as a whole. What else is mounted in it may be read-only.
    pub(super) fn is_fatal(&self, e: &io::Error) -> bool {
        let read_only =
            |root: &Arc<OwnedFd>| fstatvfs(root).is_ok_and(|there| there.f_flag.contains(StatVfsMountFlags::RDONLY));
        match e.raw_os_error() {
            Some(libc::EROFS) => self.root.get().is_none_or(read_only),
            _ => is_fatal(e),
        }
    }

    pub(super) fn keep(&self, path: &EntryPath) {
        self.report.kept.fetch_add(1, Ordering::Relaxed);
        self.pass_over(path);
    }

    /// Nothing is made under this name: what may have it is not ours.
    pub(super) fn pass_over(&self, path: &EntryPath) {
        self.kept.lock().extend(self.key(path));
    }

    /// What had this name was kept, and has been replaced since by what is newer.
    pub(super) fn is_ours(&self, path: &EntryPath) {
        if self.overwrite == Overwrite::IfNewer
            && let Some(key) = self.key(path)
        {
            self.kept.lock().remove(&key);
        }
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
        let at = |kind, device| {
            let held = Held::made(dir, name, kind, device)?;
            if *inherits {
                held.disinherit(owners.group())?;
            }
            held.apply(metadata, owners, path.as_bytes(), report)
        };
        if let Some(early) = &task.early
            && early.make(self, dir, name, item)?
        {
            return Ok(());
        }
        let made = match kind {
            EntryKind::File { size, sparse } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                // What the directory gives, to a group or by an ACL, it gives to nobody before that is taken away.
                let mode = if *inherits { Mode::RUSR | Mode::WUSR } else { owners.first_mode(metadata) };
                let file = File::from(openat(dir, name, flags, mode)?);
                self.fill(&file, *size, sparse.as_deref(), item)
                    .and_then(|()| if *inherits { disinherit(file.as_fd(), owners.group()) } else { Ok(()) })
                    .and_then(|()| apply(file.as_fd(), metadata, owners, !inherits, path.as_bytes(), report))
            }
            EntryKind::Symlink { target } => {
                symlinkat(&**target, dir, name)?;
                at(FileType::Symlink, 0)
            }
            EntryKind::CharDevice { device } | EntryKind::BlockDevice { device } => {
                let kind = match kind {
                    EntryKind::CharDevice { .. } => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                let device = makedev(device.major, device.minor);
                mknodat(dir, name, kind, first_mode(metadata), device)?;
                at(kind, device)
            }
            EntryKind::Fifo | EntryKind::Socket => {
                let kind = if *kind == EntryKind::Fifo { FileType::Fifo } else { FileType::Socket };
                mknodat(dir, name, kind, first_mode(metadata), 0)?;
                at(kind, 0)
            }
            // Made elsewhere.
            EntryKind::Directory | EntryKind::HardLink { .. } => return Ok(()),
        };
        if made.is_err() {
            // What is not whole does not stay, under a name of the archive least of all.
            let _ = unlinkat(dir, name, AtFlags::empty());
        }
        made
    }

    /// Beside what is there, then over it.
    pub(super) fn replace(
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
        Ok(match self.looks(dir, name, entry, &there)? {
            Taken::Right => Action::Leave,
            Taken::Keep => Action::Keep,
            Taken::Replace => Action::Replace,
        })
    }

    /// What to do about `there`, which has the name of `entry`, as far as can be told by looking at it.
    fn looks(&self, dir: BorrowedFd<'_>, name: &CStr, entry: &Entry, there: &Stat) -> io::Result<Taken> {
        let mtime = entry.metadata.mtime;
        let (ours, theirs) = ((mtime.seconds(), i64::from(mtime.nanos())), time_of(there));
        Ok(match self.overwrite {
            Overwrite::Never => Taken::Keep,
            Overwrite::Always => Taken::Replace,
            Overwrite::IfNewer if ours <= theirs || self.is_kept_as(dir, mtime, there) => Taken::Keep,
            Overwrite::IfNewer => Taken::Replace,
            // The time is set last: what has it has everything else.
            Overwrite::IfChanged
                if same(dir, name, entry, there)? && (ours == theirs || self.is_kept_as(dir, mtime, there)) =>
            {
                // With more than one name it may be somebody else's too, and is not ours to change.
                if there.st_nlink > 1 && self.differs(entry, there) { Taken::Replace } else { Taken::Right }
            }
            Overwrite::IfChanged => Taken::Replace,
        })
    }

    /// The same for what is to be made; what is otherwise right is mended.
    fn taken(&self, dir: BorrowedFd<'_>, name: &CStr, task: &Task, there: &Stat) -> io::Result<Taken> {
        let entry = &*task.item.entry;
        Ok(match self.looks(dir, name, entry, there)? {
            Taken::Right if task.doubtful && !self.holds(dir, name, &task.item)? => Taken::Replace,
            // Two entries that look the same are two files.
            Taken::Right if there.st_nlink > 1 && !self.is_alone(task.ino, there) => Taken::Replace,
            Taken::Right if !self.mend(dir, name, entry, there)? => Taken::Replace,
            taken => taken,
        })
    }

    /// Whether no other entry than this has been found to be `there`.
    fn is_alone(&self, ino: Ino, there: &Stat) -> bool {
        *self.found.lock().entry((there.st_dev, there.st_ino)).or_insert(ino) == ino
    }

    /// Whether what belongs to the kind of an entry is as it was packed: contents, the target of a link, a device number.
    pub(super) fn holds(&self, dir: BorrowedFd<'_>, name: &CStr, item: &Item) -> io::Result<bool> {
        match &item.entry.kind {
            EntryKind::File { size, sparse } => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = File::from(openat(dir, name, flags, Mode::empty())?);
                copy::are_in(&self.contents, &file, &item.place, sparse.as_deref(), *size)
            }
            _ => same(dir, name, &item.entry, &statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?),
        }
    }

    /// Whether the owner or the mode of `there` is not that of `entry`.
    fn differs(&self, entry: &Entry, there: &Stat) -> bool {
        let metadata = &entry.metadata;
        let symlink = matches!(entry.kind, EntryKind::Symlink { .. });
        self.owners.root && (there.st_uid, there.st_gid) != self.owners.of(metadata)
            || !symlink && there.st_mode & 0o7777 != u32::from(self.owners.mode(metadata))
    }

    /// Owner, mode and attributes of what is otherwise right. False: it has other names too, perhaps elsewhere, so
    /// another has to take its place. What the target does not take is reported each time.
    fn mend(&self, dir: BorrowedFd<'_>, name: &CStr, entry: &Entry, there: &Stat) -> io::Result<bool> {
        let (metadata, path, report) = (&entry.metadata, entry.path.as_bytes(), &*self.report);
        let differs = self.differs(entry, there);
        if differs || !metadata.xattrs.is_empty() {
            let held = Held::found(dir, name, there)?;
            let lacking: Vec<_> = metadata.xattrs.iter().filter(|(name, value)| !held.has(name, value)).collect();
            if there.st_nlink <= 1 && (differs || !lacking.is_empty()) {
                held.apply(metadata, &self.owners, path, report)?;
                return Ok(true);
            }
            if !lacking.is_empty() && self.can_have(dir, there, &lacking, path)? {
                return Ok(false);
            }
        }
        self.owners.tell(metadata, path, report);
        Ok(true)
    }

    /// Whether something like `there` could have one of these attributes. Where not, they are reported: nothing would be
    /// won by making it again.
    fn can_have(&self, dir: BorrowedFd<'_>, there: &Stat, lacking: &[(&[u8], &[u8])], path: &[u8]) -> io::Result<bool> {
        let kind = FileType::from_raw_mode(there.st_mode);
        let temporary = self.temporary.next();
        match kind {
            FileType::Symlink => symlinkat(".", dir, &*temporary)?,
            _ => mknodat(dir, &*temporary, kind, Mode::RUSR | Mode::WUSR, there.st_rdev)?,
        }
        let nobody = Report::default();
        let taken = Held::made(dir, &temporary, kind, there.st_rdev).and_then(|probe| {
            for report in [&nobody, &*self.report] {
                for (name, value) in lacking {
                    if probe.set(name, value, path, report)? {
                        return Ok(true);
                    }
                }
            }
            Ok(false)
        });
        unlinkat(dir, &*temporary, AtFlags::empty())?;
        taken
    }

    fn fill(&self, file: &File, size: u64, sparse: Option<&SparseMap>, item: &Item) -> io::Result<()> {
        let stored = item.entry.kind.stored_len();
        match &item.bytes {
            Some(bytes) => {
                let whole = [Segment { offset: 0, len: stored }];
                let mut rest = bytes.get();
                for segment in sparse.map_or(&whole[..], SparseMap::segments) {
                    let (piece, after) = rest.split_at(segment.len as usize);
                    file.write_all_at(piece, segment.offset)?;
                    rest = after;
                }
                self.report.wrote(stored);
            }
            None => copy::copy(&self.contents, &item.place, sparse, stored, file, &|n| self.report.wrote(n))?,
        }
        if size > 0 {
            self.contents.check()?;
        }
        if sparse.is_some() {
            file.set_len(size)?;
        }
        Ok(())
    }
}

/// Stands for the place of a path, by its components.
fn key_of<'a>(components: impl Iterator<Item = &'a [u8]>) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    let mut components = components.peekable();
    components.peek()?;
    components.for_each(|component| component.hash(&mut hasher));
    Some(hasher.finish())
}

/// A kind, as the kernel says it.
pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    }
}

/// The time of last modification.
pub(super) fn time_of(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or_default())
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

/// Whether an error is of more than one entry.
fn is_fatal(e: &io::Error) -> bool {
    if e.get_ref().is_some_and(|e| matches!(e.downcast_ref(), Some(ReplayError::Changed))) {
        return true;
    }
    let errno = e.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        errno,
        Some(
            Errno::NOSPC
                | Errno::DQUOT
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
