//! The thread that reads and decompresses.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender};

use super::chunk::{Bytes, CHUNK, Chunk, Error};
use super::codec::{Codec, Corrupt, Progress};
use super::detect::{Compression, Detected, detect};
use super::recognise;
use crate::monitor::Monitor;
use crate::source::Source;
use crate::stop::Stop;

/// Whoever took the chunks is gone, or an error has been handed over: nothing is left to do.
struct Over;

type Outcome<T = ()> = Result<T, Failure>;

enum Failure {
    Over,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure::Error(e)
    }
}

impl From<Over> for Failure {
    fn from(_: Over) -> Self {
        Failure::Over
    }
}

pub(super) struct Run {
    input: Input,
    output: Output,
    monitor: Arc<Monitor>,
    /// How what it reads was compressed.
    outer: Option<Compression>,
}

/// Where bytes come from.
pub(super) enum Feed {
    Source(Source, Stop),
    /// A decompressor before this one.
    Inner(Inner),
}

/// What a decompressor gives that is compressed once more.
pub(super) struct Inner {
    pub(super) compression: Compression,
    /// Bytes that were looked at already.
    pub(super) begin: Vec<u8>,
    pub(super) chunks: Receiver<Result<Chunk, Error>>,
    pub(super) used: Sender<Vec<u8>>,
    pub(super) whole: bool,
}

/// Bytes from the source that are not used up.
struct Input {
    feed: Feed,
    monitor: Arc<Monitor>,
    buf: Vec<u8>,
    at: usize,
    end: usize,
    eof: bool,
}

/// The chunk that is being filled.
struct Output {
    send: SyncSender<Result<Chunk, Error>>,
    spare: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    filled: usize,
    compression: Option<Compression>,
    /// No member is open: what there is, is checked.
    whole: bool,
    /// The other side knows that.
    told: bool,
}

impl Run {
    pub(super) fn new(
        feed: Feed,
        monitor: Arc<Monitor>,
        send: SyncSender<Result<Chunk, Error>>,
        spare: Receiver<Vec<u8>>,
    ) -> Self {
        let mut buf = vec![0; CHUNK];
        let (mut end, mut outer) = (0, None);
        if let Feed::Inner(inner) = &feed {
            end = inner.begin.len();
            buf.resize(CHUNK.max(end), 0);
            buf[..end].copy_from_slice(&inner.begin);
            outer = Some(inner.compression);
        }
        let input = Input { feed, monitor: monitor.clone(), buf, at: 0, end, eof: false };
        let chunk = vec![0; CHUNK];
        let whole = outer.is_none();
        let output = Output { send, spare, chunk, filled: 0, compression: None, whole, told: whole };
        Run { input, output, monitor, outer }
    }

    pub(super) fn run(mut self) {
        if let Err(Failure::Error(error)) = self.all() {
            // What was decompressed before comes first.
            if self.output.flush().is_ok() {
                let _ = self.output.send.send(Err(error));
            }
        }
    }

    fn all(&mut self) -> Outcome {
        let Some(mut compression) = self.first()? else { return self.plain() };
        loop {
            if self.output.compression.replace(compression) != Some(compression) {
                let outer = self.outer.map_or(String::new(), |outer| format!("{}, then ", outer.name()));
                self.monitor.compression(Some(&format!("{outer}{}", compression.name())));
            }
            self.output.whole = false;
            match Codec::new(compression).map_err(Error::Corrupt)? {
                Some(codec) => self.member(codec, compression)?,
                None => self.lz4()?,
            }
            self.output.whole = self.input.is_whole();
            match self.behind()? {
                Some(next) => compression = next,
                None => break,
            }
        }
        self.output.flush()?;
        Ok(())
    }

    /// How the stream is compressed; none where it is not.
    fn first(&mut self) -> Outcome<Option<Compression>> {
        loop {
            match detect(self.input.buffer()) {
                Detected::More if self.input.more()? => {}
                Detected::More | Detected::Plain => return Ok(None),
                Detected::Known(compression) => return Ok(Some(compression)),
                Detected::Skippable(len) => self.skip(len)?,
                Detected::Unsupported(name, program) => {
                    return Err(Error::Unsupported(recognise::unsupported(name, program, self.outer)).into());
                }
            }
        }
    }

