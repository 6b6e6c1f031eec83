//! Where spools may be: a directory with a link to each one, so that those outside the usual place can be found when their
//! daemon is gone. It is a place to look and nothing more: what is found there is examined as if somebody had typed it.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// Root's: the other users' are in their homes.
const OF_ROOT: &str = "/var/lib/restorefs/spools";

fn directory() -> Option<PathBuf> {
    if geteuid().is_root() {
        return Some(OF_ROOT.into());
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("restorefs/spools"))
}

/// Notes where a spool is. Without that it can be mounted and discarded all the same, by whoever knows its path.
pub(super) fn add(spool: &Path) {
    if let Err(e) = directory().map_or_else(|| Err(io::ErrorKind::NotFound.into()), |dir| add_to(&dir, spool)) {
        log::info!("'restorefs status' may not find the spool '{}': {e}", spool.display());
    }
}

fn add_to(directory: &Path, spool: &Path) -> io::Result<()> {
    let spool = spool.canonicalize()?;
    let name = spool.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    symlink(&spool, directory.join(name))
}

/// Forgets a spool that is gone.
pub(super) fn remove(spool: &Path) {
    if let (Some(directory), Some(name)) = (directory(), spool.file_name()) {
        // Where it is not there, nobody will look.
        let _ = std::fs::remove_file(directory.join(name));
    }
}

/// Where spools were when they were noted. Those that are gone are forgotten.
pub(super) fn list() -> Vec<PathBuf> {
    directory().map_or_else(Vec::new, |directory| list_of(&directory))
}

fn list_of(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut spools = Vec::new();
    for link in entries.flatten().map(|entry| entry.path()) {
        let Ok(spool) = std::fs::read_link(&link) else { continue };
        match spool.symlink_metadata() {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                let _ = std::fs::remove_file(&link);
            }
            _ => spools.push(spool),
        }
    }
    spools
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let above = dir.path().canonicalize().unwrap();
        let directory = above.join("state/restorefs/spools");
        assert!(list_of(&directory).is_empty());
        let spools = ["restorefs-1-a", "restorefs-1-b", "in/restorefs-1-c"].map(|name| above.join(name));
        for spool in &spools {
            std::fs::create_dir_all(spool).unwrap();
            add_to(&directory, spool).unwrap();
        }
        std::fs::write(directory.join("no link"), "").unwrap();
        let sorted = || {
            let mut found = list_of(&directory);
            found.sort();
            found
        };
        assert_eq!(sorted(), [2, 0, 1].map(|n: usize| spools[n].clone()));
        std::fs::remove_dir(&spools[0]).unwrap();
        std::fs::remove_dir_all(above.join("in")).unwrap();
        std::fs::write(above.join("in"), "a file by now").unwrap();
        assert_eq!(sorted(), [spools[1].clone()]);
        assert_eq!(directory.read_dir().unwrap().count(), 2);
    }
}
