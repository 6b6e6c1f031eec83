//! Entries that were made elsewhere: what their types do not check, by the same rules as for archives. They come from a
//! sender, or from the journal of another user's mount.

use super::{Entry, EntryKind, EntryPath, NOBODY, SET_ID, check_target};

/// Names of users and groups are no longer.
const MAX_OWNER: usize = 255;

/// The result of [`check`].
#[derive(Debug)]
pub enum Checked {
    /// The entry is valid.
    Right(Entry),
    /// It is valid after one change: which.
    Mended(Entry, String),
    /// It cannot be taken: why.
    Refused(EntryPath, String),
}

/// Checks a decoded entry.
pub fn check(mut entry: Entry) -> Checked {
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
