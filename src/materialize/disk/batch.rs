//! Entries that are made together: first everything that stands for itself, by several threads and in any order, then
//! the hard links.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;

use super::create::Task;
use super::creator::Creator;
use super::links::{Link, Unmade};
use crate::entry::EntryPath;
use crate::index::Ino;
use crate::materialize::error::Failure;
use crate::materialize::report;

/// So many entries are made together.
const BATCH: usize = 4096;

/// So many bytes at most are kept in memory for small contents that wait for their batch.
const BATCH_BYTES: usize = 64 << 20;

/// A worker takes so many at a time.
const SHARE: usize = 32;

/// Entries that can be made together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) tasks: Vec<Task>,
    pub(super) links: Vec<Link>,
    pub(super) bytes: usize,
    /// Where the last ones counted are.
    pub(super) chunk: usize,
    /// What they hold open.
    pub(super) directories: HashSet<Ino>,
    /// The names that second names are made from, the same for all of an inode: none waits for another of them.
    pub(super) firsts: HashMap<Ino, EntryPath>,
}

impl Batch {
    pub(super) fn is_full(&self, most_open: usize) -> bool {
        self.tasks.len() + self.links.len() >= BATCH || self.bytes >= BATCH_BYTES || self.directories.len() >= most_open
    }
}

/// What makes batches, in threads of its own.
pub(in crate::materialize) struct Workers<'a> {
    send: SyncSender<Batch>,
    finished: Receiver<Vec<(Link, Unmade)>>,
    fatal: &'a Mutex<Option<(String, Failure)>>,
}

impl Workers<'_> {
    pub(super) fn hand_over(&self, batch: Batch) {
        // The other side lives as long as we do.
        let _ = self.send.send(batch);
    }

    /// Waits until the first batch that is under way is finished. Gives the names in it that could not be made from another
    /// one.
    pub(super) fn wait(&self) -> Vec<(Link, Unmade)> {
        self.finished.recv().unwrap_or_default()
    }

    /// What ended the work, and where.
    pub(super) fn failure(&self) -> Option<(String, Failure)> {
        self.fatal.lock().take()
    }
}

/// Does `work` with workers beside it.
pub(in crate::materialize) fn with_workers<T>(creator: &Creator, work: impl FnOnce(Workers<'_>) -> T) -> T {
    let fatal = Mutex::new(None);
    std::thread::scope(|scope| {
        let (send, batches) = sync_channel(1);
        let (done, finished) = sync_channel(2);
        let fatal = &fatal;
        scope.spawn(move || execute(&batches, &done, creator, fatal));
        work(Workers { send, finished, fatal })
    })
}

/// Makes batches, one after the other. Reports the names that could not be made from another one.
fn execute(
    batches: &Receiver<Batch>,
    done: &SyncSender<Vec<(Link, Unmade)>>,
    creator: &Creator,
    fatal: &Mutex<Option<(String, Failure)>>,
) {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 8);
    let stop = AtomicBool::new(false);
    let judge = |path: &[u8], cause: Failure| {
        if creator.is_fatal(&cause) {
            stop.store(true, Ordering::Relaxed);
            fatal.lock().get_or_insert((report::told(path), cause));
        } else {
            creator.report.problem(path, cause.explain());
        }
    };
    for batch in batches {
        share_out(threads, batch.tasks, &stop, |task| {
            let path = &task.item.entry.path;
            if let Err(cause) = creator.create(&task) {
                if !task.replaces_ours {
                    creator.pass_over(path);
                }
                judge(path.as_bytes(), cause);
            }
        });
        let without = Mutex::new(Vec::new());
        share_out(threads, batch.links, &stop, |link| {
            match creator.link(&link) {
                Ok(Err(why)) => return without.lock().push((link, why)),
                Ok(Ok(())) => {}
                Err(cause) => judge(link.path.as_bytes(), cause),
            }
            creator.report.done(0);
        });
        let _ = done.send(without.into_inner());
    }
}

/// Does the same with each of many things, by several threads. Each begins with a part of its own: neighbours are
/// mostly in one directory, where the kernel lets in one at a time.
fn share_out<T: Send>(threads: usize, things: Vec<T>, stop: &AtomicBool, each: impl Fn(T) + Sync) {
    let part = things.len().div_ceil(threads).max(SHARE);
    let mut things = things.into_iter();
    let mut parts = Vec::new();
    while things.len() > 0 {
        parts.push(Mutex::new(things.by_ref().take(part).collect::<Vec<_>>().into_iter()));
    }
    let work = |own: usize| {
        let mut share = Vec::with_capacity(SHARE);
        for n in 0..parts.len() {
            let part = &parts[(own + n) % parts.len()];
            loop {
                share.extend(part.lock().by_ref().take(SHARE));
                if share.is_empty() {
                    break;
                }
                for thing in share.drain(..) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    each(thing);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let work = &work;
        for own in 1..parts.len() {
            scope.spawn(move || work(own));
        }
        work(0);
    });
}
