//! How to mount.

/// How a mount is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether others than the owner may look in; the kernel then checks permissions.
    pub allow_other: bool,
    /// Whether the kernel may read complete blobs by itself, where it can: with CAP_SYS_ADMIN, from Linux 6.9 on.
    pub passthrough: bool,
    /// Whether extended attributes are there; else they are as on a filesystem that has none.
    pub xattrs: bool,
}
