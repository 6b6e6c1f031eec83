//! Files that a daemon hands over, checked before they are read. The daemon may belong to another user than the one who
//! restores: root must not open for that user what they could not open themselves.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use rustix::process::geteuid;

/// Why something that was handed over is not read.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// The kernel failed.
    #[error("{0}")]
    Os(#[from] Errno),
    /// It is a link, a FIFO, a device, a directory…
    #[error("{0} is not a regular file")]
    NotRegular(&'static str),
    /// The blobs are in no directory.
    #[error("the blobs are not in a directory")]
    NotDirectory,
    /// A hard link to somebody else's file, or a directory of somebody else.
    #[error("{what} belongs to user {found}, not to user {owner} who runs the daemon")]
    Owner {
        /// What was found.
        what: &'static str,
        /// Its owner.
        found: u32,
        /// Who should own it.
        owner: u32,
    },
    /// A blob or the journal was cut.
    #[error("the spool has been cut: it holds less of it than the daemon says")]
    Short,
    /// Something is mounted on a blob.
    #[error("something is mounted over the blob in the spool")]
    MountedOver,
}

/// The owner that every blob must have. The directory of blobs has to belong to the user who runs the daemon. Only where
/// that is ourselves, it may differ: a server may map root to another user.
pub(super) fn owner_of_blobs(blobs: &OwnedFd, daemon: u32) -> Result<u32, Distrust> {
    let stat = fstat(blobs)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Distrust::NotDirectory);
    }
    if stat.st_uid != daemon && daemon != geteuid().as_raw() {
        return Err(Distrust::Owner { what: "the directory of the blobs", found: stat.st_uid, owner: daemon });
    }
    Ok(stat.st_uid)
}

/// A journal must be a file of `owner`.
pub(super) fn journal(file: OwnedFd, owner: u32) -> Result<File, Distrust> {
    regular("the journal", file, Some(owner))
}

/// An archive may belong to anybody: whoever handed it over was able to open it.
pub(super) fn archive(file: OwnedFd) -> Result<File, Distrust> {
    regular("the archive", file, None)
}

/// Opens a blob: a file of `owner` in this very directory. Nothing waits, whatever has that name.
pub(super) fn blob(blobs: &OwnedFd, number: u64, owner: u32) -> Result<File, Distrust> {
    const WHAT: &str = "the blob in the spool";
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    match openat2(blobs, number.to_string(), flags, Mode::empty(), resolve) {
        Ok(file) => regular(WHAT, file, Some(owner)),
        // A symbolic link; a socket, or a device without a driver.
        Err(Errno::LOOP | Errno::NXIO) => Err(Distrust::NotRegular(WHAT)),
        // Before Linux 5.6, or by a filter of system calls.
        Err(Errno::NOSYS) => regular(WHAT, openat(blobs, number.to_string(), flags, Mode::empty())?, Some(owner)),
        Err(Errno::XDEV) => Err(Distrust::MountedOver),
        Err(e) => Err(e.into()),
    }
}

fn regular(what: &'static str, file: OwnedFd, owner: Option<u32>) -> Result<File, Distrust> {
    let stat = fstat(file.as_fd())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Distrust::NotRegular(what));
    }
    match owner {
        Some(owner) if stat.st_uid != owner => Err(Distrust::Owner { what, found: stat.st_uid, owner }),
        _ => Ok(file.into()),
    }
}
