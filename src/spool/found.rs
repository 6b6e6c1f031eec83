//! Spools on this machine that no daemon has: finding them, and what can be said of one without reading it.
//!
//! Each may have been prepared by its owner for root to stumble over. So everything is opened in a directory that is held
//! open, follows no link, and has to belong to the same user.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat, flock, fstat, openat, openat2,
    statat,
};
use rustix::io::Errno;
use rustix::path::Arg;
use rustix::process::geteuid;
use serde_json::Value;

use super::registry;
use crate::record::{self, Record};

/// Where spools are made unless it is said otherwise.
pub const DIRECTORY: &str = "/var/tmp";

/// The end of a stream and a durable point take less.
const TAIL: u64 = 64;

/// A `spool.json` is a few lines.
const MAX_ABOUT: u64 = 64 << 10;

/// A spool has one directory in it. What is deeper is not ours.
const MAX_DEPTH: usize = 8;

/// How a spool was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The stream had come to its end.
    Complete,
    /// The stream ended early.
    Early,
    /// The daemon ended before the stream did.
    Killed,
}

/// A spool that no daemon has.
#[derive(Clone, Debug)]
pub struct LeftOver {
    /// Where it is.
    pub path: PathBuf,
    /// Whose it is.
    pub uid: u32,
    /// What was spooled.
    pub source: String,
    /// The room that it takes on the disk, in bytes.
    pub bytes: u64,
    /// The length of its journal.
    pub journal: u64,
    /// When it was made.
    pub began: SystemTime,
    /// When something was written to it last.
    pub written: SystemTime,
    /// How it was left.
    pub ended: Ended,
}

/// All that belong to the caller, or for root to anybody: in the usual directory, and where some were noted.
pub fn left_over() -> Vec<LeftOver> {
    let noted = registry::list().into_iter().filter_map(|path| Some((Spool::open(&path).ok()?, path)));
    let mut seen = BTreeSet::new();
    let mut found: Vec<LeftOver> = usual()
        .chain(noted)
        .filter(|(spool, _)| seen.insert((spool.stat.st_dev, spool.stat.st_ino)))
        .filter_map(|(spool, path)| spool.left_over(path))
        .collect();
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Those in the usual directory, in which anybody may make anything.
fn usual() -> impl Iterator<Item = (Spool, PathBuf)> {
    let above = open_directory(CWD, DIRECTORY, ResolveFlags::empty()).ok();
    let entries = above.as_ref().and_then(|above| Dir::read_from(above).ok()).into_iter().flatten().flatten();
    let names: Vec<_> = entries.map(|entry| entry.file_name().to_owned()).collect();
    names.into_iter().filter_map(move |name| {
        let name = Path::new(OsStr::from_bytes(name.as_bytes()));
        let directory = open_below(above.as_ref().filter(|_| is_name(name))?, name).ok()?;
        Some((Spool::new(directory).ok()?, Path::new(DIRECTORY).join(name)))
    })
}

/// Whether a directory is called as spools are: `restorefs-PID-X`.
pub(super) fn is_name(path: &Path) -> bool {
    let parts = || path.file_name()?.to_str()?.strip_prefix("restorefs-")?.split_once('-');
    parts().is_some_and(|(pid, random)| {
        let digits = |text: &str, radix| !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
        digits(pid, 10) && digits(random, 16) && random.len() == 16
    })
}

/// Why a directory is not taken for a spool.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoSpool {
    #[error("it cannot be opened")]
    Open(#[from] io::Error),
    #[error("it belongs to user {0}")]
    Foreign(u32),
    #[error("it has no spool.json of restorefs")]
    NoAbout,
}

/// The directory of a spool, examined and held open.
pub(super) struct Spool {
    pub(super) directory: OwnedFd,
    stat: Stat,
    about: Value,
}

impl Spool {
    /// Opens the one at `path`, which has no link in it.
    pub(super) fn open(path: &Path) -> Result<Spool, NoSpool> {
        Spool::new(open_directory(CWD, path, ResolveFlags::NO_SYMLINKS)?)
    }

    pub(super) fn new(directory: OwnedFd) -> Result<Spool, NoSpool> {
        let stat = fstat(&directory).map_err(io::Error::from)?;
        let own = geteuid();
        if !own.is_root() && stat.st_uid != own.as_raw() {
            return Err(NoSpool::Foreign(stat.st_uid));
        }
        let about = about(&directory, stat.st_uid).ok_or(NoSpool::NoAbout)?;
        Ok(Spool { directory, stat, about })
    }

    /// Whether a daemon has it. That is asked with a lock that others may take too, and held for this moment only.
    fn is_live(&self) -> bool {
        open_file(&self.directory, "lock", self.stat.st_uid)
            .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK))
    }

    fn left_over(&self, path: PathBuf) -> Option<LeftOver> {
        if self.is_live() {
            return None;
        }
        let journal = open_file(&self.directory, "journal", self.stat.st_uid);
        let length = journal.as_ref().map_or(0, |journal| journal.metadata().map_or(0, |found| found.len()));
        let mut used = Used::default();
        used.add(&self.directory, 0);
        let made =
            |name| open_file(&self.directory, name, self.stat.st_uid).and_then(|file| file.metadata()?.modified());
        let written = time(used.newest);
        Some(LeftOver {
            path,
            uid: self.stat.st_uid,
            source: self.about["source"].as_str().unwrap_or("?").to_owned(),
            bytes: used.bytes,
            journal: length,
            // Nothing is ever written to the lock.
            began: made("lock").or_else(|_| made("spool.json")).unwrap_or(written),
            written,
            ended: journal.map_or(Ended::Killed, |journal| ended(&journal, length)),
        })
    }
}

