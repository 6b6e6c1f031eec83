//! What a mount received, once more: the entries of a spool's journal, or of an archive that is mounted in place, in the
//! order in which they came, each with where its contents are, and those contents.
//!
//! It works from descriptors in any process, and writes nothing. An entry is given when all of its contents are there; of
//! a catalogue, so that names mean in the end what they mean in the mount. Nothing is waited for: the caller knows how much
//! has been written.
//!
//! A journal is read in two layers: [`Records`] gives its frames, [`Journal`] makes [`Item`]s of them.

mod archive;
mod contents;
mod error;
mod handed;
mod items;
mod journal;
mod order;
mod records;

pub use archive::Archive;
pub use contents::{ArchiveFile, Contents, Proofs, Read};
pub use error::Error;
pub use handed::Distrust;
pub use items::{Bytes, Item};
pub use journal::Journal;
pub use records::{Records, Step};

use crate::entry::Entry;
use crate::tarball;

/// Where entries come from.
pub enum Replay {
    /// The journal of a spool.
    Journal(Box<Journal>),
    /// An archive that is mounted in place.
    Archive(Box<Archive>),
}

impl Replay {
    /// The entries of `contents` from the first one on; those of an archive decoded by `tar`. Where they are wanted without
    /// `strip` leading components, they come in an order in which what is left of their names means the right thing too.
    ///
    /// # Errors
    /// The size of the archive cannot be told.
    pub fn new(contents: &Contents, tar: tarball::Options, strip: usize) -> Result<Self, Error> {
        Ok(match contents {
            Contents::Spool { journal, proofs, .. } => {
                Replay::Journal(Box::new(Journal::new(journal.clone(), proofs.clone(), strip)))
            }
            Contents::Archive(archive) => Replay::Archive(Box::new(Archive::new(archive.file().clone(), tar)?)),
        })
    }

    /// Reads so much of a journal from now on. An archive is there as a whole.
    pub fn set_length(&mut self, length: u64) {
        match self {
            Replay::Journal(journal) => journal.set_length(length),
            Replay::Archive(_) => {}
        }
    }

    /// So much of a journal was written as a whole: what is broken behind it was broken off with its daemon, and ends the
    /// replay there.
    pub fn set_sound(&mut self, length: u64) {
        match self {
            Replay::Journal(journal) => journal.set_sound(length),
            Replay::Archive(_) => {}
        }
    }

    /// Whether the stream is over as it should be, as far as what has been read says.
    pub fn finished(&self) -> Option<bool> {
        match self {
            Replay::Journal(journal) => journal.finished(),
            Replay::Archive(archive) => archive.finished(),
        }
    }

    /// The next entry that is there as a whole. None when there is no other, by now.
    ///
    /// # Errors
    /// What it is read from is damaged, or cannot be read.
    pub fn next_item(&mut self) -> Result<Option<Item>, Error> {
        match self {
            Replay::Journal(journal) => journal.next_item(),
            Replay::Archive(archive) => Ok(archive.next_item()?),
        }
    }

    /// A file that is arriving as the only one, and the number of its blob.
    pub fn arriving(&self) -> Option<(&Entry, u64)> {
        match self {
            Replay::Journal(journal) => journal.arriving(),
            Replay::Archive(_) => None,
        }
    }

    /// How much of the spool, or of the archive, has been read or passed over.
    pub fn position(&self) -> u64 {
        match self {
            Replay::Journal(journal) => journal.position(),
            Replay::Archive(archive) => archive.position(),
        }
    }

    /// One after the other, what is not there as a whole, and will never be.
    pub fn rest(&mut self) -> Option<Item> {
        match self {
            Replay::Journal(journal) => journal.rest(),
            Replay::Archive(_) => None,
        }
    }
}
