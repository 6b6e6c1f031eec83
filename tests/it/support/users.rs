//! What users do to each other: scripts in a mount namespace of their own, in which ordinary users may mount.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::mount::RESTOREFS;
use super::{run, shell};

/// `as UID 'line of shell'` is what the scripts have for it. Nothing of it is left behind when they end.
const PRELUDE: &str = r#"
    mknod -m 666 fuse c 10 229
    mount --bind fuse /dev/fuse
    unset XDG_RUNTIME_DIR
    as() { setpriv --reuid "$1" --regid "$1" --clear-groups bash -euc "$2"; }
    at_end=:
    trap 'eval "$at_end"; umount -l mnt 2>/dev/null || true; kill $(jobs -p) 2>/dev/null || true; rm -rf /tmp/restorefs-'$uid EXIT
"#;

/// A home of an ordinary user, with a binary that they may run.
pub struct Home {
    _dir: TempDir,
    pub path: PathBuf,
    uid: u32,
}

impl Home {
    /// Each test has a user of its own, since the directory in /tmp is named by the user: one that is in /etc/passwd, as
    /// fusermount3 wants it.
    pub fn new(uid: u32) -> Home {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("home");
        fs::create_dir_all(path.join("mnt")).unwrap();
        fs::copy(RESTOREFS, path.join("restorefs")).unwrap();
        shell(dir.path(), "chmod 755 .");
        let home = Home { _dir: dir, path, uid };
        home.give();
        home
    }

    /// Gives everything in it to the user.
    pub fn give(&self) {
        shell(&self.path, &format!("chown -hR {uid}:{uid} .", uid = self.uid));
    }

    /// Runs a script there as root; `$uid` is the user.
    pub fn script(&self, script: &str) -> String {
        let script = format!("exec 2>&1; uid={}; {PRELUDE}\n{script}", self.uid);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "bash", "-euc", &script]).current_dir(&self.path);
        String::from_utf8_lossy(&run(&mut command).stdout).into_owned()
    }
}
