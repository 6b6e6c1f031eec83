//! Messages of a sender into the store. Without I/O but that of the spool: any messages, in any order, leave the store in
//! a state that is true, or are a [`Violation`].
//!
//! The catalogue comes first and makes the tree; contents come later and in any order. What a body of messages brings is
//! committed at once.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::num::{NonZeroU32, NonZeroU64};
use std::ops::Range;
use std::sync::Arc;

use super::cut::CutFiles;
use crate::entry::{EntryKind, clipped, escape};
use crate::index::Ino;
use crate::index::insert::Inserted;
use crate::monitor::{Monitor, Receiving};
use crate::record;
use crate::spool::{self, BLOB_THRESHOLD};
use crate::stop::Stop;
use crate::store::Store;
use crate::store::intake::{self, Blob, Draft, FileRef, Intake, Layout, Refused};
use crate::store::settle::Unsettled;
use crate::wire::{FromReceiver, FromSender, Position, SMALL, Session, Totals};

/// No sender that keeps to the protocol says this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Violation(Cow<'static, str>);

/// Why nothing more is taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    /// The sender is to blame.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The store takes no more.
    #[error(transparent)]
    Intake(#[from] intake::Error),
}

/// Why what has come as a whole is not confirmed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfinished {
    /// The end of the journal cannot be written.
    #[error(transparent)]
    Intake(#[from] intake::Error),
    /// The disk does not have everything.
    #[error(transparent)]
    Unsettled(#[from] Unsettled),
}

impl From<spool::Error> for Stopped {
    fn from(e: spool::Error) -> Self {
        Stopped::Intake(e.into())
    }
}

pub(super) type Outcome<T = ()> = Result<T, Stopped>;

pub(super) fn violation<T>(what: impl Into<Cow<'static, str>>) -> Outcome<T> {
    Err(Stopped::Violation(Violation(what.into())))
}

/// What became of an entry of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Became {
    /// Nothing that has contents: a hard link, or what is not in the index yet.
    Nothing,
    /// A file that is refused or left out.
    LeftOut,
    /// This inode.
    Inode(u32),
}

/// A [`Became`] in four bytes: a session has one for each of its entries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot(u32);

impl Slot {
    pub(super) fn get(self) -> Became {
        match self.0 {
            0 => Became::Nothing,
            u32::MAX => Became::LeftOut,
            ino => Became::Inode(ino),
        }
    }
}

impl From<Became> for Slot {
    fn from(became: Became) -> Slot {
        match became {
            Became::Nothing => Slot(0),
            Became::LeftOut => Slot(u32::MAX),
            Became::Inode(ino) => Slot(ino),
        }
    }
}

/// The number of an entry in the session: none takes no memory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(NonZeroU32);

impl Number {
    /// None where there are more than can be numbered.
    pub(super) fn new(number: u64) -> Option<Number> {
        u32::try_from(number).ok()?.checked_add(1).and_then(NonZeroU32::new).map(Number)
    }

    pub(super) fn get(self) -> u32 {
        self.0.get() - 1
    }
}

/// How far an entry's contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing of them has come.
    Awaited,
    /// `parts` has more.
    Part,
    /// No more will come.
    Over,
}

/// What is known of an inode beside the index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// [Of what the sender said of it](super::digest::digest). None where no entry of a session is behind it.
    pub(super) digest: Option<NonZeroU64>,
    /// Number of its entry in the journal.
    pub(super) journal: u32,
    /// Number of its entry in this session.
    pub(super) id: Option<Number>,
    pub(super) state: State,
}

/// A file of which a part is there.
pub(super) struct Part {
    pub(super) path: Vec<u8>,
    pub(super) stored: u64,
    pub(super) checked: u64,
    pub(super) hasher: blake3::Hasher,
    /// What was hashed so far was not what the sender hashed.
    pub(super) differs: bool,
    pub(super) blob: Option<Blob>,
}

/// Whom to tell that there is no room.
pub(super) type Waits = Arc<dyn Fn() + Send + Sync>;

/// An entry that is to go into the index.
pub(super) struct Announced {
    pub(super) id: Number,
    pub(super) digest: NonZeroU64,
    /// Its number in the journal.
    pub(super) journal: u32,
}

