//! What is to be done.

use std::path::PathBuf;

use super::plan::{Action, Selection};
use crate::entry::EntryPath;
use crate::tarball;

/// What becomes of a name that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// It stays.
    Never,
    /// It is replaced by what was changed later.
    IfNewer,
    /// It is replaced, unless it is the same kind of thing with the same time and size.
    IfChanged,
    /// It is replaced.
    Always,
}

/// What is to be done.
#[derive(Debug)]
pub struct Options {
    /// The directory that everything goes into.
    pub target: PathBuf,
    /// What of it.
    pub selection: Selection,
    /// What becomes of names that are taken.
    pub overwrite: Overwrite,
    /// So many leading components of each path are left away.
    pub strip: usize,
    /// Whether owners are found by name, where this machine has the name.
    pub by_name: bool,
    /// Whether all is on the disk when it ends.
    pub sync: bool,
    /// Whether it goes on until the stream is over.
    pub follow: bool,
    /// Nothing is done: it is only told what would be, for each entry.
    pub dry_run: Option<fn(&EntryPath, Action)>,
    /// Whether everything is read back and compared.
    pub verify: bool,
    /// How an archive is read, and how names of owners are found.
    pub tar: tarball::Options,
}
