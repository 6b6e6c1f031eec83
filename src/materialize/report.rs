//! What has been done, and what could not be: counted by several threads, told once.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::problems::{Problem, Problems};
use crate::entry::escape;

/// Counters that grow while it works.
#[derive(Debug, Default)]
pub struct Report {
    pub(super) entries: AtomicU64,
    pub(super) unchanged: AtomicU64,
    pub(super) kept: AtomicU64,
    pub(super) bytes: AtomicU64,
    left: AtomicU64,
    /// What has been made or left as it is, of what has been read: see [`weight`].
    pub(super) done: AtomicU64,
    pub(super) read: AtomicU64,
    /// Bytes of the spool or the archive that the entries came from which have been read.
    pub(super) position: AtomicU64,
    stage: AtomicU8,
    /// Whether the stream is over as it should be, where that has been read.
    finished: Mutex<Option<bool>>,
    broke_off: AtomicBool,
    state: Mutex<State>,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Entries are made.
    Making,
    /// They are brought to the disk.
    Syncing,
    /// They are read back and compared.
    Verifying,
}

/// Making a file takes as long as writing about so many bytes.
const ENTRY: u64 = 8 << 10;

/// How much work an entry with so many stored bytes is.
pub(super) fn weight(stored: u64) -> u64 {
    stored.saturating_add(ENTRY)
}

#[derive(Debug, Default)]
struct State {
    problems: Problems,
    /// By the first part of the attribute's name and the reason: how often, and where first.
    attributes: BTreeMap<(String, String), (u64, String)>,
    /// Attributes of macOS that were left out, and where first.
    of_macos: (u64, String),
    owners: u64,
    unmatched: Vec<String>,
    current: String,
}

/// How far it is, or how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Entries that were made or mended.
    pub entries: u64,
    /// Entries that were right already.
    pub unchanged: u64,
    /// Entries that were there, differ, and were to be kept.
    pub kept: u64,
    /// Bytes of contents written.
    pub bytes: u64,
    /// Entries that could not be restored, or not as they were packed.
    pub left_out: u64,
    /// Which, and why.
    pub problems: Vec<Problem>,
    /// Attributes that could not be set: a sentence for each kind.
    pub attributes: Vec<String>,
    /// What is worth saying, and no problem.
    pub notes: Vec<String>,
    /// Entries that belong to us instead of their owners, since we are not root.
    pub owners: u64,
    /// Patterns and options that matched no entry: a sentence for each.
    pub unmatched: Vec<String>,
}

/// Whether only macOS knows what to do with an attribute. Archives made there are full of them.
pub(super) fn is_of_macos(name: &[u8]) -> bool {
    name.starts_with(b"com.apple.")
}

/// A path as it is told; that of the root is empty.
pub(super) fn told(path: &[u8]) -> String {
    if path.is_empty() { ".".into() } else { escape(path) }
}

impl Report {
    pub(super) fn problem(&self, path: &[u8], reason: impl ToString) {
        self.left.fetch_add(1, Ordering::Relaxed);
        self.state.lock().problems.push(told(path), reason.to_string());
    }

    /// What was wrong with this path is so no more.
    pub(super) fn forget(&self, path: &[u8]) {
        let mut state = self.state.lock();
        if !state.problems.is_empty() {
            let dropped = state.problems.forget(told(path));
            self.left.fetch_sub(dropped, Ordering::Relaxed);
        }
    }

    pub(super) fn attribute_left(&self, name: &[u8], path: &[u8], reason: impl ToString) {
        if is_of_macos(name) {
            let (count, first) = &mut self.state.lock().of_macos;
            if *count == 0 {
                *first = told(path);
            }
            *count += 1;
            return;
        }
        let namespace = name.split_inclusive(|&b| b == b'.').next().unwrap_or(name);
        let kind = if name.starts_with(b"system.posix_acl") { "ACLs".into() } else { escape(namespace) + "*" };
        let mut state = self.state.lock();
        let (count, _) = state.attributes.entry((kind, reason.to_string())).or_insert_with(|| (0, told(path)));
        *count += 1;
    }