    /// What follows a member: another one, or the end, with padding and garbage passed over.
    fn behind(&mut self) -> Outcome<Option<Compression>> {
        loop {
            let buffer = self.input.buffer();
            let zeros = buffer.iter().take_while(|&&b| b == 0).count();
            self.input.consume(zeros);
            if self.input.buffer().is_empty() {
                self.output.flush()?;
                if !self.input.more()? {
                    return Ok(None);
                }
                self.output.whole = self.input.is_whole();
                continue;
            }
            match detect(self.input.buffer()) {
                // Without a signature it is too little to tell it from other data.
                Detected::Known(Compression::Lzma) if self.output.compression != Some(Compression::Lzma) => {
                    return self.garbage();
                }
                Detected::Known(compression) => return Ok(Some(compression)),
                Detected::Skippable(len) => self.skip(len)?,
                Detected::More if self.wait_more()? => {}
                Detected::More | Detected::Plain | Detected::Unsupported(..) => return self.garbage(),
            }
        }
    }

    fn garbage(&mut self) -> Outcome<Option<Compression>> {
        self.monitor.warning(b"", "there is data behind the compressed stream: it is ignored");
        self.output.flush()?;
        self.input.drain()?;
        self.output.whole = self.input.is_whole();
        Ok(None)
    }

    fn wait_more(&mut self) -> Outcome<bool> {
        self.output.flush()?;
        self.input.more()
    }

    /// A skippable frame: `len` bytes with its header.
    fn skip(&mut self, mut len: u64) -> Outcome {
        while len > 0 {
            let n = len.min(self.input.buffer().len() as u64);
            self.input.consume(n as usize);
            len -= n;
            if len > 0 && !self.wait_more()? {
                return Err(Error::Truncated("zstd or lz4").into());
            }
        }
        Ok(())
    }

    fn plain(&mut self) -> Outcome {
        loop {
            if self.input.buffer().is_empty() && !self.input.more()? {
                return Ok(());
            }
            // The whole buffer changes hands; nothing is copied.
            let Input { buf, at, end, .. } = &mut self.input;
            let mut chunk = self.output.fresh();
            std::mem::swap(buf, &mut chunk);
            let range = std::mem::take(at)..std::mem::take(end);
            self.output.whole = self.input.is_whole();
            self.output.send(Bytes { buffer: chunk, range })?;
        }
    }

    fn member(&mut self, mut codec: Codec, compression: Compression) -> Outcome {
        loop {
            let step = codec.step(self.input.buffer(), self.output.room()?);
            self.output.filled += step.produced;
            self.input.consume(step.consumed);
            if step.outcome.map_err(Error::Corrupt)? == Progress::Ended {
                return Ok(());
            }
            // Room was left, so the decompressor has given all that it could.
            let starved = self.output.filled < CHUNK && self.input.buffer().is_empty();
            if starved && !self.wait_more()? {
                return Err(Error::Truncated(compression.name()).into());
            }
        }
    }

    /// lz4_flex reads one block, and gives all of it, before it reads the next.
    fn lz4(&mut self) -> Outcome {
        let mut piece = vec![0; 64 << 10];
        let mut frame = lz4_flex::frame::FrameDecoder::new(Lz4Input { run: self, failure: None, ended: false });
        loop {
            let read = frame.read(&mut piece);
            let input = frame.get_mut();
            if let Some(failure) = input.failure.take() {
                return Err(failure);
            }
            match read {
                Ok(0) | Err(_) if input.ended => return Err(Error::Truncated("lz4").into()),
                Ok(0) => return Ok(()),
                Ok(n) => input.run.output.extend(&piece[..n])?,
                Err(e) => return Err(Error::Corrupt(Corrupt::new("lz4", e)).into()),
            }
        }
    }
}

