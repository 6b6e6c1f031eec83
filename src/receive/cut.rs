//! Files of the tree that are cut although the stream came to its end: what the sender could not send to its end, what had
//! another hash than there, what the spool could not hold.

use std::collections::HashSet;

use crate::entry::escape;
use crate::index::{Arrival, Index, Ino};
use crate::monitor::{MAX_CUT_NAMED, Verdict};

/// Those of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CutFiles {
    pub(super) count: u64,
    /// The first [`MAX_CUT_NAMED`], escaped for printing, in order.
    pub(super) named: Vec<String>,
}

impl CutFiles {
    /// Of a tree to which no more comes. Of what has several names, each counts once.
    pub(super) fn of(index: &Index) -> CutFiles {
        let is_cut = |ino: &Ino| matches!(index.arrival(*ino), Some(Arrival::Truncated { .. }));
        let mut cut: HashSet<Ino> = (1..=index.inodes() as u64).map(Ino).filter(is_cut).collect();
        if cut.is_empty() {
            return CutFiles::default();
        }
        let mut paths = Vec::new();
        // What was replaced has no name any more.
        index.walk(&mut |path, ino| {
            if cut.remove(&ino) {
                paths.push(path.to_vec());
            }
        });
        paths.sort_unstable();
        let named = paths.iter().take(MAX_CUT_NAMED).map(|path| escape(path)).collect();
        CutFiles { count: paths.len() as u64, named }
    }

    /// How a stream ended that came to its end.
    pub(super) fn verdict(&self) -> Verdict {
        let Some(first) = self.named.first() else { return Verdict::Complete };
        let cause = match self.count {
            1 => "all that the sender had has come, but 1 file is cut".into(),
            count => format!("all that the sender had has come, but {count} files are cut"),
        };
        Verdict::Incomplete { cause, cut: Some(first.clone()) }
    }
}
