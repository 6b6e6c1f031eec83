//! The entries of a mount once more, in the order in which they came, each with where its contents are.
//!
//! From the journal of a spool, as far as it is written, or from an archive that is mounted in place. An entry is
//! given when all of its contents are there. Nothing is waited for here.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::contents::Proofs;
use super::order::Order;
use crate::entry::{Checked, Entry, check};
use crate::index::Place;
use crate::proof::Sums;
use crate::record::{self, DecodeError, Record};
use crate::tarball::{Decoder, Event, Options};

/// So much is read at a time.
const CHUNK: usize = 1 << 20;

/// An entry, and where its contents are.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) entry: Box<Entry>,
    /// Where its stored bytes are.
    pub(super) place: Place,
    /// The same bytes, where they are in memory anyway.
    pub(super) bytes: Option<Bytes>,
    /// Not all of them arrived: so many did.
    pub(super) lost: Option<u64>,
}

/// A part of what has been read.
#[derive(Clone, Debug)]
pub(super) struct Bytes(Arc<Vec<u8>>, Range<usize>);

impl Bytes {
    /// So much is kept in memory for it. Others may keep the same.
    pub(super) fn kept(&self) -> (usize, usize) {
        (Arc::as_ptr(&self.0) as usize, self.0.len())
    }

    pub(super) fn get(&self) -> &[u8] {
        &self.0[self.1.clone()]
    }
}

impl Item {
    pub(super) fn new(entry: Box<Entry>, place: Place) -> Self {
        Item { entry, place, bytes: None, lost: None }
    }

    pub(super) fn lost(entry: Box<Entry>, received: u64) -> Self {
        Item { lost: Some(received), ..Item::new(entry, Place::Empty) }
    }
}

/// Where entries come from.
pub(super) enum Replay {
    Journal(Box<Journal>),
    Archive(Box<Archive>),
}

impl Replay {
    /// The next entry that is there as a whole. None when there is no other, by now.
    pub(super) fn next_item(&mut self) -> io::Result<Option<Item>> {
        match self {
            Replay::Journal(journal) => journal.next_item(),
            Replay::Archive(archive) => archive.next_item(),
        }
    }

    /// A file that is arriving as the only one, and the number of its blob.
    pub(super) fn arriving(&self) -> Option<(&Entry, u64)> {
        match self {
            Replay::Journal(journal) => match &journal.pending {
                Pending::One(Some(One { entry, blob: Some(Place::Blob(number)), .. })) => Some((entry, *number)),
                _ => None,
            },
            Replay::Archive(_) => None,
        }
    }

    /// How much of the spool, or of the archive, has been read or passed over.
    pub(super) fn position(&self) -> u64 {
        match self {
            Replay::Journal(journal) => journal.position().saturating_add(journal.blobs),
            Replay::Archive(archive) => archive.at,
        }
    }

    /// One after the other, what is not there as a whole, and will never be.
    pub(super) fn rest(&mut self) -> Option<Item> {
        match self {
            Replay::Journal(journal) => journal.rest(),
            Replay::Archive(_) => None,
        }
    }
}

/// The journal of a spool.
pub(super) struct Journal {
    file: Arc<File>,
    /// What the daemon has written, as far as we have been told.
    pub(super) length: u64,
    /// Where `chunk` begins.
    at: u64,
    chunk: Arc<Vec<u8>>,
    /// What of `chunk` has been given.
    used: usize,
    entries: u64,
    /// Bytes in blobs of the entries that have been given.
    blobs: u64,
    pending: Pending,
    /// Checksums that have come, by the number of the entry, of blobs that are not whole.
    sums: HashMap<u64, Vec<u8>>,
    /// Those of blobs that are.
    proofs: Arc<Proofs>,
    strip: usize,
    /// Given after an entry whose contents never came.
    held: Option<Item>,
}

/// Entries whose contents have not come.
enum Pending {
    /// Of a stream: each has them directly behind it.
    One(Option<One>),
    /// Of a catalogue: they come in any order.
    Any(Box<Order>),
}

struct One {
    id: u64,
    entry: Box<Entry>,
    blob: Option<Place>,
}

