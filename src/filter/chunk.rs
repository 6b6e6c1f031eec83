//! What a filter hands over: bytes, or why there are no more.

use std::ops::{Deref, Range};

use super::codec::Corrupt;
use super::detect::Compression;
use crate::source::ReadError;

/// So much is read, and handed over, at once at most.
pub const CHUNK: usize = 256 << 10;

/// Why a stream of chunks ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// [`Stop`](crate::stop::Stop) was said.
    #[error("receiving was stopped")]
    Stopped,
    /// The source failed, or the connection broke.
    #[error(transparent)]
    Read(std::io::Error),
    /// The compressed stream is over, its decompressor is not.
    #[error("the {0} stream ended early")]
    Truncated(&'static str),
    /// The decompressor cannot go on.
    #[error(transparent)]
    Corrupt(Corrupt),
    /// A fault of ours.
    #[error("the decompressor failed")]
    Panicked,
    /// It is compressed in a form that is not read.
    #[error("{0}")]
    Unsupported(String),
}

impl From<ReadError> for Error {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Stopped => Error::Stopped,
            ReadError::Io(e) => Error::Read(e),
        }
    }
}

/// Bytes of the stream: a part of a buffer that stays as long as it is, so that nothing has to be cleared when it is
/// used again.
#[derive(Debug)]
pub struct Bytes {
    pub(super) buffer: Vec<u8>,
    pub(super) range: Range<usize>,
}

impl From<Vec<u8>> for Bytes {
    fn from(buffer: Vec<u8>) -> Self {
        Bytes { range: 0..buffer.len(), buffer }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// Bytes, and whether all so far are checked: whether they end where a member does.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) bytes: Bytes,
    pub(super) whole: bool,
    /// How they were compressed.
    pub(super) compression: Option<Compression>,
}
