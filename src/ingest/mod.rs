//! From a source into the store: read, decompress, decode, keep.
//!
//! Works chunk by chunk, on two threads: this one decodes, and writes large files; `keeper` commits what was found to the
//! store. Large files and files with holes get a blob, small ones go into the journal, and those of a plain archive in a
//! regular file stay where they are.

mod again;
mod ahead;
mod keeper;
mod opening;
mod outcome;
#[cfg(test)]
mod tests;
mod walk;

use std::fs::File;
use std::sync::Arc;

use crate::entry::{Entry, EntryKind, EntryPath, escape};
use crate::filter::{self, Chunks, Compression, HEAD, NoTar, is_plain_file, recognise};
use crate::index::Arrival;
use crate::monitor::{Chain, Monitor, Verdict};
use crate::source::{Farewell, Source};
use crate::spool::{BLOB_THRESHOLD, Form, Spool};
use crate::stop::Stop;
use crate::store::Store;
use crate::store::intake::{Blob, BlobError, Draft, FileRef, Intake, Layout};
use crate::store::recover::Resume;
use crate::store::settle::Unsettled;
use crate::tarball::{self, BLOCK, Decoder, End, Event, Options, may_begin_header};
use again::{Again, Found};
use ahead::Ahead;
use keeper::{Keeper, Link, refuse};
use outcome::{Outcome, failed, incomplete, no_thread};

pub use opening::opening;

/// At most this much of what is no archive is shown.
const SHOWN: usize = 60;

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
    /// The spool has a part of it already, which an earlier daemon has left.
    pub resume: Option<Resume>,
}

/// Receives until the stream is over, tells the monitor how it ended, and reads what follows the end
/// marker so that the sender can finish. A source that [`needs_spool`] needs the store to have one.
pub fn run(job: Job) {
    let (store, monitor) = (job.store.clone(), job.monitor.clone());
    store.fill(&monitor, || receive(job));
}

fn receive(job: Job) {
    let Job { source, store, monitor, stop, options, max_index, resume } = job;
    let again = match resume.map(|resume| Again::begin(resume, &store, &monitor, &stop, max_index)).transpose() {
        Ok(again) => again,
        Err(verdict) => {
            store.cut();
            return monitor.end(verdict);
        }
    };
    let draft = match (&again, store.spool()) {
        (Some(again), _) => again.draft(),
        (None, Some(_)) => Draft::new(Layout::Stream),
        (None, None) => Draft::new(Layout::InPlace),
    };
    let mut ingest = Ingest {
        store: &store,
        monitor: &monitor,
        stop: &stop,
        decoder: Decoder::new(options),
        spool: store.spool(),
        draft,
        again,
        current: None,
        max_index,
        over: false,
        too_large: (0, None),
        name: source.name().to_owned(),
        head: Vec::new(),
        compressions: Vec::new(),
    };
    if let (true, Some(file)) = (store.spool().is_none() && is_plain_file(&source), source.file()) {
        ingest.receive(|ingest, link| ingest.in_place(link, file, source.size().unwrap_or(0)), || ());
    } else {
        let seekable = source.file().is_some();
        let farewell = source.farewell();
        match Chunks::new(source, stop.clone(), monitor.clone()) {
            Ok(mut chunks) => {
                ingest.receive(|ingest, link| ingest.stream(link, &mut chunks, seekable, &farewell), || farewell.say());
                ingest.drain(&mut chunks);
            }
            Err(e) => ingest.receive(|_, _| Err(no_thread(e)), || ()),
        }
    }
}

/// Whether the contents of a source have to be kept somewhere, or can be read where they are.
pub fn needs_spool(source: &Source) -> bool {
    !is_plain_file(source)
}

struct Ingest<'a> {
    store: &'a Arc<Store>,
    monitor: &'a Arc<Monitor>,
    stop: &'a Stop,
    decoder: Decoder,
    /// None when the archive is mounted in place.
    spool: Option<&'a Spool>,
    /// What this chunk has brought.
    draft: Draft,
    /// What is there already of a stream that is read again.
    again: Option<Again>,
    current: Option<Current>,
    max_index: u64,
    over: bool,
    /// Files that the spool cannot hold, and the first one.
    too_large: (u64, Option<EntryPath>),
    /// What the source is called.
    name: String,
    /// The first bytes of the archive, until it is known to be one.
    head: Vec<u8>,
    /// How these were compressed.
    compressions: Vec<Compression>,
}

