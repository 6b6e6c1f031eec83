//! Every problem of a stream, in little memory: each is cut to a bounded length, and all are kept encoded, in pieces that
//! can be asked for one after the other.

use serde::{Deserialize, Serialize};

use crate::entry::shortened;

/// So many problems are printed, and are in each [`Status`](super::Status); all others are counted, and can be asked for.
pub const PROBLEMS_SHOWN: usize = 20;

/// No path and no reason is kept longer: a hostile stream has paths of 64 KiB, and every byte of them may be escaped.
pub const MAX_PROBLEM_TEXT: usize = 1024;

/// Some millions of problems. Further ones are counted and logged; a hostile stream has no end of them.
const MAX_KEPT: usize = 256 << 20;

/// A piece is an answer over the control socket: it should come at once, and a client holds one at a time.
const PIECE: usize = 64 << 10;
const MOST_IN_A_PIECE: usize = 1000;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The entry, or an attribute of it, is left out: the exit code says so.
    Refused,
    /// Accepted after one documented change.
    Warning,
}

/// One thing that is not as it was packed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Refused or mended.
    pub severity: Severity,
    /// Which entry, escaped for printing; empty when it concerns the stream.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A part of the list of problems.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Counts how often the list began anew: pieces of different lists do not belong together.
    pub list: u64,
    /// The problems, in the order in which they were found.
    pub problems: Vec<Problem>,
    /// Whether there is none behind it yet.
    pub last: bool,
    /// How many were found and are in no piece.
    pub unkept: u64,
}

#[derive(Debug)]
pub(super) struct Problems {
    most: usize,
    list: u64,
    pieces: Vec<Encoded>,
    bytes: usize,
    unkept: u64,
    found: u64,
    first: Vec<Problem>,
}

#[derive(Debug, Default)]
struct Encoded {
    count: usize,
    bytes: Vec<u8>,
}

impl Default for Problems {
    fn default() -> Self {
        Problems::new(MAX_KEPT, 0)
    }
}

impl Problems {
    fn new(most: usize, list: u64) -> Self {
        Problems { most, list, pieces: Vec::new(), bytes: 0, unkept: 0, found: 0, first: Vec::new() }
    }

    pub(super) fn push(&mut self, mut problem: Problem) {
        self.found += 1;
        if self.bytes >= self.most {
            self.unkept += 1;
            return;
        }
        problem.path = shortened(problem.path, MAX_PROBLEM_TEXT);
        problem.reason = shortened(problem.reason, MAX_PROBLEM_TEXT);
        if self.pieces.last().is_none_or(|piece| piece.bytes.len() >= PIECE || piece.count >= MOST_IN_A_PIECE) {
            self.pieces.push(Encoded::default());
        }
        if let Some(piece) = self.pieces.last_mut() {
            let before = piece.bytes.len();
            let encoded = postcard::to_extend(&problem, std::mem::take(&mut piece.bytes));
            // Writing to a vector cannot fail, and a problem can be serialized.
            piece.bytes = encoded.expect("a problem can be encoded");
            piece.count += 1;
            self.bytes += piece.bytes.len() - before;
        }
        if self.first.len() < PROBLEMS_SHOWN {
            self.first.push(problem);
        }
    }

    /// How many were found, kept or not.
    pub(super) fn found(&self) -> u64 {
        self.found
    }

    /// The first [`PROBLEMS_SHOWN`].
    pub(super) fn first(&self) -> &[Problem] {
        &self.first
    }

    pub(super) fn clear(&mut self) {
        *self = Problems::new(self.most, self.list + 1);
    }

    pub(super) fn piece(&self, number: usize) -> Piece {
        let mut problems = Vec::new();
        if let Some(piece) = self.pieces.get(number) {
            let mut rest = &piece.bytes[..];
            while let Ok((problem, behind)) = postcard::take_from_bytes(rest) {
                problems.push(problem);
                rest = behind;
            }
        }
        Piece { list: self.list, problems, last: number.saturating_add(1) >= self.pieces.len(), unkept: self.unkept }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Monitor, PROBLEMS_SHOWN, Severity};
    use super::*;

    #[test]
    fn all_are_kept_in_order_and_in_pieces() {
        let monitor = Monitor::new();
        for n in 0..20_000 {
            match n % 2 {
                0 => monitor.refused(format!("dir/file{n}").as_bytes(), format!("reason {n}")),
                _ => monitor.warning(b"", format!("reason {n}")),
            }
        }
        let status = monitor.status();
        assert_eq!((status.refused, status.warnings, status.problems.len()), (10_000, 10_000, PROBLEMS_SHOWN));
        let all: Vec<Problem> = monitor.problems().collect();
        assert_eq!(all.len(), 20_000);
        assert_eq!(&all[..PROBLEMS_SHOWN], status.problems);
        for (n, problem) in all.iter().enumerate() {
            assert_eq!(problem.reason, format!("reason {n}"));
            let refused = problem.severity == Severity::Refused;
            assert_eq!((refused, problem.path.is_empty()), (n % 2 == 0, n % 2 == 1));
        }
        let piece = monitor.problems_piece(0);
        assert!(!piece.last && piece.problems.len() <= MOST_IN_A_PIECE);
        assert_eq!(monitor.problems_piece(usize::MAX).problems, []);

        monitor.forget_problems();
        assert_eq!(monitor.problems().count(), 0);
        assert_ne!(monitor.problems_piece(0).list, piece.list);
    }

    #[test]
    fn long_ones_are_cut_and_there_is_a_bound() {
        const MOST: usize = 100 * MAX_PROBLEM_TEXT;
        let mut problems = Problems::new(MOST, 0);
        let path = ["begin", &"\\x01".repeat(64 << 10), "end"].concat();
        let problem = Problem { severity: Severity::Refused, path, reason: "its name is too long".into() };
        for _ in 0..200 {
            problems.push(problem.clone());
        }
        let pieces: Vec<Piece> = (0..problems.pieces.len()).map(|number| problems.piece(number)).collect();
        let kept: Vec<&Problem> = pieces.iter().flat_map(|piece| &piece.problems).collect();
        assert_eq!((problems.found(), kept.len() as u64 + problems.unkept), (200, 200));
        assert!((90..=100).contains(&kept.len()), "{}", kept.len());
        for kept in kept {
            assert!(kept.path.len() <= MAX_PROBLEM_TEXT, "{}", kept.path.len());
            assert!(kept.path.starts_with("begin\\x01") && kept.path.ends_with("\\x01end"));
        }
    }
}
