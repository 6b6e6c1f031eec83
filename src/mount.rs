//! One mount from beginning to end: store, filesystem, and the thread that receives.
//!
//! [`Running::start`] returns when the mount answers. It stays until it is unmounted, by [`Handle::unmount`] or
//! from outside, whatever becomes of the stream.

mod clients;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::SystemTime;

use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::entry::{Timestamp, escape_path};
use crate::fs::{Closer, Filesystem, Opens, state};
use crate::fuse;
pub use crate::fuse::Helper;
use crate::index::{Index, Ino};
use crate::ingest;
pub use crate::ingest::opening;
use crate::monitor::{Monitor, Phase, Piece, Problem, Severity, Status};
use crate::mounts::{self, Mounted, Others, Table};
use crate::receive;
use crate::source::Source;
use crate::spool::{self, About, Left, Spool};
use crate::stop::Stop;
use crate::store::{self, Resume, Store};
pub use crate::store::{Following, Scrubbed};
use crate::tarball;
use crate::wire::Listener;
pub use clients::{Client, Clients, Doing, Present};

/// Where entries come from.
#[derive(Debug)]
pub enum Feed {
    /// An archive.
    Archive(Source),
    /// A native sender.
    Sender(Listener),
    /// What a daemon that is gone has left.
    Spool(Box<Left>),
}

impl Feed {
    /// What it is called.
    fn name(&self) -> String {
        match self {
            Feed::Archive(source) => source.name().into(),
            Feed::Sender(listener) => format!("sender to {}", listener.address()),
            Feed::Spool(left) => left.about().source.clone(),
        }
    }

    /// Whether it is there already, and needs nobody who sends.
    pub fn is_file(&self) -> bool {
        match self {
            Feed::Archive(source) => source.file().is_some(),
            Feed::Sender(_) => false,
            Feed::Spool(_) => true,
        }
    }

    /// The address that is listened on, where one is.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Feed::Archive(source) => source.local_address(),
            Feed::Sender(listener) => Some(listener.address()),
            Feed::Spool(_) => None,
        }
    }
}

/// What to mount, where, and how.
#[derive(Debug)]
pub struct Options {
    /// Where entries come from.
    pub feed: Feed,
    /// An existing directory.
    pub mountpoint: PathBuf,
    /// In which directory contents are spooled, where they have to be.
    pub spool_directory: PathBuf,
    /// The most that is spooled, in bytes.
    pub spool_limit: Option<u64>,
    /// Whether the spool stays behind.
    pub keep_spool: bool,
    /// Whether others than the owner may look in; the kernel then checks permissions.
    pub allow_other: bool,
    /// Whether the kernel may read complete large files by itself, where it can.
    pub passthrough: bool,
    /// Whether extended attributes can be seen; what is restored from the mount has them all the same.
    pub xattrs: bool,
    /// The most memory that the index may take, in bytes; a quarter of the machine's where it is not said.
    pub max_index: Option<u64>,
    /// Who lists directories ahead, where somebody can.
    pub helper: Option<Helper>,
    /// How the archive is to be read.
    pub tar: tarball::Options,
    /// A spool that holds the first part of it, to be filled further.
    pub resume: Option<Box<Left>>,
}

