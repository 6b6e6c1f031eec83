//! What is asked and answered, and the trace that a daemon leaves.

use serde::{Deserialize, Serialize};

use crate::entry::Timestamp;
use crate::monitor::{Problem, Status};
use crate::mount::{Client, How};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// How it stands.
    Status,
    /// For a part of all problems.
    Problems {
        /// Which, counted from 0.
        piece: usize,
    },
    /// To be told when the stream is over or, where a path (below the root) is named, when that is complete.
    Wait {
        /// The path, as bytes.
        path: Option<Vec<u8>>,
    },
    /// To receive no more.
    Stop,
    /// For the files that the contents are in: see [`Response::Contents`]. They stay until the connection is closed.
    Contents,
    /// To be told how long the journal is.
    More {
        /// When it is longer than so many bytes, or the stream is over; else at once.
        known: Option<u64>,
        /// Or when so many bytes are in the spool.
        spooled: Option<u64>,
    },
    /// To read back what is in the spool, and compare it with its checksums.
    Scrub,
    /// Who uses it.
    Users,
    /// To get ready for the end of a mount, which the client then takes away.
    Unmount {
        /// The number of the mount.
        mount: u64,
        /// What that may cost.
        how: How,
    },
    /// To end, also where the mount, or a file in it, is still in use.
    End,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// How it stands.
    Status(Box<Status>),
    /// A part of all problems.
    Problems {
        /// They.
        problems: Vec<Problem>,
        /// Counts how often the list began anew.
        list: u64,
        /// Whether no more have been found.
        last: bool,
        /// How many were found and not kept.
        unkept: u64,
    },
    /// What was asked has been done.
    Done,
    /// The mount may be taken away.
    Ready {
        /// Whether there is no other mount of the same file system.
        last: bool,
    },
    /// The state of a path: as its xattr has it.
    State(String),
    /// The stream is over, and the path has not come.
    Absent,
    /// Who uses it, as far as the daemon knows.
    Users(Users),
    /// Clients are at work.
    Busy,
    /// It still receives.
    Receiving,
    /// It receives no more, and brings its spool to the disk.
    Settling,
    /// With it come open files: of a spool its journal and the directory of its blobs, else the archive.
    Contents {
        /// Whether it is a spool.
        spool: bool,
        /// Whether what is behind an end marker belongs to the archive.
        concatenated: bool,
        /// The time of directories that no header announces.
        made: Timestamp,
    },
    /// How far the journal is written.
    Progress {
        /// Bytes that can be read.
        journal: u64,
        /// Whether it stays at that.
        over: bool,
        /// Whether a name has come more than once.
        replaced: bool,
        /// Whether somebody has written to the archive that is mounted in place.
        changed: bool,
        /// Bytes that are in the spool.
        spooled: u64,
        /// Bytes that came from the source, and all that it has, where that is known.
        source: (u64, Option<u64>),
        /// Entries and attributes that were left out.
        #[serde(default)]
        refused: u64,
    },
    /// What was found in the spool; None where there is none.
    Scrubbed(Option<Scrub>),
    /// It failed.
    Failed(String),
}

/// Who uses a mount, as far as its daemon knows: other processes than these may have files open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// Commands that it serves at the moment.
    pub clients: Vec<Client>,
    /// Files that are open.
    pub files: u64,
    /// Directories that are open.
    pub directories: u64,
    /// A process of its own that uses the mount, and does not count.
    pub helper: Option<u32>,
    /// Whether the stream is over, and in the spool.
    pub over: bool,
}

/// What was found when a spool was read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// Files whose contents were read back.
    pub files: u64,
    /// Stored bytes of these.
    pub bytes: u64,
    /// Paths of those that are damaged, escaped.
    pub damaged: Vec<String>,
    /// What is wrong with the journal, if anything.
    pub journal: Option<String>,
}

/// What a daemon leaves beside its socket, so that it can be told of when it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The daemon.
    pub pid: u32,
    /// Where it is mounted, escaped: not every path is text.
    pub mountpoint: String,
    /// What is mounted.
    pub source: String,
    /// Its spool, where there is one.
    pub spool: Option<String>,
}
