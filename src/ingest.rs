//! From a source into the store: read, decompress, decode, keep.
//!
//! Works chunk by chunk. Of each chunk the contents are written first, then the index is changed under one
//! short lock, then waiting readers are told: nobody ever sees an entry whose bytes are not there. Large files and
//! files with holes get a blob, small ones go into the journal, and those of a plain archive in a regular file
//! stay where they are.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use crate::entry::{Entry, EntryKind, EntryPath, SparseMap};
use crate::filter::{self, CHUNK, Chunks, is_plain_file};
use crate::index::{Arrival, Ino, Inserted, Place};
use crate::monitor::{Monitor, Receiving, Verdict};
use crate::record::{self, Record};
use crate::source::{Source, Stop};
use crate::spool::{self, BLOB_THRESHOLD, Blob, Spool};
use crate::store::Store;
use crate::tarball::{Decoder, End, Event, Options};

/// What is to be received.
pub struct Job {
    /// Where the bytes come from.
    pub source: Source,
    /// Where they go.
    pub store: Arc<Store>,
    /// Who is told.
    pub monitor: Arc<Monitor>,
    /// What ends it early.
    pub stop: Stop,
    /// How the archive is to be read.
    pub options: Options,
    /// The most memory that the index may take, in bytes.
    pub max_index: u64,
}

/// Receives until the stream is over, tells the monitor how it ended, and reads what follows the end
/// marker so that the sender can finish. A source that [`needs_spool`] needs the store to have one.
pub fn run(job: Job) {
    let (store, monitor) = (job.store.clone(), job.monitor.clone());
    // Whoever waits must be told, whatever happens here; a fault of ours must not make readers hang.
    if std::panic::catch_unwind(AssertUnwindSafe(|| receive(job))).is_err() {
        store.cut();
        monitor.end(Verdict::Failed { cause: "receiving ended with a panic: please report it".into() });
    }
}

fn receive(job: Job) {
    let Job { source, store, monitor, stop, options, max_index } = job;
    let mut ingest = Ingest {
        store: &store,
        monitor: &monitor,
        stop: &stop,
        decoder: Decoder::new(options),
        spool: store.spool(),
        ops: Vec::new(),
        frames: Vec::new(),
        entries: 0,
        taken: 0,
        told: 0,
        current: None,
        late: Vec::new(),
        max_index,
        over: false,
    };
    if let (true, Some(file)) = (is_plain_file(&source), source.file()) {
        let outcome = ingest.in_place(file, source.size().unwrap_or(0));
        ingest.conclude(outcome);
    } else {
        let seekable = source.file().is_some();
        let farewell = source.farewell();
        match Chunks::new(source, stop.clone(), monitor.clone()) {
            Ok(mut chunks) => {
                let outcome = ingest.stream(&mut chunks, seekable);
                ingest.conclude(outcome);
                farewell.say();
                ingest.drain(&mut chunks);
            }
            Err(e) => ingest.conclude(Err(Verdict::Failed { cause: format!("cannot start a thread: {e}") })),
        }
    }
}

/// Whether the contents of a source have to be kept somewhere, or can be read where they are.
pub fn needs_spool(source: &Source) -> bool {
    !is_plain_file(source)
}

struct Ingest<'a> {
    store: &'a Store,
    monitor: &'a Monitor,
    stop: &'a Stop,
    decoder: Decoder,
    /// None when the archive is mounted in place.
    spool: Option<&'a Spool>,
    /// Entries of this chunk, with what became of their contents in it.
    ops: Vec<(Box<Entry>, Fate)>,
    /// Records of this chunk.
    frames: Vec<u8>,
    /// Entries that the decoder brought.
    entries: u64,
    /// Entries that the index took, links that still wait for their target among them.
    taken: u64,
    /// Of these, the monitor knows so many.
    told: u64,
    current: Option<Current>,
    /// What is new of entries that were made visible with an earlier chunk.
    late: Vec<(Ino, Option<Place>, Arrival)>,
    max_index: u64,
    over: bool,
}

