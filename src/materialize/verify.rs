//! Reads back what has been restored, and compares it with what was packed.
//!
//! Nothing that the restore knows is used: the whole stream is read once more, and what each of its names means in the end
//! is what the target must hold.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags, Stat, fadvise, fstat, openat, readlinkat, statat};

use super::bindings::Bindings;
use super::copy;
use super::create::{Creator, file_type, time_of};
use super::metadata::Held;
use super::report::{self, is_of_macos};
use super::target::Target;
use super::{Error, Options};
use crate::entry::{EntryPath, Metadata};
use crate::index::{Arrival, Attributes, Ino, Kind};

/// A file of the target, by device and number.
type Inode = (u64, u64);

/// Compares the target with the tree that the whole stream makes.
pub(super) struct Verify<'a> {
    options: &'a Options,
    creator: &'a Creator,
    /// What the names of the stream mean in the end.
    bindings: Bindings<'a>,
    target: Target,
    /// What has several names: the file that it was seen as, and its first name.
    groups: HashMap<Ino, (Inode, Vec<u8>)>,
    /// What these files are.
    entries: HashMap<Inode, Ino>,
}

impl<'a> Verify<'a> {
    pub(super) fn new(options: &'a Options, creator: &'a Creator, bindings: Bindings<'a>, target: Target) -> Self {
        Verify { options, creator, bindings, target, groups: HashMap::new(), entries: HashMap::new() }
    }

    /// Compares everything that was to be restored. What differs is a problem.
    pub(super) fn run(mut self) -> Result<(), Error> {
        self.root()?;
        let needed = self.needed();
        let mut directories = vec![(Ino::ROOT, Vec::new())];
        while let Some((directory, path)) = directories.pop() {
            let children: Vec<(Vec<u8>, Ino)> =
                self.bindings.target().list(directory, 0).map(|(_, name, child)| (name.to_vec(), child)).collect();
            for (name, child) in children {
                let path = if path.is_empty() { name.clone() } else { [&*path, &*name].join(&b'/') };
                let Some(a) = self.attributes(child) else { continue };
                if !needed.contains(&child) && !self.is_wanted(&path, child, &a) {
                    continue;
                }
                let compared = CString::new(name)
                    .map_err(io::Error::from)
                    .and_then(|name| self.compare(directory, child, &name, &path, &a));
                self.tell(&path, compared)?;
                if a.kind == Kind::Directory && self.target.has(child) {
                    directories.push((child, path));
                }
            }
        }
        self.creator.contents.check().map_err(Error::Replay)
    }

    /// Of a name in the tree of the target, what it is in the mount.
    fn attributes(&self, child: Ino) -> Option<Attributes> {
        self.bindings.index.attributes(self.bindings.ino(child)?)
    }

