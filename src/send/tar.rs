//! A walked tree as a pax archive.
//!
//! Three threads: the walk, a few hundred entries ahead; the reader, which makes the archive out of entries and
//! contents, and which is the caller's; and the writer. So the disk is read while the pipe is written.
//!
//! A file whose header has been written cannot be taken back: tar has no way to say that it ends early. Where it has
//! become shorter, or cannot be read on, zeros stand in for the rest; it is named, and counts as a problem. A file that
//! cannot be opened has no header.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use super::limit::Limit;
use super::report::Report;
use crate::entry::{Entry, EntryKind, EntryPath};
use crate::tarball::{END, Encoder, RECORD, fill};
use crate::tree::{Opener, Origin, Step, Walk};

/// What is read and written at a time. Larger ones are slower: they do not stay in the cache of a core.
const BUFFER: usize = 256 << 10;

/// So many of them are full and wait to be written, at most.
const BUFFERS: usize = 4;

/// Steps of the walk come in parcels of so many, or of what there was in this time.
const PARCEL: usize = 128;
const PARCEL_TIME: Duration = Duration::from_millis(20);

/// So many parcels the walk is ahead, at most.
const PARCELS: usize = 4;

/// How an archive is written.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bytes a second, at most.
    pub rate_limit: Option<u64>,
    /// The name of a user, for ACLs.
    pub user_name: fn(u32) -> Option<Vec<u8>>,
    /// The name of a group.
    pub group_name: fn(u32) -> Option<Vec<u8>>,
}

/// Writes all that `walk` comes by to `out`, as tar. What could not be sent is in the report; an error is one of `out`.
pub fn tar(walk: Walk, out: impl Write + Send, options: Options, report: &Report) -> io::Result<()> {
    let opener = walk.opener();
    let (parcels, steps) = sync_channel(PARCELS);
    let (full, to_write) = sync_channel(BUFFERS);
    let (empty, written) = sync_channel(BUFFERS + 2);
    std::thread::scope(|scope| {
        let builder = || std::thread::Builder::new();
        builder().name("walk".into()).spawn_scoped(scope, move || go(walk, &parcels))?;
        let limit = Limit::new(options.rate_limit, Instant::now());
        let writer =
            builder().name("write".into()).spawn_scoped(scope, move || write(out, &to_write, &empty, limit))?;
        let encoder = Encoder::new(options.user_name, options.group_name);
        let buffers = Buffers { full, empty: written, buffer: Buffer::new(), position: 0 };
        let mut archive = Archive { opener, report, encoder, buffers, header: Vec::new(), left: HashSet::new() };
        let made = archive.make(&steps);
        // Both others end when nobody is at the other end of their channel.
        drop((archive, steps));
        match (writer.join(), made) {
            (Ok(Err(e)), _) => Err(e),
            (Ok(Ok(())), Ok(())) => Ok(()),
            (Err(_), _) | (_, Err(Gone)) => Err(io::Error::other("writing ended with a panic: please report it")),
        }
    })
}

/// The thread at the other end of a channel has ended.
struct Gone;

fn go(walk: Walk, parcels: &SyncSender<Vec<Step>>) {
    let mut parcel = Vec::with_capacity(PARCEL);
    let mut begun = Instant::now();
    for step in walk {
        parcel.push(step);
        if parcel.len() == PARCEL || begun.elapsed() >= PARCEL_TIME {
            if parcels.send(std::mem::replace(&mut parcel, Vec::with_capacity(PARCEL))).is_err() {
                return;
            }
            begun = Instant::now();
        }
    }
    let _ = parcels.send(parcel);
}

fn write(
    mut out: impl Write,
    to_write: &Receiver<Buffer>,
    empty: &SyncSender<Buffer>,
    mut limit: Limit,
) -> io::Result<()> {
    for mut buffer in to_write {
        let mut rest = &buffer.bytes[..buffer.len];
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(limit.piece(rest.len()));
            let wait = limit.take(piece.len(), Instant::now());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
            out.write_all(piece)?;
            rest = behind;
        }
        buffer.len = 0;
        // There is always room for it; nobody may want it any more.
        let _ = empty.try_send(buffer);
    }
    out.flush()
}

/// Bytes on their way to the writer. Always of the full length, so that none are cleared in vain.
struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
}

impl Buffer {
    fn new() -> Self {
        Buffer { bytes: vec![0; BUFFER].into(), len: 0 }
    }
}

struct Buffers {
    full: SyncSender<Buffer>,
    empty: Receiver<Buffer>,
    buffer: Buffer,
    position: u64,
}

