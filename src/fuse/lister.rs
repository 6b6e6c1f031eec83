//! Has directories listed that somebody will list next: what takes the time is that the kernel makes an inode and a dentry
//! for each entry, and it does that for whoever lists. So [`Helper`], another process, does it beside the reader.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Receiver;

use rustix::io::Errno;

use super::helper::{Helper, Unlisted};
use super::task::Given;
use crate::fs::{Filesystem, Window};

/// What requests tell of those who make them.
#[derive(Debug)]
pub(super) struct Readers {
    /// The process that lists ahead.
    helper: Option<u32>,
    /// In so many windows links are read: somebody else has asked where one leads.
    follow: AtomicU8,
}

/// Of the directory that asks for a window links are read before or after it has begun. So this one counts for the next
/// window too.
const FOLLOW: u8 = 2;

impl Readers {
    pub(super) fn new(helper: Option<&Helper>) -> Self {
        Readers { helper: helper.map(Helper::pid), follow: AtomicU8::new(0) }
    }

    /// Whether somebody asks for whom directories can be listed ahead, and not who lists them.
    pub(super) fn is_other(&self, pid: u32) -> bool {
        self.helper.is_some_and(|helper| helper != pid)
    }

    /// Whether it is who lists them.
    pub(super) fn is_helper(&self, pid: u32) -> bool {
        self.helper == Some(pid)
    }

    /// A symbolic link is read.
    pub(super) fn read_link(&self, pid: u32) {
        if self.is_other(pid) {
            self.follow.store(FOLLOW, Ordering::Relaxed);
        }
    }

    /// A window begins: whether links are to be read in it.
    fn follows(&self) -> bool {
        self.follow.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |windows| windows.checked_sub(1)).is_ok()
    }
}

/// What is listed, and where.
pub(super) struct Lister {
    pub(super) filesystem: Arc<Filesystem<Given>>,
    pub(super) mountpoint: PathBuf,
    /// The device number of the mount, which tells it from another at the same place.
    pub(super) device: (u32, u32),
    pub(super) readers: Arc<Readers>,
    pub(super) helper: Arc<Helper>,
}

impl Lister {
    /// Has window after window listed.
    pub(super) fn run(&self, windows: &Receiver<Window>) {
        for window in windows {
            match self.list(window) {
                Ok(()) => {}
                // Another window may be luckier: something may be mounted over it for a while.
                Err(Unlisted::Failed(e)) => {
                    log::debug!("no directories are listed ahead now: {e}");
                    self.filesystem.forgo_listing(&window);
                }
                Err(e @ Unlisted::Gone) => return log::info!("directories are not listed ahead any more: {e}"),
            }
        }
    }

    fn list(&self, window: Window) -> Result<(), Unlisted> {
        // Whoever lists and does not ask for links need not wait for them.
        let links = self.readers.follows();
        self.helper.begin(&self.mountpoint, self.device, links)?;
        let end = self.filesystem.list_ahead(window, |path| match self.helper.list(path) {
            // It is somebody else's to be told of what is wrong with one directory.
            Ok(()) | Err(Unlisted::Failed(Errno::ACCESS | Errno::NOENT)) => true,
            Err(e) => {
                log::debug!("'{}' cannot be listed ahead: {e}", path.display());
                false
            }
        });
        log::debug!("directories up to number {end} are listed ahead");
        self.helper.end()
    }
}
