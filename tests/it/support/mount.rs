//! A mount for one test. Whatever becomes of the test, the mount is detached and its processes are gone afterwards.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::{NamedTempFile, TempDir};

use super::network::Network;
use super::process::{Group, is_gone};
use super::{HANGS, wait_until};

pub const RESTOREFS: &str = env!("CARGO_BIN_EXE_restorefs");

/// A mount that a test has made.
pub struct Mount {
    /// The process that was started: with `-f` it is the daemon too.
    pub front: Child,
    /// Where it is mounted.
    pub point: PathBuf,
    daemon: Option<Pid>,
    printed: Arc<Printed>,
    /// Mount point and spool are in here.
    pub dir: TempDir,
}

#[derive(Default)]
struct Printed {
    text: Mutex<(String, bool)>,
    more: Condvar,
}

impl Mount {
    /// Mounts an archive in a file, in one process.
    pub fn file(archive: &Path, args: &[&str]) -> Mount {
        Mount::start(Stdio::null(), &[&["-f"], args].concat(), |command| {
            command.arg(archive);
        })
    }

    /// Mounts an archive where it is, or what is read of it, in one process that logs everything.
    pub fn of(archive: &NamedTempFile, in_place: bool) -> Mount {
        let stdin = if in_place { Stdio::null() } else { Stdio::from(archive.reopen().unwrap()) };
        Mount::start(stdin, &["-f"], |command| {
            command.env("RUST_LOG", "restorefs=debug").arg(if in_place { archive.path() } else { Path::new("-") });
        })
    }

    /// Mounts what is written to the handle that is returned.
    pub fn pipe(args: &[&str]) -> (Mount, ChildStdin) {
        let mut mount = Mount::start(Stdio::piped(), &[&["-f"], args].concat(), |command| {
            command.arg("-");
        });
        let stdin = mount.front.stdin.take().unwrap();
        (mount, stdin)
    }

    /// Mounts what is sent to the address that is returned.
    pub fn listen(args: &[&str]) -> (Mount, SocketAddr) {
        Mount::listen_on("127.0.0.1:0", args)
    }

    /// The same, where it is said.
    pub fn listen_on(address: &str, args: &[&str]) -> (Mount, SocketAddr) {
        let mut mount = Mount::start(Stdio::null(), &[&["-f", "--plain", "--listen", address], args].concat(), |_| {});
        let address = mount.address();
        (mount, address)
    }

    /// The same with a daemon behind a front that ends with the stream.
    pub fn listen_daemon(args: &[&str]) -> (Mount, SocketAddr) {
        let mut mount = Mount::start(Stdio::null(), &[&["--plain", "--listen", "127.0.0.1:0"], args].concat(), |_| {});
        let address = mount.address();
        (mount, address)
    }

    /// Waits for a native sender, with a daemon behind a front that ends with the stream.
    pub fn listen_for_sender(args: &[&str]) -> (Mount, SocketAddr) {
        let mut mount = Mount::start(Stdio::null(), &[&["--listen", "127.0.0.1:0"], args].concat(), |_| {});
        let address = mount.address();
        (mount, address)
    }

    /// The same in one process.
    pub fn listen_for_sender_in_front(args: &[&str]) -> (Mount, SocketAddr) {
        let mut mount = Mount::start(Stdio::null(), &[&["-f", "--listen", "127.0.0.1:0"], args].concat(), |_| {});
        let address = mount.address();
        (mount, address)
    }

    /// The same on a machine of a [`Network`], where it is said.
    pub fn listen_for_sender_on(machine: &str, address: &str, args: &[&str]) -> (Mount, SocketAddr) {
        let command = Network::command(machine, RESTOREFS);
        let mut mount = Mount::start_by(command, Stdio::null(), &[&["--listen", address], args].concat(), |_| {});
        let address = mount.address();
        (mount, address)
    }

    /// Mounts what a daemon that is gone has left, behind a front that ends with the recovery.
    pub fn recover(spool: &Path) -> Mount {
        Mount::start(Stdio::null(), &[], |command| {
            command.arg(spool);
        })
    }

    /// Runs `restorefs mount` with `args`, with what `source` adds, and with a mount point and a spool of its own.
    /// Returns when it says that it is mounted.
    pub fn start(stdin: Stdio, args: &[&str], source: impl FnOnce(&mut Command)) -> Mount {
        Mount::start_by(Command::new(RESTOREFS), stdin, args, source)
    }

    fn start_by(command: Command, stdin: Stdio, args: &[&str], source: impl FnOnce(&mut Command)) -> Mount {
        let mut mount = Mount::spawn(command, stdin, args, source);
        wait_until("it is mounted", || {
            let code = mount.front.try_wait().unwrap().and_then(|status| status.code());
            assert!(matches!(code, None | Some(0 | 3..)), "it ended with {code:?}: {}", mount.printed());
            mount.is_mounted().then_some(())
        });
        mount.daemon = Some(mount.find_daemon());
        mount
    }

