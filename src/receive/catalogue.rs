//! The catalogue into the sink: what entries come to, which of them an earlier session has brought already, and what is
//! gone since.

use super::check::{Checked, check};
use super::sink::{NONE, Op, Outcome, Sink, State, UNNAMED, violation};
use crate::entry::{Entry, EntryKind};
use crate::index::{Arrival, Ino};
use crate::record::{self, Record};
use crate::wire::{FromReceiver, Totals};

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
        if id >= u64::from(UNNAMED) {
            return violation("more entries than can be numbered");
        }
        self.totals.entries += 1;
        self.slots.push(NONE);
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
                self.monitor.warning(entry.path.as_bytes(), what);
                entry
            }
            Checked::Refused(path, reason) => {
                self.awaited -= u64::from(stored > 0);
                self.refuse(path.as_bytes(), reason);
                return Ok(());
            }
        };
        if self.again && self.is_known(&entry, digest, id) {
            return Ok(());
        }
        if self.finished {
            return violation(CHANGED_SINCE);
        }
        let record = Record::Entry(entry.into());
        record::encode(&record, &[], &mut self.frames);
        let Record::Entry(entry) = record else { return Ok(()) };
        self.ops.push(Op { id: id as u32, entry, digest });
        if self.again {
            self.commit()?;
        }
        Ok(())
    }

    /// Whether a session before has brought the very same entry.
    fn is_known(&mut self, entry: &Entry, digest: u64, id: u64) -> bool {
        let (ino, target, is_cut) = {
            let index = self.store.index.read();
            let target = match &entry.kind {
                EntryKind::HardLink { target } => Some(index.resolve(target.as_bytes())),
                _ => None,
            };
            let ino = index.resolve(entry.path.as_bytes());
            let arrival = ino.and_then(|ino| index.arrival(ino));
            (ino, target, matches!(arrival, Some(Arrival::Truncated { .. })))
        };
        let Some(ino) = ino else { return false };
        if let Some(target) = target {
            return target == Some(ino);
        }
        let Some(known) = self.known.get_mut(ino.0 as usize).filter(|known| known.digest == digest) else {
            return false;
        };
        if is_cut && !self.finished {
            // Perhaps it can be read whole this time: another entry of that name.
            return false;
        }
        known.id = id as u32;
        let over = known.state == State::Over;
        self.slots[id as usize] = ino.0 as u32;
        if entry.kind.stored_len() > 0 && over {
            self.awaited -= 1;
            self.received += entry.kind.stored_len();
        }
        true
    }

    pub(super) fn catalogue_end(&mut self, totals: Totals, answers: &mut Vec<FromReceiver>) -> Outcome {
        self.commit()?;
        if totals != self.totals() {
            return violation("it counts its catalogue otherwise than what came of it");
        }
        if !self.complete {
            self.complete = true;
            if self.again {
                self.name_what_is_gone()?;
            }
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut parts = Vec::new();
        for (id, &ino) in self.slots.iter().enumerate() {
            let id = id as u64;
            let state = self.known.get(ino as usize).filter(|_| ino != NONE).map_or(State::Over, |known| known.state);
            match state {
                State::Awaited => {}
                State::Part => parts.extend(self.parts.get(&ino).map(|part| part.position(id))),
                State::Over => match ranges.last_mut() {
                    Some((first, count)) if *first + *count == id => *count += 1,
                    _ => ranges.push((id, 1)),
                },
            }
        }
        answers.push(FromReceiver::Whole { ranges });
        answers.push(FromReceiver::Parts(parts));
        answers.push(FromReceiver::Ready);
        answers.extend(self.wanted.iter().filter_map(|&ino| self.want_message(ino)));
        Ok(())
    }

    /// What an earlier session brought and this one has not stays, and is named.
    fn name_what_is_gone(&mut self) -> Outcome {
        let mut gone = Vec::new();
        let mut cut = Vec::new();
        {
            let mut index = self.store.index.write();
            let mut directories = vec![(Ino::ROOT, Vec::new())];
            while let Some((directory, path)) = directories.pop() {
                for (_, name, ino) in index.list(directory, 0) {
                    let mut path: Vec<u8> = path.clone();
                    if !path.is_empty() {
                        path.push(b'/');
                    }
                    path.extend_from_slice(name);
                    if index.parent(ino).is_some() {
                        directories.push((ino, path.clone()));
                    }
                    if self.known.get(ino.0 as usize).is_some_and(|known| known.digest != 0 && known.id == UNNAMED) {
                        gone.push(path);
                    }
                }
            }
            for (ino, known) in self.known.iter_mut().enumerate() {
                if known.id == UNNAMED && known.state != State::Over {
                    known.state = State::Over;
                    self.wanted.remove(&(ino as u32));
                    let received = self.parts.remove(&(ino as u32)).map_or(0, |part| part.received);
                    let ino = Ino(ino as u64);
                    index.set_arrival(ino, Arrival::Truncated { received });
                    cut.push(ino);
                }
            }
        }
        for ino in cut {
            self.store.notify(ino);
        }
        if self.finished && !gone.is_empty() {
            return violation(CHANGED_SINCE);
        }
        for path in gone {
            self.refuse(&path, "it is not at the sender any more; what came of it stays");
        }
        Ok(())
    }
}

fn digest(encoded: &[u8]) -> u64 {
    let hash = blake3::hash(encoded);
    let first: [u8; 8] = hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes");
    // Zero stands for none.
    u64::from_le_bytes(first) | 1
}
