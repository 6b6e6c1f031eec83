//! How the library tells of progress and problems.
//!
//! One [`Monitor`] goes with each mount. Whoever works tells it what happened; whoever shows it (a progress
//! bar, `status`, a log) asks for a [`Status`] or waits for a change. The library itself never prints.

mod problems;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::entry::escape;
use problems::Problems;
pub use problems::{MAX_PROBLEM_TEXT, PROBLEMS_SHOWN, Piece, Problem, Severity};
pub use status::{MAX_CUT_NAMED, Phase, Receiving, SenderStatus, Sending, SpoolUse, Status, Verdict};

/// Over this long the rate is measured.
const RATE_WINDOW: Duration = Duration::from_secs(2);

/// An error with its causes, in one line.
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(e) = cause {
            write!(f, ": {e}")?;
            cause = e.source();
        }
        Ok(())
    }
}

/// Collects what the parts of a mount tell.
#[derive(Debug, Default)]
pub struct Monitor {
    entries: AtomicU64,
    bytes: AtomicU64,
    source_bytes: AtomicU64,
    refused: AtomicU64,
    warnings: AtomicU64,
    state: Mutex<State>,
    changed: Condvar,
    /// Apart from `changed`, which wakes whoever waits for each chunk.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    source: String,
    source_size: Option<u64>,
    compression: Option<String>,
    label: Option<String>,
    problems: Problems,
    receiving: Option<Receiving>,
    spool: Option<SpoolUse>,
    paused: Option<String>,
    sender: Option<SenderStatus>,
    end: Option<Verdict>,
    began: Option<Instant>,
    ended: Option<Instant>,
    samples: std::collections::VecDeque<(Instant, u64)>,
    version: u64,
}

impl Monitor {
    /// One for a stream that has not begun.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Names the source, and its length where it is known.
    pub fn source(&self, name: String, size: Option<u64>) {
        self.update(|s| {
            s.source = name;
            s.source_size = size;
        });
    }

    /// The stream's compression is known: its first bytes are there.
    pub fn compression(&self, name: Option<&str>) {
        self.update(|s| s.compression = name.map(str::to_owned));
    }

    /// The archive names itself.
    pub fn label(&self, label: &[u8]) {
        self.update(|s| s.label = Some(escape(label)));
    }

    /// So many more entries are in the index.
    pub fn add_entries(&self, n: u64) {
        self.entries.fetch_add(n, Ordering::Relaxed);
    }

    /// So many more bytes of the archive have been decoded.
    pub fn add_bytes(&self, n: u64) {
        self.bytes.fetch_add(n, Ordering::Relaxed);
    }

    /// So many more bytes came from the source. The first call begins [`Phase::Receiving`].
    pub fn add_source_bytes(&self, n: u64) {
        if self.source_bytes.fetch_add(n, Ordering::Relaxed) == 0 {
            self.update(|s| {
                s.began = Some(Instant::now());
                if s.phase == Phase::Waiting {
                    s.phase = Phase::Receiving;
                }
            });
        }
    }

    /// Bytes that came from the source, and its length, where that is known.
    pub fn source_bytes(&self) -> (u64, Option<u64>) {
        (self.source_bytes.load(Ordering::Relaxed), self.state.lock().source_size)
    }

    /// The file whose contents are arriving, or none. Called whenever something new can be seen in the tree.
    pub fn receiving(&self, file: Option<Receiving>) {
        self.update(|s| s.receiving = file);
    }

    /// How many times something changed: for [`Monitor::wait_change`].
    pub fn version(&self) -> u64 {
        self.state.lock().version
    }

    /// Waits until something has changed since `version`, or for `timeout`.
    pub fn wait_change(&self, version: u64, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        while state.version == version && !self.changed.wait_until(&mut state, deadline).timed_out() {}
    }

    /// What the spool holds now.
    pub fn spool(&self, usage: SpoolUse) {
        self.state.lock().spool = Some(usage);
    }

    /// A native sender is waited for, or has come.
    pub fn paused_for_sender(&self, reason: Option<String>) {
        self.update(|s| {
            s.phase = match (&reason, s.phase) {
                (_, Phase::Over) => Phase::Over,
                (Some(_), _) => Phase::Waiting,
                (None, _) => Phase::Receiving,
            };
            s.paused = reason;
        });
    }

    /// How it stands with a native sender.
    pub fn sender(&self, sender: SenderStatus) {
        self.update(|s| s.sender = Some(sender));
    }

    /// How much is to come is known.
    pub fn source_size(&self, size: u64) {
        self.update(|s| s.source_size = Some(size));
    }

    /// Reading pauses for `reason`, or goes on.
    pub fn paused(&self, reason: Option<String>) {
        if let Some(reason) = &reason {
            log::warn!("receiving is paused: {reason}");
        }
        self.update(|s| {
            s.phase = match (&reason, s.phase) {
                (_, Phase::Over) => Phase::Over,
                (Some(_), _) => Phase::NoSpace,
                (None, _) => Phase::Receiving,
            };
            s.paused = reason;
        });
    }

