//! What is in the target, read back and compared with what must be there.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags, Stat, fadvise, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::copy;
use super::creator::Creator;
use super::metadata::{Held, file_type, time_of};
use super::target::Target;
use crate::entry::Metadata;
use crate::index::{Ino, Kind};
use crate::materialize::error::Failure;
use crate::materialize::plan::{Compare, Expected};
use crate::materialize::report::is_of_macos;

/// Reads back what is in the target.
pub(in crate::materialize) struct Comparer<'a> {
    creator: &'a Creator,
    target: Target,
}

impl<'a> Comparer<'a> {
    /// Begins at the root of `target`, in which nothing is known yet.
    pub(in crate::materialize) fn new(creator: &'a Creator, target: Target) -> Self {
        Comparer { creator, target }
    }

    fn compare_stat(
        &self,
        dir: BorrowedFd<'_>,
        expected: &Expected<'_>,
        metadata: &Metadata,
        there: &Stat,
    ) -> Option<&'static str> {
        let (owners, a) = (&self.creator.owners, expected.attributes);
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
            self.creator.report.time_left(expected.path);
        }
        if a.kind == Kind::File && u64::try_from(there.st_size) != Ok(a.size) {
            return Some("its size differs");
        }
        let device = a.device.map_or(0, |device| rustix::fs::makedev(device.major, device.minor));
        (a.device.is_some() && there.st_rdev != device).then_some("its device number differs")
    }

    /// What differs in what belongs to the kind: the target of a link, the contents of a file.
    fn compare_contents(
        &self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        expected: &Expected<'_>,
    ) -> Result<Option<&'static str>, Failure> {
        match expected.attributes.kind {
            Kind::Symlink => {
                let target = readlinkat(dir, name, Vec::new())?;
                Ok((Some(target.as_bytes()) != expected.target).then_some("its target differs"))
            }
            Kind::File => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(openat(dir, name, flags, Mode::empty())?);
                // From the disk, not from what the kernel remembers of having written.
                let _ = fadvise(&file, 0, None, Advice::DontNeed);
                let Some(place) = &expected.place else { return Ok(None) };
                let (contents, size) = (&self.creator.contents, expected.attributes.size);
                let same = copy::are_in(contents, &file, place, expected.sparse, size)?;
                Ok((!same).then_some("its contents differ"))
            }
            _ => Ok(None),
        }
    }
}

impl Compare for Comparer<'_> {
    fn root(&self, expected: &Expected<'_>) -> io::Result<Option<&'static str>> {
        let root = self.target.root();
        let there = fstat(&root)?;
        Ok(expected.metadata.and_then(|metadata| self.compare_stat(root.as_fd(), expected, metadata, &there)))
    }

    fn name(
        &mut self,
        parent: Ino,
        child: Ino,
        name: CString,
        expected: &Expected<'_>,
        links: &mut dyn FnMut(&Stat) -> Option<String>,
    ) -> Result<Option<String>, Failure> {
        let dir = self.target.get(parent)?;
        let there = match statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) => there,
            Err(Errno::NOENT) => return Ok(Some("it is missing".into())),
            Err(e) => return Err(e.into()),
        };
        let kind = expected.attributes.kind;
        if FileType::from_raw_mode(there.st_mode) != file_type(kind) {
            return Ok(Some("it is of another kind".into()));
        }
        if kind == Kind::Directory {
            self.target.enter(child, parent, name.clone())?;
        }
        let Some(metadata) = expected.metadata else { return Ok(None) };
        if let Some(what) = self.compare_stat(dir.as_fd(), expected, metadata, &there) {
            return Ok(Some(what.into()));
        }
        if let Some(what) = links(&there) {
            return Ok(Some(what));
        }
        let held = Held::found(dir.as_fd(), &name, &there)?;
        if !metadata.xattrs.iter().all(|(name, value)| held.has(name, value) || is_of_macos(name)) {
            return Ok(Some("an extended attribute differs".into()));
        }
        if held.has_others(&metadata.xattrs) {
            return Ok(Some("it has an extended attribute or an ACL that was not packed".into()));
        }
        Ok(self.compare_contents(dir.as_fd(), &name, expected)?.map(str::to_owned))
    }

    fn has(&self, directory: Ino) -> bool {
        self.target.has(directory)
    }

    fn is_fatal(&self, cause: &Failure) -> bool {
        self.creator.is_fatal(cause)
    }
}
