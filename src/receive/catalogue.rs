//! The catalogue into the sink: what entries come to, which of them an earlier session has brought already, and what is
//! gone since.

use std::num::NonZeroU64;

use super::digest::digest;
use super::sink::{Announced, Became, Known, Number, Outcome, Sink, State, violation};
use crate::entry::check::{Checked, check};
use crate::entry::{Entry, EntryKind};
use crate::index::Arrival;
use crate::wire::Totals;

/// So many bytes of entries are put into the index at once.
const ANNOUNCED_BYTES: usize = 1 << 20;

/// A sender that is started again, after everything had come, with another tree.
const CHANGED_SINCE: &str = "everything had come already, and its tree has changed since: make another mount for it";

impl Sink {
    /// One more record. Whoever calls it hashes it.
    pub(super) fn catalogue(&mut self) -> Outcome {
        if self.complete {
            return violation("an entry behind the end of the catalogue");
        }
        self.totals.records += 1;
        Ok(())
    }

    pub(super) fn entry(&mut self, entry: Entry, encoded: &[u8]) -> Outcome {
        let id = self.totals.entries;
        let Some(number) = Number::new(id) else { return violation("more entries than can be numbered") };
        self.totals.entries += 1;
        self.slots.push(Became::Nothing.into());
        let stored = entry.kind.stored_len();
        if stored > 0 {
            self.totals.files += 1;
            self.totals.bytes = self.totals.bytes.saturating_add(stored);
            self.awaited += 1;
        }
        let digest = digest(encoded);
        let entry = match check(entry) {
            Checked::Right(entry) => entry,
            Checked::Mended(entry, what) => {
                if !self.finished {
                    self.draft.problem(true, entry.path.as_bytes(), what.clone());
                    self.monitor.warning(entry.path.as_bytes(), what);
                }
                entry
            }
            Checked::Refused(path, reason) => {
                self.leave_out_entry(id, stored);
                self.refuse(path.as_bytes(), reason);
                return Ok(());
            }
        };
        if self.again {
            self.named.insert(self.key(entry.path.as_bytes()));
            if self.is_known(&entry, digest, number) {
                return Ok(());
            }
        }
        if self.finished {
            if self.left_out.contains(&self.key(entry.path.as_bytes())) {
                self.leave_out_entry(id, stored);
                return Ok(());
            }
            return violation(CHANGED_SINCE);
        }
        let journal = self.draft.entry(entry.into()) as u32;
        self.announced.push(Announced { id: number, digest, journal });
        // Few bytes can name many directories, and the memory that they take is looked at between.
        self.announced_bytes += encoded.len();
        if self.again || self.announced_bytes > ANNOUNCED_BYTES {
            self.commit()?;
        }
        Ok(())
    }

    /// There is nothing to come of it.
    fn leave_out_entry(&mut self, id: u64, stored: u64) {
        if stored > 0 {
            self.awaited -= 1;
            self.over_bytes = self.over_bytes.saturating_add(stored);
            self.slots[id as usize] = Became::LeftOut.into();
        }
    }

    /// Whether a session before has brought the very same entry.
    fn is_known(&mut self, entry: &Entry, digest: NonZeroU64, id: Number) -> bool {
        let (ino, target, may_be_better) = {
            let index = self.store.index();
            let target = match &entry.kind {
                EntryKind::HardLink { target } => Some(index.resolve(target.as_bytes())),
                _ => None,
            };
            let ino = index.resolve(entry.path.as_bytes());
            let arrival = ino.and_then(|ino| index.arrival(ino));
            let is_changed = ino.is_some_and(|ino| index.is_changed(ino));
            (ino, target, is_changed || matches!(arrival, Some(Arrival::Truncated { .. })))
        };
        let Some(ino) = ino else { return false };
        if let Some(target) = target {
            return target == Some(ino);
        }
        let Some(known) = self.known.get_mut(ino.0 as usize).filter(|known| known.digest == Some(digest)) else {
            return false;
        };
        // Perhaps it can be read whole this time, and as it is. And what a session says twice has contents twice.
        if (may_be_better || known.id.is_some()) && !self.finished {
            return false;
        }
        known.id = Some(id);
        let over = known.state == State::Over;
        self.slots[id.get() as usize] = Became::Inode(ino.0 as u32).into();
        if entry.kind.stored_len() > 0 && over {
            self.awaited -= 1;
            self.over_bytes = self.over_bytes.saturating_add(entry.kind.stored_len());
        }
        true
    }

    pub(super) fn catalogue_end(&mut self, totals: Totals) -> Outcome {
        self.commit()?;
        if totals != self.totals() {
            return violation("it counts its catalogue otherwise than what came of it");
        }
        if std::mem::replace(&mut self.ended, true) {
            return violation("the end of the catalogue more than once");
        }
        if !self.complete {
            self.complete = true;
            if self.again {
                self.name_what_is_gone()?;
            }
        }
        self.answering = Some(0);
        Ok(())
    }

    /// What an earlier session brought and this one has not stays, and is named.
    fn name_what_is_gone(&mut self) -> Outcome {
        let is_cut = |known: &Known| known.id.is_none() && known.state != State::Over;
        let cut: Vec<u32> = (0u32..).zip(&self.known).filter(|(_, known)| is_cut(known)).map(|(ino, _)| ino).collect();
        for ino in cut {
            self.give_up(ino);
        }
        self.commit()?;
        let mut is_changed = false;
        let store = self.store.clone();
        let index = store.index();
        index.walk(&mut |path, ino| {
            let key = self.key(path);
            // One that was gone already when everything else had come is no change.
            let was_gone = self.finished && self.left_out.contains(&key);
            if !self.named.contains(&key) && !was_gone && !index.is_implied(ino) {
                is_changed = true;
                self.refuse(path, "it is not at the sender any more; what came of it stays");
            }
        });
        // Then nothing was refused either.
        if self.finished && is_changed { violation(CHANGED_SINCE) } else { Ok(()) }
    }
}
