//! The asking side.

use std::fs::{File, metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};
use serde_json::Value;

use super::handover;
use super::message::{Request, Response, Trace};
use super::place::{directories, open_private};
use crate::entry::{escape_path, printable};
use crate::mounts::{self, Attached, Mounted, Others, Table};
use crate::sys;

/// A daemon that runs answers at once; only one that is stopped, or whose disk hangs, takes longer.
const ANSWERS: Duration = Duration::from_secs(5);

/// Between the mount and its socket there is a moment.
const BEGINS: Duration = Duration::from_secs(2);

/// So often it is looked for the socket in that moment.
const LOOK: Duration = Duration::from_millis(10);

/// An answer has at most a piece of the problems in it. More is nobody's whom we know.
const MAX_ANSWER: usize = 16 << 20;

/// A trace is two paths and two words.
const MAX_TRACE: u64 = 64 << 10;

/// Why a daemon cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not run any more.
    #[error(
        "the daemon of '{mountpoint}' is gone; 'restorefs umount {mountpoint}' takes the mount away{kept}",
        mountpoint = escape_path(.mountpoint),
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
    /// It may run, but where its socket should be there is none.
    #[error(
        "the daemon of '{mountpoint}' has no control socket; 'restorefs umount --force {mountpoint}' takes the mount \
         away without asking it",
        mountpoint = escape_path(.0)
    )]
    NoSocket(PathBuf),
    /// It runs, or is stopped, and says nothing.
    #[error(
        "the daemon of '{mountpoint}'{process} does not answer: it may be stopped; 'restorefs umount --force \
         {mountpoint}' takes the mount away without asking it",
        mountpoint = escape_path(.mountpoint),
        process = .pid.map_or(String::new(), |pid| format!(" (process {pid})"))
    )]
    Silent {
        /// Its mount.
        mountpoint: PathBuf,
        /// The daemon, where it is known.
        pid: Option<u32>,
    },
    /// It has closed the connection, and owes an answer.
    #[error("the daemon of '{mountpoint}' has ended, or was killed", mountpoint = escape_path(.0))]
    Ended(PathBuf),
    /// It is somebody else's.
    #[error(
        "'{mountpoint}' belongs to another user: only they and root may ask its daemon",
        mountpoint = escape_path(.0)
    )]
    Denied(PathBuf),
    /// Anything else.
    #[error("cannot ask the daemon of '{mountpoint}': {cause}", mountpoint = escape_path(.mountpoint))]
    Other {
        /// Its mount.
        mountpoint: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// A connection to a daemon: for one request or, where that was for the contents, for others too.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    mountpoint: PathBuf,
    pid: Option<Pid>,
}

/// What is at the place of a socket.
enum Found {
    /// Somebody who can be asked.
    Daemon(Connection),
    /// A socket whose daemon has ended.
    Abandoned,
    /// Nothing.
    Nothing,
}

/// The process of a daemon. None where it is in a PID namespace that cannot be seen from here.
#[derive(Debug)]
pub struct Daemon(Option<(Pid, OwnedFd)>);

impl Daemon {
    /// Its number, where it is a process of `uid`: a socket can be anybody's who was given it.
    pub fn pid_of(&self, uid: u32) -> Option<i32> {
        let pid = self.0.as_ref()?.0.as_raw_nonzero().get();
        metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == uid).then_some(pid)
    }

    /// Tells it to end, also where its mount is still in use. Keep the mount open until this returns: otherwise another
    /// may get its device number.
    pub fn end(&self, mounted: &Mounted) -> Result<(), Error> {
        match Connection::try_open(mounted)? {
            Found::Daemon(connection) if connection.pid == self.0.as_ref().map(|(pid, _)| *pid) => {
                connection.ask(&Request::End).map(drop)
            }
            // It is gone.
            _ => Ok(()),
        }
    }

    /// Waits until it has ended, and with it everything that it cleans up. False when it takes longer than that. One that
    /// cannot be seen from here is not waited for.
    pub fn wait_gone(&self, timeout: Duration) -> bool {
        let Some((_, process)) = &self.0 else { return true };
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)), Ok(1))
    }
}

