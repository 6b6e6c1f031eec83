//! Extended attributes, ACLs among them, as the kernel gives them.
//!
//! Most entries have none. Whether one has is asked by its name, with one call; what has some is opened as a mere
//! place (`O_PATH`), so that all that is told of it is told of one inode, whatever becomes of its name.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{flistxattr, getxattr, listxattr, llistxattr};
use rustix::io::Errno;

use crate::entry::{ACL_ACCESS, ACL_DEFAULT, MAX_XATTR_NAMES, MAX_XATTR_VALUE, Xattrs, escape};
use crate::sys::listxattrat;

/// Enough to see whether there are any: the kernel gets memory for as much as we have room for.
const FEW: usize = 256;

/// Reads them, and has the room for that.
pub(super) struct Reader {
    names: Vec<u8>,
    value: Vec<u8>,
    path: Vec<u8>,
    /// The kernel may list them by a name in a directory; before 6.13 the way through /proc is needed.
    by_name: bool,
    /// File systems that have none.
    without: Vec<u64>,
}

/// It is not known which attributes there are.
#[derive(Debug, thiserror::Error)]
#[error("its extended attributes cannot be listed: {0}")]
pub(super) struct Unlisted(#[source] std::io::Error);

impl Reader {
    pub(super) fn new() -> Self {
        Reader {
            names: vec![0; MAX_XATTR_NAMES],
            value: vec![0; MAX_XATTR_VALUE],
            path: Vec::new(),
            by_name: true,
            without: Vec::new(),
        }
    }

    /// Whether what has this name has any, as far as can be told.
    pub(super) fn has_any(&mut self, dir: BorrowedFd<'_>, name: &CStr, device: u64) -> Result<bool, Unlisted> {
        if self.without.contains(&device) {
            return Ok(false);
        }
        if self.by_name {
            if let Some(listed) = listxattrat(dir, name, &mut self.names[..FEW]) {
                let errno = |e| Errno::from_io_error(&e).unwrap_or(Errno::IO);
                return self.any_of(listed.map_err(errno), device);
            }
            self.by_name = false;
        }
        self.proc_path(dir, Some(name));
        let listed = llistxattr(&*self.path, &mut self.names[..FEW]);
        self.any_of(listed, device)
    }

    /// The same of an open directory.
    pub(super) fn has_any_open(&mut self, fd: BorrowedFd<'_>, device: u64) -> Result<bool, Unlisted> {
        if self.without.contains(&device) {
            return Ok(false);
        }
        let listed = flistxattr(fd, &mut self.names[..FEW]);
        self.any_of(listed, device)
    }

    fn any_of(&mut self, listed: rustix::io::Result<usize>, device: u64) -> Result<bool, Unlisted> {
        match listed {
            Ok(n) => Ok(n > 0),
            Err(Errno::RANGE) => Ok(true),
            Err(Errno::OPNOTSUPP) => {
                self.without.push(device);
                Ok(false)
            }
            // It has vanished; whoever looks next sees it.
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(Unlisted(e.into())),
        }
    }

    /// All of them, of what is open in any way. `problem` is told of each that is left out.
    pub(super) fn read(&mut self, fd: BorrowedFd<'_>, mut problem: impl FnMut(String)) -> Xattrs {
        let mut xattrs = Xattrs::default();
        self.proc_path(fd, None);
        let len = match listxattr(&*self.path, &mut self.names[..]) {
            Ok(len) => len,
            Err(e) => {
                problem(Unlisted(e.into()).to_string());
                0
            }
        };
        for name in self.names[..len].split(|&b| b == 0).filter(|name| is_taken(name)) {
            let mut left = |e: &dyn std::fmt::Display| {
                problem(format!("the xattr '{}' is left out: {e}", escape(name)));
            };
            match getxattr(&*self.path, name, &mut self.value[..]) {
                Ok(n) => {
                    if let Err(e) = xattrs.insert(name, &self.value[..n]) {
                        left(&e);
                    }
                }
                Err(Errno::NODATA) => {}
                Err(e) => left(&std::io::Error::from(e)),
            }
        }
        xattrs
    }

    fn proc_path(&mut self, dir: BorrowedFd<'_>, name: Option<&CStr>) {
        self.path.clear();
        // Writing to a vector cannot fail.
        let _ = write!(self.path, "/proc/self/fd/{}", dir.as_raw_fd());
        if let Some(name) = name {
            self.path.push(b'/');
            self.path.extend_from_slice(name.to_bytes());
        }
    }
}

/// What else is in `system.` is made up by a file system, for itself.
fn is_taken(name: &[u8]) -> bool {
    !name.is_empty() && (!name.starts_with(b"system.") || name == ACL_ACCESS || name == ACL_DEFAULT)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn both_ways_see_the_same() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("with"), "").unwrap();
        std::fs::write(dir.path().join("without"), "").unwrap();
        std::os::unix::fs::symlink("with", dir.path().join("link")).unwrap();
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(dir.path().join("with"), "user.x", b"value", none).unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        for by_name in [true, false] {
            let mut reader = Reader { by_name, ..Reader::new() };
            let mut any = |name| reader.has_any(fd.as_fd(), name, 1);
            assert_eq!(
                [any(c"with"), any(c"without"), any(c"link"), any(c"none")].map(Result::unwrap),
                [true, false, false, false]
            );
        }
    }
}
