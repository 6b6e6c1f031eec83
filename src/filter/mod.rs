//! Decompression, recognised by magic on every source: gzip, zstd, xz, bzip2, lz4, lzma and lzip; also where what comes
//! out is compressed once more.
//!
//! Reading and decompressing run on a thread of their own, beside whoever takes the bytes. Every byte that
//! a decompressor can produce from what has arrived is handed over before the source is asked for more, so
//! nothing hides in a buffer while a connection is held open. Members, frames and streams that follow one
//! another are one stream; zeros behind the last are padding, anything else there is warned of and ignored.

mod chunk;
mod codec;
mod detect;
mod recognise;
mod run;
#[cfg(test)]
mod tests;

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, sync_channel};
use std::thread::JoinHandle;

use chunk::Chunk;
pub use chunk::{Bytes, CHUNK, Error};
pub use codec::Corrupt;
pub use detect::Compression;
use detect::{Detected, ENOUGH, detect};
pub use recognise::{HEAD, NoTar, recognise};
use run::{Feed, Inner, Run};

use crate::monitor::Monitor;
use crate::source::Source;
use crate::stop::Stop;

/// So many chunks may wait to be taken.
const WAITING: usize = 4;

/// Whether a source is a regular file that holds a tar archive as it is.
pub fn is_plain_file(source: &Source) -> bool {
    source.file().is_some_and(|file| {
        let mut magic = [0; ENOUGH];
        let n = file.read_at(&mut magic, 0).unwrap_or(0);
        matches!(detect(&magic[..n]), Detected::Plain | Detected::More)
    })
}

/// Whether these are the first bytes of a compressed stream, of a form that is read or not.
pub fn is_compressed(bytes: &[u8]) -> bool {
    !matches!(detect(bytes), Detected::Plain | Detected::More)
}

/// Whether a stream that ends with these bytes may be one whose signature is cut.
pub fn may_be_cut(bytes: &[u8]) -> bool {
    detect(bytes) == Detected::More
}

/// The bytes of a source, decompressed.
#[derive(Debug)]
pub struct Chunks {
    stage: Option<Stage>,
    monitor: Arc<Monitor>,
    inside: Inside,
    compressions: Vec<Compression>,
    /// What the thread ended with, while bytes before it are still to be given.
    failed: Option<Error>,
    over: bool,
    whole: bool,
}

/// A thread that decompresses.
#[derive(Debug)]
struct Stage {
    chunks: Receiver<Result<Chunk, Error>>,
    used: Sender<Vec<u8>>,
    thread: JoinHandle<()>,
}

/// Whether what comes out of a decompressor is compressed once more.
#[derive(Debug)]
enum Inside {
    /// These first bytes, which are kept back, do not tell.
    Open(Vec<u8>),
    Told,
}

impl Stage {
    fn start(feed: Feed, monitor: Arc<Monitor>) -> std::io::Result<Self> {
        let (send, chunks) = sync_channel(WAITING);
        let (used, spare) = std::sync::mpsc::channel();
        let run = move || Run::new(feed, monitor, send, spare).run();
        let thread = std::thread::Builder::new().name("filter".into()).spawn(run)?;
        Ok(Stage { chunks, used, thread })
    }
}

impl Chunks {
    /// Begins to read.
    pub fn new(source: Source, stop: Stop, monitor: Arc<Monitor>) -> std::io::Result<Self> {
        Ok(Chunks {
            stage: Some(Stage::start(Feed::Source(source, stop), monitor.clone())?),
            monitor,
            inside: Inside::Open(Vec::new()),
            compressions: Vec::new(),
            failed: None,
            over: false,
            whole: true,
        })
    }

    /// The next bytes, none where only [`Chunks::is_whole`] is news; `None` at the end of the stream. After an
    /// error there is no more.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.over {
            // The thread hands over an error before it ends, so a closed channel is the end of the stream.
            match self.stage.as_ref().map(|stage| stage.chunks.recv()) {
                Some(Ok(Ok(chunk))) => {
                    if let Some(bytes) = self.look_inside(chunk)? {
                        return Ok(Some(bytes));
                    }
                }
                Some(Ok(Err(error))) => {
                    self.failed = Some(error);
                    self.over = true;
                }
                Some(Err(_)) | None => {
                    self.over = true;
                    if let Some(Err(_)) = self.stage.take().map(|stage| stage.thread.join()) {
                        self.failed = Some(Error::Panicked);
                    }
                }
            }
        }
        if let Inside::Open(kept) = &mut self.inside
            && !kept.is_empty()
        {
            return Ok(Some(Bytes::from(std::mem::take(kept))));
        }
        self.failed.take().map_or(Ok(None), Err)
    }

    /// What is to be given of a chunk: all of it, unless it begins something that is compressed once more.
    fn look_inside(&mut self, chunk: Chunk) -> Result<Option<Bytes>, Error> {
        let Chunk { mut bytes, whole, compression } = chunk;
        self.whole = whole;
        let Inside::Open(kept) = &mut self.inside else { return Ok(Some(bytes)) };
        let Some(compression) = compression else {
            self.inside = Inside::Told;
            return Ok(Some(bytes));
        };
        self.compressions = vec![compression];
        if !kept.is_empty() {
            kept.extend_from_slice(&bytes);
            bytes = Bytes::from(std::mem::take(kept));
        }
        match detect(&bytes) {
            // That it is whole is news as well.
            Detected::More if bytes.is_empty() => Ok(Some(bytes)),
            Detected::More => {
                *kept = bytes.to_vec();
                Ok(None)
            }
            Detected::Plain => {
                self.inside = Inside::Told;
                Ok(Some(bytes))
            }
            found @ (Detected::Known(_) | Detected::Skippable(_) | Detected::Unsupported(..)) => {
                self.inside = Inside::Told;
                if let Detected::Known(inner) = found {
                    self.compressions.push(inner);
                }
                let Some(Stage { chunks, used, .. }) = self.stage.take() else { return Ok(None) };
                let inner = Inner { compression, begin: bytes.to_vec(), chunks, used, whole };
                self.whole = false;
                self.stage = Some(Stage::start(Feed::Inner(inner), self.monitor.clone()).map_err(Error::Read)?);
                Ok(None)
            }
        }
    }

    /// How the stream is compressed, the outermost form first, as far as it was looked at.
    pub fn compressions(&self) -> &[Compression] {
        &self.compressions
    }

    /// Whether no more has to come to know that the bytes handed over are right: the compressed member that they
    /// are from is at its end, checksum and all.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Gives the memory of a chunk back.
    pub fn recycle(&self, chunk: Bytes) {
        if let Some(stage) = &self.stage {
            let _ = stage.used.send(chunk.buffer);
        }
    }
}

impl Drop for Chunks {
    /// The thread ends with its next chunk, or when its [`Stop`] is said.
    fn drop(&mut self) {
        self.stage = None;
    }
}
