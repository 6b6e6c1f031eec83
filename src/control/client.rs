//! The asking side.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Mounted, Request, Response, Trace, directories};

/// Why a daemon cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not run any more.
    #[error(
        "the daemon of '{mountpoint}' is gone; 'restorefs umount {mountpoint}' takes the mount away{kept}",
        kept = .trace.as_ref().and_then(|t| t.spool.as_ref()).map_or(String::new(), |s| format!(
            "; what had arrived is in '{s}'"
        ))
    )]
    Gone {
        /// Its mount.
        mountpoint: PathBuf,
        /// What it left.
        trace: Option<Trace>,
    },
    /// It is somebody else's.
    #[error("'{0}' belongs to another user: only they and root may ask its daemon")]
    Denied(PathBuf),
    /// Anything else.
    #[error("cannot ask the daemon of '{mountpoint}': {cause}")]
    Other {
        /// Its mount.
        mountpoint: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// A connection to a daemon, for one request.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    mountpoint: PathBuf,
    pid: Pid,
}

/// The process of a daemon.
#[derive(Debug)]
pub struct Daemon(OwnedFd);

impl Daemon {
    /// Waits until it has ended, and with it everything that it cleans up. False when it takes longer than that.
    pub fn wait_gone(&self, timeout: Duration) -> bool {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        matches!(poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)), Ok(1))
    }
}

impl Connection {
    /// Finds the daemon of a mount.
    pub fn open(mounted: &Mounted) -> Result<Self, Error> {
        let mountpoint = mounted.mountpoint.clone();
        let mut trace = None;
        for directory in directories(mounted.uid) {
            match UnixStream::connect(directory.join(format!("{}.sock", mounted.device))) {
                // In /tmp anybody may listen under this name.
                Ok(stream) => match rustix::net::sockopt::socket_peercred(&stream) {
                    Ok(peer) if peer.uid.as_raw() == mounted.uid => {
                        return Ok(Connection { stream, mountpoint, pid: peer.pid });
                    }
                    _ => continue,
                },
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(Error::Denied(mountpoint)),
                Err(_) => {}
            }
            let left = std::fs::read(directory.join(format!("{}.json", mounted.device))).ok();
            trace = trace.or_else(|| {
                left.and_then(|text| serde_json::from_slice::<Trace>(&text).ok()).filter(|t| t.mountpoint == mountpoint)
            });
        }
        Err(Error::Gone { mountpoint, trace })
    }

    /// Whom it asks.
    pub fn daemon(&self) -> io::Result<Daemon> {
        Ok(Daemon(pidfd_open(self.pid, PidfdFlags::empty())?))
    }

    /// Asks, and waits for the answer.
    pub fn ask(mut self, request: &Request) -> Result<Response, Error> {
        let fail = |cause| Error::Other { mountpoint: self.mountpoint.clone(), cause };
        let mut line = serde_json::to_vec(request).map_err(|e| fail(e.into()))?;
        line.push(b'\n');
        self.stream.write_all(&line).map_err(fail)?;
        let mut answer = Vec::new();
        BufReader::new(&self.stream).read_until(b'\n', &mut answer).map_err(fail)?;
        if answer.is_empty() {
            return Err(fail(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it closed the connection without an answer",
            )));
        }
        serde_json::from_slice(&answer).map_err(|e| fail(e.into()))
    }
}

/// Takes away what a daemon that is gone left beside its socket.
pub(crate) fn forget(mounted: &Mounted) {
    for directory in directories(mounted.uid) {
        for kind in ["sock", "json"] {
            let _ = std::fs::remove_file(directory.join(format!("{}.{kind}", mounted.device)));
        }
    }
}
