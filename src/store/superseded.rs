//! Which files lost a name, and who still needs what they had.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use crate::index::Ino;

/// Files that lost a name, until what they had is given back.
#[derive(Debug, Default)]
pub(super) struct Superseded {
    pub(super) waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) files: BTreeSet<Ino>,
    /// Who reads the journal from outside.
    pub(super) followers: usize,
}
