//! Small files, read as they are sent. Opening, reading and closing them is most of a sender's work, so a second
//! thread reads the files of the next batch while the ones of this batch are read and sent.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::entry::escape;
use crate::record;
use crate::tree::{OpenError, Opener, Origin};
use crate::wire::{Batch, Fate, FromSender};

/// A file to be read: its place in the plan, the number of its entry, and where it is.
pub(super) type File = (usize, u64, Origin);

/// Files that were read.
#[derive(Default)]
pub(super) struct Files {
    /// Their messages.
    pub(super) batch: Batch,
    pub(super) files: Vec<Sent>,
    /// Why not all of them were, where that is no fault of theirs.
    pub(super) failed: Option<String>,
}

/// What became of one.
pub(super) struct Sent {
    /// Its place in the plan.
    pub(super) n: usize,
    /// How much of it is in the batch.
    pub(super) bytes: u64,
    pub(super) fate: Fate,
}

/// The second thread.
pub(super) struct Ahead {
    work: SyncSender<Vec<File>>,
    done: Receiver<Files>,
    /// It has work, and what it made of that has not been taken.
    busy: bool,
}

impl Ahead {
    /// Begins it. It ends with this.
    pub(super) fn begin(opener: Opener) -> std::io::Result<Self> {
        let (work, files) = sync_channel::<Vec<File>>(1);
        let (send, done) = sync_channel(1);
        std::thread::Builder::new().name("small files".into()).spawn(move || {
            for files in files {
                if send.send(read(&opener, files)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Ahead { work, done, busy: false })
    }

    /// Has it read these.
    pub(super) fn read(&mut self, files: Vec<File>) {
        // Where it is gone, that is noticed when they are taken.
        let _ = self.work.send(files);
        self.busy = true;
    }

    /// What it has read; it is waited for. None where it had nothing to do.
    pub(super) fn take(&mut self) -> Option<Files> {
        let gone = |_| Files { failed: Some("a thread has panicked: please report it".into()), ..Files::default() };
        std::mem::take(&mut self.busy).then(|| self.done.recv().unwrap_or_else(gone))
    }
}

/// Reads files into a batch.
pub(super) fn read(opener: &Opener, files: Vec<File>) -> Files {
    let mut read = Files::default();
    for (n, id, origin) in files {
        match file(opener, id, &origin, &mut read.batch) {
            Ok((bytes, fate)) => read.files.push(Sent { n, bytes, fate }),
            Err(e) => {
                read.failed = Some(unreadable(&opener.path(&origin), &e));
                break;
            }
        }
    }
    let hash = *blake3::hash(read.batch.body()).as_bytes();
    read.batch.push(&FromSender::Sum { hash });
    read
}

/// A file into a batch. How much of it is sent, and what became of it. An error is ours, and not of the file.
fn file(opener: &Opener, id: u64, origin: &Origin, batch: &mut Batch) -> Result<(u64, Fate), OpenError> {
    let stored = origin.stored_len();
    let short = |reason: String| Fate::Short { path: opener.path(origin), reason };
    let records = batch.records();
    let mut contents = match opener.open(origin) {
        Ok(contents) => contents,
        Err(e) if e.is_ours() => return Err(e),
        Err(e) => {
            let fate = short(e.to_string());
            batch.push(&FromSender::File { id, fate: fate.clone() });
            return Ok((0, fate));
        }
    };
    let frame = record::begin(&FromSender::File { id, fate: Fate::Whole }, records);
    let at = records.len();
    records.resize(at + stored as usize, 0);
    let read = contents.read(0, &mut records[at..]);
    let len = *read.as_ref().unwrap_or(&0);
    records.truncate(at + len);
    let fate = match (read, contents.is_unchanged()) {
        (Err(e), _) => short(format!("it cannot be read: {e}")),
        (Ok(len), _) if (len as u64) < stored => short(shrunk(len as u64, stored)),
        (Ok(_), Ok(true)) => Fate::Whole,
        (Ok(_), _) => Fate::Changed { path: opener.path(origin) },
    };
    if fate == Fate::Whole {
        record::end(frame, records);
    } else {
        let bytes = records.split_off(at);
        records.truncate(frame);
        record::encode(&FromSender::File { id, fate: fate.clone() }, &bytes, records);
    }
    Ok((len as u64, fate))
}

/// What is said of a file that we cannot open, through no fault of its own.
pub(super) fn unreadable(path: &[u8], e: &OpenError) -> String {
    format!("cannot go on with '{}': {e}", escape(path))
}

pub(super) fn shrunk(read: u64, stored: u64) -> String {
    format!("it has become shorter while it was sent: {read} of {stored} bytes")
}
