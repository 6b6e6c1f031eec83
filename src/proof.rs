//! Proof that contents read back are the contents that were stored.
//!
//! The stored bytes of a file are divided into extents of [`EXTENT`] bytes. The CRC-32 (IEEE) of each is computed while
//! the bytes are in memory, and compared whenever they are read back, so that a disk that lost a write gives an error
//! and never zeros. It guards against faults, not against an attacker: anyone who can write the spool can also compute
//! checksums.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use parking_lot::Mutex;

use crate::entry::SparseMap;

/// Stored bytes under one checksum. A read of one byte reads all of them; 64 bytes of memory cover a mebibyte.
pub const EXTENT: u64 = 64 << 10;

/// Bytes of an encoded checksum.
const ENCODED: usize = 4;

/// Stored bytes that differ from their checksum, or have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unproved {
    /// The checksum differs.
    #[error("{len} stored bytes from {at} on differ from their checksum")]
    Differs {
        /// Offset of the extent among the stored bytes of its file.
        at: u64,
        /// Length of the extent.
        len: u64,
    },
    /// There is no checksum.
    #[error("there is no checksum of the stored bytes from {at} on")]
    NoChecksum {
        /// Offset among the stored bytes of the file.
        at: u64,
    },
}

impl From<Unproved> for io::Error {
    fn from(unproved: Unproved) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, unproved)
    }
}

/// The checksums of one file's stored bytes, from its beginning to as far as it has been written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    whole: Vec<u32>,
    /// Of the last extent, while it is not whole.
    tail: u32,
    len: u64,
}

impl Sums {
    /// Covers the bytes that follow.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = EXTENT - self.len % EXTENT;
            let (piece, rest) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            let mut hasher = crc32fast::Hasher::new_with_initial(self.tail);
            hasher.update(piece);
            self.tail = hasher.finalize();
            self.len += piece.len() as u64;
            if self.partial() == 0 {
                self.whole.push(std::mem::take(&mut self.tail));
            }
            bytes = rest;
        }
    }

    /// Those of the first `len` stored bytes, or of as many as the extents that are whole have.
    pub fn first(&self, len: u64) -> Sums {
        if len >= self.len {
            return self.clone();
        }
        let whole = self.whole[..(len / EXTENT) as usize].to_vec();
        Sums { len: whole.len() as u64 * EXTENT, whole, tail: 0 }
    }

    /// Stored bytes that are covered.
    pub fn covered(&self) -> u64 {
        self.len
    }

    /// Extents that are whole.
    pub fn whole(&self) -> u64 {
        self.whole.len() as u64
    }

    /// Bytes in a last extent that is not whole.
    fn partial(&self) -> u64 {
        self.len % EXTENT
    }

    /// The length and the checksum of extent `n`.
    fn extent(&self, n: u64) -> Option<(u64, u32)> {
        match self.whole.get(usize::try_from(n).ok()?) {
            Some(&sum) => Some((EXTENT, sum)),
            None if n == self.whole() && self.partial() > 0 => Some((self.partial(), self.tail)),
            None => None,
        }
    }

    /// The checksums from extent `first` on, little-endian; that of a last one that is not whole only if `all`.
    pub fn encode(&self, first: u64, all: bool) -> Vec<u8> {
        let first = usize::try_from(first).unwrap_or(usize::MAX).min(self.whole.len());
        let tail = (all && self.partial() > 0).then_some(&self.tail);
        self.whole[first..].iter().chain(tail).flat_map(|sum| sum.to_le_bytes()).collect()
    }

    /// The checksums of `len` stored bytes, from an encoding of all of them.
    pub fn decode(encoded: &[u8], len: u64) -> Option<Sums> {
        let (sums, []) = encoded.as_chunks::<ENCODED>() else { return None };
        let mut whole: Vec<u32> = sums.iter().map(|sum| u32::from_le_bytes(*sum)).collect();
        if len.div_ceil(EXTENT) != whole.len() as u64 {
            return None;
        }
        let tail = if len.is_multiple_of(EXTENT) { 0 } else { whole.pop()? };
        Some(Sums { whole, tail, len })
    }

    /// Puts encoded checksums from extent `first` on into `all`, which holds those before it.
    pub fn join(all: &mut Vec<u8>, first: u64, encoded: &[u8]) -> bool {
        let Some(at) = usize::try_from(first).ok().and_then(|first| first.checked_mul(ENCODED)) else { return false };
        if at > all.len() {
            return false;
        }
        // What was said of an extent before it was whole is out of date.
        all.truncate(at);
        all.extend_from_slice(encoded);
        true
    }
}

