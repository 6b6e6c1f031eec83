//! The tree out of what a daemon that is gone has left in its spool.
//!
//! The journal is replayed as far as its checksums go. What the kernel has taken is there as long as the machine stays up,
//! so after a killed daemon only a torn last record is dropped; after another boot nothing behind the last durable point
//! counts. Of a file that was being written, as much is shown as its checksums prove.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Store;
use super::intake::{Blob, FileRef};
use super::settle::{Unsettled, paths};
use crate::entry::{Entry, EntryKind, EntryPath, escape};
use crate::index::insert::{Inserted, Refusal};
use crate::index::{Arrival, Index, Ino, Place};
use crate::monitor::{Chain, Monitor, Verdict};
use crate::proof::{EXTENT, Reader, Sums};
use crate::record::{self, Record};
use crate::replay::{Records, Step};
use crate::spool::{About, Spool};
use crate::stop::Stop;

/// Contents are read back in pieces of this size.
const PIECE: usize = 1 << 20;

/// Steps of the journal between two looks at what may end a recovery.
const STEPS: u64 = 4096;

/// What is to be recovered.
pub struct Job {
    /// An empty tree, with the spool.
    pub store: Arc<Store>,
    /// Is told of entries and problems.
    pub monitor: Arc<Monitor>,
    /// Ends it early.
    pub stop: Stop,
    /// The most memory that the index may take, in bytes.
    pub max_index: u64,
    /// Whether the machine has been up since the spool was filled.
    pub same_boot: bool,
}

/// Why a spool cannot be recovered.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The disk failed.
    #[error("cannot read the spool '{spool}'")]
    Read {
        /// Where it is.
        spool: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It was stopped.
    #[error("recovery was stopped")]
    Stopped,
    /// There is no more memory for the index.
    #[error("the index has reached its limit of {} MiB (--max-index)", .0 >> 20)]
    Full(u64),
    /// There is no spool.
    #[error("there is no spool")]
    NoSpool,
    /// It is to be filled from an archive, and is of a sender.
    #[error("the spool holds what 'restorefs send' sent: resume it with --listen and the same --token-file")]
    OfSender,
    /// It is to be filled by a sender, and is of an archive.
    #[error("the spool holds an archive, and no sender filled it: resume it with the archive")]
    OfArchive,
    /// Its disk has lost what came last.
    #[error(
        "the spool has lost contents of '{first}'{}: its disk failed; what is left of it can be mounted without --resume",
        if *.files == 1 { String::new() } else { format!(" and of {} more", .files - 1) }
    )]
    Damaged {
        /// How many files.
        files: usize,
        /// The first of them.
        first: String,
    },
    /// Nothing is missing.
    #[error("the spool has all of its archive already: mount it without --resume")]
    Finished,
    /// It cannot be filled further.
    #[error("cannot go on filling the spool '{spool}'")]
    Write {
        /// Where it is.
        spool: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

impl Lost {
    /// How a stream ends that cannot be resumed.
    pub fn verdict(&self) -> Verdict {
        match self {
            Lost::Stopped => Verdict::Incomplete { cause: self.to_string(), cut: None },
            e => Verdict::Failed { cause: Chain(e).to_string() },
        }
    }
}

/// How a spool is to be filled further.
#[derive(Debug)]
pub struct Resume {
    /// What it says of itself.
    pub about: About,
    /// Where it is mounted now.
    pub mountpoint: PathBuf,
    /// Whether a sender fills it, and no archive.
    pub of_sender: bool,
}

/// A file whose contents are in a blob, of which a part is there.
#[derive(Debug)]
pub struct Part {
    /// Its inode.
    pub ino: Ino,
    /// The blob.
    pub number: u64,
    /// Whether its stored bytes follow each other there.
    pub packed: bool,
    /// Checksums of what is there.
    pub sums: Sums,
    /// Extents whose checksums stay in the journal when it is filled further.
    recorded: u64,
}

/// What the journal told.
#[derive(Debug, Default)]
pub struct Found {
    /// Whether contents followed their entries in any order.
    pub is_catalogue: bool,
    /// How the stream ended, where it did: whether its end marker came.
    pub finished: Option<bool>,
    /// Whether a durable point behind that end says that all of it is on the disk.
    is_settled: bool,
    /// The inode of each entry; none of hard links, and of what was refused.
    pub entries: Vec<Option<Ino>>,
    /// What the sender of a catalogue knows each entry by; 0 where that was not recorded.
    pub digests: Vec<u64>,
    /// Files whose contents had begun, by their entries.
    pub parts: BTreeMap<u64, Part>,
    /// The blobs that the journal tells of.
    pub blobs: HashSet<u64>,
    /// Paths of what was refused, as far as only the journal tells of it.
    pub refused: Vec<Vec<u8>>,
    /// Problems that the journal tells of behind the last entry, and that whoever reads the stream again finds again.
    pub problems: u64,
    /// The path of the last entry.
    pub last: Option<EntryPath>,
    /// Bytes at the end of the journal that do not count.
    pub dropped: u64,
}

/// Recovers what is there, to be read only, and tells the monitor how it stands.
pub fn run(job: Job) {
    let (store, monitor) = (job.store.clone(), job.monitor.clone());
    store.fill(&monitor, || {
        let same_boot = job.same_boot;
        let recovered = job.store.recover(&job, false);
        job.store.conclude(&job.monitor, recovered, same_boot);
    });
}

struct Recovery<'a> {
    store: &'a Store,
    spool: &'a Spool,
    monitor: &'a Monitor,
    found: Found,
    /// What came of files that are not over, by their entries.
    open: BTreeMap<u64, Open>,
    /// Files in blobs that were over behind the last durable point.
    unsynced: Vec<Unsynced>,
    /// Where the stream ended.
    finish_at: u64,
    go_on: bool,
}

