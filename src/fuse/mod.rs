//! The thin adapter to the kernel: the only place that names fuser.

mod adapter;
mod helper;
mod lister;
mod options;
mod task;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, INodeNo, MountOption, Notifier, SessionACL};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, fstat, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

use crate::fs::{Filesystem, Span};
use crate::mounts::{self, Mounted, Table};
use adapter::Adapter;
pub use helper::Helper;
use lister::{Lister, Readers};
pub use options::Options;
pub use task::Given;
use task::Task;

/// So many threads take requests. Reads that wait hold none of them.
const THREADS: usize = 4;

/// So many tasks may wait.
const TASKS: usize = 4;

/// How far the kernel reads ahead in a file, once nothing arrives any more: as much as it asks for at once
/// (`fs.fuse.max_pages_limit`). Its own 128 KiB make four times as many requests of us as are good for large files; but
/// a read beyond what has arrived has to be asked for again page by page, so it is too much before.
const READ_AHEAD_KIB: u32 = 1024;

/// So long another mount that was made at the same time, and has to give way, may be over ours.
const UNCOVERED: Duration = Duration::from_secs(2);

/// A mounted filesystem.
pub struct Session {
    ended: Receiver<End>,
    ender: Ender,
    listing: Option<(JoinHandle<()>, Arc<Helper>)>,
    device: (u32, u32),
    read_ahead: ReadAhead,
}

/// How serving a mount ends.
enum End {
    /// The kernel has no more to ask, or cannot be served.
    Over(io::Result<()>),
    /// Nobody is served any more, though somebody may still have it mounted.
    Abandoned,
}

/// Ends a session that somebody still has mounted where it cannot be unmounted.
#[derive(Clone, Debug)]
pub struct Ender {
    device: (u32, u32),
    end: Sender<End>,
}

/// How far the kernel reads ahead in the files of a mount.
#[derive(Clone, Debug)]
pub struct ReadAhead {
    setting: PathBuf,
}

/// Mounts on the open directory `point`, whose path is `mountpoint`: read-only, without device nodes and setuid. When it returns, the mount answers.
///
/// The kernel is asked first; where it takes mounts from root only, fusermount3 is. With a helper, directories are listed
/// before somebody asks.
pub fn mount(
    filesystem: Filesystem<Given>,
    point: BorrowedFd<'_>,
    mountpoint: &Path,
    source: &str,
    options: Options,
    helper: Option<Arc<Helper>>,
) -> io::Result<Session> {
    let Options { allow_other, .. } = options;
    let source = source_name(source);
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    if allow_other {
        config.acl = SessionACL::All;
    }
    let filesystem = Arc::new(filesystem);
    let (cache, tasks) = sync_channel(TASKS);
    let (listing, windows) = sync_channel(1);
    let readers = Arc::new(Readers::new(helper.as_deref()));
    let adapter = Adapter::new(filesystem.clone(), cache, listing, readers.clone(), options);
    let (session, device) = match mount_directly(point, &source, allow_other) {
        Ok((connection, device)) => {
            let session = fuser::Session::from_fd(adapter, connection, config.acl, config);
            (session.inspect_err(|_| take_away(device))?, device)
        }
        Err(Errno::PERM) => {
            config.mount_options = vec![
                MountOption::RO,
                MountOption::NoDev,
                MountOption::NoSuid,
                MountOption::Subtype("restorefs".into()),
                MountOption::FSName(source),
            ];
            if allow_other {
                config.mount_options.push(MountOption::DefaultPermissions);
            }
            (fuser::Session::new(adapter, mountpoint, &config)?, device_of(mountpoint)?)
        }
        Err(e) => return Err(e.into()),
    };
    let notifier = session.notifier();
    let begin = || {
        check_place(point, device)?;
        let read_ahead = ReadAhead::of(device);
        // They end with the adapter, and hold the device no longer than that.
        let managed = filesystem.clone();
        std::thread::Builder::new().name("cache".into()).spawn(move || manage(&managed, &tasks, &notifier))?;
        let mut listing = None;
        if let Some(helper) = helper {
            let lister = Lister { filesystem, mountpoint: mountpoint.into(), device, readers, helper: helper.clone() };
            let thread = std::thread::Builder::new().name("lister".into()).spawn(move || lister.run(&windows))?;
            listing = Some((thread, helper));
        }
        let (end, ended) = channel();
        let ender = Ender { device, end: end.clone() };
        let serve = move || {
            let panicked = |_| Err(io::Error::other("serving ended with a panic"));
            let served = std::panic::catch_unwind(AssertUnwindSafe(|| serve(session, device)));
            // Nobody asks how it ended when the session was abandoned before.
            let _ = end.send(End::Over(served.unwrap_or_else(panicked)));
        };
        std::thread::Builder::new().name("serve".into()).spawn(serve)?;
        Ok(Session { ended, ender, listing, device, read_ahead })
    };
    begin().inspect_err(|_| take_away(device))
}

