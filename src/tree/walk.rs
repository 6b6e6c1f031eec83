//! The walk itself: a stack of directories, and what is next in the last of them.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, statat};
use rustix::io::Errno;

use super::attributes::Reader;
use super::directories::{DIRECTORY, DirId, Directories};
use super::holes;
use super::listing::Listing;
use super::names::{Stripped, sent_as, split};
use super::origin::{LOOK, Opener, Origin, ctime, is_file, open_file, open_place};
use super::step::{Error, Options, Step};
use crate::entry::{Device, Entry, EntryKind, EntryPath, Metadata, PathError, Timestamp, Xattrs, escape};
use crate::pattern::Patterns;

/// So many directories of the stack are held open. One further down is opened again when the walk comes back to it.
const MAX_OPEN: usize = 64;

/// For the names of a directory, as the kernel hands them out: some hundreds at a time.
const LISTING: usize = 32 << 10;

/// What a valid `CACHEDIR.TAG` begins with (bford.info/cachedir).
const TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";
const TAG_NAME: &CStr = c"CACHEDIR.TAG";

/// Goes through what is to be sent.
pub struct Walk {
    paths: std::vec::IntoIter<(CString, EntryPath)>,
    options: Options,
    exclude: Option<Patterns>,
    notes: Vec<String>,
    directories: Arc<Directories>,
    stack: Vec<Frame>,
    pending: VecDeque<Step>,
    links: HashMap<(u64, u64), FirstName>,
    owners: Owners,
    attributes: Reader,
    buffer: Box<[MaybeUninit<u8>]>,
    /// The directory that the path before was in: `send * -` has many in one.
    parent: Option<(Vec<u8>, DirId)>,
}

/// A directory that the walk is in.
struct Frame {
    id: DirId,
    fd: Option<Arc<OwnedFd>>,
    device: u64,
    inode: u64,
    path: EntryPath,
    listing: Listing,
}

/// The name under which an inode with several was sent, and how many others it may have.
struct FirstName {
    directory: DirId,
    name: Box<CStr>,
    left: u64,
}

impl Walk {
    /// Checks what can be checked before anything is sent: a path that does not exist is an error here, and a problem later.
    pub fn new(paths: &[PathBuf], options: Options) -> Result<Self, Error> {
        std::fs::metadata("/proc/self/fd").map_err(Error::Proc)?;
        let base = match &options.directory {
            None => None,
            Some(path) => {
                let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
                let opened = rustix::fs::open(path, flags, Mode::empty());
                Some(opened.map_err(|e| Error::Directory(path.clone(), e.into()))?)
            }
        };
        let directories = Arc::new(Directories::new(base));
        let mut named = Vec::new();
        let mut notes = Vec::new();
        for path in paths {
            let bytes = path.as_os_str().as_bytes();
            let failed = |e| Error::Path(path.clone(), e);
            let (sent, stripped) = sent_as(bytes).map_err(|e| failed(io::Error::other(e)))?;
            let given = CString::new(bytes).map_err(|e| failed(e.into()))?;
            statat(directories.base(), &*given, LOOK).map_err(|e| failed(e.into()))?;
            let note = match stripped {
                Stripped::Nothing => None,
                Stripped::Root => Some("names are sent without the '/' in front".to_owned()),
                Stripped::Parents(parents) => Some(format!("names are sent without '{}' in front", escape(parents))),
            };
            notes.extend(note.filter(|note| !notes.contains(note)));
            named.push((given, sent));
        }
        Ok(Walk {
            paths: named.into_iter(),
            exclude: Patterns::new(&options.exclude)?,
            notes,
            directories,
            stack: Vec::new(),
            pending: VecDeque::new(),
            links: HashMap::new(),
            owners: Owners::new(&options),
            options,
            attributes: Reader::new(),
            buffer: vec![MaybeUninit::uninit(); LISTING].into(),
            parent: None,
        })
    }

    /// What is done to the paths that were given, to be told once.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Who opens what this walk comes by, then and later.
    pub fn opener(&self) -> Opener {
        Opener { directories: self.directories.clone() }
    }

    /// The next of the paths that were given.
    fn begin(&mut self, given: &CStr, path: EntryPath) {
        if self.is_excluded(&path) {
            return;
        }
        let result = self.begin_at(given, &path);
        if let Err(e) = result {
            self.problem(path.as_bytes(), reason(e));
        }
    }

