//! What of a spool has not been brought to its disk.

use std::fs::File;
use std::io;
use std::sync::Arc;

/// Blobs that have been written since they were synced.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    pub(super) blobs: Vec<Arc<File>>,
    /// How many of them were being written when that was looked at last.
    open: usize,
    /// Closed ones are missing among them: there were too many to keep their descriptors.
    pub(super) incomplete: bool,
    /// The first error of a sync. The kernel reports it once, and what it could not write is gone.
    pub(super) failed: Option<io::ErrorKind>,
    /// Where the last durable point is.
    pub(super) durable: Option<u64>,
}

impl Unsynced {
    /// A blob has been created. Descriptors of at most `most` closed ones are kept.
    pub(super) fn add(&mut self, blob: Arc<File>, most: usize) {
        self.blobs.push(blob);
        if self.blobs.len() > most.max(2 * self.open) {
            let before = self.blobs.len();
            self.blobs.retain(is_open);
            self.open = self.blobs.len();
            self.incomplete |= self.open < before;
        }
    }
}

/// Whether it is still being written.
pub(super) fn is_open(blob: &Arc<File>) -> bool {
    Arc::strong_count(blob) > 1
}
