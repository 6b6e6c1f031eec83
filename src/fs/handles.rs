//! Which files are open, and who reads each: we, or the kernel by itself.
//!
//! The kernel reads a complete blob without us, if it is given the blob at open. It does not take an inode both
//! ways at once: as the first handle is read, so are all others until the last is closed. Kept are only files in
//! blobs and files that may still get one; everything else is read by the number of its inode, and open or not.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::index::Ino;

/// What an open came to.
#[derive(Debug)]
pub enum Opened<B> {
    /// It is read by its number, and need not be closed.
    Free,
    /// It is to be closed.
    Kept,
    /// The kernel reads this blob by itself. It is to be closed.
    Given(Arc<B>),
}

/// `B` stands for a blob that the kernel was given, which it can use until this is dropped.
pub(super) struct Handles<B> {
    files: Mutex<HashMap<Ino, OpenFile<B>>>,
}

struct OpenFile<B> {
    handles: u64,
    given: Option<Arc<B>>,
}

impl<B> Default for Handles<B> {
    fn default() -> Self {
        Handles { files: Mutex::default() }
    }
}

impl<B> Handles<B> {
    /// One more handle of a file. If it is the first, `give` is asked to give its blob to the kernel; otherwise `hold`
    /// is told that we read it.
    pub(super) fn open(&self, ino: Ino, give: impl FnOnce() -> Option<B>, hold: impl FnOnce()) -> Opened<B> {
        let mut files = self.files.lock();
        let file = files.entry(ino).or_insert_with(|| {
            let given = give().map(Arc::new);
            if given.is_none() {
                hold();
            }
            OpenFile { handles: 0, given }
        });
        file.handles += 1;
        match &file.given {
            Some(blob) => Opened::Given(blob.clone()),
            None => Opened::Kept,
        }
    }

    /// One less. If it was the last of a file that we read, `let_go` is told. The kernel has left the file before it
    /// says so.
    pub(super) fn close(&self, ino: Ino, let_go: impl FnOnce()) {
        let mut files = self.files.lock();
        let Some(file) = files.get_mut(&ino) else { return };
        file.handles -= 1;
        if file.handles == 0 {
            let file = files.remove(&ino);
            if file.is_some_and(|file| file.given.is_none()) {
                let_go();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: Ino = Ino(7);

    /// What an open came to, with the number that stands for the blob.
    fn open(handles: &Handles<u32>, give: Option<u32>, held: &mut u32) -> Option<u32> {
        match handles.open(INO, || give, || *held += 1) {
            Opened::Given(blob) => Some(*blob),
            Opened::Kept => None,
            Opened::Free => unreachable!(),
        }
    }

    #[test]
    fn the_first_handle_says_how_a_file_is_read_until_the_last_is_closed() {
        let handles = Handles::default();
        let mut held = 0;
        assert_eq!(open(&handles, None, &mut held), None);
        // It is complete in the meantime.
        assert_eq!(open(&handles, Some(1), &mut held), None);
        assert_eq!(held, 1);
        handles.close(INO, || panic!("one handle is open"));
        assert_eq!(open(&handles, Some(2), &mut held), None);
        handles.close(INO, || panic!("one handle is open"));
        handles.close(INO, || held -= 1);
        assert_eq!(held, 0);

        assert_eq!(open(&handles, Some(3), &mut held), Some(3));
        assert_eq!(open(&handles, Some(4), &mut held), Some(3));
        assert_eq!(open(&handles, None, &mut held), Some(3));
        for _ in 0..3 {
            handles.close(INO, || panic!("we did not read it"));
        }
        assert_eq!(open(&handles, Some(5), &mut held), Some(5));
        assert_eq!(held, 0);
    }

    #[test]
    fn a_blob_is_taken_back_with_the_last_handle() {
        let handles = Handles::default();
        let blob = Arc::new(());
        handles.open(INO, || Some(blob.clone()), || unreachable!());
        handles.open(INO, || unreachable!(), || unreachable!());
        handles.close(INO, || unreachable!());
        assert_eq!(Arc::strong_count(&blob), 2);
        handles.close(INO, || unreachable!());
        assert_eq!(Arc::strong_count(&blob), 1);
    }
}
