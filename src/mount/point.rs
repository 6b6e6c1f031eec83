//! Where it is mounted, and where its spool may be.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat};

use super::error::Error;

/// A mount point that can be mounted on: absolute, without symbolic links, a directory.
pub fn check_mountpoint(path: &Path) -> Result<PathBuf, Error> {
    open_mountpoint(path).map(|(_, path)| path)
}

/// The same, held open: what is mounted on is the directory that was checked.
pub(super) fn open_mountpoint(path: &Path) -> Result<(OwnedFd, PathBuf), Error> {
    let failed = |cause| Error::Mountpoint { path: path.into(), cause };
    let point = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|e| failed(e.into()))?;
    let kind = FileType::from_raw_mode(fstat(&point).map_err(|e| failed(e.into()))?.st_mode);
    let absolute = std::fs::read_link(format!("/proc/self/fd/{}", point.as_raw_fd())).map_err(|cause| {
        let is_missing = cause.kind() == io::ErrorKind::NotFound && !Path::new("/proc/self").exists();
        if is_missing { Error::NoProc(path.into()) } else { failed(cause) }
    })?;
    if absolute == Path::new("/") {
        return Err(Error::Root);
    }
    if kind == FileType::Directory { Ok((point, absolute)) } else { Err(Error::NotDirectory(path.into())) }
}

/// A directory in which a spool for this mount point can be made.
pub(super) fn check_spool(directory: &Path, mountpoint: &Path) -> Result<(), Error> {
    let spool = directory.canonicalize().map_err(|cause| Error::Spool { path: directory.into(), cause })?;
    if spool.starts_with(mountpoint) {
        return Err(Error::SpoolBelow { spool, mountpoint: mountpoint.into() });
    }
    Ok(())
}
