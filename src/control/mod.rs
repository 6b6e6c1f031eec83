//! What can be asked of a running mount, and how it is found.
//!
//! Each daemon listens on a Unix socket that is named by the device number of its mount, in a directory of its
//! user. One request and its answers go over one connection, a line of JSON each. Only the daemon's own user and
//! root are answered.

mod client;
mod handover;
mod mounts;
mod server;

use std::io;
use std::path::PathBuf;

use rustix::process::getuid;
use serde::{Deserialize, Serialize};

use crate::monitor::Status;

pub(crate) use client::forget;
pub use client::{Connection, Daemon, Error};
pub use mounts::{Mounted, find, list};
pub use server::Server;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// How it stands.
    Status,
    /// To be told when the stream is over or, where a path (below the root) is named, when that is complete.
    Wait {
        /// The path, as bytes.
        path: Option<Vec<u8>>,
    },
    /// To receive no more.
    Stop,
    /// To unmount; while it receives, only with `force`.
    Unmount {
        /// Whether receiving is stopped for it.
        force: bool,
    },
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// How it stands.
    Status(Box<Status>),
    /// What was asked has been done.
    Done,
    /// The state of a path: as its xattr has it.
    State(String),
    /// The stream is over, and the path has not come.
    Absent,
    /// It still receives.
    Receiving,
    /// It failed.
    Failed(String),
}

/// What a daemon leaves beside its socket, so that it can be told of when it is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// The daemon.
    pub pid: u32,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// What is mounted.
    pub source: String,
    /// Its spool, where there is one.
    pub spool: Option<String>,
}

/// Where the sockets of `uid` may be. The first is where one of its daemons makes its own.
fn directories(uid: u32) -> Vec<PathBuf> {
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
    directories.push(format!("/tmp/restorefs-{uid}").into());
    directories
}

/// The directory for our own sockets: ours alone, or it is not used.
fn own_directory() -> io::Result<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let uid = rustix::process::geteuid().as_raw();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for directory in directories(uid) {
        match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                last = e;
                continue;
            }
            _ => {}
        }
        // In /tmp somebody else may have been there first.
        let metadata = directory.symlink_metadata()?;
        if metadata.is_dir() && metadata.uid() == uid && metadata.mode() & 0o022 == 0 {
            return Ok(directory);
        }
        last = io::Error::other(format!("'{}' is not a directory of our own", directory.display()));
    }
    Err(last)
}
