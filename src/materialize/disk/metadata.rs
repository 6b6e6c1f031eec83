//! Owner, mode, extended attributes and times of what has been made, in the order that the kernel needs: a change of
//! owner drops setuid bits and capabilities, and everything changes the time.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat,
    chownat, fchmod, fchown, fremovexattr, fsetxattr, fstat, fstatvfs, futimens, getxattr, linkat, listxattr, openat,
    removexattr, setxattr, utimensat,
};
use rustix::io::Errno;

use crate::entry::{ACL_ACCESS, ACL_DEFAULT, Metadata, SET_ID, Timestamp, Xattrs};
use crate::index::Kind;
use crate::materialize::error::Failure;
use crate::materialize::report::Report;

/// An ACL of owner, group and others alone.
const MINIMAL_ACL: usize = 4 + 3 * 8;

/// The kernel lists no more.
const XATTR_LIST_MAX: usize = 64 << 10;

const CAPABILITY: &[u8] = b"security.capability";

/// Whose files are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owners {
    /// Ours, which what we make has by itself.
    pub(super) own: (u32, u32),
    /// Whether we may give files away.
    pub(super) root: bool,
    /// Whether names, where this machine knows them, count before numbers.
    pub(super) by_name: Option<Names>,
}

/// The numbers of a user and of a group, by their names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub(super) user: fn(&[u8]) -> Option<u32>,
    pub(super) group: fn(&[u8]) -> Option<u32>,
}

impl Owners {
    /// Whose an entry shall be.
    pub(super) fn of(&self, metadata: &Metadata) -> (u32, u32) {
        let named = |name: &Option<std::sync::Arc<[u8]>>, find: fn(&[u8]) -> Option<u32>| {
            name.as_deref().filter(|name| !name.is_empty()).and_then(find)
        };
        let by_name =
            self.by_name.map(|names| (named(&metadata.user, names.user), named(&metadata.group, names.group)));
        let (user, group) = by_name.unwrap_or_default();
        (user.unwrap_or(metadata.uid), group.unwrap_or(metadata.gid))
    }

    /// The group of what we make by ourselves.
    pub(super) fn group(&self) -> Gid {
        Gid::from_raw(self.own.1)
    }

    /// What has to be given to whom: none where it has the right owner by itself, or where we may not.
    fn change(&self, metadata: &Metadata) -> Option<(u32, u32)> {
        let wanted = self.of(metadata);
        (self.root && wanted != self.own).then_some(wanted)
    }

    /// Reports what belongs to us instead of its owner.
    pub(super) fn tell(&self, metadata: &Metadata, path: &[u8], report: &Report) {
        if !self.root && self.of(metadata) != self.own {
            report.owner_left(path);
        }
    }

    /// The mode that an entry gets: programs of others do not become ours.
    pub(super) fn mode(&self, metadata: &Metadata) -> u16 {
        if self.root || self.of(metadata) == self.own { metadata.mode } else { metadata.mode & !SET_ID }
    }

    /// The mode to make a file with, such that nobody sees more of it than in the end.
    pub(super) fn first_mode(&self, metadata: &Metadata) -> Mode {
        if self.needs_mode(metadata) {
            Mode::from_raw_mode(0o600)
        } else {
            Mode::from_raw_mode(self.mode(metadata).into())
        }
    }

    fn needs_mode(&self, metadata: &Metadata) -> bool {
        self.change(metadata).is_some() || metadata.mode & SET_ID != 0 || !metadata.xattrs.is_empty()
    }
}