impl Connection {
    /// Finds the daemon of a mount.
    pub fn open(mounted: &Mounted) -> Result<Self, Error> {
        let own = geteuid();
        if !own.is_root() && own.as_raw() != mounted.uid {
            return Err(Error::Denied(mounted.mountpoint.clone()));
        }
        let begun = Instant::now();
        loop {
            let found = match Self::try_open(mounted)? {
                Found::Daemon(connection) => return Ok(connection),
                found => found,
            };
            let mountpoint = mounted.mountpoint.clone();
            let dead = is_dead(mounted);
            if dead || begun.elapsed() >= BEGINS {
                let trace = trace(mounted);
                // A process that cannot be seen from here may run all the same; whose socket refuses does not. But a former
                // daemon may have left a socket under the same number.
                let ended = matches!(found, Found::Abandoned)
                    && trace.as_ref().is_some_and(|t| !Path::new(&format!("/proc/{}", t.pid)).exists());
                return Err(if dead || ended {
                    Error::Gone { mountpoint, trace }
                } else {
                    Error::NoSocket(mountpoint)
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn try_open(mounted: &Mounted) -> Result<Found, Error> {
        let mut found = Found::Nothing;
        let mountpoint = mounted.mountpoint.clone();
        for directory in directories(mounted.uid) {
            match connect(&directory.join(format!("{}.sock", mounted.device))) {
                // In /tmp anybody may listen under this name.
                Ok(stream) => match sys::peer(stream.as_fd()) {
                    Ok(peer) if peer.uid == mounted.uid => {
                        return Ok(Found::Daemon(Connection { stream, mountpoint, pid: peer.pid }));
                    }
                    _ => {}
                },
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(Error::Denied(mountpoint)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Error::Silent { mountpoint, pid: trace(mounted).map(|trace| trace.pid) });
                }
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => found = Found::Abandoned,
                Err(_) => {}
            }
        }
        Ok(found)
    }

    /// Whom it asks.
    pub fn daemon(&self) -> io::Result<Daemon> {
        let open = |pid| Ok::<_, io::Error>((pid, pidfd_open(pid, PidfdFlags::empty())?));
        Ok(Daemon(self.pid.map(open).transpose()?))
    }

    /// Asks, and waits for the answer: as long as it takes where waiting is what is asked for.
    pub fn ask(mut self, request: &Request) -> Result<Response, Error> {
        self.ask_for_files(request).map(|(response, _)| response)
    }

    /// The process of the daemon, where it can be seen from here.
    pub fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// The same, with the open files that come with the answer; the connection stays.
    pub fn ask_for_files(&mut self, request: &Request) -> Result<(Response, Vec<OwnedFd>), Error> {
        let patience = match request {
            Request::Wait { .. } | Request::Stop | Request::More { known: Some(_), .. } | Request::Scrub => None,
            Request::Status
            | Request::Users
            | Request::Problems { .. }
            | Request::Unmount { .. }
            | Request::End
            | Request::Contents
            | Request::More { known: None, .. } => Some(ANSWERS),
        };
        let answer = self.exchange(request, patience).and_then(|(answer, files)| {
            let mut answer = serde_json::from_slice(&answer).map_err(unreadable)?;
            make_printable(&mut answer);
            Ok((serde_json::from_value(answer).map_err(unreadable)?, files))
        });
        answer.map_err(|cause| match cause.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                let pid = self.pid.map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
                Error::Silent { mountpoint: self.mountpoint.clone(), pid }
            }
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Error::Ended(self.mountpoint.clone())
            }
            _ => Error::Other { mountpoint: self.mountpoint.clone(), cause },
        })
    }

    fn exchange(&mut self, request: &Request, patience: Option<Duration>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut deadline = patience.map(|patience| Instant::now() + patience);
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.set_write_timeout(Some(ANSWERS))?;
        self.stream.write_all(&line)?;
        let mut answer = Vec::new();
        let mut files = Vec::new();
        let mut buf = [0; 8192];
        while !answer.ends_with(b"\n") {
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            let received = handover::receive(&self.stream, &mut buf).map(|(n, more)| {
                files.extend(more);
                n
            });
            match received {
                Ok(_) if files.len() > handover::MAX => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "it hands over too many files"));
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) if answer.len() + n > MAX_ANSWER => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"));
                }
                Ok(n) => {
                    answer.extend_from_slice(&buf[..n]);
                    // However long it may take to begin, the rest of an answer comes at once.
                    deadline.get_or_insert_with(|| Instant::now() + ANSWERS);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok((answer, files))
    }
}

