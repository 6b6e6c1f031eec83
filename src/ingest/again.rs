//! A stream that is read again from its beginning, where a spool has the first part of it: entries are compared with those
//! in the journal, contents that are there are passed over, and the file that was cut goes on where it was cut.

use std::collections::HashMap;
use std::sync::Arc;

use crate::entry::Entry;
use crate::index::{Arrival, Ino};
use crate::monitor::{Monitor, Verdict};
use crate::record::Record;
use crate::replay::{Records, Step};
use crate::spool::Spool;
use crate::stop::Stop;
use crate::store::Store;
use crate::store::intake::{Blob, Draft, FileRef, Intake, Last, Layout};
use crate::store::recover::{Job as Recovery, Lost, Resume};

use super::outcome::Outcome;

/// What is there of an entry.
pub(super) enum Found {
    /// It is new.
    Nothing,
    /// The entry of this number, and nothing of its contents.
    Entry(u64),
    /// The entry, and the beginning of its contents.
    Part(u64, Blob),
    /// All that there will be: of a file that the spool could not hold, so many stored bytes.
    All(u64, Option<u64>),
}

pub(super) struct Again {
    records: Records,
    /// Entries that are there, and how many of them have come again.
    entries: u64,
    seen: u64,
    last: Last,
    /// Whether the contents of the last one are over.
    last_is_over: bool,
    part: Option<Blob>,
    /// Files that are cut for good, by their entries, and how many stored bytes of each are there.
    cut: HashMap<u64, u64>,
    /// Problems behind the last entry that the journal has.
    problems: u64,
}

impl Again {
    /// Recovers what is there.
    pub(super) fn begin(
        resume: Resume,
        store: &Arc<Store>,
        monitor: &Arc<Monitor>,
        stop: &Stop,
        max_index: u64,
    ) -> Outcome<Again> {
        let job = Recovery {
            store: store.clone(),
            monitor: monitor.clone(),
            stop: stop.clone(),
            max_index,
            same_boot: resume.about.is_of_this_boot(),
        };
        let mut found = store.resume(&job, resume).map_err(|e| e.verdict())?;
        let journal = match store.spool().map(|spool| spool.journal().try_clone()) {
            Some(Ok(journal)) => journal,
            Some(Err(e)) => return Err(failed(format!("cannot read the journal of the spool: {e}"))),
            None => return Err(Lost::NoSpool.verdict()),
        };
        let entries = found.entries.len() as u64;
        let cut = {
            let index = store.index();
            let cut = |ino: &Option<Ino>| match index.arrival((*ino)?) {
                Some(Arrival::Truncated { received }) => Some(received),
                _ => None,
            };
            (0..).zip(&found.entries).filter_map(|(entry, ino)| Some((entry, cut(ino)?))).collect()
        };
        let ino = found.entries.last().copied().flatten();
        let part = entries.checked_sub(1).and_then(|last| Some((last, found.parts.remove(&last)?)));
        let part = part.map(|(entry, part)| store.reopen(part, FileRef { entry, ino: None })).transpose();
        let part = part.map_err(|e| e.verdict())?;
        let is_over =
            |ino: Ino| matches!(store.index().arrival(ino), None | Some(Arrival::Complete | Arrival::Truncated { .. }));
        Ok(Again {
            records: Records::new(Arc::new(journal), store.spool().map_or(0, Spool::position)),
            entries,
            seen: 0,
            last_is_over: ino.is_none_or(is_over),
            last: Last { path: found.last.unwrap_or_else(crate::entry::EntryPath::root), ino },
            part,
            cut,
            problems: found.problems,
        })
    }

    /// For what is behind what is there.
    pub(super) fn draft(&self) -> Draft {
        match self.records.length() {
            0 => Draft::new(Layout::Stream),
            _ => Draft::resume(Layout::Stream, self.entries),
        }
    }

    /// For what is behind what is there.
    pub(super) fn intake(&self, store: &Arc<Store>, monitor: &Arc<Monitor>, max_index: u64) -> Intake {
        Intake::resume(store.clone(), monitor.clone(), max_index, self.entries, self.last.clone())
    }

    /// Whether everything that is there has come again.
    pub(super) fn is_past(&self) -> bool {
        self.seen == self.entries
    }

    /// Whether the journal does not have a problem that the stream brings now.
    pub(super) fn is_new_problem(&mut self) -> bool {
        let is_known = self.problems > 0;
        if self.is_past() && is_known {
            self.problems -= 1;
        }
        self.is_past() && !is_known
    }

    /// What is there of the next entry of the stream.
    pub(super) fn find(&mut self, entry: &Entry) -> Outcome<Found> {
        if self.is_past() {
            return Ok(Found::Nothing);
        }
        let before = self.next_entry()?;
        if *before != *entry {
            return Err(failed(format!(
                "it is not the archive that the spool was filled from: entry {} is '{}' there, and '{}' here{}",
                self.seen + 1,
                before.path,
                entry.path,
                if before.path == entry.path { " with other metadata" } else { "" },
            )));
        }
        let number = self.seen;
        self.seen += 1;
        Ok(match self.part.take_if(|_| self.seen == self.entries) {
            Some(blob) => Found::Part(number, blob),
            None if self.is_past() && !self.last_is_over => Found::Entry(number),
            None => Found::All(number, self.cut.remove(&number)),
        })
    }

    fn next_entry(&mut self) -> Outcome<Box<Entry>> {
        loop {
            match self.records.next_step() {
                Ok(Step::Record { record: Record::Entry(entry), .. }) => return Ok(entry),
                Ok(Step::Record { .. }) => {}
                Ok(Step::End | Step::Torn | Step::Damaged) => {
                    return Err(failed("the journal of the spool has changed"));
                }
                Err(e) => return Err(failed(format!("cannot read the journal of the spool: {e}"))),
            }
        }
    }

    /// The archive is over.
    pub(super) fn at_end(&self) -> Outcome {
        if self.is_past() {
            return Ok(());
        }
        Err(failed(format!(
            "it is not the archive that the spool was filled from: it has {} entries, and the spool has {} already",
            self.seen, self.entries
        )))
    }
}

fn failed(cause: impl Into<String>) -> Verdict {
    Verdict::Failed { cause: cause.into() }
}