    fn begin_at(&mut self, given: &CStr, path: &EntryPath) -> io::Result<()> {
        let stat = statat(self.directories.base(), given, LOOK)?;
        let (directory, name) = match split(given.to_bytes()) {
            _ if is_directory(&stat) => {
                let (id, fd) = match self.directories.add_root(given, false, path.clone()) {
                    Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                        return self.closed_directory(path.clone(), &stat, Xattrs::default(), Vec::new(), e);
                    }
                    added => added?,
                };
                return self.directory(id, fd, path.clone(), None);
            }
            Some(parts) => parts,
            // It was a directory, and has become something else: "x/" and ".." are nothing else.
            None => return Err(Errno::NOTDIR.into()),
        };
        let id = match &self.parent {
            Some((path, id)) if path == directory => *id,
            _ => {
                let above = path.split().map_or(&b""[..], |(above, _)| above);
                let above = if above.is_empty() { Ok(EntryPath::root()) } else { EntryPath::parse(above) };
                let above = above.map_err(io::Error::other)?;
                let (id, _) = self.directories.add_root(&CString::new(directory)?, true, above)?;
                self.parent = Some((directory.to_owned(), id));
                id
            }
        };
        let fd = self.directories.open(id)?;
        self.visit(id, fd.as_fd(), &CString::new(name)?, path.clone(), None)
    }

    /// What is next in the last directory of the stack.
    fn go_on(&mut self) {
        let Some(frame) = self.stack.last_mut() else { return };
        let Some(name) = frame.listing.next() else {
            self.stack.pop();
            return;
        };
        let path = frame.path.join(name.to_bytes());
        let (name, id, device) = (name.to_owned(), frame.id, frame.device);
        let path = match path {
            Ok(path) => path,
            Err(e) => {
                let path = [frame.path.as_bytes(), name.as_bytes()].join(&b'/');
                return self.problem(&path, describe(e));
            }
        };
        if self.is_excluded(&path) {
            return;
        }
        let fd = match self.frame_fd() {
            Ok(fd) => fd,
            Err(e) => {
                let Some(frame) = self.stack.pop() else { return };
                let message = format!("its contents could not all be listed: {}", reason(e));
                return self.problem(frame.path.as_bytes(), message);
            }
        };
        if let Err(e) = self.visit(id, fd.as_fd(), &name, path.clone(), Some(device)) {
            self.problem(path.as_bytes(), reason(e));
        }
    }

    fn frame_fd(&mut self) -> io::Result<Arc<OwnedFd>> {
        let Some(frame) = self.stack.last_mut() else { return Err(Errno::NOENT.into()) };
        if let Some(fd) = &frame.fd {
            return Ok(fd.clone());
        }
        let fd = self.directories.open(frame.id)?;
        let stat = fstat(&fd)?;
        if (stat.st_dev, stat.st_ino) != (frame.device, frame.inode) {
            return Err(Errno::NOENT.into());
        }
        frame.fd = Some(fd.clone());
        Ok(fd)
    }

    /// One name in a directory. `device`: that of the directory, where it is of the tree.
    fn visit(
        &mut self,
        id: DirId,
        directory: BorrowedFd<'_>,
        name: &CStr,
        path: EntryPath,
        device: Option<u64>,
    ) -> io::Result<()> {
        let mut stat = statat(directory, name, LOOK)?;
        let mut problems = Vec::new();
        if is_directory(&stat) {
            match openat(directory, name, DIRECTORY, Mode::empty()) {
                Ok(fd) => {
                    let (id, fd) = self.directories.add_below(id, name, fd)?;
                    return self.directory(id, fd, path, device);
                }
                Err(Errno::ACCESS) => {
                    let place = open_place(directory, name)?;
                    let xattrs = self.attributes.read(place.as_fd(), |problem| problems.push(problem));
                    return self.closed_directory(path, &fstat(&place)?, xattrs, problems, Errno::ACCESS.into());
                }
                Err(e) => return Err(e.into()),
            }
        }
        if self.options.archive == Some((stat.st_dev, stat.st_ino)) {
            let (path, message) = (path.as_bytes().into(), "it is the archive itself, and left out".into());
            self.pending.push_back(Step::Note { path, message });
            return Ok(());
        }
        if stat.st_nlink > 1
            && let Some(target) = self.first_name(&stat, &path)
        {
            let metadata = self.metadata(&stat, Xattrs::default());
            self.entry(path, EntryKind::HardLink { target }, metadata, None, problems);
            return Ok(());
        }
        let mut place = None;
        let has_any = self.attributes.has_any(directory, name, stat.st_dev).unwrap_or_else(|unlisted| {
            problems.push(unlisted.to_string());
            false
        });
        if has_any || may_have_holes(&stat) {
            let opened = open_place(directory, name)?;
            stat = fstat(&opened)?;
            if is_directory(&stat) {
                return Err(io::Error::other("it was replaced while it was looked at"));
            }
            place = Some(opened);
        }
        let xattrs = match &place {
            Some(place) if has_any => self.attributes.read(place.as_fd(), |problem| problems.push(problem)),
            _ => Xattrs::default(),
        };
        let kind = match kind(&stat, || match &place {
            Some(place) => readlinkat(place, c"", Vec::new()),
            None => readlinkat(directory, name, Vec::new()),
        })? {
            Some(kind) => kind,
            None => return Err(io::Error::other("it is nothing that can be sent")),
        };
        let (kind, contents) = match (kind, &place) {
            (EntryKind::File { size, .. }, place) => {
                let file =
                    place.as_ref().filter(|_| may_have_holes(&stat)).map(|place| open_file(place.as_fd(), &stat));
                // One that may not be read is found out when it is to be sent.
                let sparse = file.and_then(Result::ok).and_then(|file| holes::map(file.as_fd(), size)).map(Arc::new);
                let (ctime_seconds, ctime_nanos) = ctime(&stat);
                let origin = Origin {
                    directory: id,
                    name: name.into(),
                    device: stat.st_dev,
                    inode: stat.st_ino,
                    size,
                    ctime_seconds,
                    ctime_nanos,
                    sparse: sparse.clone(),
                };
                (EntryKind::File { size, sparse }, Some(origin))
            }
            (kind, _) => (kind, None),
        };
        if stat.st_nlink > 1 {
            let first = FirstName { directory: id, name: name.into(), left: links(&stat) - 1 };
            self.links.insert((stat.st_dev, stat.st_ino), first);
        }
        let metadata = self.metadata(&stat, xattrs);
        self.entry(path, kind, metadata, contents, problems);
        Ok(())
    }

    /// A directory that is open. `above`: the device of the directory that it is in.
    fn directory(&mut self, id: DirId, fd: Arc<OwnedFd>, path: EntryPath, above: Option<u64>) -> io::Result<()> {
        let stat = fstat(&fd)?;
        let mut problems = Vec::new();
        let xattrs = match self.attributes.has_any_open(fd.as_fd(), stat.st_dev) {
            Ok(true) => self.attributes.read(fd.as_fd(), |problem| problems.push(problem)),
            Ok(false) => Xattrs::default(),
            Err(unlisted) => {
                problems.push(unlisted.to_string());
                Xattrs::default()
            }
        };
        let metadata = self.metadata(&stat, xattrs);
        self.entry(path.clone(), EntryKind::Directory, metadata, None, problems);
        if self.options.one_file_system && above.is_some_and(|device| device != stat.st_dev) {
            return Ok(());
        }
        match Listing::read(fd.as_fd(), &mut self.buffer) {
            Ok(mut listing) => {
                if self.options.exclude_caches && listing.has(TAG_NAME) && is_tag(fd.as_fd()) {
                    listing.retain_only(TAG_NAME);
                }
                let (device, inode) = (stat.st_dev, stat.st_ino);
                self.stack.push(Frame { id, fd: Some(fd), device, inode, path, listing });
                if let Some(below) = self.stack.len().checked_sub(MAX_OPEN + 1) {
                    self.stack[below].fd = None;
                }
            }
            Err(e) => self.problem(path.as_bytes(), format!("what is in it cannot be listed: {e}")),
        }
        Ok(())
    }

    /// A directory that may not be opened.
    fn closed_directory(
        &mut self,
        path: EntryPath,
        stat: &Stat,
        xattrs: Xattrs,
        mut problems: Vec<String>,
        why: io::Error,
    ) -> io::Result<()> {
        let metadata = self.metadata(stat, xattrs);
        problems.push(format!("what is in it cannot be listed: {why}"));
        self.entry(path, EntryKind::Directory, metadata, None, problems);
        Ok(())
    }

    /// The name under which an inode was sent already. None where it has to be sent as it is.
    fn first_name(&mut self, stat: &Stat, path: &EntryPath) -> Option<EntryPath> {
        let inode = (stat.st_dev, stat.st_ino);
        let first = self.links.get_mut(&inode)?;
        let target = self.directories.path(first.directory).and_then(|dir| dir.join(first.name.to_bytes())).ok()?;
        first.left = first.left.saturating_sub(1);
        if first.left == 0 {
            self.links.remove(&inode);
        }
        // Where paths overlap, the same name comes twice.
        (target != *path).then_some(target)
    }

    fn metadata(&mut self, stat: &Stat, xattrs: Xattrs) -> Metadata {
        Metadata {
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            user: self.owners.user(stat.st_uid),
            group: self.owners.group(stat.st_gid),
            mtime: Timestamp::new(stat.st_mtime, stat.st_mtime_nsec as u32),
            atime: None,
            xattrs,
        }
    }

    fn is_excluded(&self, path: &EntryPath) -> bool {
        !path.is_root() && self.exclude.as_ref().is_some_and(|patterns| patterns.matches(path))
    }

    fn entry(
        &mut self,
        path: EntryPath,
        kind: EntryKind,
        metadata: Metadata,
        contents: Option<Origin>,
        problems: Vec<String>,
    ) {
        let named = if problems.is_empty() { Vec::new() } else { path.as_bytes().to_vec() };
        self.pending.push_back(Step::Entry { entry: Box::new(Entry { path, kind, metadata }), contents });
        for problem in problems {
            self.problem(&named, problem);
        }
    }

    fn problem(&mut self, path: &[u8], reason: String) {
        self.pending.push_back(Step::Problem { path: path.into(), reason });
    }
}

