//! Lists directories that somebody will list next, through the mount itself: what takes the time is that the kernel makes
//! an inode and a dentry for each entry, and it does that for whoever lists. Here it does it beside the reader.
//!
//! A daemon that uses its own mount must not hold up its end. So this thread has a table of descriptors of its own:
//! where the daemon is killed while it waits for an answer, the device is closed all the same, and the kernel ends the
//! wait. And it lists through a copy of the mount that is attached nowhere, and there only for one window: the mount
//! point is not busy, and what is unmounted ends when the window does. Only root may make such a copy; others have
//! their directories listed when they ask.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::Receiver;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, StatxFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::fs;
use crate::sys::leave_descriptors;

/// So much is asked for at once: a thousand entries with their attributes.
const BUFFER: usize = 256 << 10;

/// What requests tell of those who make them.
#[derive(Debug, Default)]
pub(super) struct Readers {
    /// The thread that lists ahead.
    lister: AtomicU32,
    /// Somebody else has asked where a symbolic link leads, since the last window.
    follow: AtomicBool,
}

impl Readers {
    /// Whether a request does not come from the thread that lists ahead.
    pub(super) fn is_other(&self, pid: u32) -> bool {
        self.lister.load(Ordering::Relaxed) != pid
    }

    /// A symbolic link is read.
    pub(super) fn read_link(&self, pid: u32) {
        if self.is_other(pid) {
            self.follow.store(true, Ordering::Relaxed);
        }
    }
}

/// What is listed, and where.
pub(super) struct Lister {
    pub(super) directories: fs::Lister,
    pub(super) mountpoint: PathBuf,
    /// The device number of the mount, which tells it from another at the same place.
    pub(super) device: (u32, u32),
    pub(super) readers: Arc<Readers>,
}

impl Lister {
    /// Lists window after window. To be called in a thread that does nothing else.
    pub(super) fn run(self, windows: &Receiver<fs::Window>) {
        if let Err(e) = leave_descriptors() {
            return log::info!("directories are not listed ahead: {e}");
        }
        self.readers.lister.store(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs(), Ordering::Relaxed);
        let mut buffer = Box::new_uninit_slice(BUFFER);
        for window in windows {
            match self.copy_of_mount() {
                Ok(mount) => {
                    // Whoever lists and does not ask for links need not wait for them.
                    let links = self.readers.follow.swap(false, Ordering::Relaxed);
                    self.directories.bring(window, |path| match list(&mount, path, links, &mut buffer) {
                        // It is somebody else's to be told of what is wrong with one directory.
                        Ok(()) | Err(Errno::ACCESS | Errno::NOENT | Errno::NAMETOOLONG) => true,
                        Err(e) => {
                            log::debug!("'{}' cannot be listed ahead: {e}", path.display());
                            false
                        }
                    });
                }
                Err(e) => return log::info!("directories are not listed ahead: {e}"),
            }
        }
    }

    fn copy_of_mount(&self) -> io::Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = rustix::mount::open_tree(CWD, &self.mountpoint, flags)?;
        let found =
            rustix::fs::statx(&mount, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
        if (found.stx_dev_major, found.stx_dev_minor) != self.device {
            return Err(io::Error::other(format!("something else is mounted on '{}'", self.mountpoint.display())));
        }
        Ok(mount)
    }
}

fn list(mount: &OwnedFd, path: &Path, links: bool, buffer: &mut [MaybeUninit<u8>]) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(mount, path, flags, Mode::empty())?;
    let mut target = [MaybeUninit::uninit(); 64];
    let mut entries = RawDir::new(&directory, buffer);
    while let Some(entry) = entries.next().transpose()? {
        if links && entry.file_type() == FileType::Symlink {
            // The kernel remembers all of it, however little is asked for.
            rustix::fs::readlinkat_raw(&directory, entry.file_name(), &mut target)?;
        }
    }
    Ok(())
}