/// Fills `buf` with the stored bytes from `at` on, where all of them, proved or never stored, are in memory.
///
/// # Errors
/// There are fewer.
pub fn copy_from(stored: &[u8], buf: &mut [u8], at: u64) -> io::Result<()> {
    let bytes = usize::try_from(at).ok().and_then(|at| stored.get(at..at.checked_add(buf.len())?));
    buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
    Ok(())
}

/// Reads the stored bytes of one file, and compares them with their checksums.
pub struct Reader<'a> {
    file: &'a File,
    /// Where the stored bytes lie; without a map one after the other from the beginning.
    map: Option<&'a SparseMap>,
    sums: &'a Mutex<Sums>,
    /// The extent that a read used only a part of: neighbours are read together.
    held: Option<(u64, u64)>,
    extent: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Reads from `file`, in which the stored bytes are at the places that `map` gives them.
    pub fn new(file: &'a File, map: Option<&'a SparseMap>, sums: &'a Mutex<Sums>) -> Self {
        Reader { file, map, sums, held: None, extent: Vec::new() }
    }

    /// Fills `buf` with the stored bytes from `at` on.
    ///
    /// # Errors
    /// [`Unproved`], as an [`io::Error`], for bytes that are not those that were stored; or the error of the read.
    pub fn read(&mut self, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
        while !buf.is_empty() {
            let n = at / EXTENT;
            let within = at - n * EXTENT;
            let (len, sum) = self.sums.lock().extent(n).ok_or(Unproved::NoChecksum { at })?;
            let there = len.checked_sub(within).filter(|there| *there > 0).ok_or(Unproved::NoChecksum { at })?;
            let take = buf.len().min(usize::try_from(there).unwrap_or(usize::MAX));
            let whole = if within == 0 && self.map.is_none() { buf.len() / EXTENT as usize } else { 0 };
            let done = if whole > 1 && len == EXTENT {
                self.read_whole(&mut buf[..whole * EXTENT as usize], n)?
            } else {
                let piece = &mut buf[..take];
                if self.held == Some((n, len)) {
                    piece.copy_from_slice(&self.extent[within as usize..][..take]);
                } else if take as u64 == len {
                    fetch(self.file, self.map, piece, at)?;
                    prove(piece, at, sum)?;
                } else {
                    self.held = None;
                    self.extent.resize(len as usize, 0);
                    fetch(self.file, self.map, &mut self.extent, n * EXTENT)?;
                    prove(&self.extent, n * EXTENT, sum)?;
                    self.held = Some((n, len));
                    piece.copy_from_slice(&self.extent[within as usize..][..take]);
                }
                take
            };
            buf = &mut buf[done..];
            at += done as u64;
        }
        Ok(())
    }

    /// Reads several extents with one call. Returns how many bytes are read.
    fn read_whole(&self, buf: &mut [u8], first: u64) -> io::Result<usize> {
        let sums: Vec<u32> = {
            let sums = self.sums.lock();
            (first..first + buf.len() as u64 / EXTENT)
                .map_while(|n| sums.extent(n).filter(|(len, _)| *len == EXTENT).map(|(_, sum)| sum))
                .collect()
        };
        let buf = &mut buf[..sums.len() * EXTENT as usize];
        fetch(self.file, None, buf, first * EXTENT)?;
        for (n, (extent, sum)) in (first..).zip(buf.chunks_exact(EXTENT as usize).zip(&sums)) {
            prove(extent, n * EXTENT, *sum)?;
        }
        Ok(buf.len())
    }
}

fn fetch(file: &File, map: Option<&SparseMap>, buf: &mut [u8], at: u64) -> io::Result<()> {
    let Some(map) = map else { return file.read_exact_at(buf, at) };
    let mut rest = &mut buf[..];
    for segment in map.place(at, rest.len() as u64) {
        let (piece, after) = rest.split_at_mut(segment.len as usize);
        file.read_exact_at(piece, segment.offset)?;
        rest = after;
    }
    if rest.is_empty() { Ok(()) } else { Err(Unproved::NoChecksum { at }.into()) }
}

