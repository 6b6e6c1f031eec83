//! What has been sent, and what could not be.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use crate::entry::escape;

/// So many problems are kept in full; further ones are only counted.
const MAX_PROBLEMS: usize = 10_000;

/// Counters that grow while it works.
#[derive(Debug, Default)]
pub struct Report {
    entries: AtomicU64,
    bytes: AtomicU64,
    left_out: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    problems: Vec<Note>,
    notes: Vec<Note>,
    current: Vec<u8>,
}

/// Something to be told of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Which entry, escaped for printing.
    pub path: String,
    /// What there is to be told.
    pub reason: String,
}

/// How far it is, or how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Entries that were sent.
    pub entries: u64,
    /// Bytes of contents that were sent.
    pub bytes: u64,
    /// Entries and attributes that could not be sent, or not as they are.
    pub left_out: u64,
    /// Which, and why; the first ten thousand.
    pub problems: Vec<Note>,
    /// What is left out with reason; the first ten thousand.
    pub notes: Vec<Note>,
}

impl Report {
    pub(super) fn entry(&self, path: &[u8]) {
        self.entries.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        state.current.clear();
        state.current.extend_from_slice(path);
    }

    pub(super) fn add_bytes(&self, n: u64) {
        self.bytes.fetch_add(n, Ordering::Relaxed);
    }

    pub(super) fn problem(&self, path: &[u8], reason: impl ToString) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
        keep(&mut self.state.lock().problems, path, reason);
    }

    pub(super) fn note(&self, path: &[u8], message: impl ToString) {
        keep(&mut self.state.lock().notes, path, message);
    }

    /// The entry that was begun last.
    pub fn current_path(&self) -> String {
        escape(&self.state.lock().current)
    }

    /// How far it is, in numbers only.
    pub fn counts(&self) -> Summary {
        Summary {
            entries: self.entries.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            left_out: self.left_out.load(Ordering::Relaxed),
            ..Summary::default()
        }
    }

    /// All of it.
    pub fn summary(&self) -> Summary {
        let state = self.state.lock();
        Summary { problems: state.problems.clone(), notes: state.notes.clone(), ..self.counts() }
    }
}

fn keep(list: &mut Vec<Note>, path: &[u8], reason: impl ToString) {
    if list.len() < MAX_PROBLEMS {
        list.push(Note { path: escape(path), reason: reason.to_string() });
    }
}
