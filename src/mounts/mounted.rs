//! What the kernel tells of one mount.

use std::path::PathBuf;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The number that the kernel gave this mount: a bind mount of the same device has another.
    pub id: u64,
    /// Its device number, as `MAJOR:MINOR`.
    pub device: String,
    /// The directory of the filesystem that it shows: `/`, except in a bind mount of a part.
    pub root: PathBuf,
    /// Where it is.
    pub mountpoint: PathBuf,
    /// What is mounted.
    pub source: String,
    /// Whose it is.
    pub uid: u32,
}
