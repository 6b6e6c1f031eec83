//! Whether the spool has everything: asked once at the end, before anybody is told "complete", and later by a scrub.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Store;
use crate::entry::SparseMap;
use crate::index::{Arrival, Index, Ino, Kind, Place};
use crate::monitor::Monitor;
use crate::proof::Reader;
use crate::record::{self, Record};
use crate::spool::Spool;

/// Contents are read back in pieces of this size.
const PIECE: usize = 1 << 20;

/// Why the spool is not known to have everything.
#[derive(Debug, thiserror::Error)]
pub enum Unsettled {
    /// Files in it are damaged: each is named by the monitor.
    #[error(
        "the spool '{spool}' has lost contents of {files} {noun} ('restorefs status' names each): its disk failed, or \
         something else removed or changed what is in it",
        noun = if *.files == 1 { "file" } else { "files" }
    )]
    Damaged {
        /// Where the spool is.
        spool: String,
        /// How many.
        files: usize,
    },
    /// The journal, or the directory itself.
    #[error("the spool does not have everything")]
    Spool(#[source] io::Error),
    /// The mount was taken away meanwhile, and the spool goes with it.
    #[error("it was unmounted before everything was on the disk of the spool")]
    Abandoned,
}

/// What a scrub found.
#[derive(Debug)]
pub struct Scrubbed {
    /// Files whose contents were read back.
    pub files: u64,
    /// Stored bytes of these.
    pub bytes: u64,
    /// Paths of files that are damaged.
    pub damaged: Vec<Vec<u8>>,
    /// What is wrong with the journal, if anything.
    pub journal: Option<io::Error>,
}

/// Whether what has not reached the disk yet is brought there before it is read back. After an error syncfs(2) may return
/// while writes are in flight, and what is in flight stays in memory.
#[derive(Clone, Copy)]
enum Flush {
    First,
    No,
}

impl Flush {
    fn file(self, file: &File) {
        if let Flush::First = self {
            // Whether that fails does not matter: reading back decides.
            let _ = file.sync_data();
        }
    }
}

/// A file in the spool, as far as it has arrived.
struct Spooled {
    ino: Ino,
    place: Place,
    map: Option<Arc<SparseMap>>,
    size: u64,
    /// Stored bytes that it has, and that have arrived.
    stored: u64,
    received: u64,
}

