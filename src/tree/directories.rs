//! The directories of a walk: a small number for each, from which it can be opened again at any time.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::entry::{EntryPath, PathError};

/// So many directories are kept open; others are opened again when they are needed.
const MAX_OPEN: usize = 64;

pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// A directory that a walk has come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirId(u32);

/// All of them. They are as many as there are directories in the tree.
#[derive(Debug)]
pub(super) struct Directories {
    /// What relative paths are relative to; none for the current directory.
    base: Option<OwnedFd>,
    nodes: RwLock<Vec<Node>>,
    /// Used last, last.
    open: Mutex<Vec<(DirId, Arc<OwnedFd>)>>,
}

#[derive(Debug)]
enum Node {
    Root(Arc<Root>),
    Below { parent: DirId, name: Box<CStr> },
}

/// One that was named by its path.
#[derive(Debug)]
pub(super) struct Root {
    path: CString,
    flags: OFlags,
    device: u64,
    inode: u64,
    sent_as: EntryPath,
}

impl Directories {
    pub(super) fn new(base: Option<OwnedFd>) -> Self {
        Directories { base, nodes: RwLock::default(), open: Mutex::default() }
    }

    pub(super) fn base(&self) -> BorrowedFd<'_> {
        self.base.as_ref().map_or(CWD, AsFd::as_fd)
    }

    /// Takes in a directory by its path. With `follow` it may be a link.
    pub(super) fn add_root(&self, path: &CStr, follow: bool, sent_as: EntryPath) -> io::Result<(DirId, Arc<OwnedFd>)> {
        let flags = if follow { DIRECTORY.difference(OFlags::NOFOLLOW) } else { DIRECTORY };
        let fd = openat(self.base(), path, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        let root = Root { path: path.into(), flags, device: stat.st_dev, inode: stat.st_ino, sent_as };
        self.add(Node::Root(Arc::new(root)), fd)
    }

    /// Takes in a directory that is in another one, and open.
    pub(super) fn add_below(&self, parent: DirId, name: &CStr, fd: OwnedFd) -> io::Result<(DirId, Arc<OwnedFd>)> {
        self.add(Node::Below { parent, name: name.into() }, fd)
    }

    fn add(&self, node: Node, fd: OwnedFd) -> io::Result<(DirId, Arc<OwnedFd>)> {
        let mut nodes = self.nodes.write();
        let id = DirId(u32::try_from(nodes.len()).map_err(|_| io::Error::other("there are too many directories"))?);
        nodes.push(node);
        drop(nodes);
        let fd = Arc::new(fd);
        self.keep(id, fd.clone());
        Ok((id, fd))
    }

    fn keep(&self, id: DirId, fd: Arc<OwnedFd>) {
        let mut open = self.open.lock();
        if open.len() == MAX_OPEN {
            open.remove(0);
        }
        open.push((id, fd));
    }

    fn find_open(&self, id: DirId) -> Option<Arc<OwnedFd>> {
        let mut open = self.open.lock();
        let at = open.iter().rposition(|(other, _)| *other == id)?;
        if at + 1 < open.len() {
            let found = open.remove(at);
            open.push(found);
        }
        open.last().map(|(_, fd)| fd.clone())
    }

    /// Opens one, going down from the next one above that is open.
    pub(super) fn open(&self, id: DirId) -> io::Result<Arc<OwnedFd>> {
        // No recursion, however deep it is.
        let mut way: Vec<(DirId, Box<CStr>)> = Vec::new();
        let mut at = id;
        let mut dir = loop {
            if let Some(fd) = self.find_open(at) {
                break fd;
            }
            let root = match &self.nodes.read()[at.0 as usize] {
                Node::Below { parent, name } => {
                    way.push((at, name.clone()));
                    at = *parent;
                    continue;
                }
                Node::Root(root) => root.clone(),
            };
            let fd = Arc::new(openat(self.base(), &*root.path, root.flags, Mode::empty())?);
            let stat = fstat(&fd)?;
            if (stat.st_dev, stat.st_ino) != (root.device, root.inode) {
                return Err(Errno::NOENT.into());
            }
            self.keep(at, fd.clone());
            break fd;
        };
        for (id, name) in way.into_iter().rev() {
            dir = Arc::new(openat(&dir, &*name, DIRECTORY, Mode::empty())?);
            self.keep(id, dir.clone());
        }
        Ok(dir)
    }

    /// What one is sent as.
    pub(super) fn path(&self, id: DirId) -> Result<EntryPath, PathError> {
        let nodes = self.nodes.read();
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = id;
        let root = loop {
            match &nodes[at.0 as usize] {
                Node::Root(root) => break root,
                Node::Below { parent, name } => {
                    names.push(name.to_bytes());
                    at = *parent;
                }
            }
        };
        if names.is_empty() {
            return Ok(root.sent_as.clone());
        }
        names.push(root.sent_as.as_bytes());
        names.reverse();
        EntryPath::parse(&names.join(&b'/'))
    }
}
