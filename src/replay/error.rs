//! Why a replay, or contents that it names, cannot be read.

use std::io;

use super::handed::Distrust;

/// Why a replay, or contents that it names, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A frame of the journal is not what was written, or not what a daemon of ours writes.
    #[error("the journal of the spool is damaged at byte {at} (copy the rest from the mount, with cp or rsync)")]
    Damaged {
        /// Offset of the frame.
        at: u64,
    },
    /// The journal ends before the length that its daemon gives.
    #[error("the journal is shorter than its daemon says")]
    Short,
    /// Somebody has written to the archive: anything read from it since may be wrong.
    #[error("the archive has been changed since it was mounted (unmount it, and mount it again)")]
    Changed,
    /// What was handed over is not what a daemon hands over.
    #[error(transparent)]
    Distrust(Distrust),
    /// Contents are in a place that was not handed over.
    #[error("its contents are in no place that was handed over")]
    Elsewhere,
    /// A read failed, or what was read differs from its checksum.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Distrust> for Error {
    fn from(cause: Distrust) -> Self {
        match cause {
            // So that a full table of files, say, is known for what it is.
            Distrust::Os(errno) => Error::Io(errno.into()),
            cause => Error::Distrust(cause),
        }
    }
}

impl From<Error> for io::Error {
    fn from(cause: Error) -> Self {
        match cause {
            Error::Io(cause) => cause,
            cause => io::Error::other(cause),
        }
    }
}
