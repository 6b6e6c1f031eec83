//! The thread that keeps what the decoder found: it commits batches to the store.
//!
//! It works beside the decoder, a few batches behind it at most, and nothing waits for a batch to be full: whatever one
//! chunk of the source brought is one. Contents belong to the entry that came last, so the decoder need not know
//! what the index made of it.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use crate::monitor::{Monitor, Receiving, Verdict};
use crate::stop::Stop;
use crate::store::intake::{Batch, Draft, Intake, Last, Refused, Spent};

use super::outcome::{Outcome, failed};

/// So many batches may wait. More would only be out of the processor's cache when their turn comes.
const WAITING: usize = 2;

/// What one chunk of the source brought.
struct Work {
    batch: Batch,
    /// Of the file that is arriving: stored bytes that came, and that it has.
    receiving: Option<(u64, u64)>,
    /// Whether the decoder waits to hear of the last entry.
    ask: bool,
}

/// A batch that is kept; its memory can be used again.
struct Kept {
    spent: Spent,
    outcome: Outcome,
    last: Option<Last>,
}

/// What the keeper needs to work with.
pub(super) struct Keeper<'a> {
    pub(super) intake: Intake,
    pub(super) monitor: &'a Monitor,
    pub(super) stop: &'a Stop,
}

/// The decoder's end.
pub(super) struct Link<'scope> {
    batches: SyncSender<Work>,
    kept: Receiver<Kept>,
    thread: ScopedJoinHandle<'scope, Intake>,
    /// A file was arriving when the last batch was sent.
    receiving: bool,
}

impl Link<'_> {
    /// Hands over what is gathered, and takes back the memory of a batch that is kept. `receiving` is how far the file is
    /// that is arriving, and its stored bytes.
    ///
    /// # Errors
    /// A batch before could not be kept.
    pub(super) fn send(&mut self, draft: &mut Draft, receiving: Option<(u64, u64)>) -> Outcome {
        if draft.is_empty() && receiving.is_some() == self.receiving {
            return Ok(());
        }
        self.receiving = receiving.is_some();
        self.pass_on(draft, receiving, false)?;
        let mut outcome = Ok(());
        while let Ok(kept) = self.kept.try_recv() {
            outcome = outcome.and(kept.outcome);
            draft.reuse(kept.spent);
        }
        outcome
    }

    /// Hands over what is gathered, and waits until it is kept. What became of the last entry.
    pub(super) fn ask(&mut self, draft: &mut Draft, receiving: Option<(u64, u64)>) -> Outcome<Last> {
        self.pass_on(draft, receiving, true)?;
        loop {
            let kept = self.kept.recv().map_err(|_| gone())?;
            kept.outcome?;
            draft.reuse(kept.spent);
            if let Some(last) = kept.last {
                return Ok(last);
            }
        }
    }

    fn pass_on(&mut self, draft: &mut Draft, receiving: Option<(u64, u64)>, ask: bool) -> Outcome {
        self.batches.send(Work { batch: draft.take(), receiving, ask }).map_err(|_| gone())
    }

    /// Waits until everything is kept.
    pub(super) fn end(self) -> (Intake, Outcome) {
        drop(self.batches);
        let outcome = self.kept.iter().try_for_each(|kept| kept.outcome);
        match self.thread.join() {
            Ok(intake) => (intake, outcome),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn gone() -> Verdict {
    Verdict::Failed { cause: "what arrives is not kept any more: please report it".into() }
}

impl<'scope> Keeper<'scope> {
    /// Begins to keep.
    pub(super) fn begin(self, scope: &'scope Scope<'scope, '_>) -> std::io::Result<Link<'scope>> {
        let (batches, work) = sync_channel(WAITING);
        let (done, kept) = channel();
        let thread =
            std::thread::Builder::new().name("keeper".into()).spawn_scoped(scope, move || self.run(work, &done))?;
        Ok(Link { batches, kept, thread, receiving: false })
    }

    fn run(mut self, batches: Receiver<Work>, done: &Sender<Kept>) -> Intake {
        for work in batches {
            let ask = work.ask;
            let (spent, outcome) = self.keep(work);
            let last = ask.then(|| self.intake.last().clone());
            if done.send(Kept { spent, outcome, last }).is_err() {
                break;
            }
        }
        self.intake
    }

    fn keep(&mut self, work: Work) -> (Spent, Outcome) {
        let committed = self.intake.commit(work.batch, &|| self.stop.is_stopped(), |_| ());
        refuse(self.monitor, committed.refused);
        self.monitor.receiving(work.receiving.map(|(received, size)| Receiving {
            path: self.intake.last().path.to_string(),
            received,
            size,
        }));
        (committed.spent, committed.outcome.map_err(failed))
    }
}

/// Names what the index did not take.
pub(super) fn refuse(monitor: &Monitor, refused: Refused) {
    for (path, refusal) in refused {
        monitor.refused(if path.is_root() { b"." } else { path.as_bytes() }, refusal);
    }
}