fn prove(bytes: &[u8], at: u64, sum: u32) -> Result<(), Unproved> {
    if crc32fast::hash(bytes) == sum { Ok(()) } else { Err(Unproved::Differs { at, len: bytes.len() as u64 }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Segment;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
    }

    fn sums_of(bytes: &[u8], step: usize) -> Sums {
        let mut sums = Sums::default();
        bytes.chunks(step).for_each(|piece| sums.update(piece));
        sums
    }

    #[test]
    fn any_steps_give_the_same_sums_and_they_survive_encoding() {
        let extent = EXTENT as usize;
        for len in [0, 1, extent - 1, extent, extent + 1, 3 * extent, 3 * extent + 77] {
            let bytes = bytes(len);
            let sums = sums_of(&bytes, 1 << 20);
            assert_eq!(sums, sums_of(&bytes, 4097), "{len}");
            assert_eq!(sums.covered(), len as u64);
            // Told in parts: one while the last extent was not whole.
            let half = sums_of(&bytes[..len / 2], 999);
            let mut all = Vec::new();
            assert!(Sums::join(&mut all, 0, &half.encode(0, true)));
            assert!(Sums::join(&mut all, half.whole(), &sums.encode(half.whole(), true)));
            assert_eq!(Sums::decode(&all, len as u64), Some(sums), "{len}");
            assert_eq!(Sums::decode(&all, len as u64 + EXTENT), None, "{len}");
        }
        assert!(!Sums::join(&mut Vec::new(), 1, &[0; 4]));
        assert_eq!(Sums::decode(&[0; 5], 1), None);
    }

    #[test]
    fn every_read_is_proved_and_every_damage_found() {
        let contents = bytes(5 * EXTENT as usize + 1234);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&contents, 0).unwrap();
        let sums = Mutex::new(sums_of(&contents, 5000));
        let mut reader = Reader::new(&file, None, &sums);
        let ranges = [(0, contents.len()), (1, 1), (65_535, 2), (65_536, 65_536), (70_000, 200_000), (327_680, 1234)];
        for (at, len) in ranges {
            let mut buf = vec![0; len];
            reader.read(&mut buf, at as u64).unwrap();
            assert!(buf == contents[at..at + len], "{at} {len}");
        }
        assert!(reader.read(&mut [0; 2], contents.len() as u64 - 1).is_err());
        // One page of zeros, as a lost write leaves it.
        file.write_all_at(&[0; 4096], 2 * EXTENT + 8192).unwrap();
        for (at, len, found) in
            [(0, 2 * EXTENT, false), (0, 5 * EXTENT, true), (2 * EXTENT, 1, true), (3 * EXTENT, 9, false)]
        {
            let read = Reader::new(&file, None, &sums).read(&mut vec![0; len as usize], at);
            assert_eq!(read.is_err(), found, "{at} {len}");
        }
    }

    #[test]
    fn stored_bytes_between_holes() {
        let map = SparseMap::new(1 << 40, (0..40).map(|n| Segment { offset: n << 30, len: 5000 })).unwrap();
        let contents = bytes(map.stored_len() as usize);
        let file = tempfile::tempfile().unwrap();
        let mut rest = &contents[..];
        for segment in map.segments() {
            file.write_all_at(&rest[..5000], segment.offset).unwrap();
            rest = &rest[5000..];
        }
        let sums = Mutex::new(sums_of(&contents, 1 << 20));
        let mut reader = Reader::new(&file, Some(&map), &sums);
        for (at, len) in [(0, contents.len()), (4999, 2), (123_456, 65_536)] {
            let mut buf = vec![0; len];
            reader.read(&mut buf, at as u64).unwrap();
            assert!(buf == contents[at..at + len]);
        }
        file.write_all_at(&[!contents[contents.len() - 1]], (39 << 30) + 4999).unwrap();
        assert!(Reader::new(&file, Some(&map), &sums).read(&mut [0; 1], contents.len() as u64 - 1).is_err());
    }
}