/// What an lz4 frame reads from.
struct Lz4Input<'a> {
    run: &'a mut Run,
    failure: Option<Failure>,
    ended: bool,
}

impl Read for Lz4Input<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.run.input.buffer().is_empty() {
            match self.run.wait_more() {
                Ok(true) => {}
                Ok(false) => {
                    self.ended = true;
                    return Ok(0);
                }
                Err(failure) => {
                    self.failure = Some(failure);
                    return Err(io::ErrorKind::Other.into());
                }
            }
        }
        let n = buf.len().min(self.run.input.buffer().len());
        buf[..n].copy_from_slice(&self.run.input.buffer()[..n]);
        self.run.input.consume(n);
        Ok(n)
    }
}

impl Inner {
    /// The decompressor hands over an error before it ends, so a closed channel is the end of the stream.
    fn next(&self) -> Option<Result<Chunk, Error>> {
        self.chunks.recv().ok()
    }

    fn recycle(&self, bytes: Bytes) {
        let _ = self.used.send(bytes.buffer);
    }
}

impl Input {
    fn buffer(&self) -> &[u8] {
        &self.buf[self.at..self.end]
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }

    /// Whether no more has to come to know that the bytes read are right.
    fn is_whole(&self) -> bool {
        match &self.feed {
            Feed::Source(..) => true,
            Feed::Inner(inner) => inner.whole,
        }
    }

    /// Waits for more bytes behind those that are there, or for the news that these are whole. False at the end of the
    /// source.
    fn more(&mut self) -> Outcome<bool> {
        if self.at > 0 {
            self.buf.copy_within(self.at..self.end, 0);
            (self.at, self.end) = (0, self.end - self.at);
        }
        if self.eof || self.end == self.buf.len() {
            return Ok(!self.eof);
        }
        match &mut self.feed {
            Feed::Source(source, stop) => {
                let n = source.read(&mut self.buf[self.end..], stop).map_err(Error::from)?;
                self.eof = n == 0;
                self.end += n;
                self.monitor.add_source_bytes(n as u64);
            }
            Feed::Inner(inner) => match inner.next() {
                Some(chunk) => {
                    let Chunk { bytes, whole, .. } = chunk?;
                    inner.whole = whole;
                    // What is left is less than a signature, or less than a decompressor needs to go on.
                    let end = self.end + bytes.len();
                    if self.buf.len() < end {
                        self.buf.resize(end, 0);
                    }
                    self.buf[self.end..end].copy_from_slice(&bytes);
                    self.end = end;
                    inner.recycle(bytes);
                }
                None => self.eof = true,
            },
        }
        Ok(!self.eof)
    }

    /// Reads on to the end, so that whoever sends can finish.
    fn drain(&mut self) -> Outcome {
        while !self.eof {
            (self.at, self.end) = (0, 0);
            self.more()?;
        }
        Ok(())
    }
}

impl Output {
    /// Where the next bytes go; never empty.
    fn room(&mut self) -> Result<&mut [u8], Over> {
        if self.filled == self.chunk.len() {
            self.flush()?;
        }
        Ok(&mut self.chunk[self.filled..])
    }

    fn extend(&mut self, mut bytes: &[u8]) -> Result<(), Over> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let n = room.len().min(bytes.len());
            room[..n].copy_from_slice(&bytes[..n]);
            self.filled += n;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Hands over what there is.
    fn flush(&mut self) -> Result<(), Over> {
        if self.filled == 0 && (self.told || !self.whole) {
            return Ok(());
        }
        let mut chunk = self.fresh();
        std::mem::swap(&mut chunk, &mut self.chunk);
        let range = 0..std::mem::take(&mut self.filled);
        self.send(Bytes { buffer: chunk, range })
    }

    fn fresh(&self) -> Vec<u8> {
        self.spare.try_recv().unwrap_or_else(|_| vec![0; CHUNK])
    }

    fn send(&mut self, bytes: Bytes) -> Result<(), Over> {
        self.told = self.whole;
        self.send.send(Ok(Chunk { bytes, whole: self.whole, compression: self.compression })).map_err(|_| Over)
    }
}
