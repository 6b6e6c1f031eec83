//! The stored bytes of a mount, read through the descriptors that its daemon hands over, with no way through the kernel's
//! FUSE. Those of a spool are compared with their checksums; those of an archive in place have none, and the kernel
//! copies them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::handed;
use crate::entry::{Segment, SparseMap};
use crate::index::Place;
use crate::proof::{Reader, Sums, Unproved, copy_from};
use crate::record;

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
        /// The checksums of its blobs, as the journal tells them.
        proofs: Arc<Proofs>,
        /// Who owns both.
        owner: u32,
    },
    /// In an archive that is mounted in place.
    Archive(Archive),
}

/// The checksums of blobs that are whole, as far as the journal has been read.
#[derive(Debug, Default)]
pub struct Proofs(Mutex<HashMap<u64, Arc<Mutex<Sums>>>>);

impl Proofs {
    pub(super) fn add(&self, blob: &Place, sums: Option<Sums>) {
        if let (Place::Blob(number) | Place::Packed(number), Some(sums)) = (blob, sums) {
            self.0.lock().insert(*number, Arc::new(Mutex::new(sums)));
        }
    }

    fn get(&self, number: u64) -> Option<Arc<Mutex<Sums>>> {
        self.0.lock().get(&number).cloned()
    }
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
    /// Those of a spool, as the daemon of this user has handed it over.
    pub fn spool(journal: OwnedFd, blobs: OwnedFd, daemon: u32) -> io::Result<Self> {
        let owner = handed::owner_of_blobs(&blobs, daemon)?;
        Ok(Contents::Spool {
            journal: Arc::new(handed::journal(journal, owner)?),
            blobs,
            owner,
            proofs: Arc::default(),
        })
    }

    /// Those of an archive, which must not change from now on.
    pub fn archive(file: OwnedFd) -> io::Result<Self> {
        let file = handed::archive(file)?;
        Ok(Contents::Archive(Archive { state: state(&file)?, file: Arc::new(file) }))
    }

    /// What has been read is what was packed, if this is asked afterwards.
    pub(super) fn check(&self) -> io::Result<()> {
        match self {
            Contents::Archive(archive) if state(&archive.file)? != archive.state => Err(io::Error::other(Changed)),
            _ => Ok(()),
        }
    }

    /// Copies the contents of a file with `stored` stored bytes, which lie at `place`, into `file`, which is empty. Holes
    /// are passed over; the length of `file` is left to the caller. `wrote` is told how far it is.
    ///
    /// # Errors
    /// What is read is not what was stored, or one side fails.
    pub(super) fn copy(
        &self,
        place: &Place,
        map: Option<&SparseMap>,
        stored: u64,
        file: &File,
        wrote: &dyn Fn(u64),
    ) -> io::Result<()> {
        let whole = [Segment { offset: 0, len: stored }];
        let segments = map.map_or(&whole[..], SparseMap::segments);
        if let (Contents::Archive(archive), Place::Archive(at)) = (self, place) {
            let mut from = *at;
            for segment in segments {
                copy(&archive.file, from, file, segment.offset, segment.len, wrote)?;
                from += segment.len;
            }
            return Ok(());
        }
        let cloned = matches!(place, Place::Blob(number) if map.is_none() && self.clone_blob(*number, stored, file));
        let mut piece = vec![0; PIECE.min(usize::try_from(stored).unwrap_or(PIECE))];
        self.stored(place, map, stored, |read| {
            let mut from = 0;
            for segment in segments {
                let (mut to, mut len) = (segment.offset, segment.len);
                while len > 0 {
                    let n = piece.len().min(usize::try_from(len).unwrap_or(usize::MAX));
                    // What is cloned is proved where it came from: both share it.
                    read(&mut piece[..n], from)?;
                    if !cloned {
                        file.write_all_at(&piece[..n], to)?;
                    }
                    wrote(n as u64);
                    (from, to, len) = (from + n as u64, to + n as u64, len - n as u64);
                }
            }
            Ok(())
        })
    }

    /// Has `file` share a blob's extents, where the filesystem can do that.
    fn clone_blob(&self, number: u64, len: u64, file: &File) -> bool {
        self.blob(number)
            .and_then(|blob| Ok(blob.metadata()?.len() == len && ioctl_ficlone(file, &blob).is_ok()))
            .unwrap_or(false)
    }

