//! The only way into a store. Bytes are written first, then the index says that they are there, then whoever waits for them
//! is told: [`Intake::commit`] has that order, and nothing else changes the index.
//!
//! A [`Draft`] gathers what has come, another thread may commit it. Where a frame will be in the journal is known only then,
//! since others append to the journal too. How a stream ends stands here as well: [`Intake::finish`] and
//! [`Intake::close`].

mod blob;
mod draft;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::entry::{Entry, EntryPath};
use crate::index::insert::{Inserted, Refusal};
use crate::index::{Arrival, Index, Ino, Place};
use crate::monitor::Monitor;
use crate::record::{self, Record};
use crate::spool;
use crate::store::Store;

pub use blob::{Blob, BlobError, FileRef, TooLarge};
pub use draft::{Batch, Closing, Draft, Layout, Spent};
use draft::{Contents, Op, Put};

/// Why nothing more is taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The journal cannot be written.
    #[error(transparent)]
    Spool(#[from] spool::Error),
    /// The journal could not be written before, and must not have gaps.
    #[error("the journal of the spool could not be written")]
    Lost,
    /// The index has no more room.
    #[error("the index has reached its limit of {} MiB (--max-index)", limit >> 20)]
    Full {
        /// The most that it may take, in bytes.
        limit: u64,
    },
}

/// The entry that came last.
#[derive(Clone, Debug)]
pub struct Last {
    /// Its path.
    pub path: EntryPath,
    /// Its inode. None where it is refused, or a link that waits.
    pub ino: Option<Ino>,
}

/// Names that the index does not take.
pub type Refused = Vec<(EntryPath, Refusal)>;

/// What became of a batch.
#[must_use]
#[derive(Debug)]
pub struct Committed {
    /// Its memory, to be used again.
    pub spent: Spent,
    /// What the index did not take; to be named.
    pub refused: Refused,
    /// Whether more can come. Entries whose contents could not be written are shown all the same: what is not there reads
    /// as an error.
    pub outcome: Result<(), Error>,
}

/// An entry on its way into the index, for the caller to note what became of it.
#[derive(Debug)]
pub struct Came<'a> {
    /// The entry.
    pub entry: &'a Entry,
    /// What it came to.
    pub inserted: Result<Inserted, Refusal>,
    /// Files that lost a name by it.
    pub replaced: &'a [Ino],
}

/// Fills a store.
pub struct Intake {
    store: Arc<Store>,
    monitor: Arc<Monitor>,
    max_index: u64,
    last: Last,
    /// Entries that the index took, links that still wait for their target among them.
    taken: u64,
    /// Of these, the monitor knows so many.
    told: u64,
    /// Entries that the journal has.
    journaled: u64,
    /// A batch could not be written. None behind it is: the journal has the entries in their order, without gaps.
    lost: bool,
    over: bool,
    /// Whose contents have news.
    news: Vec<Ino>,
}

impl Intake {
    /// Fills an empty store. The index may take `max_index` bytes of memory.
    pub fn new(store: Arc<Store>, monitor: Arc<Monitor>, max_index: u64) -> Self {
        Intake::resume(store, monitor, max_index, 0, Last { path: EntryPath::root(), ino: None })
    }

    /// Goes on filling a store that has the first `entries` entries of its journal already, of which `last` is the last one.
    /// The monitor is told of what comes from now on.
    pub fn resume(store: Arc<Store>, monitor: Arc<Monitor>, max_index: u64, entries: u64, last: Last) -> Self {
        let taken = store.index.read().waiting() as u64;
        Intake {
            store,
            monitor,
            max_index,
            last,
            taken,
            told: 0,
            journaled: entries,
            lost: false,
            over: false,
            news: Vec::new(),
        }
    }

    /// The entry that came last.
    pub fn last(&self) -> &Last {
        &self.last
    }