/// Everything, for a file or a directory that is open. `made_now`: it was made with [`Owners::first_mode`].
pub(super) fn apply(
    fd: BorrowedFd<'_>,
    metadata: &Metadata,
    owners: &Owners,
    made_now: bool,
    path: &[u8],
    report: &Report,
) -> Result<(), Failure> {
    let give = if made_now { owners.change(metadata) } else { owners.root.then(|| owners.of(metadata)) };
    if let Some((uid, gid)) = give {
        fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    owners.tell(metadata, path, report);
    let set = |acls| {
        for (name, value) in metadata.xattrs.iter().filter(|(name, _)| is_acl(name) == acls) {
            attribute(fd, name, path, report, |name| fsetxattr(fd, name, value, XattrFlags::empty()))?;
        }
        Ok::<_, Failure>(())
    };
    // Of what only its owner may write, an ordinary user gives attributes only to what he may write himself.
    set(false)?;
    if !made_now || owners.needs_mode(metadata) {
        fchmod(fd, Mode::from_raw_mode(owners.mode(metadata).into()))?;
    }
    // They change the mode, and what changes the mode changes them.
    set(true)?;
    futimens(fd, &times(metadata))?;
    Ok(())
}

/// What has been made, or was found, held whatever becomes of its name meanwhile: a symbolic link, a device, a FIFO,
/// which cannot be opened to be read, or a file that need not be.
pub(super) struct Held {
    fd: OwnedFd,
    /// Leads to this very inode, for the calls that take no descriptor of this kind.
    link: String,
    pub(super) stat: Stat,
}

impl Held {
    pub(super) fn open(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Self> {
        let fd = openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&fd)?;
        Ok(Held { link: format!("/proc/self/fd/{}", fd.as_raw_fd()), fd, stat })
    }

    /// What we have just made under this name: of this kind, and nowhere else. Whoever may write into the directory can
    /// have put something else there, a second name of what lies outside above all.
    pub(super) fn made(dir: BorrowedFd<'_>, name: &CStr, kind: FileType, device: u64) -> Result<Self, Failure> {
        let held = Held::open(dir, name)?;
        let Stat { st_mode, st_rdev, st_nlink, .. } = held.stat;
        if FileType::from_raw_mode(st_mode) != kind || st_rdev != device || st_nlink > 1 {
            return Err(Failure::ChangedHands);
        }
        Ok(held)
    }

    /// What was found under this name.
    pub(super) fn found(dir: BorrowedFd<'_>, name: &CStr, there: &Stat) -> Result<Self, Failure> {
        let held = Held::open(dir, name)?;
        let which = |stat: &Stat| (stat.st_dev, stat.st_ino, stat.st_nlink);
        if which(&held.stat) == which(there) { Ok(held) } else { Err(Failure::ChangedHands) }
    }

    /// Everything.
    pub(super) fn apply(
        &self,
        metadata: &Metadata,
        owners: &Owners,
        path: &[u8],
        report: &Report,
    ) -> Result<(), Failure> {
        let (uid, gid) = owners.of(metadata);
        if owners.root && ((self.stat.st_uid, self.stat.st_gid) != (uid, gid) || self.stat.st_gid != owners.own.1) {
            chownat(&self.fd, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
        }
        owners.tell(metadata, path, report);
        let is_symlink = FileType::from_raw_mode(self.stat.st_mode) == FileType::Symlink;
        let set_mode = |mode| {
            if is_symlink { Ok(()) } else { chmodat(CWD, &*self.link, mode, AtFlags::empty()) }
        };
        let set = |acls| {
            for (name, value) in metadata.xattrs.iter().filter(|(name, _)| is_acl(name) == acls) {
                self.set(name, value, path, report)?;
            }
            Ok::<_, Failure>(())
        };
        let writable = self.stat.st_mode & Mode::WUSR.as_raw_mode() != 0;
        if !owners.root && !writable && !metadata.xattrs.is_empty() {
            set_mode(Mode::RUSR | Mode::WUSR)?;
        }
        set(false)?;
        set_mode(Mode::from_raw_mode(owners.mode(metadata).into()))?;
        set(true)?;
        let times = times(metadata);
        match utimensat(&self.fd, "", &times, AtFlags::EMPTY_PATH) {
            // Before Linux 5.8 it takes no descriptor of this kind.
            Err(Errno::INVAL | Errno::NOENT) => utimensat(CWD, &*self.link, &times, AtFlags::empty())?,
            set => set?,
        }
        Ok(())
    }

    /// Whether an attribute is there as it was packed.
    pub(super) fn has(&self, name: &[u8], value: &[u8]) -> bool {
        let mut there = vec![0; value.len() + 1];
        match getxattr(&*self.link, name, &mut there[..]) {
            Ok(n) => there[..n] == *value,
            // An ACL that says no more than the mode does is not kept.
            Err(Errno::NODATA) => is_acl(name) && value.len() <= MINIMAL_ACL,
            Err(_) => false,
        }
    }

    /// Whether it has an attribute, or an ACL, that was not packed. What the system gives by itself is none of ours.
    pub(super) fn has_others(&self, xattrs: &Xattrs) -> bool {
        let mut names = vec![0; XATTR_LIST_MAX];
        let Ok(n) = listxattr(&*self.link, &mut names[..]) else { return false };
        names[..n].split(|&b| b == 0).any(|name| {
            let counts = is_acl(name) || name == CAPABILITY || name.starts_with(b"user.");
            counts && xattrs.iter().all(|(packed, _)| packed != name)
        })
    }

    /// Sets an attribute. Whether the target has taken it; where not, that is reported.
    pub(super) fn set(&self, name: &[u8], value: &[u8], path: &[u8], report: &Report) -> Result<bool, Failure> {
        attribute(self.fd.as_fd(), name, path, report, |name| setxattr(&*self.link, name, value, XattrFlags::empty()))
    }

    /// Takes away the ACL and the group that a directory has given to what was made in it.
    pub(super) fn disinherit(&self, group: Gid) -> rustix::io::Result<()> {
        chownat(&self.fd, "", None, Some(group), AtFlags::EMPTY_PATH)?;
        if FileType::from_raw_mode(self.stat.st_mode) == FileType::Symlink {
            return Ok(());
        }
        dropped(removexattr(&*self.link, ACL_ACCESS))
    }

    /// One more name for it.
    pub(super) fn link(&self, dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        match linkat(&self.fd, "", dir, name, AtFlags::EMPTY_PATH) {
            // Without the right to do so by descriptor.
            Err(Errno::NOENT) => linkat(CWD, &*self.link, dir, name, AtFlags::SYMLINK_FOLLOW),
            linked => linked,
        }
    }
}

/// Takes away the ACLs and the group that a directory has given to what was made in it.
pub(super) fn disinherit(fd: BorrowedFd<'_>, group: Gid) -> rustix::io::Result<()> {
    fchown(fd, None, Some(group))?;
    for name in [ACL_ACCESS, ACL_DEFAULT] {
        dropped(fremovexattr(fd, name))?;
    }
    Ok(())
}

fn dropped(removed: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match removed {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(e),
    }
}

/// An attribute that the target or our rights do not take is named, and no reason to stop. Whether it was taken.
fn attribute(
    fd: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    report: &Report,
    set: impl FnOnce(&[u8]) -> rustix::io::Result<()>,
) -> Result<bool, Failure> {
    match set(name) {
        Ok(()) => Ok(true),
        Err(e @ (Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL | Errno::TOOBIG | Errno::RANGE)) => {
            report.attribute_left(name, path, e);
            Ok(false)
        }
        // More than a block of attributes does not fit into some file systems, and that is not a full disk.
        Err(e @ (Errno::NOSPC | Errno::DQUOT)) if !is_acl(name) && !is_full(fd) => {
            report.attribute_left(name, path, e);
            Ok(false)
        }
        Err(e) => Err(e.into()),
    }
}

fn is_acl(name: &[u8]) -> bool {
    name == ACL_ACCESS || name == ACL_DEFAULT
}

fn is_full(fd: BorrowedFd<'_>) -> bool {
    fstatvfs(fd).is_ok_and(|room| room.f_bfree == 0 || (room.f_files > 0 && room.f_ffree == 0))
}

pub(super) fn times(metadata: &Metadata) -> Timestamps {
    let spec = |time: Timestamp| Timespec { tv_sec: time.seconds(), tv_nsec: time.nanos().into() };
    let last_access = metadata.atime.map_or(Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, spec);
    Timestamps { last_access, last_modification: spec(metadata.mtime) }
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
