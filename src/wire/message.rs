//! What the two sides say to each other. Each message is a record in a frame of [`record`](crate::record); of
//! [`FromSender::Data`] and [`FromSender::File`] the bytes follow behind it.
//!
//! `docs/wire.md` has the protocol on one page.

use serde::{Deserialize, Serialize};

use crate::entry::{Entry, Timestamp};

/// Files of fewer stored bytes than this, without holes, come as one [`FromSender::File`].
pub const SMALL: u64 = 128 << 10;

/// No [`FromSender::Data`] has more bytes.
pub const MAX_DATA: usize = 256 << 10;

/// So many stored bytes of a file at most are between two hashes of it.
pub const SEGMENT: u64 = 16 << 20;

/// A name of a host is shown, and is no longer than this.
pub const MAX_HOST: usize = 255;

/// Identifies one process of a sender, for as long as it lives: what it said before it need not say again.
pub type Session = [u8; 16];

/// Hash of what is sent, by BLAKE3.
pub type Hash = [u8; 32];

/// From the sender to the receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSender {
    /// Comes first on each connection.
    Hello {
        /// Of this process.
        session: Session,
        /// Its machine, to be shown.
        host: String,
        /// Its number there, to be shown.
        pid: u32,
        /// It takes the place of another sender, though that one is alive.
        take_over: bool,
    },
    /// The next record of the catalogue, an entry: these are numbered from 0. Contents follow later, and in any order.
    Entry {
        /// What it is.
        entry: Box<Entry>,
        /// Of a file with contents, when its inode was changed last: whatever changes the contents changes this too, and
        /// nobody can set it back.
        ctime: Option<Timestamp>,
    },
    /// The next record of the catalogue, something that could not be taken into it.
    Problem {
        /// Which name, as bytes.
        path: Vec<u8>,
        /// What is wrong with it.
        reason: String,
    },
    /// The catalogue is complete.
    CatalogueEnd(Totals),
    /// A small file without holes; its stored bytes follow behind the record. Frames of these have nothing else in them but
    /// their [`FromSender::Sum`].
    File {
        /// The entry.
        id: u64,
        /// What became of it.
        fate: Fate,
    },
    /// Behind small files, the last message of their frame: for all of them at once, since hashing each takes longer than
    /// sending it.
    Sum {
        /// Of all messages before it in this frame, as they are encoded.
        hash: Hash,
    },
    /// Contents of a file come now, in pieces: of one that is not small, or has holes.
    Begin {
        /// The entry.
        id: u64,
        /// What it is called, to be shown.
        path: Vec<u8>,
    },
    /// Stored bytes of a file; they follow behind the record.
    Data {
        /// The entry.
        id: u64,
        /// Where they begin among its stored bytes.
        offset: u64,
    },
    /// Hash of the stored bytes of a file since the last one of it.
    Check {
        /// The entry.
        id: u64,
        /// Stored bytes so far.
        upto: u64,
        /// Of the bytes in between.
        hash: Hash,
    },
    /// No more of a file comes.
    End {
        /// The entry.
        id: u64,
        /// Of the bytes since the last check.
        hash: Hash,
        /// What became of it.
        fate: Fate,
    },
    /// Everything has been sent: for [`FromReceiver::Commit`].
    Done,
    /// The sender ends.
    Bye(Leave),
}

/// Why a sender ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leave {
    /// It knows that everything is there.
    Done,
    /// Somebody has interrupted it, and may start it again.
    Interrupted,
    /// It cannot go on.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What became of the contents of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// All of it was sent, as it was when it was announced.
    Whole,
    /// So many bytes as were announced were sent, but somebody has written to the file meanwhile.
    Changed {
        /// What it is called, to be shown.
        path: Vec<u8>,
    },
    /// Fewer bytes were sent than were announced.
    Short {
        /// What it is called, to be shown.
        path: Vec<u8>,
        /// Why.
        reason: String,
    },
}

/// What a catalogue comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Records in it: entries and problems.
    pub records: u64,
    /// Entries.
    pub entries: u64,
    /// Of these, files with stored bytes.
    pub files: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Hash of all its records, as they were encoded.
    pub hash: Hash,
}

/// How far a file has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The entry.
    pub id: u64,
    /// Stored bytes that came before the last check.
    pub checked: u64,
    /// Stored bytes that came.
    pub received: u64,
}

/// From the receiver to the sender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromReceiver {
    /// Answers [`FromSender::Hello`].
    Welcome {
        /// Records of this session's catalogue that are there: it goes on behind them.
        catalogue: u64,
    },
    /// So many records of the catalogue are there, and need not be kept any longer.
    Taken {
        /// Records.
        catalogue: u64,
    },
    /// So many bytes of this connection's bodies are taken.
    Consumed {
        /// Decompressed.
        bytes: u64,
    },
    /// Of these entries (first, and how many) all is there. What there is to be said of a catalogue comes in as many messages
    /// as it takes.
    Whole {
        /// In order, not overlapping.
        ranges: Vec<(u64, u64)>,
    },
    /// Of these no more will be there than is: they were left out, or cut.
    Cut {
        /// In order, not overlapping.
        ranges: Vec<(u64, u64)>,
    },
    /// Of these files a part is there.
    Parts(Vec<Position>),
    /// Answers [`FromSender::CatalogueEnd`]: contents may be sent.
    Ready,
    /// Somebody waits for this file. It comes next.
    Want(Position),
    /// Why nothing is read at the moment, or that it goes on.
    Waiting {
        /// None: it goes on.
        reason: Option<String>,
    },
    /// Answers [`FromSender::Done`]: everything is there, its hashes are right, and it is on the disk.
    Commit {
        /// As the receiver has counted.
        totals: Totals,
        /// Entries and attributes that it had to leave out.
        refused: u64,
        /// Files of the tree that are cut.
        cut: u64,
    },
    /// Answers [`FromSender::Hello`] where another sender is alive that this one does not take the place of.
    Refused {
        /// The machine of the other one, as it has said.
        host: String,
        /// Its number there.
        pid: u32,
        /// When it came, by the clock of the receiver, in seconds since 1970.
        since: u64,
    },
    /// Another sender has taken the place of this one.
    TakenOver {
        /// Its machine, as it has said.
        host: String,
        /// Its number there.
        pid: u32,
    },
    /// The receiver ends.
    Bye {
        /// Why.
        reason: String,
    },
}
