//! What of a large file its reader has left behind, and the kernel need not keep.
//!
//! What is read of an archive in place is in memory twice: in the page cache of the archive, and in that of the mount.
//! Of a file that is read from front to end the second copy serves nobody, and takes the memory that the reader wants
//! for other things. So the kernel is told to forget it, at a distance behind the reader. Not of a file that is smaller
//! than [`LEAST`], which may well be read again; and not while somebody else reads the same one.

use std::time::{Duration, Instant};

use crate::index::Ino;

/// So much of a file stays, however it is read.
pub(super) const LEAST: u64 = 64 << 20;

/// Requests of whoever reads from front to end are at least so large.
const REQUEST: u64 = 64 << 10;

/// So far behind what was asked for last, nothing is forgotten. The kernel asks for pages before the reader wants them, and
/// several of our threads answer: what is within this distance belongs together.
const DISTANCE: u64 = 16 << 20;

/// So much is forgotten at once.
const STEP: u64 = 8 << 20;

/// Readers that are followed at once.
const PASSES: usize = 8;

/// Of readers who ask for little, so many files are remembered.
const HERE_AND_THERE: usize = 8;

/// A reader that has asked for nothing for so long has gone away.
const GONE: Duration = Duration::from_secs(10);

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which file.
    pub ino: Ino,
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// Files that are read from front to end.
#[derive(Debug, Default)]
pub(super) struct Passes {
    passes: [Pass; PASSES],
    /// Files that somebody reads a little of, and when they did last.
    here_and_there: [(u64, Option<Instant>); HERE_AND_THERE],
}

#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    ino: u64,
    /// Where it began.
    begin: u64,
    /// Up to here the kernel has been told to forget.
    forgotten: u64,
    /// Up to here it was asked for.
    end: u64,
    used: Option<Instant>,
}

impl Pass {
    fn is_of(&self, ino: Ino, now: Instant) -> bool {
        self.ino == ino.0 && is_live(self.used, now)
    }
}

fn is_live(used: Option<Instant>, now: Instant) -> bool {
    used.is_some_and(|used| now.saturating_duration_since(used) < GONE)
}

impl Passes {
    /// So much of a file of `size` bytes is read. What can be forgotten now, if anything.
    pub(super) fn read(&mut self, ino: Ino, offset: u64, len: u64, size: u64, now: Instant) -> Option<Span> {
        let end = offset.saturating_add(len);
        if len < REQUEST && end < size {
            self.here_and_there(ino, now);
            return None;
        }
        let is_near = |pass: &Pass| pass.is_of(ino, now) && offset <= pass.end + DISTANCE && pass.end <= end + DISTANCE;
        let n = self.passes.iter().position(is_near).unwrap_or_else(|| {
            let oldest = (0..PASSES).min_by_key(|&n| self.passes[n].used).unwrap_or(0);
            self.passes[oldest] = Pass { ino: ino.0, begin: offset, forgotten: offset, ..Pass::default() };
            oldest
        });
        let is_shared = (0..PASSES).any(|other| other != n && self.passes[other].is_of(ino, now))
            || self.here_and_there.iter().any(|&(other, used)| other == ino.0 && is_live(used, now));
        let pass = &mut self.passes[n];
        (pass.used, pass.end) = (Some(now), pass.end.max(end));
        if pass.forgotten == pass.begin {
            // What it began with comes second, perhaps.
            pass.begin = pass.begin.min(offset);
            pass.forgotten = pass.begin;
        }
        if pass.end >= size {
            *pass = Pass::default();
            return None;
        }
        if is_shared {
            // They may be about to read what this one has read.
            pass.begin = pass.end;
            pass.forgotten = pass.end;
            return None;
        }
        let until = pass.end.saturating_sub(DISTANCE);
        if pass.end - pass.begin < LEAST || until < pass.forgotten + STEP {
            return None;
        }
        let span = Span { ino, offset: pass.forgotten, len: until - pass.forgotten };
        pass.forgotten = until;
        Some(span)
    }

    fn here_and_there(&mut self, ino: Ino, now: Instant) {
        let known = self.here_and_there.iter().position(|&(other, _)| other == ino.0);
        let n = known.or_else(|| (0..HERE_AND_THERE).min_by_key(|&n| self.here_and_there[n].1)).unwrap_or(0);
        self.here_and_there[n] = (ino.0, Some(now));
    }

