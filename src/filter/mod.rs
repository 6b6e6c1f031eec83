//! Decompression, recognised by magic on every source: gzip, zstd, xz, bzip2, lz4.
//!
//! Reading and decompressing run on a thread of their own, beside whoever takes the bytes. Every byte that
//! a decompressor can produce from what has arrived is handed over before the source is asked for more, so
//! nothing hides in a buffer while a connection is held open. Members, frames and streams that follow one
//! another are one stream; zeros behind the last are padding, anything else there is warned of and ignored.

mod codec;
mod detect;
mod run;
#[cfg(test)]
mod tests;

use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, sync_channel};
use std::thread::JoinHandle;

pub use detect::Compression;
use detect::{Detected, ENOUGH, detect};

use crate::monitor::Monitor;
use crate::source::{ReadError, Source, Stop};

/// So much is read, and handed over, at once at most.
pub const CHUNK: usize = 256 << 10;

/// So many chunks may wait to be taken.
const WAITING: usize = 4;

/// Why a stream of chunks ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// [`Stop`] was said.
    #[error("receiving was stopped")]
    Stopped,
    /// The source failed, or the connection broke.
    #[error("{0}")]
    Read(std::io::Error),
    /// The compressed stream is over, its decompressor is not.
    #[error("the {0} stream ended early")]
    Truncated(&'static str),
    /// The decompressor cannot go on.
    #[error("{0}")]
    Corrupt(String),
}

impl From<ReadError> for Error {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Stopped => Error::Stopped,
            ReadError::Io(e) => Error::Read(e),
        }
    }
}

/// Whether a source is a regular file that holds a tar archive as it is.
pub fn is_plain_file(source: &Source) -> bool {
    source.file().is_some_and(|file| {
        let mut magic = [0; ENOUGH];
        let n = file.read_at(&mut magic, 0).unwrap_or(0);
        matches!(detect(&magic[..n]), Detected::Plain | Detected::More)
    })
}

/// Bytes of the stream: a part of a buffer that stays as long as it is, so that nothing has to be cleared when it is
/// used again.
#[derive(Debug)]
pub struct Bytes {
    buffer: Vec<u8>,
    range: Range<usize>,
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// Bytes, and whether all so far are checked: whether they end where a member does.
#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    whole: bool,
}

/// The bytes of a source, decompressed.
#[derive(Debug)]
pub struct Chunks {
    chunks: Option<Receiver<Result<Chunk, Error>>>,
    used: Sender<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
    over: bool,
    whole: bool,
}

impl Chunks {
    /// Begins to read.
    pub fn new(source: Source, stop: Stop, monitor: Arc<Monitor>) -> std::io::Result<Self> {
        let (send, chunks) = sync_channel(WAITING);
        let (used, spare) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("filter".into()).spawn(move || {
            run::Run::new(source, stop, monitor, send, spare).run();
        })?;
        Ok(Chunks { chunks: Some(chunks), used, thread: Some(thread), over: false, whole: true })
    }

    /// The next bytes, none where only [`Chunks::is_whole`] is news; `None` at the end of the stream. After an
    /// error there is no more.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if self.over {
            return Ok(None);
        }
        // The thread hands over an error before it ends, so a closed channel is the end of the stream.
        match self.chunks.as_ref().map(Receiver::recv) {
            Some(Ok(Ok(chunk))) => {
                self.whole = chunk.whole;
                Ok(Some(chunk.bytes))
            }
            Some(Ok(Err(error))) => {
                self.over = true;
                Err(error)
            }
            Some(Err(_)) | None => {
                self.over = true;
                match self.thread.take().map(JoinHandle::join) {
                    Some(Err(_)) => Err(Error::Corrupt("the decompressor failed".into())),
                    _ => Ok(None),
                }
            }
        }
    }

    /// Whether no more has to come to know that the bytes handed over are right: the compressed member that they
    /// are from is at its end, checksum and all.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Gives the memory of a chunk back.
    pub fn recycle(&self, chunk: Bytes) {
        let _ = self.used.send(chunk.buffer);
    }
}

impl Drop for Chunks {
    /// The thread ends with its next chunk, or when its [`Stop`] is said.
    fn drop(&mut self) {
        self.chunks = None;
    }
}