/// The store, as a sender fills it.
pub(super) struct Sink {
    pub(super) store: Arc<Store>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) stop: Stop,
    intake: Intake,
    /// Told again and again while there is no room.
    pub(super) waits: Option<Waits>,
    /// What is not in the store yet.
    pub(super) draft: Draft,
    session: Option<Session>,
    /// There was another session before: what it brought may be named again.
    pub(super) again: bool,
    /// What is in the store came to an earlier daemon.
    pub(super) recovered: bool,
    /// What became of each entry of this session.
    pub(super) slots: Vec<Slot>,
    /// By inode.
    pub(super) known: Vec<Known>,
    pub(super) parts: HashMap<u32, Part>,
    /// Bytes of their paths.
    pub(super) path_bytes: usize,
    /// Entries of this body that are not in the index yet, and their length.
    pub(super) announced: Vec<Announced>,
    pub(super) announced_bytes: usize,
    pub(super) hasher: blake3::Hasher,
    pub(super) totals: Totals,
    pub(super) complete: bool,
    /// This connection has said the end of its catalogue.
    pub(super) ended: bool,
    /// From this entry of the catalogue on the sender has to be told what is there.
    pub(super) answering: Option<usize>,
    /// Names that this session has said, where there was another before; by a keyed hash.
    pub(super) named: HashSet<u64>,
    pub(super) keys: RandomState,
    /// Files of this session whose contents are not over.
    pub(super) awaited: u64,
    pub(super) wanted: BTreeSet<u32>,
    refused: u64,
    /// Their paths, hashed.
    pub(super) left_out: HashSet<u64>,
    /// Small files that are refused, and have to be named.
    pub(super) nameless: HashSet<u32>,
    /// Stored bytes of files that are over, and of those left out.
    pub(super) over_bytes: u64,
    /// Everything was there, and whoever looks may remember it.
    pub(super) finished: bool,
    /// What is cut then.
    pub(super) cut_files: CutFiles,
}

impl Sink {
    pub(super) fn new(store: Arc<Store>, monitor: Arc<Monitor>, stop: Stop, max_index: u64) -> Self {
        let intake = Intake::new(store.clone(), monitor.clone(), max_index);
        Sink::of(intake, Draft::new(Layout::Catalogue), store, monitor, stop)
    }

    pub(super) fn of(intake: Intake, draft: Draft, store: Arc<Store>, monitor: Arc<Monitor>, stop: Stop) -> Self {
        Sink {
            intake,
            store,
            monitor,
            stop,
            waits: None,
            draft,
            session: None,
            again: false,
            recovered: false,
            slots: Vec::new(),
            known: Vec::new(),
            parts: HashMap::new(),
            path_bytes: 0,
            announced: Vec::new(),
            announced_bytes: 0,
            hasher: blake3::Hasher::new(),
            totals: Totals::default(),
            complete: false,
            ended: false,
            answering: None,
            named: HashSet::new(),
            keys: RandomState::new(),
            awaited: 0,
            wanted: BTreeSet::new(),
            refused: 0,
            left_out: HashSet::new(),
            nameless: HashSet::new(),
            over_bytes: 0,
            finished: false,
            cut_files: CutFiles::default(),
        }
    }

    /// Begins a session, or goes on with it. Tells how many records of its catalogue are there.
    pub(super) fn begin(&mut self, session: Session) -> u64 {
        if self.session != Some(session) {
            self.again = self.session.replace(session).is_some() || self.recovered;
            self.slots.clear();
            for known in &mut self.known {
                known.id = None;
            }
            self.hasher = blake3::Hasher::new();
            self.totals = Totals::default();
            self.complete = false;
            self.awaited = 0;
            self.over_bytes = 0;
            self.named.clear();
            // Where everything has come already, what was left out then is what is missing still.
            if !self.finished {
                self.refused = 0;
                self.left_out.clear();
                if self.again {
                    self.draft.anew();
                    self.monitor.forget_problems();
                }
            }
        }
        self.ended = false;
        self.answering = None;
        self.totals.records
    }

    /// Whether everything has come.
    pub(super) fn is_whole(&self) -> bool {
        self.complete && self.awaited == 0
    }

    /// Whether the catalogue of this session is there.
    pub(super) fn has_catalogue(&self) -> bool {
        self.complete
    }

