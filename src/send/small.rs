//! Small files, read and hashed as they are sent. Opening, reading and closing them is most of a sender's work, so a second
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
        let (bytes, hash, fate) = match contents(opener, id, &origin, &mut read.batch) {
            Ok(sent) => sent,
            Err(e) => {
                read.failed = Some(unreadable(&opener.path(&origin), &e));
                break;
            }
        };
        let end = FromSender::End { id, hash, fate };
        read.batch.push(&end);
        let FromSender::End { fate, .. } = end else { continue };
        read.files.push(Sent { n, bytes, fate });
    }
    read
}

/// The contents of a file. How much of it is sent, the hash of that, and what became of the file. An error is ours, and not
/// of the file.
fn contents(opener: &Opener, id: u64, origin: &Origin, batch: &mut Batch) -> Result<(u64, [u8; 32], Fate), OpenError> {
    let stored = origin.stored_len();
    let nothing = *blake3::hash(&[]).as_bytes();
    let short = |reason: String| Fate::Short { path: opener.path(origin), reason };
    let mut contents = match opener.open(origin) {
        Ok(contents) => contents,
        Err(e) if e.is_ours() => return Err(e),
        Err(e) => return Ok((0, nothing, short(e.to_string()))),
    };
    let records = batch.records();
    let frame = record::begin(&FromSender::Data { id, offset: 0 }, records);
    let at = records.len();
    records.resize(at + stored as usize, 0);
    let read = contents.read(0, &mut records[at..]);
    let len = *read.as_ref().unwrap_or(&0);
    let hash = if len == 0 {
        records.truncate(frame);
        nothing
    } else {
        records.truncate(at + len);
        record::end(frame, records);
        *blake3::hash(&records[at..]).as_bytes()
    };
    let fate = match (read, contents.is_unchanged()) {
        (Err(e), _) => short(format!("it cannot be read: {e}")),
        (Ok(len), _) if (len as u64) < stored => short(shrunk(len as u64, stored)),
        (Ok(_), Ok(true)) => Fate::Whole,
        (Ok(_), _) => Fate::Changed { path: opener.path(origin) },
    };
    Ok((len as u64, hash, fate))
}

/// What is said of a file that we cannot open, through no fault of its own.
pub(super) fn unreadable(path: &[u8], e: &OpenError) -> String {
    format!("cannot go on with '{}': {e}", escape(path))
}

pub(super) fn shrunk(read: u64, stored: u64) -> String {
    format!("it has become shorter while it was sent: {read} of {stored} bytes")
}