/// Why a mount could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no /proc, as in a chroot.
    #[error("cannot mount on '{}': /proc is not mounted (mount -t proc proc /proc)", escape_path(.0))]
    NoProc(PathBuf),
    /// There is no such directory.
    #[error("cannot mount on '{path}': {cause}", path = escape_path(.path))]
    Mountpoint {
        /// The mount point.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The mount point is no directory.
    #[error("cannot mount on '{path}': it is not a directory", path = escape_path(.0))]
    NotDirectory(PathBuf),
    /// Every other path would be hidden, and the mount could not be named to take it away.
    #[error("cannot mount on '/': everything else would be below it")]
    Root,
    /// Its spool would be hidden by the mount, and read through it.
    #[error(
        "cannot make a spool in '{spool}': '{mountpoint}' will be mounted over it (choose another place with \
         --spool DIR)",
        spool = escape_path(.spool),
        mountpoint = escape_path(.mountpoint)
    )]
    SpoolBelow {
        /// Where the spool was to be.
        spool: PathBuf,
        /// The mount point.
        mountpoint: PathBuf,
    },
    /// The spool could not be made.
    #[error(
        "cannot make a spool in '{path}': {cause} (choose another place with --spool DIR)",
        path = escape_path(.path)
    )]
    Spool {
        /// The directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The kernel or fusermount3 refused.
    #[error("cannot mount on '{path}': {cause}{hint}", path = escape_path(.path))]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        cause: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// Anything else.
    #[error("cannot begin: {0}")]
    Other(#[from] io::Error),
}

/// A mount that is being served.
pub struct Running {
    /// The directory that is mounted on, until the mount answers.
    point: Option<OwnedFd>,
    session: fuse::Session,
    ingest: JoinHandle<()>,
    handle: Arc<Handle>,
}

/// Where the contents of a mount are.
#[derive(Debug)]
pub enum HandOver {
    /// In a spool.
    Spool {
        /// Its journal, to be read.
        journal: OwnedFd,
        /// The directory of its blobs.
        blobs: OwnedFd,
    },
    /// In the archive itself.
    Archive {
        /// It.
        file: OwnedFd,
        /// Whether what is behind an end marker belongs to it.
        concatenated: bool,
    },
}

/// What can be asked of a mount while it runs, from any thread.
pub struct Handle {
    stop: Stop,
    closer: Closer,
    opens: Arc<Opens>,
    clients: Clients,
    helper: Option<Arc<Helper>>,
    store: Arc<Store>,
    monitor: Arc<Monitor>,
    mountpoint: PathBuf,
    device: String,
    ender: fuse::Ender,
    concatenated: bool,
    unmounted: AtomicBool,
    /// Whether it receives on as long as somebody uses it.
    lazy: AtomicBool,
    /// Whether it was tried before.
    tried: AtomicBool,
}

/// How a mount is to be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Only where nothing is lost by it, and nobody uses it.
    Gently,
    /// From the tree. It is served, and receives, for those who use it.
    Lazily,
    /// In any case; receiving is stopped.
    ByForce,
}

/// What is to be known before a mount is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It is the last one, and clients are at work.
    Busy,
    /// It is the last one, and what has not arrived would be lost.
    Receiving,
    /// It is the last one; everything has arrived, and the spool is being synced.
    Settling,
    /// It is the last one; nothing is received any more.
    Last,
    /// There are others of the same file system, which stay, or of which nothing would be lost.
    Others,
}

/// A mount point that can be mounted on: absolute, without symbolic links, a directory.
pub fn check_mountpoint(path: &Path) -> Result<PathBuf, Error> {
    open_mountpoint(path).map(|(_, path)| path)
}

/// The same, held open: what is mounted on is the directory that was checked.
fn open_mountpoint(path: &Path) -> Result<(OwnedFd, PathBuf), Error> {
    let failed = |cause| Error::Mountpoint { path: path.into(), cause };
    let point = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|e| failed(e.into()))?;
    let kind = FileType::from_raw_mode(fstat(&point).map_err(|e| failed(e.into()))?.st_mode);
    let absolute = std::fs::read_link(format!("/proc/self/fd/{}", point.as_raw_fd())).map_err(|cause| {
        let is_missing = cause.kind() == io::ErrorKind::NotFound && !Path::new("/proc/self").exists();
        if is_missing { Error::NoProc(path.into()) } else { failed(cause) }
    })?;
    if absolute == Path::new("/") {
        return Err(Error::Root);
    }
    if kind == FileType::Directory { Ok((point, absolute)) } else { Err(Error::NotDirectory(path.into())) }
}