    /// Copies a part of a blob that is arriving: its checksums are not known yet, so that `sums` is made of what was read,
    /// to be compared later.
    pub(super) fn copy_early(
        &self,
        number: u64,
        part: Range<u64>,
        file: &File,
        sums: &mut Sums,
        wrote: &dyn Fn(u64),
    ) -> io::Result<()> {
        let blob = self.blob(number)?;
        let mut piece = vec![0; PIECE];
        let mut at = part.start;
        while at < part.end {
            let n = PIECE.min(usize::try_from(part.end - at).unwrap_or(PIECE));
            blob.read_exact_at(&mut piece[..n], at)?;
            file.write_all_at(&piece[..n], at)?;
            sums.update(&piece[..n]);
            wrote(n as u64);
            at += n as u64;
        }
        Ok(())
    }

    /// Whether a blob that is whole has these checksums.
    pub(super) fn proves(&self, number: u64, sums: &Sums) -> bool {
        match self {
            Contents::Spool { proofs, .. } => proofs.get(number).is_some_and(|proof| *proof.lock() == *sums),
            Contents::Archive(_) => false,
        }
    }

    /// Hands `work` a function that reads stored bytes of a file at `place`, and proves those of a spool.
    fn stored<T>(
        &self,
        place: &Place,
        map: Option<&SparseMap>,
        stored: u64,
        work: impl FnOnce(&mut dyn FnMut(&mut [u8], u64) -> io::Result<()>) -> io::Result<T>,
    ) -> io::Result<T> {
        match (self, place) {
            (_, Place::Empty) => work(&mut |buf, _| {
                buf.fill(0);
                Ok(())
            }),
            (Contents::Archive(archive), Place::Archive(at)) => {
                work(&mut |buf, from| archive.file.read_exact_at(buf, at + from))
            }
            (Contents::Spool { journal, .. }, Place::Journal(at)) => {
                let bytes = record::read_data(journal, *at, stored)?;
                work(&mut |buf, from| copy_from(&bytes, buf, from))
            }
            (Contents::Spool { proofs, .. }, Place::Blob(number) | Place::Packed(number)) => {
                let sums = proofs.get(*number).ok_or(Unproved::NoChecksum { at: 0 })?;
                let blob = self.blob(*number)?;
                let mut reader = Reader::new(&blob, map.filter(|_| matches!(place, Place::Blob(_))), &sums);
                work(&mut |buf, from| {
                    reader.read(buf, from).map_err(|e| match e.kind() {
                        io::ErrorKind::UnexpectedEof => handed::Distrust::Short.into(),
                        _ => e,
                    })
                })
            }
            _ => Err(io::Error::other("its contents are in no place that was handed over")),
        }
    }

    /// Whether `file`, of the right size, has what is stored at `place`.
    pub(super) fn are_in(&self, file: &File, place: &Place, sparse: Option<&SparseMap>, size: u64) -> io::Result<bool> {
        let stored = sparse.map_or(size, SparseMap::stored_len);
        let same = self.stored(place, sparse, stored, |read| compare(file, sparse, size, read))?;
        self.check()?;
        Ok(same)
    }

    /// How much of a blob has been written, if it has no holes.
    pub(super) fn blob_length(&self, number: u64) -> io::Result<u64> {
        Ok(self.blob(number)?.metadata()?.len())
    }

    pub(super) fn blob(&self, number: u64) -> io::Result<File> {
        match self {
            Contents::Spool { blobs, owner, .. } => Ok(handed::blob(blobs, number, *owner)?),
            Contents::Archive(_) => Err(io::ErrorKind::NotFound.into()),
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

/// Whether `file`, of `size` bytes, has the contents that `read` gives.
fn compare(
    file: &File,
    sparse: Option<&SparseMap>,
    size: u64,
    read: &mut dyn FnMut(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<bool> {
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
            Some(map) => {
                packed.fill(0);
                for (segment, stored) in map.within(at, n as u64) {
                    let from = (segment.offset - at) as usize;
                    read(&mut packed[from..from + segment.len as usize], stored)?;
                }
            }
            None => read(packed, at)?,
        }
        file.read_exact_at(restored, at)?;
        if packed != restored {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(true)
}