    /// An entry, or an attribute of one, is left out.
    pub fn refused(&self, path: &[u8], reason: impl ToString) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.problem(Severity::Refused, path, reason.to_string());
    }

    /// It is told once more, from the beginning: what was left out so far counts no more.
    pub fn forget_problems(&self) {
        self.refused.store(0, Ordering::Relaxed);
        self.warnings.store(0, Ordering::Relaxed);
        self.update(|s| s.problems.clear());
    }

    /// All of it is told once more: nothing that was counted so far counts.
    pub fn begin_anew(&self) {
        for count in [&self.entries, &self.bytes, &self.source_bytes] {
            count.store(0, Ordering::Relaxed);
        }
        self.update(|s| {
            s.samples.clear();
            s.receiving = None;
        });
        self.forget_problems();
    }

    /// Something was accepted after a change. An empty path stands for the stream.
    pub fn warning(&self, path: &[u8], reason: impl ToString) {
        self.warnings.fetch_add(1, Ordering::Relaxed);
        self.problem(Severity::Warning, path, reason.to_string());
    }

    fn problem(&self, severity: Severity, path: &[u8], reason: String) {
        let problem = Problem { severity, path: escape(path), reason };
        let word = if severity == Severity::Refused { "refused" } else { "warning" };
        let line = if problem.path.is_empty() {
            format!("{word}: {}", problem.reason)
        } else {
            format!("{word} '{}': {}", problem.path, problem.reason)
        };
        let mut shown = false;
        self.update(|s| {
            s.problems.push(problem);
            shown = s.problems.found() <= PROBLEMS_SHOWN as u64;
        });
        log::log!(if shown { log::Level::Warn } else { log::Level::Info }, "{line}");
    }

    /// A part of all problems, counted from 0.
    pub fn problems_piece(&self, number: usize) -> Piece {
        self.state.lock().problems.piece(number)
    }

    /// All problems, in the order in which they were found; of a list that begins anew meanwhile, what was there before.
    pub fn problems(&self) -> impl Iterator<Item = Problem> + '_ {
        let list = self.problems_piece(0).list;
        let mut number = Some(0);
        let pieces = std::iter::from_fn(move || {
            let piece = self.problems_piece(number?);
            number = number.filter(|_| !piece.last).map(|number| number + 1);
            (piece.list == list).then_some(piece.problems)
        });
        pieces.flatten()
    }

    /// Everything has come; what is left to do is to bring it to the disk.
    pub fn settling(&self) {
        self.update(|s| {
            if s.phase != Phase::Over {
                (s.phase, s.paused, s.receiving) = (Phase::Settling, None, None);
            }
        });
    }

    /// The stream is over. Only the first verdict counts.
    pub fn end(&self, verdict: Verdict) {
        self.update(|s| {
            if s.end.is_none() {
                s.end = Some(verdict);
                s.phase = Phase::Over;
                s.paused = None;
                s.receiving = None;
                s.ended = Some(Instant::now());
            }
        });
        self.ended.notify_all();
    }

    /// How it ended, if it has.
    pub fn verdict(&self) -> Option<Verdict> {
        self.state.lock().end.clone()
    }

    /// Waits until the stream is over, or for `timeout`.
    pub fn wait_end(&self, timeout: Duration) -> Option<Verdict> {
        let deadline = Instant::now() + timeout;
        let mut state = self.state.lock();
        while state.end.is_none() {
            if self.ended.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.end.clone()
    }

    /// Waits until it is clear that something comes: for the first entry, or the end, or until there is no room for
    /// it.
    pub fn wait_begin(&self) {
        let mut state = self.state.lock();
        while state.end.is_none() && state.phase != Phase::NoSpace && self.entries.load(Ordering::Relaxed) == 0 {
            self.changed.wait(&mut state);
        }
    }

    /// Entries and attributes left out so far.
    pub fn refused_count(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Everything, as it is now.
    pub fn status(&self) -> Status {
        let source_bytes = self.source_bytes.load(Ordering::Relaxed);
        let mut s = self.state.lock();
        let now = s.ended.unwrap_or_else(Instant::now);
        let seconds = s.began.map_or(0.0, |began| (now - began).as_secs_f64());
        let rate = if s.end.is_some() {
            if seconds > 0.0 { source_bytes as f64 / seconds } else { 0.0 }
        } else {
            s.samples.push_back((now, source_bytes));
            while s.samples.len() > 2 && now - s.samples[1].0 > RATE_WINDOW {
                s.samples.pop_front();
            }
            let (at, bytes) = s.samples[0];
            let span = (now - at).as_secs_f64();
            if span > 0.05 {
                (source_bytes - bytes) as f64 / span
            } else if seconds > 0.0 {
                source_bytes as f64 / seconds
            } else {
                0.0
            }
        };
        Status {
            phase: s.phase,
            source: s.source.clone(),
            compression: s.compression.clone(),
            label: s.label.clone(),
            entries: self.entries.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            source_bytes,
            source_size: s.source_size,
            rate,
            seconds,
            refused: self.refused.load(Ordering::Relaxed),
            warnings: self.warnings.load(Ordering::Relaxed),
            problems: s.problems.first().to_vec(),
            receiving: s.receiving.clone(),
            spool: s.spool.clone(),
            paused: s.paused.clone(),
            sender: s.sender.clone(),
            end: s.end.clone(),
        }
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        state.version += 1;
        self.changed.notify_all();
    }
}