    /// Mounts what may not be mountable, in one process, and waits until its stream is over. Where nothing stays mounted:
    /// the exit code, and what was printed.
    pub fn attempt(
        stdin: Stdio,
        args: &[&str],
        source: impl FnOnce(&mut Command),
    ) -> Result<Mount, (Option<i32>, String)> {
        let mut mount = Mount::spawn(Command::new(RESTOREFS), stdin, &[&["-f"], args].concat(), source);
        mount.daemon = Some(Pid::from_child(&mount.front));
        mount.attempted()
    }

    /// The same with a sender, which is started as soon as there is an address, and is gone afterwards.
    pub fn attempt_to_receive(args: &[&str], send: impl FnOnce(&str) -> Group) -> Result<Mount, (Option<i32>, String)> {
        let args = [&["-f", "--listen", "127.0.0.1:0"], args].concat();
        let mut mount = Mount::spawn(Command::new(RESTOREFS), Stdio::null(), &args, |_| {});
        mount.daemon = Some(Pid::from_child(&mount.front));
        let mut line = String::new();
        let mut stdout = BufReader::new(mount.front.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        let _sender = line.trim().strip_prefix("listening on ").map(send);
        mount.attempted()
    }

    fn attempted(self) -> Result<Mount, (Option<i32>, String)> {
        let mut mount = self;
        let code = wait_until("it has ended, or the stream is over", || {
            if let Some(status) = mount.front.try_wait().unwrap() {
                return Some(Some(status.code()));
            }
            mount.trace()?;
            let output = restorefs(&["status", "--json"], &[&mount.point]);
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            let is_over = status["phase"] == "over";
            // Where nothing came, nothing stays.
            let stays = status["entries"] != 0 || status["end"]["verdict"] == "complete";
            (is_over && stays).then_some(None)
        });
        match code {
            Some(code) => {
                wait_until("all is printed", || mount.printed.text.lock().1.then_some(()));
                Err((code, mount.printed()))
            }
            None => Ok(mount),
        }
    }

    fn spawn(mut command: Command, stdin: Stdio, args: &[&str], source: impl FnOnce(&mut Command)) -> Mount {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().canonicalize().unwrap().join("mnt");
        let spool = dir.path().join("spool");
        std::fs::create_dir(&point).unwrap();
        std::fs::create_dir(&spool).unwrap();
        command.arg("mount").args(args);
        if !passthrough_wanted() && !args.contains(&"--no-passthrough") {
            command.arg("--no-passthrough");
        }
        if !args.contains(&"--spool") && !args.contains(&"--resume") {
            command.arg("--spool").arg(&spool);
        }
        source(&mut command);
        command.arg(&point).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut front = command.spawn().unwrap();
        let printed = Arc::new(Printed::default());
        let errors = front.stderr.take().unwrap();
        std::thread::spawn({
            let printed = printed.clone();
            move || collect(errors, &printed)
        });
        // From here on the guard takes care of it.
        Mount { front, point, daemon: None, printed, dir }
    }

    /// Whether it is still there.
    pub fn is_mounted(&self) -> bool {
        self.point.metadata().map_or(true, |point| point.dev() != self.dir.path().metadata().unwrap().dev())
    }

    /// Below the mount point.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.point.join(name)
    }

    /// The process that serves.
    pub fn daemon(&self) -> Pid {
        self.daemon.unwrap()
    }

    fn find_daemon(&self) -> Pid {
        let trace = wait_until("the daemon can be asked", || self.trace());
        Pid::from_raw(trace["pid"].as_i64().unwrap() as i32).unwrap()
    }

    /// What the daemon says of itself, once it can be asked.
    fn trace(&self) -> Option<Value> {
        let device = self.point.metadata().ok()?.dev();
        let trace = format!("/run/restorefs/{}:{}.json", rustix::fs::major(device), rustix::fs::minor(device));
        // Another that is gone, or about to go, may have had the same device number.
        let own = |trace: &Value| trace["mountpoint"] == self.point.to_str().unwrap();
        serde_json::from_slice(&std::fs::read(&trace).ok()?).ok().filter(own)
    }