/// A file in a blob of which it is not known whether the disk has taken it: a daemon that was told of an error may not have
/// been able to write it down.
struct Unsynced {
    /// Where the journal says that it is over.
    at: u64,
    ino: Ino,
    number: u64,
    packed: bool,
    received: u64,
}

/// A blob, and its checksums as they came.
struct Open {
    number: u64,
    packed: bool,
    sums: Vec<u8>,
    /// Extents whose checksums stand before the cut, and the stored bytes that are told of behind it.
    recorded: Option<u64>,
    received: Option<u64>,
}

impl Store {
    /// Replays the journal of the spool into the empty tree. If it is to `go_on`, files that are not whole are still
    /// awaited, and an early end does not count.
    ///
    /// # Errors
    /// See [`Lost`]. What had been replayed before is in the tree.
    pub fn recover(&self, job: &Job, go_on: bool) -> Result<Found, Lost> {
        let spool = self.spool().ok_or(Lost::NoSpool)?;
        let read = |cause| Lost::Read { spool: spool.path().display().to_string(), cause };
        let length = spool.left_length();
        // What the disk has not taken may still be in memory, for a while.
        spool.forget_cached(spool.journal());
        let journal = Arc::new(spool.journal().try_clone().map_err(read)?);
        let counts =
            if job.same_boot { length } else { last_durable(Records::new(journal.clone(), length)).map_err(read)? };
        let mut records = Records::new(journal, counts);
        let mut recovery = Recovery {
            store: self,
            spool,
            monitor: &job.monitor,
            found: Found::default(),
            open: BTreeMap::new(),
            unsynced: Vec::new(),
            finish_at: 0,
            go_on,
        };
        let mut upto = 0;
        for steps in 1_u64.. {
            if job.stop.is_stopped() {
                return Err(Lost::Stopped);
            }
            if steps.is_multiple_of(STEPS) {
                // Who follows the journal is never told of what does not count.
                spool.found_until(upto);
            }
            if steps.is_multiple_of(STEPS) && self.index.read().memory() > job.max_index {
                return Err(Lost::Full(job.max_index));
            }
            match records.next_step().map_err(read)? {
                Step::Record { record: Record::Cut, .. } if go_on => {
                    recovery.behind_cut(&mut records).map_err(read)?;
                    break;
                }
                // Whether a sender has more is for it to say.
                Step::Record { record: Record::Finish { .. }, .. } if go_on && recovery.found.is_catalogue => break,
                Step::Record { at, record, bytes, .. } => {
                    recovery.take(record, at, bytes.get());
                    upto = records.position();
                    if !go_on {
                        job.monitor.add_source_bytes(upto - at);
                    }
                }
                Step::End | Step::Torn | Step::Damaged => break,
            }
        }
        spool.found_until(upto);
        recovery.found.dropped = length - upto;
        if job.same_boot {
            recovery.check_unsynced()?;
        }
        recovery.end_open();
        Ok(recovery.found)
    }

