//! One entry to the disk: by one name in an open directory, never through a link, never half of it in the place of
//! something that was there.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Stat, makedev, mknodat, openat, renameat, renameat_with, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::copy;
use super::creator::Creator;
use super::early::Early;
use super::metadata::{Held, apply, disinherit};
use super::present::Taken;
use crate::entry::{Entry, EntryKind, Metadata, Segment, SparseMap};
use crate::index::Ino;
use crate::materialize::error::Failure;
use crate::materialize::options::Overwrite;
use crate::replay::Item;

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

impl Creator {
    /// Makes an entry.
    pub(super) fn create(&self, task: &Task) -> Result<(), Failure> {
        let (dir, name, entry) = (task.dir.as_fd(), &*task.name, &*task.item.entry);
        let made = match self.first(dir, name, task) {
            Err(e) if e.errno() == Some(Errno::EXIST) => {
                let there = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                match if task.replaces_ours {
                    Taken::Replace
                } else {
                    self.taken(dir, name, (task.ino, task.doubtful), &task.item, &there)?
                } {
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
    fn first(&self, dir: BorrowedFd<'_>, name: &CStr, task: &Task) -> Result<(), Failure> {
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

    /// Under a name that is not taken, with everything that belongs to it.
    fn make(&self, dir: BorrowedFd<'_>, name: &CStr, task: &Task) -> Result<(), Failure> {
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
                    .and_then(|()| if *inherits { Ok(disinherit(file.as_fd(), owners.group())?) } else { Ok(()) })
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
        make: impl FnOnce(&CStr) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
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

    fn fill(&self, file: &File, size: u64, sparse: Option<&SparseMap>, item: &Item) -> Result<(), Failure> {
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

/// Nobody but us until it has its owner.
fn first_mode(metadata: &Metadata) -> Mode {
    Mode::from_raw_mode((metadata.mode & 0o700).into())
}
