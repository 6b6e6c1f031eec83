//! Where the data of a file with holes lies.

use serde::{Deserialize, Serialize};

/// A map may have this many segments; a hostile header could otherwise ask for memory without end.
pub const MAX_SEGMENTS: usize = 1 << 20;

/// A stretch of data: `len > 0` bytes at `offset` of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Where it begins in the file.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// The data segments of a file of a given size: in order, disjoint, not empty, inside the size. What is
/// between them is a hole, and reads as zeros.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u64, Vec<Segment>)", into = "(u64, Vec<Segment>)")]
pub struct SparseMap {
    size: u64,
    segments: Box<[Segment]>,
    /// `stored[i]` is the number of stored bytes before segment `i`.
    stored: Box<[u64]>,
    stored_len: u64,
}

/// Why segments are not a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SparseError {
    /// Segments overlap or are out of order.
    #[error("the sparse map is not in order")]
    Order,
    /// A segment reaches beyond the end of the file.
    #[error("the sparse map reaches beyond the size of the file")]
    Outside,
    /// A file of this size is none that Linux has: the kernel takes no offset beyond `i64::MAX`, and fails the listing
    /// of a whole directory for one entry that says so.
    #[error("no file can be as long as its sparse map says")]
    TooLong,
    /// More than [`MAX_SEGMENTS`].
    #[error("the sparse map has over {MAX_SEGMENTS} segments")]
    TooMany,
}

impl SparseMap {
    /// Checks `segments` against `size`. Empty segments (which GNU tar writes to mark the end) are dropped.
    pub fn new(size: u64, segments: impl IntoIterator<Item = Segment>) -> Result<Self, SparseError> {
        let mut kept: Vec<Segment> = Vec::new();
        let mut stored = Vec::new();
        let mut stored_len = 0u64;
        let mut end = 0u64;
        if size > i64::MAX as u64 {
            return Err(SparseError::TooLong);
        }
        for segment in segments {
            let after = segment.offset.checked_add(segment.len).ok_or(SparseError::Outside)?;
            if after > size {
                return Err(SparseError::Outside);
            }
            if segment.len == 0 {
                continue;
            }
            if segment.offset < end {
                return Err(SparseError::Order);
            }
            if kept.len() == MAX_SEGMENTS {
                return Err(SparseError::TooMany);
            }
            end = after;
            stored.push(stored_len);
            // Disjoint and inside `size`, so the sum cannot overflow.
            stored_len += segment.len;
            kept.push(segment);
        }
        Ok(SparseMap { size, segments: kept.into(), stored: stored.into(), stored_len })
    }

    /// The length of the file, holes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The data, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes of data: the sum of the segments.
    pub fn stored_len(&self) -> u64 {
        self.stored_len
    }

    /// Pages of `page` bytes that hold data.
    pub fn pages(&self, page: u64) -> u64 {
        let mut counted = 0;
        let mut pages = 0;
        for segment in self.segments.iter().filter(|segment| segment.len > 0) {
            let end = (segment.offset + segment.len).div_ceil(page);
            pages += end.saturating_sub(counted.max(segment.offset / page));
            counted = end;
        }
        pages
    }

    /// When `received` stored bytes are there: up to which offset of the file every byte is known. The hole
    /// behind a complete segment is known with it.
    pub fn known_until(&self, received: u64) -> u64 {
        if received >= self.stored_len {
            return self.size;
        }
        // The first segment that is not whole; one exists, since `received < stored_len`.
        let i = self.stored.partition_point(|&before| before <= received) - 1;
        self.segments[i].offset + (received - self.stored[i])
    }

    /// The segments and parts of segments that lie in `offset..offset + len` of the file, each with the
    /// position of its first byte among the stored bytes.
    pub fn within(&self, offset: u64, len: u64) -> impl Iterator<Item = (Segment, u64)> {
        let end = offset.saturating_add(len);
        let first = self.segments.partition_point(|s| s.offset + s.len <= offset);
        self.segments[first..].iter().zip(&self.stored[first..]).take_while(move |(s, _)| s.offset < end).map(
            move |(s, &stored)| {
                let from = s.offset.max(offset);
                let to = (s.offset + s.len).min(end);
                (Segment { offset: from, len: to - from }, stored + (from - s.offset))
            },
        )
    }

