//! The stored bytes of a mount, read through the descriptors that its daemon hands over: no way through the kernel's
//! FUSE, and no copy through our memory where the kernel can do without.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, SeekFrom, copy_file_range, ioctl_ficlone, openat, seek};
use rustix::io::Errno;

use crate::entry::SparseMap;
use crate::index::Place;

/// Below it, copying through memory costs less than asking the kernel to.
const SMALL: u64 = 256 << 10;

/// So much the kernel copies at a time: it can be stopped in between, and tells how far it is.
const BY_KERNEL: usize = 64 << 20;

/// So much goes through memory at a time.
const PIECE: usize = 1 << 20;

/// Where the bytes are.
#[derive(Debug)]
pub enum Contents {
    /// In a spool.
    Spool {
        /// Its journal.
        journal: Arc<File>,
        /// The directory of its blobs.
        blobs: OwnedFd,
    },
    /// In an archive that is mounted in place.
    Archive(Archive),
}

/// An archive that is mounted in place, as it was when it was handed over.
#[derive(Debug)]
pub struct Archive {
    pub(super) file: Arc<File>,
    state: (u64, i64, i64),
}

/// Somebody has written to the archive: what has been read of it since may be anything.
#[derive(Debug, thiserror::Error)]
#[error("the archive has been changed since it was mounted (unmount it, and mount it again)")]
pub(super) struct Changed;

impl Archive {
    /// Size of the archive.
    pub fn size(&self) -> u64 {
        self.state.0
    }
}

fn state(file: &File) -> io::Result<(u64, i64, i64)> {
    file.metadata().map(|m| (m.len(), m.mtime(), m.mtime_nsec()))
}

impl Contents {
    /// Those of an archive, which must not change from now on.
    pub fn archive(file: File) -> io::Result<Self> {
        Ok(Contents::Archive(Archive { state: state(&file)?, file: Arc::new(file) }))
    }

    /// What has been read is what was packed, if this is asked afterwards.
    pub(super) fn check(&self) -> io::Result<()> {
        match self {
            Contents::Archive(archive) if state(&archive.file)? != archive.state => Err(io::Error::other(Changed)),
            _ => Ok(()),
        }
    }

    /// Copies `len` bytes from `from` of what is stored at `place` to `to` of `file`, which is empty there. `wrote` is
    /// told how far it is.
    pub(super) fn copy(
        &self,
        place: &Place,
        from: u64,
        file: &File,
        to: u64,
        len: u64,
        wrote: &dyn Fn(u64),
    ) -> io::Result<()> {
        let (source, begin) = self.open(place)?;
        let whole_blob = matches!(place, Place::Blob(_)) && from == 0 && to == 0 && source.metadata()?.len() == len;
        if whole_blob && ioctl_ficlone(file, &source).is_ok() {
            wrote(len);
            return Ok(());
        }
        copy(&source, begin + from, file, to, len, wrote)
    }

    /// Whether `file`, of the right size, has what is stored at `place`.
    pub(super) fn are_in(&self, file: &File, place: &Place, sparse: Option<&SparseMap>, size: u64) -> io::Result<bool> {
        let source = if matches!(place, Place::Empty) { None } else { Some(self.open(place)?) };
        let read = |buf: &mut [u8], from: u64| match &source {
            Some((file, begin)) => file.read_exact_at(buf, begin + from),
            None => {
                buf.fill(0);
                Ok(())
            }
        };
        // Neither side reads its holes: there may be more of them than anybody can wait for.
        let next_packed = |at| match sparse {
            Some(map) => map.within(at, size - at).next().map_or((size, size), |(s, _)| (s.offset, s.offset + s.len)),
            None => (at, size),
        };
        let next_restored = |at| match seek(file, SeekFrom::Data(at)) {
            Ok(data) => (data, seek(file, SeekFrom::Hole(data)).unwrap_or(size)),
            Err(Errno::NXIO) => (size, size),
            Err(_) => (at, size),
        };
        let length = usize::try_from(size).unwrap_or(PIECE).min(PIECE);
        let (mut packed, mut restored) = (vec![0; length], vec![0; length]);
        let mut at = 0;
        let (mut ours, mut theirs) = ((0, 0), (0, 0));
        while at < size {
            if ours.1 <= at {
                ours = next_packed(at);
            }
            if theirs.1 <= at {
                theirs = next_restored(at);
            }
            let begin = ours.0.min(theirs.0).max(at);
            if begin > at {
                at = begin;
                continue;
            }
            // Up to the end of what has begun here.
            let end = [ours, theirs].into_iter().filter(|(from, _)| *from <= at).map(|(_, to)| to).max();
            let n = usize::try_from(end.unwrap_or(size).min(size) - at).unwrap_or(PIECE).min(PIECE);
            let (packed, restored) = (&mut packed[..n], &mut restored[..n]);
            match sparse {
                // A blob has them at their offsets in the file.
                Some(map) if !matches!(place, Place::Blob(_)) => {
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
                return Ok(false);
            }
            at += n as u64;
        }
        self.check()?;
        Ok(true)
    }

    /// How much of a blob has been written, if it has no holes.
    pub(super) fn blob_length(&self, number: u64) -> io::Result<u64> {
        Ok(self.blob(number)?.metadata()?.len())
    }

    pub(super) fn blob(&self, number: u64) -> io::Result<Arc<File>> {
        Ok(self.open(&Place::Blob(number))?.0)
    }

    /// The file that has what is stored at `place`, and where in it that begins.
    fn open(&self, place: &Place) -> io::Result<(Arc<File>, u64)> {
        match (self, place) {
            (Contents::Spool { blobs, .. }, Place::Blob(number)) => {
                let blob = openat(blobs, number.to_string(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
                Ok((Arc::new(blob.into()), 0))
            }
            (Contents::Spool { journal, .. }, Place::Journal(at)) => Ok((journal.clone(), *at)),
            (Contents::Archive(archive), Place::Archive(at)) => Ok((archive.file.clone(), *at)),
            _ => Err(io::Error::other("its contents are in no place that was handed over")),
        }
    }
}

fn copy(source: &File, mut from: u64, file: &File, mut to: u64, mut len: u64, wrote: &dyn Fn(u64)) -> io::Result<()> {
    while len >= SMALL {
        let (mut off_in, mut off_out) = (from, to);
        let wanted = usize::try_from(len).unwrap_or(usize::MAX).min(BY_KERNEL);
        match copy_file_range(source, Some(&mut off_in), file, Some(&mut off_out), wanted) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                let n = n as u64;
                (from, to, len) = (from + n, to + n, len - n);
                wrote(n);
            }
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::BADF) => break,
            Err(e) => return Err(e.into()),
        }
    }
    let mut piece = vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE))];
    while len > 0 {
        let n = piece.len().min(usize::try_from(len).unwrap_or(usize::MAX));
        source.read_exact_at(&mut piece[..n], from)?;
        file.write_all_at(&piece[..n], to)?;
        let n = n as u64;
        (from, to, len) = (from + n, to + n, len - n);
        wrote(n);
    }
    Ok(())
}
