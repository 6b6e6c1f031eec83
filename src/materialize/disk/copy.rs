//! Stored bytes into a file of the target, and compared with one. Those of an archive in place the kernel copies; those
//! of a spool are compared with their checksums.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use rustix::io::Errno;

use crate::entry::{Segment, SparseMap};
use crate::index::Place;
use crate::materialize::error::Failure;
use crate::proof::Sums;
use crate::replay::{Contents, Read};

/// Below it, copying through memory costs less than asking the kernel to.
const SMALL: u64 = 256 << 10;

/// So much the kernel copies at a time: it can be stopped in between, and tells how far it is.
const BY_KERNEL: usize = 64 << 20;

/// So much goes through memory at a time.
const PIECE: usize = 1 << 20;

/// Copies the contents of a file with `stored` stored bytes, which lie at `place`, into `file`, which is empty. Holes
/// are passed over; the length of `file` is left to the caller. `wrote` is told how far it is.
///
/// # Errors
/// What is read is not what was stored, or one side fails.
pub(super) fn copy(
    contents: &Contents,
    place: &Place,
    map: Option<&SparseMap>,
    stored: u64,
    file: &File,
    wrote: &dyn Fn(u64),
) -> Result<(), Failure> {
    let whole = [Segment { offset: 0, len: stored }];
    let segments = map.map_or(&whole[..], SparseMap::segments);
    if let (Contents::Archive(archive), Place::Archive(at)) = (contents, place) {
        let mut from = *at;
        for segment in segments {
            by_kernel(archive.file(), from, file, segment.offset, segment.len, wrote)?;
            from += segment.len;
        }
        return Ok(());
    }
    let cloned = matches!(place, Place::Blob(number) if map.is_none() && clone_blob(contents, *number, stored, file));
    let mut piece = vec![0; PIECE.min(usize::try_from(stored).unwrap_or(PIECE))];
    contents.read(place, map, stored, |read| {
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
fn clone_blob(contents: &Contents, number: u64, len: u64, file: &File) -> bool {
    contents
        .blob(number)
        .is_ok_and(|blob| blob.metadata().is_ok_and(|there| there.len() == len) && ioctl_ficlone(file, &blob).is_ok())
}

/// Copies a part of a blob that is arriving: its checksums are not known yet, so that `sums` is made of what was read,
/// to be compared later.
pub(super) fn copy_early(
    contents: &Contents,
    number: u64,
    part: Range<u64>,
    file: &File,
    sums: &mut Sums,
    wrote: &dyn Fn(u64),
) -> Result<(), Failure> {
    let blob = contents.blob(number)?;
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

/// Whether `file`, of the right size, has what is stored at `place`.
pub(super) fn are_in(
    contents: &Contents,
    file: &File,
    place: &Place,
    sparse: Option<&SparseMap>,
    size: u64,
) -> Result<bool, Failure> {
    let stored = sparse.map_or(size, SparseMap::stored_len);
    let same = contents.read(place, sparse, stored, |read| compare(file, sparse, size, read))?;
    contents.check()?;
    Ok(same)
}

fn by_kernel(
    source: &File,
    mut from: u64,
    file: &File,
    mut to: u64,
    mut len: u64,
    wrote: &dyn Fn(u64),
) -> Result<(), Failure> {
    while len >= SMALL {
        let (mut off_in, mut off_out) = (from, to);
        let wanted = usize::try_from(len).unwrap_or(usize::MAX).min(BY_KERNEL);
        match copy_file_range(source, Some(&mut off_in), file, Some(&mut off_out), wanted) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
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
fn compare(file: &File, sparse: Option<&SparseMap>, size: u64, read: &mut Read<'_>) -> Result<bool, Failure> {
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
