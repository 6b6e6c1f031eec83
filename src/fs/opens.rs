//! How many files and directories are open, as far as the kernel tells. Where it was once answered that an open need not be
//! told, it tells no close either, not even of what was open before; then none are counted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is open.
#[derive(Debug, Default)]
pub struct Opens {
    files: Count,
    directories: Count,
}

#[derive(Debug, Default)]
struct Count {
    open: AtomicU64,
    untold: AtomicBool,
}

impl Count {
    fn get(&self) -> u64 {
        if self.untold.load(Ordering::Relaxed) { 0 } else { self.open.load(Ordering::Relaxed) }
    }
}

impl Opens {
    fn of(&self, directory: bool) -> &Count {
        if directory { &self.directories } else { &self.files }
    }

    /// One more, of a file or of a directory.
    pub fn opened(&self, directory: bool) {
        self.of(directory).open.fetch_add(1, Ordering::Relaxed);
    }

    /// One less.
    pub fn closed(&self, directory: bool) {
        self.of(directory).open.fetch_sub(1, Ordering::Relaxed);
    }

    /// From now on it is told of none.
    pub fn untold(&self, directory: bool) {
        self.of(directory).untold.store(true, Ordering::Relaxed);
    }

    /// How many files there are, and how many directories.
    pub fn count(&self) -> (u64, u64) {
        (self.files.get(), self.directories.get())
    }
}