/// Unmounts what cannot be served.
fn take_away(device: (u32, u32)) {
    if let Err(e) = mounts::detach_all(&number(device)) {
        log::debug!("a mount that cannot be served stays: {e}");
    }
}

/// As the kernel writes it in /proc/self/mountinfo.
fn number((major, minor): (u32, u32)) -> String {
    format!("{major}:{minor}")
}

/// Serves until it is unmounted, or cannot be served: then nobody would answer, and so it is taken away.
fn serve(session: fuser::Session<Adapter>, device: (u32, u32)) -> io::Result<()> {
    session.run().inspect_err(|_| take_away(device))
}

/// Brings files to the kernel that it will be asked for, and has it forget what it will not. The kernel makes this wait for
/// pages that are being read; therefore it is a thread of its own, which nobody waits for, which holds no lock
/// meanwhile, and which keeps its distance from readers: were the daemon killed right then, the kernel would not see it end
/// before somebody takes the mount away by force (umount(2), `MNT_FORCE`).
fn manage(filesystem: &Filesystem<Given>, tasks: &Receiver<Task>, notifier: &Notifier) {
    for task in tasks {
        match task {
            Task::Bring(window) => {
                filesystem.bring(window, |ino, contents| match notifier.store(INodeNo(ino.0), 0, contents) {
                    Ok(()) => true,
                    Err(e) => {
                        log::debug!("the kernel does not take contents of {}: {e}", ino.0);
                        false
                    }
                });
            }
            Task::Forget(Span { ino, offset, len }) => {
                if let Err(e) = notifier.inval_inode(INodeNo(ino.0), offset as i64, len as i64) {
                    log::debug!("the kernel does not forget contents of {}: {e}", ino.0);
                }
            }
        }
    }
}

/// What fuser does as root too, but for the type: `fuse.restorefs` tells our mounts from others. The mount is made first,
/// and then attached to the directory that is open: no path is looked up. Returns the connection to the kernel, and the
/// number of the device.
fn mount_directly(point: BorrowedFd<'_>, source: &str, allow_other: bool) -> Result<(OwnedFd, (u32, u32)), Errno> {
    let connection = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let filesystem = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    for (key, value) in [
        ("source", source.to_owned()),
        ("subtype", "restorefs".into()),
        ("fd", connection.as_raw_fd().to_string()),
        ("rootmode", format!("{:o}", fstat(point)?.st_mode)),
        ("user_id", uid.to_string()),
        ("group_id", gid.to_string()),
    ] {
        fsconfig_set_string(&filesystem, key, value)?;
    }
    for key in ["ro", "allow_other", "default_permissions"].into_iter().take(if allow_other { 3 } else { 1 }) {
        fsconfig_set_flag(&filesystem, key)?;
    }
    fsconfig_create(&filesystem)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    let mount = fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let device = device_at(mount.as_fd(), Path::new(""))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mount, "", point, "", flags)?;
    Ok((connection, device))
}

/// The device number of what fusermount3 has mounted, which must be there: it was given a path.
fn device_of(mountpoint: &Path) -> io::Result<(u32, u32)> {
    let found = device_at(CWD, mountpoint)?;
    let uid = rustix::process::getuid().as_raw();
    if mounts::of(&number(found))?.iter().any(|mounted| mounted.uid == uid && mounted.mountpoint == mountpoint) {
        Ok(found)
    } else {
        Err(io::Error::other("it was renamed meanwhile"))
    }
}

