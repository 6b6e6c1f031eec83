//! Versions that nothing names any more give their room back.
//!
//! A blob is removed when its file is complete, has no name and no reader, when nobody follows the journal from outside, and
//! when what replaced it is behind a durable point: else a power failure could take the new version and leave the old one
//! without contents.

use std::sync::Arc;

use super::Store;
use crate::index::{Arrival, Ino, Place};

/// Somebody who follows the journal from outside, until this is dropped. Blobs stay as long.
pub struct Following(Arc<Store>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.superseded.waiting.lock().followers -= 1;
    }
}

impl Store {
    /// Somebody is given the journal, and opens blobs by what it says.
    pub fn follow(self: &Arc<Self>) -> Following {
        self.superseded.waiting.lock().followers += 1;
        Following(self.clone())
    }

    /// These files have lost a name.
    pub(super) fn supersede(&self, files: impl Iterator<Item = Ino>) {
        self.superseded.waiting.lock().files.extend(files);
    }

    /// Those that were replaced up to now.
    pub(super) fn replaced(&self) -> Vec<Ino> {
        self.superseded.waiting.lock().files.iter().copied().collect()
    }

    /// Gives back what nobody needs of these files. A durable point has been made since they were replaced.
    pub(super) fn give_back(&self, files: Vec<Ino>) {
        let Some(spool) = self.spool() else { return };
        for ino in files {
            let (is_nameless, place) = {
                let index = self.index.read();
                let is_over = matches!(index.arrival(ino), Some(Arrival::Complete | Arrival::Truncated { .. }));
                let nlink = index.attributes(ino).map_or(0, |a| a.nlink);
                if nlink == 0 && !is_over {
                    continue;
                }
                (nlink == 0, index.place(ino))
            };
            // Nobody begins to follow, or to read it, meanwhile.
            let mut waiting = self.superseded.waiting.lock();
            let held = self.held.lock();
            if waiting.followers > 0 {
                return;
            }
            if held.blobs.contains_key(&ino) {
                continue;
            }
            if let (true, Some(Place::Blob(number) | Place::Packed(number))) = (is_nameless, place)
                && let Err(e) = spool.remove_blob(number)
            {
                log::debug!("the blob {number} of an earlier version stays: {e}");
            }
            waiting.files.remove(&ino);
        }
    }
}
