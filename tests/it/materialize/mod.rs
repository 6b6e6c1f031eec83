//! The tree to disk: exact from every kind of mount, again and after a break, in parts, and never outside.

mod again;
mod duplicates;
mod early;
mod edges;
mod exact;
mod follow;
mod foreign;
mod hostile;
mod killed;
mod race;
mod selective;
mod target;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::mount::{Mount, RESTOREFS};
use crate::support::process::Group;

/// How a run ended.
struct Ended {
    code: i32,
    /// What it printed on standard error.
    text: String,
    /// What `--json` says.
    json: Value,
}

impl Ended {
    #[track_caller]
    fn with(self, code: i32) -> Ended {
        assert_eq!(self.code, code, "{}", self.text);
        self
    }

    #[track_caller]
    fn says(self, needles: &[&str]) -> Ended {
        for needle in needles {
            assert!(self.text.contains(needle), "'{needle}' is not in:\n{}", self.text);
        }
        self
    }

    fn count(&self, what: &str) -> u64 {
        self.json[what].as_u64().unwrap()
    }

    /// Asserts which entries could not be restored.
    #[track_caller]
    fn names(&self, paths: &[&str]) {
        let mut named: Vec<_> =
            self.json["problems"].as_array().unwrap().iter().map(|p| p["path"].as_str().unwrap()).collect();
        named.sort_unstable();
        assert_eq!(named, paths, "{}", self.text);
        assert_eq!(self.count("left_out"), paths.len() as u64);
    }
}

fn command(mount: &Path, dest: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(RESTOREFS);
    // Nothing here survives a crash of the machine, or has to.
    command.arg("materialize").arg(mount).arg(dest).args(["--no-sync", "--json"]).args(args);
    command
}

/// Runs `restorefs materialize`.
fn materialize(mount: &Mount, dest: &Path, args: &[&str]) -> Ended {
    ended(command(&mount.point, dest, args).stdin(Stdio::null()).output().unwrap())
}

fn ended(output: std::process::Output) -> Ended {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panic"), "{text}");
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    Ended { code: output.status.code().unwrap_or_else(|| panic!("{}: {text}", output.status)), text, json }
}

/// Starts it, and leaves it running.
fn start(mount: &Mount, dest: &Path, args: &[&str]) -> Group {
    Group::start(command(&mount.point, dest, args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// Waits for one that was started.
fn wait(mut running: Group) -> Ended {
    let status = running.wait();
    let read = |pipe: &mut dyn std::io::Read| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    };
    let stdout = read(running.0.stdout.as_mut().unwrap());
    let stderr = read(running.0.stderr.as_mut().unwrap());
    ended(std::process::Output { status, stdout, stderr })
}

/// An archive of members made by hand, mounted where it lies; and an empty directory beside it.
fn archive(members: &[Vec<u8>]) -> (TempDir, Mount, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.tar");
    fs::write(&file, [members.concat(), crate::support::feed::end()].concat()).unwrap();
    let mount = Mount::file(&file, &[]);
    let dest = dir.path().join("dest");
    fs::create_dir(&dest).unwrap();
    (dir, mount, dest)
}

/// Everything that can be told of a tree by looking at it: kinds, metadata, contents, attributes. Change times are in
/// it, so that not even what has been changed and changed back stays unseen.
fn look(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let m = path.symlink_metadata().unwrap();
        let what = if m.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            String::new()
        } else if m.is_symlink() {
            format!("{:?}", fs::read_link(&path).unwrap())
        } else if m.is_file() {
            format!("{:?}", fs::read(&path).unwrap())
        } else {
            String::new()
        };
        let mut names = [0; 4096];
        let n = rustix::fs::llistxattr(&path, &mut names).unwrap_or(0);
        let attributes = std::ffi::OsStr::from_bytes(&names[..n]);
        let (mode, links, size) = (m.mode(), m.nlink(), if m.is_dir() { 0 } else { m.size() });
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        let who = (m.ino(), m.uid(), m.gid(), m.rdev());
        found.insert(path, format!("{mode:o} {links} {size} {times:?} {who:?} {attributes:?} {what}"));
    }
    found
}

/// A tree outside of the target that nothing may touch.
struct Canary {
    path: PathBuf,
    before: BTreeMap<PathBuf, String>,
}

impl Canary {
    fn new(dir: &Path) -> Canary {
        let path = dir.join("canary");
        fs::create_dir_all(path.join("d")).unwrap();
        for name in ["f", "d/f", "d/g"] {
            fs::write(path.join(name), b"not to be touched").unwrap();
        }
        std::os::unix::fs::symlink("f", path.join("l")).unwrap();
        let before = look(&path);
        Canary { path, before }
    }

    #[track_caller]
    fn sings(&self) {
        assert_eq!(look(&self.path), self.before);
    }
}
