//! The entries as they come, to the end or to what is there by now.

use std::io;
use std::sync::atomic::Ordering;

use super::error::Error;
use super::report::Report;
use crate::entry::{Entry, Timestamp};
use crate::replay::{self, Contents, Item, Replay};

/// It is looked for more of something large that is arriving when so much has come.
const STEP: u64 = 4 << 20;

/// How far a stream has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the journal.
    pub journal: u64,
    /// Whether it is over.
    pub over: bool,
    /// Whether a name has come more than once.
    pub replaced: bool,
    /// Whether somebody has written to the archive that is mounted in place.
    pub changed: bool,
    /// Bytes that are in the spool.
    pub spooled: u64,
    /// Whether the daemon has ended without a word: then the journal may break off anywhere behind what it told of before.
    pub broken_off: bool,
}

/// Returns when there is more than so many bytes of journal, or so many in the spool, or when the stream is over; for
/// None at once.
pub type More = dyn FnMut(Option<u64>, Option<u64>) -> io::Result<Progress> + Send;

/// Where the entries come from.
pub struct Origin {
    /// Their contents, and the journal or archive that names them.
    pub contents: Contents,
    /// Whether what is behind an end marker of the archive belongs to it.
    pub concatenated: bool,
    /// The time of directories that no header announces.
    pub made: Timestamp,
    /// How far it has come.
    pub more: Box<More>,
}

/// How far a stream has been taken.
pub(super) struct End {
    /// Bytes of the journal.
    pub(super) journal: u64,
    /// Whether no more comes: what is not there as a whole has been given too.
    pub(super) over: bool,
    /// Whether the last record may be only begun.
    pub(super) broken_off: bool,
}

/// All entries up to an end.
pub(super) fn take_all(replay: &mut Replay, end: &End, mut take: impl FnMut(Item)) -> Result<(), replay::Error> {
    replay.set_length(end.journal);
    if end.broken_off {
        replay.set_sound(0);
    }
    while let Some(item) = replay.next_item()? {
        take(item);
    }
    while end.over
        && let Some(cut) = replay.rest()
    {
        take(cut);
    }
    Ok(())
}

/// What a stream gives.
pub(super) enum Next<'a> {
    /// An entry that is there as a whole.
    Item(Item),
    /// None by now; perhaps a file that is arriving, and the number of its blob.
    Nothing(Option<(&'a Entry, u64)>),
}

/// Gives one entry after the other, as they come; nothing when it is going to wait for more.
pub(super) fn pump(
    replay: &mut Replay,
    more: &mut More,
    follow: bool,
    report: &Report,
    mut take: impl FnMut(Next<'_>) -> Result<(), Error>,
) -> Result<End, Error> {
    let mut end = End { journal: 0, over: matches!(replay, Replay::Archive(_)), broken_off: false };
    // When to look again at what is in the spool of something large that is arriving.
    let mut spooled = None;
    loop {
        if let Replay::Journal(journal) = replay {
            let progress = more(follow.then_some(journal.length()), spooled).map_err(Error::More)?;
            if progress.journal < journal.length() {
                return Err(Error::Shrunk);
            }
            if progress.broken_off {
                journal.set_sound(journal.length());
                report.set_broke_off();
            }
            journal.set_length(progress.journal);
            let Progress { over, broken_off, .. } = progress;
            end = End { journal: progress.journal, over, broken_off };
            spooled = Some(progress.spooled.saturating_add(STEP));
        }
        while let Some(item) = replay.next_item().map_err(Error::Replay)? {
            report.position.store(replay.position(), Ordering::Relaxed);
            take(Next::Item(item))?;
        }
        report.position.store(replay.position(), Ordering::Relaxed);
        take(Next::Nothing(replay.arriving()))?;
        if end.over {
            while let Some(cut) = replay.rest() {
                take(Next::Item(cut))?;
            }
        }
        if end.over || !follow {
            report.set_finished(replay.finished());
            return Ok(end);
        }
    }
}
