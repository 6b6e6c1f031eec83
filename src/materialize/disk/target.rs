//! The directories of the target. Each is opened from the one that it is in, by one name, and never through a link:
//! whatever others do to the names meanwhile, nothing is made outside.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, fchmod, fgetxattr, fstat, mkdirat, open, openat};
use rustix::io::Errno;
use rustix::process::{Resource, getegid, geteuid, getrlimit};

use super::metadata::disinherit;
use crate::entry::ACL_DEFAULT;
use crate::index::Ino;

/// So many directories are held open at most. What is dropped is opened again when it is needed.
const MAX_OPEN: usize = 1024;

/// Of the files that may be open, this part: batches that are being made hold directories open too.
const OPEN_SHARE: u64 = 8;

/// Ours alone, until its own metadata are set at the end.
const MODE: Mode = Mode::RWXU;

/// Of a directory that the archive has only as part of a path: in a run that is killed, nobody sets it later.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory that everything goes into, and what we know in it.
pub(in crate::materialize) struct Target {
    directories: HashMap<Ino, Directory>,
    open: HashMap<Ino, Arc<OwnedFd>>,
    most_open: usize,
    root: Arc<OwnedFd>,
    root_is_made: bool,
    /// One directory on each other file system that is mounted in it.
    disks: HashMap<u64, Arc<OwnedFd>>,
    /// The directories that we made, by device and number, where several of the archive can become one.
    ours: Option<HashSet<(u64, u64)>>,
}

struct Directory {
    /// None: it is the root itself, or stands for it.
    at: Option<(Ino, CString)>,
    made: bool,
    /// What is made in it gets its group, or an ACL.
    inherits: bool,
}