/// The file whose contents are arriving.
struct Current {
    file: FileRef,
    stored: u64,
    received: u64,
    keep: Keep,
}

enum Keep {
    /// A small file: one record of the journal, once it is whole.
    Memory(Vec<u8>),
    /// All of it came at once, and is in a record already.
    Record,
    Blob(Blob, EntryPath),
    /// In the archive itself.
    Archive,
    /// Nowhere: the entry was refused.
    Refused,
    /// No more of it is kept, and that has been said.
    LeftOut,
    /// In the store, since an earlier daemon received it.
    There,
}

impl Ingest<'_> {
    /// Receives all of it in this way, and concludes; `said` as there.
    fn receive(&mut self, all: impl FnOnce(&mut Self, &mut Link<'_>) -> Outcome, said: impl FnOnce()) {
        let (store, monitor, max_index) = (self.store, self.monitor, self.max_index);
        let begin = |again: Option<&Again>| match again {
            Some(again) => again.intake(store, monitor, max_index),
            None => Intake::new(store.clone(), monitor.clone(), max_index),
        };
        let keeper = Keeper { intake: begin(self.again.as_ref()), monitor, stop: self.stop };
        let (intake, outcome) = std::thread::scope(|scope| match keeper.begin(scope) {
            Ok(mut link) => {
                let outcome = all(self, &mut link);
                let outcome = outcome.and(self.commit(&mut link));
                let (intake, kept) = link.end();
                (intake, kept.and(outcome))
            }
            Err(e) => (begin(self.again.as_ref()), Err(no_thread(e))),
        });
        self.conclude(intake, outcome, said);
    }

    /// A plain archive in a regular file: contents are passed over.
    fn in_place(&mut self, link: &mut Link<'_>, file: &File, size: u64) -> Outcome {
        std::thread::scope(|scope| {
            let ahead = Ahead::begin(file, scope).map_err(no_thread)?;
            self.follow(link, ahead, size)
        })
    }

    fn follow(&mut self, link: &mut Link<'_>, mut ahead: Ahead<'_>, size: u64) -> Outcome {
        let mut at = 0;
        loop {
            if self.stop.is_stopped() {
                return Err(incomplete("receiving was stopped"));
            }
            loop {
                let skip = self.decoder.skippable().min(size.saturating_sub(at));
                if skip == 0 {
                    break;
                }
                let stored = self.decoder.skip(skip);
                self.progress(stored);
                at += skip;
                self.monitor.add_source_bytes(skip);
                self.monitor.add_bytes(skip);
                // Behind the contents it tells of their end, and then there may be padding.
                self.decode(Some(&mut *link), &[])?;
            }
            let piece = ahead.next(at).map_err(|e| incomplete(format!("cannot read the archive: {e}")))?;
            let (ended, is_over) = (self.over, piece.bytes.is_empty());
            at += piece.bytes.len() as u64;
            self.monitor.add_source_bytes(piece.bytes.len() as u64);
            self.decode(Some(&mut *link), piece.bytes)?;
            if piece.last {
                self.commit(link)?;
            }
            // One chunk behind the end marker is enough to warn of what is there.
            if ended || is_over {
                return self.finish();
            }
        }
    }

    fn stream(&mut self, link: &mut Link<'_>, chunks: &mut Chunks, seekable: bool, farewell: &Farewell) -> Outcome {
        loop {
            let next = chunks.next_chunk();
            if !self.decoder.has_members() {
                self.compressions = chunks.compressions().to_vec();
            }
            match next {
                Ok(Some(chunk)) => {
                    self.chunk(link, &chunk)?;
                    chunks.recycle(chunk);
                    if self.decoder.is_empty_so_far() {
                        // It ends with the stream: a sender that waits for us to go first must not wait.
                        farewell.say();
                    }
                    // The rest of a file costs no waiting. Of a connection only the checksum is waited for.
                    if self.over && !seekable && chunks.is_whole() {
                        return self.finish();
                    }
                }
                Ok(None) => return self.finish(),
                Err(filter::Error::Stopped | filter::Error::Read(_)) if self.decoder.is_empty_so_far() => return Ok(()),
                Err(e) => {
                    let mut cause = Chain(&e).to_string();
                    if self.over {
                        cause.push_str(
                            ", behind the end of the archive: every entry is there, but without its checksum",
                        );
                    }
                    return Err(match e {
                        filter::Error::Corrupt(_) | filter::Error::Panicked => Verdict::Corrupt { cause, cut: None },
                        filter::Error::Unsupported(_) => Verdict::NoArchive { cause },
                        filter::Error::Read(_) => incomplete(format!("the source failed: {cause}")),
                        filter::Error::Stopped | filter::Error::Truncated(_) => incomplete(cause),
                    });
                }
            }
        }
    }

    /// Takes what follows the end marker. It brings warnings at most.
    fn drain(&mut self, chunks: &mut Chunks) {
        loop {
            match chunks.next_chunk() {
                Ok(Some(chunk)) if self.over => {
                    if self.decode(None, &chunk).is_err() {
                        return;
                    }
                    chunks.recycle(chunk);
                }
                // Behind a corrupt place nothing can be told; the sender is let go.
                Ok(_) | Err(filter::Error::Stopped | filter::Error::Read(_)) => return,
                Err(e) => {
                    if self.over {
                        self.monitor.warning(b"", format!("behind the end of the archive: {}", Chain(&e)));
                    }
                    return;
                }
            }
        }
    }

    /// Decodes a chunk and makes all of it visible.
    fn chunk(&mut self, link: &mut Link<'_>, input: &[u8]) -> Outcome {
        let decoded = self.decode(Some(&mut *link), input);
        self.commit(link).and(decoded)
    }

    /// Behind the end marker nothing is kept: there is no link.
    fn decode(&mut self, mut link: Option<&mut Link<'_>>, mut input: &[u8]) -> Outcome {
        self.monitor.add_bytes(input.len() as u64);
        if !self.decoder.has_members() {
            let room = HEAD.saturating_sub(self.head.len());
            self.head.extend_from_slice(&input[..input.len().min(room)]);
        }
        loop {
            match self.decoder.step(&mut input) {
                Ok(Some(event)) => self.event(link.as_deref_mut(), event)?,
                Ok(None) => return Ok(()),
                Err(stop) => return Err(self.stopped(&stop)),
            }
        }
    }

    /// The decoder cannot go on: the archive is damaged, or is none.
    fn stopped(&self, stop: &tarball::Stop) -> Verdict {
        if self.decoder.has_members() {
            return Verdict::Corrupt { cause: stop.to_string(), cut: None };
        }
        self.no_archive(stop.offset)
    }

    /// It is no tar archive, as is seen at `offset`. Only zeros can be before that, and those may begin an empty one.
    fn no_archive(&self, offset: u64) -> Verdict {
        let no_tar = self.recognise();
        if no_tar.damaged || offset >= BLOCK as u64 {
            Verdict::Corrupt { cause: no_tar.cause, cut: None }
        } else {
            Verdict::NoArchive { cause: no_tar.cause }
        }
    }

    fn recognise(&self) -> NoTar {
        recognise(&self.head, &self.name, &self.compressions)
    }

    fn event(&mut self, link: Option<&mut Link<'_>>, event: Event<'_>) -> Outcome {
        match event {
            Event::Entry { entry, offset } => {
                if let Some(link) = link {
                    self.entry(link, entry, offset)?;
                }
            }
            Event::Data(data) => self.data(data)?,
            Event::EntryEnd => self.entry_end(),
            Event::Refused { path, reason } => self.problem(false, &path, reason),
            Event::Warning { path, message } => self.problem(true, &path, message),
            Event::Label(label) => self.monitor.label(&label),
            Event::EndOfArchive => self.over = true,
        }
        Ok(())
    }

    fn entry(&mut self, link: &mut Link<'_>, entry: Box<Entry>, offset: u64) -> Outcome {
        let stored = entry.kind.stored_len();
        let (size, map) = match &entry.kind {
            EntryKind::File { size, sparse } => (*size, sparse.clone()),
            _ => (0, None),
        };
        let there = match &mut self.again {
            Some(again) => again.find(&entry)?,
            None => Found::Nothing,
        };
        let (number, part) = match there {
            Found::Nothing => (self.draft.entry(entry), None),
            Found::Entry(number) => (number, None),
            Found::Part(number, blob) => (number, Some(blob)),
            Found::All(number, cut) => {
                if let Some(received) = cut {
                    let path = entry.path;
                    let reason = format!("only {received} of {stored} bytes of its contents are in the spool");
                    self.monitor.refused(path.as_bytes(), reason);
                    self.too_large.0 += 1;
                    self.too_large.1.get_or_insert(path);
                }
                let file = FileRef { entry: number, ino: None };
                self.current = (stored > 0).then_some(Current { file, stored, received: 0, keep: Keep::There });
                return Ok(());
            }
        };
        let file = FileRef { entry: number, ino: None };
        if stored == 0 {
            return Ok(());
        }
        let Some(spool) = self.spool else {
            self.draft.in_archive(file, offset);
            self.current = Some(Current { file, stored, received: 0, keep: Keep::Archive });
            return Ok(());
        };
        let form = Form::of(stored, map.as_deref());
        self.current = Some(Current { file, stored, received: 0, keep: Keep::Memory(Vec::new()) });
        if form == Form::Record {
            return Ok(());
        }
        // Whether it is refused is known first; then it may take room.
        let last = link.ask(&mut self.draft, Some((0, stored)))?;
        if last.ino.is_none() {
            self.keep(Keep::Refused);
            return Ok(());
        }
        let begun = match part {
            Some(blob) => Ok(blob),
            None => self.draft.begin_blob(spool, file, size, map, &|| self.stop.is_stopped()),
        };
        match begun {
            Ok(blob) => self.keep(Keep::Blob(blob, last.path)),
            Err(BlobError::TooLarge(e)) => {
                self.problem(false, last.path.as_bytes(), Chain(&e));
                self.too_large.0 += 1;
                self.too_large.1.get_or_insert(last.path);
                self.draft.end(file, 0, false);
                self.keep(Keep::LeftOut);
            }
            Err(BlobError::Spool(e)) => return Err(failed(e.into())),
        }
        Ok(())
    }

    /// Tells of a problem, and has the journal keep it, unless that has it from before.
    fn problem(&mut self, warning: bool, path: &[u8], reason: impl ToString) {
        let reason = reason.to_string();
        if self.again.as_mut().is_none_or(Again::is_new_problem) {
            self.draft.problem(warning, path, reason.clone());
        }
        if warning { self.monitor.warning(path, reason) } else { self.monitor.refused(path, reason) }
    }

    fn keep(&mut self, keep: Keep) {
        if let Some(current) = &mut self.current {
            current.keep = keep;
        }
    }

    fn data(&mut self, data: &[u8]) -> Outcome {
        let Some(current) = &mut self.current else { return Ok(()) };
        match &mut current.keep {
            Keep::Memory(bytes) if bytes.is_empty() && data.len() as u64 == current.stored => {
                self.draft.data(current.file, data, Arrival::Arriving { received: current.stored });
                current.keep = Keep::Record;
            }
            Keep::Memory(bytes) => {
                if bytes.capacity() == 0 {
                    bytes.reserve_exact(current.stored.min(BLOB_THRESHOLD) as usize);
                }
                bytes.extend_from_slice(data);
            }
            Keep::Blob(blob, path) => {
                let Some(spool) = self.spool else { return Ok(()) };
                // Of a stream that is read again, its beginning is there.
                let there = blob.received().saturating_sub(current.received);
                let new = data.get(usize::try_from(there).unwrap_or(usize::MAX)..).unwrap_or_default();
                match blob.write(spool, new, &|| self.stop.is_stopped()) {
                    Ok(()) => {}
                    Err(BlobError::TooLarge(e)) => {
                        let reason = Chain(&e).to_string();
                        self.draft.problem(false, path.as_bytes(), reason.clone());
                        self.monitor.refused(path.as_bytes(), reason);
                        if let Keep::Blob(blob, path) = std::mem::replace(&mut current.keep, Keep::LeftOut) {
                            self.too_large.0 += 1;
                            self.too_large.1.get_or_insert(path);
                            let received = blob.received();
                            self.draft.end_blob(blob, received, false);
                        }
                    }
                    Err(BlobError::Spool(e)) => return Err(failed(e.into())),
                }
            }
            Keep::Record | Keep::Archive | Keep::Refused | Keep::LeftOut | Keep::There => {}
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
        let Some(Current { file, stored, keep, .. }) = self.current.take() else { return };
        match keep {
            Keep::Memory(bytes) => self.draft.data(file, &bytes, Arrival::Complete),
            Keep::Record | Keep::Archive => self.draft.arrival(file, Arrival::Complete),
            Keep::Blob(blob, _) => self.draft.end_blob(blob, stored, true),
            Keep::Refused | Keep::LeftOut | Keep::There => {}
        }
    }

    /// Hands what is gathered to the keeper, with what is there of the file that is arriving.
    fn commit(&mut self, link: &mut Link<'_>) -> Outcome {
        if let Some(Current { file, received: received @ 1.., keep, .. }) = &mut self.current {
            match keep {
                Keep::Memory(bytes) => self.draft.in_memory(*file, bytes.clone()),
                Keep::Blob(blob, _) if blob.received() > *received => {}
                Keep::Blob(blob, _) => self.draft.blob(blob),
                Keep::Archive => self.draft.arrival(*file, Arrival::Arriving { received: *received }),
                Keep::Record | Keep::Refused | Keep::LeftOut | Keep::There => {}
            }
        }
        let receiving = self.current.as_ref().map(|current| (current.received, current.stored));
        link.send(&mut self.draft, receiving)
    }

    /// The bytes are over, or the end marker has come.
    fn finish(&mut self) -> Outcome {
        if let (Some(again), End::Complete | End::LoneZeroBlock) = (&self.again, self.decoder.finish()) {
            again.at_end()?;
        }
        match self.decoder.finish() {
            End::Complete => Ok(()),
            End::LoneZeroBlock => {
                self.monitor.warning(b"", "the end marker is one zero block where there should be two");
                Ok(())
            }
            End::Cut(_) if !self.decoder.has_members() && !self.may_be_cut() => {
                Err(self.no_archive(self.decoder.position()))
            }
            // A few bytes may be what a failing command said on its way out.
            End::Cut(cause) if !self.decoder.has_members() && !self.head.is_empty() => {
                let begin = &self.head[..self.head.len().min(SHOWN)];
                Err(incomplete(format!("{cause} (it begins with '{}')", escape(begin))))
            }
            End::Cut(cause) => Err(incomplete(cause)),
        }
    }

    /// How a stream ends of which all has come.
    fn end_of_archive(&self) -> Verdict {
        let (files, Some(first)) = &self.too_large else { return Verdict::Complete };
        let files = if *files == 1 { "1 file is".into() } else { format!("{files} files are") };
        let cause = format!("all of the archive has come, but {files} cut");
        Verdict::Incomplete { cause, cut: Some(first.to_string()) }
    }

    /// Whether what came, which is less than a block, may be where a sender broke off in its first header.
    fn may_be_cut(&self) -> bool {
        let begins_tar = may_begin_header(&self.head) && !self.recognise().is_certain;
        self.compressions.is_empty() && (self.head.is_empty() || filter::may_be_cut(&self.head)) || begins_tar
    }

    /// Nothing more comes. Readers that wait for the file that was cut are woken. `said` is called as soon as the sender
    /// can go: before the spool is brought to its disk.
    fn conclude(&mut self, mut intake: Intake, outcome: Outcome, said: impl FnOnce()) {
        let mut verdict = outcome.err().unwrap_or_else(|| self.end_of_archive());
        let mut closing = intake.closing(&mut self.draft);
        let current = self.current.take().filter(|current| !matches!(current.keep, Keep::There));
        if let Some(Current { file, received, keep, .. }) = current {
            match keep {
                Keep::Memory(bytes) => closing.data(file, &bytes),
                Keep::Blob(mut blob, _) => closing.blob(&mut blob),
                Keep::Record | Keep::Archive => closing.file(file, received),
                Keep::Refused => closing.file(file, 0),
                Keep::LeftOut | Keep::There => {}
            }
            let path = &intake.last().path;
            match &mut verdict {
                Verdict::Incomplete { cut, .. } | Verdict::Corrupt { cut, .. } => *cut = Some(path.to_string()),
                Verdict::Failed { cause } => cause.push_str(&format!(" ('{path}' was cut)")),
                Verdict::Complete | Verdict::NoArchive { .. } => {}
            }
        }
        let refused = intake.close(closing, verdict == Verdict::Complete);
        refuse(self.monitor, refused);
        said();
        self.monitor.settling();
        let verdict = match self.store.settle(self.monitor) {
            Ok(()) => verdict,
            // The stream had ended before.
            Err(Unsettled::Abandoned) if verdict != Verdict::Complete => verdict,
            Err(e) => verdict.and_failed(Chain(&e).to_string()),
        };
        if let (Verdict::Complete, Some(spool)) = (&verdict, self.spool) {
            spool.finished();
        }
        self.monitor.end(verdict);
    }
}