/// What stands in `spool.json`, if that is one of ours.
fn about(directory: &OwnedFd, uid: u32) -> Option<Value> {
    let mut text = Vec::new();
    open_file(directory, "spool.json", uid).ok()?.take(MAX_ABOUT).read_to_end(&mut text).ok()?;
    let about: Value = serde_json::from_slice(&text).ok()?;
    (about["format"] == "restorefs-spool").then_some(about)
}

/// What the journal says of its end; a durable point may follow that.
fn ended(journal: &File, length: u64) -> Ended {
    let mut tail = vec![0; length.min(TAIL) as usize];
    let at = length - tail.len() as u64;
    if journal.read_exact_at(&mut tail, at).is_err() {
        return Ended::Killed;
    }
    match (0..tail.len()).find_map(|at| finish(&tail[at..])) {
        Some(true) => Ended::Complete,
        Some(false) => Ended::Early,
        None => Ended::Killed,
    }
}

/// Whether the stream was complete, where `frames` begins with the end of one and nothing but durable points follows.
fn finish(frames: &[u8]) -> Option<bool> {
    let Ok((Record::Finish { complete }, _, length)) = record::decode(frames) else { return None };
    let mut rest = &frames[length..];
    while !rest.is_empty() {
        let Ok((Record::Durable { .. }, _, length)) = record::decode(rest) else { return None };
        rest = &rest[length..];
    }
    Some(complete)
}

/// What a directory takes on the disk.
#[derive(Debug, Default)]
struct Used {
    bytes: u64,
    /// Seconds since 1970.
    newest: i64,
}

impl Used {
    fn add(&mut self, directory: &OwnedFd, depth: usize) {
        for (name, stat) in entries(directory).into_iter().flatten() {
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if depth < MAX_DEPTH => {
                    if let Ok(below) = open_below(directory, &*name) {
                        self.add(&below, depth + 1);
                    }
                }
                FileType::RegularFile => {
                    self.bytes = self.bytes.saturating_add(room(&stat));
                    self.newest = self.newest.max(stat.st_mtime);
                }
                _ => {}
            }
        }
    }
}

/// The room on the disk that goes with a file when it is removed.
pub(super) fn room(stat: &Stat) -> u64 {
    // What has another name stays.
    if stat.st_nlink > 1 { 0 } else { u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) }
}

/// What is in a directory. What cannot be looked at is left out.
pub(super) fn entries(directory: &OwnedFd) -> io::Result<Vec<(CString, Stat)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..")
            && let Ok(stat) = statat(directory, &*name, AtFlags::SYMLINK_NOFOLLOW)
        {
            found.push((name, stat));
        }
    }
    Ok(found)
}

/// Opens a directory of a spool.
pub(super) fn open_below(directory: &OwnedFd, name: impl Arg + Copy) -> io::Result<OwnedFd> {
    open_directory(directory, name, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV)
}

fn open_directory(above: impl AsFd, path: impl Arg + Copy, resolve: ResolveFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat2(&above, path, flags, Mode::empty(), resolve | ResolveFlags::NO_MAGICLINKS) {
        // Before Linux 5.6, and where a container forbids it.
        Err(Errno::NOSYS) => Ok(openat(above, path, flags, Mode::empty())?),
        opened => Ok(opened?),
    }
}

/// Opens a file of a spool, which belongs to whom the spool belongs to.
fn open_file(directory: &OwnedFd, name: &str, uid: u32) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(directory, name, flags, Mode::empty())?);
    let found = file.metadata()?;
    if found.is_file() && found.uid() == uid { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}