impl Buffers {
    /// Gives what there is to the writer.
    fn pass(&mut self) -> Result<(), Gone> {
        if self.buffer.len == 0 {
            return Ok(());
        }
        let next = self.empty.try_recv().unwrap_or_else(|_| Buffer::new());
        self.full.send(std::mem::replace(&mut self.buffer, next)).map_err(|_| Gone)
    }

    /// Room for some bytes, at most `wanted`.
    fn room(&mut self, wanted: u64) -> Result<&mut [u8], Gone> {
        if self.buffer.len == BUFFER {
            self.pass()?;
        }
        let free = &mut self.buffer.bytes[self.buffer.len..];
        let len = usize::try_from(wanted).unwrap_or(usize::MAX).min(free.len());
        Ok(&mut free[..len])
    }

    /// So many bytes of the room have been filled.
    fn filled(&mut self, n: usize) {
        self.buffer.len += n;
        self.position += n as u64;
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let room = self.room(bytes.len() as u64)?;
            let n = room.len();
            room.copy_from_slice(&bytes[..n]);
            self.filled(n);
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn push_zeros(&mut self, mut n: u64) -> Result<(), Gone> {
        while n > 0 {
            let room = self.room(n)?;
            room.fill(0);
            let done = room.len();
            self.filled(done);
            n -= done as u64;
        }
        Ok(())
    }
}

struct Archive<'a> {
    opener: Opener,
    report: &'a Report,
    encoder: Encoder,
    buffers: Buffers,
    header: Vec<u8>,
    /// Entries that are not in the archive, though the walk has them: nothing can be linked to them.
    left: HashSet<EntryPath>,
}

impl Archive<'_> {
    fn make(&mut self, parcels: &Receiver<Vec<Step>>) -> Result<(), Gone> {
        loop {
            let parcel = match parcels.try_recv() {
                // Nothing lies here while the walk waits for its disk.
                Err(TryRecvError::Empty) => {
                    self.buffers.pass()?;
                    parcels.recv().ok()
                }
                Err(TryRecvError::Disconnected) => None,
                Ok(parcel) => Some(parcel),
            };
            let Some(parcel) = parcel else { break };
            for step in parcel {
                match step {
                    Step::Entry { entry, contents } => self.entry(&entry, contents.as_ref())?,
                    Step::Problem { path, reason } => self.report.problem(&path, reason),
                    Step::Note { path, message } => self.report.note(&path, message),
                }
            }
        }
        self.buffers.push(&END)?;
        let behind = self.buffers.position % RECORD as u64;
        if behind > 0 {
            self.buffers.push_zeros(RECORD as u64 - behind)?;
        }
        self.buffers.pass()
    }

    fn entry(&mut self, entry: &Entry, origin: Option<&Origin>) -> Result<(), Gone> {
        let path = entry.path.as_bytes();
        if let EntryKind::HardLink { target } = &entry.kind
            && self.left.contains(target)
        {
            let reason = format!("it is another name of '{target}', which is not in the archive");
            self.report.problem(path, reason);
            return Ok(());
        }
        let contents = match origin.filter(|origin| origin.size() > 0).map(|origin| self.opener.open(origin)) {
            Some(Err(e)) => {
                self.report.problem(path, e);
                self.left.insert(entry.path.clone());
                return Ok(());
            }
            Some(Ok(contents)) => Some(contents),
            None => None,
        };
        self.header.clear();
        match self.encoder.begin(entry, &mut self.header) {
            Ok(left_out) => left_out.into_iter().for_each(|reason| self.report.problem(path, reason)),
            Err(e) => {
                self.report.note(path, format!("it is left out: {e}"));
                self.left.insert(entry.path.clone());
                return Ok(());
            }
        }
        self.report.entry(path);
        self.buffers.push(&self.header)?;
        let Some(mut contents) = contents else { return Ok(()) };
        let len = entry.kind.stored_len();
        let mut at = 0;
        let mut short = None;
        while at < len {
            let room = self.buffers.room(len - at)?;
            match contents.read(at, room) {
                Ok(0) => short = Some("it has become shorter".to_owned()),
                Ok(n) => {
                    self.buffers.filled(n);
                    self.report.add_bytes(n as u64);
                    at += n as u64;
                    continue;
                }
                Err(e) => short = Some(format!("it cannot be read on: {e}")),
            }
            break;
        }
        self.buffers.push_zeros(len - at + fill(len) as u64)?;
        match short {
            Some(why) => {
                let reason =
                    format!("{why}: the last {} bytes of what is sent of it are zeros, and not its own", len - at);
                self.report.problem(path, reason);
            }
            None if !contents.is_unchanged().unwrap_or(false) => {
                self.report.problem(path, "it was changed while it was sent: what is sent may be of both states");
            }
            None => {}
        }
        Ok(())
    }
}