    /// Recovers what is there, and makes the spool this process's own, to be filled further.
    ///
    /// # Errors
    /// See [`Lost`]. What had been recovered before is in the tree.
    pub fn resume(&self, job: &Job, resume: Resume) -> Result<Found, Lost> {
        let spool = self.spool().ok_or(Lost::NoSpool)?;
        let found = self.recover(job, true)?;
        match (found.is_catalogue, resume.of_sender) {
            (true, false) => return Err(Lost::OfSender),
            (false, true) if !found.entries.is_empty() => return Err(Lost::OfArchive),
            _ if found.finished == Some(true) => return Err(Lost::Finished),
            _ => {}
        }
        // What stood behind the cut.
        let mut frames = Vec::new();
        for (&id, part) in found.parts.iter().filter(|(_, part)| part.recorded < part.sums.whole()) {
            let sums = part.sums.encode(part.recorded, false);
            record::encode(&Record::Sums { id, first: part.recorded }, &sums, &mut frames);
        }
        spool
            .take_over(resume.about, &resume.mountpoint, &frames, |number| found.blobs.contains(&number))
            .map_err(|cause| Lost::Write { spool: spool.path().display().to_string(), cause })?;
        Ok(found)
    }

    /// Goes on with the blob of a file of which a part is there.
    ///
    /// # Errors
    /// [`Lost::Write`].
    pub fn reopen(&self, part: Part, file: FileRef) -> Result<Blob, Lost> {
        let spool = self.spool().ok_or(Lost::NoSpool)?;
        let (size, map) = {
            let index = self.index.read();
            (index.attributes(part.ino).map_or(0, |a| a.size), index.sparse(part.ino).cloned())
        };
        let received = part.sums.covered();
        let spooled = spool
            .reopen_blob(part.number, part.sums, map.is_some() && !part.packed)
            .map_err(|cause| Lost::Write { spool: spool.path().display().to_string(), cause })?;
        Ok(Blob::resume(file, spooled, size, map, received))
    }

    /// Nothing more comes: what is not whole is cut, and the monitor hears how it ended.
    fn conclude(&self, monitor: &Monitor, recovered: Result<Found, Lost>, same_boot: bool) {
        let mut refused = Vec::new();
        self.index.write().finish(&mut |path, refusal| refused.push((path.clone(), refusal)));
        for (path, refusal) in refused {
            monitor.refused(path.as_bytes(), refusal);
        }
        let (verdict, trust) = match recovered {
            Ok(found) => (self.verdict(&found, same_boot), found.is_settled || !same_boot || found.finished.is_none()),
            Err(e) => (e.verdict(), true),
        };
        self.cut();
        monitor.settling();
        // Whoever was to bring it to the disk may have failed, and the kernel tells that once.
        let settled = if trust { self.settle(monitor) } else { self.settle_by_reading(monitor) };
        let verdict = match settled {
            Ok(()) => verdict,
            Err(Unsettled::Abandoned) if verdict != Verdict::Complete => verdict,
            Err(e) => verdict.and_failed(Chain(&e).to_string()),
        };
        monitor.end(verdict);
    }

