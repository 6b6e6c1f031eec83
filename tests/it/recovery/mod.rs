//! Daemons that die, and what is mounted from their spools: each file is compared with what was packed.

mod killed;
mod random;
mod resumed;
mod terminated;
mod torn;
mod tree;

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::mount::{Mount, restorefs};

/// How a recovery ended.
pub(crate) struct Recovered {
    pub(crate) mount: Mount,
    pub(crate) code: Option<i32>,
}

/// Mounts a spool, and waits until all that it has is there.
#[track_caller]
pub(crate) fn recover(spool: &Path) -> Recovered {
    let mut mount = Mount::recover(spool);
    let code = mount.wait_front();
    Recovered { mount, code }
}

impl Recovered {
    /// Its exit code, and what it has to say.
    #[track_caller]
    fn ends(&self, code: i32, needles: &[&str]) {
        let printed = self.mount.printed();
        assert_eq!(self.code, Some(code), "{printed}");
        for needle in needles {
            assert!(printed.contains(needle), "no '{needle}' in: {printed}");
        }
    }

    /// Unmounts. The spool stays.
    #[track_caller]
    fn unmount(self, spool: &Path) {
        self.mount.unmount();
        assert!(spool.join("journal").exists(), "{spool:?} went with its mount");
    }
}

/// Compares a file that was cut with what it was to be, by every byte that can be read: how much is there.
#[track_caller]
pub(crate) fn same_beginning(mount: &Mount, name: &str, packed: &[u8]) -> u64 {
    let state = mount.state(name);
    let counts = state.strip_prefix("truncated ").unwrap_or_else(|| panic!("{name} is {state}"));
    let (there, size) = counts.split_once('/').unwrap();
    let (there, size): (u64, u64) = (there.parse().unwrap(), size.parse().unwrap());
    assert_eq!(size, packed.len() as u64, "{name}");
    assert!(there < size, "{name}: {state}");
    let file = File::open(mount.path(name)).unwrap();
    // Pages are what the kernel asks for.
    let whole = there / 4096 * 4096;
    let mut bytes = vec![0; whole as usize];
    file.read_exact_at(&mut bytes, 0).unwrap_or_else(|e| panic!("the first {whole} bytes of {name}: {e}"));
    assert!(bytes == packed[..whole as usize], "{name} has wrong bytes");
    for at in [there.next_multiple_of(4096), size.saturating_sub(1)] {
        if at >= there && at < size {
            let error = file.read_at(&mut [0], at).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name} at {at}: {error}");
        }
    }
    there
}

/// A spool for tests that change it: the daemon's own is left as it was.
fn copy_of(spool: &Path, dir: &Path) -> PathBuf {
    let copy = dir.join(spool.file_name().unwrap());
    match fs::remove_dir_all(&copy) {
        Err(e) if e.kind() != ErrorKind::NotFound => panic!("{copy:?}: {e}"),
        _ => {}
    }
    copy_all(spool, &copy).unwrap();
    copy
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_all(&entry.path(), &to)?
        } else {
            fs::copy(entry.path(), to).map(drop)?
        }
    }
    Ok(())
}

#[track_caller]
fn refused(output: &Output, needles: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for needle in needles {
        assert!(text.contains(needle), "no '{needle}' in: {text}");
    }
}

/// Removes a spool as its user would.
#[track_caller]
fn discard(spool: &Path) {
    let output = restorefs(&["discard"], &[spool]);
    assert!(output.status.success(), "{output:?}");
    assert!(!spool.exists());
}
