//! Contents into the sink: what small files, and a large one's pieces, hashes and end come to.

use std::ops::Range;

use super::sink::{Became, Outcome, Part, Sink, State, stopped, violation};
use crate::entry::clipped;
use crate::index::{Arrival, Ino};
use crate::monitor::Chain;
use crate::record;
use crate::store::intake::{BlobError, TooLarge};
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
        let taken = files.into_iter().try_for_each(|file| self.file(file.id, file.fate, &body[file.bytes], right));
        self.refuse_nameless();
        taken
    }

    fn file(&mut self, id: u64, fate: Fate, bytes: &[u8], right: bool) -> Outcome {
        let Some(ino) = self.ino(id)? else { return Ok(()) };
        let (stored, is_sparse) = {
            let index = self.store.index();
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
        let complete = self.fate(ino, fate, len == stored, right, None)?;
        let received = if right { len } else { 0 };
        let arrival = if complete { Arrival::Complete } else { Arrival::Truncated { received } };
        let file = self.file_ref(ino);
        // What cannot be trusted is not shown, and not restored.
        if received > 0 {
            self.draft.data(file, bytes, arrival);
        }
        // Of what is whole the journal says enough with its contents.
        if !complete {
            self.draft.end(file, received, false);
        }
        self.monitor.add_bytes(received);
        self.is_over(ino, stored);
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
                let file = self.file_ref(ino);
                self.draft.changed(file);
                self.refuse(&path, "it was written to while it was sent; what came may be of no moment");
            }
        }
        Ok(true)
    }

    fn is_over(&mut self, ino: u32, stored: u64) {
        self.awaited -= 1;
        self.wanted.remove(&ino);
        self.over_bytes = self.over_bytes.saturating_add(stored);
    }

    pub(super) fn begin_file(&mut self, id: u64, path: Vec<u8>) -> Outcome {
        self.commit()?;
        let Some(ino) = self.ino(id)? else { return Ok(()) };
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
        if !self.announced.is_empty() {
            self.commit()?;
        }
        let Some(ino) = self.ino(id)? else { return Ok(()) };
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
        let file = self.file_ref(ino);
        let Some(part) = self.parts.get_mut(&ino) else { return Ok(()) };
        if offset != part.received() {
            return violation(format!("contents from {offset} on, where {} bytes are there", part.received()));
        }
        let stopped = stopped(&self.stop, &self.waits);
        let blob = match &mut part.blob {
            Some(blob) => blob,
            none => {
                let (size, map) = {
                    let (index, ino) = (self.store.index(), Ino(ino.into()));
                    (index.attributes(ino).map_or(0, |a| a.size), index.sparse(ino).cloned())
                };
                match self.draft.begin_blob(spool, file, size, map, &stopped) {
                    Ok(blob) => none.insert(blob),
                    Err(BlobError::TooLarge(e)) => return self.leave_out(id, ino, &e),
                    Err(BlobError::Spool(e)) => return Err(e.into()),
                }
            }
        };
        match blob.write(spool, bytes, &stopped) {
            Ok(()) => {}
            Err(BlobError::TooLarge(e)) => return self.leave_out(id, ino, &e),
            Err(BlobError::Spool(e)) => return Err(e.into()),
        }
        part.hasher.update(bytes);
        self.draft.blob(blob);
        self.monitor.add_bytes(bytes.len() as u64);
        Ok(())
    }

    /// The spool cannot have a file: what more comes of it is dropped.
    fn leave_out(&mut self, id: u64, ino: u32, why: &TooLarge) -> Outcome {
        let path = self.parts.get(&ino).map_or_else(Vec::new, |part| part.path.clone());
        self.over_bytes = self.over_bytes.saturating_add(self.stored(ino));
        self.slots[id as usize] = Became::LeftOut.into();
        self.awaited -= 1;
        self.give_up(ino);
        self.refuse(&path, Chain(why));
        Ok(())
    }

    pub(super) fn check(&mut self, id: u64, upto: u64, hash: Hash) -> Outcome {
        let Some(ino) = self.ino(id)? else { return Ok(()) };
        let Some(part) = self.parts.get_mut(&ino) else { return violation("a hash of contents that are not there") };
        if part.received() != upto {
            return violation("a hash of other contents than are there");
        }
        part.differs |= part.hasher.finalize() != hash;
        part.hasher.reset();
        part.checked = upto;
        Ok(())
    }

    pub(super) fn end(&mut self, id: u64, hash: Hash, fate: Fate) -> Outcome {
        if !self.announced.is_empty() {
            self.commit()?;
        }
        let Some(ino) = self.ino(id)? else { return Ok(()) };
        let stored = self.stored(ino);
        let known = &mut self.known[ino as usize];
        if known.state == State::Over || stored == 0 {
            return violation("the end of a file that is over");
        }
        known.state = State::Over;
        let file = self.file_ref(ino);
        let part = self.take_part(ino);
        let received = part.as_ref().map_or(0, Part::received);
        let (right, checked) = match &part {
            Some(part) if part.differs => (false, 0),
            Some(part) => (part.hasher.finalize() == hash, part.checked),
            None => (true, 0),
        };
        let complete = self.fate(ino, fate, received == stored, right, part.as_ref().map(|part| &part.path[..]));
        let is_complete = matches!(complete, Ok(true));
        // What cannot be trusted is not shown.
        let shown = if right { received } else { checked };
        match part.and_then(|part| part.blob) {
            Some(blob) => self.draft.end_blob(blob, shown, is_complete),
            None => self.draft.end(file, 0, is_complete),
        }
        complete?;
        self.is_over(ino, stored);
        Ok(())
    }

    /// Names the small files whose hash was wrong: their messages do not. Looks through the whole tree, once for all.
    fn refuse_nameless(&mut self) {
        let mut nameless = std::mem::take(&mut self.nameless);
        if nameless.is_empty() {
            return;
        }
        let store = self.store.clone();
        store.index().walk(&mut |path, ino| {
            if nameless.remove(&(ino.0 as u32)) {
                self.refuse(path, OTHER_HASH);
            }
        });
    }
}
