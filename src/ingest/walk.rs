//! Goes through an archive from header to header, ahead of the decoder, and gathers the headers alone.
//!
//! By what a header says of itself it guesses where the next one stands; the decoder decides. Headers are copied out
//! of a mapping of the file: what is between them is not copied, and none of them costs a system call.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::sys::{Lost, Mapped};
use crate::tarball::BLOCK;
use crate::tarball::glance::{Behind, glance, map_continues, size_is_elsewhere};

/// So much of headers is gathered at once: with what is being decoded it stays in the processor's cache.
const HEADERS: usize = 128 << 10;

/// Headers that are gathered at once are no further apart: where that takes time, entries are seen before.
const SPAN: u64 = 4 << 20;

/// Longer records are left to who reads everything.
const RECORDS: u64 = 64 << 10;

/// So much of the file is mapped at once. What has been looked at there counts as our memory.
const WINDOW: u64 = 8 << 20;

/// Behind longer contents the kernel is told what is looked at next: it would read four times as much there.
const LEAP: u64 = 16 << 10;
const NEXT: u64 = 32 << 10;

/// Where a window begins: a multiple of every size of pages.
const ALIGN: u64 = 64 << 10;

/// Bytes of a file, in parts that stand in its order.
#[derive(Debug, Default)]
pub(super) struct Parts {
    bytes: Vec<u8>,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    /// Where in the file.
    at: u64,
    /// Where in the bytes.
    from: usize,
    len: usize,
}

/// What there is of a place of the file.
pub(super) enum Found {
    /// Those of the bytes that are from there on, and whether no part follows these.
    Bytes(Range<usize>, bool),
    /// Nothing but from so many bytes on.
    Gap(u64),
    Nothing,
}

impl Parts {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.parts.clear();
    }

    /// Becomes what a read of up to `most` bytes gives.
    pub(super) fn read(&mut self, file: &File, most: usize, at: u64) -> io::Result<()> {
        self.parts.clear();
        self.bytes.resize(most, 0);
        let read = loop {
            match file.read_at(&mut self.bytes, at) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.bytes.truncate(*read.as_ref().unwrap_or(&0));
        self.added(at, self.bytes.len());
        read.map(drop)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What there is from `at` on. `part` is where to begin to look, and where it was found.
    pub(super) fn find(&self, at: u64, part: &mut usize) -> Found {
        while let Some(found) = self.parts.get(*part) {
            let end = found.at + found.len as u64;
            if at < found.at {
                return Found::Gap(found.at - at);
            }
            if at < end {
                let from = found.from + (at - found.at) as usize;
                return Found::Bytes(from..found.from + found.len, *part + 1 == self.parts.len());
            }
            *part += 1;
        }
        Found::Nothing
    }

    /// The last `len` bytes are those from `at` on.
    fn added(&mut self, at: u64, len: usize) {
        match self.parts.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.at + last.len as u64 == at => last.len += len,
            _ => self.parts.push(Part { at, from: self.bytes.len() - len, len }),
        }
    }
}

/// Stands before a header, as far as it knows.
pub(super) struct Walk<'f> {
    file: &'f File,
    window: Option<(u64, Mapped)>,
    /// Nothing of the file can be mapped.
    blind: bool,
}

impl<'f> Walk<'f> {
    pub(super) fn new(file: &'f File) -> Self {
        Walk { file, window: None, blind: false }
    }

    /// Gathers headers from `at` on, which then is where the next one should stand. Whether it is known to be one.
    pub(super) fn gather(&mut self, at: &mut u64, parts: &mut Parts) -> bool {
        let begin = *at;
        while parts.bytes.len() < HEADERS && *at - begin < SPAN {
            let from = parts.bytes.len();
            let Ok((headers, contents, goes_on)) = self.header(*at, &mut parts.bytes) else {
                parts.bytes.truncate(from);
                return false;
            };
            parts.added(*at, headers);
            *at = at.saturating_add(headers as u64).saturating_add(contents);
            if contents > LEAP {
                let _ = rustix::fs::fadvise(self.file, *at, NonZeroU64::new(NEXT), rustix::fs::Advice::WillNeed);
            }
            if !goes_on {
                return false;
            }
        }
        true
    }

    /// Appends a header with all that belongs to it. How long that is, how much of contents follow, and whether a header
    /// has to be behind them.
    fn header(&mut self, at: u64, to: &mut Vec<u8>) -> Result<(usize, u64, bool), Lost> {
        self.copy(at, BLOCK, to)?;
        let block = to.last_chunk::<BLOCK>().ok_or(Lost)?;
        match glance(block).ok_or(Lost)? {
            Behind::Contents(len) => Ok((BLOCK, len, true)),
            Behind::Records(len @ ..=RECORDS) => {
                let len = len as usize;
                self.copy(at + BLOCK as u64, len, to)?;
                let goes_on = !size_is_elsewhere(&to[to.len() - len..]);
                Ok((BLOCK + len, 0, goes_on))
            }
            Behind::Extension(len @ ..=RECORDS) => {
                self.copy(at + BLOCK as u64, len as usize, to)?;
                Ok((BLOCK + len as usize, 0, true))
            }
            Behind::Records(_) | Behind::Extension(_) => Err(Lost),
            Behind::Map(contents) => {
                let mut headers = BLOCK;
                while headers < RECORDS as usize {
                    self.copy(at + headers as u64, BLOCK, to)?;
                    headers += BLOCK;
                    if !to.last_chunk().is_some_and(map_continues) {
                        return Ok((headers, contents, true));
                    }
                }
                Err(Lost)
            }
        }
    }

    fn copy(&mut self, at: u64, len: usize, to: &mut Vec<u8>) -> Result<(), Lost> {
        if self.blind {
            return Err(Lost);
        }
        loop {
            if let Some((start, mapped)) = &self.window
                && let Some(from) = at.checked_sub(*start).and_then(|from| usize::try_from(from).ok())
                && mapped.holds(from, len)
            {
                let copied = mapped.copy(from, len, to);
                self.blind = copied.is_err();
                return copied;
            }
            let size = self.file.metadata().map_err(|_| Lost)?.len();
            if at.saturating_add(len as u64) > size {
                return Err(Lost);
            }
            let start = at - at % ALIGN;
            self.window = None;
            match Mapped::new(self.file, start, WINDOW.min(size - start) as usize) {
                Ok(mapped) => {
                    mapped.in_sequence();
                    self.window = Some((start, mapped));
                }
                Err(_) => {
                    self.blind = true;
                    return Err(Lost);
                }
            }
        }
    }
}

// The longest part fits into a window, wherever it stands in there.
const _: () = assert!(2 * (RECORDS + BLOCK as u64 + ALIGN) < WINDOW);
