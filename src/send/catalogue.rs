//! The catalogue: what a walk comes by, encoded as it is to be sent, by a thread of its own.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::monitor::Monitor;
use crate::record;
use crate::tree::{Origin, Step, Walk};
use crate::wire::{FromSender, Totals};

/// Pieces are about so long,
const PIECE: usize = 128 << 10;

/// and wait no longer than this to become so.
const AT_ONCE: Duration = Duration::from_millis(50);

/// So many wait to be taken.
const AHEAD: usize = 16;

/// Records of the catalogue.
#[derive(Debug, Default)]
pub(super) struct Piece {
    /// As they are sent.
    pub(super) records: Vec<u8>,
    pub(super) count: u64,
    pub(super) entries: u64,
    /// Files with contents that are among them: number of the entry, and where the contents are.
    pub(super) files: Vec<(u64, Origin)>,
    /// Behind the last one.
    pub(super) end: Option<Totals>,
    /// The walk cannot go on.
    pub(super) failed: Option<String>,
}

/// A walk that has begun.
pub(super) struct Catalogue {
    pieces: Option<Receiver<Piece>>,
    thread: Option<JoinHandle<()>>,
}

impl Catalogue {
    /// The next piece, where there is one already.
    pub(super) fn next(&self) -> Option<Piece> {
        self.pieces.as_ref()?.try_recv().ok()
    }

    /// All that come yet.
    #[cfg(any(test, fuzzing))]
    pub(super) fn rest(&self) -> Vec<Piece> {
        self.pieces.iter().flatten().collect()
    }

    /// Nobody wants more of it. When this returns, it tells the monitor no more.
    pub(super) fn end(&mut self) {
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Begins to walk. `poke` is called when there is a piece.
pub(super) fn begin(walk: Walk, monitor: Arc<Monitor>, poke: impl Fn() + Send + 'static) -> io::Result<Catalogue> {
    let (send, pieces) = sync_channel(AHEAD);
    let thread = std::thread::Builder::new().name("walk".into()).spawn(move || {
        let walked = std::panic::catch_unwind(AssertUnwindSafe(|| all(walk, &monitor, &send, &poke)));
        if walked.is_err() {
            let failed = Some("reading the tree ended with a panic: please report it".into());
            let _ = send.send(Piece { failed, ..Piece::default() });
            poke();
        }
    })?;
    Ok(Catalogue { pieces: Some(pieces), thread: Some(thread) })
}

fn all(walk: Walk, monitor: &Monitor, send: &SyncSender<Piece>, poke: &impl Fn()) {
    let mut hasher = blake3::Hasher::new();
    let mut totals = Totals::default();
    let mut piece = Piece::default();
    let mut begun = Instant::now();
    for step in walk {
        match step {
            Step::Entry { entry, contents } => {
                let stored = entry.kind.stored_len();
                let ctime = contents.as_ref().filter(|_| stored > 0).map(Origin::ctime);
                if let Some(origin) = contents.filter(|_| stored > 0) {
                    piece.files.push((totals.entries, origin));
                    totals.files += 1;
                    totals.bytes += stored;
                }
                totals.entries += 1;
                piece.entries += 1;
                record::encode(&FromSender::Entry { entry, ctime }, &[], &mut piece.records);
            }
            Step::Problem { path, reason } => {
                monitor.refused(&path, &reason);
                record::encode(&FromSender::Problem { path, reason }, &[], &mut piece.records);
            }
            Step::Note { path, message } => {
                monitor.warning(&path, message);
                continue;
            }
        }
        piece.count += 1;
        totals.records += 1;
        if piece.records.len() >= PIECE || begun.elapsed() >= AT_ONCE {
            // All at once: several times faster than one after the other.
            hasher.update(&piece.records);
            if send.send(std::mem::take(&mut piece)).is_err() {
                return;
            }
            poke();
            begun = Instant::now();
        }
    }
    hasher.update(&piece.records);
    totals.hash = *hasher.finalize().as_bytes();
    piece.end = Some(totals);
    let _ = send.send(piece);
    poke();
}
