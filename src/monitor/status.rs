//! How a mount stands, as it is told: by `status`, over the control socket, and in reports.

use serde::{Deserialize, Serialize};

use super::problems::Problem;

/// A sender can have begun many files; of those that were cut at most this many are named, and the others counted.
pub const MAX_CUT_NAMED: usize = 16;

/// What is being done now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nobody has connected, or not a byte has come yet.
    #[default]
    Waiting,
    /// Entries arrive.
    Receiving,
    /// The spool has no room; reading goes on as soon as there is some.
    NoSpace,
    /// Everything has come, and the spool is being brought to its disk.
    Settling,
    /// The stream is over; [`Status::end`] says how.
    Over,
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// The end marker came. (Entries may still have been refused: see [`Status::refused`].)
    Complete,
    /// The stream ended early, or was stopped.
    Incomplete {
        /// What ended it.
        cause: String,
        /// The file that was cut, escaped for printing.
        cut: Option<String>,
    },
    /// The stream cannot be followed further.
    Corrupt {
        /// What is wrong, and where.
        cause: String,
        /// The file that was cut, escaped for printing.
        cut: Option<String>,
    },
    /// It is no tar archive, or not a byte of one came.
    NoArchive {
        /// What it is instead, and what opens it.
        cause: String,
    },
    /// Something on our side failed.
    Failed {
        /// What failed, on what, and why.
        cause: String,
    },
}

impl Verdict {
    /// Afterwards something on our side failed, too.
    pub fn and_failed(&self, mut cause: String) -> Verdict {
        if let Verdict::Incomplete { cause: before, .. }
        | Verdict::Corrupt { cause: before, .. }
        | Verdict::Failed { cause: before }
        | Verdict::NoArchive { cause: before } = self
        {
            cause.push_str("; the stream had ended: ");
            cause.push_str(before);
        }
        if let Verdict::Incomplete { cut: Some(cut), .. } | Verdict::Corrupt { cut: Some(cut), .. } = self {
            cause.push_str(&format!(" ('{cut}' was cut)"));
        }
        Verdict::Failed { cause }
    }
}

/// The file whose contents are arriving.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiving {
    /// Its path, escaped for printing.
    pub path: String,
    /// Stored bytes that arrived.
    pub received: u64,
    /// Stored bytes that it has.
    pub size: u64,
}

/// What the spool holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolUse {
    /// Where it is.
    pub directory: String,
    /// Bytes in it.
    pub bytes: u64,
    /// The most it may hold, where a limit is set.
    pub limit: Option<u64>,
}

/// What a native sender does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sending {
    /// Names and metadata of everything.
    #[default]
    Catalogue,
    /// Contents, in the order of the catalogue.
    InOrder,
    /// Contents that somebody waits for, ahead of the others.
    Wanted,
}

/// The native sender of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SenderStatus {
    /// The name of its machine, escaped.
    pub host: String,
    /// Its number there; 0 where it is not known.
    #[serde(default)]
    pub pid: u32,
    /// Where it connects from.
    pub address: String,
    /// Whether it is connected at the moment.
    pub connected: bool,
    /// How often the connection was lost.
    pub outages: u64,
    /// What it does.
    pub sending: Sending,
    /// Files that somebody waits for.
    pub wanted: u64,
    /// Files that have contents, as far as they are announced.
    pub files: u64,
    /// Of these, so many have not come as a whole.
    pub missing_files: u64,
    /// Announced bytes that have not come.
    pub missing_bytes: u64,
    /// When it is over: the first [`MAX_CUT_NAMED`] files that are cut, escaped for printing, in order.
    #[serde(default)]
    pub cut: Vec<String>,
    /// How many there are.
    #[serde(default)]
    pub cut_files: u64,
}

/// Everything that can be told of a mount at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// What is being done now.
    pub phase: Phase,
    /// Where the stream comes from.
    pub source: String,
    /// How it is compressed, where it is.
    pub compression: Option<String>,
    /// The archive's volume label, escaped.
    pub label: Option<String>,
    /// Entries taken.
    pub entries: u64,
    /// Bytes of the archive, decompressed.
    pub bytes: u64,
    /// Bytes that came from the source, as they came.
    pub source_bytes: u64,
    /// Length of the source, where it is known.
    pub source_size: Option<u64>,
    /// Source bytes per second, over the last two seconds; over all when the stream has ended.
    pub rate: f64,
    /// Seconds since the first byte.
    pub seconds: f64,
    /// Entries and attributes left out.
    pub refused: u64,
    /// Changes made to what was packed.
    pub warnings: u64,
    /// The first [`PROBLEMS_SHOWN`](super::PROBLEMS_SHOWN) of both: [`Monitor::problems`](super::Monitor::problems) has all.
    pub problems: Vec<Problem>,
    /// The file being received.
    pub receiving: Option<Receiving>,
    /// The spool, where there is one.
    pub spool: Option<SpoolUse>,
    /// Why nothing is read at the moment.
    pub paused: Option<String>,
    /// The native sender, where it is one that sends.
    #[serde(default)]
    pub sender: Option<SenderStatus>,
    /// How it ended, when it did.
    pub end: Option<Verdict>,
}

impl Status {
    /// Whether it is over, and brought nothing that could be looked at: then nothing stays mounted. An empty archive that
    /// is complete is not nothing.
    pub fn is_nothing(&self) -> bool {
        let failed = !matches!(self.end, None | Some(Verdict::Complete));
        failed && self.entries == 0 && self.refused == 0
    }
}
