//! Reads that wait for bytes that have not come.
//!
//! A read beyond what has arrived holds no thread: its reply is parked under its inode, and answered when the
//! bytes are there, or with EIO when none will come.
//!
//! The kernel reads ahead, so it asks for more than the reader did, and takes a short reply for the end of the
//! file. A request of several pages of which the first is there and the last is not is therefore failed once:
//! the kernel then asks again for the page that the reader wants, and nobody waits for bytes they did
//! not ask for. Should it ask again from the same place for several pages, that is what it needs, and it waits.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::{Reply, errno};
use crate::index::Ino;
use crate::store::{Contents, Read, Store};

/// The unit in which the kernel caches contents.
const PAGE: u64 = 4096;

struct Parked {
    ino: Ino,
    contents: Arc<Contents>,
    offset: u64,
    len: usize,
    reply: Reply,
}

/// What to do with a read.
#[derive(PartialEq, Eq)]
enum Verdict {
    Wait,
    /// It can be answered.
    Go,
    /// Only its first page can: the kernel shall ask for that.
    AskForLess,
}

#[derive(Default)]
struct Lot {
    parked: HashMap<Ino, Vec<Parked>>,
    /// Where a request was failed so that a smaller one follows.
    asked_for_less: HashSet<(Ino, u64)>,
    closed: bool,
}

pub(super) struct Parking {
    store: Arc<Store>,
    lot: Mutex<Lot>,
    answer: Mutex<Option<Sender<(Parked, bool)>>>,
}

impl Parking {
    pub(super) fn new(store: Arc<Store>) -> io::Result<Arc<Self>> {
        let (answer, answers) = channel::<(Parked, bool)>();
        let parking = Arc::new(Parking { store, lot: Mutex::default(), answer: Mutex::new(Some(answer)) });
        // Whoever receives must not wait for a disk or for the kernel on behalf of a reader.
        let weak = Arc::downgrade(&parking);
        std::thread::Builder::new().name("answer".into()).spawn(move || {
            for (parked, go) in answers {
                match weak.upgrade() {
                    Some(parking) if go => {
                        parking.read(parked.ino, parked.contents, parked.offset, parked.len, parked.reply);
                    }
                    _ => (parked.reply)(Err(Errno::IO)),
                }
            }
        })?;
        Ok(parking)
    }

    /// Answers now, or when the bytes have come.
    pub(super) fn read(&self, ino: Ino, contents: Arc<Contents>, offset: u64, len: usize, reply: Reply) {
        loop {
            match self.store.read(&contents, ino, offset, len) {
                Ok(Read::Bytes(bytes)) => {
                    if len as u64 <= PAGE && !self.store.is_over() {
                        self.lot.lock().asked_for_less.remove(&(ino, offset));
                    }
                    return reply(Ok(&bytes));
                }
                Ok(Read::Lost) => return reply(Err(Errno::IO)),
                Err(e) => return reply(Err(errno(e))),
                Ok(Read::NotYet { .. }) => {}
            }
            let mut lot = self.lot.lock();
            if lot.closed {
                drop(lot);
                return reply(Err(Errno::IO));
            }
            // Asked again under the lock: whoever brings more tells the lot after the index knows of it.
            match lot.verdict(&self.store, ino, offset, len) {
                Verdict::Wait => {
                    lot.parked.entry(ino).or_default().push(Parked { ino, contents, offset, len, reply });
                    return;
                }
                Verdict::AskForLess => {
                    drop(lot);
                    return reply(Err(Errno::IO));
                }
                // Between the two looks it has come.
                Verdict::Go => {}
            }
        }
    }

    /// More of a file is there, or no more will come.
    pub(super) fn arrived(&self, ino: Ino) {
        let mut lot = self.lot.lock();
        let Some(parked) = lot.parked.remove(&ino) else { return };
        let mut wait = Vec::new();
        let mut ready = Vec::new();
        for read in parked {
            match lot.verdict(&self.store, ino, read.offset, read.len) {
                Verdict::Wait => wait.push(read),
                Verdict::Go => ready.push((read, true)),
                Verdict::AskForLess => ready.push((read, false)),
            }
        }
        if !wait.is_empty() {
            lot.parked.insert(ino, wait);
        }
        drop(lot);
        self.send(ready);
    }

    /// No read waits any more, now and later.
    pub(super) fn close(&self) {
        let parked = {
            let mut lot = self.lot.lock();
            lot.closed = true;
            std::mem::take(&mut lot.parked)
        };
        self.send(parked.into_values().flatten().map(|read| (read, false)).collect());
    }

    fn send(&self, reads: Vec<(Parked, bool)>) {
        let answer = self.answer.lock();
        for read in reads {
            if let Some(Err(unsent)) = answer.as_ref().map(|answer| answer.send(read)) {
                (unsent.0.0.reply)(Err(Errno::IO));
            }
        }
    }
}

impl Lot {
    fn verdict(&mut self, store: &Store, ino: Ino, offset: u64, len: usize) -> Verdict {
        let Some((size, known, coming)) = store.known(ino) else { return Verdict::Go };
        let end = size.min(offset.saturating_add(len as u64));
        if known >= end || !coming {
            return Verdict::Go;
        }
        let first_page = end.min((offset / PAGE + 1) * PAGE);
        if end > first_page && known >= first_page && self.asked_for_less.insert((ino, offset)) {
            return Verdict::AskForLess;
        }
        self.asked_for_less.remove(&(ino, offset));
        Verdict::Wait
    }
}
