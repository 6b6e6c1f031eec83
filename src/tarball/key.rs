//! The keys of pax records: what each means, and how much of its value is held.

use crate::entry::{MAX_SEGMENTS, MAX_XATTR_VALUE};

/// A path or link target may have this many bytes: sixteen times PATH_MAX.
pub(super) const MAX_PATH: usize = 64 << 10;

/// ACL texts name users; a kernel ACL is at most one xattr, and a line of text per 8 bytes of it.
pub(super) const MAX_ACL: usize = MAX_XATTR_VALUE * 8;

/// Any other value: numbers, times, names of owners.
const MAX_VALUE: usize = 4 << 10;

/// The longest text that [`MAX_SEGMENTS`] segments can make: two numbers of 20 digits, two commas.
const MAX_MAP: usize = MAX_SEGMENTS * 42;

/// What a key means.
#[derive(Clone, Debug)]
pub(super) enum Key {
    Path,
    Link,
    Size,
    Uid,
    Gid,
    User,
    Group,
    Mtime,
    Atime,
    DeviceMajor,
    DeviceMinor,
    AclAccess,
    AclDefault,
    AclNfs4,
    Label,
    Selinux,
    Xattr(Box<[u8]>),
    XattrBase64(Box<[u8]>),
    SparseMajor,
    SparseMinor,
    SparseName,
    SparseSize,
    SparseMap,
    SparseOffset,
    SparseLen,
    Unknown,
}

impl Key {
    pub(super) fn parse(key: &[u8]) -> Self {
        match key {
            b"path" => Key::Path,
            b"linkpath" => Key::Link,
            b"size" => Key::Size,
            b"uid" => Key::Uid,
            b"gid" => Key::Gid,
            b"uname" => Key::User,
            b"gname" => Key::Group,
            b"mtime" => Key::Mtime,
            b"atime" => Key::Atime,
            b"SCHILY.devmajor" => Key::DeviceMajor,
            b"SCHILY.devminor" => Key::DeviceMinor,
            b"SCHILY.acl.access" => Key::AclAccess,
            b"SCHILY.acl.default" => Key::AclDefault,
            b"SCHILY.acl.ace" => Key::AclNfs4,
            b"RHT.security.selinux" => Key::Selinux,
            b"GNU.volume.label" => Key::Label,
            b"GNU.sparse.major" => Key::SparseMajor,
            b"GNU.sparse.minor" => Key::SparseMinor,
            b"GNU.sparse.name" => Key::SparseName,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => Key::SparseSize,
            b"GNU.sparse.map" => Key::SparseMap,
            b"GNU.sparse.offset" => Key::SparseOffset,
            b"GNU.sparse.numbytes" => Key::SparseLen,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    Key::Xattr(name.into())
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    Key::XattrBase64(name.into())
                } else {
                    Key::Unknown
                }
            }
        }
    }

    /// The most of a value that is held.
    pub(super) fn limit(&self) -> usize {
        match self {
            Key::Path | Key::Link | Key::SparseName => MAX_PATH,
            Key::Xattr(_) => MAX_XATTR_VALUE,
            Key::XattrBase64(_) => MAX_XATTR_VALUE.div_ceil(3) * 4,
            Key::AclAccess | Key::AclDefault => MAX_ACL,
            Key::SparseMap => MAX_MAP,
            Key::AclNfs4 | Key::Unknown => 0,
            _ => MAX_VALUE,
        }
    }

    /// Bytes of its name, where the bound on what a global header may give to all members counts it.
    pub(super) fn attribute(&self) -> Option<usize> {
        match self {
            Key::Xattr(name) | Key::XattrBase64(name) => Some(name.len()),
            Key::User | Key::Group | Key::AclAccess | Key::AclDefault | Key::Selinux => Some(0),
            _ => None,
        }
    }

    /// Whether it describes one member, so that a global header cannot mean it.
    pub(super) fn is_of_one_member(&self) -> bool {
        matches!(
            self,
            Key::Path
                | Key::Link
                | Key::SparseMajor
                | Key::SparseMinor
                | Key::SparseName
                | Key::SparseSize
                | Key::SparseMap
                | Key::SparseOffset
                | Key::SparseLen
        )
    }
}