/// A directory in which a spool for this mount point can be made.
fn check_spool(directory: &Path, mountpoint: &Path) -> Result<(), Error> {
    let spool = directory.canonicalize().map_err(|cause| Error::Spool { path: directory.into(), cause })?;
    if spool.starts_with(mountpoint) {
        return Err(Error::SpoolBelow { spool, mountpoint: mountpoint.into() });
    }
    Ok(())
}

impl Running {
    /// Mounts, and begins to receive.
    pub fn start(options: Options, monitor: &Arc<Monitor>) -> Result<Self, Error> {
        let Options {
            feed,
            mountpoint,
            spool_directory,
            spool_limit,
            keep_spool,
            allow_other,
            passthrough,
            xattrs,
            max_index,
            helper,
            tar,
            resume,
        } = options;
        let (point, mountpoint) = open_mountpoint(&mountpoint)?;
        raise_open_files();
        let name = feed.name();
        let (feed, left) = match feed {
            Feed::Spool(left) => (None, Some(left)),
            feed => (Some(feed), resume),
        };
        let (file, size) = match (&feed, &left) {
            (Some(Feed::Archive(source)), None) => {
                (source.file().filter(|_| !ingest::needs_spool(source)), source.size())
            }
            (Some(Feed::Archive(source)), Some(_)) => (None, source.size()),
            (None, Some(left)) => (None, Some(left.length())),
            _ => (None, None),
        };
        monitor.source(name.clone(), size);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = Timestamp::new(now.as_secs() as i64, now.subsec_nanos());
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (owner, made) = left.as_ref().map_or(((uid, gid), now), |left| (left.about().owner(), left.about().made()));
        let about = left.as_ref().map(|left| left.about().clone());
        let store = Arc::new(Store::new(Index::new(owner.0, owner.1, made)));
        match (file, left) {
            (Some(file), _) => store.set_archive(Arc::new(file.try_clone()?))?,
            (None, Some(left)) => {
                check_spool(left.path(), &mountpoint)?;
                let path = left.path().to_owned();
                let spool = left
                    .into_spool(spool_limit, keep_spool, monitor.clone())
                    .map_err(|cause| Error::Spool { path, cause })?;
                store.set_spool(spool);
            }
            (None, None) => {
                check_spool(&spool_directory, &mountpoint)?;
                let config = spool::Config {
                    directory: spool_directory.clone(),
                    limit: spool_limit,
                    keep: keep_spool,
                    source: name.clone(),
                    mountpoint: mountpoint.clone(),
                    owner,
                    made,
                };
                let spool = Spool::create(&config, monitor.clone())
                    .map_err(|cause| Error::Spool { path: spool_directory, cause })?;
                store.set_spool(spool);
            }
        }
        let filesystem = Filesystem::new(store.clone())?;
        let stop = Stop::new()?;
        let (closer, opens) = (filesystem.closer(), filesystem.opens().clone());
        let options = fuse::Options { allow_other, passthrough, xattrs };
        let helper = helper.map(Arc::new);
        let session = fuse::mount(filesystem, point.as_fd(), &mountpoint, &name, options, helper.clone())
            .map_err(|cause| Error::Mount { hint: hint(&cause), path: mountpoint.clone(), cause })?;
        let shown = escape_path(&mountpoint);
        let handle = Arc::new(Handle {
            stop: stop.clone(),
            closer,
            opens,
            clients: Clients::default(),
            helper,
            store: store.clone(),
            monitor: monitor.clone(),
            mountpoint,
            device: session.device(),
            ender: session.ender(),
            concatenated: tar.concatenated,
            unmounted: AtomicBool::new(false),
            lazy: AtomicBool::new(false),
            tried: AtomicBool::new(false),
        });
        let (monitor, max_index) = (monitor.clone(), max_index.unwrap_or_else(quarter_of_memory));
        let durable = (store.clone(), stop.clone());
        let resume =
            |of_sender| about.clone().map(|about| Resume { about, mountpoint: handle.mountpoint.clone(), of_sender });
        let is_received = feed.is_some();
        let job: Box<dyn FnOnce() + Send> = match feed {
            Some(Feed::Archive(source)) => {
                let resume = resume(false);
                let job = ingest::Job { source, store, monitor, stop, options: tar, max_index, resume };
                Box::new(move || ingest::run(job))
            }
            Some(Feed::Sender(listener)) => {
                let resume = resume(true);
                let job = receive::Job { listener, store, monitor, stop, max_index, mountpoint: shown, resume };
                Box::new(move || receive::run(job))
            }
            Some(Feed::Spool(_)) | None => {
                let same_boot = about.as_ref().is_none_or(About::is_of_this_boot);
                let job = store::Recovery { store, monitor, stop, max_index, same_boot };
                Box::new(move || store::recover(job))
            }
        };
        if is_received {
            let (store, stop) = durable;
            std::thread::Builder::new().name("durable".into()).spawn(move || store.keep_durable(&stop))?;
        }
        // Whoever waits for the end opens files next.
        let read_ahead = session.read_ahead();
        handle.store.set_when_over(move || read_ahead.widen());
        match std::thread::Builder::new().name("ingest".into()).spawn(job) {
            Ok(ingest) => Ok(Running { point: Some(point), session, ingest, handle }),
            Err(e) => {
                let _ = handle.give_up();
                Err(e.into())
            }
        }
    }