    fn address(&mut self) -> SocketAddr {
        let mut line = String::new();
        let mut stdout = BufReader::new(self.front.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        // What else it says must not fail for want of a reader.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        line.trim().strip_prefix("listening on ").unwrap().parse().unwrap()
    }

    /// The extended attribute that says how far a file has arrived.
    pub fn state(&self, name: impl AsRef<Path>) -> String {
        let mut value = [0; 100];
        let path = self.path(name);
        let n = rustix::fs::lgetxattr(&path, "user.restorefs.state", &mut value)
            .unwrap_or_else(|e| panic!("the state of {path:?}: {e}"));
        String::from_utf8(value[..n].to_vec()).unwrap()
    }

    /// What `restorefs status --json` tells.
    pub fn status(&self) -> Value {
        let output = restorefs(&["status", "--json"], &[&self.point]);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The directory of its spool.
    pub fn spool(&self) -> PathBuf {
        PathBuf::from(self.status()["spool"]["directory"].as_str().unwrap()).canonicalize().unwrap()
    }

    /// Kills the daemon, and waits until it and the command are gone.
    pub fn kill(&mut self) {
        kill_process(self.daemon(), Signal::KILL).unwrap();
        self.wait_front();
        wait_until("the daemon is gone", || is_gone(self.daemon()).then_some(()));
    }

    /// Waits until a status is as it shall be.
    pub fn wait_status(&self, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        wait_until(what, || Some(self.status()).filter(|status| good(status)))
    }

    /// Waits until the stream is over, and returns the status.
    pub fn wait_end(&self) -> Value {
        self.wait_status("the stream is over", |status| status["phase"] == "over")
    }

    /// Waits until the stream is over: complete, and nothing in it had to be refused or mended.
    pub fn wait_clean(&self) {
        let status = self.wait_end();
        assert_eq!(status["end"]["verdict"], "complete", "{status:#}");
        assert_eq!((&status["refused"], &status["warnings"]), (&0.into(), &0.into()), "{status:#}");
    }

    /// Waits until something exists.
    pub fn wait_for(&self, name: impl AsRef<Path>) {
        let path = self.path(name);
        wait_until(&format!("{path:?} is there"), || path.symlink_metadata().ok());
    }

    /// What it has printed on standard error so far.
    pub fn printed(&self) -> String {
        self.printed.text.lock().0.clone()
    }

    /// Waits until it has printed this on standard error.
    pub fn wait_printed(&self, needle: &str) {
        let mut text = self.printed.text.lock();
        while !text.0.contains(needle) {
            assert!(!text.1, "it ended without saying '{needle}':\n{}", text.0);
            let late = self.printed.more.wait_for(&mut text, HANGS).timed_out();
            assert!(!late, "waited in vain for '{needle}' in:\n{}", text.0);
        }
    }

    /// Sends a signal to the process that was started.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.front), signal).unwrap();
    }

    /// Waits until the process that was started ends: its exit code.
    pub fn wait_front(&mut self) -> Option<i32> {
        wait_until("the command ends", || self.front.try_wait().unwrap()).code()
    }

    /// Unmounts as its user would, and waits until nothing is left of it. Returns the exit code of what was started.
    pub fn unmount(mut self) -> Option<i32> {
        let output = restorefs(&["umount"], &[&self.point]);
        assert!(output.status.success(), "{output:?}");
        let code = self.wait_front();
        let daemon = self.daemon();
        wait_until("the daemon is gone", || is_gone(daemon).then_some(()));
        let left: Vec<_> = self.dir.path().join("spool").read_dir().unwrap().collect();
        assert!(left.is_empty(), "the spool stays behind: {left:?}");
        code
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // More than one may lie there. By force: whoever waits for an answer is let go, the daemon itself too.
        let flags = UnmountFlags::DETACH | UnmountFlags::FORCE;
        while rustix::mount::unmount(&self.point, flags).is_ok() {}
        let _ = self.front.kill();
        let _ = self.front.wait();
        if let Some(daemon) = self.daemon {
            let _ = kill_process(daemon, Signal::KILL);
        }
        if std::thread::panicking() {
            eprintln!("the command printed:\n{}", self.printed());
        }
    }
}

/// A mount whose daemon does nothing, until this is dropped.
pub struct Stopped<'a>(&'a Mount);

impl<'a> Stopped<'a> {
    pub fn new(mount: &'a Mount) -> Self {
        kill_process(mount.daemon(), Signal::STOP).unwrap();
        let stat = format!("/proc/{}/stat", mount.daemon().as_raw_nonzero());
        wait_until("the daemon is stopped", || std::fs::read_to_string(&stat).unwrap().contains(") T ").then_some(()));
        Stopped(mount)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        let _ = kill_process(self.0.daemon(), Signal::CONT);
    }
}

/// Whether mounts are made as usual, or without passthrough: see scripts/test.
pub fn passthrough_wanted() -> bool {
    std::env::var_os("RESTOREFS_PASSTHROUGH").is_none_or(|v| v != "0")
}

/// Runs a command of ours that ends by itself.
pub fn restorefs(args: &[&str], paths: &[&Path]) -> Output {
    Command::new(RESTOREFS).args(args).args(paths).stdin(Stdio::null()).output().unwrap()
}

fn collect(mut from: impl Read, into: &Printed) {
    let mut buf = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buf) {
        into.text.lock().0.push_str(&String::from_utf8_lossy(&buf[..n]));
        into.more.notify_all();
    }
    into.text.lock().1 = true;
    into.more.notify_all();
}

/// A FIFO, and where it is.
pub fn fifo(dir: &Path) -> PathBuf {
    let path = dir.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    path
}
