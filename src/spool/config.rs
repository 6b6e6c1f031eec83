//! What a spool is made with.

use std::path::PathBuf;

use crate::entry::Timestamp;

/// Where to spool, and how much.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The directory in which the spool's own directory is made.
    pub directory: PathBuf,
    /// The most that it may hold, in bytes.
    pub limit: Option<u64>,
    /// Whether it stays when the mount ends.
    pub keep: bool,
    /// What is spooled, for `spool.json`.
    pub source: String,
    /// Where it is mounted, for `spool.json`.
    pub mountpoint: PathBuf,
    /// Owner and group of directories that no header announces.
    pub owner: (u32, u32),
    /// Their time.
    pub made: Timestamp,
}
