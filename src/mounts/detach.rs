//! Taking a mount away: the one that is meant, whatever has its path by now.
//!
//! A path is looked up again by each call that takes one, and a rename of a directory above it changes what it leads to. So the root of the mount is opened first, compared with the number that the kernel gave the mount, and
//! unmounted through that descriptor.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat, openat2, statx};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsmount, fsopen};

use super::mounted::Mounted;
use super::table::of;

/// Why a mount is not taken away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its path leads to another mount, or to none.
    #[error("something else is at its path: it is mounted over, or a directory above it was renamed")]
    Hidden,
    /// The list of mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    List(#[source] io::Error),
    /// The kernel refused.
    #[error("{}", io::Error::from(*.0))]
    Os(#[from] Errno),
    /// An ordinary user needs it, and it cannot be run.
    #[error("cannot run fusermount3: {0} (it is in the package fuse3)")]
    NoHelper(#[source] io::Error),
    /// The helper refused.
    #[error("{0}")]
    Helper(String),
}

/// A mount that is held open at its place. As long as it is, its device number is given to no other.
#[derive(Debug)]
pub struct Attached {
    parent: OwnedFd,
    name: OsString,
    root: OwnedFd,
}

impl Mounted {
    /// Opens the root of this very mount. Its daemon is not asked for anything.
    pub fn open(&self) -> Result<Attached, Error> {
        let (parent, name) = self.mountpoint.parent().zip(self.mountpoint.file_name()).ok_or(Error::Hidden)?;
        // The kernel tells a path without links in it. Where there is one by now, it is another path.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let parent = match openat2(CWD, parent, flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS) => rustix::fs::open(parent, flags, Mode::empty()),
            opened => opened,
        };
        let gone = |e| if matches!(e, Errno::LOOP | Errno::NOENT | Errno::NOTDIR) { Error::Hidden } else { e.into() };
        let parent = parent.map_err(gone)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = openat(&parent, name, flags, Mode::empty()).map_err(gone)?;
        if !self.is_root(root.as_fd())? {
            return Err(Error::Hidden);
        }
        Ok(Attached { parent, name: name.into(), root })
    }

    fn is_root(&self, root: BorrowedFd<'_>) -> Result<bool, Errno> {
        // With no more asked for than this, nobody but the kernel answers, and it does so for other users' mounts too.
        let found = statx(root, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
        // Before Linux 5.8 it does not tell the number of the mount.
        let is_same = found.stx_mask & StatxFlags::MNT_ID.bits() == 0 || found.stx_mnt_id == self.id;
        Ok(is_same && self.device == format!("{}:{}", found.stx_dev_major, found.stx_dev_minor))
    }
}

impl Attached {
    /// Takes it away, also while it is in use; what is open can be read on.
    pub fn detach(&self) -> Result<(), Error> {
        self.unmount(UnmountFlags::DETACH)
    }

    /// The same, and as root ends its connection too: every request that waits for the daemon ends, wherever else
    /// the file system is mounted.
    pub fn abort(&self) -> Result<(), Error> {
        self.unmount(UnmountFlags::DETACH | UnmountFlags::FORCE)
    }

    fn unmount(&self, flags: UnmountFlags) -> Result<(), Error> {
        // Without UMOUNT_NOFOLLOW: that would refuse this link, which leads to the open root and nowhere else.
        match rustix::mount::unmount(format!("/proc/self/fd/{}", self.root.as_raw_fd()), flags) {
            Err(Errno::PERM) => self.unmount_by_helper(),
            done => Ok(done?),
        }
    }

    /// fusermount3 takes a path only, and takes away nothing but FUSE mounts of the user who runs it. It is run in the
    /// directory that is open, so that the last name is all that can come to mean something else.
    fn unmount_by_helper(&self) -> Result<(), Error> {
        let output = Command::new("fusermount3")
            .args(["-u", "-z", "--"])
            .arg(Path::new(".").join(&self.name))
            .current_dir(format!("/proc/self/fd/{}", self.parent.as_raw_fd()))
            .output()
            .map_err(Error::NoHelper)?;
        if output.status.success() {
            Ok(())
        } else {
            Err(Error::Helper(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
    }
}

/// Takes away all mounts of a device that can be seen from here, the last one first. False: there is none.
pub fn detach_all(device: &str) -> Result<bool, Error> {
    let mut tried = HashSet::new();
    let mut failed = None;
    // One that goes takes its copies with it, and others unmount too: what was listed before may be gone.
    while let Some(mounted) =
        of(device).map_err(Error::List)?.into_iter().rev().find(|mounted| !tried.contains(&mounted.id))
    {
        tried.insert(mounted.id);
        let done = mounted.open().and_then(|attached| attached.detach());
        failed = failed.or(done.err().filter(|_| !mounted.is_gone()));
    }
    failed.map_or(Ok(!tried.is_empty()), Err)
}

/// Aborts the FUSE connection of a device, in the file system that the kernel has for it. It is the user's whose mount it
/// is; root need not have it mounted anywhere. The mounts stay, and nobody is served by them any more.
pub fn abort(device: &str) -> io::Result<()> {
    let connection = device.rsplit(':').next().unwrap_or_default();
    let path = format!("{connection}/abort");
    match std::fs::write(Path::new("/sys/fs/fuse/connections").join(&path), "1") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let control = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_create(&control)?;
            let control = fsmount(&control, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
            match openat(control, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
                // It has ended already.
                Err(Errno::NOENT) => Ok(()),
                file => Ok(rustix::io::write(file?, b"1").map(drop)?),
            }
        }
        written => written,
    }
}