    fn verdict(&self, found: &Found, same_boot: bool) -> Verdict {
        let index = self.index.read();
        let is_cut = || found.entries.iter().flatten().any(|ino| is_missing(&index, *ino));
        let mut cause = match found.finished {
            Some(true) if !is_cut() => return Verdict::Complete,
            Some(true) => "the transfer was over, but not all of it is in the spool".to_owned(),
            Some(false) => "the transfer had ended early".to_owned(),
            None if same_boot => "the daemon was killed before the transfer was over".to_owned(),
            None => "the machine went down before the transfer was over".to_owned(),
        };
        match &found.last {
            Some(last) if !found.is_catalogue => cause.push_str(&format!("; the last entry is '{last}'")),
            Some(_) => {}
            None => cause.push_str("; no entry had arrived"),
        }
        if found.is_catalogue {
            let missing = found.entries.iter().flatten().filter(|ino| index.arrival(**ino) != Some(Arrival::Complete));
            let missing = missing.count();
            cause.push_str(&format!(
                "; {missing} {} missing or cut",
                if missing == 1 { "file is" } else { "files are" }
            ));
        }
        // The last one that is there in part.
        let cut = found.entries.iter().rev().flatten().find(|ino| {
            matches!(
                index.arrival(**ino),
                Some(Arrival::Arriving { received: 1.. } | Arrival::Truncated { received: 1.. })
            )
        });
        let last = found.entries.last().copied().flatten().filter(|_| !found.is_catalogue);
        let last = last.filter(|ino| index.arrival(*ino) != Some(Arrival::Complete));
        let cut = last.or(cut.copied());
        let cut = cut.and_then(|ino| paths(&index, [ino].into()).pop()).map(|path| escape(&path));
        Verdict::Incomplete { cause, cut }
    }
}

/// Whether a file that has a name has not arrived as a whole.
fn is_missing(index: &Index, ino: Ino) -> bool {
    index.arrival(ino) != Some(Arrival::Complete) && index.attributes(ino).is_some_and(|a| a.nlink > 0)
}

/// The checksums of so many stored bytes or, where those of all of them are not there, of the extents that are whole. Of
/// what a sender hashed otherwise than it came, an end tells less than the checksums.
fn sums_until(encoded: &[u8], received: u64) -> Sums {
    let whole = received / EXTENT;
    let first = || usize::try_from(whole * 4).ok().and_then(|len| encoded.get(..len));
    Sums::decode(encoded, received).or_else(|| Sums::decode(first()?, whole * EXTENT)).unwrap_or_default()
}

/// Where the last durable point says that everything before is on the disk.
fn last_durable(mut records: Records) -> io::Result<u64> {
    let mut durable = 0;
    loop {
        match records.next_step()? {
            Step::Record { at, record: Record::Durable { upto }, .. } if upto <= at => durable = upto,
            Step::Record { .. } => {}
            Step::End | Step::Torn | Step::Damaged => return Ok(durable),
        }
    }
}

