//! Reads that wait for bytes that have not come.
//!
//! A read beyond what has arrived holds no thread: its reply is parked under its inode, and answered when the
//! bytes are there, or with EIO when none will come.
//!
//! The kernel reads ahead, so it asks for more than the reader did, and takes a short reply for the end of the
//! file. A request of several pages of which the first is there and the last is not is therefore failed once:
//! the kernel then asks again for the page that the reader wants, and nobody waits for bytes they did
//! not ask for. Should it ask again from the same place for several pages, that is what it needs, and it waits.
//!
//! A direct read (`O_DIRECT`) asks for what its reader asked for, and its reader sees the answer: it waits for all of
//! it. Here a short reply is only a short read, behind which the kernel goes on through its cache, so the pages before a
//! cut are given.
//!
//! A direct read also waits in the request itself. Where its reader is in a pid namespace that we cannot see into, a kill
//! would go unnoticed; such a read is given the whole pages that are there, and the kernel waits for the rest in its cache,
//! where a signal ends it.
//!
//! For a page that it asks for again the kernel waits in the request itself, and there no signal ends the reader.
//! So reads whose reader is being killed are looked for, and failed; whoever else waits for the same page asks anew.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::killed::is_being_killed;
use super::reply::{Reply, errno};
use crate::index::Ino;
use crate::store::{Read, Store};

/// The unit in which the kernel caches contents.
const PAGE: u64 = 4096;

/// While reads wait, it is looked this often for readers that are being killed: soon enough for whoever presses
/// Ctrl-C, and hardly work.
const LOOK: Duration = Duration::from_millis(100);

thread_local! {
    /// What is read on its way to the kernel. A reply of a megabyte would else be mapped, cleared and unmapped each
    /// time, which takes longer than to read it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Who reads, and how.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// The task that reads; 0 when it is not known.
    pub task: u32,
    /// Whether it reads past the kernel's cache.
    pub direct: bool,
}

/// A read, and where its answer goes.
pub(super) struct Parked {
    pub(super) ino: Ino,
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) reader: Reader,
    pub(super) reply: Reply,
}

/// What becomes of a read that need not wait any more.
enum Answer {
    /// It is read again.
    Read,
    /// Nothing will come, or less is to be asked for.
    Fail(Errno),
}

/// What to do with a read.
#[derive(PartialEq, Eq)]
enum Verdict {
    Wait,
    /// It can be answered.
    Go,
    /// Only its first page can: the kernel shall ask for that.
    AskForLess,
    /// The pages that are there are the answer; the kernel reads the rest through its cache.
    ThroughCache,
}

#[derive(Default)]
struct Lot {
    parked: HashMap<Ino, Vec<Parked>>,
    /// Where a request was failed so that a smaller one follows; of files that still arrive.
    asked_for_less: HashMap<Ino, HashSet<u64>>,
    closed: bool,
}

pub(super) struct Parking {
    store: Arc<Store>,
    lot: Mutex<Lot>,
    answer: Mutex<Sender<(Parked, Answer)>>,
    /// Says that reads wait.
    waiting: SyncSender<()>,
}

impl Parking {
    pub(super) fn new(store: Arc<Store>) -> io::Result<Arc<Self>> {
        let (answer, answers) = channel();
        let (waiting, wait) = sync_channel(1);
        let parking = Arc::new(Parking { store, lot: Mutex::default(), answer: Mutex::new(answer), waiting });
        // Whoever receives must not wait for a disk or for the kernel on behalf of a reader.
        let weak = Arc::downgrade(&parking);
        std::thread::Builder::new().name("answer".into()).spawn(move || answer_all(&weak, &answers))?;
        let weak = Arc::downgrade(&parking);
        std::thread::Builder::new().name("parking".into()).spawn(move || watch(&weak, &wait))?;
        Ok(parking)
    }

    /// Answers now, or when the bytes have come.
    pub(super) fn read(&self, read: Parked) {
        BUFFER.with_borrow_mut(|buf| self.read_into(read, buf));
    }

    fn read_into(&self, mut read: Parked, buf: &mut Vec<u8>) {
        loop {
            match self.store.read(read.ino, read.offset, read.len, buf) {
                Ok(Read::Bytes(len)) => {
                    if read.len as u64 <= PAGE && !read.reader.direct && !self.store.is_over() {
                        self.lot.lock().less_came(read.ino, read.offset);
                    }
                    return (read.reply)(Ok(&buf[..len]));
                }
                Ok(Read::Lost) => match self.whole_pages(&read) {
                    0 => return (read.reply)(Err(Errno::IO)),
                    len => read.len = len,
                },
                Err(e) => return (read.reply)(Err(errno(e))),
                Ok(Read::NotYet { .. }) => {}
            }
            let mut lot = self.lot.lock();
            if lot.closed {
                drop(lot);
                return (read.reply)(Err(Errno::IO));
            }
            // Asked again under the lock: whoever brings more tells the lot after the index knows of it.
            match lot.verdict(&self.store, &read) {
                Verdict::Wait => {
                    let ino = read.ino;
                    lot.parked.entry(ino).or_default().push(read);
                    drop(lot);
                    self.store.want(ino);
                    // Where the word is said already, it has not been heard yet, and stands for this read too.
                    let _ = self.waiting.try_send(());
                    return;
                }
                Verdict::AskForLess => {
                    drop(lot);
                    return (read.reply)(Err(Errno::IO));
                }
                Verdict::ThroughCache => {
                    drop(lot);
                    match self.whole_pages(&read) {
                        0 => return (read.reply)(Ok(&[])),
                        len => read.len = len,
                    }
                }
                // Between the two looks it has come.
                Verdict::Go => {}
            }
        }
    }

