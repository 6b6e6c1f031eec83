//! Reads back what has been restored, and compares it with what was packed.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags, Stat, fadvise, getxattr, openat, readlinkat, statat};

use super::Error;
use super::restore::Restore;
use crate::entry::{EntryPath, Metadata};
use crate::index::{Arrival, Attributes, Ino, Kind};

/// So much is compared at a time.
const PIECE: usize = 1 << 20;

impl Restore<'_> {
    /// Compares everything that was to be restored. What differs is a problem.
    pub(super) fn verify(&mut self) -> Result<(), Error> {
        // Where the first name of an inode is on the disk.
        let mut inodes: HashMap<Ino, (u64, u64)> = HashMap::new();
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
                    (true, Ok(name)) => self.compare(directory, &name, &attributes, &mut inodes),
                    _ => Ok(Some("its directory is missing")),
                };
                match compared {
                    Ok(None) => {}
                    Ok(Some(what)) => self.report.problem(&path, format!("verified: {what}")),
                    Err(e) => self.problem(&path, e)?,
                }
            }
        }
        Ok(())
    }

    fn was_wanted(&self, path: &[u8], attributes: &Attributes) -> bool {
        let Ok(path) = EntryPath::parse(path) else { return false };
        if path.components().count() <= self.options.strip || self.index.is_implied(attributes.ino) {
            return false;
        }
        if attributes.kind == Kind::Directory {
            return self.target.has(attributes.ino);
        }
        // What has not arrived has been told.
        self.options.selection.wants(&path)
            && self.options.selection.is_new(attributes.mtime)
            && self.index.arrival(attributes.ino) == Some(Arrival::Complete)
    }

    /// What differs.
    fn compare(
        &mut self,
        directory: Ino,
        name: &CString,
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
        if let Some(what) = self.compare_stat(a, &metadata, &there) {
            return Ok(Some(what));
        }
        let seen = *inodes.entry(a.ino).or_insert((there.st_dev, there.st_ino));
        if seen != (there.st_dev, there.st_ino) {
            return Ok(Some("it is no hard link to its other names"));
        }
        let flags = match a.kind {
            Kind::File => OFlags::RDONLY | OFlags::NONBLOCK,
            _ => OFlags::PATH,
        };
        let fd = openat(&dir, &**name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if let Some(what) = compare_attributes(std::os::fd::AsFd::as_fd(&fd), &metadata)? {
            return Ok(Some(what));
        }
        match a.kind {
            Kind::Symlink => {
                let target = readlinkat(&dir, &**name, Vec::new())?;
                Ok((Some(target.as_bytes()) != self.index.target(a.ino)).then_some("its target differs"))
            }
            Kind::File => self.compare_contents(&File::from(fd), a),
            _ => Ok(None),
        }
    }

    fn compare_stat(&self, a: &Attributes, metadata: &Metadata, there: &Stat) -> Option<&'static str> {
        let kind = match a.kind {
            Kind::File => FileType::RegularFile,
            Kind::Directory => FileType::Directory,
            Kind::Symlink => FileType::Symlink,
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            Kind::Socket => FileType::Socket,
        };
        let owners = &self.creator.owners;
        if FileType::from_raw_mode(there.st_mode) != kind {
            return Some("it is of another kind");
        }
        if a.kind != Kind::Symlink && there.st_mode & 0o7777 != u32::from(owners.mode(metadata)) {
            return Some("its mode differs");
        }
        if owners.root && (there.st_uid, there.st_gid) != owners.of(metadata) {
            return Some("its owner differs");
        }
        let mtime = (there.st_mtime, i64::try_from(there.st_mtime_nsec).unwrap_or_default());
        if mtime != (metadata.mtime.seconds(), i64::from(metadata.mtime.nanos())) {
            return Some("its time differs");
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
        let sparse = self.index.sparse(a.ino);
        let blob = matches!(place, crate::index::Place::Blob(_));
        let source = if a.stored > 0 { Some(self.creator.contents.open(&place)?) } else { None };
        let read = |buf: &mut [u8], from: u64| match &source {
            Some((file, begin)) => file.read_exact_at(buf, begin + from),
            None => Ok(()),
        };
        let (mut packed, mut restored) = (vec![0; PIECE], vec![0; PIECE]);
        let mut at = 0;
        while at < a.size {
            let n = usize::try_from(a.size - at).unwrap_or(PIECE).min(PIECE);
            let (packed, restored) = (&mut packed[..n], &mut restored[..n]);
            match sparse {
                Some(map) if !blob => {
                    packed.fill(0);
                    for (segment, stored) in map.within(at, n as u64) {
                        let from = (segment.offset - at) as usize;
                        read(&mut packed[from..from + segment.len as usize], stored)?;
                    }
                }
                _ => read(packed, at)?,
            }
            file.read_exact_at(restored, at)?;
            if packed != restored {
                return Ok(Some("its contents differ"));
            }
            at += n as u64;
        }
        Ok(None)
    }
}

fn compare_attributes(fd: BorrowedFd<'_>, metadata: &Metadata) -> io::Result<Option<&'static str>> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    for (name, value) in metadata.xattrs.iter() {
        let mut there = vec![0; value.len() + 1];
        match getxattr(&*link, name, &mut there[..]) {
            Ok(n) if there[..n] == *value => {}
            _ => return Ok(Some("an extended attribute differs")),
        }
    }
    Ok(None)
}
