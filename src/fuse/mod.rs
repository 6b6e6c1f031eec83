//! The thin adapter to the kernel: the only place that names fuser.

mod adapter;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use fuser::{BackgroundSession, BackingId, Config, INodeNo, MountOption, Notifier, SessionACL};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::fs::{Filesystem, Window};
use adapter::Adapter;

/// So many threads take requests. Reads that wait hold none of them.
const THREADS: usize = 4;

/// So many windows of files to bring may wait.
const WINDOWS: usize = 4;

/// How to mount.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether others than the owner may look in; the kernel then checks permissions.
    pub allow_other: bool,
    /// Whether the kernel may read complete blobs by itself, where it can: with CAP_SYS_ADMIN, from Linux 6.9 on.
    pub passthrough: bool,
}

/// A blob that the kernel was given.
pub type Given = BackingId;

/// A mounted filesystem.
pub struct Session {
    session: BackgroundSession,
}

/// Mounts at `mountpoint`, read-only, without device nodes and setuid. When it returns, the mount answers.
///
/// The kernel is asked first; where it takes mounts from root only, fusermount3 is.
pub fn mount(filesystem: Filesystem<Given>, mountpoint: &Path, source: &str, options: Options) -> io::Result<Session> {
    let Options { allow_other, passthrough } = options;
    let source = source_name(source);
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    if allow_other {
        config.acl = SessionACL::All;
    }
    let filesystem = Arc::new(filesystem);
    let (ahead, windows) = sync_channel(WINDOWS);
    let adapter = Adapter::new(filesystem.clone(), ahead, allow_other, passthrough);
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
    // It ends with the adapter, and holds the device no longer than that.
    std::thread::Builder::new().name("ahead".into()).spawn(move || bring(&filesystem, &windows, &notifier))?;
    Ok(Session { session: session.spawn()? })
}

/// Brings files to the kernel that it will be asked for. The kernel makes this wait for pages that are being read;
/// therefore it is a thread of its own, which nobody waits for and which holds no lock meanwhile.
fn bring(filesystem: &Filesystem<Given>, windows: &Receiver<Window>, notifier: &Notifier) {
    for window in windows {
        filesystem.bring(window, |ino, contents| match notifier.store(INodeNo(ino.0), 0, contents) {
            Ok(()) => true,
            Err(e) => {
                log::debug!("the kernel does not take contents of {}: {e}", ino.0);
                false
            }
        });
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

impl Session {
    /// Waits until nothing holds the mount any more.
    pub fn join(self) -> io::Result<()> {
        self.session.join()
    }
}

/// What stands in the first column of /proc/mounts: no commas (they part options), no control characters.
fn source_name(source: &str) -> String {
    source.chars().map(|c| if c == ',' || c == '\\' || c.is_control() { '_' } else { c }).collect()
}