    /// Files whose contents are not over, and the bytes that have not come of them.
    pub(super) fn missing(&self) -> (u64, u64) {
        let parts: u64 = self.parts.values().map(Part::received).sum();
        (self.awaited, self.totals.bytes.saturating_sub(self.over_bytes.saturating_add(parts)))
    }

    /// What has been counted.
    pub(super) fn totals(&self) -> Totals {
        Totals { hash: *self.hasher.finalize().as_bytes(), ..self.totals }
    }

    /// Takes messages. What has to be answered is added to `answers`.
    /// `waits` is called again and again while there is no room for what comes.
    pub(super) fn body(
        &mut self,
        body: &[u8],
        waits: impl Fn() + Send + Sync + 'static,
        answers: &mut Vec<FromReceiver>,
    ) -> Outcome {
        self.waits = Some(Arc::new(waits));
        let taken = self.messages(body, answers);
        self.waits = None;
        taken
    }

    fn messages(&mut self, body: &[u8], answers: &mut Vec<FromReceiver>) -> Outcome {
        let before = self.totals.records;
        // Records of the catalogue that are counted, and not yet hashed: all at once is several times faster.
        let mut unhashed = 0..0;
        let taken = self.each_message(body, answers, &mut unhashed);
        self.hasher.update(&body[unhashed]);
        taken?;
        self.commit()?;
        if self.totals.records != before {
            answers.push(FromReceiver::Taken { catalogue: self.totals.records });
        }
        Ok(())
    }

    fn each_message(&mut self, body: &[u8], answers: &mut Vec<FromReceiver>, unhashed: &mut Range<usize>) -> Outcome {
        let mut at = 0;
        while at < body.len() {
            let (message, bytes, length) = record::decode::<FromSender>(&body[at..])
                .or_else(|e| violation(format!("a message that cannot be read: {e}")))?;
            if at == 0 && matches!(message, FromSender::File { .. } | FromSender::Sum { .. }) {
                return self.files(body);
            }
            if !matches!(message, FromSender::Entry { .. } | FromSender::Problem { .. }) {
                self.hasher.update(&body[std::mem::replace(unhashed, 0..0)]);
            }
            let counted = self.totals.records;
            let taken = self.message(message, &body[at..at + length], bytes, answers);
            if self.totals.records > counted {
                let begun = unhashed.start < unhashed.end;
                *unhashed = if begun { unhashed.start } else { at }..at + length;
            }
            taken?;
            at += length;
        }
        Ok(())
    }

    fn message(
        &mut self,
        message: FromSender,
        encoded: &[u8],
        bytes: &[u8],
        answers: &mut Vec<FromReceiver>,
    ) -> Outcome {
        if !bytes.is_empty() && !matches!(message, FromSender::Data { .. }) {
            return violation("bytes behind a message that has none");
        }
        match message {
            FromSender::Entry { entry, .. } => {
                self.catalogue()?;
                self.entry(*entry, encoded)?;
                if self.again
                    && let Some(Became::Inode(ino)) = self.slots.last().map(|slot| slot.get())
                    && self.wanted.contains(&ino)
                {
                    answers.extend(self.want_message(ino));
                }
                Ok(())
            }
            FromSender::Problem { path, reason } => {
                self.catalogue()?;
                self.refuse(&path, reason);
                Ok(())
            }
            FromSender::CatalogueEnd(totals) => self.catalogue_end(totals),
            FromSender::Begin { id, path } => self.begin_file(id, path),
            FromSender::Data { id, offset } => self.data(id, offset, bytes),
            FromSender::Check { id, upto, hash } => self.check(id, upto, hash),
            FromSender::End { id, hash, fate } => self.end(id, hash, fate),
            FromSender::File { .. }
            | FromSender::Sum { .. }
            | FromSender::Hello { .. }
            | FromSender::Done
            | FromSender::Bye(_) => violation("a message where it does not belong"),
        }
    }

    /// What is said of it may have come from the sender, and anything may be in it.
    pub(super) fn refuse(&mut self, path: &[u8], reason: impl ToString) {
        if !self.finished {
            let reason = reason.to_string();
            let reason = escape(clipped(reason.as_bytes()));
            self.draft.problem(false, clipped(path), reason.clone());
            self.name(path, reason);
        }
    }

    fn name(&mut self, path: &[u8], reason: impl ToString) {
        // Later the verdict is known, and nothing is changed any more.
        if !self.finished {
            self.refused += 1;
            self.left_out.insert(self.key(path));
            self.monitor.refused(if path.is_empty() { b"." } else { clipped(path) }, reason);
        }
    }

