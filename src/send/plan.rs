//! What is sent next. Without I/O but that of the files that are sent: a connection asks for the next batch, and says what
//! the receiver answered.
//!
//! First what somebody waits for, piece by piece in turn; then the catalogue; then contents in the order of the catalogue.
//! After a connection is lost, the receiver says what it has, and only the rest is sent.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::catalogue::Piece;
use super::small::{self, Ahead, Files, Sent, shrunk};
use crate::monitor::{Monitor, Receiving};
use crate::record;
use crate::tree::{Contents, Opener, Origin};
use crate::wire::{Batch, Fate, FromReceiver, FromSender, MAX_DATA, Position, SEGMENT, SMALL, Totals};

/// A batch is about so long.
const BATCH: usize = MAX_DATA;

/// So many bytes of the catalogue wait for the receiver to have them.
const AHEAD: usize = 8 << 20;

/// A file whose contents are to be sent.
struct File {
    /// Number of its entry.
    id: u64,
    origin: Origin,
    /// The receiver has them, or as much as there will be.
    over: bool,
}

/// A file that is being sent.
struct Active {
    contents: Contents,
    checked: u64,
    sent: u64,
    hasher: blake3::Hasher,
}

/// Pieces of the catalogue that the receiver has not confirmed.
struct Unconfirmed {
    first: u64,
    count: u64,
    records: Vec<u8>,
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The receiver has not answered.
    Greeting,
    Catalogue,
    /// The catalogue is sent as a whole; the receiver has to say what it has.
    Announced,
    Contents,
    /// Everything is sent.
    Done,
}

pub(super) struct Plan {
    opener: Opener,
    monitor: Arc<Monitor>,
    unconfirmed: VecDeque<Unconfirmed>,
    unconfirmed_bytes: usize,
    /// Records of the catalogue so far, and of them those that this connection has sent.
    records: u64,
    sent_records: u64,
    entries: u64,
    end: Option<Totals>,
    files: Vec<File>,
    active: HashMap<usize, Active>,
    wanted: VecDeque<usize>,
    /// Before it, every file is over, or read ahead.
    cursor: usize,
    ahead: Option<Ahead>,
    stage: Stage,
    /// Bytes of files that are over.
    over_bytes: u64,
    /// Of files that could not be sent whole, the bytes that are missing.
    short: HashMap<usize, u64>,
    there_already: u64,
    /// Contents were sent in order, on some connection.
    has_sent: bool,
    /// The monitor knows of so many bytes.
    told: u64,
    /// What is read of a file.
    scratch: Vec<u8>,
}

impl Plan {
    pub(super) fn new(opener: Opener, monitor: Arc<Monitor>) -> Self {
        Plan {
            opener,
            monitor,
            unconfirmed: VecDeque::new(),
            unconfirmed_bytes: 0,
            records: 0,
            sent_records: 0,
            entries: 0,
            end: None,
            files: Vec::new(),
            active: HashMap::new(),
            wanted: VecDeque::new(),
            cursor: 0,
            ahead: None,
            stage: Stage::Greeting,
            over_bytes: 0,
            short: HashMap::new(),
            there_already: 0,
            has_sent: false,
            told: 0,
            scratch: Vec::new(),
        }
    }

    /// Takes more of the catalogue.
    pub(super) fn announce(&mut self, piece: Piece) {
        self.monitor.add_entries(piece.entries);
        self.entries += piece.entries;
        self.files.extend(piece.files.into_iter().map(|(id, origin)| File { id, origin, over: false }));
        if piece.count > 0 {
            self.unconfirmed_bytes += piece.records.len();
            let unconfirmed = Unconfirmed { first: self.records, count: piece.count, records: piece.records };
            self.unconfirmed.push_back(unconfirmed);
            self.records += piece.count;
        }
        if let Some(totals) = piece.end {
            self.end = Some(totals);
            self.monitor.source_size(totals.bytes);
        }
    }

    /// Whether more of the catalogue would only wait.
    pub(super) fn is_far_ahead(&self) -> bool {
        self.unconfirmed_bytes > AHEAD
    }

    /// There is no connection, and what the receiver has is not known.
    pub(super) fn disconnected(&mut self) {
        self.stage = Stage::Greeting;
        // What was read ahead was not sent.
        self.ahead.as_mut().and_then(Ahead::take);
        self.active.clear();
        self.wanted.clear();
        for file in &mut self.files {
            file.over = false;
        }
        self.over_bytes = 0;
        self.cursor = 0;
    }

