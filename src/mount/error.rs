//! Why a mount could not be made, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::entry::escape_path;

/// Why a mount could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no /proc, as in a chroot.
    #[error("cannot mount on '{}': /proc is not mounted (mount -t proc proc /proc)", escape_path(.0))]
    NoProc(PathBuf),
    /// There is no such directory.
    #[error("cannot mount on '{path}': {cause}", path = escape_path(.path))]
    Mountpoint {
        /// The mount point.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The mount point is no directory.
    #[error("cannot mount on '{path}': it is not a directory", path = escape_path(.0))]
    NotDirectory(PathBuf),
    /// Every other path would be hidden, and the mount could not be named to take it away.
    #[error("cannot mount on '/': everything else would be below it")]
    Root,
    /// Its spool would be hidden by the mount, and read through it.
    #[error(
        "cannot make a spool in '{spool}': '{mountpoint}' will be mounted over it (choose another place with \
         --spool DIR)",
        spool = escape_path(.spool),
        mountpoint = escape_path(.mountpoint)
    )]
    SpoolBelow {
        /// Where the spool was to be.
        spool: PathBuf,
        /// The mount point.
        mountpoint: PathBuf,
    },
    /// The spool could not be made.
    #[error(
        "cannot make a spool in '{path}': {cause} (choose another place with --spool DIR)",
        path = escape_path(.path)
    )]
    Spool {
        /// The directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The kernel or fusermount3 refused.
    #[error("cannot mount on '{path}': {cause}{hint}", path = escape_path(.path))]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        cause: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// Anything else.
    #[error("cannot begin: {0}")]
    Other(#[from] io::Error),
}

/// What to do about an error of mount(2) or fusermount3.
pub(super) fn hint(cause: &io::Error) -> &'static str {
    let text = cause.to_string();
    if !Path::new("/dev/fuse").exists() {
        " (there is no /dev/fuse: load the module with 'modprobe fuse'; in a container, pass --device /dev/fuse)"
    } else if text.contains("user_allow_other") {
        " (put 'user_allow_other' into /etc/fuse.conf, or leave --allow-other out)"
    } else if cause.raw_os_error() == Some(libc::EACCES) && !may_open_fuse() {
        " (only root may open /dev/fuse here: 'chmod 666 /dev/fuse' lets users in, as it is everywhere with udev)"
    } else if cause.kind() == io::ErrorKind::NotFound {
        " (an ordinary user needs fusermount3: install the package fuse3)"
    } else {
        ""
    }
}

fn may_open_fuse() -> bool {
    rustix::fs::access("/dev/fuse", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_ok()
}