    /// Nothing more comes of a file: what was waited for it, in memory and by readers, and what the journal says of it.
    pub(super) fn give_up(&mut self, ino: u32) {
        let file = self.file_ref(ino);
        match self.take_part(ino).and_then(|part| part.blob) {
            Some(blob) => {
                let received = blob.received();
                self.draft.end_blob(blob, received, false);
            }
            None => self.draft.end(file, 0, false),
        }
        self.known[ino as usize].state = State::Over;
        self.wanted.remove(&ino);
    }

    pub(super) fn file_ref(&self, ino: u32) -> FileRef {
        FileRef { entry: self.known[ino as usize].journal.into(), ino: Some(Ino(ino.into())) }
    }

    pub(super) fn take_part(&mut self, ino: u32) -> Option<Part> {
        let part = self.parts.remove(&ino)?;
        self.path_bytes -= part.path.len();
        Some(part)
    }

    /// Keyed, so that nobody can choose names that meet.
    pub(super) fn key(&self, path: &[u8]) -> u64 {
        self.keys.hash_one(path)
    }

    /// Whether the index, and what is kept beside it, may become larger.
    fn check_memory(&self) -> Outcome {
        let parts = self.parts.len() * size_of::<Part>() + self.path_bytes;
        let beside = self.known.len() * size_of::<Known>()
            + self.slots.len() * size_of::<Slot>()
            + (self.named.capacity() + self.left_out.capacity()) * 9
            + parts;
        Ok(self.intake.check_memory(beside as u64)?)
    }

    /// The inode of an entry. None where nothing is kept of its contents.
    pub(super) fn ino(&self, id: u64) -> Outcome<Option<u32>> {
        match usize::try_from(id).ok().and_then(|id| self.slots.get(id)).map(|slot| slot.get()) {
            Some(Became::Inode(ino)) => Ok(Some(ino)),
            Some(Became::Nothing | Became::LeftOut) => Ok(None),
            None => violation("contents of an entry that was not announced"),
        }
    }

    pub(super) fn stored(&self, ino: u32) -> u64 {
        self.store.index().attributes(Ino(ino.into())).map_or(0, |a| a.stored)
    }

    /// Somebody waits for a file. What is to be said to the sender.
    pub(super) fn want(&mut self, ino: Ino) -> Option<FromReceiver> {
        let ino = u32::try_from(ino.0).ok()?;
        if self.known.get(ino as usize)?.state == State::Over {
            return None;
        }
        self.wanted.insert(ino);
        // Of what this session has not announced yet it is told at the end of the catalogue.
        self.want_message(ino)
    }

    pub(super) fn want_message(&self, ino: u32) -> Option<FromReceiver> {
        let known = self.known.get(ino as usize)?;
        if known.state == State::Over {
            return None;
        }
        let id = known.id?.get().into();
        let nothing = Position { id, checked: 0, received: 0 };
        Some(FromReceiver::Want(self.parts.get(&ino).map_or(nothing, |part| part.position(id))))
    }

    pub(super) fn wanted_messages(&self) -> Vec<FromReceiver> {
        self.wanted.iter().filter_map(|&ino| self.want_message(ino)).collect()
    }

    /// How many files are waited for, with those of which the sender has not been told.
    pub(super) fn wanted(&self, untold: &[Ino]) -> u64 {
        let is_new = |ino: &u32| {
            let known = self.known.get(*ino as usize);
            !self.wanted.contains(ino) && known.is_some_and(|known| known.state != State::Over)
        };
        let new: BTreeSet<u32> = untold.iter().filter_map(|ino| u32::try_from(ino.0).ok()).filter(is_new).collect();
        (self.wanted.len() + new.len()) as u64
    }

