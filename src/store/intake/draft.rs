//! What has come and is not in the store yet: frames for the journal, and the changes of the index that go with them.

use std::sync::Arc;

use super::blob::{Blob, BlobError, FileRef};
use crate::entry::{Entry, SparseMap};
use crate::index::{Arrival, Ino, Place};
use crate::record::{self, Record};
use crate::spool::Spool;

/// Where contents stand that come in, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In the archive, which is mounted in place: there is no journal.
    InPlace,
    /// Behind their entry.
    Stream,
    /// In any order, behind the entries of all.
    Catalogue,
}

/// Where contents are going to be.
#[derive(Debug)]
pub(super) enum Put {
    /// In the frame that begins here among those of this batch.
    Frame(u64),
    At(Place),
}

#[derive(Debug)]
pub(super) struct Contents {
    pub(super) place: Option<Put>,
    pub(super) arrival: Arrival,
}

#[derive(Debug)]
pub(super) enum Op {
    /// An entry, with what came of its contents in the same batch.
    Entry(Box<Entry>, Option<Contents>),
    /// News of contents; without an inode, of those of the entry that came last.
    Contents(Option<Ino>, Contents),
    /// The file was written to while it was sent.
    Changed(Ino),
}

/// What goes into the store at once.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) frames: Vec<u8>,
    pub(super) ops: Vec<Op>,
    /// The number of the next entry behind it.
    pub(super) entries: u64,
}

/// A batch that is in the store. What it took in memory can serve again.
#[derive(Debug)]
pub struct Spent(pub(super) Batch);

/// Gathers what comes, for the next [`Batch`].
#[derive(Debug)]
pub struct Draft {
    layout: Layout,
    /// The journal has its first records.
    begun: bool,
    batch: Batch,
}

impl Draft {
    /// The beginning of a journal.
    pub fn new(layout: Layout) -> Self {
        Draft { layout, begun: false, batch: Batch::default() }
    }

    /// Goes on behind the first `entries` entries of a journal.
    pub fn resume(layout: Layout, entries: u64) -> Self {
        Draft { layout, begun: true, batch: Batch { entries, ..Batch::default() } }
    }

    /// Whether nothing has been gathered.
    pub fn is_empty(&self) -> bool {
        self.batch.frames.is_empty() && self.batch.ops.is_empty()
    }

    /// Whether there are frames for the journal.
    pub fn has_frames(&self) -> bool {
        !self.batch.frames.is_empty()
    }

    /// What is gathered, to be committed.
    pub fn take(&mut self) -> Batch {
        let next = Batch { entries: self.batch.entries, ..Batch::default() };
        std::mem::replace(&mut self.batch, next)
    }

    /// Takes the memory of a batch back. Its entries are freed here, by the thread that made them: the allocator is quicker so.
    pub fn reuse(&mut self, Spent(mut spent): Spent) {
        spent.frames.clear();
        spent.ops.clear();
        if self.is_empty() && self.batch.frames.capacity() == 0 {
            spent.entries = self.batch.entries;
            self.batch = spent;
        }
    }

    /// An entry. Returns its number.
    pub fn entry(&mut self, entry: Box<Entry>) -> u64 {
        // The record owns its entry while it is written; nothing is copied.
        let record = Record::Entry(entry);
        self.record(&record, &[]);
        let number = self.batch.entries;
        self.batch.entries += 1;
        if let Record::Entry(entry) = record {
            self.batch.ops.push(Op::Entry(entry, None));
        }
        number
    }

    /// The contents of a file are to come, and stand at this offset of the archive.
    pub fn in_archive(&mut self, file: FileRef, offset: u64) {
        self.contents(file, Some(Put::At(Place::Archive(offset))), Arrival::Announced);
    }

    /// How far the contents of a file have come that are in the archive, or in a record.
    pub fn arrival(&mut self, file: FileRef, arrival: Arrival) {
        self.contents(file, None, arrival);
    }

    /// What has come of a small file, which is kept in memory until all of it is there.
    pub fn in_memory(&mut self, file: FileRef, bytes: Vec<u8>) {
        let received = bytes.len() as u64;
        self.contents(file, Some(Put::At(Place::Memory(Arc::new(bytes)))), Arrival::Arriving { received });
    }

    /// The contents of a small file, or all that will come of them.
    pub fn data(&mut self, file: FileRef, bytes: &[u8], arrival: Arrival) {
        let at = self.record(&Record::Data { id: file.entry, offset: 0 }, bytes);
        self.contents(file, Some(Put::Frame(at)), arrival);
    }

    /// Begins the blob of a file of this size, waiting for room.
    ///
    /// # Errors
    /// [`BlobError`]. A file that is too large is to be ended then.
    pub fn begin_blob(
        &mut self,
        spool: &Spool,
        file: FileRef,
        size: u64,
        map: Option<Arc<SparseMap>>,
        stopped: &dyn Fn() -> bool,
    ) -> Result<Blob, BlobError> {
        let blob = Blob::create(spool, file, size, map, stopped)?;
        let (number, packed) = (blob.spooled.number(), blob.packed);
        self.record(&Record::Blob { id: file.entry, number, packed }, &[]);
        self.contents(file, Some(Put::At(Place::in_blob(number, packed))), Arrival::Announced);
        Ok(blob)
    }

