//! What is sent next. Without I/O but that of the files that are sent: a connection asks for the next batch, and says what
//! the receiver answered.
//!
//! First what somebody waits for, piece by piece in turn; then the catalogue; then contents in the order of the catalogue.
//! After a connection is lost, the receiver says what it has, and only the rest is sent.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::catalogue::Piece;
use super::large::{Begun, End};
use super::small::{self, Ahead, Files, Sent, unreadable};
use crate::monitor::{Monitor, Receiving};
use crate::record;
use crate::tree::{Opener, Origin};
use crate::wire::{Batch, Fate, FromReceiver, FromSender, MAX_DATA, SMALL, Totals};

/// A batch is about so long.
const BATCH: usize = MAX_DATA;

/// No batch has more files: what is wanted meanwhile waits for it.
const FILES: usize = 256;

/// So many bytes of the catalogue wait for the receiver to have them.
const AHEAD: usize = 8 << 20;

/// A file whose contents are to be sent.
struct File {
    /// Number of its entry.
    id: u64,
    origin: Origin,
    /// The receiver has them, or as much as there will be.
    over: bool,
    /// It is among `wanted`.
    wanted: bool,
}

/// What the receiver said cannot be gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Odd {
    /// It does not keep to the protocol.
    Protocol(&'static str),
    /// It is another one than before, and has nothing of what was sent.
    Anew,
}

