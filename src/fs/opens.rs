//! How many files and directories are open, as far as the kernel tells: it does not where every file is read by its number,
//! and of directories only as long as entries arrive.

use std::sync::atomic::{AtomicU64, Ordering};

/// What is open.
#[derive(Debug, Default)]
pub struct Opens {
    files: AtomicU64,
    directories: AtomicU64,
}

impl Opens {
    fn of(&self, directory: bool) -> &AtomicU64 {
        if directory { &self.directories } else { &self.files }
    }

    /// One more, of a file or of a directory.
    pub fn opened(&self, directory: bool) {
        self.of(directory).fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn closed(&self, directory: bool) {
        self.of(directory).fetch_sub(1, Ordering::Relaxed);
    }

    /// How many files there are, and how many directories.
    pub fn count(&self) -> (u64, u64) {
        (self.files.load(Ordering::Relaxed), self.directories.load(Ordering::Relaxed))
    }
}
