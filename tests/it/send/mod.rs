//! A live tree as an archive: exact for every tool that reads it, and honest about what changes meanwhile.

mod exact;
mod live;
mod selection;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::support::mount::RESTOREFS;

/// How a run ended.
struct Ended {
    archive: Vec<u8>,
    code: Option<i32>,
    /// What it printed on standard error.
    text: String,
}

impl Ended {
    #[track_caller]
    fn with(self, code: i32) -> Ended {
        assert_eq!(self.code, Some(code), "{}", self.text);
        self
    }

    #[track_caller]
    fn says(self, needles: &[&str]) -> Ended {
        for needle in needles {
            assert!(self.text.contains(needle), "'{needle}' is not in:\n{}", self.text);
        }
        self
    }

    /// The names in the archive, as GNU tar lists them.
    fn names(&self) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("x.tar");
        std::fs::write(&archive, &self.archive).unwrap();
        let listed = crate::support::run(Command::new("tar").arg("-tf").arg(&archive).env("LC_ALL", "C"));
        assert!(listed.stderr.is_empty(), "{}", String::from_utf8_lossy(&listed.stderr));
        String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(RESTOREFS);
    command.arg("send").args(args).arg("-").current_dir(dir).stdin(Stdio::null());
    command
}

/// Runs `restorefs send ARGS -` in a directory.
fn send(dir: &Path, args: &[&str]) -> Ended {
    ended(command(dir, args).output().unwrap())
}

fn ended(output: Output) -> Ended {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panic"), "{text}");
    Ended { archive: output.stdout, code: output.status.code(), text }
}

/// Starts it, with nobody who reads yet.
fn start(dir: &Path, args: &[&str]) -> Child {
    command(dir, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}
