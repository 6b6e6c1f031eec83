//! Records: entries, contents and endings as bytes. One codec for the spool's journal and for the wire, which has
//! [messages](crate::wire::FromSender) of its own in the same frames.
//!
//! A record is framed as `[length u32][crc32 u32][payload]`, little endian, the checksum (CRC-32, IEEE) over the
//! payload. The payload is a [`Record`] in postcard's encoding; of a [`Record::Data`] the bytes follow behind
//! it, so that contents are not copied through the encoder. A torn or broken frame is told by [`DecodeError`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::entry::Entry;

/// The form of records. Another number means that older readers cannot read it.
pub const VERSION: u32 = 3;

/// Bytes of a frame before its payload.
pub const HEADER: usize = 8;

/// No payload is longer: small contents go into one record, and an entry at the bounds of its sparse map and
/// xattrs stays below.
pub const MAX_PAYLOAD: usize = 64 << 20;

/// One step of a stream of entries. Entries are numbered from 0 in order of arrival.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Begins a stream.
    Begin {
        /// [`VERSION`].
        version: u32,
    },
    /// An entry; the next number is its own.
    Entry(Box<Entry>),
    /// Stored bytes of entry `id`, from `offset` on; they follow behind the record in its frame.
    Data {
        /// The entry.
        id: u64,
        /// Where they begin among its stored bytes.
        offset: u64,
    },
    /// The contents of entry `id` are in the blob of this number.
    Blob {
        /// The entry.
        id: u64,
        /// The blob.
        number: u64,
        /// Whether the stored bytes follow each other there, without the holes between them.
        packed: bool,
    },
    /// Checksums of stored bytes of entry `id`, which is in a blob, from an extent on; they follow behind the record in
    /// its frame, as [`Sums::encode`](crate::proof::Sums::encode) writes them.
    Sums {
        /// The entry.
        id: u64,
        /// The first extent. What was said of it and of later ones before is out of date.
        first: u64,
    },
    /// No more contents of entry `id` come.
    End {
        /// The entry.
        id: u64,
        /// Stored bytes that arrived.
        received: u64,
        /// Whether these are all.
        complete: bool,
    },
    /// The stream is over.
    Finish {
        /// Whether its end marker came.
        complete: bool,
    },
    /// Behind [`Record::Begin`]: contents follow their entries in any order, and not each its own at once.
    Catalogue,
    /// Everything before this offset of the journal, and the blobs that it tells of, is on the disk: what a recovery may
    /// trust after a power failure.
    Durable {
        /// An offset in the journal.
        upto: u64,
    },
    /// The records behind it only tell of an early end: a transfer that is resumed goes on here.
    Cut,
    /// Entry `id` was written to while it was sent.
    Changed {
        /// The entry.
        id: u64,
    },
    /// What the sender of a catalogue knows entries by, from entry `first` on: a digest of 8 bytes each, little endian,
    /// behind the record in its frame.
    Digests {
        /// The first entry.
        first: u64,
    },
    /// Something is not as it was packed, for a reason that the other records do not tell.
    Problem {
        /// Whether it was accepted after one change.
        warning: bool,
        /// Which entry; empty where it concerns the stream.
        path: Vec<u8>,
        /// What is wrong with it.
        reason: String,
    },
    /// A sender began anew: problems before are out of date.
    Anew,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The frame is not all there.
    #[error("the record is torn")]
    Torn,
    /// The checksum or the payload is wrong.
    #[error("the record is damaged")]
    Damaged,
}

/// Appends a frame to `out`. Returns where in `out` it begins.
pub fn encode<T: Serialize>(record: &T, bytes: &[u8], out: &mut Vec<u8>) -> usize {
    let frame = begin(record, out);
    out.extend_from_slice(bytes);
    end(frame, out);
    frame
}

/// Begins a frame at the end of `out`: the bytes behind the record are to be appended, and [`end`] to be called with what
/// this returns.
pub fn begin<T: Serialize>(record: &T, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    let taken = std::mem::take(out);
    // Writing to a vector cannot fail, and no type of ours refuses to be serialized.
    *out = postcard::to_extend(record, taken).expect("a record can be encoded");
    start
}

/// Ends the frame that begins at `start` of `out`, and goes to its end.
pub fn end(start: usize, out: &mut [u8]) {
    let payload = &out[start + HEADER..];
    let len = (payload.len() as u32).to_le_bytes();
    let crc = crc32fast::hash(payload).to_le_bytes();
    out[start..start + 4].copy_from_slice(&len);
    out[start + 4..start + HEADER].copy_from_slice(&crc);
}

/// The length of the frame at the front of `input`, which is not looked into.
pub fn frame_length(input: &[u8]) -> Option<usize> {
    let header: &[u8; HEADER] = input.first_chunk()?;
    Some(HEADER + u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize)
}

/// Reads the frame at the front of `input`: the record, the bytes behind it, and the length of the frame.
pub fn decode<T: DeserializeOwned>(input: &[u8]) -> Result<(T, &[u8], usize), DecodeError> {
    let payload = decode_frame(input)?;
    let (record, bytes) = postcard::take_from_bytes(payload).map_err(|_| DecodeError::Damaged)?;
    Ok((record, bytes, HEADER + payload.len()))
}