impl Journal {
    /// Its entries are wanted without so many leading components. Checksums of blobs go to `proofs`.
    pub(super) fn new(file: Arc<File>, proofs: Arc<Proofs>, strip: usize) -> Self {
        Journal {
            file,
            length: 0,
            at: 0,
            chunk: Arc::default(),
            used: 0,
            entries: 0,
            blobs: 0,
            pending: Pending::One(None),
            sums: HashMap::new(),
            proofs,
            strip,
            held: None,
        }
    }

    /// What has been read and given: nothing is to come before there is more than that.
    pub(super) fn position(&self) -> u64 {
        self.at + self.used as u64
    }

    fn next_item(&mut self) -> io::Result<Option<Item>> {
        if let Some(item) = self.held.take() {
            return Ok(Some(item));
        }
        loop {
            if let Pending::Any(order) = &mut self.pending
                && let Some(item) = order.pop()
            {
                return Ok(Some(item));
            }
            let chunk = self.chunk.clone();
            let (record, bytes, length) = match record::decode(&chunk[self.used..]) {
                Ok(decoded) => decoded,
                Err(DecodeError::Damaged) => return Err(self.damaged()),
                Err(DecodeError::Torn) => {
                    if self.read_more()? {
                        continue;
                    }
                    return Ok(None);
                }
            };
            let begin = bytes.as_ptr() as usize - chunk.as_ptr() as usize;
            let range = begin..begin + bytes.len();
            self.used += length;
            // The daemon has checked it already, but it may not be a daemon of ours that has written this.
            let record = match record {
                Record::Entry(entry) => match check(*entry) {
                    Checked::Right(entry) | Checked::Mended(entry, _) => Record::Entry(Box::new(entry)),
                    Checked::Refused(..) => return Err(self.damaged()),
                },
                Record::Begin { version } if version != record::VERSION => return Err(self.damaged()),
                record => record,
            };
            let frame = self.at + (self.used - length) as u64;
            if let Some(item) = self.take(record, frame, &chunk, range) {
                return Ok(Some(item));
            }
        }
    }

    /// One after the other, what will never be there as a whole.
    fn rest(&mut self) -> Option<Item> {
        match &mut self.pending {
            Pending::One(one) => one.take().map(|one| Item::lost(one.entry, 0)),
            Pending::Any(order) => order.pop_first(|entry| Item::lost(entry, 0)),
        }
    }

    /// Takes the record at `frame`. What of a stream can be given then; of a catalogue, `pending` has it.
    fn take(&mut self, record: Record, frame: u64, chunk: &Arc<Vec<u8>>, range: Range<usize>) -> Option<Item> {
        match record {
            Record::Entry(entry) => {
                let id = self.entries;
                self.entries += 1;
                let one = match &mut self.pending {
                    Pending::One(one) => one,
                    Pending::Any(order) => {
                        order.announce(id, entry);
                        return None;
                    }
                };
                // A file whose contents were refused: nothing of it follows.
                let before = one.take().map(|one| Item::lost(one.entry, 0));
                let item = if entry.kind.stored_len() == 0 {
                    Some(Item::new(entry, Place::Empty))
                } else {
                    *one = Some(One { id, entry, blob: None });
                    None
                };
                if before.is_some() {
                    self.held = item;
                    return before;
                }
                item
            }
            Record::Data { id, .. } => self.end(id, |entry, _| {
                if range.len() as u64 != entry.kind.stored_len() {
                    return Item::lost(entry, range.len() as u64);
                }
                Item { bytes: Some(Bytes(chunk.clone(), range)), ..Item::new(entry, Place::Journal(frame)) }
            }),
            Record::Blob { id, number, packed } => {
                let blob = Place::in_blob(number, packed);
                match &mut self.pending {
                    Pending::One(Some(one)) if one.id == id => one.blob = Some(blob),
                    Pending::One(_) => {}
                    Pending::Any(order) => order.set_blob(id, blob),
                }
                None
            }
            Record::Sums { id, first } => {
                if !Sums::join(self.sums.entry(id).or_default(), first, &chunk[range]) {
                    // What is read without them is refused.
                    self.sums.remove(&id);
                }
                None
            }
            Record::End { id, received, complete } => {
                let mut ended = 0;
                let (sums, proofs) = (self.sums.remove(&id).unwrap_or_default(), self.proofs.clone());
                let item = self.end(id, |entry, blob| {
                    ended = received;
                    match blob {
                        Some(blob) if complete => {
                            proofs.add(&blob, Sums::decode(&sums, entry.kind.stored_len()));
                            Item::new(entry, blob)
                        }
                        _ => Item::lost(entry, received),
                    }
                });
                self.blobs = self.blobs.saturating_add(ended);
                item
            }
            Record::Catalogue => {
                self.pending = Pending::Any(Box::new(Order::new(self.strip)));
                None
            }
            Record::Begin { .. } | Record::Finish { .. } => None,
        }
    }

