//! The entries that a journal names, each given when all of its contents are there: the upper of the two layers that read
//! it, on top of [`Records`].

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use super::contents::Proofs;
use super::error::Error;
use super::items::{Bytes, Item};
use super::order::Order;
use super::records::{Records, Step};
use crate::entry::Entry;
use crate::index::Place;
use crate::proof::Sums;
use crate::record::Record;

/// The journal of a spool.
pub struct Journal {
    records: Records,
    /// Behind this, what is broken was broken off.
    sound: u64,
    finished: Option<bool>,
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
    /// Its entries are wanted without `strip` leading components. Checksums of blobs go to `proofs`. Nothing is read before
    /// a length is set.
    pub fn new(file: Arc<File>, proofs: Arc<Proofs>, strip: usize) -> Self {
        Journal {
            records: Records::new(file, 0),
            sound: u64::MAX,
            finished: None,
            entries: 0,
            blobs: 0,
            pending: Pending::One(None),
            sums: HashMap::new(),
            proofs,
            strip,
            held: None,
        }
    }

    /// How much of the journal is read, as it was set last.
    pub fn length(&self) -> u64 {
        self.records.length()
    }

    /// Reads so much of the journal from now on: more has been written.
    pub fn set_length(&mut self, length: u64) {
        self.records.set_length(length);
    }

    /// See [`Replay::set_sound`](super::Replay::set_sound).
    pub fn set_sound(&mut self, length: u64) {
        self.sound = length;
    }

    /// Whether the stream is over as it should be, as far as what has been read says.
    pub fn finished(&self) -> Option<bool> {
        self.finished
    }

    /// How much of the spool has been read or passed over: of the journal, and of the blobs that it names.
    pub fn position(&self) -> u64 {
        self.records.position().saturating_add(self.blobs)
    }

    /// A file that is arriving as the only one, and the number of its blob.
    pub fn arriving(&self) -> Option<(&Entry, u64)> {
        match &self.pending {
            Pending::One(Some(One { entry, blob: Some(Place::Blob(number)), .. })) => Some((entry, *number)),
            _ => None,
        }
    }

    /// The next entry that is there as a whole. None when there is no other, by now.
    ///
    /// # Errors
    /// The journal is damaged, or shorter than the length that was set, or cannot be read.
    pub fn next_item(&mut self) -> Result<Option<Item>, Error> {
        if let Some(item) = self.held.take() {
            return Ok(Some(item));
        }
        loop {
            if let Pending::Any(order) = &mut self.pending
                && let Some(item) = order.pop()
            {
                return Ok(Some(item));
            }
            match self.records.next_step()? {
                Step::Record { at, record, bytes, .. } => {
                    if let Some(item) = self.take(record, at, bytes) {
                        return Ok(Some(item));
                    }
                }
                Step::End => return Ok(None),
                Step::Torn | Step::Damaged if self.records.position() >= self.sound => return Ok(None),
                Step::Torn if self.records.is_short()? => return Err(Error::Short),
                Step::Torn => return Ok(None),
                Step::Damaged => return Err(Error::Damaged { at: self.records.position() }),
            }
        }
    }

    /// One after the other, what will never be there as a whole.
    pub fn rest(&mut self) -> Option<Item> {
        match &mut self.pending {
            Pending::One(one) => one.take().map(|one| Item::lost(one.entry, 0)),
            Pending::Any(order) => order.pop_first(|entry| Item::lost(entry, 0)),
        }
    }

    /// Takes the record at `frame`. What of a stream can be given then; of a catalogue, `pending` has it.
    fn take(&mut self, record: Record, frame: u64, bytes: Bytes) -> Option<Item> {
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
            Record::Data { id, offset: 0 } => self.end(id, |entry, _| {
                let length = bytes.get().len() as u64;
                if length != entry.kind.stored_len() {
                    return Item::lost(entry, length);
                }
                Item { bytes: Some(bytes), ..Item::new(entry, Place::Journal(frame)) }
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
                if !Sums::join(self.sums.entry(id).or_default(), first, bytes.get()) {
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
                        Some(blob) if complete && received == entry.kind.stored_len() => {
                            proofs.add(&blob, Sums::decode(&sums, entry.kind.stored_len()));
                            Item::new(entry, blob)
                        }
                        _ => Item::lost(entry, received),
                    }
                });
                self.blobs = self.blobs.saturating_add(ended);
                item
            }
            Record::Catalogue if self.entries == 0 => {
                self.pending = Pending::Any(Box::new(Order::new(self.strip)));
                None
            }
            Record::Finish { complete } => {
                self.finished = Some(complete);
                None
            }
            Record::Begin { .. }
            | Record::Data { .. }
            | Record::Catalogue
            | Record::Durable { .. }
            | Record::Cut
            | Record::Changed { .. }
            | Record::Digests { .. }
            | Record::Problem { .. }
            | Record::Anew => None,
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
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::entry::{EntryKind, EntryPath, Metadata};
    use crate::record;

    /// What a journal of these records gives, where they are tampered with: in each frame `from` becomes `to`.
    fn forged(records: &[Record], from: &[u8], to: &[u8]) -> Result<Vec<Item>, Error> {
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
        journal.set_length(bytes.len() as u64);
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
