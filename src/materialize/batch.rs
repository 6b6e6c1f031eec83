//! Entries that are made together: first everything that stands for itself, by several threads and in any order, then
//! the hard links.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use parking_lot::Mutex;

use super::create::{Creator, Task};
use super::links::Link;
use super::report;
use crate::entry::EntryPath;
use crate::index::Ino;

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

/// Why another name could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmade {
    /// What has the first name is not what was packed.
    OtherFile,
    /// The file cannot have another name there.
    NoMoreLinks,
}

/// What went wrong with one entry, and what can be done.
pub(super) fn explain(cause: &io::Error) -> String {
    match cause.raw_os_error() {
        Some(libc::ENOTDIR | libc::ELOOP) => {
            "something in the target stands where a directory belongs, a link perhaps: nothing is written through it"
                .into()
        }
        Some(libc::EPERM) if !rustix::process::geteuid().is_root() => {
            format!("{cause} (only root may make this)")
        }
        Some(libc::EPERM) => {
            format!("{cause} (what stands there, or its directory, may be immutable: see lsattr, chattr)")
        }
        Some(libc::EFBIG) => {
            format!("{cause} (over the limit that 'ulimit -f' sets, or larger than the file system takes)")
        }
        Some(libc::ENOTEMPTY | libc::EISDIR) => "a directory that is not empty stands in its place".into(),
        _ => cause.to_string(),
    }
}

/// Makes batches, one after the other. Reports the names that could not be made from another one.
pub(super) fn execute(
    batches: &Receiver<Batch>,
    done: &SyncSender<Vec<(Link, Unmade)>>,
    creator: &Creator,
    fatal: &Mutex<Option<(String, io::Error)>>,
) {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 8);
    let stop = AtomicBool::new(false);
    let judge = |path: &[u8], cause: io::Error| {
        if creator.is_fatal(&cause) {
            stop.store(true, Ordering::Relaxed);
            fatal.lock().get_or_insert((report::told(path), cause));
        } else {
            creator.report.problem(path, explain(&cause));
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
