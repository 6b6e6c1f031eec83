//! The frames of a journal, one after the other: the lower of the two layers that read it.
//!
//! The journal may be written at the same time: it is read up to a length that the caller sets, and sets again when there
//! is more. A frame is given once its checksum is right and its entry has passed [`check`]. Nothing is waited for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::items::Bytes;
use crate::entry::check::{Checked, check};
use crate::record::{self, DecodeError, Record};

/// So much is read at a time.
const CHUNK: usize = 1 << 20;

/// What is next in a journal.
#[derive(Debug)]
pub enum Step {
    /// A whole record.
    Record {
        /// Offset of its frame in the journal.
        at: u64,
        /// Length of the frame.
        length: usize,
        /// The record; an entry in it is valid.
        record: Record,
        /// The bytes behind the record in its frame.
        bytes: Bytes,
    },
    /// The last frame ends where the journal does.
    End,
    /// The last frame is cut: by the length that was set, or by the end of the file.
    Torn,
    /// The frame at [`Records::position`] is not what was written, or no record of this version. Nothing behind it is read.
    Damaged,
}

/// Reads the frames of a journal.
#[derive(Debug)]
pub struct Records {
    file: Arc<File>,
    length: u64,
    /// Where `chunk` begins.
    at: u64,
    chunk: Arc<Vec<u8>>,
    /// What of `chunk` has been given.
    used: usize,
}

impl Records {
    /// Reads the first `length` bytes of a journal.
    pub fn new(file: Arc<File>, length: u64) -> Self {
        Records { file, length, at: 0, chunk: Arc::default(), used: 0 }
    }

    /// How much of the journal is read, as it was set last.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Reads so much of the journal from now on: more has been written.
    pub fn set_length(&mut self, length: u64) {
        self.length = length;
    }

    /// Offset of the next frame.
    pub fn position(&self) -> u64 {
        self.at + self.used as u64
    }

