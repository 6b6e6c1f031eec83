//! Where the data of a file lies.

use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::entry::{MAX_SEGMENTS, Segment, SparseMap};

/// A hole that is smaller is data: it is no hole of most file systems, and a segment has its price.
const MIN_HOLE: u64 = 4096;

/// Where the data is, asked with SEEK_DATA and SEEK_HOLE. None where there is no hole that is worth it, or nobody knows.
pub(super) fn map(file: BorrowedFd<'_>, size: u64) -> Option<SparseMap> {
    let mut segments = Segments::default();
    let mut at = 0;
    while at < size {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // There is none behind it.
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let hole = seek(file, SeekFrom::Hole(data)).ok()?;
        if hole <= data {
            return None;
        }
        // Others may write to it meanwhile.
        if data < size {
            segments.push(data, hole.min(size));
        }
        at = hole;
    }
    let map = SparseMap::new(size, segments.list).ok()?;
    (size - map.stored_len() >= MIN_HOLE).then_some(map)
}

#[derive(Default)]
struct Segments {
    list: Vec<Segment>,
    /// The least that is between two of them is this, times [`MIN_HOLE`] and more.
    coarseness: u32,
}

impl Segments {
    fn push(&mut self, from: u64, to: u64) {
        let least = MIN_HOLE << self.coarseness;
        match self.list.last_mut() {
            None if from < least => self.list.push(Segment { offset: 0, len: to }),
            Some(last) if from - (last.offset + last.len) < least => last.len = to - last.offset,
            _ => self.list.push(Segment { offset: from, len: to - from }),
        }
        while self.list.len() > MAX_SEGMENTS {
            self.coarsen();
        }
    }

    /// Gives up the smallest holes.
    fn coarsen(&mut self) {
        self.coarseness += 1;
        let least = MIN_HOLE << self.coarseness;
        self.list.dedup_by(|next, before| {
            let near = next.offset - (before.offset + before.len) < least;
            if near {
                before.len = next.offset + next.len - before.offset;
            }
            near
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_holes_go_first() {
        let mut segments = Segments::default();
        segments.push(100, 8192);
        segments.push(8200, 9000);
        segments.push(16384, 20480);
        assert_eq!(segments.list, [Segment { offset: 0, len: 9000 }, Segment { offset: 16384, len: 4096 }]);
        segments.coarsen();
        assert_eq!(segments.list, [Segment { offset: 0, len: 20480 }]);
    }

    #[test]
    fn never_more_than_a_map_takes() {
        let mut segments = Segments::default();
        for n in 0..=MAX_SEGMENTS as u64 {
            // Every second hole is larger.
            let at = n / 2 * 32768 + n % 2 * 8192;
            segments.push(at, at + 4096);
        }
        assert!(segments.list.len() <= MAX_SEGMENTS / 2 + 1);
        assert_eq!(segments.list[1], Segment { offset: 32768, len: 12288 });
    }
}
