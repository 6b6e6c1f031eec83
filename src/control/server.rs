//! The daemon's side.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::handover;
use super::message::{Request, Response, Scrub, Trace, Users};
use super::place::{lock, own_directory};
use crate::entry::{escape, escape_path};
use crate::monitor::{Monitor, Piece};
use crate::mount::{Client, Doing, Following, HandOver, Handle, Leave, Present, Scrubbed};
use crate::sys;

/// A request is a path at most; more is nobody's whom we know.
const MAX_REQUEST: u64 = 1 << 20;

/// A client says at once what it wants. One that does not must not keep a thread.
const SAYS: Duration = Duration::from_secs(5);

/// While somebody waits, it is looked again at least this often whether they are still there.
const LOOK: Duration = Duration::from_secs(5);

/// Answers requests until it is dropped, then takes its socket away.
pub struct Server {
    directory: PathBuf,
    device: String,
    served: Arc<Served>,
}

/// How many requests are being answered.
#[derive(Default)]
struct Served {
    count: Mutex<usize>,
    fewer: Condvar,
}

/// One of them, however it ends.
struct Serving(Arc<Served>);

impl Serving {
    fn new(served: &Arc<Served>) -> Self {
        *served.count.lock() += 1;
        Serving(served.clone())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.fewer.notify_all();
    }
}

