//! The stored bytes of a mount, read through the descriptors that its daemon hands over: no way through the kernel's
//! FUSE, and no copy through our memory where the kernel can do without.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, copy_file_range, ioctl_ficlone, openat};
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
    Archive(Arc<File>),
}

impl Contents {
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
        let length = usize::try_from(size).unwrap_or(PIECE).min(PIECE);
        let (mut packed, mut restored) = (vec![0; length], vec![0; length]);
        let mut at = 0;
        while at < size {
            let n = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
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
        Ok(true)
    }

    /// The file that has what is stored at `place`, and where in it that begins.
    fn open(&self, place: &Place) -> io::Result<(Arc<File>, u64)> {
        match (self, place) {
            (Contents::Spool { blobs, .. }, Place::Blob(number)) => {
                let blob = openat(blobs, number.to_string(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
                Ok((Arc::new(blob.into()), 0))
            }
            (Contents::Spool { journal, .. }, Place::Journal(at)) => Ok((journal.clone(), *at)),
            (Contents::Archive(archive), Place::Archive(at)) => Ok((archive.clone(), *at)),
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
