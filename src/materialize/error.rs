//! What ends a restore, and what keeps one entry from being restored.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::replay;

/// Why a restore could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target directory.
    #[error("cannot restore into '{path}': {cause}")]
    Target {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Something that concerns everything that would follow.
    #[error("cannot restore '{path}': {cause} (what is restored stays; the same command goes on from there)")]
    Entry {
        /// Where it happened.
        path: String,
        /// Why.
        #[source]
        cause: Failure,
    },
    /// The entries, or their contents, cannot be read.
    #[error("cannot read what is to be restored: {0}")]
    Replay(#[source] replay::Error),
    /// The daemon does not say how far the stream has come.
    #[error("cannot read what is to be restored: {0}")]
    More(#[source] io::Error),
    /// A daemon that says so is not ours, or is broken.
    #[error("cannot read what is to be restored: the daemon says that its journal has become shorter")]
    Shrunk,
    /// The last step failed.
    #[error("cannot bring everything to the disk: {0}")]
    Sync(#[source] io::Error),
}

/// Why one entry could not be restored, or compared with what is in the target.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A system call failed on the target.
    #[error(transparent)]
    Target(#[from] io::Error),
    /// Its contents cannot be read, or are not what was stored.
    #[error(transparent)]
    Contents(#[from] replay::Error),
    /// A name that was ours means something that we did not make, or did not find there.
    #[error("something else has taken its place while it was restored")]
    ChangedHands,
}

impl Failure {
    /// What the kernel said, where it was the kernel.
    pub(super) fn errno(&self) -> Option<Errno> {
        match self {
            Failure::Target(cause) | Failure::Contents(replay::Error::Io(cause)) => Errno::from_io_error(cause),
            Failure::Contents(_) | Failure::ChangedHands => None,
        }
    }

    /// Whether it is of more than one entry.
    pub(super) fn is_of_all(&self) -> bool {
        let of_all = [
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::IO,
            Errno::NOTCONN,
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::NODEV,
            Errno::STALE,
        ];
        matches!(self, Failure::Contents(replay::Error::Changed)) || self.errno().is_some_and(|e| of_all.contains(&e))
    }

    /// What went wrong, and what can be done.
    pub(super) fn explain(&self) -> String {
        match self.errno() {
            Some(Errno::NOTDIR | Errno::LOOP) => {
                "something in the target stands where a directory belongs, a link perhaps: nothing is written through it"
                    .into()
            }
            Some(Errno::PERM) if !rustix::process::geteuid().is_root() => {
                format!("{self} (only root may make this)")
            }
            Some(Errno::PERM) => {
                format!("{self} (what stands there, or its directory, may be immutable: see lsattr, chattr)")
            }
            Some(Errno::FBIG) => {
                format!("{self} (over the limit that 'ulimit -f' sets, or larger than the file system takes)")
            }
            Some(Errno::NOTEMPTY | Errno::ISDIR) => "a directory that is not empty stands in its place".into(),
            _ => self.to_string(),
        }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure::Target(errno.into())
    }
}
