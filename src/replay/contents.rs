//! The stored bytes of a mount, read through descriptors, with no way through the kernel's FUSE. Those of a spool are
//! compared with their checksums; those of an archive in place have none.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use parking_lot::Mutex;

use super::error::Error;
use super::handed::{self, Distrust};
use crate::entry::SparseMap;
use crate::index::Place;
use crate::proof::{Reader, Sums, Unproved, copy_from};
use crate::record;

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
    Archive(ArchiveFile),
}

/// Fills a buffer with the stored bytes of a file from an offset on.
pub type Read<'a> = dyn FnMut(&mut [u8], u64) -> Result<(), Error> + 'a;

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
pub struct ArchiveFile {
    file: Arc<File>,
    state: (u64, i64, i64),
}

impl ArchiveFile {
    /// The archive itself.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

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
    pub fn spool(journal: OwnedFd, blobs: OwnedFd, daemon: u32) -> Result<Self, Error> {
        let owner = handed::owner_of_blobs(&blobs, daemon)?;
        Ok(Contents::Spool {
            journal: Arc::new(handed::journal(journal, owner)?),
            blobs,
            owner,
            proofs: Arc::default(),
        })
    }

    /// Those of an archive, which must not change from now on.
    pub fn archive(file: OwnedFd) -> Result<Self, Error> {
        let file = handed::archive(file)?;
        Ok(Contents::Archive(ArchiveFile { state: state(&file)?, file: Arc::new(file) }))
    }

    /// What has been read is what was packed, if this is asked afterwards.
    pub fn check(&self) -> Result<(), Error> {
        match self {
            Contents::Archive(archive) if state(&archive.file)? != archive.state => Err(Error::Changed),
            _ => Ok(()),
        }
    }

    /// Whether a blob that is whole has these checksums.
    pub fn proves(&self, number: u64, sums: &Sums) -> bool {
        match self {
            Contents::Spool { proofs, .. } => proofs.get(number).is_some_and(|proof| *proof.lock() == *sums),
            Contents::Archive(_) => false,
        }
    }

    /// Hands `work` a function that fills a buffer with the stored bytes, from an offset on, of a file that has `stored` of
    /// them at `place`. Those of a spool are proved.
    ///
    /// # Errors
    /// What is read is not what was stored, or cannot be read; or the error of `work`.
    pub fn read<T, E: From<Error>>(
        &self,
        place: &Place,
        map: Option<&SparseMap>,
        stored: u64,
        work: impl FnOnce(&mut Read<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        match (self, place) {
            (_, Place::Empty) => work(&mut |buf, _| {
                buf.fill(0);
                Ok(())
            }),
            (Contents::Archive(archive), Place::Archive(at)) => {
                work(&mut |buf, from| Ok(archive.file.read_exact_at(buf, at + from)?))
            }
            (Contents::Spool { journal, .. }, Place::Journal(at)) => {
                let bytes = record::read_data(journal, *at, stored).map_err(Error::from)?;
                work(&mut |buf, from| Ok(copy_from(&bytes, buf, from)?))
            }
            (Contents::Spool { proofs, .. }, Place::Blob(number) | Place::Packed(number)) => {
                let sums = proofs.get(*number).ok_or_else(|| Error::Io(Unproved::NoChecksum { at: 0 }.into()))?;
                let blob = self.blob(*number)?;
                let mut reader = Reader::new(&blob, map.filter(|_| matches!(place, Place::Blob(_))), &sums);
                work(&mut |buf, from| {
                    reader.read(buf, from).map_err(|e| match e.kind() {
                        io::ErrorKind::UnexpectedEof => Distrust::Short.into(),
                        _ => e.into(),
                    })
                })
            }
            _ => Err(Error::Elsewhere.into()),
        }
    }

    /// How much of a blob has been written, if it has no holes.
    pub fn blob_length(&self, number: u64) -> Result<u64, Error> {
        Ok(self.blob(number)?.metadata()?.len())
    }

    /// Opens a blob.
    pub fn blob(&self, number: u64) -> Result<File, Error> {
        match self {
            Contents::Spool { blobs, owner, .. } => Ok(handed::blob(blobs, number, *owner)?),
            Contents::Archive(_) => Err(Error::Elsewhere),
        }
    }
}
