//! The mounts of restorefs that can be seen from here, who uses one, and how it is taken away.

mod detach;
mod mounted;
mod table;
mod users;

use std::io;
use std::path::{Component, Path, PathBuf};

pub use detach::{Attached, Error, abort, detach_all};
pub use mounted::Mounted;
pub use table::{Others, Table, list, of};
pub use users::{Process, Use, users};

impl Mounted {
    /// Whether the kernel has unmounted it, as far as can be seen from here.
    pub fn is_gone(&self) -> bool {
        of(&self.device).is_ok_and(|mounts| mounts.iter().all(|mounted| mounted.id != self.id))
    }
}

/// The mount that `path` is the root of, or that it is in. A mount whose daemon is gone cannot be looked into, but
/// is found all the same.
pub fn find(path: &Path) -> io::Result<Option<Mounted>> {
    find_with_path(path).map(|found| found.map(|(mounted, _)| mounted))
}

/// The same, with whether `path` is its root.
pub fn find_root(path: &Path) -> io::Result<Option<(Mounted, bool)>> {
    let found = find_with_path(path)?;
    Ok(found.map(|(mounted, path)| {
        let is_root = path == mounted.mountpoint;
        (mounted, is_root)
    }))
}

fn find_with_path(path: &Path) -> io::Result<Option<(Mounted, PathBuf)>> {
    let table = Table::read()?;
    let mounts = table.restorefs();
    let path = resolve(path, &mounts)?;
    Ok(visible(&table, mounts, &path).map(|mounted| (mounted, path)))
}

/// Of mounts one over the other, the one that is seen.
fn visible(table: &Table, mounts: Vec<Mounted>, path: &Path) -> Option<Mounted> {
    let inside = mounts.into_iter().filter(|m| path.starts_with(&m.mountpoint));
    // Of equal ones the last is returned, which was mounted last.
    inside.max_by_key(|m| (m.mountpoint.as_os_str().len(), table.depth(m.id)))
}

/// Resolves a path up to the first mount on it. What is in there is not looked at: its daemon may be gone, or stopped, and
/// the file may not have come yet.
fn resolve(path: &Path, mounts: &[Mounted]) -> io::Result<PathBuf> {
    let mut at = PathBuf::new();
    for component in std::path::absolute(path)?.components() {
        if component == Component::ParentDir {
            // Up to here it has no links in it.
            at.pop();
            continue;
        }
        at.push(component);
        if !mounts.iter().any(|m| at.starts_with(&m.mountpoint))
            && let Ok(resolved) = at.canonicalize()
        {
            at = resolved;
        }
    }
    Ok(at)
}
