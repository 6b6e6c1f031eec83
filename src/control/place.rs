//! Where the sockets are: directories that only their user can have filled.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use rustix::process::getuid;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::entry::escape_path;

/// Whoever holds the lock makes or removes two files, or takes a mount away, which is slow when the kernel has much of it
/// to forget. Longer than this it is held by a process that is stopped.
const LOCKED: Duration = Duration::from_secs(30);

/// Where anybody may make directories of any name.
const TMP: &str = "/tmp";

/// Where the sockets of `uid` may be.
pub(super) fn directories(uid: u32) -> Vec<PathBuf> {
    let mut directories = runtime_directories(uid);
    if uid != 0 {
        directories.extend(temporary_directories(uid));
    }
    directories
}

/// Those in which nobody else can make anything.
fn runtime_directories(uid: u32) -> Vec<PathBuf> {
    if uid == 0 {
        return vec!["/run/restorefs".into()];
    }
    let mut directories = Vec::new();
    if uid == getuid().as_raw()
        && let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())
    {
        directories.push(PathBuf::from(runtime).join("restorefs"));
    }
    directories.push(format!("/run/user/{uid}/restorefs").into());
    directories
}

/// Those in /tmp, the usual one first. Whatever else has such a name there is somebody else's, and passed over.
fn temporary_directories(uid: u32) -> Vec<PathBuf> {
    let usual = format!("restorefs-{uid}");
    let other = format!("{usual}-");
    let Ok(entries) = std::fs::read_dir(TMP) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| *name == usual || name.starts_with(&other)).collect();
    names.sort_unstable();
    names.iter().map(|name| Path::new(TMP).join(name)).filter(|path| is_private(path, uid)).collect()
}

/// Whether a directory is one that only `uid` (and root) can have filled.
fn is_private(directory: &Path, uid: u32) -> bool {
    directory.symlink_metadata().is_ok_and(|found| is_owned(&found, uid))
}

fn is_owned(found: &Metadata, uid: u32) -> bool {
    found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0
}

/// Opens a directory that only `uid` (and root) can have filled.
pub(super) fn open_private(directory: &Path, uid: u32) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(directory, flags, Mode::empty())?);
    if is_owned(&file.metadata()?, uid) {
        Ok(file)
    } else {
        Err(io::Error::other(format!("'{}' is not a directory of our own", escape_path(directory))))
    }
}

/// The directory for our own sockets, open: ours alone, or it is not used.
pub(super) fn own_directory() -> io::Result<(PathBuf, File)> {
    let uid = rustix::process::geteuid().as_raw();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for directory in runtime_directories(uid) {
        match make(&directory, uid) {
            Ok(made) => return Ok((directory, made)),
            Err(e) => last = io::Error::new(e.kind(), format!("cannot make '{}': {e}", escape_path(&directory))),
        }
    }
    if uid == 0 {
        return Err(last);
    }
    let usual = Path::new(TMP).join(format!("restorefs-{uid}"));
    let there = temporary_directories(uid).into_iter().next();
    let directory = there.unwrap_or_else(|| usual.clone());
    if let Ok(made) = make(&directory, uid) {
        return Ok((directory, made));
    }
    // Somebody else has taken the name. None can be taken that nobody can guess.
    let mut random = [0; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    let directory = Path::new(TMP).join(format!("restorefs-{uid}-{:016x}", u64::from_ne_bytes(random)));
    let made = make(&directory, uid)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot make '{}': {e}", escape_path(&directory))))?;
    Ok((directory, made))
}

fn make(directory: &Path, uid: u32) -> io::Result<File> {
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => open_private(directory, uid),
    }
}

/// Until it is closed, no other process makes or removes sockets there.
pub(super) fn lock(directory: &File) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            // Whoever is stopped while they hold it must not stop others.
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCKED => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e.into()),
        }
    }
}
