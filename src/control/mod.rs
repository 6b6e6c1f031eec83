//! What can be asked of a running mount, and how it is found.
//!
//! Each daemon listens on a Unix socket that is named by the device number of its mount, in a directory of its
//! user. One request and its answer go over one connection, a line of JSON each; whoever asks for the contents may ask on,
//! and counts as a user of the mount until the connection is closed. Only the daemon's own user and root are answered.

mod client;
mod handover;
mod server;

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::process::getuid;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use crate::entry::{Timestamp, escape_path};
use crate::monitor::{Problem, Status};

/// Whoever holds the lock makes or removes two files, or takes a mount away, which is slow when the kernel has much of it
/// to forget. Longer than this it is held by a process that is stopped.
const LOCKED: Duration = Duration::from_secs(30);

pub use crate::mount::{Client, Doing, How};
pub use crate::mounts::{Mounted, find, find_root, list};
pub use client::{Connection, Daemon, Error, take_away};
pub use server::Server;

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

/// Where anybody may make directories of any name.
const TMP: &str = "/tmp";

/// Where the sockets of `uid` may be.
fn directories(uid: u32) -> Vec<PathBuf> {
    let mut directories = runtime_directories(uid);
    if uid != 0 {
        directories.extend(temporary_directories(uid));
    }
    directories
}

/// Those in which nobody else can make anything.
fn runtime_directories(uid: u32) -> Vec<PathBuf> {
    if uid == 0 {
        return vec!["/run/restorefs".into()];
    }
    let mut directories = Vec::new();
    if uid == getuid().as_raw()
        && let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())
    {
        directories.push(PathBuf::from(runtime).join("restorefs"));
    }
    directories.push(format!("/run/user/{uid}/restorefs").into());
    directories
}

/// Those in /tmp, the usual one first. Whatever else has such a name there is somebody else's, and passed over.
fn temporary_directories(uid: u32) -> Vec<PathBuf> {
    let usual = format!("restorefs-{uid}");
    let other = format!("{usual}-");
    let Ok(entries) = std::fs::read_dir(TMP) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| *name == usual || name.starts_with(&other)).collect();
    names.sort_unstable();
    names.iter().map(|name| Path::new(TMP).join(name)).filter(|path| is_private(path, uid)).collect()
}

/// Whether a directory is one that only `uid` (and root) can have filled.
fn is_private(directory: &Path, uid: u32) -> bool {
    directory.symlink_metadata().is_ok_and(|found| is_owned(&found, uid))
}

fn is_owned(found: &Metadata, uid: u32) -> bool {
    found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0
}

/// Opens a directory that only `uid` (and root) can have filled.
fn open_private(directory: &Path, uid: u32) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(directory, flags, Mode::empty())?);
    if is_owned(&file.metadata()?, uid) {
        Ok(file)
    } else {
        Err(io::Error::other(format!("'{}' is not a directory of our own", escape_path(directory))))
    }
}

/// The directory for our own sockets, open: ours alone, or it is not used.
fn own_directory() -> io::Result<(PathBuf, File)> {
    let uid = rustix::process::geteuid().as_raw();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for directory in runtime_directories(uid) {
        match make(&directory, uid) {
            Ok(made) => return Ok((directory, made)),
            Err(e) => last = io::Error::new(e.kind(), format!("cannot make '{}': {e}", escape_path(&directory))),
        }
    }
    if uid == 0 {
        return Err(last);
    }
    let usual = Path::new(TMP).join(format!("restorefs-{uid}"));
    let there = temporary_directories(uid).into_iter().next();
    let directory = there.unwrap_or_else(|| usual.clone());
    if let Ok(made) = make(&directory, uid) {
        return Ok((directory, made));
    }
    // Somebody else has taken the name. None can be taken that nobody can guess.
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let directory = Path::new(TMP).join(format!("restorefs-{uid}-{:016x}", u64::from_ne_bytes(random)));
    let made = make(&directory, uid)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot make '{}': {e}", escape_path(&directory))))?;
    Ok((directory, made))
}

fn make(directory: &Path, uid: u32) -> io::Result<File> {
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => open_private(directory, uid),
    }
}

/// Until it is closed, no other process makes or removes sockets there.
fn lock(directory: &File) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            // Whoever is stopped while they hold it must not stop others.
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCKED => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e.into()),
        }
    }
}
