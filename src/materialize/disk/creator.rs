//! What all workers share: how things are made, and which names of the target are not ours.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::{StatVfsMountFlags, fstatvfs};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use super::kept::Kept;
use super::metadata::{Names, Owners};
use super::temporary::TemporaryNames;
use crate::entry::EntryPath;
use crate::index::Ino;
use crate::materialize::error::Failure;
use crate::materialize::options::{Options, Overwrite};
use crate::materialize::report::Report;
use crate::replay::Contents;

/// What all workers need.
pub(in crate::materialize) struct Creator {
    pub(in crate::materialize) contents: Contents,
    pub(super) owners: Owners,
    pub(super) overwrite: Overwrite,
    pub(super) report: Arc<Report>,
    pub(super) temporary: TemporaryNames,
    /// So many leading components of each path are left away.
    pub(super) strip: usize,
    /// The target, as soon as it is open.
    pub(super) root: OnceLock<Arc<OwnedFd>>,
    /// Nothing is made, not even to find out what the target takes.
    pub(super) looks_only: bool,
    /// Names that are not ours and stay.
    pub(super) kept: Kept,
    /// Which entry a file was found to be, where it has several names, by device and number.
    pub(super) found: Mutex<HashMap<(u64, u64), Ino>>,
}

impl Creator {
    /// Makes what `options` say, of `contents`.
    pub(in crate::materialize) fn new(options: &Options, contents: Contents, report: Arc<Report>) -> Self {
        let (uid, gid) = (geteuid(), getegid());
        let names = Names { user: options.tar.resolve_user, group: options.tar.resolve_group };
        let owners = Owners {
            own: (uid.as_raw(), gid.as_raw()),
            root: uid.is_root(),
            by_name: options.by_name.then_some(names),
        };
        Creator {
            contents,
            owners,
            overwrite: options.overwrite,
            report,
            strip: options.strip,
            root: OnceLock::new(),
            looks_only: options.dry_run.is_some(),
            kept: Kept::default(),
            found: Mutex::default(),
            temporary: TemporaryNames::new(),
        }
    }

    /// The target is open.
    pub(in crate::materialize) fn set_root(&self, root: Arc<OwnedFd>) {
        let _ = self.root.set(root);
    }

    /// Whether an error is of one entry, or of the target as a whole. What else is mounted in it may be read-only.
    pub(super) fn is_fatal(&self, cause: &Failure) -> bool {
        let read_only =
            |root: &Arc<OwnedFd>| fstatvfs(root).is_ok_and(|there| there.f_flag.contains(StatVfsMountFlags::RDONLY));
        match cause.errno() {
            Some(Errno::ROFS) => self.root.get().is_none_or(read_only),
            _ => cause.is_of_all(),
        }
    }

    pub(super) fn keep(&self, path: &EntryPath) {
        self.report.kept.fetch_add(1, Ordering::Relaxed);
        self.pass_over(path);
    }

    /// Nothing is made under this name: what may have it is not ours.
    pub(super) fn pass_over(&self, path: &EntryPath) {
        if let Some(place) = path.without_first(self.strip) {
            self.kept.add(place);
        }
    }

    /// What had this name was kept, and has been replaced since by what is newer.
    pub(super) fn is_ours(&self, path: &EntryPath) {
        if self.overwrite == Overwrite::IfNewer
            && let Some(place) = path.without_first(self.strip)
        {
            self.kept.remove(place);
        }
    }

    /// Whether what has this name in the target is not ours and stays.
    pub(super) fn has_kept(&self, path: &EntryPath) -> bool {
        path.without_first(self.strip).is_some_and(|place| self.kept.has(place))
    }
}