    /// What a blob has by now, with its checksums where there are enough of them for a record.
    pub fn blob(&mut self, blob: &mut Blob) {
        self.sums(blob, false);
        if blob.received() > 0 {
            self.contents(blob.file, None, Arrival::Arriving { received: blob.received() });
        }
    }

    /// No more goes into a blob. Of what is in it so many stored bytes are shown: all, unless some cannot be trusted.
    pub fn end_blob(&mut self, mut blob: Blob, shown: u64, complete: bool) {
        self.sums(&mut blob, true);
        self.end(blob.file, shown.min(blob.received()), complete);
    }

    /// No more comes of a file, of which so many stored bytes are there.
    pub fn end(&mut self, file: FileRef, received: u64, complete: bool) {
        self.record(&Record::End { id: file.entry, received, complete }, &[]);
        let arrival = if complete { Arrival::Complete } else { Arrival::Truncated { received } };
        self.contents(file, None, arrival);
    }

    /// Nothing comes of an entry that the index has refused.
    pub fn end_refused(&mut self, entry: u64) {
        self.record(&Record::End { id: entry, received: 0, complete: false }, &[]);
    }

    /// A file was written to while it was sent.
    pub fn changed(&mut self, file: FileRef) {
        self.record(&Record::Changed { id: file.entry }, &[]);
        self.batch.ops.extend(file.ino.map(Op::Changed));
    }

    /// What the sender knows entries by, from the entry `first` on.
    pub fn digests(&mut self, first: u64, digests: impl Iterator<Item = u64>) {
        let digests: Vec<u8> = digests.flat_map(u64::to_le_bytes).collect();
        self.record(&Record::Digests { first }, &digests);
    }

    /// Something is not as it was packed, for a reason that the entries do not tell.
    pub fn problem(&mut self, warning: bool, path: &[u8], reason: String) {
        self.record(&Record::Problem { warning, path: path.into(), reason }, &[]);
    }

    /// A sender begins anew: problems before are out of date.
    pub fn anew(&mut self) {
        self.record(&Record::Anew, &[]);
    }

    /// The journal ends.
    pub(super) fn finish(&mut self, complete: bool) {
        self.record(&Record::Finish { complete }, &[]);
    }

    fn sums(&mut self, blob: &mut Blob, all: bool) {
        if let Some((first, sums)) = blob.spooled.unrecorded_sums(all) {
            self.record(&Record::Sums { id: blob.file.entry, first }, &sums);
        }
    }

    /// Returns where the frame begins among those of this batch.
    fn record(&mut self, record: &Record, bytes: &[u8]) -> u64 {
        if self.layout == Layout::InPlace {
            return 0;
        }
        let frames = &mut self.batch.frames;
        if !std::mem::replace(&mut self.begun, true) {
            record::encode(&Record::Begin { version: record::VERSION }, &[], frames);
            if self.layout == Layout::Catalogue {
                record::encode(&Record::Catalogue, &[], frames);
            }
        }
        record::encode(record, bytes, frames) as u64
    }

    /// Nobody sees what is between two changes of one batch: only the last one goes into the index.
    fn contents(&mut self, file: FileRef, place: Option<Put>, arrival: Arrival) {
        let before = match self.batch.ops.last_mut() {
            Some(Op::Entry(_, contents)) if file.ino.is_none() => contents,
            Some(Op::Contents(ino, contents)) if *ino == file.ino => {
                let place = place.or(contents.place.take());
                *contents = Contents { place, arrival };
                return;
            }
            _ => {
                self.batch.ops.push(Op::Contents(file.ino, Contents { place, arrival }));
                return;
            }
        };
        let place = place.or_else(|| before.take().and_then(|before| before.place));
        *before = Some(Contents { place, arrival });
    }
}

/// What is to be said when nothing more comes: only of files whose entries the journal has.
#[derive(Debug)]
pub struct Closing {
    pub(super) draft: Draft,
    journaled: u64,
}

impl Closing {
    /// What the draft has gathered is dropped.
    pub(super) fn new(draft: &mut Draft, journaled: u64) -> Self {
        draft.take();
        let draft = Draft { layout: draft.layout, begun: draft.begun, batch: Batch::default() };
        Closing { draft, journaled }
    }

    /// A blob gets no more.
    pub fn blob(&mut self, blob: &mut Blob) {
        if blob.file.entry < self.journaled {
            self.draft.sums(blob, true);
        }
        self.file(blob.file, blob.received());
    }

    /// What has come of a small file.
    pub fn data(&mut self, file: FileRef, bytes: &[u8]) {
        let received = bytes.len() as u64;
        if file.entry < self.journaled && !bytes.is_empty() {
            self.draft.data(file, bytes, Arrival::Truncated { received });
        }
        self.file(file, received);
    }

    /// A file gets no more; so many stored bytes of it are there.
    pub fn file(&mut self, file: FileRef, received: u64) {
        if file.entry < self.journaled {
            self.draft.end(file, received, false);
        } else {
            self.draft.arrival(file, Arrival::Truncated { received });
        }
    }
}