impl From<&'static str> for Odd {
    fn from(what: &'static str) -> Self {
        Odd::Protocol(what)
    }
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
    begun: Begun,
    wanted: VecDeque<usize>,
    /// Before it, every file is over, or read ahead.
    cursor: usize,
    ahead: Option<Ahead>,
    stage: Stage,
    /// Bytes of files that are over.
    over_bytes: u64,
    /// Of files that could not be sent whole, the bytes that are missing.
    short: HashMap<usize, u64>,
    /// Files of which has been told what became of them.
    told_of: HashSet<usize>,
    there_already: u64,
    /// Contents were sent in order, on some connection.
    has_sent: bool,
    /// The monitor knows of so many bytes.
    told: u64,
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
            begun: Begun::default(),
            wanted: VecDeque::new(),
            cursor: 0,
            ahead: None,
            stage: Stage::Greeting,
            over_bytes: 0,
            short: HashMap::new(),
            told_of: HashSet::new(),
            there_already: 0,
            has_sent: false,
            told: 0,
        }
    }

    /// Takes more of the catalogue.
    pub(super) fn announce(&mut self, piece: Piece) {
        self.monitor.add_entries(piece.entries);
        self.entries += piece.entries;
        let file = |(id, origin)| File { id, origin, over: false, wanted: false };
        self.files.extend(piece.files.into_iter().map(file));
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
        self.begun.clear();
        self.wanted.clear();
        for file in &mut self.files {
            (file.over, file.wanted) = (false, false);
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
    pub(super) fn hear(&mut self, message: FromReceiver) -> Result<(), Odd> {
        match message {
            FromReceiver::Welcome { catalogue } if self.stage == Stage::Greeting => {
                if catalogue < self.unconfirmed.front().map_or(self.records, |front| front.first) {
                    return Err(Odd::Anew);
                }
                self.confirmed(catalogue)?;
                self.sent_records = catalogue;
                self.stage = Stage::Catalogue;
            }
            FromReceiver::Taken { catalogue } if catalogue > self.sent_records => {
                return Err(Odd::Protocol("it has more of the catalogue than was sent"));
            }
            FromReceiver::Taken { catalogue } => self.confirmed(catalogue)?,
            FromReceiver::Whole { ranges } if self.stage == Stage::Announced => {
                for n in self.there(ranges)? {
                    self.there_already += u64::from(!self.has_sent);
                    self.short.remove(&n);
                }
            }
            FromReceiver::Cut { ranges } if self.stage == Stage::Announced => {
                for n in self.there(ranges)? {
                    let stored = self.files[n].origin.stored_len();
                    self.short.entry(n).or_insert(stored);
                }
            }
            FromReceiver::Parts(parts) => {
                for position in parts {
                    let n = self.file(position.id)?;
                    if !self.files[n].over {
                        self.begun.go_on(n, position, self.files[n].origin.stored_len())?;
                    }
                }
            }
            FromReceiver::Ready if self.stage == Stage::Announced => {
                self.stage = Stage::Contents;
                self.has_sent = true;
                self.tell_progress();
            }
            FromReceiver::Want(position) => {
                let n = self.file(position.id)?;
                let file = &mut self.files[n];
                if !file.over && !std::mem::replace(&mut file.wanted, true) {
                    if position.received > 0 {
                        self.begun.go_on(n, position, file.origin.stored_len())?;
                    }
                    self.wanted.push_back(n);
                }
            }
            _ => return Err(Odd::Protocol("a message where it does not belong")),
        }
        Ok(())
    }

    /// Of these entries no more is to be sent. Files that were not over yet.
    fn there(&mut self, ranges: Vec<(u64, u64)>) -> Result<Vec<usize>, &'static str> {
        let mut over = Vec::new();
        let mut before = 0;
        for (first, count) in ranges {
            let end = first.checked_add(count).filter(|&end| end <= self.entries);
            let end = end.ok_or("it has entries that were not announced")?;
            if first < std::mem::replace(&mut before, end) {
                return Err("it has entries twice");
            }
            let from = self.files.partition_point(|file| file.id < first);
            for (n, file) in self.files.iter_mut().enumerate().skip(from).take_while(|(_, file)| file.id < end) {
                if !std::mem::replace(&mut file.over, true) {
                    self.over_bytes += file.origin.stored_len();
                    over.push(n);
                }
            }
        }
        Ok(over)
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

    /// The next batch, where there is something to send. An error is why we cannot go on.
    pub(super) fn next(&mut self) -> Result<Option<Batch>, String> {
        if self.stage == Stage::Greeting {
            return Ok(None);
        }
        // Whatever is wanted may be in it.
        if let Some(read) = self.ahead.as_mut().and_then(Ahead::take) {
            return self.account(read).map(Some);
        }
        while let Some(n) = self.wanted.pop_front() {
            let File { id, origin, over, wanted } = &mut self.files[n];
            *wanted = false;
            if *over {
                continue;
            }
            if is_small(origin) {
                let read = small::read(&self.opener, vec![(n, *id, origin.clone())]);
                return self.account(read).map(Some);
            }
            let batch = self.piece(n)?;
            let file = &mut self.files[n];
            if !file.over {
                file.wanted = true;
                self.wanted.push_back(n);
            }
            return Ok(Some(batch));
        }
        match self.stage {
            Stage::Catalogue => Ok(self.next_of_catalogue()),
            Stage::Contents => self.next_in_order().map(Some),
            Stage::Greeting | Stage::Announced | Stage::Done => Ok(None),
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

    fn next_in_order(&mut self) -> Result<Batch, String> {
        let files = self.small_files();
        if !files.is_empty() {
            let next = self.small_files();
            if !next.is_empty() {
                self.read_ahead(next);
            }
            let read = small::read(&self.opener, files);
            return self.account(read);
        }
        if self.cursor < self.files.len() {
            return self.piece(self.cursor);
        }
        // It stands alone in its frame.
        let mut batch = Batch::default();
        batch.push(&FromSender::Done);
        self.stage = Stage::Done;
        self.monitor.receiving(None);
        Ok(batch)
    }

    /// The small files that are next, as many as are a batch; none where something else is next.
    fn small_files(&mut self) -> Vec<small::File> {
        let mut files = Vec::new();
        let mut bytes = 0;
        while let Some(File { id, origin, over, .. }) = self.files.get(self.cursor) {
            if !over {
                if !is_small(origin) || bytes >= BATCH as u64 || files.len() >= FILES {
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
    fn account(&mut self, Files { batch, files, failed }: Files) -> Result<Batch, String> {
        for Sent { n, bytes, fate } in files {
            self.is_over(n, bytes, &fate);
        }
        self.tell_progress();
        failed.map_or(Ok(batch), Err)
    }

    /// The next piece of a file that is not small.
    fn piece(&mut self, n: usize) -> Result<Batch, String> {
        let mut batch = Batch::default();
        let File { id, origin, .. } = &self.files[n];
        let (id, stored, path) = (*id, origin.stored_len(), self.opener.path(origin));
        let piece = self.begun.piece(n, (id, origin), &self.opener, &mut batch);
        let (received, end) = piece.map_err(|e| unreadable(&path, &e))?;
        if let Some(End { sent, hash, fate }) = end {
            self.is_over(n, sent, &fate);
            batch.push(&FromSender::End { id, hash, fate });
        }
        self.tell_progress();
        self.monitor.receiving(Some(Receiving { path: crate::entry::escape(&path), received, size: stored }));
        Ok(batch)
    }

    /// A file is over: so much of it is sent.
    fn is_over(&mut self, n: usize, sent: u64, fate: &Fate) {
        let file = &mut self.files[n];
        let stored = file.origin.stored_len();
        if !std::mem::replace(&mut file.over, true) {
            self.over_bytes += stored;
        }
        self.short.remove(&n);
        let (path, reason) = match fate {
            Fate::Whole => return,
            Fate::Changed { path } => (path, "it was written to while it was sent"),
            Fate::Short { path, reason } => {
                self.short.insert(n, stored.saturating_sub(sent));
                (path, reason.as_str())
            }
        };
        // After a lost connection it is sent again, and comes to the same end.
        if self.told_of.insert(n) {
            self.monitor.refused(path, reason);
        }
    }

    /// What had to be sent again after a lost connection counts once.
    fn tell_progress(&mut self) {
        let sent = self.over_bytes + self.begun.sent();
        if sent > self.told {
            self.monitor.add_source_bytes(sent - self.told);
            self.monitor.add_bytes(sent - self.told);
            self.told = sent;
        }
    }

    /// Whether this is what was sent.
    pub(super) fn is_confirmed(&self, totals: &Totals) -> bool {
        self.stage == Stage::Done && self.end.as_ref() == Some(totals)
    }

    /// What has not been sent, in words.
    pub(super) fn missing(&self) -> String {
        let files = self.files.iter().filter(|file| !file.over).count();
        let bytes = self.files.iter().map(|file| file.origin.stored_len()).sum::<u64>().saturating_sub(self.over_bytes);
        match (&self.end, files) {
            (None, _) => {
                format!("the tree was not read to its end; of {} files at least {files} are missing", self.files.len())
            }
            (Some(_), 0) => "everything was sent, and the receiver has not confirmed it".into(),
            (Some(_), _) => format!("{files} of {} files are missing or cut, at most {bytes} bytes", self.files.len()),
        }
    }
}

fn is_small(origin: &Origin) -> bool {
    origin.sparse().is_none() && origin.stored_len() < SMALL
}