    /// How much of a direct read lies in whole pages that have arrived; 0 where that is all of it.
    fn whole_pages(&self, read: &Parked) -> usize {
        let Some((_, known, _)) = self.store.known(read.ino).filter(|_| read.reader.direct) else { return 0 };
        let pages = (known / PAGE * PAGE).saturating_sub(read.offset);
        usize::try_from(pages).map_or(0, |pages| if pages < read.len { pages } else { 0 })
    }

    /// More of a file is there, or no more will come.
    pub(super) fn arrived(&self, ino: Ino) {
        let mut lot = self.lot.lock();
        if lot.asked_for_less.contains_key(&ino) && self.store.known(ino).is_none_or(|(.., coming)| !coming) {
            lot.asked_for_less.remove(&ino);
        }
        let Some(parked) = lot.parked.remove(&ino) else { return };
        let mut wait = Vec::new();
        let mut ready = Vec::new();
        for read in parked {
            match lot.verdict(&self.store, &read) {
                Verdict::Wait => wait.push(read),
                Verdict::Go | Verdict::ThroughCache => ready.push((read, Answer::Read)),
                Verdict::AskForLess => ready.push((read, Answer::Fail(Errno::IO))),
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
        self.send(parked.into_values().flatten().map(|read| (read, Answer::Fail(Errno::IO))).collect());
    }

    /// Fails the reads of whoever is being killed. False when none waits.
    fn let_the_killed_go(&self) -> bool {
        let mut readers: Vec<u32> = self.lot.lock().parked.values().flatten().map(|read| read.reader.task).collect();
        if readers.is_empty() {
            return false;
        }
        // Without the lock: receiving must not wait for this.
        readers.sort_unstable();
        readers.dedup();
        readers.retain(|&reader| is_being_killed(reader));
        if !readers.is_empty() {
            let mut killed = Vec::new();
            self.lot.lock().parked.retain(|_, reads| {
                killed.extend(reads.extract_if(.., |read| readers.contains(&read.reader.task)));
                !reads.is_empty()
            });
            self.send(killed.into_iter().map(|read| (read, Answer::Fail(Errno::INTR))).collect());
        }
        true
    }

    fn send(&self, reads: Vec<(Parked, Answer)>) {
        let answer = self.answer.lock();
        for read in reads {
            if let Err(unsent) = answer.send(read) {
                (unsent.0.0.reply)(Err(Errno::IO));
            }
        }
    }
}

fn answer_all(parking: &Weak<Parking>, answers: &Receiver<(Parked, Answer)>) {
    for (parked, answer) in answers {
        match (parking.upgrade(), answer) {
            (Some(parking), Answer::Read) => parking.read(parked),
            (None, Answer::Read) => (parked.reply)(Err(Errno::IO)),
            (_, Answer::Fail(errno)) => (parked.reply)(Err(errno)),
        }
    }
}

fn watch(parking: &Weak<Parking>, waiting: &Receiver<()>) {
    while waiting.recv().is_ok() {
        while parking.upgrade().is_some_and(|parking| parking.let_the_killed_go()) {
            std::thread::sleep(LOOK);
        }
    }
}

impl Lot {
    fn verdict(&mut self, store: &Store, read: &Parked) -> Verdict {
        let (ino, offset) = (read.ino, read.offset);
        let Some((size, known, coming)) = store.known(ino) else { return Verdict::Go };
        let end = size.min(offset.saturating_add(read.len as u64));
        if known >= end || !coming {
            return Verdict::Go;
        }
        if read.reader.direct {
            return if read.reader.task == 0 { Verdict::ThroughCache } else { Verdict::Wait };
        }
        let first_page = end.min((offset / PAGE + 1) * PAGE);
        if end > first_page && known >= first_page && self.asked_for_less.entry(ino).or_default().insert(offset) {
            return Verdict::AskForLess;
        }
        self.less_came(ino, offset);
        Verdict::Wait
    }

    /// What was asked again has been asked.
    fn less_came(&mut self, ino: Ino, offset: u64) {
        if let Some(offsets) = self.asked_for_less.get_mut(&ino)
            && offsets.remove(&offset)
            && offsets.is_empty()
        {
            self.asked_for_less.remove(&ino);
        }
    }
}