    /// The same for a stretch of stored bytes: where in the file they go, each piece with its length.
    pub fn place(&self, stored: u64, len: u64) -> impl Iterator<Item = Segment> {
        let end = stored.saturating_add(len);
        let first = self.stored.partition_point(|&before| before <= stored).saturating_sub(1);
        self.segments[first..]
            .iter()
            .zip(&self.stored[first..])
            .take_while(move |(_, before)| **before < end)
            .filter_map(move |(s, &before)| {
                let from = stored.max(before);
                let to = end.min(before + s.len);
                (from < to).then(|| Segment { offset: s.offset + (from - before), len: to - from })
            })
    }

    /// `SEEK_DATA`: the first offset at or after `offset` that holds data.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let i = self.segments.partition_point(|s| s.offset + s.len <= offset);
        self.segments.get(i).map(|s| s.offset.max(offset))
    }

    /// `SEEK_HOLE`: the first offset at or after `offset` that is in a hole, or the end of the file.
    pub fn next_hole(&self, offset: u64) -> u64 {
        let mut at = offset;
        let first = self.segments.partition_point(|s| s.offset + s.len <= offset);
        for s in &self.segments[first..] {
            if s.offset > at {
                break;
            }
            at = s.offset + s.len;
        }
        at.min(self.size)
    }
}

impl TryFrom<(u64, Vec<Segment>)> for SparseMap {
    type Error = SparseError;

    fn try_from((size, segments): (u64, Vec<Segment>)) -> Result<Self, SparseError> {
        SparseMap::new(size, segments)
    }
}

impl From<SparseMap> for (u64, Vec<Segment>) {
    fn from(map: SparseMap) -> Self {
        (map.size, map.segments.into_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(offset: u64, len: u64) -> Segment {
        Segment { offset, len }
    }

    fn map() -> SparseMap {
        SparseMap::new(100, [seg(10, 5), seg(20, 10), seg(30, 1), seg(100, 0)]).unwrap()
    }

    #[test]
    fn refuses() {
        assert_eq!(SparseMap::new(10, [seg(4, 4), seg(7, 1)]), Err(SparseError::Order));
        assert_eq!(SparseMap::new(10, [seg(4, 7)]), Err(SparseError::Outside));
        assert_eq!(SparseMap::new(10, [seg(u64::MAX, 2)]), Err(SparseError::Outside));
        assert!(SparseMap::new(i64::MAX as u64, []).is_ok());
        assert_eq!(SparseMap::new(1 << 63, []), Err(SparseError::TooLong));
    }

    #[test]
    fn pages() {
        assert_eq!(map().pages(4096), 1);
        assert_eq!(map().pages(10), 3);
        assert_eq!(SparseMap::new(1 << 40, (0..7).map(|n| seg(n << 20, 1))).unwrap().pages(4096), 7);
        assert_eq!(SparseMap::new(1 << 40, [seg(0, 0), seg(4095, 2)]).unwrap().pages(4096), 2);
    }

    #[test]
    fn known() {
        let map = map();
        assert_eq!(map.known_until(0), 10);
        assert_eq!(map.known_until(4), 14);
        assert_eq!(map.known_until(5), 20);
        assert_eq!(map.known_until(15), 30);
        assert_eq!(map.known_until(16), 100);
        assert_eq!(SparseMap::new(7, []).unwrap().known_until(0), 7);
    }

    #[test]
    fn finds() {
        let map = map();
        assert_eq!(map.within(12, 10).collect::<Vec<_>>(), [(seg(12, 3), 2), (seg(20, 2), 5)]);
        assert_eq!(map.within(15, 5).count(), 0);
        assert_eq!(map.place(3, 4).collect::<Vec<_>>(), [seg(13, 2), seg(20, 2)]);
        assert_eq!(map.place(0, 16).collect::<Vec<_>>(), [seg(10, 5), seg(20, 10), seg(30, 1)]);
        assert_eq!(map.place(5, 1).collect::<Vec<_>>(), [seg(20, 1)]);
        assert_eq!((map.next_data(0), map.next_data(14), map.next_data(31)), (Some(10), Some(14), None));
        assert_eq!((map.next_hole(0), map.next_hole(12), map.next_hole(25), map.next_hole(99)), (0, 15, 31, 99));
    }
}
