//! What is to be walked, and what is found on the way.

use std::io;
use std::path::PathBuf;

use super::origin::Origin;
use crate::entry::{Entry, escape_path};
use crate::pattern;

/// What is sent, and what is left out of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory that paths are relative to, where it is not the current one.
    pub directory: Option<PathBuf>,
    /// Of another file system that is mounted in the tree, only the mount point is sent.
    pub one_file_system: bool,
    /// [Patterns](crate::pattern) of what is left out, matched with the paths as they are sent.
    pub exclude: Vec<String>,
    /// Of directories with a valid `CACHEDIR.TAG`, only that is sent, as with GNU tar's `--exclude-caches`.
    pub exclude_caches: bool,
    /// A file that is left out: the archive itself, by device and inode.
    pub archive: Option<(u64, u64)>,
    /// The name of a user.
    pub user_name: fn(u32) -> Option<Vec<u8>>,
    /// The name of a group.
    pub group_name: fn(u32) -> Option<Vec<u8>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            directory: None,
            one_file_system: false,
            exclude: Vec::new(),
            exclude_caches: false,
            archive: None,
            user_name: |_| None,
            group_name: |_| None,
        }
    }
}

/// What a [`Walk`](super::Walk) comes by.
#[derive(Debug)]
pub enum Step {
    /// Something to be sent.
    Entry {
        /// What it is. A further name of an inode is a hard link to the first name, without attributes of its own.
        entry: Box<Entry>,
        /// Where its contents are. Regular files have one, whatever their size, and nothing else has.
        contents: Option<Origin>,
    },
    /// Something, or an attribute of the entry before, could not be read, or is not what it was any more.
    Problem {
        /// Its path, as it would have been sent.
        path: Vec<u8>,
        /// What is the matter with it.
        reason: String,
    },
    /// Something is left out with reason: to be told, and no problem.
    Note {
        /// Its path, as it would have been sent.
        path: Vec<u8>,
        /// Why.
        message: String,
    },
}

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path that was asked for.
    #[error("cannot send '{}': {}", escape_path(.0), .1)]
    Path(PathBuf, io::Error),
    /// The directory that paths are relative to.
    #[error("cannot change to '{}': {}", escape_path(.0), .1)]
    Directory(PathBuf, io::Error),
    /// A pattern that cannot be understood.
    #[error(transparent)]
    Pattern(#[from] pattern::Error),
    /// Without it attributes cannot be read.
    #[error("/proc has to be mounted, to read extended attributes: {0}")]
    Proc(io::Error),
}
