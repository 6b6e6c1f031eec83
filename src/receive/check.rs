//! What of an entry the types do not say already, by the same rules as for archives.

use crate::entry::{Entry, EntryKind, EntryPath, NOBODY, SET_ID, check_target};

/// Names of users and groups are no longer.
const MAX_OWNER: usize = 255;

/// What becomes of an entry.
pub(super) enum Checked {
    Right(Entry),
    Mended(Entry, String),
    Refused(EntryPath, String),
}

pub(super) fn check(mut entry: Entry) -> Checked {
    let refusal = match &entry.kind {
        EntryKind::File { size, .. } if *size > i64::MAX as u64 => Some("no file can be as long as it says".into()),
        EntryKind::File { size, sparse: Some(map) } if map.size() != *size => {
            Some("its sparse map is of another size".into())
        }
        EntryKind::Symlink { target } => check_target(target).err().map(|e| e.to_string()),
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
        return Checked::Mended(entry, format!("its owner is no number that Linux has: {NOBODY} is taken"));
    }
    Checked::Right(entry)
}
