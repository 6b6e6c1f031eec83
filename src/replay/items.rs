//! What a replay yields: an entry, and where its contents are.

use std::ops::Range;
use std::sync::Arc;

use crate::entry::Entry;
use crate::index::Place;

/// An entry, and where its contents are.
#[derive(Debug)]
pub struct Item {
    /// The entry, which has passed [`check`](crate::entry::check).
    pub entry: Box<Entry>,
    /// Where its stored bytes are.
    pub place: Place,
    /// The same bytes, where they are in memory anyway.
    pub bytes: Option<Bytes>,
    /// Of contents that did not arrive as a whole, the number of stored bytes that did.
    pub lost: Option<u64>,
}

impl Item {
    /// An entry whose contents are all at `place`.
    pub fn new(entry: Box<Entry>, place: Place) -> Self {
        Item { entry, place, bytes: None, lost: None }
    }

    /// An entry of whose contents only `received` bytes arrived.
    pub fn lost(entry: Box<Entry>, received: u64) -> Self {
        Item { lost: Some(received), ..Item::new(entry, Place::Empty) }
    }
}

/// A part of a chunk that has been read, shared with the others that lie in it.
#[derive(Clone, Debug)]
pub struct Bytes {
    chunk: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Bytes {
    /// The bytes of `chunk` in `range`, which must lie in it.
    pub fn new(chunk: Arc<Vec<u8>>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= chunk.len(), "{range:?} is not in its chunk");
        Bytes { chunk, range }
    }

    /// Identity and length of the chunk that is kept in memory for it; others may keep the same one.
    pub fn kept(&self) -> (usize, usize) {
        (Arc::as_ptr(&self.chunk) as usize, self.chunk.len())
    }

    /// The bytes themselves.
    pub fn get(&self) -> &[u8] {
        &self.chunk[self.range.clone()]
    }
}
