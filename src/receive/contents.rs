//! Contents into the sink: what small files, and a large one's pieces, hashes and end come to.

use std::ops::Range;

use super::sink::{LEFT_OUT, NONE, Outcome, Part, Sink, State, stopped, violation};
use crate::entry::clipped;
use crate::index::{Arrival, Ino, Place};
use crate::record::{self, Record};
use crate::spool::{self, Form, Spool};
use crate::wire::{Fate, FromSender, Hash, MAX_DATA, SMALL};

const OTHER_HASH: &str = "its contents have another hash than at the sender";

/// A small file in a body.
struct Small {
    id: u64,
    fate: Fate,
    bytes: Range<usize>,
}

impl Sink {
    /// A body of small files. None of them counts before the hash of all of them has been compared.
    pub(super) fn files(&mut self, body: &[u8]) -> Outcome {
        let mut files = Vec::new();
        let mut at = 0;
        let hash = loop {
            let decoded = record::decode::<FromSender>(&body[at..]);
            let (message, bytes, length) =
                decoded.or_else(|e| violation(format!("small files that cannot be read, or have no sum: {e}")))?;
            match message {
                FromSender::File { id, fate } => {
                    let end = at + length;
                    files.push(Small { id, fate, bytes: end - bytes.len()..end });
                }
                FromSender::Sum { hash } if bytes.is_empty() && at + length == body.len() => break hash,
                _ => return violation("something else among small files"),
            }
            at += length;
        };
        let right = blake3::hash(&body[..at]) == hash;
        let base = self.store.spool().map_or(0, Spool::position);
        let taken =
            files.into_iter().try_for_each(|file| self.file(file.id, file.fate, &body[file.bytes], right, base));
        self.refuse_nameless();
        taken
    }

    fn file(&mut self, id: u64, fate: Fate, bytes: &[u8], right: bool, base: u64) -> Outcome {
        let ino = self.ino(id)?;
        if ino == NONE {
            return Ok(());
        }
        let (stored, is_sparse) = {
            let index = self.store.index.read();
            let ino = Ino(ino.into());
            (index.attributes(ino).map_or(0, |a| a.stored), index.sparse(ino).is_some())
        };
        let len = bytes.len() as u64;
        if stored == 0 || stored >= SMALL || is_sparse {
            return violation("a small file that is none");
        }
        if len > stored {
            return violation("more contents than were announced");
        }
        let known = &mut self.known[ino as usize];
        match known.state {
            State::Awaited => known.state = State::Over,
            State::Over => return violation("contents of a file that is over"),
            State::Part => return violation("all of a file that has begun"),
        }
        let journal = known.journal.into();
        let complete = self.fate(ino, fate, len == stored, right, None)?;
        let received = if right { len } else { 0 };
        let mut place = None;
        // What cannot be trusted is not shown, and not restored.
        if received > 0 {
            let at = record::encode(&Record::Data { id: journal, offset: 0 }, bytes, &mut self.frames);
            place = Some(Place::Journal(base + at as u64));
        }
        // Of what is whole the journal says enough with its contents.
        if !complete {
            record::encode(&Record::End { id: journal, received, complete }, &[], &mut self.frames);
        }
        self.monitor.add_bytes(received);
        self.is_over(ino, stored, place, if complete { Arrival::Complete } else { Arrival::Truncated { received } });
        Ok(())
    }

    /// What became of a file: whether it is whole, where its hash is right.
    fn fate(&mut self, ino: u32, fate: Fate, all: bool, right: bool, path: Option<&[u8]>) -> Outcome<bool> {
        match fate {
            Fate::Short { path, reason } => {
                self.refuse(&path, reason);
                return Ok(false);
            }
            Fate::Whole | Fate::Changed { .. } if !all => return violation("the end of a file before all of it came"),
            Fate::Whole | Fate::Changed { .. } if !right => {
                match path {
                    Some(path) => self.refuse(path, OTHER_HASH),
                    None => self.nameless.extend([ino]),
                }
                return Ok(false);
            }
            Fate::Whole => {}
            Fate::Changed { path } => {
                self.store.index.write().set_changed(Ino(ino.into()));
                self.refuse(&path, "it was written to while it was sent; what came may be of no moment");
            }
        }
        Ok(true)
    }

    fn is_over(&mut self, ino: u32, stored: u64, place: Option<Place>, arrival: Arrival) {
        self.awaited -= 1;
        self.wanted.remove(&ino);
        self.over_bytes = self.over_bytes.saturating_add(stored);
        self.late.push((Ino(ino.into()), place, arrival));
    }

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
                    path: clipped(&path).to_vec(),
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
            State::Awaited => violation("contents of a file that has not begun"),
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
            let packed = Form::of_blob(map.as_deref()) == Form::Packed;
            let map = map.filter(|_| !packed);
            let blob = match spool.create_blob(map.is_some().then_some(size), &stopped) {
                Ok(blob) => blob,
                Err(spool::Error::Write { cause, .. }) if cause.kind() == std::io::ErrorKind::FileTooLarge => {
                    return self.leave_out(id, ino, format!("no file of {size} bytes: {cause}"));
                }
                Err(e) => return Err(e.into()),
            };
            let number = blob.number();
            part.blob = Some((blob, map));
            self.store.index.write().set_place(Ino(ino.into()), Place::in_blob(number, packed));
            let record = Record::Blob { id: self.known[ino as usize].journal.into(), number, packed };
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
        let journal = self.known[ino as usize].journal;
        part.record_sums(journal, false, &mut self.frames);
        self.late.push((Ino(ino.into()), None, Arrival::Arriving { received: part.received }));
        self.monitor.add_bytes(bytes.len() as u64);
        Ok(())
    }

    /// The spool cannot have a file: what comes of it is dropped.
    fn leave_out(&mut self, id: u64, ino: u32, reason: String) -> Outcome {
        let path = self.parts.get(&ino).map_or_else(Vec::new, |part| part.path.clone());
        self.over_bytes = self.over_bytes.saturating_add(self.stored(ino));
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
        let mut part = self.take_part(ino);
        if let Some(part) = &mut part {
            part.record_sums(journal as u32, true, &mut self.frames);
        }
        let (mut received, right, checked) = match &part {
            Some(part) if part.differs => (part.received, false, 0),
            Some(part) => (part.received, part.hasher.finalize() == hash, part.checked),
            None => (0, true, 0),
        };
        let all = received == stored;
        let complete = self.fate(ino, fate, all, right, part.as_ref().map(|part| &part.path[..]))?;
        if !right {
            // What cannot be trusted is not shown.
            received = checked;
        }
        let arrival = if complete { Arrival::Complete } else { Arrival::Truncated { received } };
        record::encode(&Record::End { id: journal, received, complete }, &[], &mut self.frames);
        self.is_over(ino, stored, None, arrival);
        Ok(())
    }

    /// Names the small files whose hash was wrong: their messages do not. Looks through the whole tree, once for all.
    fn refuse_nameless(&mut self) {
        let mut nameless = std::mem::take(&mut self.nameless);
        if nameless.is_empty() {
            return;
        }
        let store = self.store.clone();
        store.index.read().walk(&mut |path, ino| {
            if nameless.remove(&(ino.0 as u32)) {
                self.refuse(path, OTHER_HASH);
            }
        });
    }
}
