//! Files that are sent in pieces, with a hash now and then. Any number of them may have begun, of which a few are open.

use std::collections::{HashMap, VecDeque};

use super::small::shrunk;
use crate::record;
use crate::tree::{Contents, OpenError, Opener, Origin};
use crate::wire::{Batch, Fate, FromSender, MAX_DATA, Position, SEGMENT};

/// So many are open at a time: whoever reads them in turn waits for the network, not for us.
const OPEN: usize = 16;

/// A file that has begun.
#[derive(Default)]
struct Large {
    contents: Option<Contents>,
    checked: u64,
    sent: u64,
    /// So far the hasher is. Behind `sent` where an earlier connection has sent it.
    hashed: u64,
    hasher: blake3::Hasher,
}

/// Those that have begun, by their place in the plan.
#[derive(Default)]
pub(super) struct Begun {
    files: HashMap<usize, Large>,
    open: VecDeque<usize>,
    scratch: Vec<u8>,
}

/// How a file ended.
pub(super) struct End {
    /// So much of it is sent.
    pub(super) sent: u64,
    /// Of what came after the last check.
    pub(super) hash: [u8; 32],
    pub(super) fate: Fate,
}

impl Begun {
    pub(super) fn clear(&mut self) {
        self.files.clear();
        self.open.clear();
    }

    /// Bytes that are sent of all of them.
    pub(super) fn sent(&self) -> u64 {
        self.files.values().map(|file| file.sent).sum()
    }

    /// The receiver has a part of a file.
    pub(super) fn go_on(&mut self, n: usize, position: Position, stored: u64) -> Result<(), &'static str> {
        let Position { checked, received, .. } = position;
        if checked > received || received > stored {
            return Err("it has more of a file than there is");
        }
        if received - checked > SEGMENT {
            return Err("it has more of a file than it could check");
        }
        self.files.entry(n).or_insert_with(|| Large { checked, sent: received, hashed: checked, ..Large::default() });
        Ok(())
    }

    /// The next piece of a file into the batch. Where it was the last one, how the file ended. An error is ours, and not of
    /// the file.
    pub(super) fn piece(
        &mut self,
        n: usize,
        (id, origin): (u64, &Origin),
        opener: &Opener,
        batch: &mut Batch,
    ) -> Result<(u64, Option<End>), OpenError> {
        let stored = origin.stored_len();
        let path = || opener.path(origin);
        let short = |reason: String| Fate::Short { path: path(), reason };
        if self.files.entry(n).or_default().contents.is_none() {
            match opener.open(origin) {
                Ok(contents) => self.opened(n, contents),
                Err(e) if e.is_ours() => return Err(e),
                Err(e) => return Ok(self.end(n, short(e.to_string()))),
            }
        }
        let Some(Large { contents: Some(contents), checked, sent, hashed, hasher }) = self.files.get_mut(&n) else {
            return Ok((0, None));
        };
        self.scratch.resize(MAX_DATA, 0);
        while *hashed < *sent {
            let len = self.scratch.len().min(usize::try_from(*sent - *hashed).unwrap_or(usize::MAX));
            match contents.read(*hashed, &mut self.scratch[..len]) {
                Ok(read) if read > 0 => {
                    hasher.update(&self.scratch[..read]);
                    *hashed += read as u64;
                }
                Ok(_) => {
                    let read = *hashed;
                    return Ok(self.end(n, short(shrunk(read, stored))));
                }
                Err(e) => return Ok(self.end(n, short(format!("it cannot be read: {e}")))),
            }
        }
        // Said with each piece: the receiver shows it, and who comes back after a lost connection has to say it again.
        batch.push(&FromSender::Begin { id, path: path() });
        let upto_check = SEGMENT - (*sent - *checked).min(SEGMENT - 1);
        let len = (stored - *sent).min(upto_check).min(MAX_DATA as u64) as usize;
        let records = batch.records();
        let frame = record::begin(&FromSender::Data { id, offset: *sent }, records);
        let at = records.len();
        records.resize(at + len, 0);
        let read = contents.read(*sent, &mut records[at..]);
        let n_read = *read.as_ref().unwrap_or(&0);
        if n_read == 0 {
            records.truncate(frame);
        } else {
            records.truncate(at + n_read);
            hasher.update(&records[at..]);
            *sent += n_read as u64;
            *hashed = *sent;
            record::end(frame, records);
        }
        let fate = match read {
            Err(e) => short(format!("it cannot be read: {e}")),
            Ok(read) if read < len => short(shrunk(*sent, stored)),
            Ok(_) if *sent == stored => match contents.is_unchanged() {
                Ok(true) => Fate::Whole,
                _ => Fate::Changed { path: path() },
            },
            Ok(_) => {
                if *sent - *checked >= SEGMENT {
                    let hash = *hasher.finalize().as_bytes();
                    hasher.reset();
                    *checked = *sent;
                    batch.push(&FromSender::Check { id, upto: *sent, hash });
                }
                return Ok((*sent, None));
            }
        };
        Ok(self.end(n, fate))
    }

    fn opened(&mut self, n: usize, contents: Contents) {
        if self.open.len() >= OPEN
            && let Some(oldest) = self.open.pop_front()
            && let Some(file) = self.files.get_mut(&oldest)
        {
            file.contents = None;
        }
        self.open.push_back(n);
        self.files.entry(n).or_default().contents = Some(contents);
    }

    fn end(&mut self, n: usize, fate: Fate) -> (u64, Option<End>) {
        self.open.retain(|&open| open != n);
        let Large { sent, hasher, .. } = self.files.remove(&n).unwrap_or_default();
        (sent, Some(End { sent, hash: *hasher.finalize().as_bytes(), fate }))
    }
}