    /// No more of an entry's contents comes.
    fn end(&mut self, id: u64, item: impl FnOnce(Box<Entry>, Option<Place>) -> Item) -> Option<Item> {
        match &mut self.pending {
            Pending::One(one) => one.take_if(|one| one.id == id).map(|one| item(one.entry, one.blob)),
            Pending::Any(order) => {
                order.end(id, item);
                None
            }
        }
    }

    /// Reads on behind what has been given. False when no more is written.
    fn read_more(&mut self) -> io::Result<bool> {
        let rest = self.chunk.len() - self.used;
        let at = self.at + self.used as u64;
        let there = self.length.saturating_sub(at);
        if there <= rest as u64 {
            return Ok(false);
        }
        // A record that is larger than a chunk needs one of its own.
        let wanted = match self.chunk[self.used..].first_chunk::<4>() {
            Some(length) => record::HEADER + (u32::from_le_bytes(*length) as usize).min(record::MAX_PAYLOAD),
            None => 0,
        };
        let mut chunk = vec![0; (wanted.max(CHUNK) as u64).min(there) as usize];
        chunk[..rest].copy_from_slice(&self.chunk[self.used..]);
        self.file.read_exact_at(&mut chunk[rest..], at + rest as u64).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(e.kind(), "the journal is shorter than its daemon says"),
            _ => e,
        })?;
        if there > rest as u64 && chunk.len() <= rest {
            return Ok(false);
        }
        (self.at, self.used, self.chunk) = (at, 0, Arc::new(chunk));
        Ok(true)
    }

    fn damaged(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "the journal of the spool is damaged at byte {} (copy the rest from the mount, with cp or rsync)",
                self.position()
            ),
        )
    }
}

/// An archive that is mounted in place.
pub(super) struct Archive {
    file: Arc<File>,
    size: u64,
    decoder: Decoder,
    /// Where `chunk` ends.
    at: u64,
    chunk: Arc<Vec<u8>>,
    used: usize,
    over: bool,
}