impl Server {
    /// Listens for the clients of the mount `handle`.
    pub fn start(handle: Arc<Handle>) -> io::Result<Self> {
        let device = handle.device().to_owned();
        let (directory, open) = own_directory()?;
        // Where somebody is stopped who holds it, or the machine is too busy, a mount that can be asked counts for more.
        if let Err(e) = lock(&open) {
            log::info!("the control directory stays locked: {e}");
        }
        let socket = directory.join(format!("{device}.sock"));
        // A device number is given again only when its mount is gone; its daemon may still be about to clean up.
        match std::fs::remove_file(&socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        let status = handle.status();
        let trace = Trace {
            pid: std::process::id(),
            mountpoint: escape_path(handle.mountpoint()),
            source: status.source,
            spool: status.spool.map(|spool| spool.directory),
        };
        let path = directory.join(format!("{device}.json"));
        std::fs::write(&path, serde_json::to_vec(&trace)?)?;
        let served = Arc::new(Served::default());
        std::thread::Builder::new().name("control".into()).spawn({
            let served = served.clone();
            move || accept(&listener, &handle, &served)
        })?;
        Ok(Server { directory, device, served })
    }
}

impl Server {
    /// Takes socket and trace away, unless another daemon has got the device number, and has made its own.
    fn clean_up(&self) -> io::Result<()> {
        let directory = File::open(&self.directory)?;
        lock(&directory)?;
        let path = |kind| self.directory.join(format!("{}.{kind}", self.device));
        let trace: Trace = serde_json::from_slice(&std::fs::read(path("json"))?)?;
        if trace.pid == std::process::id() {
            std::fs::remove_file(path("sock"))?;
            std::fs::remove_file(path("json"))?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(e) = self.clean_up() {
            log::debug!("the control socket stays behind: {e}");
        }
        // Whoever asked to unmount is still owed the answer, and the kernel may have millions of inodes to forget before
        // that can be given. Nobody else waits long: with the mount the stream is over, and clients have their time limits.
        let mut count = self.served.count.lock();
        while *count > 0 {
            self.served.fewer.wait(&mut count);
        }
    }
}

fn accept(listener: &UnixListener, handle: &Arc<Handle>, served: &Arc<Served>) {
    for connection in listener.incoming() {
        let connection = match connection {
            Ok(connection) => connection,
            Err(e) => {
                log::warn!("cannot take a control connection: {e}");
                // Out of descriptors, most likely; the next moment may be better, a busy loop makes it worse.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let (handle, served, serving) = (handle.clone(), served.clone(), Serving::new(served));
        let serve = move || {
            if let Err(e) = serve(&connection, &handle, Some(serving), &served) {
                log::debug!("a control connection broke: {e}");
            }
        };
        if let Err(e) = std::thread::Builder::new().name("control-client".into()).spawn(serve) {
            log::warn!("cannot serve a control connection: {e}");
        }
    }
}

/// Answers one request. A client that has been given the contents may ask on for as long as it restores.
fn serve(
    connection: &UnixStream,
    handle: &Handle,
    mut serving: Option<Serving>,
    served: &Arc<Served>,
) -> io::Result<()> {
    let peer = sys::peer(connection.as_fd())?;
    if peer.uid != rustix::process::geteuid().as_raw() && peer.uid != 0 {
        return Err(io::Error::other(format!("user {} may not ask", peer.uid)));
    }
    let client = |doing| Client { pid: peer.pid.map(|pid| pid.as_raw_nonzero().get().unsigned_abs()), doing };
    connection.set_read_timeout(Some(SAYS))?;
    connection.set_write_timeout(Some(SAYS))?;
    let mut reader = BufReader::new(connection);
    let mut restores: Option<(Present<'_>, Following)> = None;
    loop {
        let mut line = Vec::new();
        reader.by_ref().take(MAX_REQUEST).read_until(b'\n', &mut line)?;
        if line.is_empty() && restores.is_some() {
            return Ok(());
        }
        let _serving = serving.take().unwrap_or_else(|| Serving::new(served));
        let request = serde_json::from_slice(&line);
        let present = match &request {
            Ok(Request::Contents) if restores.is_none() => {
                restores = Some((handle.clients().enter(client(Doing::Materialize)), handle.follow()));
                None
            }
            // Who restores is there already.
            Ok(Request::Wait { .. }) if restores.is_none() => Some(handle.clients().enter(client(Doing::Wait))),
            Ok(Request::Scrub) => Some(handle.clients().enter(client(Doing::Scrub))),
            _ => None,
        };
        let (response, files) = match request {
            Ok(request) => answer(request, connection, handle),
            Err(e) => (Response::Failed(format!("the request cannot be read: {e}")), Vec::new()),
        };
        // Who has its answer may unmount next.
        drop(present);
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        handover::send(connection, &text, &files)?;
        if restores.is_none() {
            return Ok(());
        }
        // Restoring takes as long as it takes.
        connection.set_read_timeout(None)?;
    }
}

fn answer(request: Request, connection: &UnixStream, handle: &Handle) -> (Response, Vec<OwnedFd>) {
    let mut files = Vec::new();
    let response = match request {
        Request::Status => Response::Status(Box::new(handle.status())),
        Request::Problems { piece } => {
            let Piece { list, problems, last, unkept } = handle.problems(piece);
            Response::Problems { problems, list, last, unkept }
        }
        Request::Stop => {
            handle.stop_receiving();
            while handle.monitor().wait_end(LOOK).is_none() && is_there(connection) {}
            Response::Status(Box::new(handle.status()))
        }
        Request::Wait { path: None } => {
            while handle.monitor().wait_end(LOOK).is_none() && is_there(connection) {}
            Response::Status(Box::new(handle.status()))
        }
        Request::Wait { path: Some(path) } => wait_path(connection, handle, &path),
        Request::Contents => match handle.hand_over() {
            Ok(HandOver::Spool { journal, blobs }) => {
                files.extend([journal, blobs]);
                Response::Contents { spool: true, concatenated: false, made: handle.made() }
            }
            Ok(HandOver::Archive { file, concatenated }) => {
                files.push(file);
                Response::Contents { spool: false, concatenated, made: handle.made() }
            }
            Err(e) => Response::Failed(e.to_string()),
        },
        Request::More { known, spooled: wanted } => loop {
            let version = handle.monitor().version();
            // In this order: when it is over, the journal does not grow any more.
            let over = handle.monitor().verdict().is_some();
            let journal = handle.journal_length();
            let (replaced, spooled) = (handle.has_replaced(), handle.spooled());
            let more = known.is_none_or(|known| journal > known) || wanted.is_some_and(|wanted| spooled >= wanted);
            if over || more || !is_there(connection) {
                let source = handle.monitor().source_bytes();
                let (changed, refused) = (handle.is_changed(), handle.monitor().refused_count());
                break Response::Progress { journal, over, replaced, changed, spooled, source, refused };
            }
            handle.monitor().wait_change(version, LOOK);
        },
        Request::Scrub => {
            let scrubbed = handle.scrub(|| is_there(connection));
            Response::Scrubbed(scrubbed.map(|Scrubbed { files, bytes, damaged, journal }| Scrub {
                files,
                bytes,
                damaged: damaged.iter().map(|path| escape(path)).collect(),
                journal: journal.map(|e| e.to_string()),
            }))
        }
        Request::Users => {
            let (files, directories) = handle.opens();
            Response::Users(Users {
                clients: handle.clients().list(),
                files,
                directories,
                helper: handle.helper(),
                over: handle.monitor().verdict().is_some(),
            })
        }
        Request::Unmount { mount, how } => match handle.leave(mount, how) {
            Ok(Leave::Busy) => Response::Busy,
            Ok(Leave::Receiving) => Response::Receiving,
            Ok(Leave::Settling) => Response::Settling,
            Ok(Leave::Last) => Response::Ready { last: true },
            Ok(Leave::Others) => Response::Ready { last: false },
            Err(e) => Response::Failed(e.to_string()),
        },
        Request::End => {
            handle.end();
            Response::Done
        }
    };
    (response, files)
}

fn wait_path(connection: &UnixStream, handle: &Handle, path: &[u8]) -> Response {
    let monitor: &Monitor = handle.monitor();
    let mut wanted = false;
    loop {
        let version = monitor.version();
        let over = monitor.verdict().is_some();
        match handle.state_of(path) {
            Some(state) if over || state == "complete" => return Response::State(state),
            None if over => return Response::Absent,
            Some(_) if !std::mem::replace(&mut wanted, true) => handle.want(path),
            _ => {}
        }
        monitor.wait_change(version, LOOK);
        if !is_there(connection) {
            return Response::Absent;
        }
    }
}

/// Whether the other side still listens.
fn is_there(connection: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(connection, PollFlags::RDHUP)];
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&none)).is_ok() && !fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}