/// Whether the mount is on the directory that was opened for it, and not on another restorefs that was mounted there since
/// it was looked for one.
fn check_place(point: BorrowedFd<'_>, device: (u32, u32)) -> io::Result<()> {
    let found = statx(point, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)?;
    // Before Linux 5.8 the kernel does not tell.
    if found.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Ok(());
    }
    let table = Table::read()?;
    let mounts = table.restorefs();
    let covers = |own: &Mounted| mounts.iter().any(|m| m.id == found.stx_mnt_id && m.mountpoint == own.mountpoint);
    let is_right = |own: &Mounted| table.parent(own.id) == Some(found.stx_mnt_id) && !covers(own);
    let mut own = mounts.iter().filter(|m| m.device == number(device)).peekable();
    if own.peek().is_none() || own.any(is_right) {
        Ok(())
    } else {
        Err(io::Error::other("something else was mounted there at the same time"))
    }
}

/// Asks the kernel only: nobody answers requests yet.
fn device_at(at: BorrowedFd<'_>, path: &Path) -> Result<(u32, u32), Errno> {
    let found = statx(at, path, AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok((found.stx_dev_major, found.stx_dev_minor))
}

impl Ender {
    /// Ends it. The kernel does it in good order, where it can be asked to; otherwise the threads that wait for the end of
    /// the session are released, and the kernel notices when the process ends.
    pub fn end(&self) {
        if let Err(e) = mounts::abort(&number(self.device)) {
            log::debug!("the connection to the kernel cannot be aborted: {e}");
            let _ = self.end.send(End::Abandoned);
        }
    }
}

impl ReadAhead {
    fn of((major, minor): (u32, u32)) -> Self {
        ReadAhead { setting: Path::new("/sys/class/bdi").join(format!("{major}:{minor}")).join("read_ahead_kb") }
    }

    /// Widens it for files that are opened from now on. It is for root to set; without, it stays as it is.
    pub fn widen(&self) {
        if let Err(e) = std::fs::write(&self.setting, READ_AHEAD_KIB.to_string()) {
            log::info!("the kernel reads ahead as far as it does: cannot write '{}': {e}", self.setting.display());
        }
    }
}

impl Session {
    /// How far the kernel reads ahead in it.
    pub fn read_ahead(&self) -> ReadAhead {
        self.read_ahead.clone()
    }

    /// Asks for the root, which is there as soon as somebody serves, and not where nobody can.
    pub fn ask(&self, mountpoint: &Path) -> io::Result<()> {
        let deadline = Instant::now() + UNCOVERED;
        loop {
            let found = std::fs::metadata(mountpoint).and_then(|found| {
                let device = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
                if device == self.device { Ok(()) } else { Err(io::Error::other("it is gone already")) }
            });
            let is_there = || mounts::of(&number(self.device)).is_ok_and(|mounts| !mounts.is_empty());
            if found.is_ok() || Instant::now() > deadline || !is_there() {
                return found;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The number of its device, as /proc/self/mountinfo has it.
    pub fn device(&self) -> String {
        number(self.device)
    }

    /// Who can end it where it cannot be unmounted.
    pub fn ender(&self) -> Ender {
        self.ender.clone()
    }

    /// Waits until nothing holds the mount any more, or it is ended.
    pub fn join(self) -> io::Result<()> {
        // The ender is one that can send, so somebody always can.
        let ended = self.ended.recv().unwrap_or(End::Abandoned);
        if let Some((thread, helper)) = self.listing {
            helper.reap();
            // It ends with the session.
            if matches!(ended, End::Over(_)) {
                let _ = thread.join();
            }
        }
        match ended {
            End::Over(ended) => ended,
            End::Abandoned => Ok(()),
        }
    }
}

/// What stands in the first column of /proc/mounts: no commas (they part options), no control characters.
fn source_name(source: &str) -> String {
    source.chars().map(|c| if c == ',' || c == '\\' || c.is_control() { '_' } else { c }).collect()
}
