//! The thin adapter to the kernel: the only place that names fuser.

mod adapter;
mod helper;
mod lister;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use fuser::{BackingId, Config, INodeNo, MountOption, Notifier, SessionACL};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::fs::{Filesystem, Span, Window};
use adapter::Adapter;
pub use helper::Helper;
use lister::{Lister, Readers};

/// So many threads take requests. Reads that wait hold none of them.
const THREADS: usize = 4;

/// So many tasks may wait.
const TASKS: usize = 4;

/// How far the kernel reads ahead in a file, once nothing arrives any more: as much as it asks for at once
/// (`fs.fuse.max_pages_limit`). Its own 128 KiB make four times as many requests of us as are good for large files; but
/// a read beyond what has arrived has to be asked for again page by page, so it is too much before.
const READ_AHEAD_KIB: u32 = 1024;

/// How to mount.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether others than the owner may look in; the kernel then checks permissions.
    pub allow_other: bool,
    /// Whether the kernel may read complete blobs by itself, where it can: with CAP_SYS_ADMIN, from Linux 6.9 on.
    pub passthrough: bool,
    /// Whether extended attributes are there; else they are as on a filesystem that has none.
    pub xattrs: bool,
}

/// What is to become of the kernel's copies of contents.
enum Task {
    /// Of files that will be read soon.
    Bring(Window),
    /// Of what will not be read again.
    Forget(Span),
}

/// A blob that the kernel was given.
pub type Given = BackingId;

/// A mounted filesystem.
pub struct Session {
    serving: JoinHandle<io::Result<()>>,
    listing: Option<(JoinHandle<()>, Arc<Helper>)>,
    device: (u32, u32),
    read_ahead: ReadAhead,
}

/// How far the kernel reads ahead in the files of a mount.
#[derive(Clone, Debug)]
pub struct ReadAhead {
    setting: PathBuf,
}

/// Mounts at `mountpoint`, read-only, without device nodes and setuid. When it returns, the mount answers.
///
/// The kernel is asked first; where it takes mounts from root only, fusermount3 is. With a helper, directories are listed
/// before somebody asks.
pub fn mount(
    filesystem: Filesystem<Given>,
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
    let session = match mount_directly(mountpoint, &source, allow_other) {
        Ok(device) => fuser::Session::from_fd(adapter, device, config.acl, config).inspect_err(|_| {
            let _ = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH);
        })?,
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
            fuser::Session::new(adapter, mountpoint, &config)?
        }
        Err(e) => return Err(e.into()),
    };
    let notifier = session.notifier();
    let begin = || {
        let device = device_of(mountpoint)?;
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
        let mountpoint = mountpoint.to_owned();
        let serve = move || serve(session, &mountpoint, device);
        let serving = std::thread::Builder::new().name("serve".into()).spawn(serve)?;
        Ok(Session { serving, listing, device, read_ahead })
    };
    begin().inspect_err(|_| {
        let _ = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH);
    })
}

/// Serves until it is unmounted, or cannot be served: then nobody would answer, and so it is taken away.
fn serve(session: fuser::Session<Adapter>, mountpoint: &Path, device: (u32, u32)) -> io::Result<()> {
    session.run().inspect_err(|_| {
        // Whoever took it away by force may have something else there by now.
        if device_of(mountpoint) == Ok(device) {
            let _ = rustix::mount::unmount(mountpoint, UnmountFlags::DETACH);
        }
    })
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

/// What fuser does as root too, but for the type: `fuse.restorefs` tells our mounts from others.
fn mount_directly(mountpoint: &Path, source: &str, allow_other: bool) -> Result<OwnedFd, Errno> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mode = rustix::fs::stat(mountpoint)?.st_mode;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode={mode:o},user_id={uid},group_id={gid}", device.as_raw_fd());
    if allow_other {
        data.push_str(",allow_other,default_permissions");
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
    rustix::mount::mount(source, mountpoint, "fuse.restorefs", flags, data.as_c_str())?;
    Ok(device)
}

/// The device number of a mount. Asks the kernel only: nobody answers requests yet.
fn device_of(mountpoint: &Path) -> Result<(u32, u32), Errno> {
    let found = rustix::fs::statx(CWD, mountpoint, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok((found.stx_dev_major, found.stx_dev_minor))
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
        let device = std::fs::metadata(mountpoint)?.dev();
        if (rustix::fs::major(device), rustix::fs::minor(device)) == self.device {
            Ok(())
        } else {
            Err(io::Error::other("it is gone already"))
        }
    }

    /// Waits until nothing holds the mount any more.
    pub fn join(self) -> io::Result<()> {
        let ended = self.serving.join().unwrap_or_else(|_| Err(io::Error::other("serving ended with a panic")));
        if let Some((thread, helper)) = self.listing {
            helper.reap();
            let _ = thread.join();
        }
        ended
    }
}

/// What stands in the first column of /proc/mounts: no commas (they part options), no control characters.
fn source_name(source: &str) -> String {
    source.chars().map(|c| if c == ',' || c == '\\' || c.is_control() { '_' } else { c }).collect()
}
