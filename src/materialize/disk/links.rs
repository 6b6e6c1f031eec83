//! Second names of what has been made.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, statat};
use rustix::io::Errno;

use super::creator::Creator;
use super::metadata::{Held, file_type, time_of};
use crate::entry::{EntryPath, Timestamp, escape};
use crate::index::{Ino, Kind};
use crate::materialize::error::Failure;
use crate::materialize::options::Overwrite;
use crate::materialize::plan::Look;
use crate::replay::Item;

/// A second name for what is there.
pub(super) struct Link {
    pub(super) ino: Ino,
    /// Where it is already, and by which path.
    pub(super) from: (Arc<OwnedFd>, CString),
    pub(super) first: EntryPath,
    pub(super) dir: Arc<OwnedFd>,
    pub(super) name: CString,
    pub(super) path: EntryPath,
    /// What has the name now was made by us just before: it is replaced whatever was said of overwriting.
    pub(super) replaces_ours: bool,
    pub(super) what: What,
}

/// What is to be found under the first name.
pub(super) struct What {
    pub(super) kind: Kind,
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    pub(super) owner: (u32, u32),
    /// It has taken the place of another that may look the same.
    pub(super) doubtful: Option<Item>,
}

/// Why another name could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmade {
    /// What has the first name is not what was packed.
    OtherFile,
    /// The file cannot have another name there.
    NoMoreLinks,
}

impl Creator {
    /// Makes another name.
    pub(super) fn link(&self, link: &Link) -> Result<Result<(), Unmade>, Failure> {
        let Some(first) = self.first_of(link)? else { return Ok(Err(Unmade::OtherFile)) };
        let (dir, name) = (link.dir.as_fd(), &*link.name);
        let make = |name: &CStr| Ok::<_, Failure>(first.link(dir, name)?);
        let made = match make(name) {
            Err(e) if e.errno() == Some(Errno::EXIST) => {
                let there = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if (there.st_dev, there.st_ino) == (first.stat.st_dev, first.stat.st_ino) {
                    self.report.unchanged.fetch_add(1, Ordering::Relaxed);
                    if !link.replaces_ours && matches!(self.overwrite, Overwrite::Never | Overwrite::IfNewer) {
                        // It was there before us: what comes later does not simply take its place.
                        self.pass_over(&link.path);
                    }
                    return Ok(Ok(()));
                }
                if self.keeps(link.what.mtime, &there) && !link.replaces_ours {
                    self.keep(&link.path);
                    return Ok(Ok(()));
                }
                self.replace(dir, name, &there, make)
            }
            made => made,
        };
        match made {
            Err(e) if matches!(e.errno(), Some(Errno::MLINK | Errno::XDEV)) => {
                let first = escape(link.first.as_bytes());
                self.report.problem(link.path.as_bytes(), format!("it is a copy of '{first}' and no hard link: {e}"));
                Ok(Err(Unmade::NoMoreLinks))
            }
            made => {
                made?;
                self.is_ours(&link.path);
                self.report.entries.fetch_add(1, Ordering::Relaxed);
                Ok(Ok(()))
            }
        }
    }

    /// What has the first name, where that is what was packed: not what was kept instead of it, and not what somebody
    /// else has put there meanwhile.
    fn first_of(&self, link: &Link) -> Result<Option<Held>, Failure> {
        let held = match Held::open(link.from.0.as_fd(), &link.from.1) {
            Err(Errno::NOENT) => return Ok(None),
            held => held?,
        };
        let (there, what) = (&held.stat, &link.what);
        let is_it = FileType::from_raw_mode(there.st_mode) == file_type(what.kind)
            && (what.kind != Kind::File || u64::try_from(there.st_size) == Ok(what.size))
            && (!self.owners.root || (there.st_uid, there.st_gid) == what.owner)
            // The time of what is ours may be a coarser one, as the target keeps it.
            && (!self.has_kept(&link.first)
                || time_of(there) == (what.mtime.seconds(), i64::from(what.mtime.nanos()))
                    && match &what.doubtful {
                        Some(item) => self.holds(link.from.0.as_fd(), &link.from.1, item)?,
                        None => true,
                    });
        Ok(is_it.then_some(held))
    }
}
