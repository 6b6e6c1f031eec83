//! The contents of one large file on their way into its blob: where each piece goes, and how far it is.

use std::io;
use std::sync::Arc;

use crate::entry::SparseMap;
use crate::index::Ino;
use crate::spool::{self, Form, Spool};

/// A file whose contents arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// The number of its entry in the journal.
    pub entry: u64,
    /// Its inode. None means the entry that came last: who decodes ahead of the index does not know more.
    pub ino: Option<Ino>,
}

/// The spool's filesystem, or the limit of the process (RLIMIT_FSIZE), has no room for files of this size. Others still fit.
#[derive(Debug, thiserror::Error)]
pub enum TooLarge {
    /// Nothing of it is kept.
    #[error("its contents are left out: no file of {size} bytes")]
    LeftOut {
        /// Its length.
        size: u64,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// Its beginning is kept.
    #[error("only {received} bytes of its contents are kept: no file of {size} bytes")]
    Cut {
        /// Stored bytes that are in the blob.
        received: u64,
        /// Its length.
        size: u64,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
}

/// Why contents do not get into a blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// This file alone.
    #[error(transparent)]
    TooLarge(TooLarge),
    /// The spool as a whole.
    #[error(transparent)]
    Spool(spool::Error),
}

/// The blob of a file that is arriving.
#[derive(Debug)]
pub struct Blob {
    pub(super) file: FileRef,
    pub(super) spooled: spool::Blob,
    pub(super) packed: bool,
    size: u64,
    /// Where stored bytes go; without it, to their own offset.
    map: Option<Arc<SparseMap>>,
    received: u64,
}

impl Blob {
    /// Begins the blob of a file of this size, which is packed where its holes are many, waiting for room.
    pub(super) fn create(
        spool: &Spool,
        file: FileRef,
        size: u64,
        map: Option<Arc<SparseMap>>,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Self, BlobError> {
        let packed = Form::of_blob(map.as_deref()) == Form::Packed;
        let map = map.filter(|_| !packed);
        let spooled = spool.create_blob(map.is_some().then_some(size), stopped).map_err(|e| too_large(e, size, 0))?;
        Ok(Blob { file, spooled, packed, size, map, received: 0 })
    }

    /// Goes on with a blob that has the first `received` stored bytes of a file of this size.
    pub fn resume(file: FileRef, spooled: spool::Blob, size: u64, map: Option<Arc<SparseMap>>, received: u64) -> Self {
        let packed = Form::of_blob(map.as_deref()) == Form::Packed;
        Blob { file, spooled, packed, size, map: map.filter(|_| !packed), received }
    }

    /// Stored bytes that are in it.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Writes the stored bytes that follow those that are in it, waiting for room.
    ///
    /// # Errors
    /// After one, [`Blob::received`] still says what is there.
    pub fn write(&mut self, spool: &Spool, bytes: &[u8], stopped: &dyn Fn() -> bool) -> Result<(), BlobError> {
        let Some(map) = self.map.clone() else { return self.piece(spool, bytes, self.received, stopped) };
        let mut rest = bytes;
        for segment in map.place(self.received, bytes.len() as u64) {
            let (piece, after) = rest.split_at(segment.len as usize);
            self.piece(spool, piece, segment.offset, stopped)?;
            rest = after;
        }
        Ok(())
    }

    fn piece(&mut self, spool: &Spool, bytes: &[u8], at: u64, stopped: &dyn Fn() -> bool) -> Result<(), BlobError> {
        let written = spool.write_blob(&mut self.spooled, bytes, at, stopped);
        written.map_err(|e| too_large(e, self.size, self.received))?;
        self.received += bytes.len() as u64;
        Ok(())
    }
}

fn too_large(e: spool::Error, size: u64, received: u64) -> BlobError {
    match e {
        spool::Error::Write { cause, .. } if cause.kind() == io::ErrorKind::FileTooLarge => {
            BlobError::TooLarge(match received {
                0 => TooLarge::LeftOut { size, cause },
                _ => TooLarge::Cut { received, size, cause },
            })
        }
        e => BlobError::Spool(e),
    }
}
