//! Reads back what has been restored, and compares it with what was packed.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags, Stat, fadvise, fstat, openat, readlinkat, statat};

use super::Error;
use super::create::{file_type, time_of};
use super::metadata::Held;
use super::report::is_of_macos;
use super::restore::Restore;
use crate::entry::{EntryPath, Metadata};
use crate::index::{Arrival, Attributes, Ino, Kind};

impl Restore<'_> {
    /// Compares everything that was to be restored. What differs is a problem.
    pub(super) fn verify(&mut self) -> Result<(), Error> {
        // Where the first name of an inode is on the disk.
        let mut inodes: HashMap<Ino, (u64, u64)> = HashMap::new();
        if self.options.strip == 0 && self.options.selection.is_all() && !self.index.is_implied(Ino::ROOT) {
            let root = self.target.root();
            let there =
                fstat(&root).map_err(|e| Error::Target { path: self.options.target.clone(), cause: e.into() })?;
            if let (Some(a), Some(metadata)) = (self.index.attributes(Ino::ROOT), self.metadata(Ino::ROOT))
                && let Some(what) = self.compare_stat(root.as_fd(), b".", &a, &metadata, &there)
            {
                self.report.problem(b".", format!("verified: {what}"));
            }
        }
        let mut directories = vec![(Ino::ROOT, Vec::new())];
        while let Some((directory, path)) = directories.pop() {
            let children: Vec<(Vec<u8>, Ino)> =
                self.index.list(directory, 0).map(|(_, name, ino)| (name.to_vec(), ino)).collect();
            for (name, ino) in children {
                let mut path = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&name);
                let Some(attributes) = self.index.attributes(ino) else { continue };
                if attributes.kind == Kind::Directory && self.target.has(ino) {
                    directories.push((ino, path.clone()));
                }
                if !self.was_wanted(&path, &attributes) || self.target.is_stripped(ino) {
                    continue;
                }
                let compared = match (self.target.has(directory), CString::new(name)) {
                    (true, Ok(name)) => self.compare(directory, &name, &path, &attributes, &mut inodes),
                    _ => Ok(Some("its directory is missing")),
                };
                match compared {
                    Ok(None) => {}
                    Ok(Some(what)) => self.report.problem(&path, format!("verified: {what}")),
                    Err(e) if e.raw_os_error() == Some(libc::EACCES) => {
                        self.report.problem(&path, format!("it cannot be read back: {e}"));
                    }
                    Err(e) => self.problem(&path, e)?,
                }
            }
        }
        self.creator.contents.check().map_err(Error::Replay)
    }

    fn was_wanted(&self, path: &[u8], attributes: &Attributes) -> bool {
        let Ok(path) = EntryPath::parse(path) else { return false };
        if path.components().count() <= self.options.strip || self.index.is_implied(attributes.ino) {
            return false;
        }
        if attributes.kind == Kind::Directory {
            return self.target.has(attributes.ino);
        }
        // What has not arrived has been told, and what has been replaced, as leading components are left away, is gone.
        self.options.selection.wants(&path)
            && self.is_at(&path, attributes.ino)
            && self.options.selection.is_new(attributes.mtime)
            && self.index.arrival(attributes.ino) == Some(Arrival::Complete)
    }

    /// What differs.
    fn compare(
        &mut self,
        directory: Ino,
        name: &CString,
        path: &[u8],
        a: &Attributes,
        inodes: &mut HashMap<Ino, (u64, u64)>,
    ) -> io::Result<Option<&'static str>> {
        let dir = self.target.get(directory)?;
        let there = match statat(&dir, &**name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => there,
            Err(rustix::io::Errno::NOENT) => return Ok(Some("it is missing")),
            Err(e) => return Err(e.into()),
        };
        let Some(metadata) = self.metadata(a.ino) else { return Ok(None) };
        if let Some(what) = self.compare_stat(dir.as_fd(), path, a, &metadata, &there) {
            return Ok(Some(what));
        }
        let seen = *inodes.entry(a.ino).or_insert((there.st_dev, there.st_ino));
        if seen != (there.st_dev, there.st_ino) {
            return Ok(Some("it is no hard link to its other names"));
        }
        let held = Held::found(dir.as_fd(), name, &there)?;
        if !metadata.xattrs.iter().all(|(name, value)| held.has(name, value) || is_of_macos(name)) {
            return Ok(Some("an extended attribute differs"));
        }
        if held.has_others(&metadata.xattrs) {
            return Ok(Some("it has an extended attribute or an ACL that was not packed"));
        }
        match a.kind {
            Kind::Symlink => {
                let target = readlinkat(&dir, &**name, Vec::new())?;
                Ok((Some(target.as_bytes()) != self.index.target(a.ino)).then_some("its target differs"))
            }
            Kind::File => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                self.compare_contents(&File::from(openat(&dir, &**name, flags, Mode::empty())?), a)
            }
            _ => Ok(None),
        }
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
            self.report.time_left(path);
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
        let Some(place) = self.index.place(a.ino) else { return Ok(None) };
        let same = self.creator.contents.are_in(file, &place, self.index.sparse(a.ino).map(|map| &**map), a.size)?;
        Ok((!same).then_some("its contents differ"))
    }
}
