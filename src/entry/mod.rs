//! The vocabulary: what an entry is, whatever it came from and wherever it goes.
//!
//! Everything here is parsed, not validated: an [`EntryPath`] cannot hold `..`, a [`SparseMap`] cannot
//! overlap itself. Nothing here does I/O or knows a format.

pub mod check;
mod path;
mod sparse;
mod time;
mod xattr;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use path::{EntryPath, MAX_COMPONENTS, MAX_NAME, PathError, clipped, escape, escape_path, printable, shortened};
pub use sparse::{MAX_SEGMENTS, Segment, SparseError, SparseMap};
pub use time::Timestamp;
pub use xattr::{
    ACL_ACCESS, ACL_DEFAULT, Acl, AclError, MAX_XATTR_NAMES, MAX_XATTR_TOTAL, MAX_XATTR_VALUE, XattrError, Xattrs,
};

/// One file, directory, link or node of the tree, as it was packed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it stands, relative to the root of the archive. The empty path is the root itself.
    pub path: EntryPath,
    /// What it is.
    pub kind: EntryKind,
    /// Owner, mode, times, extended attributes.
    pub metadata: Metadata,
}

/// What an entry is, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Its length as `stat` tells it, holes included.
        size: u64,
        /// Where its data lies, when it has holes. The stored bytes are the segments, one after the other.
        sparse: Option<Arc<SparseMap>>,
    },
    /// A directory.
    Directory,
    /// A symbolic link; the target is data, and never followed by us.
    Symlink {
        /// Byte for byte as packed; never empty, never over 4095 bytes, no NUL.
        #[serde(with = "serde_bytes")]
        target: Box<[u8]>,
    },
    /// Another name for the inode that `target` names.
    HardLink {
        /// The name it is linked to.
        target: EntryPath,
    },
    /// A character device.
    CharDevice {
        /// Its number.
        device: Device,
    },
    /// A block device.
    BlockDevice {
        /// Its number.
        device: Device,
    },
    /// A named pipe.
    Fifo,
    /// A Unix socket (tar has none; the native sender does).
    Socket,
}

impl EntryKind {
    /// Bytes of payload that belong to the entry: the size, or the sum of the segments of a sparse file.
    pub fn stored_len(&self) -> u64 {
        match self {
            EntryKind::File { sparse: Some(map), .. } => map.stored_len(),
            EntryKind::File { size, sparse: None } => *size,
            _ => 0,
        }
    }
}

/// Linux takes no longer target: PATH_MAX without the NUL.
pub const MAX_TARGET: usize = 4095;

/// Who owns what no number can name: `nobody`. (`chown` takes u32::MAX for "leave it".)
pub const NOBODY: u32 = 65534;

/// Bits that make a program run as somebody else.
pub const SET_ID: u16 = 0o6000;

/// Why bytes are no target of a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// There is nothing in it.
    #[error("it is a symbolic link to nothing")]
    Empty,
    /// Over [`MAX_TARGET`].
    #[error("its link target is over {MAX_TARGET} bytes long")]
    TooLong,
    /// It holds a NUL byte.
    #[error("its link target has a NUL byte")]
    Nul,
}

/// Whether a symbolic link can have this target. Wherever it leads: it is not followed.
pub fn check_target(target: &[u8]) -> Result<(), TargetError> {
    if target.is_empty() {
        Err(TargetError::Empty)
    } else if target.len() > MAX_TARGET {
        Err(TargetError::TooLong)
    } else if target.contains(&0) {
        Err(TargetError::Nul)
    } else {
        Ok(())
    }
}

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The driver; at most 12 bits reach the kernel.
    pub major: u32,
    /// The unit; at most 20 bits reach the kernel.
    pub minor: u32,
}

/// What `stat` and `listxattr` tell, beyond kind and size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky: at most `0o7777`.
    pub mode: u16,
    /// Owner; never `u32::MAX`, which `chown` ignores.
    pub uid: u32,
    /// Group; never `u32::MAX`.
    pub gid: u32,
    /// Owner's name where the source gives one; for restoring by name.
    pub user: Option<Arc<[u8]>>,
    /// Group's name where the source gives one.
    pub group: Option<Arc<[u8]>>,
    /// Last modification.
    pub mtime: Timestamp,
    /// Last access, where the source gives one.
    pub atime: Option<Timestamp>,
    /// Extended attributes as the kernel takes them, POSIX ACLs included, in binary.
    pub xattrs: Xattrs,
}

impl Default for Metadata {
    fn default() -> Self {
        Metadata {
            mode: 0o755,
            uid: 0,
            gid: 0,
            user: None,
            group: None,
            mtime: Timestamp::default(),
            atime: None,
            xattrs: Xattrs::default(),
        }
    }
}