impl Target {
    /// Opens the root, which is made where there is none.
    pub(in crate::materialize) fn open(path: &Path, merges: bool) -> io::Result<Self> {
        let root_is_made = match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e.into()),
        };
        // A link on the way is the user's own.
        let root = Arc::new(open(path, FLAGS.difference(OFlags::NOFOLLOW), Mode::empty())?);
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / OPEN_SHARE;
        let most_open = usize::try_from(limit).unwrap_or(MAX_OPEN).clamp(1, MAX_OPEN);
        let ours = merges.then(HashSet::new);
        let (directories, open, disks) = Default::default();
        Ok(Target { directories, open, most_open, root, root_is_made, disks, ours })
    }

    /// The same root, with nothing known in it yet.
    pub(in crate::materialize) fn anew(&self) -> Self {
        Target {
            directories: HashMap::from([(Ino::ROOT, Directory { at: None, made: false, inherits: false })]),
            open: HashMap::new(),
            most_open: self.most_open,
            root: self.root.clone(),
            root_is_made: false,
            disks: HashMap::new(),
            ours: None,
        }
    }

    /// Something is to be made in the place of another: none of the directories is held on to, and `ino` has no place.
    pub(super) fn replaced(&mut self, ino: Ino) {
        self.open.clear();
        self.directories.remove(&ino);
    }

    /// Opens a directory that is there.
    pub(super) fn enter(&mut self, ino: Ino, parent: Ino, name: CString) -> io::Result<()> {
        let dir = self.get(parent)?;
        self.keep(ino, openat(&dir, &*name, FLAGS, Mode::empty())?);
        self.directories.insert(ino, Directory { at: Some((parent, name)), made: false, inherits: false });
        Ok(())
    }

    /// So many directories may be held open here, and so many by what is to be made together.
    pub(super) fn most_open(&self) -> usize {
        self.most_open
    }

    pub(in crate::materialize) fn root(&self) -> Arc<OwnedFd> {
        self.root.clone()
    }

    /// All file systems that something is made on.
    pub(in crate::materialize) fn disks(&self) -> impl Iterator<Item = &OwnedFd> {
        std::iter::once(&*self.root).chain(self.disks.values().map(|dir| &**dir))
    }

    /// Whether a directory has its place already.
    pub(super) fn has(&self, ino: Ino) -> bool {
        self.directories.contains_key(&ino)
    }

    /// This one is the root of the target.
    pub(super) fn is_root(&mut self, ino: Ino) {
        let inherits = gives_on(&self.root);
        let made = self.root_is_made && ino == Ino::ROOT;
        self.directories.insert(ino, Directory { at: None, made, inherits });
    }

    /// Makes a directory, or takes the one that is there.
    pub(super) fn make(&mut self, ino: Ino, parent: Ino, name: CString, implied: bool) -> io::Result<()> {
        let dir = self.get(parent)?;
        let mode = if implied { IMPLIED_MODE } else { MODE };
        let made = match mkdirat(&dir, &*name, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e.into()),
        };
        if !made && !implied {
            unlock(dir.as_fd(), &name)?;
        }
        let new = self.keep(ino, openat(&dir, &*name, FLAGS, Mode::empty())?);
        if made && self.inherits(parent) {
            // Else it would give its group on where the parent's has come by a mount option.
            disinherit(new.as_fd(), getegid())?;
            fchmod(&new, mode)?;
        }
        if !made {
            let device = fstat(&new)?.st_dev;
            if device != fstat(&self.root)?.st_dev {
                self.disks.entry(device).or_insert_with(|| new.clone());
            }
        }
        let inherits = !made && gives_on(&new);
        let made = match &mut self.ours {
            Some(ours) => {
                let there = fstat(&new)?;
                let which = (there.st_dev, there.st_ino);
                if made { ours.insert(which) || made } else { ours.contains(&which) }
            }
            None => made,
        };
        self.directories.insert(ino, Directory { at: Some((parent, name)), made, inherits });
        Ok(())
    }

    /// Opens a directory that has its place.
    pub(super) fn get(&mut self, ino: Ino) -> io::Result<Arc<OwnedFd>> {
        // No recursion, however deep it is.
        let mut way = Vec::new();
        let mut at = ino;
        let mut dir = loop {
            if let Some(open) = self.open.get(&at) {
                break open.clone();
            }
            match &self.directories.get(&at).ok_or(Errno::NOENT)?.at {
                None => break self.root.clone(),
                Some((parent, name)) => {
                    way.push((at, name.clone()));
                    at = *parent;
                }
            }
        };
        for (ino, name) in way.into_iter().rev() {
            dir = self.keep(ino, openat(dir.as_fd(), &*name, FLAGS, Mode::empty())?);
        }
        Ok(dir)
    }

    fn keep(&mut self, ino: Ino, dir: OwnedFd) -> Arc<OwnedFd> {
        if self.open.len() >= self.most_open {
            self.open.clear();
        }
        let dir = Arc::new(dir);
        self.open.insert(ino, dir.clone());
        dir
    }

    /// Whether what is made in a directory gets more from it than a place.
    pub(super) fn inherits(&self, ino: Ino) -> bool {
        self.directories.get(&ino).is_some_and(|dir| dir.inherits)
    }

    /// Whether a directory was not there before.
    pub(super) fn is_made(&self, ino: Ino) -> bool {
        self.directories.get(&ino).is_some_and(|dir| dir.made)
    }

    /// Whether this directory stands for the root, since what it is in is stripped away.
    pub(super) fn is_stripped(&self, ino: Ino) -> bool {
        self.directories.get(&ino).is_some_and(|dir| dir.at.is_none())
    }

    /// Where a directory is in the target.
    pub(super) fn path(&self, ino: Ino) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = ino;
        while let Some(Directory { at: Some((parent, name)), .. }) = self.directories.get(&at) {
            names.push(name.as_bytes());
            at = *parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// All directories, each behind those that are in it, and whether we made it.
    pub(super) fn deepest_first(&self) -> Vec<(Ino, bool)> {
        let depth = |ino: &Ino| {
            let mut depth = 0;
            let mut at = *ino;
            while let Some(Directory { at: Some((parent, _)), .. }) = self.directories.get(&at) {
                depth += 1;
                at = *parent;
            }
            depth
        };
        let mut all: Vec<_> = self.directories.iter().map(|(ino, dir)| (depth(ino), *ino, dir.made)).collect();
        all.sort_unstable_by_key(|(depth, ino, _)| (std::cmp::Reverse(*depth), *ino));
        all.into_iter().map(|(_, ino, made)| (ino, made)).collect()
    }
}

/// Lets us into a directory of ours that a run before has closed to ourselves. It gets its own mode again at the end.
fn unlock(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let us = geteuid();
    if us.is_root() {
        return Ok(());
    }
    let dir = openat(parent, name, FLAGS | OFlags::PATH, Mode::empty())?;
    let there = fstat(&dir)?;
    let mode = Mode::from_raw_mode(there.st_mode & 0o7777);
    if there.st_uid == us.as_raw() && !mode.contains(MODE) {
        chmodat(CWD, format!("/proc/self/fd/{}", dir.as_raw_fd()), mode | MODE, AtFlags::empty())?;
    }
    Ok(())
}

/// Whether a directory gives its group or an ACL to what is made in it.
fn gives_on(dir: &OwnedFd) -> bool {
    let group = getegid().as_raw();
    // Mounted with `grpid`, it gives its group on without that bit.
    fstat(dir).is_ok_and(|stat| stat.st_mode & Mode::SGID.as_raw_mode() != 0 || stat.st_gid != group)
        || fgetxattr(dir, ACL_DEFAULT, &mut [0; 0]).is_ok()
}
