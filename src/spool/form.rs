//! Which files get a blob, and how their stored bytes lie in it.

use crate::entry::SparseMap;

/// Files of this many stored bytes and more get a blob: it can be opened, linked and passed through on its
/// own. Below it the cost of creating one is most of the work.
pub const BLOB_THRESHOLD: u64 = 128 << 10;

/// The unit in which filesystems give room: a file with holes takes a whole one for each piece, however small.
pub(super) const PAGE: u64 = 4096;

/// Where the stored bytes of a file are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In the journal, in one record.
    Record,
    /// In a blob, at their offsets in the file.
    Spread,
    /// In a blob, one after the other: the pieces between holes are so small that they would take several times as much
    /// room at their offsets, since a filesystem gives whole pages.
    Packed,
}

impl Form {
    /// The form that suits a file of `stored` bytes.
    pub fn of(stored: u64, map: Option<&SparseMap>) -> Form {
        if stored < BLOB_THRESHOLD { Form::Record } else { Form::of_blob(map) }
    }

    /// The form that suits a blob.
    pub fn of_blob(map: Option<&SparseMap>) -> Form {
        match map {
            Some(map) if map.pages(PAGE).saturating_mul(PAGE) / 2 > map.stored_len() => Form::Packed,
            _ => Form::Spread,
        }
    }
}