    /// Brings what is gathered into the store.
    pub(super) fn commit(&mut self) -> Outcome {
        self.announced_bytes = 0;
        let mut superseded = Vec::new();
        while !self.draft.is_empty() {
            if let Some(first) = self.announced.first() {
                let digests = self.announced.iter().map(|announced| announced.digest.get());
                self.draft.digests(first.journal.into(), digests);
            }
            let mut announced = self.announced.drain(..);
            let stopped = stopped(&self.stop, &self.waits);
            let committed = self.intake.commit(self.draft.take(), &stopped, |came| {
                // There is one for each entry of the draft.
                let Some(Announced { id, digest, journal }) = announced.next() else { return };
                let slot = &mut self.slots[id.get() as usize];
                let has_contents = came.entry.kind.stored_len() > 0;
                match came.inserted {
                    Ok(Inserted::Bound(ino)) if !matches!(came.entry.kind, EntryKind::HardLink { .. }) => {
                        let state = if has_contents { State::Awaited } else { State::Over };
                        let nobody = Known { digest: None, journal: 0, id: None, state: State::Over };
                        let row = ino.0 as usize;
                        if self.known.len() <= row {
                            self.known.resize(row + 1, nobody);
                        }
                        self.known[row] = Known { digest: Some(digest), journal, id: Some(id), state };
                        *slot = Became::Inode(ino.0 as u32).into();
                    }
                    Ok(_) => {}
                    Err(_) if has_contents => {
                        *slot = Became::LeftOut.into();
                        self.awaited -= 1;
                        self.over_bytes = self.over_bytes.saturating_add(came.entry.kind.stored_len());
                        self.draft.end_refused(journal.into());
                    }
                    Err(_) => {}
                }
                // What a session before had under this name gets no more.
                for before in came.replaced {
                    if let Some(known) = self.known.get_mut(before.0 as usize)
                        && known.state != State::Over
                        && known.id.is_none()
                    {
                        known.state = State::Over;
                        superseded.push(before.0 as u32);
                    }
                }
            });
            drop(announced);
            self.draft.reuse(committed.spent);
            self.refuse_all(committed.refused);
            for ino in superseded.drain(..) {
                self.give_up(ino);
            }
            let current = self.parts.values().max_by_key(|part| part.received());
            self.monitor.receiving(current.map(|part| Receiving {
                path: escape(&part.path),
                received: part.received(),
                size: part.stored,
            }));
            committed.outcome?;
        }
        self.check_memory()
    }

    fn refuse_all(&mut self, refused: Refused) {
        for (path, refusal) in refused {
            // The journal tells of it by its entry.
            self.name(path.as_bytes(), refusal);
        }
    }

    /// Everything is there. It is brought to the disk.
    pub(super) fn finish(&mut self) -> Result<FromReceiver, Unfinished> {
        self.cut_files = CutFiles::of(&self.store.index());
        let complete = self.cut_files.count == 0;
        let refused = self.intake.finish(&mut self.draft, complete, &stopped(&self.stop, &self.waits))?;
        self.refuse_all(refused);
        self.monitor.settling();
        self.store.settle(&self.monitor)?;
        self.finished = true;
        Ok(self.commit_message())
    }

    /// What the sender is told then.
    pub(super) fn commit_message(&self) -> FromReceiver {
        FromReceiver::Commit { totals: self.totals(), refused: self.refused, cut: self.cut_files.count }
    }

    /// Nothing more comes: what is not whole is cut.
    pub(super) fn cut(&mut self) {
        let _ = self.commit();
        let mut closing = self.intake.closing(&mut self.draft);
        for (ino, part) in &mut self.parts {
            match &mut part.blob {
                Some(blob) => closing.blob(blob),
                None => {
                    let entry = self.known[*ino as usize].journal.into();
                    closing.file(FileRef { entry, ino: Some(Ino((*ino).into())) }, 0);
                }
            }
        }
        let refused = self.intake.close(closing, false);
        self.refuse_all(refused);
    }
}

impl Part {
    /// Stored bytes that are there.
    pub(super) fn received(&self) -> u64 {
        self.blob.as_ref().map_or(0, Blob::received)
    }

    pub(super) fn position(&self, id: u64) -> Position {
        Position { id, checked: self.checked, received: self.received() }
    }
}

/// For the spool, while it waits for room.
pub(super) fn stopped(stop: &Stop, waits: &Option<Waits>) -> impl Fn() -> bool + use<> {
    let (stop, waits) = (stop.clone(), waits.clone());
    move || {
        if let Some(waits) = &waits {
            waits();
        }
        stop.is_stopped()
    }
}

const _: () = assert!(SMALL == BLOB_THRESHOLD, "what comes at once goes into the journal at once");

// There are as many as files.
const _: () = assert!(size_of::<Slot>() == 4 && size_of::<Known>() == 24);
