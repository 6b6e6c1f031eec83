//! One mount from beginning to end: store, filesystem, and the thread that receives.
//!
//! [`Running::start`] returns when the mount answers. It stays until it is unmounted, by [`Handle::unmount`] or
//! from outside, whatever becomes of the stream.

mod clients;
mod error;
mod handle;
mod options;
mod point;
mod start;

use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use crate::mounts::Mounted;

pub use crate::fuse::Helper;
pub use crate::ingest::opening;
pub use crate::store::give_back::Following;
pub use crate::store::settle::Scrubbed;
pub use clients::{Client, Clients, Doing, Present};
pub use error::Error;
pub use handle::{HandOver, Handle, How, Leave};
pub use options::{Feed, Options};
pub use point::check_mountpoint;
pub use start::{Running, raise_open_files};

/// The path within the filesystem of a path on a command line: below the mount point, or relative to it. A bind mount
/// may show a part of the filesystem only.
pub fn path_below(mounted: &Mounted, path: &Path) -> Vec<u8> {
    let below = path.strip_prefix(&mounted.mountpoint).unwrap_or(path);
    let path = match mounted.root.strip_prefix("/") {
        Ok(root) if root != Path::new("") => root.join(below.strip_prefix("/").unwrap_or(below)),
        _ => below.into(),
    };
    path.into_os_string().into_vec()
}