impl Recovery<'_> {
    /// What is told behind a cut is going to be dropped; how far blobs are is true all the same.
    fn behind_cut(&mut self, records: &mut Records) -> io::Result<()> {
        for open in self.open.values_mut() {
            open.recorded = Some(open.sums.len() as u64 / 4);
        }
        while let Step::Record { record, bytes, .. } = records.next_step()? {
            match record {
                Record::Sums { id, first } => self.sums(id, first, bytes.get()),
                Record::End { id, received, .. } => {
                    if let Some(open) = self.open.get_mut(&id) {
                        open.received = Some(received);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn sums(&mut self, id: u64, first: u64, bytes: &[u8]) {
        if let Some(open) = self.open.get_mut(&id)
            && !Sums::join(&mut open.sums, first, bytes)
        {
            // What is read without them is refused.
            open.sums.clear();
        }
    }

    /// Takes the record at `at` of the journal.
    fn take(&mut self, record: Record, at: u64, bytes: &[u8]) {
        match record {
            Record::Entry(entry) => self.entry(*entry),
            Record::Data { id, offset: 0 } => self.data(id, at, bytes.len() as u64),
            Record::Blob { id, number, packed } => self.blob(id, number, packed),
            Record::Sums { id, first } => self.sums(id, first, bytes),
            Record::End { id, received, complete } => self.end(id, at, received, complete),
            Record::Finish { complete } => {
                self.found.finished = Some(complete);
                self.finish_at = at;
            }
            Record::Durable { upto } if upto <= at => {
                self.found.is_settled |= self.found.finished.is_some() && upto > self.finish_at;
                self.unsynced.retain(|file| file.at >= upto);
            }
            Record::Catalogue => self.found.is_catalogue |= self.found.entries.is_empty(),
            Record::Changed { id } => {
                if let Some(ino) = self.ino(id) {
                    self.store.index.write().set_changed(ino);
                }
            }
            Record::Digests { first } => {
                let digests = bytes.as_chunks::<8>().0.iter().map(|digest| u64::from_le_bytes(*digest));
                // Those of a batch that was torn are missing.
                let entries = self.found.entries.len();
                if let Ok(first) = usize::try_from(first)
                    && first <= entries
                {
                    self.found.digests.resize(first, 0);
                    self.found.digests.extend(digests.take(entries - first));
                }
            }
            // A stream that is read again brings its problems again.
            Record::Problem { path, .. } if self.go_on && !self.found.is_catalogue => {
                // What the spool could not hold of a file is no problem of the stream.
                let is_ours = self.found.last.as_ref().is_some_and(|last| last.as_bytes() == path);
                self.found.problems += u64::from(!is_ours);
            }
            Record::Problem { warning: true, path, reason } => self.monitor.warning(&path, reason),
            Record::Problem { path, reason, .. } => {
                self.monitor.refused(&path, reason);
                self.found.refused.push(path);
            }
            Record::Anew => {
                self.monitor.forget_problems();
                self.found.refused.clear();
            }
            Record::Begin { .. } | Record::Data { .. } | Record::Durable { .. } | Record::Cut => {}
        }
    }

    /// Of a stream that is read again, the reader counts.
    fn add_bytes(&self, bytes: u64) {
        if !self.go_on || self.found.is_catalogue {
            self.monitor.add_bytes(bytes);
        }
    }

    fn ino(&self, id: u64) -> Option<Ino> {
        self.found.entries.get(usize::try_from(id).ok()?).copied().flatten()
    }

    fn entry(&mut self, entry: Entry) {
        let mut refused: Vec<(EntryPath, Refusal)> = Vec::new();
        let inserted = self.store.index.write().insert(&entry, &mut |late| {
            if let Err(refusal) = late.bound {
                refused.push((late.link.clone(), refusal));
            }
        });
        let is_link = matches!(entry.kind, EntryKind::HardLink { .. });
        let ino = match inserted {
            Ok(Inserted::Bound(ino)) => Some(ino).filter(|_| !is_link),
            Ok(Inserted::Waits) => None,
            Err(refusal) => {
                refused.push((entry.path.clone(), refusal));
                None
            }
        };
        self.monitor.add_entries(u64::from(inserted.is_ok()));
        for (path, refusal) in refused {
            self.monitor.refused(if path.is_root() { b"." } else { path.as_bytes() }, refusal);
        }
        self.found.entries.push(ino);
        self.found.problems = 0;
        self.found.last = Some(entry.path);
    }

    /// The inode of a file, and its stored bytes, where it has some and nothing of them has come.
    fn awaited(&self, id: u64) -> Option<(Ino, u64)> {
        let ino = self.ino(id)?;
        let index = self.store.index.read();
        let stored = index.attributes(ino)?.stored;
        (stored > 0 && index.arrival(ino) == Some(Arrival::Announced) && !self.open.contains_key(&id))
            .then_some((ino, stored))
    }

    /// The contents of a small file, or all that came of them, are in the record at `at`.
    fn data(&mut self, id: u64, at: u64, length: u64) {
        self.add_bytes(length);
        let Some((ino, stored)) = self.awaited(id).filter(|(_, stored)| length <= *stored) else { return };
        self.store.index.write().set_place(ino, Place::Journal(at));
        self.arrived(ino, if length == stored { Arrival::Complete } else { Arrival::Arriving { received: length } });
    }

    /// A blob is of one file alone.
    fn blob(&mut self, id: u64, number: u64, packed: bool) {
        if !self.found.blobs.insert(number) {
            return;
        }
        self.spool.found_blob(number);
        if let Some((ino, _)) = self.awaited(id) {
            self.open.insert(id, Open { number, packed, sums: Vec::new(), recorded: None, received: None });
            self.store.index.write().set_place(ino, Place::in_blob(number, packed));
        }
    }

    /// No more of an entry's contents came, says the record at `at` of the journal.
    fn end(&mut self, id: u64, at: u64, received: u64, complete: bool) {
        let Some(ino) = self.ino(id) else { return };
        let Some(Open { number, packed, sums, .. }) = self.open.remove(&id) else {
            let there = match self.store.index.read().arrival(ino) {
                Some(Arrival::Arriving { received }) => received,
                _ => 0,
            };
            if !complete {
                self.arrived(ino, Arrival::Truncated { received: there.min(received) });
            }
            return;
        };
        let stored = self.store.index.read().attributes(ino).map_or(0, |a| a.stored);
        let received = received.min(stored);
        let sums = sums_until(&sums, received);
        if complete && sums.covered() == stored {
            self.add_bytes(stored);
            self.spool.set_sums(number, sums);
            self.unsynced.push(Unsynced { at, ino, number, packed, received: stored });
            return self.arrived(ino, Arrival::Complete);
        }
        let proved = sums.first(self.proved(ino, number, packed, sums.clone()));
        let received = proved.covered();
        self.add_bytes(received);
        self.spool.set_sums(number, proved);
        self.arrived(ino, Arrival::Truncated { received });
    }

    fn arrived(&self, ino: Ino, arrival: Arrival) {
        self.store.index.write().set_arrival(ino, arrival);
        self.store.notify(ino);
    }

    /// Reads back what may not be on the disk. What is lost of it counts as damaged.
    fn check_unsynced(&mut self) -> Result<(), Lost> {
        let mut lost = BTreeSet::new();
        let unsynced = std::mem::take(&mut self.unsynced);
        // Memory fails no sync.
        for file in unsynced.into_iter().filter(|_| !self.spool.is_in_memory()) {
            if self.store.index.read().attributes(file.ino).is_some_and(|a| a.nlink == 0) {
                continue;
            }
            let sums = self.spool.sums(file.number).map(|sums| sums.lock().clone()).unwrap_or_default();
            if self.proved(file.ino, file.number, file.packed, sums) < file.received {
                lost.insert(file.ino);
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        if self.go_on {
            let first = paths(&self.store.index.read(), lost.clone()).into_iter().next().unwrap_or_default();
            return Err(Lost::Damaged { files: lost.len(), first: escape(&first) });
        }
        self.store.damaged.lock().extend(lost);
        Ok(())
    }

    /// Files whose contents had begun have as much as their checksums prove.
    fn end_open(&mut self) {
        for (id, Open { number, packed, sums, recorded, received }) in std::mem::take(&mut self.open) {
            let Some(ino) = self.ino(id) else { continue };
            let stored = self.store.index.read().attributes(ino).map_or(0, |a| a.stored);
            let told = sums.len() as u64 / 4;
            // Where its end is not told, the last one may be of less than an extent.
            let sums = sums_until(&sums, received.unwrap_or(told.min(stored / EXTENT) * EXTENT).min(stored));
            let sums = sums.first(self.proved(ino, number, packed, sums.clone()));
            let received = sums.covered();
            self.add_bytes(received);
            self.spool.set_sums(number, sums.clone());
            // Nothing more comes of what was replaced.
            if !self.go_on || self.store.index.read().attributes(ino).is_none_or(|a| a.nlink == 0) {
                self.arrived(ino, Arrival::Truncated { received });
                continue;
            }
            self.arrived(ino, Arrival::Arriving { received });
            let recorded = recorded.unwrap_or(told).min(sums.whole());
            self.found.parts.insert(id, Part { ino, number, packed, sums, recorded });
        }
    }

    /// How many stored bytes of a blob are those that its checksums tell of.
    fn proved(&self, ino: Ino, number: u64, packed: bool, sums: Sums) -> u64 {
        let Ok(file) = self.spool.open_blob(number) else { return 0 };
        let map = self.store.index.read().sparse(ino).cloned().filter(|_| !packed);
        let covered = sums.covered();
        self.spool.forget_cached(&file);
        let sums = parking_lot::Mutex::new(sums);
        let mut reader = Reader::new(&file, map.as_deref(), &sums);
        let mut buf = vec![0; PIECE.min(usize::try_from(covered).unwrap_or(PIECE))];
        let mut at = 0;
        let mut step = PIECE as u64;
        while at < covered {
            let piece = step.min(covered - at);
            match reader.read(&mut buf[..piece as usize], at) {
                Ok(()) => at += piece,
                // To the extent that is wrong.
                Err(_) if step > EXTENT => step = EXTENT,
                Err(_) => break,
            }
        }
        at
    }
}
