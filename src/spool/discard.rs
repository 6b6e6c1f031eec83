//! Removing a spool that no daemon has, in an order in which it stays a spool until nothing else is left of it: whoever is
//! interrupted can begin again.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::found::{NoSpool, Spool, entries, is_name, open_below, room};
use super::{lock, registry};
use crate::entry::escape_path;

/// Why a spool was not removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing that could be looked at.
    #[error("cannot discard '{path}'", path = escape_path(.path))]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It may lead anywhere.
    #[error("cannot discard '{path}': it is a symbolic link; name the spool itself", path = escape_path(.0))]
    Link(PathBuf),
    /// Anything else than a spool.
    #[error("'{path}' is not a spool: it has no spool.json of restorefs; nothing is removed", path = escape_path(.0))]
    NotSpool(PathBuf),
    /// Another user's.
    #[error("cannot discard '{path}': it belongs to user {uid}, and only they and root may", path = escape_path(.path))]
    Foreign {
        /// The path.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// A daemon has it.
    #[error(
        "cannot discard '{path}': it is in use ('restorefs status' names its mount: unmount it first)",
        path = escape_path(.0)
    )]
    Live(PathBuf),
    /// The rest can be removed by another try.
    #[error("cannot remove all of '{path}' ('restorefs discard' once more goes on from there)", path = escape_path(.path))]
    Remove {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// Removes the spool at `path`, with its lock held. Returns how much room that gave back.
pub fn discard(path: &Path) -> Result<u64, Error> {
    let failed = |cause| Error::Open { path: path.into(), cause };
    let absolute = std::path::absolute(path).map_err(failed)?;
    let found = absolute.symlink_metadata().map_err(failed)?;
    if found.is_symlink() {
        return Err(Error::Link(path.into()));
    }
    let own = rustix::process::geteuid();
    if !own.is_root() && found.uid() != own.as_raw() {
        return Err(Error::Foreign { path: path.into(), uid: found.uid() });
    }
    if !found.is_dir() {
        return Err(Error::NotSpool(path.into()));
    }
    let spool = absolute.canonicalize().map_err(failed)?;
    let open = || {
        Spool::open(&spool).map_err(|e| match e {
            NoSpool::Open(cause) => failed(cause),
            NoSpool::Foreign(uid) => Error::Foreign { path: path.into(), uid },
            NoSpool::NoAbout => Error::NotSpool(path.into()),
        })
    };
    let remove = |cause| Error::Remove { path: path.into(), cause };
    let directory = match open() {
        // All but the empty directory was removed before.
        Err(Error::NotSpool(_)) if is_name(&spool) && std::fs::remove_dir(&spool).is_ok() => {
            registry::remove(&spool);
            return Ok(0);
        }
        opened => opened?.directory,
    };
    let _lock = take_lock(&directory).map_err(remove)?.ok_or_else(|| Error::Live(path.into()))?;
    // Its daemon may have removed it while we waited.
    Spool::new(directory.try_clone().map_err(failed)?).map_err(|_| Error::NotSpool(path.into()))?;
    let mut freed = 0;
    remove_contents(&directory, &mut freed).map_err(remove)?;
    std::fs::remove_dir(&spool).map_err(remove)?;
    registry::remove(&spool);
    Ok(freed)
}

/// Takes the lock of a spool; None where somebody else has it.
fn take_lock(directory: &OwnedFd) -> io::Result<Option<File>> {
    // Where an earlier try has removed it, there is one again.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let lock = File::from(openat(directory, "lock", flags, Mode::RUSR | Mode::WUSR)?);
    Ok(lock::take(&lock)?.then_some(lock))
}

/// Removes what is in a spool: what makes it one goes last.
pub(super) fn remove_contents(spool: &OwnedFd, freed: &mut u64) -> io::Result<()> {
    const LAST: [&CStr; 2] = [c"lock", c"spool.json"];
    let (last, first): (Vec<_>, Vec<_>) = entries(spool)?.into_iter().partition(|(name, _)| LAST.contains(&&**name));
    for (name, stat) in first {
        remove_entry(spool, &name, &stat, freed)?;
    }
    for name in LAST {
        if let Some((name, stat)) = last.iter().find(|(there, _)| **there == *name) {
            remove_entry(spool, name, stat, freed)?;
        }
    }
    Ok(())
}

fn remove_entry(above: &OwnedFd, name: &CStr, stat: &rustix::fs::Stat, freed: &mut u64) -> io::Result<()> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        match unlinkat(above, name, AtFlags::empty()) {
            // Somebody else removes it too.
            Err(Errno::NOENT) => {}
            removed => {
                removed?;
                *freed = freed.saturating_add(room(stat));
            }
        }
        return Ok(());
    }
    let directory = open_below(above, name)?;
    for (name, stat) in entries(&directory)? {
        remove_entry(&directory, &name, &stat, freed)?;
    }
    Ok(unlinkat(above, name, AtFlags::REMOVEDIR)?)
}