/// Never the end of the connection, whatever an answer ends with.
fn unreadable(cause: serde_json::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, cause)
}

/// The daemon may be another user's, who could have it say anything: nothing of it reaches a terminal as it is.
fn make_printable(answer: &mut Value) {
    match answer {
        Value::String(text) => *text = printable(text),
        Value::Array(values) => values.iter_mut().for_each(make_printable),
        Value::Object(fields) => fields.values_mut().for_each(make_printable),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Whether the kernel says that nobody serves a mount. A daemon that makes its clients wait is alive. Another user's
/// is not asked: a thread that waits for it cannot be killed, and would keep this process alive.
fn is_dead(mounted: &Mounted) -> bool {
    if mounted.uid != geteuid().as_raw() {
        return false;
    }
    let (send, answer) = channel();
    let mountpoint = mounted.mountpoint.clone();
    let look = move || send.send(matches!(rustix::fs::statfs(&mountpoint), Err(rustix::io::Errno::NOTCONN)));
    let looking = std::thread::Builder::new().name("statfs".into()).spawn(look);
    looking.is_ok() && answer.recv_timeout(BEGINS).unwrap_or(false)
}

/// Without waiting: a daemon that is stopped takes no connection, and when enough have tried, the next would wait for
/// ever.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// What a daemon that is gone left.
fn trace(mounted: &Mounted) -> Option<Trace> {
    directories(mounted.uid).iter().find_map(|directory| {
        // In /tmp anybody may leave anything; and what its owner leaves may be a FIFO.
        let directory = open_private(directory, mounted.uid).ok()?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = openat(directory, format!("{}.json", mounted.device), flags, Mode::empty()).ok()?;
        let mut text = Vec::new();
        File::from(file).take(MAX_TRACE).read_to_end(&mut text).ok()?;
        let mut trace = serde_json::from_slice(&text).ok()?;
        make_printable(&mut trace);
        serde_json::from_value::<Trace>(trace).ok().filter(|t| t.mountpoint == escape_path(&mounted.mountpoint))
    })
}

/// Takes away a mount whose daemon cannot be asked, and what a daemon that is gone left beside its socket. By force its
/// connection is aborted too, which ends every request that waits for the daemon. Where another mount of the same file
/// system stays, nothing of that is done.
pub fn take_away(mounted: &Mounted, attached: &Attached, force: bool) -> Result<(), mounts::Error> {
    let others = Table::read().map_err(mounts::Error::List)?.others(&mounted.device, mounted.id);
    if force && others != Others::Stay {
        attached.abort()?;
    } else {
        attached.detach()?;
    }
    if mounts::of(&mounted.device).is_ok_and(|left| left.is_empty()) {
        // As long as the mount is held open, no new one is given its device number, and makes files of the same names.
        for directory in directories(mounted.uid) {
            let Ok(directory) = open_private(&directory, mounted.uid) else { continue };
            for kind in ["sock", "json"] {
                let _ = unlinkat(&directory, format!("{}.{kind}", mounted.device), AtFlags::empty());
            }
        }
    }
    Ok(())
}
