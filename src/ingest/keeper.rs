//! The thread that keeps what the decoder found: records are written, then the index says so, then who waits is told.
//!
//! It works beside the decoder, a few batches behind it at most, and nothing waits for a batch to be full: whatever one
//! chunk of the source brought is one. Contents belong to the entry that came last, so the decoder need not know
//! what the index made of it.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use crate::entry::{Entry, EntryPath};
use crate::index::{Arrival, Ino, Inserted, Place, Refusal};
use crate::monitor::{Monitor, Receiving, Verdict};
use crate::spool::Spool;
use crate::stop::Stop;
use crate::store::Store;

use super::{Outcome, failed};

/// So many batches may wait. More would only be out of the processor's cache when their turn comes.
const WAITING: usize = 2;

/// What became of an entry's contents in the batch that it came with.
pub(super) type Fate = Option<(Place, Arrival)>;

/// What the decoder found.
pub(super) enum Op {
    Entry(Box<Entry>, Fate),
    /// News of the contents of the entry that came last.
    Contents(Option<Place>, Arrival),
}

/// What one chunk of the source brought.
#[derive(Default)]
pub(super) struct Batch {
    /// Records, for the journal.
    pub(super) frames: Vec<u8>,
    pub(super) ops: Vec<Op>,
    /// Of the file that is arriving: stored bytes that came, and that it has.
    pub(super) receiving: Option<(u64, u64)>,
    /// Whether the decoder waits to hear of the last entry.
    ask: bool,
}

/// A batch that is kept; its memory can be used again.
struct Kept {
    batch: Batch,
    outcome: Outcome,
    last: Option<Last>,
}

/// The entry that came last.
#[derive(Clone)]
pub(super) struct Last {
    pub(super) path: EntryPath,
    /// None where it is refused, or a link that waits.
    pub(super) ino: Option<Ino>,
}

/// What the keeper needs to work with.
#[derive(Clone, Copy)]
pub(super) struct Keeper<'a> {
    pub(super) store: &'a Store,
    pub(super) monitor: &'a Monitor,
    pub(super) stop: &'a Stop,
    pub(super) max_index: u64,
}

/// The decoder's end.
pub(super) struct Link<'scope> {
    batches: SyncSender<Batch>,
    kept: Receiver<Kept>,
    thread: ScopedJoinHandle<'scope, Last>,
    /// A file was arriving when the last batch was sent.
    receiving: bool,
}

impl Default for Last {
    fn default() -> Self {
        Last { path: EntryPath::root(), ino: None }
    }
}

