//! Names for what is not whole yet, and is to take the place of something. A run that is killed leaves them behind; the
//! next one knows them by their form, and takes them away.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, unlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

const PREFIX: &str = ".restorefs-";
const SUFFIX: &str = ".part";

/// The temporary names of one run.
pub(super) struct TemporaryNames {
    /// In a container every run may have the same number of process.
    process: u32,
    begun: u64,
    next: AtomicU64,
}

impl TemporaryNames {
    pub(super) fn new() -> Self {
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        TemporaryNames { process: std::process::id(), begun, next: AtomicU64::new(0) }
    }

    /// One that no archive has by accident; whoever has it already keeps it, and the entry fails.
    pub(super) fn next(&self) -> CString {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        CString::new(format!("{PREFIX}{}-{:x}-{number}{SUFFIX}", self.process, self.begun)).unwrap_or_default()
    }

    /// Takes away what runs that have ended left in a directory; but not what the archive has by such a name, since
    /// somebody has packed what a run left.
    pub(super) fn clean(&self, dir: BorrowedFd<'_>, is_packed: impl Fn(&[u8]) -> bool) -> io::Result<()> {
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let left = entry.file_name().to_str().is_ok_and(|name| self.is_left(name));
            if left && !is_packed(entry.file_name().to_bytes()) {
                match unlinkat(dir, entry.file_name(), AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }

    fn is_left(&self, name: &str) -> bool {
        let Some(parts) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX)) else { return false };
        let mut parts = parts.split('-');
        let (Some(process), Some(begun), Some(number), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        let (Ok(process), Ok(begun), Ok(_)) =
            (process.parse::<i32>(), u64::from_str_radix(begun, 16), number.parse::<u64>())
        else {
            return false;
        };
        if process.unsigned_abs() == self.process {
            return begun != self.begun;
        }
        Pid::from_raw(process).is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_ended_is_left() {
        let names = TemporaryNames { process: std::process::id(), begun: 0xabc, next: AtomicU64::new(7) };
        let own = names.next().into_string().unwrap();
        assert!(!names.is_left(&own));
        assert!(names.is_left(&own.replace("abc", "abd")));
        assert!(names.is_left(".restorefs-2147483647-abc-0.part"));
        assert!(!names.is_left(".restorefs-1-abc-0.part"));
        for other in [".restorefs-2147483647-abc-0", ".restorefs-x-abc-0.part", ".restorefs-1-2-3-4.part", "file"] {
            assert!(!names.is_left(other));
        }
    }
}