    /// What can be asked of it.
    pub fn handle(&self) -> Arc<Handle> {
        self.handle.clone()
    }

    /// Makes sure that it answers.
    pub fn ask(&mut self) -> io::Result<()> {
        self.session.ask(&self.handle.mountpoint)?;
        // It must not keep the file system that it is in from being unmounted.
        self.point = None;
        Ok(())
    }

    /// Serves until it is unmounted and nothing holds it any more, or it cannot be served. The spool goes away when the
    /// last client has gone: those who restore have descriptors of it.
    pub fn join(self) -> io::Result<()> {
        let ended = self.session.join();
        self.handle.unmounted.store(true, Ordering::Release);
        if self.handle.lazy.load(Ordering::Acquire) {
            self.handle.clients.wait_none();
        }
        self.handle.stop.stop();
        self.handle.closer.close();
        if self.ingest.join().is_err() {
            log::error!("receiving ended with a panic");
        }
        self.handle.clients.wait_none();
        // Whoever still holds a handle must not keep it on the disk.
        if let Some(spool) = self.handle.store.spool() {
            spool.remove();
        }
        ended
    }
}

impl Handle {
    /// Its spool stays when it ends, if anything is in it: its path then.
    pub fn keep_spool(&self) -> Option<PathBuf> {
        let spool = self.store.spool().filter(|spool| spool.position() > 0)?;
        spool.keep();
        Some(spool.path().to_owned())
    }