impl Store {
    /// Whether everything in the spool is known to be on its disk, or lies in memory.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire) || self.spool.get().is_some_and(Spool::is_in_memory)
    }

    /// Whether what is stored of a file has been found damaged.
    pub fn is_damaged(&self, ino: Ino) -> bool {
        self.damaged.lock().contains(&ino)
    }

    /// Files that have been found damaged.
    pub fn damaged(&self) -> usize {
        self.damaged.lock().len()
    }

    /// Nobody will use the spool any more: it is about to be removed.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Whether the journal does not say yet that the stream is complete.
    pub(super) fn set_unfinished(&self, unfinished: bool) {
        self.unfinished.store(unfinished, Ordering::Release);
    }

    /// Writes what the end of the stream could not write.
    fn write_end(&self, spool: &Spool) -> Result<(), Unsettled> {
        if !self.unfinished.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut frame = Vec::new();
        record::encode(&Record::Finish { complete: true }, &[], &mut frame);
        spool.append(&frame, &|| true).map_err(|e| Unsettled::Spool(io::Error::other(e)))?;
        self.set_unfinished(false);
        Ok(())
    }

    fn check_wanted(&self) -> Result<(), Unsettled> {
        if self.abandoned.load(Ordering::Acquire) { Err(Unsettled::Abandoned) } else { Ok(()) }
    }

    /// Brings the spool to its disk, and makes sure that all of it is there: by name and length, and by reading it back
    /// where the disk reported an error or anything has been found damaged. To be called when nothing more is written. The
    /// monitor is given the path of each file that is damaged.
    ///
    /// # Errors
    /// [`Unsettled`] if anything is missing.
    pub fn settle(&self, monitor: &Monitor) -> Result<(), Unsettled> {
        self.settle_if(monitor, false)
    }

    /// The same, and everything is read back in any case, unless it lies in memory.
    ///
    /// # Errors
    /// As [`Store::settle`].
    pub(super) fn settle_by_reading(&self, monitor: &Monitor) -> Result<(), Unsettled> {
        self.settle_if(monitor, true)
    }

    fn settle_if(&self, monitor: &Monitor, doubted: bool) -> Result<(), Unsettled> {
        let Some(spool) = self.spool.get() else { return Ok(()) };
        self.check_wanted()?;
        self.write_end(spool)?;
        let synced = spool.sync();
        self.check_wanted()?;
        // Not before the sync, which takes its time.
        spool.check().map_err(Unsettled::Spool)?;
        let before = self.damaged.lock().clone();
        let mut damaged = self.absent(spool);
        if let Err(e) = &synced {
            log::warn!(
                "the disk of the spool '{}' reports an error: {e}; everything is read back",
                spool.path().display()
            );
        }
        if doubted && !spool.is_in_memory() || synced.is_err() || !damaged.is_empty() || !before.is_empty() {
            self.scrub_spool(spool, &mut damaged, Flush::First, |_, _| self.check_wanted().is_ok());
            self.check_wanted()?;
            spool.check_journal().map_err(Unsettled::Spool)?;
        }
        let damaged = self.learn(&before, &damaged);
        if damaged.is_empty() {
            let replaced = self.replaced();
            match spool.make_durable() {
                Ok(()) => self.give_back(replaced),
                Err(e) => {
                    log::warn!("the spool '{}' would not outlive a power failure: {e}", spool.path().display());
                }
            }
            self.settled.store(true, Ordering::Release);
            return Ok(());
        }
        let files = damaged.len();
        for path in paths(&self.index.read(), damaged) {
            monitor.refused(&path, "its contents in the spool are damaged or gone");
        }
        Err(Unsettled::Damaged { spool: spool.path().display().to_string(), files })
    }

    /// Reads back everything that has arrived in the spool, from its disk where that is possible, until `go_on`, which is
    /// given the numbers of files and bytes so far, returns false. None where there is no spool.
    pub fn scrub(&self, mut go_on: impl FnMut(u64, u64) -> bool) -> Option<Scrubbed> {
        let spool = self.spool.get()?;
        let before = self.damaged.lock().clone();
        let mut damaged = self.absent(spool);
        let mut whole = true;
        let (files, bytes) = self.scrub_spool(spool, &mut damaged, Flush::No, |files, bytes| {
            whole = go_on(files, bytes);
            whole
        });
        self.learn(if whole { &before } else { &damaged }, &damaged);
        let journal = spool.check_journal().err();
        Some(Scrubbed { files, bytes, damaged: paths(&self.index.read(), damaged), journal })
    }

    /// What of `before` is not in `damaged` could be read: it is not damaged. What readers found meanwhile stays. Returns
    /// all that is known to be damaged.
    fn learn(&self, before: &BTreeSet<Ino>, damaged: &BTreeSet<Ino>) -> BTreeSet<Ino> {
        let mut known = self.damaged.lock();
        known.retain(|ino| !before.contains(ino) || damaged.contains(ino));
        known.extend(damaged);
        known.clone()
    }

    /// Complete files whose blobs are gone or cut.
    fn absent(&self, spool: &Spool) -> BTreeSet<Ino> {
        let mut absent = BTreeSet::new();
        self.each_spooled(|file| {
            let (number, least) = match file.place {
                Place::Blob(number) => (number, file.size),
                Place::Packed(number) => (number, file.stored),
                _ => return true,
            };
            if file.received == file.stored && !spool.has_blob(number, least) {
                absent.insert(file.ino);
            }
            true
        });
        absent
    }

    fn scrub_spool(
        &self,
        spool: &Spool,
        damaged: &mut BTreeSet<Ino>,
        flush: Flush,
        mut go_on: impl FnMut(u64, u64) -> bool,
    ) -> (u64, u64) {
        flush.file(spool.journal());
        spool.forget_cached(spool.journal());
        let mut buf = vec![0; PIECE];
        let (mut files, mut bytes) = (0, 0);
        self.each_spooled(|file| {
            if !damaged.contains(&file.ino)
                && let Err(e) = read_back(spool, &file, flush, &mut buf)
            {
                log::warn!("inode {} is damaged in the spool: {e}", file.ino.0);
                damaged.insert(file.ino);
            }
            files += 1;
            bytes += file.received;
            go_on(files, bytes)
        });
        (files, bytes)
    }

    /// Calls `each` for every file in the spool that has a name, until that returns false. The index is not locked meanwhile.
    fn each_spooled(&self, mut each: impl FnMut(Spooled) -> bool) {
        let last = self.index.read().inodes() as u64;
        for ino in (1..=last).map(Ino) {
            let spooled = spooled(&self.index.read(), ino);
            if spooled.is_some_and(|spooled| !each(spooled)) {
                break;
            }
        }
    }
}

/// The paths of files, a first name each.
pub(super) fn paths(index: &Index, mut of: BTreeSet<Ino>) -> Vec<Vec<u8>> {
    let mut paths = Vec::new();
    if !of.is_empty() {
        index.walk(&mut |path, ino| {
            if of.remove(&ino) {
                paths.push(path.to_vec());
            }
        });
    }
    paths
}

fn spooled(index: &Index, ino: Ino) -> Option<Spooled> {
    let attributes = index.attributes(ino).filter(|a| a.kind == Kind::File && a.nlink > 0)?;
    let place = index.place(ino)?;
    if !matches!(place, Place::Journal(_) | Place::Blob(_) | Place::Packed(_)) {
        return None;
    }
    let stored = attributes.stored;
    let received = match index.arrival(ino)? {
        Arrival::Announced => 0,
        Arrival::Arriving { received } | Arrival::Truncated { received } => received,
        Arrival::Complete => stored,
    };
    Some(Spooled { ino, place, map: index.sparse(ino).cloned(), size: attributes.size, stored, received })
}

fn read_back(spool: &Spool, file: &Spooled, flush: Flush, buf: &mut [u8]) -> io::Result<()> {
    let (number, map) = match &file.place {
        Place::Journal(at) => {
            let there = spool.read_data(*at, file.stored)?.len() as u64;
            return if there >= file.received { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        Place::Blob(number) => (*number, file.map.as_deref()),
        Place::Packed(number) => (*number, None),
        Place::Empty | Place::Archive(_) | Place::Memory(_) => return Ok(()),
    };
    let sums = spool.sums(number).ok_or(io::ErrorKind::NotFound)?;
    let blob: File = spool.open_blob(number)?;
    flush.file(&blob);
    spool.forget_cached(&blob);
    let mut reader = Reader::new(&blob, map, &sums);
    let mut at = 0;
    while at < file.received {
        let piece = buf.len().min(usize::try_from(file.received - at).unwrap_or(usize::MAX));
        reader.read(&mut buf[..piece], at)?;
        at += piece as u64;
    }
    Ok(())
}
