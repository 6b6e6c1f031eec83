//! Entries that are made together: first everything that stands for itself, by several threads and in any order, then
//! the hard links.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};

use parking_lot::Mutex;

use super::create::{Creator, Link, Task, is_fatal};
use crate::entry::escape;
use crate::index::Ino;

/// So many entries are made together.
const BATCH: usize = 4096;

/// So many bytes of small contents at most wait in memory for their batch.
const BATCH_BYTES: usize = 64 << 20;

/// A worker takes so many at a time.
const SHARE: usize = 32;

/// Entries that can be made together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) tasks: Vec<Task>,
    pub(super) links: Vec<Link>,
    pub(super) bytes: usize,
    /// What they hold open.
    pub(super) directories: HashSet<Ino>,
}

impl Batch {
    pub(super) fn is_full(&self, most_open: usize) -> bool {
        self.tasks.len() + self.links.len() >= BATCH || self.bytes >= BATCH_BYTES || self.directories.len() >= most_open
    }
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
        Some(libc::ENOTEMPTY | libc::EISDIR) => "a directory that is not empty stands in its place".into(),
        _ => cause.to_string(),
    }
}

/// Makes batches, one after the other.
pub(super) fn execute(
    batches: &Receiver<Batch>,
    done: &SyncSender<()>,
    creator: &Creator,
    fatal: &Mutex<Option<(String, io::Error)>>,
) {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 8);
    let stop = AtomicBool::new(false);
    let judge = |path: &[u8], made: io::Result<()>| {
        let Err(cause) = made else { return };
        if is_fatal(&cause) {
            stop.store(true, Ordering::Relaxed);
            fatal.lock().get_or_insert((escape(path), cause));
        } else {
            creator.report.problem(path, explain(&cause));
        }
    };
    for batch in batches {
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let from = next.fetch_add(SHARE, Ordering::Relaxed);
                let Some(share) = batch.tasks.get(from..).filter(|share| !share.is_empty()) else { return };
                for task in share.iter().take(SHARE) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    judge(task.item.entry.path.as_bytes(), creator.create(task));
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(batch.tasks.len().div_ceil(SHARE)) {
                scope.spawn(work);
            }
            work();
        });
        for link in &batch.links {
            if !stop.load(Ordering::Relaxed) {
                judge(link.path.as_bytes(), creator.link(link));
            }
        }
        let _ = done.send(());
    }
}