impl Link<'_> {
    /// Hands a batch over, and takes back one that is kept, empty. Fails where one before could not be kept.
    pub(super) fn send(&mut self, batch: &mut Batch) -> Outcome {
        let receiving = batch.receiving.is_some();
        if batch.frames.is_empty() && batch.ops.is_empty() && receiving == self.receiving {
            return Ok(());
        }
        self.receiving = receiving;
        self.pass_on(batch)?;
        let mut outcome = Ok(());
        while let Ok(kept) = self.kept.try_recv() {
            outcome = outcome.and(kept.outcome);
            reuse(batch, kept.batch);
        }
        outcome
    }

    /// Hands a batch over, and waits until it is kept. What became of the last entry.
    pub(super) fn ask(&mut self, batch: &mut Batch) -> Outcome<Last> {
        batch.ask = true;
        self.pass_on(batch)?;
        loop {
            let kept = self.kept.recv().map_err(|_| gone())?;
            kept.outcome?;
            reuse(batch, kept.batch);
            if let Some(last) = kept.last {
                return Ok(last);
            }
        }
    }

    fn pass_on(&mut self, batch: &mut Batch) -> Outcome {
        self.batches.send(std::mem::take(batch)).map_err(|_| gone())
    }

    /// Waits until everything is kept.
    pub(super) fn end(self) -> (Last, Outcome) {
        drop(self.batches);
        let outcome = self.kept.iter().try_for_each(|kept| kept.outcome);
        match self.thread.join() {
            Ok(last) => (last, outcome),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn gone() -> Verdict {
    Verdict::Failed { cause: "what arrives is not kept any more: please report it".into() }
}

/// The entries are freed by the thread that made them: the allocator is quicker so.
fn reuse(batch: &mut Batch, mut old: Batch) {
    old.frames.clear();
    old.ops.clear();
    if batch.frames.capacity() == 0 {
        *batch = Batch { frames: old.frames, ops: old.ops, ..Batch::default() };
    }
}

impl<'scope> Keeper<'scope> {
    /// Begins to keep.
    pub(super) fn begin(self, scope: &'scope Scope<'scope, '_>) -> std::io::Result<Link<'scope>> {
        let (batches, work) = sync_channel(WAITING);
        let (done, kept) = channel();
        let keeping =
            Keeping { keeper: self, last: Last::default(), taken: 0, told: 0, lost: false, entries: Vec::new() };
        let thread =
            std::thread::Builder::new().name("keeper".into()).spawn_scoped(scope, move || keeping.run(work, &done))?;
        Ok(Link { batches, kept, thread, receiving: false })
    }
}

struct Keeping<'a> {
    keeper: Keeper<'a>,
    last: Last,
    /// Entries that the index took, links that still wait for their target among them.
    taken: u64,
    /// Of these, the monitor knows so many.
    told: u64,
    /// A batch could not be written: offsets in the journal are not what the decoder takes them for.
    lost: bool,
    /// Whose contents have news.
    entries: Vec<Ino>,
}

impl Keeping<'_> {
    fn run(mut self, work: Receiver<Batch>, done: &Sender<Kept>) -> Last {
        for mut batch in work {
            let outcome = self.keep(&mut batch);
            let last = batch.ask.then(|| self.last.clone());
            if done.send(Kept { batch, outcome, last }).is_err() {
                break;
            }
        }
        self.last
    }

    fn keep(&mut self, batch: &mut Batch) -> Outcome {
        let Keeper { store, monitor, stop, max_index } = self.keeper;
        let written = match store.spool() {
            Some(spool) if !batch.frames.is_empty() && !self.lost => write(spool, &batch.frames, stop),
            _ => Ok(()),
        };
        // Entries whose contents could not be written are still shown; what is not there reads as an error.
        self.lost |= written.is_err();
        let mut refused = Vec::new();
        let mut dropped = 0;
        let (memory, waiting) = {
            let mut index = store.index.write();
            let mut rest = batch.ops.iter_mut();
            while let Some(op) = rest.next() {
                let (contents, is_new) = match op {
                    Op::Contents(place, arrival) => (Some((place.take(), *arrival)), false),
                    Op::Entry(entry, fate) => {
                        let inserted = index.insert(entry, &mut |late| {
                            if let Err(refusal) = late.bound {
                                dropped += 1;
                                refused.push((late.link.clone(), refusal));
                            }
                        });
                        self.taken += u64::from(inserted.is_ok());
                        self.last.ino = match inserted {
                            Ok(Inserted::Bound(ino)) => Some(ino),
                            Ok(Inserted::Waits) => None,
                            Err(refusal) => {
                                refused.push((entry.path.clone(), refusal));
                                None
                            }
                        };
                        // Only of the last one the path is asked for.
                        if !rest.as_slice().iter().any(|op| matches!(op, Op::Entry(..))) {
                            self.last.path = std::mem::replace(&mut entry.path, EntryPath::root());
                        }
                        (fate.take().map(|(place, arrival)| (Some(place), arrival)), true)
                    }
                };
                let (Some((place, arrival)), Some(ino)) = (contents, self.last.ino) else { continue };
                if self.lost && matches!(place, Some(Place::Journal(_))) {
                    index.set_arrival(ino, Arrival::Truncated { received: 0 });
                } else {
                    if let Some(place) = place {
                        index.set_place(ino, place);
                    }
                    index.set_arrival(ino, arrival);
                }
                // Nobody can wait for what was not there before.
                if !is_new {
                    self.entries.push(ino);
                }
            }
            (index.memory(), index.waiting() as u64)
        };
        for ino in self.entries.drain(..) {
            store.notify(ino);
        }
        self.taken -= dropped;
        let there = self.taken - waiting;
        monitor.add_entries(there - std::mem::replace(&mut self.told, there));
        refuse(monitor, refused);
        monitor.receiving(batch.receiving.map(|(received, size)| Receiving {
            path: self.last.path.to_string(),
            received,
            size,
        }));
        written?;
        if memory > max_index {
            let cause = format!("the index has reached its limit of {} MiB (--max-index)", max_index >> 20);
            return Err(Verdict::Corrupt { cause, cut: None });
        }
        Ok(())
    }
}

fn write(spool: &Spool, frames: &[u8], stop: &Stop) -> Outcome {
    spool.append(frames, &|| stop.is_stopped()).map(drop).map_err(failed)
}

/// Names what the index did not take.
pub(super) fn refuse(monitor: &Monitor, refused: Vec<(EntryPath, Refusal)>) {
    for (path, refusal) in refused {
        monitor.refused(if path.is_root() { b"." } else { path.as_bytes() }, refusal);
    }
}
