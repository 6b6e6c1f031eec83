//! Exit codes.

use std::process::ExitCode;

use crate::monitor::{Status, Verdict};

/// How a command ended, for scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is there.
    Complete = 0,
    /// It failed: nothing is mounted, or our own disk failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// All that could be taken is there; entries or attributes were refused, each is named.
    Problems = 3,
    /// The stream ended early.
    Incomplete = 4,
    /// The stream cannot be followed further.
    Corrupt = 5,
    /// The other side has another token.
    Denied = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

impl Exit {
    /// Of two ends, the one to be told.
    pub fn worse(self, other: Exit) -> Exit {
        let rank = |exit: Exit| match exit {
            Exit::Complete => 0,
            Exit::Problems => 1,
            Exit::Incomplete => 2,
            Exit::Corrupt => 3,
            Exit::Denied => 4,
            Exit::Usage => 5,
            Exit::Failed => 6,
        };
        if rank(other) > rank(self) { other } else { self }
    }

    /// What a stream's end comes to. One that has not ended is none.
    pub fn of(status: &Status) -> Exit {
        match &status.end {
            Some(Verdict::Complete) if status.refused == 0 => Exit::Complete,
            Some(Verdict::Complete) => Exit::Problems,
            Some(Verdict::Incomplete { .. }) if status.is_nothing() => Exit::Failed,
            Some(Verdict::Incomplete { .. }) | None => Exit::Incomplete,
            Some(Verdict::Corrupt { .. }) => Exit::Corrupt,
            Some(Verdict::NoArchive { .. } | Verdict::Failed { .. }) => Exit::Failed,
        }
    }
}