    fn tell(&self, path: &[u8], compared: io::Result<Option<String>>) -> Result<(), Error> {
        let report = &self.creator.report;
        match compared {
            Ok(None) => {}
            Ok(Some(what)) => report.problem(path, format!("verified: {what}")),
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                report.problem(path, format!("it cannot be read back: {e}"));
            }
            Err(cause) if self.creator.is_fatal(&cause) => {
                return Err(Error::Entry { path: report::told(path), cause });
            }
            Err(e) => report.problem(path, e),
        }
        Ok(())
    }

    fn root(&self) -> Result<(), Error> {
        if self.options.strip > 0 || !self.options.selection.is_all() || self.bindings.index.is_implied(Ino::ROOT) {
            return Ok(());
        }
        let root = self.target.root();
        let there = fstat(&root).map_err(|e| Error::Target { path: self.options.target.clone(), cause: e.into() })?;
        if let (Some(a), Some(metadata)) =
            (self.bindings.index.attributes(Ino::ROOT), self.bindings.metadata(Ino::ROOT))
            && let Some(what) = self.compare_stat(root.as_fd(), b".", &a, &metadata, &there)
        {
            self.creator.report.problem(b".", format!("verified: {what}"));
        }
        Ok(())
    }

    /// The directories that something wanted is in.
    fn needed(&self) -> HashSet<Ino> {
        let target = self.bindings.target();
        let mut needed = HashSet::new();
        target.walk(&mut |path, child| {
            if self.attributes(child).is_none_or(|a| !self.is_wanted(path, child, &a)) {
                return;
            }
            let parent = path.iter().rposition(|&b| b == b'/').map_or(&b""[..], |slash| &path[..slash]);
            let mut at = target.resolve(parent);
            while let Some(directory) = at
                && needed.insert(directory)
            {
                at = target.parent(directory);
            }
        });
        needed
    }

    /// Whether a name in the tree of the target was to be restored for its own sake.
    fn is_wanted(&self, path: &[u8], child: Ino, a: &Attributes) -> bool {
        let selection = &self.options.selection;
        // The tree of shortened paths has only what is selected.
        let selected = self.options.strip > 0 || EntryPath::parse(path).is_ok_and(|path| selection.wants(&path));
        selected
            && match a.kind {
                Kind::Directory => !self.bindings.target().is_implied(child),
                // What has not arrived has been named.
                _ => selection.is_new(a.mtime) && self.bindings.index.arrival(a.ino) == Some(Arrival::Complete),
            }
    }

    /// What differs.
    fn compare(
        &mut self,
        parent: Ino,
        child: Ino,
        name: &CString,
        path: &[u8],
        a: &Attributes,
    ) -> io::Result<Option<String>> {
        let dir = self.target.get(parent)?;
        let there = match statat(&dir, &**name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => there,
            Err(rustix::io::Errno::NOENT) => return Ok(Some("it is missing".into())),
            Err(e) => return Err(e.into()),
        };
        if FileType::from_raw_mode(there.st_mode) != file_type(a.kind) {
            return Ok(Some("it is of another kind".into()));
        }
        if a.kind == Kind::Directory {
            self.target.enter(child, parent, name.clone())?;
            if self.bindings.index.is_implied(a.ino) {
                return Ok(None);
            }
        }
        let Some(metadata) = self.bindings.metadata(a.ino) else { return Ok(None) };
        if let Some(what) = self.compare_stat(dir.as_fd(), path, a, &metadata, &there) {
            return Ok(Some(what.into()));
        }
        if let Some(what) = self.compare_links(path, a, &there) {
            return Ok(Some(what));
        }
        let held = Held::found(dir.as_fd(), name, &there)?;
        if !metadata.xattrs.iter().all(|(name, value)| held.has(name, value) || is_of_macos(name)) {
            return Ok(Some("an extended attribute differs".into()));
        }
        if held.has_others(&metadata.xattrs) {
            return Ok(Some("it has an extended attribute or an ACL that was not packed".into()));
        }
        let differs = match a.kind {
            Kind::Symlink => {
                let target = readlinkat(&dir, &**name, Vec::new())?;
                (Some(target.as_bytes()) != self.bindings.index.target(a.ino)).then_some("its target differs")
            }
            Kind::File => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                self.compare_contents(&File::from(openat(&dir, &**name, flags, Mode::empty())?), a)?
            }
            _ => None,
        };
        Ok(differs.map(str::to_owned))
    }

    /// All names of one entry are one file, and those of two entries are two. That a file has further names, which were not
    /// restored, is no fault.
    fn compare_links(&mut self, path: &[u8], a: &Attributes, there: &Stat) -> Option<String> {
        if a.kind == Kind::Directory || (a.nlink <= 1 && there.st_nlink <= 1) {
            return None;
        }
        let inode = (there.st_dev, there.st_ino);
        let (first, name) = self.groups.entry(a.ino).or_insert_with(|| (inode, path.to_vec()));
        if *first != inode {
            return Some(format!("it is no hard link to '{}'", report::told(name)));
        }
        let entry = *self.entries.entry(inode).or_insert(a.ino);
        if entry != a.ino {
            let (_, name) = self.groups.get(&entry)?;
            return Some(format!("it is a hard link to '{}', which is another file", report::told(name)));
        }
        None
    }

    fn compare_stat(
        &self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        a: &Attributes,
        metadata: &Metadata,
        there: &Stat,
    ) -> Option<&'static str> {
        let owners = &self.creator.owners;
        if FileType::from_raw_mode(there.st_mode) != file_type(a.kind) {
            return Some("it is of another kind");
        }
        if a.kind != Kind::Symlink && there.st_mode & 0o7777 != u32::from(owners.mode(metadata)) {
            return Some("its mode differs");
        }
        if owners.root && (there.st_uid, there.st_gid) != owners.of(metadata) {
            return Some("its owner differs");
        }
        if time_of(there) != (metadata.mtime.seconds(), i64::from(metadata.mtime.nanos())) {
            if !self.creator.is_kept_as(dir, metadata.mtime, there) {
                return Some("its time differs");
            }
            self.creator.report.time_left(path);
        }
        if a.kind == Kind::File && u64::try_from(there.st_size) != Ok(a.size) {
            return Some("its size differs");
        }
        let device = a.device.map_or(0, |device| rustix::fs::makedev(device.major, device.minor));
        (a.device.is_some() && there.st_rdev != device).then_some("its device number differs")
    }

    fn compare_contents(&self, file: &File, a: &Attributes) -> io::Result<Option<&'static str>> {
        // From the disk, not from what the kernel remembers of having written.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
        let Some(place) = self.bindings.index.place(a.ino) else { return Ok(None) };
        let same = copy::are_in(
            &self.creator.contents,
            file,
            &place,
            self.bindings.index.sparse(a.ino).map(|map| &**map),
            a.size,
        )?;
        Ok((!same).then_some("its contents differ"))
    }
}