impl Iterator for Walk {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        loop {
            if let Some(step) = self.pending.pop_front() {
                return Some(step);
            }
            if !self.stack.is_empty() {
                self.go_on();
            } else {
                let (given, path) = self.paths.next()?;
                self.begin(&given, path);
            }
        }
    }
}

/// Names of owners, each looked up once.
struct Owners {
    user_name: fn(u32) -> Option<Vec<u8>>,
    group_name: fn(u32) -> Option<Vec<u8>>,
    users: HashMap<u32, Option<Arc<[u8]>>>,
    groups: HashMap<u32, Option<Arc<[u8]>>>,
}

impl Owners {
    fn new(options: &Options) -> Self {
        Owners {
            user_name: options.user_name,
            group_name: options.group_name,
            users: HashMap::new(),
            groups: HashMap::new(),
        }
    }

    fn user(&mut self, uid: u32) -> Option<Arc<[u8]>> {
        self.users.entry(uid).or_insert_with(|| (self.user_name)(uid).map(Into::into)).clone()
    }

    fn group(&mut self, gid: u32) -> Option<Arc<[u8]>> {
        self.groups.entry(gid).or_insert_with(|| (self.group_name)(gid).map(Into::into)).clone()
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// It has fewer blocks than it needs. (It may be compressed, too.)
fn may_have_holes(stat: &Stat) -> bool {
    is_file(stat) && stat.st_blocks.saturating_mul(512) < stat.st_size
}

fn links(stat: &Stat) -> u64 {
    #[allow(clippy::unnecessary_cast, reason = "u32 on some machines")]
    let links = stat.st_nlink as u64;
    links
}

/// What a thing is, as far as `stat` tells; none for what Linux has not.
fn kind(stat: &Stat, read_link: impl FnOnce() -> rustix::io::Result<CString>) -> io::Result<Option<EntryKind>> {
    let device = || Device { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
    Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => EntryKind::File { size: stat.st_size.try_into().unwrap_or(0), sparse: None },
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => match read_link()?.into_bytes() {
            empty if empty.is_empty() => return Err(io::Error::other("it is a symbolic link to nothing")),
            target => EntryKind::Symlink { target: target.into() },
        },
        FileType::CharacterDevice => EntryKind::CharDevice { device: device() },
        FileType::BlockDevice => EntryKind::BlockDevice { device: device() },
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket => EntryKind::Socket,
        FileType::Unknown => return Ok(None),
    }))
}

/// Whether a directory's `CACHEDIR.TAG` is one.
fn is_tag(directory: BorrowedFd<'_>) -> bool {
    let read = || -> io::Result<bool> {
        let place = open_place(directory, TAG_NAME)?;
        let stat = fstat(&place)?;
        if !is_file(&stat) {
            return Ok(false);
        }
        let mut begin = [0; TAG.len()];
        let n = rustix::io::pread(open_file(place.as_fd(), &stat)?, &mut begin, 0)?;
        Ok(&begin[..n] == TAG)
    };
    read().unwrap_or(false)
}

/// What became of something between two looks at it, in words.
fn reason(e: io::Error) -> String {
    match e.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::STALE) => "it vanished before it was read".into(),
        Some(Errno::NOTDIR | Errno::LOOP | Errno::INVAL) => "it was replaced while it was looked at".into(),
        _ if e.get_ref().is_some() => e.to_string(),
        _ => format!("it cannot be looked at: {e}"),
    }
}

fn describe(e: PathError) -> String {
    format!("{e}: no archive can name it")
}
