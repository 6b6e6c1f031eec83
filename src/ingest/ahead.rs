//! Reading an archive in place, from its front to its end, with leaps over what is not wanted.
//!
//! Where headers stand close together everything is read, by a thread of its own that is a few chunks ahead:
//! copying the bytes costs as much as decoding them. Where a header is far from the next, only the neighbourhood of
//! headers is read, by whoever asks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::Scope;

use crate::filter::CHUNK;

/// So many chunks may be ready: with the ones being read and decoded they stay in the processor's cache.
const READY: usize = 2;

/// A leap of so many bytes costs less than reading them would.
const LEAP: u64 = 16 << 10;

/// So much is read behind a leap. It doubles as long as no further one follows, until [`AHEAD`].
const FIRST: usize = 8 << 10;

/// From here on the thread reads.
const AHEAD: usize = 64 << 10;

type Read = (u64, io::Result<Vec<u8>>);

/// The bytes of a file, wherever they are wanted next.
pub(super) struct Ahead<'f> {
    file: &'f File,
    chunks: Receiver<Read>,
    used: Sender<Vec<u8>>,
    /// Nothing in front of this is wanted any more.
    wanted: Arc<AtomicU64>,
    chunk: Vec<u8>,
    /// What was read last: up to here, so much at once.
    end: u64,
    size: usize,
}

impl<'f> Ahead<'f> {
    /// Begins to read. The thread ends when this is dropped.
    pub(super) fn begin<'scope>(file: &'f File, scope: &'scope Scope<'scope, 'f>) -> io::Result<Self> {
        let (send, chunks) = sync_channel(READY);
        let (used, spare) = channel();
        let wanted = Arc::new(AtomicU64::new(0));
        let from = wanted.clone();
        std::thread::Builder::new().name("reader".into()).spawn_scoped(scope, move || {
            let mut next = 0;
            loop {
                let at = from.load(Ordering::Relaxed).max(next);
                let mut chunk: Vec<u8> = spare.try_recv().unwrap_or_default();
                let read = read(file, &mut chunk, CHUNK, at).map(|()| chunk);
                let n = read.as_ref().map_or(0, Vec::len);
                next = at + n as u64;
                if send.send((at, read)).is_err() || n == 0 {
                    return;
                }
            }
        })?;
        Ok(Ahead { file, chunks, used, wanted, chunk: Vec::new(), end: 0, size: AHEAD })
    }

    /// Bytes from `at` on, as many as it sees fit; none at the end of the file. `at` never goes back.
    pub(super) fn next(&mut self, at: u64) -> io::Result<&[u8]> {
        if at - self.end >= LEAP {
            self.size = FIRST;
        }
        let mut from = 0;
        if self.size < AHEAD {
            read(self.file, &mut self.chunk, self.size, at)?;
            self.size *= 2;
        } else {
            from = self.take(at)?;
        }
        self.end = at + (self.chunk.len() - from) as u64;
        Ok(&self.chunk[from..])
    }

    /// Takes the chunk that `at` is in. Where in it that is.
    fn take(&mut self, at: u64) -> io::Result<usize> {
        self.wanted.store(at, Ordering::Relaxed);
        // The thread ends when it has met the end of the file, or failed: what it had read may be long ago.
        while let Ok((start, read)) = self.chunks.recv() {
            let read = read?;
            let end = start + read.len() as u64;
            if at < end || read.is_empty() && start == at {
                let _ = self.used.send(std::mem::replace(&mut self.chunk, read));
                return Ok((at - start) as usize);
            }
            let _ = self.used.send(read);
        }
        read(self.file, &mut self.chunk, CHUNK, at)?;
        Ok(0)
    }
}

/// Reads up to `most` bytes at an offset.
fn read(file: &File, chunk: &mut Vec<u8>, most: usize, at: u64) -> io::Result<()> {
    chunk.resize(most, 0);
    let n = loop {
        match file.read_at(chunk, at) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    chunk.truncate(n);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte says where it is.
    fn byte(at: usize) -> u8 {
        (at % 251) as u8
    }

    fn file(len: usize) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&(0..len).map(byte).collect::<Vec<_>>(), 0).unwrap();
        file
    }

    /// Reads with leaps of these lengths in turn; how many bytes were given.
    fn read_all(file: &File, leaps: &[u64]) -> usize {
        let len = file.metadata().unwrap().len();
        std::thread::scope(|scope| {
            let mut ahead = Ahead::begin(file, scope).unwrap();
            let (mut at, mut given) = (0, 0);
            for leap in leaps.iter().cycle() {
                let bytes = ahead.next(at).unwrap();
                assert!(bytes.iter().enumerate().all(|(i, &b)| b == byte(at as usize + i)), "at {at}");
                if bytes.is_empty() {
                    assert!(at >= len);
                    return given;
                }
                given += bytes.len();
                at += bytes.len() as u64 + leap;
            }
            unreachable!()
        })
    }

    #[test]
    fn everything_is_read_once() {
        let len = 5 * CHUNK + 1234;
        assert_eq!(read_all(&file(len), &[0]), len);
        assert_eq!(read_all(&file(0), &[0]), 0);
    }

    #[test]
    fn leaps_of_any_length_arrive_where_they_should() {
        let file = file(40 * CHUNK);
        for leaps in [&[1, LEAP - 1][..], &[LEAP], &[3 << 20, 0, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 700 << 10, 5]] {
            read_all(&file, leaps);
        }
        assert!(read_all(&file, &[1 << 20]) < 2 * CHUNK, "what is leapt over is not read");
    }
}