    /// The kernel was not told: the next time it is.
    pub(super) fn remembered(&mut self, span: &Span) {
        let end = span.offset + span.len;
        if let Some(pass) = self.passes.iter_mut().find(|pass| pass.ino == span.ino.0 && pass.forgotten == end) {
            pass.forgotten = span.offset;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Reads in this order, a MiB each. What is forgotten.
    fn forgotten(passes: &mut Passes, reads: impl IntoIterator<Item = (u64, u64)>, size: u64) -> Vec<Span> {
        forgotten_at(passes, reads, size, Instant::now())
    }

    fn forgotten_at(
        passes: &mut Passes,
        reads: impl IntoIterator<Item = (u64, u64)>,
        size: u64,
        now: Instant,
    ) -> Vec<Span> {
        reads.into_iter().filter_map(|(ino, n)| passes.read(Ino(ino), n * MIB, MIB, size * MIB, now)).collect()
    }

    #[test]
    fn what_lies_well_behind_the_reader_is_forgotten_once() {
        let mut passes = Passes::default();
        let mut at = 0;
        // Several threads take requests: not quite in order.
        for n in (0..500).map(|n| n ^ 1) {
            let Some(span) = passes.read(Ino(7), n * MIB, MIB, 1000 * MIB, Instant::now()) else { continue };
            assert_eq!((span.ino, span.offset), (Ino(7), at));
            at += span.len;
            assert!(at + DISTANCE <= (n + 2) * MIB && n * MIB >= LEAST - 2 * MIB, "{n}: up to {at}");
        }
        assert!(at >= 500 * MIB - DISTANCE - STEP - MIB, "{at}");
    }

    #[test]
    fn what_the_kernel_was_not_told_it_is_told_later() {
        let mut passes = Passes::default();
        let mut spans = Vec::new();
        for n in 0..200 {
            let Some(span) = passes.read(Ino(7), n * MIB, MIB, 1000 * MIB, Instant::now()) else { continue };
            if spans.len() == 1 && n < 150 {
                passes.remembered(&span);
            } else {
                spans.push(span);
            }
        }
        assert!(spans.len() > 2 && spans[1].len > 3 * STEP, "{spans:?}");
        assert!(spans.windows(2).all(|two| two[0].offset + two[0].len == two[1].offset), "{spans:?}");
    }

    #[test]
    fn what_is_small_or_read_here_and_there_stays() {
        let mut passes = Passes::default();
        for ino in 0..20 {
            assert_eq!(forgotten(&mut passes, (0..63).map(|n| (ino, n)), 63), []);
        }
        assert_eq!(forgotten(&mut passes, (0..5000).map(|n| (7, n * 7919 % 5000)), 5000), []);
        assert_eq!(forgotten(&mut passes, (0..5000).map(|n| (7, 5000 - n)), 5001), []);
    }

    #[test]
    fn a_file_with_two_readers_stays_until_one_has_gone() {
        let mut passes = Passes::default();
        let begun = Instant::now();
        let both = (0..200).flat_map(|n| [(7, n), (7, n + 500)]);
        assert_eq!(forgotten_at(&mut passes, both, 1000, begun), []);
        // However much one asks for meanwhile, the other is only slow.
        assert_eq!(forgotten_at(&mut passes, (200..300).map(|n| (7, n)), 1000, begun), []);
        let one = forgotten_at(&mut passes, (300..499).map(|n| (7, n)), 1000, begun + GONE);
        assert!(one.first().is_some_and(|span| span.offset >= 300 * MIB), "{one:?}");
    }

    #[test]
    fn a_file_of_which_somebody_reads_a_little_stays() {
        let mut passes = Passes::default();
        let now = Instant::now();
        for n in 0..200 {
            assert_eq!(passes.read(Ino(7), 3 * n * MIB, 4096, 1000 * MIB, now), None);
            assert_eq!(passes.read(Ino(7), n * MIB, MIB, 1000 * MIB, now), None);
        }
        // Of another one it means nothing.
        assert_ne!(forgotten_at(&mut passes, (0..200).map(|n| (8, n)), 1000, now), []);
    }

    #[test]
    fn another_pass_is_one_more() {
        let mut passes = Passes::default();
        for _ in 0..2 {
            let spans = forgotten(&mut passes, (0..100).map(|n| (7, n)), 100);
            assert_eq!(spans.first().map(|span| span.offset), Some(0));
        }
        // Two files at once, each with its own reader.
        let both = forgotten(&mut passes, (0..100).flat_map(|n| [(8, n), (9, n)]), 200);
        assert!([8, 9].iter().all(|&ino| both.iter().any(|span| span.ino == Ino(ino))), "{both:?}");
    }
}
