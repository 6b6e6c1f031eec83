//! Contents into the sink: what a file's pieces, hashes and end come to.

use super::sink::{LEFT_OUT, NONE, Outcome, Part, Sink, Small, State, stopped, violation};
use crate::index::{Arrival, Ino, Place};
use crate::record::{self, Record};
use crate::spool::{self, Spool};
use crate::wire::{Fate, Hash, MAX_DATA, SMALL};

impl Sink {
    pub(super) fn begin_file(&mut self, id: u64, path: Vec<u8>) -> Outcome {
        self.commit()?;
        let ino = self.ino(id)?;
        if ino == NONE {
            return Ok(());
        }
        let known = self.known[ino as usize];
        let stored = self.stored(ino);
        match known.state {
            _ if stored == 0 => return violation("contents of an entry that has none"),
            State::Over => return violation("contents of a file that is over"),
            State::Part => {}
            State::Awaited => {
                let part = Part {
                    path,
                    stored,
                    checked: 0,
                    received: 0,
                    hasher: blake3::Hasher::new(),
                    differs: false,
                    blob: None,
                };
                self.path_bytes += part.path.len();
                self.parts.insert(ino, part);
                self.known[ino as usize].state = State::Part;
            }
        }
        Ok(())
    }

    pub(super) fn data(&mut self, id: u64, offset: u64, bytes: &[u8]) -> Outcome {
        if bytes.is_empty() || bytes.len() > MAX_DATA {
            return violation(format!("{} bytes of contents at once", bytes.len()));
        }
        if !self.ops.is_empty() {
            self.commit()?;
        }
        let ino = self.ino(id)?;
        if ino == NONE {
            return Ok(());
        }
        let stored = self.stored(ino);
        let len = bytes.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > stored) {
            return violation("more contents than were announced");
        }
        match self.known[ino as usize].state {
            State::Over => violation("contents of a file that is over"),
            State::Awaited => {
                if stored >= SMALL || offset > 0 || self.is_sparse(ino) {
                    return violation("contents of a file that has not begun");
                }
                let base = self.store.spool().map_or(0, Spool::position);
                let record = Record::Data { id: self.known[ino as usize].journal.into(), offset: 0 };
                let frame = self.frames.len();
                let at = base + record::encode(&record, bytes, &mut self.frames) as u64;
                let hash = *blake3::hash(bytes).as_bytes();
                self.small = Some(Small { id, hash, len, place: Place::Journal(at), frame });
                self.monitor.add_bytes(len);
                Ok(())
            }
            State::Part => self.piece(id, ino, offset, bytes),
        }
    }

    /// A piece of a file that has a blob.
    fn piece(&mut self, id: u64, ino: u32, offset: u64, bytes: &[u8]) -> Outcome {
        let Some(spool) = self.store.spool() else { return Ok(()) };
        let Some(part) = self.parts.get_mut(&ino) else { return Ok(()) };
        if offset != part.received {
            return violation(format!("contents from {offset} on, where {} bytes are there", part.received));
        }
        let stopped = stopped(&self.stop, &self.waits);
        if part.blob.is_none() {
            let (size, map) = {
                let index = self.store.index.read();
                (index.attributes(Ino(ino.into())).map_or(0, |a| a.size), index.sparse(Ino(ino.into())).cloned())
            };
            let blob = match spool.create_blob(map.is_some().then_some(size), &stopped) {
                Ok(blob) => blob,
                Err(spool::Error::Write { cause, .. }) if cause.kind() == std::io::ErrorKind::FileTooLarge => {
                    return self.leave_out(id, ino, format!("no file of {size} bytes: {cause}"));
                }
                Err(e) => return Err(e.into()),
            };
            let number = blob.number();
            part.blob = Some((blob, map));
            self.store.index.write().set_place(Ino(ino.into()), Place::Blob(number));
            let record = Record::Blob { id: self.known[ino as usize].journal.into(), number };
            record::encode(&record, &[], &mut self.frames);
        }
        if let Some((blob, map)) = &mut part.blob {
            match map {
                None => spool.write_blob(blob, bytes, offset, &stopped)?,
                Some(map) => {
                    let mut rest = bytes;
                    for segment in map.place(offset, bytes.len() as u64) {
                        let (piece, after) = rest.split_at(segment.len as usize);
                        spool.write_blob(blob, piece, segment.offset, &stopped)?;
                        rest = after;
                    }
                }
            }
        }
        part.hasher.update(bytes);
        part.received += bytes.len() as u64;
        self.late.push((Ino(ino.into()), None, Arrival::Arriving { received: part.received }));
        self.monitor.add_bytes(bytes.len() as u64);
        Ok(())
    }

    /// The spool cannot have a file: what comes of it is dropped.
    fn leave_out(&mut self, id: u64, ino: u32, reason: String) -> Outcome {
        let path = self.parts.get(&ino).map_or_else(Vec::new, |part| part.path.clone());
        self.over_bytes += self.stored(ino);
        self.slots[id as usize] = LEFT_OUT;
        self.awaited -= 1;
        let received = self.give_up(ino);
        self.late.push((Ino(ino.into()), None, Arrival::Truncated { received }));
        self.refuse(&path, format!("its contents are left out: {reason}"));
        Ok(())
    }

    pub(super) fn check(&mut self, id: u64, upto: u64, hash: Hash) -> Outcome {
        let ino = self.ino(id)?;
        if ino == NONE {
            return Ok(());
        }
        let Some(part) = self.parts.get_mut(&ino) else { return violation("a hash of contents that are not there") };
        if part.received != upto {
            return violation("a hash of other contents than are there");
        }
        part.differs |= part.hasher.finalize() != hash;
        part.hasher.reset();
        part.checked = upto;
        Ok(())
    }

    pub(super) fn end(&mut self, id: u64, hash: Hash, fate: Fate) -> Outcome {
        if !self.ops.is_empty() {
            self.commit()?;
        }
        let ino = self.ino(id)?;
        let small = self.small.take();
        if ino == NONE {
            return Ok(());
        }
        let stored = self.stored(ino);
        let known = &mut self.known[ino as usize];
        if known.state == State::Over || stored == 0 {
            return violation("the end of a file that is over");
        }
        known.state = State::Over;
        let journal = u64::from(known.journal);
        self.awaited -= 1;
        self.wanted.remove(&ino);
        let part = self.take_part(ino);
        let (mut received, right, mut place) = match (&small, &part) {
            (Some(small), _) => (small.len, small.hash == hash, Some(small.place.clone())),
            (None, Some(part)) => (part.received, !part.differs && part.hasher.finalize() == hash, None),
            (None, None) => (0, true, None),
        };
        let mut complete = received == stored;
        if !complete && !matches!(fate, Fate::Short { .. }) {
            return violation("the end of a file before all of it came");
        }
        if !right {
            complete = false;
            // What cannot be trusted is not shown, and not restored.
            received = part.as_ref().filter(|part| !part.differs).map_or(0, |part| part.checked);
            place = None;
            if let Some(small) = &small {
                self.frames.truncate(small.frame);
            }
        }
        match fate {
            Fate::Short { path, reason } => {
                complete = false;
                self.refuse(&path, reason);
            }
            Fate::Whole | Fate::Changed { .. } if !right => {
                let path = part.map_or_else(|| self.path_of(ino), |part| part.path);
                self.refuse(&path, "its contents have another hash than at the sender");
            }
            Fate::Whole => {}
            Fate::Changed { path } => {
                self.store.index.write().set_changed(Ino(ino.into()));
                self.refuse(&path, "it was written to while it was sent; what came may be of no moment");
            }
        }
        let arrival = if complete { Arrival::Complete } else { Arrival::Truncated { received } };
        // Of a small file that is whole the journal says enough with its contents.
        if place.is_none() || !complete {
            record::encode(&Record::End { id: journal, received, complete }, &[], &mut self.frames);
        }
        self.over_bytes += stored;
        self.late.push((Ino(ino.into()), place, arrival));
        Ok(())
    }

    /// What a small file is called: its messages do not say. Looks through the whole tree.
    fn path_of(&self, ino: u32) -> Vec<u8> {
        let index = self.store.index.read();
        let mut path = Vec::new();
        index.walk(&mut |at, other| {
            if path.is_empty() && other == Ino(ino.into()) {
                path = at.to_vec();
            }
        });
        path
    }
}