/// The file whose contents are arriving.
struct Current {
    id: u64,
    path: EntryPath,
    stored: u64,
    received: u64,
    keep: Keep,
    bound: Bound,
}

/// What became of an entry's contents in the chunk that it came with.
type Fate = Option<(Place, Arrival)>;

/// What the index said of an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    /// Its entry is still in the batch, the last one there.
    NotYet,
    To(Ino),
    Refused,
}

enum Keep {
    /// A small file: one record of the journal, once it is whole.
    Memory(Vec<u8>),
    Blob(Blob, Option<Arc<SparseMap>>),
    /// In the archive itself.
    Archive,
    /// The entry was refused.
    Nowhere,
}

/// How it goes on: a verdict when it does not.
type Outcome<T = ()> = Result<T, Verdict>;

impl Ingest<'_> {
    /// A plain archive in a regular file: contents are passed over.
    fn in_place(&mut self, file: &File, size: u64) -> Outcome {
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        loop {
            if self.stop.is_stopped() {
                return Err(incomplete("receiving was stopped"));
            }
            let skip = self.decoder.skippable().min(size.saturating_sub(at));
            if skip > 0 {
                let stored = self.decoder.skip(skip);
                self.progress(stored);
                at += skip;
                self.monitor.add_source_bytes(skip);
                self.monitor.add_bytes(skip);
            }
            let n = file.read_at(&mut chunk, at).map_err(|e| incomplete(format!("cannot read the archive: {e}")))?;
            self.monitor.add_source_bytes(n as u64);
            let ended = self.over;
            self.chunk(&chunk[..n])?;
            at += n as u64;
            // One chunk behind the end marker is enough to warn of what is there.
            if ended || n == 0 {
                return self.finish();
            }
        }
    }

    fn stream(&mut self, chunks: &mut Chunks, seekable: bool) -> Outcome {
        loop {
            match chunks.next_chunk() {
                Ok(Some(chunk)) => {
                    self.chunk(&chunk)?;
                    chunks.recycle(chunk);
                    // The rest of a file costs no waiting. Of a connection only the checksum is waited for.
                    if self.over && !seekable && chunks.is_whole() {
                        return self.finish();
                    }
                }
                Ok(None) => return self.finish(),
                Err(e) => {
                    let mut cause = e.to_string();
                    if self.over {
                        cause.push_str(
                            ", behind the end of the archive: every entry is there, but without its checksum",
                        );
                    }
                    return Err(match e {
                        filter::Error::Corrupt(_) => Verdict::Corrupt { cause, cut: None },
                        filter::Error::Read(_) => incomplete(format!("the source failed: {cause}")),
                        filter::Error::Stopped | filter::Error::Truncated(_) => incomplete(cause),
                    });
                }
            }
        }
    }

    /// Takes what follows the end marker.
    fn drain(&mut self, chunks: &mut Chunks) {
        loop {
            match chunks.next_chunk() {
                Ok(Some(chunk)) if self.over => {
                    if self.chunk(&chunk).is_err() {
                        return;
                    }
                    chunks.recycle(chunk);
                }
                // Behind a corrupt place nothing can be told; the sender is let go.
                Ok(_) | Err(filter::Error::Stopped | filter::Error::Read(_)) => return,
                Err(e) => {
                    if self.over {
                        self.monitor.warning(b"", format!("behind the end of the archive: {e}"));
                    }
                    return;
                }
            }
        }
    }

    /// Decodes a chunk and makes all of it visible.
    fn chunk(&mut self, mut input: &[u8]) -> Outcome {
        self.monitor.add_bytes(input.len() as u64);
        loop {
            match self.decoder.step(&mut input) {
                Ok(Some(event)) => self.event(event)?,
                Ok(None) => break,
                Err(stop) => {
                    self.commit()?;
                    return Err(Verdict::Corrupt { cause: stop.to_string(), cut: None });
                }
            }
        }
        self.commit()
    }

    fn event(&mut self, event: Event<'_>) -> Outcome {
        match event {
            Event::Entry { entry, offset } => self.entry(entry, offset)?,
            Event::Data(data) => self.data(data)?,
            Event::EntryEnd => self.entry_end(),
            Event::Refused { path, reason } => self.monitor.refused(&path, reason),
            Event::Warning { path, message } => self.monitor.warning(&path, message),
            Event::Label(label) => self.monitor.label(&label),
            Event::EndOfArchive => self.over = true,
        }
        Ok(())
    }

    fn entry(&mut self, entry: Box<Entry>, offset: u64) -> Outcome {
        let id = self.entries;
        self.entries += 1;
        let stored = entry.kind.stored_len();
        if self.spool.is_some() {
            if id == 0 {
                self.record(&Record::Begin { version: record::VERSION }, &[]);
            }
            // The record owns its entry while it is written; nothing is copied.
            let record = Record::Entry(entry);
            self.record(&record, &[]);
            let Record::Entry(entry) = record else { return Ok(()) };
            self.keep(entry, id, stored)
        } else {
            let place = (stored > 0).then_some((Place::Archive(offset), Arrival::Announced));
            self.begin(entry, id, stored, Keep::Archive, place);
            Ok(())
        }
    }

    fn begin(&mut self, entry: Box<Entry>, id: u64, stored: u64, keep: Keep, fate: Fate) {
        if stored > 0 {
            let path = entry.path.clone();
            self.current = Some(Current { id, path, stored, received: 0, keep, bound: Bound::NotYet });
        }
        self.ops.push((entry, fate));
    }

    fn keep(&mut self, entry: Box<Entry>, id: u64, stored: u64) -> Outcome {
        let (size, map) = match &entry.kind {
            EntryKind::File { size, sparse } => (*size, sparse.clone()),
            _ => (0, None),
        };
        let small = stored < BLOB_THRESHOLD && map.is_none();
        self.begin(entry, id, stored, Keep::Memory(Vec::new()), None);
        if small || stored == 0 {
            return Ok(());
        }
        // Whether it is refused is known first; then it may take room.
        self.commit()?;
        let (Some(spool), Some(current)) = (self.spool, &mut self.current) else { return Ok(()) };
        let Bound::To(ino) = current.bound else { return Ok(()) };
        match spool.create_blob(map.is_some().then_some(size), &|| self.stop.is_stopped()) {
            Ok(blob) => {
                let number = blob.number();
                current.keep = Keep::Blob(blob, map);
                self.store.index.write().set_place(ino, Place::Blob(number));
                self.record(&Record::Blob { id, number }, &[]);
                Ok(())
            }
            Err(spool::Error::Write { cause, .. }) if cause.kind() == std::io::ErrorKind::FileTooLarge => {
                current.keep = Keep::Nowhere;
                let path = current.path.as_bytes().to_vec();
                self.monitor.refused(&path, format!("its contents are left out: no file of {size} bytes: {cause}"));
                Ok(())
            }
            Err(e) => Err(failed(e)),
        }
    }

    fn data(&mut self, data: &[u8]) -> Outcome {
        let Some(current) = &mut self.current else { return Ok(()) };
        match &mut current.keep {
            Keep::Memory(bytes) => {
                if bytes.capacity() == 0 {
                    bytes.reserve_exact(current.stored.min(BLOB_THRESHOLD) as usize);
                }
                bytes.extend_from_slice(data);
            }
            Keep::Blob(blob, map) => {
                let Some(spool) = self.spool else { return Ok(()) };
                let stopped = || self.stop.is_stopped();
                match map {
                    None => spool.write_blob(blob, data, current.received, &stopped).map_err(failed)?,
                    Some(map) => {
                        let mut rest = data;
                        for segment in map.place(current.received, data.len() as u64) {
                            let (piece, after) = rest.split_at(segment.len as usize);
                            spool.write_blob(blob, piece, segment.offset, &stopped).map_err(failed)?;
                            rest = after;
                        }
                    }
                }
            }
            Keep::Archive | Keep::Nowhere => {}
        }
        self.progress(data.len() as u64);
        Ok(())
    }

    fn progress(&mut self, n: u64) {
        if let Some(current) = &mut self.current {
            current.received += n;
        }
    }

    fn entry_end(&mut self) {
        let Some(current) = self.current.take() else { return };
        let (place, arrival) = match current.keep {
            Keep::Memory(bytes) => (Some(self.journal_data(current.id, &bytes)), Arrival::Complete),
            Keep::Blob(..) => {
                self.record(&Record::End { id: current.id, received: current.stored, complete: true }, &[]);
                (None, Arrival::Complete)
            }
            Keep::Archive => (None, Arrival::Complete),
            Keep::Nowhere => (None, Arrival::Truncated { received: 0 }),
        };
        match current.bound {
            Bound::NotYet => {
                if let Some((_, fate)) = self.ops.last_mut() {
                    let before = fate.take().map(|(place, _)| place);
                    *fate = place.or(before).map(|place| (place, arrival));
                }
            }
            Bound::To(ino) => self.late.push((ino, place, arrival)),
            Bound::Refused => {}
        }
    }

    /// Where the contents of a small file will be when the batch is written.
    fn journal_data(&mut self, id: u64, bytes: &[u8]) -> Place {
        let base = self.spool.map_or(0, Spool::position);
        Place::Journal(base + record::encode(&Record::Data { id, offset: 0 }, bytes, &mut self.frames) as u64)
    }

    fn record(&mut self, record: &Record, bytes: &[u8]) {
        record::encode(record, bytes, &mut self.frames);
    }

    /// Writes what is gathered, then makes it visible, then tells who waits.
    fn commit(&mut self) -> Outcome {
        let written = match self.spool {
            Some(spool) if !self.frames.is_empty() => {
                let written = spool.append(&self.frames, &|| self.stop.is_stopped()).map_err(failed);
                self.frames.clear();
                written
            }
            _ => Ok(()),
        };
        // Entries whose contents could not be written are still shown; what is not there reads as an error.
        let lost = written.is_err();
        let mut refused = Vec::new();
        let mut told = Vec::new();
        let mut dropped = 0;
        let (memory, waiting) = {
            let mut index = self.store.index.write();
            let mut last = Bound::Refused;
            for (entry, fate) in self.ops.drain(..) {
                let inserted = index.insert(&entry, &mut |late| {
                    if let Err(refusal) = late.bound {
                        dropped += 1;
                        refused.push((late.link.clone(), refusal));
                    }
                });
                self.taken += u64::from(inserted.is_ok());
                last = match inserted {
                    Ok(Inserted::Bound(ino)) => {
                        match fate {
                            Some((Place::Journal(_), _)) if lost => {
                                index.set_arrival(ino, Arrival::Truncated { received: 0 });
                            }
                            Some((place, arrival)) => {
                                index.set_place(ino, place);
                                index.set_arrival(ino, arrival);
                            }
                            None => {}
                        }
                        Bound::To(ino)
                    }
                    Ok(Inserted::Waits) => Bound::Refused,
                    Err(refusal) => {
                        refused.push((entry.path, refusal));
                        Bound::Refused
                    }
                };
            }
            for (ino, place, arrival) in self.late.drain(..) {
                match place {
                    Some(Place::Journal(_)) if lost => index.set_arrival(ino, Arrival::Truncated { received: 0 }),
                    place => {
                        if let Some(place) = place {
                            index.set_place(ino, place);
                        }
                        index.set_arrival(ino, arrival);
                    }
                }
                told.push(ino);
            }
            if let Some(current) = &mut self.current {
                if current.bound == Bound::NotYet {
                    current.bound = last;
                    if last == Bound::Refused {
                        current.keep = Keep::Nowhere;
                    }
                }
                if let (Bound::To(ino), 1..) = (current.bound, current.received) {
                    if let Keep::Memory(bytes) = &current.keep {
                        index.set_place(ino, Place::Memory(Arc::new(bytes.clone())));
                    }
                    if !matches!(current.keep, Keep::Nowhere) {
                        index.set_arrival(ino, Arrival::Arriving { received: current.received });
                        told.push(ino);
                    }
                }
            }
            (index.memory(), index.waiting() as u64)
        };
        for ino in told {
            self.store.notify(ino);
        }
        self.taken -= dropped;
        let there = self.taken - waiting;
        self.monitor.add_entries(there - std::mem::replace(&mut self.told, there));
        for (path, refusal) in refused {
            self.monitor.refused(if path.is_root() { b"." } else { path.as_bytes() }, refusal);
        }
        self.monitor.receiving(self.current.as_ref().map(|c| Receiving {
            path: c.path.to_string(),
            received: c.received,
            size: c.stored,
        }));
        written?;
        if memory > self.max_index {
            let cause = format!("the index has reached its limit of {} MiB (--max-index)", self.max_index >> 20);
            return Err(Verdict::Corrupt { cause, cut: None });
        }
        Ok(())
    }

    /// The bytes are over, or the end marker has come.
    fn finish(&mut self) -> Outcome {
        match self.decoder.finish() {
            End::Complete => Ok(()),
            End::LoneZeroBlock => {
                self.monitor.warning(b"", "the end marker is one zero block where there should be two");
                Ok(())
            }
            End::Cut(cause) => Err(incomplete(cause)),
        }
    }

    /// Nothing more comes. Whoever waits for the file that was cut is told so.
    fn conclude(&mut self, outcome: Outcome) {
        let committed = self.commit();
        let mut verdict = outcome.and(committed).err().unwrap_or(Verdict::Complete);
        let cut = self.current.take();
        let mut last = None;
        if let Some(current) = cut {
            let received = if matches!(current.keep, Keep::Nowhere) { 0 } else { current.received };
            let place = match &current.keep {
                Keep::Memory(bytes) if received > 0 => Some(self.journal_data(current.id, bytes)),
                _ => None,
            };
            self.record(&Record::End { id: current.id, received, complete: false }, &[]);
            if let Bound::To(ino) = current.bound {
                last = Some((ino, place, received));
            }
            match &mut verdict {
                Verdict::Incomplete { cut, .. } | Verdict::Corrupt { cut, .. } => *cut = Some(current.path.to_string()),
                Verdict::Failed { cause } => cause.push_str(&format!(" ('{}' was cut)", current.path)),
                Verdict::Complete | Verdict::Denied { .. } => {}
            }
        }
        self.record(&Record::Finish { complete: verdict == Verdict::Complete }, &[]);
        // No waiting for room any more: what cannot be written now stays in memory.
        let written = self.spool.is_some_and(|spool| spool.append(&self.frames, &|| true).is_ok());
        self.frames.clear();
        let mut refused = Vec::new();
        {
            let mut index = self.store.index.write();
            if let Some((ino, place, received)) = &last {
                if let (Some(place), true) = (place, written) {
                    index.set_place(*ino, place.clone());
                }
                index.set_arrival(*ino, Arrival::Truncated { received: *received });
            }
            index.finish(&mut |path, refusal| refused.push((path.clone(), refusal)));
        }
        self.store.set_over();
        if let Some((ino, ..)) = last {
            self.store.notify(ino);
        }
        for (path, refusal) in refused {
            self.monitor.refused(path.as_bytes(), refusal);
        }
        self.monitor.end(verdict);
    }
}

fn incomplete(cause: impl Into<String>) -> Verdict {
    Verdict::Incomplete { cause: cause.into(), cut: None }
}

fn failed(e: spool::Error) -> Verdict {
    match e {
        spool::Error::Stopped => incomplete("receiving was stopped while there was no room in the spool"),
        spool::Error::Write { .. } => Verdict::Failed { cause: e.to_string() },
    }
}
