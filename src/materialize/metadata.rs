//! Owner, mode, extended attributes and times of what has been made, in the order that the kernel needs: a change of
//! owner drops setuid bits and capabilities, and everything changes the time.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, fremovexattr, fsetxattr, fstatvfs, futimens, openat, removexattr, setxattr, utimensat,
};
use rustix::io::Errno;

use super::report::Report;
use crate::entry::{ACL_ACCESS, ACL_DEFAULT, Metadata, Timestamp};

/// Bits that make a program run as somebody else.
const SET_ID: u16 = 0o6000;

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

    /// What has to be given to whom: none where it has the right owner by itself, or where we may not.
    fn change(&self, metadata: &Metadata) -> Option<(u32, u32)> {
        let wanted = self.of(metadata);
        (self.root && wanted != self.own).then_some(wanted)
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
) -> io::Result<()> {
    let give = if made_now { owners.change(metadata) } else { owners.root.then(|| owners.of(metadata)) };
    if let Some((uid, gid)) = give {
        fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    } else if owners.of(metadata) != owners.own {
        report.owner_left(path);
    }
    if !made_now || owners.needs_mode(metadata) {
        fchmod(fd, Mode::from_raw_mode(owners.mode(metadata).into()))?;
    }
    for (name, value) in metadata.xattrs.iter() {
        attribute(fd, name, path, report, |name| fsetxattr(fd, name, value, XattrFlags::empty()))?;
    }
    futimens(fd, &times(metadata))?;
    Ok(())
}

/// Everything, for what cannot be opened: a symbolic link, a device, a FIFO.
pub(super) fn apply_at(
    dir: BorrowedFd<'_>,
    name: &CStr,
    metadata: &Metadata,
    symlink: bool,
    owners: &Owners,
    path: &[u8],
    report: &Report,
) -> io::Result<()> {
    if owners.root {
        let (uid, gid) = owners.of(metadata);
        chownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)?;
    } else if owners.of(metadata) != owners.own {
        report.owner_left(path);
    }
    if !symlink || !metadata.xattrs.is_empty() {
        // The link in /proc leads to this very inode, whatever the name has become.
        let fd = openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        if !symlink {
            chmodat(CWD, &*link, Mode::from_raw_mode(owners.mode(metadata).into()), AtFlags::empty())?;
        }
        for (name, value) in metadata.xattrs.iter() {
            attribute(fd.as_fd(), name, path, report, |name| setxattr(&*link, name, value, XattrFlags::empty()))?;
        }
    }
    utimensat(dir, name, &times(metadata), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Takes away the ACLs that a directory has given to what was made in it.
pub(super) fn drop_acls(fd: BorrowedFd<'_>) -> io::Result<()> {
    for name in [ACL_ACCESS, ACL_DEFAULT] {
        dropped(fremovexattr(fd, name))?;
    }
    Ok(())
}

/// The same for what cannot be opened.
pub(super) fn drop_acl_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let fd = openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    dropped(removexattr(format!("/proc/self/fd/{}", fd.as_raw_fd()), ACL_ACCESS))
}

fn dropped(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// An attribute that the target or our rights do not take is named, and no reason to stop.
fn attribute(
    fd: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    report: &Report,
    set: impl FnOnce(&[u8]) -> rustix::io::Result<()>,
) -> io::Result<()> {
    match set(name) {
        Ok(()) => Ok(()),
        Err(e @ (Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL | Errno::TOOBIG | Errno::RANGE)) => {
            report.attribute_left(name, path, e);
            Ok(())
        }
        // More than a block of attributes does not fit into some file systems, and that is not a full disk.
        Err(e @ (Errno::NOSPC | Errno::DQUOT)) if !is_acl(name) && !is_full(fd) => {
            report.attribute_left(name, path, e);
            Ok(())
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

fn times(metadata: &Metadata) -> Timestamps {
    let spec = |time: Timestamp| Timespec { tv_sec: time.seconds(), tv_nsec: time.nanos().into() };
    let last_access = metadata.atime.map_or(Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, spec);
    Timestamps { last_access, last_modification: spec(metadata.mtime) }
}