impl Archive {
    pub(super) fn new(file: Arc<File>, options: Options) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Archive { file, size, decoder: Decoder::new(options), at: 0, chunk: Arc::default(), used: 0, over: false })
    }

    fn next_item(&mut self) -> io::Result<Option<Item>> {
        while !self.over {
            let chunk = self.chunk.clone();
            let mut input = &chunk[self.used..];
            let event = self.decoder.step(&mut input);
            self.used = chunk.len() - input.len();
            match event {
                Ok(Some(Event::Entry { entry, offset })) => return Ok(Some(self.item(entry, offset))),
                // What is refused or mended has been told by the mount, and so has how it ends.
                Ok(Some(Event::EndOfArchive)) | Err(_) => self.over = true,
                Ok(Some(_)) => {}
                Ok(None) => self.over = !self.read_more()?,
            }
        }
        Ok(None)
    }

    fn item(&self, entry: Box<Entry>, offset: u64) -> Item {
        let stored = entry.kind.stored_len();
        if stored == 0 {
            return Item::new(entry, Place::Empty);
        }
        if offset.saturating_add(stored) > self.size {
            return Item::lost(entry, self.size.saturating_sub(offset));
        }
        let begin = offset.checked_sub(self.at - self.chunk.len() as u64).and_then(|begin| usize::try_from(begin).ok());
        let range = begin.map(|begin| begin..begin.saturating_add(stored as usize));
        let bytes = range.filter(|range| range.end <= self.chunk.len()).map(|range| Bytes(self.chunk.clone(), range));
        Item { bytes, ..Item::new(entry, Place::Archive(offset)) }
    }

    fn read_more(&mut self) -> io::Result<bool> {
        let skip = self.decoder.skippable().min(self.size.saturating_sub(self.at));
        self.decoder.skip(skip);
        self.at += skip;
        let mut chunk = vec![0; CHUNK];
        let n = self.file.read_at(&mut chunk, self.at)?;
        chunk.truncate(n);
        (self.chunk, self.used) = (Arc::new(chunk), 0);
        self.at += n as u64;
        Ok(n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{EntryKind, EntryPath, Metadata};

    /// What a journal of these records gives, where they are tampered with: in each frame `from` becomes `to`.
    fn forged(records: &[Record], from: &[u8], to: &[u8]) -> io::Result<Vec<Item>> {
        let mut bytes = Vec::new();
        for record in records {
            record::encode(record, b"", &mut bytes);
        }
        let mut tampered = from.is_empty();
        for at in 0..bytes.len().saturating_sub(from.len()) {
            if bytes[at..].starts_with(from) {
                bytes[at..at + from.len()].copy_from_slice(to);
                tampered = true;
            }
        }
        assert!(tampered, "{from:?} is not in it");
        record::seal(&mut bytes);
        let file = tempfile::tempfile()?;
        file.write_all_at(&bytes, 0)?;
        let mut journal = Journal::new(Arc::new(file), Arc::default(), 0);
        journal.length = bytes.len() as u64;
        std::iter::from_fn(|| journal.next_item().transpose()).collect()
    }

    fn entry(path: &[u8], kind: EntryKind) -> Record {
        let metadata = Metadata { user: Some(b"somebody".as_slice().into()), uid: 0x1234_5678, ..Metadata::default() };
        Record::Entry(Box::new(Entry { path: EntryPath::parse(path).unwrap(), kind, metadata }))
    }

    #[test]
    fn a_forged_journal_names_nothing_outside() {
        let begin = || Record::Begin { version: record::VERSION };
        let link = |target: &[u8]| EntryKind::HardLink { target: EntryPath::parse(target).unwrap() };
        let soft = |target: &[u8]| EntryKind::Symlink { target: target.into() };
        let journal =
            [begin(), entry(b"a/xx/b", EntryKind::Directory), entry(b"l", link(b"m/yy/n")), entry(b"s", soft(b"zz"))];
        assert_eq!(forged(&journal, b"xx", b"xx").unwrap().len(), 3);
        for (from, to) in [(b"xx", b".."), (b"xx", b"x\0"), (b"yy", b".."), (b"yy", b"\0y"), (b"zz", b"z\0")] {
            let error = forged(&journal, from, to).unwrap_err();
            assert!(error.to_string().starts_with("the journal of the spool is damaged at byte "), "{to:?}: {error}");
        }
        // What only looks like a path is none either: names are normal, or there is none.
        for to in [b"/x", b"x/", b"./"] {
            let paths: Vec<_> =
                forged(&journal, b"xx", to).unwrap().iter().map(|item| item.entry.path.clone()).collect();
            assert!(paths[0].components().all(|name| !matches!(name, b"" | b"." | b"..")), "{paths:?}");
        }
    }

    #[test]
    fn a_forged_journal_has_no_numbers_that_linux_has_not() {
        let file = |size, sparse| EntryKind::File { size, sparse };
        let sparse = crate::entry::SparseMap::new(100, []).unwrap();
        for kind in [file(u64::MAX, None), file(1 << 40, Some(Arc::new(sparse)))] {
            assert!(forged(&[entry(b"f", kind)], b"", b"").is_err());
        }
        assert!(forged(&[Record::Begin { version: record::VERSION + 1 }], b"", b"").is_err());
        // 0x12345678 in postcard, and the largest number, which chown(2) takes for "leave it".
        let owner =
            forged(&[entry(b"d", EntryKind::Directory)], b"\xf8\xac\xd1\x91\x01", b"\xff\xff\xff\xff\x0f").unwrap();
        assert_eq!(owner[0].entry.metadata.uid, crate::entry::NOBODY);
        // Seconds of 2001, and nanoseconds that utimensat(2) takes for "now".
        let mut metadata =
            Metadata { mtime: crate::entry::Timestamp::new(1_000_000_000, 999_999_999), ..Metadata::default() };
        metadata.mode = 0o644;
        let times = [Record::Entry(Box::new(Entry { path: EntryPath::root(), kind: EntryKind::Directory, metadata }))];
        let forged = forged(&times, b"\xff\x93\xeb\xdc\x03", b"\xff\xff\xff\xff\x03").unwrap();
        assert_eq!(forged[0].entry.metadata.mtime.nanos(), 999_999_999);
    }
}
