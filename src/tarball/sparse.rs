//! The four ways in which GNU tar writes down where the data of a file with holes lies.
//!
//! Old GNU: in the header and in blocks behind it. Pax 0.0 and 0.1: in pax records. Pax 1.0: as decimal
//! lines at the front of the payload. (GNU tar manual, "Sparse Formats".)

use super::header::{BLOCK, Block, Header};
use super::number::header_number;
use crate::entry::{MAX_SEGMENTS, Segment, SparseError, SparseMap};

/// Why there is no sparse map where one should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadMap {
    #[error("its sparse map cannot be read")]
    Unreadable,
    #[error("its sparse map has a field that is no number")]
    NoNumber,
    #[error("its sparse map has too many segments")]
    TooMany,
    #[error("its sparse map is longer than its payload")]
    TooLong,
    #[error("it is sparse, and its size cannot be read")]
    NoSize,
    #[error("its sparse map has {map} bytes of data, the archive has {stored} of it")]
    OtherLength { map: u64, stored: u64 },
    #[error(transparent)]
    Map(#[from] SparseError),
}

/// It is not certain where an old GNU map ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sparse map has over {MAX_SEGMENTS} segments")]
pub(super) struct Endless;

/// Segments being collected; `broken` says why they are no map.
#[derive(Debug, Default)]
pub(super) struct Segments {
    list: Vec<Segment>,
    broken: Option<BadMap>,
}

impl Segments {
    fn push(&mut self, offset: u64, len: u64) {
        // One more than a map takes, so that the map says what is wrong. (An empty one marks the end.)
        if self.list.len() <= MAX_SEGMENTS + 1 {
            self.list.push(Segment { offset, len });
        }
    }

    /// Checks the map against the file's size and its stored length.
    pub(super) fn into_map(self, size: u64, stored: u64) -> Result<SparseMap, BadMap> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let map = SparseMap::new(size, self.list)?;
        // GNU tar reads whole blocks: a difference that stays within the last one moves nothing.
        if map.stored_len().div_ceil(BLOCK as u64) != stored.div_ceil(BLOCK as u64) {
            return Err(BadMap::OtherLength { map: map.stored_len(), stored });
        }
        Ok(map)
    }

    /// From `GNU.sparse.offset`/`numbytes` or `GNU.sparse.map`: offsets and lengths in turn.
    pub(super) fn from_numbers(numbers: &[u64], broken: bool) -> Self {
        let mut segments = Segments::default();
        if broken || !numbers.len().is_multiple_of(2) {
            segments.broken = Some(BadMap::Unreadable);
        }
        for pair in numbers.chunks_exact(2) {
            segments.push(pair[0], pair[1]);
        }
        segments
    }
}

/// Old GNU: the header, then blocks of 21 segments while each says that another follows.
#[derive(Debug, Default)]
pub(super) struct OldGnu {
    pub(super) segments: Segments,
    blocks: usize,
}

/// What comes behind a block of the map.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Block,
    Payload,
}

impl OldGnu {
    pub(super) fn begin(header: &Header<'_>) -> (Self, Next) {
        let mut map = OldGnu::default();
        map.take(header.sparse());
        (map, if header.sparse_continues() { Next::Block } else { Next::Payload })
    }

    pub(super) fn block(&mut self, block: &Block) -> Result<Next, Endless> {
        self.blocks += 1;
        if self.blocks > MAX_SEGMENTS / 21 + 1 {
            return Err(Endless);
        }
        self.take(&block[..504]);
        Ok(if map_continues(block) { Next::Block } else { Next::Payload })
    }

    /// An empty slot ends the segments of its block, not the map: a block that is announced is there (libarchive).
    fn take(&mut self, fields: &[u8]) {
        for field in fields.chunks_exact(24) {
            if field[12] == 0 {
                return;
            }
            match (number(&field[..12]), number(&field[12..])) {
                (Some(offset), Some(len)) => self.segments.push(offset, len),
                _ => self.segments.broken = Some(BadMap::NoNumber),
            }
        }
    }
}

/// Whether another block of an old GNU sparse map stands behind this one.
pub fn map_continues(block: &[u8; BLOCK]) -> bool {
    block[504] != 0
}

fn number(field: &[u8]) -> Option<u64> {
    header_number(field).and_then(|n| u64::try_from(n).ok())
}

/// Pax 1.0: the number of segments, then offset and length of each, a line per number, padded to a block.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) segments: Segments,
    count: Option<u64>,
    offset: Option<u64>,
    taken: u64,
    value: u64,
    digits: u32,
}

impl Lines {
    /// Takes bytes until the map ends, or is seen to be none. Returns how many, and whether it ended.
    pub(super) fn feed(&mut self, input: &[u8]) -> (usize, bool) {
        for (i, &b) in input.iter().enumerate() {
            match b {
                b'0'..=b'9' if self.digits < 19 => {
                    self.value = self.value * 10 + u64::from(b - b'0');
                    self.digits += 1;
                }
                b'\n' if self.digits > 0 => {
                    let value = std::mem::take(&mut self.value);
                    self.digits = 0;
                    match (self.count, self.offset.take()) {
                        (None, _) if value > MAX_SEGMENTS as u64 + 1 => {
                            self.segments.broken = Some(BadMap::TooMany);
                            return (i + 1, true);
                        }
                        (None, _) => self.count = Some(value),
                        (Some(_), None) => self.offset = Some(value),
                        (Some(_), Some(offset)) => {
                            self.segments.push(offset, value);
                            self.taken += 1;
                        }
                    }
                    if self.count == Some(self.taken) && self.offset.is_none() {
                        return (i + 1, true);
                    }
                }
                _ => {
                    self.segments.broken = Some(BadMap::Unreadable);
                    return (i + 1, true);
                }
            }
        }
        (input.len(), false)
    }

    /// The payload ended inside the map.
    pub(super) fn cut_short(&mut self) {
        self.segments.broken = Some(BadMap::TooLong);
    }
}

const _: () = assert!(21 * 24 < BLOCK);
