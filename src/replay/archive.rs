//! The entries of an archive that is mounted in place, decoded once more.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::items::{Bytes, Item};
use crate::entry::Entry;
use crate::index::Place;
use crate::tarball::{Decoder, End, Event, Options};

/// So much is read at a time.
const CHUNK: usize = 1 << 20;

/// An archive that is mounted in place.
pub struct Archive {
    file: Arc<File>,
    size: u64,
    decoder: Decoder,
    /// Where `chunk` ends.
    at: u64,
    chunk: Arc<Vec<u8>>,
    used: usize,
    over: bool,
    finished: Option<bool>,
}

impl Archive {
    /// Reads `file` from its beginning.
    pub fn new(file: Arc<File>, options: Options) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Archive {
            file,
            size,
            decoder: Decoder::new(options),
            at: 0,
            chunk: Arc::default(),
            used: 0,
            over: false,
            finished: None,
        })
    }

    /// The next entry; of contents behind the end of the file, what there is of them is told.
    pub fn next_item(&mut self) -> io::Result<Option<Item>> {
        while !self.over {
            let chunk = self.chunk.clone();
            let mut input = &chunk[self.used..];
            let event = self.decoder.step(&mut input);
            self.used = chunk.len() - input.len();
            match event {
                Ok(Some(Event::Entry { entry, offset })) => return Ok(Some(self.item(entry, offset))),
                // What is refused or mended has been told by the mount, and so has how it ends.
                Ok(Some(Event::EndOfArchive)) => (self.over, self.finished) = (true, Some(true)),
                Err(_) => (self.over, self.finished) = (true, Some(false)),
                Ok(Some(_)) => {}
                Ok(None) if self.read_more()? => {}
                Ok(None) => {
                    let is_complete = matches!(self.decoder.finish(), End::Complete | End::LoneZeroBlock);
                    (self.over, self.finished) = (true, Some(is_complete));
                }
            }
        }
        Ok(None)
    }

    /// Whether the archive is over as it should be, as far as it has been read.
    pub fn finished(&self) -> Option<bool> {
        self.finished
    }

    /// How much of the archive has been read or passed over.
    pub fn position(&self) -> u64 {
        self.at
    }

    fn item(&self, entry: Box<Entry>, offset: u64) -> Item {
        let stored = entry.kind.stored_len();
        if stored == 0 {
            return Item::new(entry, Place::Empty);
        }
        if offset.saturating_add(stored) > self.size {
            return Item::lost(entry, self.size.saturating_sub(offset));
        }
        let begin = offset.checked_sub(self.at - self.chunk.len() as u64).and_then(|begin| usize::try_from(begin).ok());
        let range = begin.map(|begin| begin..begin.saturating_add(stored as usize));
        let bytes =
            range.filter(|range| range.end <= self.chunk.len()).map(|range| Bytes::new(self.chunk.clone(), range));
        Item { bytes, ..Item::new(entry, Place::Archive(offset)) }
    }

    fn read_more(&mut self) -> io::Result<bool> {
        let skip = self.decoder.skippable().min(self.size.saturating_sub(self.at));
        self.decoder.skip(skip);
        self.at += skip;
        let mut chunk = vec![0; CHUNK];
        let n = self.file.read_at(&mut chunk, self.at)?;
        chunk.truncate(n);
        (self.chunk, self.used) = (Arc::new(chunk), 0);
        self.at += n as u64;
        Ok(n > 0)
    }
}