    /// Receives no more. What arrived stays.
    pub fn stop_receiving(&self) {
        self.stop.stop();
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Who knows how far it is.
    pub fn monitor(&self) -> &Arc<Monitor> {
        &self.monitor
    }

    /// Its device number, as /proc/self/mountinfo has it.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Takes the mount away at once, wherever it is by now, also while it is in use; open files can be read on. Where
    /// there is nothing to take away, because it is held by open files or by another mount namespace, it ends; so it does
    /// where that fails a second time, because something else is mounted over it. The second time no client is waited for.
    pub fn unmount(&self) -> Result<(), mounts::Error> {
        self.cease();
        let tried = self.tried.swap(true, Ordering::AcqRel);
        if tried {
            self.clients.give_up();
        }
        match mounts::detach_all(&self.device) {
            Ok(true) => {}
            Ok(false) => self.ender.end(),
            Err(_) if tried => self.ender.end(),
            Err(e) => {
                self.unmounted.store(false, Ordering::Release);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Takes the mount away because it does not answer: then it ends by itself, with the cause.
    pub fn give_up(&self) -> Result<bool, mounts::Error> {
        self.cease();
        mounts::detach_all(&self.device)
    }

    /// Ends, also where the mount, or a file in it, is still in use.
    pub fn end(&self) {
        self.cease();
        self.ender.end();
    }

    /// Gets ready for the end of the mount of this number. Nothing is done where others stay; gently also where it still
    /// receives, or clients are at work.
    pub fn leave(&self, id: u64, how: How) -> io::Result<Leave> {
        let others = Table::read()?.others(&self.device, id);
        if others != Others::Stay && how == How::Gently {
            if !self.clients.list().is_empty() {
                return Ok(Leave::Busy);
            }
            if self.monitor.verdict().is_none() {
                let settling = self.monitor.status().phase == Phase::Settling;
                return Ok(if settling { Leave::Settling } else { Leave::Receiving });
            }
        }
        if others == Others::None {
            if how == How::Lazily {
                self.lazy.store(true, Ordering::Release);
                self.unmounted.store(true, Ordering::Release);
                self.end_helper();
            } else {
                self.lazy.store(false, Ordering::Release);
                self.cease();
            }
            return Ok(Leave::Last);
        }
        // Those that do not go with it are served on.
        if others == Others::MayGo {
            self.end_helper();
        }
        Ok(Leave::Others)
    }

    /// It may have a copy of the mount.
    fn end_helper(&self) {
        if let Some(helper) = &self.helper {
            helper.kill();
        }
    }

    /// Those who have asked for something that takes its time.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// How many files and directories are open, as far as the kernel tells.
    pub fn opens(&self) -> (u64, u64) {
        self.opens.count()
    }

    /// The process that lists directories ahead, which has some of them open meanwhile.
    pub fn helper(&self) -> Option<u32> {
        self.helper.as_ref().map(|helper| helper.pid())
    }

    /// Receives no more, and ends every read that waits.
    fn cease(&self) {
        self.unmounted.store(true, Ordering::Release);
        self.store.abandon();
        self.stop.stop();
        self.closer.close();
        self.end_helper();
    }

    /// Whether it is taken away, or about to be.
    pub fn is_unmounted(&self) -> bool {
        self.unmounted.load(Ordering::Acquire)
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let mut status = self.monitor.status();
        let own = self.own_problems();
        status.warnings += own.len() as u64;
        status.problems.extend(own);
        if let (None, Some(spool)) = (&status.paused, self.store.spool())
            && let Some(stalled) = spool.stalled()
        {
            status.paused = Some(format!(
                "the disk of the spool '{}' has not taken a write for {} s: it may be frozen, or failing",
                escape_path(spool.path()),
                stalled.as_secs()
            ));
        }
        status
    }

    /// A part of all problems, counted from 0.
    pub fn problems(&self, number: usize) -> Piece {
        let mut piece = self.monitor.problems_piece(number);
        if piece.last {
            piece.problems.extend(self.own_problems());
        }
        piece
    }

    /// What is wrong with the mount, not with what was packed.
    fn own_problems(&self) -> Vec<Problem> {
        let warning = |reason| Problem { severity: Severity::Warning, path: String::new(), reason };
        let mut problems = Vec::new();
        if self.store.is_changed() {
            let reason = "the archive has been changed since it was mounted: its contents cannot be read any more \
                          (unmount it, and mount it again)";
            problems.push(warning(reason.into()));
        }
        let damaged = self.store.damaged();
        if damaged > 0 {
            let files = if damaged == 1 { "one file is" } else { "some files are" };
            problems.push(warning(format!(
                "{files} damaged in the spool, and reading gives an error ('restorefs scrub {}' names all)",
                escape_path(&self.mountpoint)
            )));
        }
        problems
    }

    /// Reads back what is in the spool, as long as `go_on` returns true. None where there is no spool.
    pub fn scrub(&self, go_on: impl Fn() -> bool) -> Option<Scrubbed> {
        self.store.scrub(|_, _| go_on())
    }

    /// The time of directories that no header announces.
    pub fn made(&self) -> Timestamp {
        self.store.index().made()
    }

    /// Somebody is going to read the journal: what it names stays as long.
    pub fn follow(&self) -> Following {
        self.store.follow()
    }

    /// The files that the contents are in, for whoever reads them without the mount.
    pub fn hand_over(&self) -> io::Result<HandOver> {
        match (self.store.spool(), self.store.archive()) {
            (Some(spool), _) => {
                let (journal, blobs) = spool.reopen()?;
                Ok(HandOver::Spool { journal, blobs })
            }
            (None, Some(file)) => {
                Ok(HandOver::Archive { file: file.try_clone()?.into(), concatenated: self.concatenated })
            }
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Whether somebody has written to the archive that is mounted in place.
    pub fn is_changed(&self) -> bool {
        self.store.is_changed()
    }

    /// How much of the journal can be read; 0 where there is none.
    pub fn journal_length(&self) -> u64 {
        self.store.spool().map_or(0, Spool::position)
    }

    /// Bytes that are in the spool.
    pub fn spooled(&self) -> u64 {
        self.store.spool().map_or(0, Spool::bytes)
    }

    /// Whether a name has come more than once.
    pub fn has_replaced(&self) -> bool {
        self.store.index().has_replaced()
    }

    /// Somebody waits for a path below the root: where it can come sooner, it does.
    pub fn want(&self, path: &[u8]) {
        let ino = self.store.index().resolve(path);
        if let Some(ino) = ino {
            self.store.want(ino);
        }
    }

    /// How far a path below the root has arrived: its state, as the xattr has it; `complete` for what has no
    /// contents. None where there is no such entry (yet).
    pub fn state_of(&self, path: &[u8]) -> Option<String> {
        let index = self.store.index();
        let ino: Ino = index.resolve(path)?;
        Some(state(&self.store, &index, ino).unwrap_or_else(|| "complete".into()))
    }
}

fn hint(cause: &io::Error) -> &'static str {
    let text = cause.to_string();
    if !Path::new("/dev/fuse").exists() {
        " (there is no /dev/fuse: load the module with 'modprobe fuse'; in a container, pass --device /dev/fuse)"
    } else if text.contains("user_allow_other") {
        " (put 'user_allow_other' into /etc/fuse.conf, or leave --allow-other out)"
    } else if cause.raw_os_error() == Some(libc::EACCES) && !may_open_fuse() {
        " (only root may open /dev/fuse here: 'chmod 666 /dev/fuse' lets users in, as it is everywhere with udev)"
    } else if cause.kind() == io::ErrorKind::NotFound {
        " (an ordinary user needs fusermount3: install the package fuse3)"
    } else {
        ""
    }
}

fn may_open_fuse() -> bool {
    rustix::fs::access("/dev/fuse", rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK).is_ok()
}

/// Every large file that is served takes a descriptor, every directory that is restored too, and the usual limit is
/// 1024.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::info!("the limit of open files stays as it is: {e}");
    }
}

fn quarter_of_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit) / 4
}

/// The path within the filesystem of a path on a command line: below the mount point, or relative to it. A bind mount
/// may show a part of the filesystem only.
pub fn path_below(mounted: &Mounted, path: &Path) -> Vec<u8> {
    let below = path.strip_prefix(&mounted.mountpoint).unwrap_or(path);
    let path = match mounted.root.strip_prefix("/") {
        Ok(root) if root != Path::new("") => root.join(below.strip_prefix("/").unwrap_or(below)),
        _ => below.into(),
    };
    path.into_os_string().into_vec()
}
