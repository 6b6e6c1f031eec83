//! What is in the target already, and what becomes of it: looked at, compared with an entry, mended.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, makedev, mknodat, openat, statat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::copy;
use super::creator::Creator;
use super::metadata::{Held, time_of};
use crate::entry::{Entry, EntryKind, Timestamp};
use crate::index::Ino;
use crate::materialize::error::Failure;
use crate::materialize::options::Overwrite;
use crate::materialize::plan::{Action, Look};
use crate::materialize::report::Report;
use crate::replay::Item;

/// What to do about a name that is taken.
pub(super) enum Taken {
    /// It is right already.
    Right,
    /// It stays, by what was said of overwriting.
    Keep,
    Replace,
}

impl Look for Creator {
    fn would(&self, dir: Option<BorrowedFd<'_>>, name: &CStr, entry: &Entry) -> Result<Action, Failure> {
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

    fn keeps(&self, mtime: Timestamp, there: &Stat) -> bool {
        match self.overwrite {
            Overwrite::Never => true,
            Overwrite::IfNewer => (mtime.seconds(), i64::from(mtime.nanos())) <= time_of(there),
            Overwrite::IfChanged | Overwrite::Always => false,
        }
    }
}

impl Creator {
    /// What to do about `there`, which has the name of `entry`, as far as can be told by looking at it.
    fn looks(&self, dir: BorrowedFd<'_>, name: &CStr, entry: &Entry, there: &Stat) -> Result<Taken, Failure> {
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

    /// The same for what is to be made; what is otherwise right is mended. Of a doubtful one, what has the name may be an
    /// earlier version that looks the same.
    pub(super) fn taken(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        (ino, doubtful): (Ino, bool),
        item: &Item,
        there: &Stat,
    ) -> Result<Taken, Failure> {
        let entry = &*item.entry;
        Ok(match self.looks(dir, name, entry, there)? {
            Taken::Right if doubtful && !self.holds(dir, name, item)? => Taken::Replace,
            // Two entries that look the same are two files.
            Taken::Right if there.st_nlink > 1 && !self.is_alone(ino, there) => Taken::Replace,
            Taken::Right if !self.mend(dir, name, entry, there)? => Taken::Replace,
            taken => taken,
        })
    }

    /// Whether no other entry than this has been found to be `there`.
    fn is_alone(&self, ino: Ino, there: &Stat) -> bool {
        *self.found.lock().entry((there.st_dev, there.st_ino)).or_insert(ino) == ino
    }

    /// Whether what belongs to the kind of an entry is as it was packed: contents, the target of a link, a device number.
    pub(super) fn holds(&self, dir: BorrowedFd<'_>, name: &CStr, item: &Item) -> Result<bool, Failure> {
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
    fn mend(&self, dir: BorrowedFd<'_>, name: &CStr, entry: &Entry, there: &Stat) -> Result<bool, Failure> {
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
    fn can_have(
        &self,
        dir: BorrowedFd<'_>,
        there: &Stat,
        lacking: &[(&[u8], &[u8])],
        path: &[u8],
    ) -> Result<bool, Failure> {
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
}

/// Whether what is there is the same kind of thing with the same contents, as far as `stat` tells.
fn same(dir: BorrowedFd<'_>, name: &CStr, entry: &Entry, there: &Stat) -> Result<bool, Failure> {
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
