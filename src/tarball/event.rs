//! How an archive is to be read, and what comes of it.

use crate::entry::Entry;

/// How an archive is to be read.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Goes on behind an end marker, as GNU tar's `--ignore-zeros` does.
    pub concatenated: bool,
    /// The number of a user that an ACL names.
    pub resolve_user: fn(&[u8]) -> Option<u32>,
    /// The number of a group that an ACL names.
    pub resolve_group: fn(&[u8]) -> Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Options { concatenated: false, resolve_user: |_| None, resolve_group: |_| None }
    }
}

/// What the decoder found.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// A member. Its stored bytes follow as [`Event::Data`], then [`Event::EntryEnd`].
    Entry {
        /// The member.
        entry: Box<Entry>,
        /// Where in the archive its stored bytes begin.
        offset: u64,
    },
    /// The next stored bytes of the entry.
    Data(&'a [u8]),
    /// All stored bytes of the entry have been given.
    EntryEnd,
    /// A member, or an attribute of the one before, is left out. The path is as it was packed.
    Refused {
        /// Which one; not checked in any way.
        path: Vec<u8>,
        /// Why.
        reason: String,
    },
    /// Something was mended. An empty path stands for the archive.
    Warning {
        /// Where.
        path: Vec<u8>,
        /// What.
        message: String,
    },
    /// The archive's volume label.
    Label(Vec<u8>),
    /// The end marker. Whatever follows does not count.
    EndOfArchive,
}

/// The archive cannot be followed further: it is not certain where the next header is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset} of the archive: {reason}")]
pub struct Stop {
    /// Where it was seen.
    pub offset: u64,
    /// What is wrong.
    pub reason: String,
}

/// How an archive ended, when its bytes are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With its end marker.
    Complete,
    /// With one zero block where there should be two. Nothing is missing.
    LoneZeroBlock,
    /// Before its end marker.
    Cut(&'static str),
}