    /// Writes the frames of a batch to the journal, waiting for room while `stopped` does not say otherwise; then changes
    /// the index; then tells those who wait. `each` is called for every entry, while the index is locked.
    pub fn commit(
        &mut self,
        mut batch: Batch,
        stopped: &dyn Fn() -> bool,
        mut each: impl FnMut(Came<'_>),
    ) -> Committed {
        let written = self.write(&batch, stopped);
        let base = written.as_ref().ok().copied().flatten();
        let mut refused = Refused::new();
        let mut dropped = 0;
        let (memory, waiting) = {
            let mut index = self.store.index.write();
            for op in &mut batch.ops {
                match op {
                    Op::Entry(entry, contents) => {
                        let inserted = index.insert(entry, &mut |late| {
                            if let Err(refusal) = late.bound {
                                dropped += 1;
                                refused.push((late.link.clone(), refusal));
                            }
                        });
                        if !index.replaced().is_empty() && base.is_some() {
                            self.store.supersede(index.replaced().iter().copied());
                        }
                        each(Came { entry, inserted, replaced: index.replaced() });
                        self.taken += u64::from(inserted.is_ok());
                        self.last.ino = match inserted {
                            Ok(Inserted::Bound(ino)) => Some(ino),
                            Ok(Inserted::Waits) => None,
                            Err(refusal) => {
                                refused.push((entry.path.clone(), refusal));
                                None
                            }
                        };
                        // Nobody can wait for what was not there before.
                        if let (Some(contents), Some(ino)) = (contents.take(), self.last.ino) {
                            put(&mut index, ino, contents, base);
                        }
                    }
                    Op::Contents(ino, contents) => {
                        let Some(ino) = ino.or(self.last.ino) else { continue };
                        let nothing = Contents { place: None, arrival: Arrival::Announced };
                        put(&mut index, ino, std::mem::replace(contents, nothing), base);
                        if self.news.last() != Some(&ino) {
                            self.news.push(ino);
                        }
                    }
                    Op::Changed(ino) => index.set_changed(*ino),
                }
            }
            (index.memory(), index.waiting() as u64)
        };
        self.tell();
        let last = batch.ops.iter_mut().rev().find_map(|op| match op {
            Op::Entry(entry, _) => Some(entry),
            Op::Contents(..) | Op::Changed(_) => None,
        });
        if let Some(entry) = last {
            self.last.path = std::mem::replace(&mut entry.path, EntryPath::root());
        }
        self.taken -= dropped;
        let there = self.taken - waiting;
        self.monitor.add_entries(there - std::mem::replace(&mut self.told, there));
        let outcome = match written {
            Err(e) => Err(e.into()),
            Ok(_) => self.check(memory),
        };
        Committed { spent: Spent(batch), refused, outcome }
    }

    /// Whether the index may become larger, with what the caller keeps beside it.
    ///
    /// # Errors
    /// [`Error::Full`].
    pub fn check_memory(&self, beside: u64) -> Result<(), Error> {
        self.check(self.store.index.read().memory().saturating_add(beside))
    }

    fn check(&self, memory: u64) -> Result<(), Error> {
        if memory > self.max_index { Err(Error::Full { limit: self.max_index }) } else { Ok(()) }
    }

    /// Where its frames begin in the journal. None where they are not written, because none before can be.
    fn write(&mut self, batch: &Batch, stopped: &dyn Fn() -> bool) -> Result<Option<u64>, spool::Error> {
        if self.lost {
            return Ok(None);
        }
        let base = match self.store.spool() {
            Some(spool) if !batch.frames.is_empty() => {
                spool.append(&batch.frames, stopped).inspect_err(|_| self.lost = true)?
            }
            _ => 0,
        };
        self.journaled = batch.entries;
        Ok(Some(base))
    }

    fn tell(&mut self) {
        for ino in self.news.drain(..) {
            self.store.notify(ino);
        }
    }

    /// Everything that is to come has come, and the journal says so, and whether it is `complete`.
    ///
    /// # Errors
    /// It cannot be made to say so: then nothing is over yet.
    pub fn finish(&mut self, draft: &mut Draft, complete: bool, stopped: &dyn Fn() -> bool) -> Result<Refused, Error> {
        draft.finish(complete);
        let batch = draft.take();
        let base = self.write(&batch, stopped)?.ok_or(Error::Lost)?;
        Ok(self.end(batch.ops, Some(base), true))
    }

    /// Drops what is not committed, and begins what is said at the end.
    pub fn closing(&self, draft: &mut Draft) -> Closing {
        Closing::new(draft, self.journaled)
    }

    /// Nothing more comes, and readers that wait are told so. No waiting for room any more: what cannot be written now stays
    /// in memory, and that the stream is complete is written when the store is settled. Only the first end counts.
    pub fn close(&mut self, closing: Closing, complete: bool) -> Refused {
        let mut draft = closing.draft;
        draft.finish(complete);
        let batch = draft.take();
        let mut frames = Vec::new();
        if !complete && self.journaled > 0 {
            record::encode(&Record::Cut, &[], &mut frames);
        }
        let before = frames.len() as u64;
        frames.extend_from_slice(&batch.frames);
        let written = match self.store.spool() {
            Some(spool) if !self.over => {
                let written = spool.append(&frames, &|| true).ok().map(|base| base + before);
                self.store.set_unfinished(complete && written.is_none());
                written
            }
            _ => None,
        };
        self.end(batch.ops, written, complete)
    }

    fn end(&mut self, ops: Vec<Op>, base: Option<u64>, complete: bool) -> Refused {
        let mut refused = Refused::new();
        if std::mem::replace(&mut self.over, true) {
            return refused;
        }
        {
            let mut index = self.store.index.write();
            for op in ops {
                if let Op::Contents(ino, contents) = op
                    && let Some(ino) = ino.or(self.last.ino)
                {
                    put(&mut index, ino, contents, base);
                    self.news.push(ino);
                }
            }
            index.finish(&mut |path, refusal| refused.push((path.clone(), refusal)));
            if !complete {
                self.news.extend(index.cut_all());
            }
        }
        self.store.set_over();
        self.tell();
        refused
    }
}

/// Changes what the index says of contents. Frames begin at `base` of the journal; without, they could not be written.
fn put(index: &mut Index, ino: Ino, contents: Contents, base: Option<u64>) {
    let Contents { place, mut arrival } = contents;
    match (place, base) {
        // What said where its blob is could not be written.
        (None, _) if matches!(index.place(ino), Some(Place::Empty)) => {
            if let Arrival::Truncated { received } = &mut arrival {
                *received = 0;
            }
        }
        (None, _) => {}
        (Some(Put::At(place)), _) => index.set_place(ino, place),
        (Some(Put::Frame(at)), Some(base)) => index.set_place(ino, Place::Journal(base + at)),
        (Some(Put::Frame(_)), None) => {
            let in_memory = match index.place(ino) {
                Some(Place::Memory(bytes)) => bytes.len() as u64,
                _ => 0,
            };
            arrival = Arrival::Truncated { received: in_memory };
        }
    }
    index.set_arrival(ino, arrival);
}