/// The payload of the frame at the front of `input`, proved.
fn decode_frame(input: &[u8]) -> Result<&[u8], DecodeError> {
    let header: &[u8; HEADER] = input.first_chunk().ok_or(DecodeError::Torn)?;
    let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let crc = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if len > MAX_PAYLOAD {
        return Err(DecodeError::Damaged);
    }
    let payload = input.get(HEADER..HEADER + len).ok_or(DecodeError::Torn)?;
    if crc32fast::hash(payload) != crc {
        return Err(DecodeError::Damaged);
    }
    Ok(payload)
}

/// Compares the frames in the first `length` bytes of a journal with their checksums.
///
/// # Errors
/// The first frame that is not what was written; or the error of the read.
pub fn check(journal: &File, length: u64) -> io::Result<()> {
    let mut buf = vec![0; 1 << 20];
    let (mut at, mut used, mut there) = (0, 0, 0);
    while at < length {
        let wanted = frame_length(&buf[used..there]).unwrap_or(HEADER);
        if wanted <= there - used {
            if let Err(e) = decode_frame(&buf[used..there]) {
                let what = format!("the journal is damaged at byte {at}: {e}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            (used, at) = (used + wanted, at + wanted as u64);
            continue;
        }
        if wanted > HEADER + MAX_PAYLOAD {
            let what = format!("the journal is damaged at byte {at}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        buf.copy_within(used..there, 0);
        (there, used) = (there - used, 0);
        if buf.len() < wanted {
            buf.resize(wanted, 0);
        }
        match journal.read_at(&mut buf[there..], at + there as u64) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the journal has been cut")),
            Ok(n) => there += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The most that a frame of a [`Record::Data`] adds to its bytes: the header, and two numbers of at most ten bytes.
const DATA_FRAME: u64 = HEADER as u64 + 1 + 2 * 10;

/// Reads the contents of a small file of `stored` bytes, or what arrived of them, from the frame at `at` of a journal,
/// and proves them.
///
/// # Errors
/// [`DecodeError`], as an [`io::Error`], where the frame is not what was written; or the error of the read.
pub fn read_data(journal: &File, at: u64, stored: u64) -> io::Result<Vec<u8>> {
    let most = usize::try_from(stored.saturating_add(DATA_FRAME)).map_or(MAX_PAYLOAD, |most| most.min(MAX_PAYLOAD));
    let mut frame = vec![0; most];
    let mut there = 0;
    while there < most {
        match journal.read_at(&mut frame[there..], at + there as u64) {
            Ok(0) => break,
            Ok(n) => there += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let damaged = |e| io::Error::new(io::ErrorKind::InvalidData, e);
    let (record, bytes, length) = decode(&frame[..there]).map_err(damaged)?;
    let (Record::Data { .. }, bytes) = (record, bytes.len()) else { return Err(damaged(DecodeError::Damaged)) };
    frame.truncate(length);
    frame.drain(..length - bytes);
    Ok(frame)
}

/// For fuzzing: makes lengths and checksums of the frames in `body` right, so that what is in them is looked at.
#[cfg(any(test, fuzzing))]
pub fn seal(body: &mut [u8]) {
    let mut start = 0;
    while let Some(length) = frame_length(&body[start..]) {
        let stop = start.saturating_add(length).min(body.len());
        end(start, &mut body[..stop]);
        start = stop;
    }
}

/// For fuzzing: `input` as what comes over several connections, a length (u16, little endian) before each.
#[cfg(any(test, fuzzing))]
pub fn connections(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = input.split_first_chunk()?;
        let (connection, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        input = rest;
        Some(connection)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{EntryKind, EntryPath, Metadata};

    #[test]
    fn round_trip_and_every_damage() {
        let mut xattrs = crate::entry::Xattrs::default();
        xattrs.insert(b"user.a", b"b").unwrap();
        let entry = Entry {
            path: EntryPath::parse(b"a/b\xff").unwrap(),
            kind: EntryKind::Symlink { target: b"../x".as_slice().into() },
            metadata: Metadata { xattrs, ..Metadata::default() },
        };
        let records =
            [Record::Begin { version: VERSION }, Record::Entry(Box::new(entry)), Record::Data { id: 0, offset: 0 }];
        let mut bytes = Vec::new();
        for record in &records {
            let at = encode(record, b"contents", &mut bytes);
            assert_eq!(decode::<Record>(&bytes[at..]).map(|(_, bytes, _)| bytes), Ok(&b"contents"[..]));
        }
        let mut rest = &bytes[..];
        for record in &records {
            let (got, data, len) = decode::<Record>(rest).unwrap();
            assert_eq!((&got, data), (record, &b"contents"[..]));
            rest = &rest[len..];
        }
        let (_, _, first) = decode::<Record>(&bytes).unwrap();
        for cut in 0..first {
            assert_eq!(decode::<Record>(&bytes[..cut]), Err(DecodeError::Torn));
        }
        for i in 4..first {
            let mut broken = bytes[..first].to_vec();
            broken[i] ^= 1;
            assert!(decode::<Record>(&broken).is_err(), "byte {i}");
        }
    }
}