    /// Whether the file itself ends before the length that was set.
    pub fn is_short(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() < self.length)
    }

    /// The next record. After anything else the position stays, and the same step may give a record once the length has
    /// been set again.
    ///
    /// # Errors
    /// The read failed.
    pub fn next_step(&mut self) -> io::Result<Step> {
        loop {
            let at = self.position();
            let decoded = record::decode(&self.chunk[self.used..]);
            let (record, behind, length) = match decoded.map(|(record, bytes, length)| (record, bytes.len(), length)) {
                Ok(decoded) => decoded,
                Err(DecodeError::Damaged) => return Ok(Step::Damaged),
                Err(DecodeError::Torn) if self.read_more()? => continue,
                Err(DecodeError::Torn) if at == self.length => return Ok(Step::End),
                Err(DecodeError::Torn) => return Ok(Step::Torn),
            };
            let Some(record) = checked(record) else { return Ok(Step::Damaged) };
            // What is behind the record ends with its frame.
            let end = self.used + length;
            let bytes = Bytes::new(self.chunk.clone(), end - behind..end);
            self.used = end;
            return Ok(Step::Record { at, length, record, bytes });
        }
    }

    /// Reads on behind what has been given. False when no more is written.
    fn read_more(&mut self) -> io::Result<bool> {
        let rest = self.chunk.len() - self.used;
        let at = self.position();
        let there = self.length.saturating_sub(at);
        if there <= rest as u64 {
            return Ok(false);
        }
        // A record that is larger than a chunk needs one of its own.
        let wanted =
            record::frame_length(&self.chunk[self.used..]).unwrap_or(0).min(record::HEADER + record::MAX_PAYLOAD);
        let mut chunk = vec![0; (wanted.max(CHUNK) as u64).min(there) as usize];
        chunk[..rest].copy_from_slice(&self.chunk[self.used..]);
        let mut filled = rest;
        while filled < chunk.len() {
            match self.file.read_at(&mut chunk[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        chunk.truncate(filled);
        (self.at, self.used, self.chunk) = (at, 0, Arc::new(chunk));
        Ok(filled > rest)
    }
}

/// The record, its entry checked. The daemon has checked it already, but what wrote this may not be a daemon of ours.
fn checked(record: Record) -> Option<Record> {
    match record {
        Record::Entry(entry) => match check(*entry) {
            Checked::Right(entry) | Checked::Mended(entry, _) => Some(Record::Entry(Box::new(entry))),
            Checked::Refused(..) => None,
        },
        Record::Begin { version } if version != record::VERSION => None,
        record => Some(record),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Entry, EntryKind, EntryPath, Metadata};

    fn entry(path: &str) -> Record {
        let path = EntryPath::parse(path.as_bytes()).unwrap();
        Record::Entry(Box::new(Entry { path, kind: EntryKind::Fifo, metadata: Metadata::default() }))
    }

    /// A journal, and where its frames begin; the last number is its length.
    fn journal() -> (Vec<u8>, Vec<u64>) {
        let mut bytes = Vec::new();
        let contents = vec![7; 2 * CHUNK];
        let records: [(Record, &[u8]); 4] = [
            (Record::Begin { version: record::VERSION }, b""),
            (entry("a"), b""),
            // Larger than what is read at a time.
            (Record::Data { id: 0, offset: 0 }, &contents),
            (entry("b"), b""),
        ];
        let mut frames: Vec<u64> =
            records.iter().map(|(record, behind)| record::encode(record, behind, &mut bytes) as u64).collect();
        frames.push(bytes.len() as u64);
        (bytes, frames)
    }

    fn file(bytes: &[u8]) -> Arc<File> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        Arc::new(file)
    }

    /// Where the records begin that can be read, and what comes behind them.
    fn all(records: &mut Records) -> (Vec<u64>, Step) {
        let mut found = Vec::new();
        loop {
            match records.next_step().unwrap() {
                Step::Record { at, length, .. } => {
                    assert_eq!(records.position(), at + length as u64);
                    found.push(at);
                }
                end => return (found, end),
            }
        }
    }

    #[test]
    fn every_cut_is_found_and_what_is_before_it_given() {
        let (bytes, frames) = journal();
        let whole = file(&bytes);
        let cuts = frames.iter().flat_map(|&at| [at.saturating_sub(1), at, at + 1, at + 7, at + 9]);
        for cut in cuts.filter(|cut| *cut <= bytes.len() as u64) {
            let before: Vec<u64> = frames.windows(2).filter(|frame| frame[1] <= cut).map(|frame| frame[0]).collect();
            let is_torn = !frames.contains(&cut);
            // Cut by the length that is told.
            let mut records = Records::new(whole.clone(), cut);
            let (found, end) = all(&mut records);
            assert_eq!(found, before, "{cut}");
            assert_eq!(matches!(end, Step::Torn), is_torn, "{cut}: {end:?}");
            assert_eq!(matches!(end, Step::End), !is_torn, "{cut}: {end:?}");
            assert!(!records.is_short().unwrap());
            // More is written: what was torn is whole.
            records.set_length(bytes.len() as u64);
            let (rest, end) = all(&mut records);
            assert_eq!([found, rest].concat(), frames[..frames.len() - 1], "{cut}");
            assert!(matches!(end, Step::End), "{cut}: {end:?}");
            // Cut by the end of the file.
            let mut records = Records::new(file(&bytes[..cut as usize]), bytes.len() as u64);
            let (found, end) = all(&mut records);
            assert_eq!(found, before, "{cut}");
            let is_whole = cut == bytes.len() as u64;
            assert_eq!(matches!(end, Step::Torn), !is_whole, "{cut}: {end:?}");
            assert_eq!(records.is_short().unwrap(), !is_whole, "{cut}");
        }
    }

    #[test]
    fn damage_is_found_where_it_is() {
        let (bytes, frames) = journal();
        for n in 0..frames.len() - 1 {
            for at in [frames[n] + 4, frames[n] + 8, frames[n + 1] - 1] {
                let mut broken = bytes.clone();
                broken[at as usize] ^= 1;
                let mut records = Records::new(file(&broken), bytes.len() as u64);
                let (found, end) = all(&mut records);
                assert_eq!(found, frames[..n], "{at}");
                assert!(matches!(end, Step::Damaged), "{at}: {end:?}");
                assert_eq!(records.position(), frames[n], "{at}");
            }
        }
    }
}