    /// The target keeps another time.
    pub(super) fn time_left(&self, path: &[u8]) {
        let key = ("times".into(), "the target keeps them less exactly, or not so far from today".into());
        let mut state = self.state.lock();
        let (count, _) = state.attributes.entry(key).or_insert_with(|| (0, told(path)));
        *count += 1;
    }

    pub(super) fn owner_left(&self, _: &[u8]) {
        self.state.lock().owners += 1;
    }

    /// What was asked for matched no entry.
    pub(super) fn unmatched(&self, sentence: String) {
        self.state.lock().unmatched.push(sentence);
    }

    /// Something is done with an entry; of its bytes so many had not been counted.
    pub(super) fn done(&self, stored: u64) {
        self.done.fetch_add(weight(stored), Ordering::Relaxed);
    }

    /// So many bytes of contents have been written.
    pub(super) fn wrote(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many of them are gone again.
    pub(super) fn unwrote(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    pub(super) fn set_finished(&self, finished: Option<bool>) {
        *self.finished.lock() = finished;
    }

    /// Whether the stream is over as it should be, where what was read of it tells.
    pub fn finished(&self) -> Option<bool> {
        *self.finished.lock()
    }

    pub(super) fn set_broke_off(&self) {
        self.broke_off.store(true, Ordering::Relaxed);
    }

    /// Whether the stream ended without a word.
    pub(super) fn broke_off(&self) -> bool {
        self.broke_off.load(Ordering::Relaxed)
    }

    /// What is being done.
    pub fn stage(&self) -> Stage {
        [Stage::Making, Stage::Syncing, Stage::Verifying]
            .into_iter()
            .find(|stage| *stage as u8 == self.stage.load(Ordering::Relaxed))
            .unwrap_or(Stage::Making)
    }

    /// Which part is restored of a spool or an archive of `size` bytes, as it is by now: from 0 to 1.
    pub fn part(&self, size: u64) -> f64 {
        let part = |some: &AtomicU64, all: u64| some.load(Ordering::Relaxed).min(all) as f64 / all.max(1) as f64;
        part(&self.position, size) * part(&self.done, self.read.load(Ordering::Relaxed))
    }

    pub(super) fn current(&self, path: &[u8]) {
        self.state.lock().current = told(path);
    }

    /// The entry that was begun last.
    pub fn current_path(&self) -> String {
        self.state.lock().current.clone()
    }

    /// How far it is, in numbers only.
    pub fn counts(&self) -> Summary {
        Summary {
            entries: self.entries.load(Ordering::Relaxed),
            unchanged: self.unchanged.load(Ordering::Relaxed),
            kept: self.kept.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            left_out: self.left.load(Ordering::Relaxed),
            ..Summary::default()
        }
    }

    /// All of it.
    pub fn summary(&self) -> Summary {
        let state = self.state.lock();
        Summary {
            problems: state.problems.iter().cloned().collect(),
            attributes: state
                .attributes
                .iter()
                .map(|((kind, reason), (count, path))| {
                    let entries = if *count == 1 { "entry" } else { "entries" };
                    format!("{kind} could not be set on {count} {entries}, first on '{path}': {reason}")
                })
                .collect(),
            notes: match &state.of_macos {
                (0, _) => Vec::new(),
                (count, path) => {
                    let (s, were, them) = if *count == 1 { ("", "was", "it") } else { ("s", "were", "them") };
                    vec![format!(
                        "{count} attribute{s} of macOS (com.apple.*) {were} left out, first on '{path}': \
                         the target does not support {them}"
                    )]
                }
            },
            owners: state.owners,
            unmatched: state.unmatched.clone(),
            ..self.counts()
        }
    }
}
