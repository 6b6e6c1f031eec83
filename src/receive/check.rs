//! What of an entry the types do not say already, by the same rules as for archives.

use crate::entry::{Entry, EntryKind, EntryPath};

/// Linux takes no longer target: PATH_MAX without the NUL.
const MAX_TARGET: usize = 4095;

/// Whose user and group numbers Linux does not have.
const NOBODY: u32 = 65534;

/// Bits that make a program run as somebody else.
const SET_ID: u16 = 0o6000;

/// Names of users and groups are no longer.
const MAX_OWNER: usize = 255;

/// What becomes of an entry.
pub(super) enum Checked {
    Right(Entry),
    Mended(Entry, &'static str),
    Refused(EntryPath, &'static str),
}

pub(super) fn check(mut entry: Entry) -> Checked {
    let refusal = match &entry.kind {
        EntryKind::File { size, .. } if *size > i64::MAX as u64 => Some("no file can be as long as it says"),
        EntryKind::File { size, sparse: Some(map) } if map.size() != *size => Some("its sparse map is of another size"),
        EntryKind::Symlink { target } if target.is_empty() => Some("its link target is empty"),
        EntryKind::Symlink { target } if target.len() > MAX_TARGET => Some("its link target is over 4095 bytes long"),
        EntryKind::Symlink { target } if target.contains(&0) => Some("its link target has a NUL byte"),
        _ => None,
    };
    if let Some(reason) = refusal {
        return Checked::Refused(entry.path, reason);
    }
    let m = &mut entry.metadata;
    m.mode &= 0o7777;
    for name in [&mut m.user, &mut m.group] {
        name.take_if(|name| name.len() > MAX_OWNER);
    }
    if m.uid == u32::MAX || m.gid == u32::MAX {
        for id in [&mut m.uid, &mut m.gid] {
            *id = if *id == u32::MAX { NOBODY } else { *id };
        }
        m.mode &= !SET_ID;
        return Checked::Mended(entry, "its owner is a number that Linux does not have: 65534 instead");
    }
    Checked::Right(entry)
}
