//! How a mount begins and ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::SystemTime;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::clients::Clients;
use super::error::{Error, hint};
use super::handle::Handle;
use super::options::{Feed, Options};
use super::point::{check_spool, open_mountpoint};
use crate::entry::{Timestamp, escape_path};
use crate::fs::Filesystem;
use crate::fuse;
use crate::index::Index;
use crate::ingest;
use crate::monitor::Monitor;
use crate::receive;
use crate::spool::{self, About, Spool};
use crate::stop::Stop;
use crate::store::Store;
use crate::store::recover::{self, Resume};

/// A mount that is being served.
pub struct Running {
    /// The directory that is mounted on, until the mount answers.
    point: Option<OwnedFd>,
    session: fuse::Session,
    ingest: JoinHandle<()>,
    handle: Arc<Handle>,
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
            recovered: about.is_some(),
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
                let job = recover::Job { store, monitor, stop, max_index, same_boot };
                Box::new(move || recover::run(job))
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
