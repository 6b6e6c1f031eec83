//! Times as the target keeps them: not every file system has nanoseconds, or the year 2500.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, futimens, openat, unlinkat};
use rustix::io::Errno;

use super::creator::Creator;
use super::metadata::{time_of, times};
use crate::entry::{Metadata, Timestamp};

/// The coarsest times that are in use are those of FAT, in seconds.
const COARSEST: i64 = 2;

/// Some file systems keep times in so many bits.
const SAFE: std::ops::Range<i64> = i32::MIN as i64 + 1..i32::MAX as i64;

impl Creator {
    /// Whether the time of `there`, which is in `dir`, is what the target makes of `time`.
    pub(super) fn is_kept_as(&self, dir: BorrowedFd<'_>, time: Timestamp, there: &Stat) -> bool {
        let near = time.seconds().abs_diff(there.st_mtime) < COARSEST.unsigned_abs();
        if (near && there.st_mtime_nsec == 0) || !SAFE.contains(&time.seconds()) {
            // What it makes of it now, it has made of it before.
            return self.kept_as(dir, time).is_ok_and(|kept| kept == time_of(there));
        }
        false
    }

    /// What the target makes of a time, seen by a file that has no name, where that can be.
    fn kept_as(&self, dir: BorrowedFd<'_>, time: Timestamp) -> rustix::io::Result<(i64, i64)> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let probe = match openat(dir, c".", flags | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR) {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) if !self.looks_only => {
                let name = self.temporary.next();
                let probe = openat(dir, &*name, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR)?;
                unlinkat(dir, &*name, AtFlags::empty())?;
                probe
            }
            probe => probe?,
        };
        futimens(probe.as_fd(), &times(&Metadata { mtime: time, ..Metadata::default() }))?;
        Ok(time_of(&fstat(&probe)?))
    }
}