    /// Grows with what the receiver is known to have, or has been sent for the first time.
    pub(super) fn progress(&self) -> u64 {
        self.told + self.unconfirmed.front().map_or(self.records, |front| front.first)
    }

    /// Bytes of contents that were announced, and could not be sent.
    pub(super) fn short_bytes(&self) -> u64 {
        self.short.values().sum()
    }

    /// Files that the receiver had from another sender before us.
    pub(super) fn there_already(&self) -> u64 {
        self.there_already
    }

    /// What the receiver says.
    pub(super) fn hear(&mut self, message: FromReceiver) -> Result<(), &'static str> {
        match message {
            FromReceiver::Welcome { catalogue } if self.stage == Stage::Greeting => {
                self.confirmed(catalogue)?;
                self.sent_records = catalogue;
                self.stage = Stage::Catalogue;
            }
            FromReceiver::Taken { catalogue } => self.confirmed(catalogue)?,
            FromReceiver::Whole { ranges } => {
                for (first, count) in ranges {
                    let end = first.checked_add(count).filter(|&end| end <= self.entries);
                    let end = end.ok_or("it has entries that were not announced")?;
                    let from = self.files.partition_point(|file| file.id < first);
                    for file in self.files[from..].iter_mut().take_while(|file| file.id < end) {
                        if !std::mem::replace(&mut file.over, true) {
                            self.over_bytes += file.origin.stored_len();
                            self.there_already += u64::from(!self.has_sent);
                        }
                    }
                }
            }
            FromReceiver::Parts(parts) => {
                for position in parts {
                    let n = self.file(position.id)?;
                    self.go_on(n, position)?;
                }
            }
            FromReceiver::Ready if self.stage == Stage::Announced => {
                self.stage = Stage::Contents;
                self.has_sent = true;
                self.tell_progress();
            }
            FromReceiver::Want(position) => {
                let n = self.file(position.id)?;
                if !self.files[n].over && !self.wanted.contains(&n) {
                    if position.received > 0 {
                        self.go_on(n, position)?;
                    }
                    self.wanted.push_back(n);
                }
            }
            _ => return Err("a message where it does not belong"),
        }
        Ok(())
    }

    fn confirmed(&mut self, records: u64) -> Result<(), &'static str> {
        if records > self.records {
            return Err("it has more of the catalogue than was sent");
        }
        while let Some(front) = self.unconfirmed.front()
            && front.first + front.count <= records
        {
            self.unconfirmed_bytes -= front.records.len();
            self.unconfirmed.pop_front();
        }
        if self.unconfirmed.front().map_or(self.records, |front| front.first) > records {
            return Err("it has less of the catalogue than it had");
        }
        Ok(())
    }

    fn file(&self, id: u64) -> Result<usize, &'static str> {
        self.files.binary_search_by_key(&id, |file| file.id).map_err(|_| "a file that was not announced")
    }

    /// The receiver has a part of a file. What was not checked of it is read again, for its hash.
    fn go_on(&mut self, n: usize, position: Position) -> Result<(), &'static str> {
        let file = &self.files[n];
        if position.checked > position.received || position.received > file.origin.stored_len() {
            return Err("it has more of a file than there is");
        }
        if file.over || self.active.contains_key(&n) {
            return Ok(());
        }
        // What cannot be opened is told when it is sent.
        let Ok(mut contents) = self.opener.open(&file.origin) else { return Ok(()) };
        let mut hasher = blake3::Hasher::new();
        let mut at = position.checked;
        self.scratch.resize(MAX_DATA, 0);
        while at < position.received {
            let len = self.scratch.len().min(usize::try_from(position.received - at).unwrap_or(usize::MAX));
            match contents.read(at, &mut self.scratch[..len]) {
                Ok(n) if n > 0 => {
                    hasher.update(&self.scratch[..n]);
                    at += n as u64;
                }
                // It has become shorter: sending it comes to the same end.
                _ => break,
            }
        }
        self.active.insert(n, Active { contents, checked: position.checked, sent: position.received, hasher });
        Ok(())
    }

    /// Whether there may be something to send.
    pub(super) fn has_something(&self) -> bool {
        match self.stage {
            Stage::Greeting | Stage::Done => false,
            _ if !self.wanted.is_empty() => true,
            Stage::Catalogue => self.sent_records < self.records || self.end.is_some(),
            Stage::Announced => false,
            Stage::Contents => true,
        }
    }

    /// The next batch, where there is something to send.
    pub(super) fn next(&mut self) -> Option<Batch> {
        if self.stage == Stage::Greeting {
            return None;
        }
        // Whatever is wanted may be in it.
        if let Some(read) = self.ahead.as_mut().and_then(Ahead::take) {
            return Some(self.account(read));
        }
        while let Some(n) = self.wanted.pop_front() {
            if self.files[n].over {
                continue;
            }
            if self.is_small(n) {
                let File { id, origin, .. } = &self.files[n];
                let read = small::read(&self.opener, vec![(n, *id, origin.clone())]);
                return Some(self.account(read));
            }
            let mut batch = Batch::default();
            self.piece(n, &mut batch);
            if !self.files[n].over {
                self.wanted.push_back(n);
            }
            return Some(batch);
        }
        match self.stage {
            Stage::Catalogue => self.next_of_catalogue(),
            Stage::Contents => self.next_in_order(),
            Stage::Greeting | Stage::Announced | Stage::Done => None,
        }
    }

    fn next_of_catalogue(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        let at = self.unconfirmed.partition_point(|piece| piece.first + piece.count <= self.sent_records);
        for piece in self.unconfirmed.range(at..) {
            if !batch.is_empty() && batch.len() + piece.records.len() > BATCH {
                break;
            }
            let mut records = &piece.records[..];
            for _ in piece.first..self.sent_records.max(piece.first) {
                records = &records[record::frame_length(records).unwrap_or(records.len())..];
            }
            batch.push_encoded(records);
            self.sent_records = piece.first + piece.count;
        }
        if let Some(totals) = self.end.filter(|_| self.sent_records == self.records) {
            batch.push(&FromSender::CatalogueEnd(totals));
            self.stage = Stage::Announced;
        }
        (!batch.is_empty()).then_some(batch)
    }

    fn next_in_order(&mut self) -> Option<Batch> {
        let files = self.small_files();
        if !files.is_empty() {
            let next = self.small_files();
            if !next.is_empty() {
                self.read_ahead(next);
            }
            let read = small::read(&self.opener, files);
            return Some(self.account(read));
        }
        let mut batch = Batch::default();
        if self.cursor == self.files.len() {
            // It stands alone in its frame.
            batch.push(&FromSender::Done);
            self.stage = Stage::Done;
            self.monitor.receiving(None);
        } else {
            self.piece(self.cursor, &mut batch);
        }
        Some(batch)
    }

    /// The small files that are next, as many as are a batch; none where something else is next.
    fn small_files(&mut self) -> Vec<small::File> {
        let mut files = Vec::new();
        let mut bytes = 0;
        while let Some(File { id, origin, over }) = self.files.get(self.cursor) {
            if !over {
                if !self.is_small(self.cursor) || bytes >= BATCH as u64 {
                    break;
                }
                bytes += origin.stored_len();
                files.push((self.cursor, *id, origin.clone()));
            }
            self.cursor += 1;
        }
        files
    }

    /// Has files read by the second thread: their batch is the next one, whatever else there is.
    fn read_ahead(&mut self, files: Vec<small::File>) {
        if self.ahead.is_none() {
            match Ahead::begin(self.opener.clone()) {
                Ok(ahead) => self.ahead = Some(ahead),
                Err(e) => log::info!("small files are read by one thread: {e}"),
            }
        }
        match &mut self.ahead {
            Some(ahead) => ahead.read(files),
            // The next time it is begun here again.
            None => self.cursor = files.first().map_or(self.cursor, |(n, ..)| *n),
        }
    }

    /// Files are read: what became of them is kept.
    fn account(&mut self, Files { batch, files }: Files) -> Batch {
        for Sent { n, bytes, fate } in files {
            self.is_over(n, bytes, &fate);
        }
        self.tell_progress();
        batch
    }

    fn is_small(&self, n: usize) -> bool {
        let origin = &self.files[n].origin;
        origin.sparse().is_none() && origin.stored_len() < SMALL
    }

    /// The next piece of a file that is not small.
    fn piece(&mut self, n: usize, batch: &mut Batch) {
        let id = self.files[n].id;
        if !self.active.contains_key(&n) {
            match self.opener.open(&self.files[n].origin) {
                Ok(contents) => {
                    let active = Active { contents, checked: 0, sent: 0, hasher: blake3::Hasher::new() };
                    self.active.insert(n, active);
                }
                Err(e) => {
                    let fate = Fate::Short { path: self.path(n), reason: e.to_string() };
                    return self.over(n, 0, *blake3::hash(&[]).as_bytes(), fate, batch);
                }
            }
        }
        let stored = self.files[n].origin.stored_len();
        let path = self.path(n);
        let Some(active) = self.active.get_mut(&n) else { return };
        // Said with each piece: the receiver shows it, and who comes back after a lost connection has to say it again.
        batch.push(&FromSender::Begin { id, path: path.clone() });
        let left = stored - active.sent;
        let upto_check = SEGMENT - (active.sent - active.checked).min(SEGMENT - 1);
        let len = left.min(upto_check).min(MAX_DATA as u64) as usize;
        let records = batch.records();
        let frame = record::begin(&FromSender::Data { id, offset: active.sent }, records);
        let at = records.len();
        records.resize(at + len, 0);
        let read = active.contents.read(active.sent, &mut records[at..]);
        let n_read = *read.as_ref().unwrap_or(&0);
        if n_read == 0 {
            records.truncate(frame);
        } else {
            records.truncate(at + n_read);
            active.hasher.update(&records[at..]);
            active.sent += n_read as u64;
            record::end(frame, records);
        }
        let sent = active.sent;
        self.tell_progress();
        self.monitor.receiving(Some(Receiving { path: crate::entry::escape(&path), received: sent, size: stored }));
        let Some(active) = self.active.get_mut(&n) else { return };
        let fate = match read {
            Err(e) => Fate::Short { path, reason: format!("it cannot be read: {e}") },
            Ok(read) if read < len => Fate::Short { path, reason: shrunk(sent, stored) },
            Ok(_) if sent == stored => match active.contents.is_unchanged() {
                Ok(true) => Fate::Whole,
                _ => Fate::Changed { path },
            },
            Ok(_) => {
                if sent - active.checked >= SEGMENT {
                    let hash = *active.hasher.finalize().as_bytes();
                    active.hasher.reset();
                    active.checked = sent;
                    batch.push(&FromSender::Check { id, upto: sent, hash });
                }
                return;
            }
        };
        let hash = *active.hasher.finalize().as_bytes();
        self.active.remove(&n);
        self.over(n, sent, hash, fate, batch);
    }

    fn over(&mut self, n: usize, sent: u64, hash: [u8; 32], fate: Fate, batch: &mut Batch) {
        self.is_over(n, sent, &fate);
        batch.push(&FromSender::End { id: self.files[n].id, hash, fate });
        self.tell_progress();
    }

    /// A file is over: so much of it is sent.
    fn is_over(&mut self, n: usize, sent: u64, fate: &Fate) {
        let file = &mut self.files[n];
        let stored = file.origin.stored_len();
        file.over = true;
        self.over_bytes += stored;
        match fate {
            Fate::Whole => {}
            Fate::Changed { path } => self.monitor.refused(path, "it was written to while it was sent"),
            Fate::Short { path, reason } => {
                self.short.insert(n, stored.saturating_sub(sent));
                self.monitor.refused(path, reason);
            }
        }
    }

    /// What had to be sent again after a lost connection counts once.
    fn tell_progress(&mut self) {
        let sent = self.over_bytes + self.active.values().map(|active| active.sent).sum::<u64>();
        if sent > self.told {
            self.monitor.add_source_bytes(sent - self.told);
            self.monitor.add_bytes(sent - self.told);
            self.told = sent;
        }
    }

    fn path(&self, n: usize) -> Vec<u8> {
        self.opener.path(&self.files[n].origin)
    }

    /// Whether this is what was sent.
    pub(super) fn is_confirmed(&self, totals: &Totals) -> bool {
        self.stage == Stage::Done && self.end.as_ref() == Some(totals)
    }

    /// What has not been sent, in words.
    pub(super) fn missing(&self) -> String {
        let files = self.files.iter().filter(|file| !file.over).count();
        let bytes = self.files.iter().map(|file| file.origin.stored_len()).sum::<u64>() - self.over_bytes;
        match (&self.end, files) {
            (None, _) => {
                format!("the tree was not read to its end; of {} files at least {files} are missing", self.files.len())
            }
            (Some(_), 0) => "everything was sent, and the receiver has not confirmed it".into(),
            (Some(_), _) => format!("{files} of {} files are missing or cut, at most {bytes} bytes", self.files.len()),
        }
    }
}
