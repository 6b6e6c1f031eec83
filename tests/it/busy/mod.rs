//! Nothing that one types loses what arrived: who uses a mount keeps it, and who restores goes on when it is gone.

mod gone;
mod lazy;
mod stop;
mod users;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::support::feed::{self, end, whole};
use crate::support::mount::{Mount, RESTOREFS, restorefs};
use crate::support::process::{Group, is_gone};
use crate::support::wait_until;

/// The file that is cut, or completed, by what a test does.
const SIZE: usize = 600_000;

/// What has come of it before.
const CAME: usize = 400_000;

fn contents() -> Vec<u8> {
    (0..SIZE).map(|n| (n / 7) as u8).collect()
}

/// A mount with two whole files, and a third that is arriving.
fn arriving() -> (Mount, ChildStdin) {
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&[whole("small", b"s"), whole("large", &[7; 300_000])].concat()).unwrap();
    stdin.write_all(&feed::file("cut", SIZE)).unwrap();
    stdin.write_all(&contents()[..CAME]).unwrap();
    let state = format!("arriving {CAME}/{SIZE}");
    mount.wait_for("cut");
    wait_until("all of it has come", || (mount.state("cut") == state).then_some(()));
    (mount, stdin)
}

/// Sends the rest of the third file.
fn complete(mut stdin: ChildStdin) {
    stdin.write_all(&[&contents()[CAME..], &feed::padding(SIZE), &end()].concat()).unwrap();
}

/// A mount with all of it.
fn spooled() -> Mount {
    let (mount, stdin) = arriving();
    complete(stdin);
    mount.wait_clean();
    mount
}

/// A command of ours that takes its time.
struct Running(Group);

impl Running {
    fn start(args: &[&str], paths: &[&Path]) -> Running {
        let mut command = Command::new(RESTOREFS);
        command.args(args).args(paths).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Running(Group::start(&mut command))
    }

    /// A materialize that has restored the two whole files, and waits for more.
    fn materialize(mount: &Mount, dest: &Path) -> Running {
        let running = Running::start(&["materialize", "--no-sync"], &[&mount.point, dest]);
        wait_until("it has begun", || (fs::read(dest.join("large")).ok()?.len() == 300_000).then_some(()));
        running
    }

    fn pid(&self) -> String {
        self.0.pid().as_raw_nonzero().to_string()
    }

    /// Holds it up.
    fn stop(&self) {
        self.0.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.pid());
        wait_until("it is stopped", || fs::read_to_string(&stat).unwrap().contains(") T ").then_some(()));
    }

    /// Its exit code, and what it printed.
    #[track_caller]
    fn ends(mut self, code: i32) -> String {
        let status = self.0.wait();
        let mut told = String::new();
        std::io::Read::read_to_string(self.0.0.stderr.as_mut().unwrap(), &mut told).unwrap();
        assert_eq!(status.code(), Some(code), "{told}");
        told
    }
}

/// The exit code of an umount, and behind it what it printed.
fn umount(args: &[&str], path: &Path) -> String {
    let output = restorefs(&[&["umount"], args].concat(), &[path]);
    format!("{} {}", output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn says(told: &str, needles: &[&str]) {
    for needle in needles {
        assert!(told.contains(needle), "no '{needle}' in: {told}");
    }
}

fn spool(mount: &Mount) -> PathBuf {
    mount.status()["spool"]["directory"].as_str().unwrap().into()
}

fn wait_gone(daemon: Pid) {
    wait_until("the daemon is gone", || is_gone(daemon).then_some(()));
}

/// The daemon is gone, and its spool with it.
fn is_clean(mount: &Mount) {
    wait_gone(mount.daemon());
    let left: Vec<_> = mount.dir.path().join("spool").read_dir().unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// What is in a directory is what had arrived: the two whole files, and the third where that is so.
#[track_caller]
fn is_restored(dest: &Path, complete: bool) {
    assert_eq!(fs::read(dest.join("small")).unwrap(), b"s");
    assert_eq!(fs::read(dest.join("large")).unwrap(), [7; 300_000]);
    let mut names: Vec<_> = dest.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    if complete {
        assert!(fs::read(dest.join("cut")).unwrap() == contents());
        assert_eq!(names, ["cut", "large", "small"]);
    } else {
        assert_eq!(names, ["large", "small"]);
    }
}
