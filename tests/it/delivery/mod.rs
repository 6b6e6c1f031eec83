//! `restorefs send --to`: from a live tree over the wire into a mount.

mod changes;
mod cuts;
mod interrupted;
mod network;
mod strangers;
mod together;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::compare::{same_holes, same_tree};
use crate::support::disk::Disk;
use crate::support::mount::{Mount, RESTOREFS, restorefs};
use crate::support::needs_fuse;
use crate::support::process::Group;
use crate::support::proxy::{Proxy, Way};
use crate::support::tree::{Features, bytes, make};
use crate::support::wait_until;

/// A receiver, a token, and something to send.
pub(super) struct Pair {
    pub(super) mount: Mount,
    pub(super) address: SocketAddr,
    pub(super) dir: TempDir,
    pub(super) token: PathBuf,
    /// What is sent.
    pub(super) tree: PathBuf,
}

impl Pair {
    /// A receiver whose front ends with the stream; `fill` makes the tree.
    pub(super) fn new(args: &[&str], fill: impl FnOnce(&Path)) -> Pair {
        Pair::with(args, fill, Mount::listen_for_sender)
    }

    /// The same with a receiver on a machine of a network.
    pub(super) fn new_on(machine: &str, address: &str, args: &[&str], fill: impl FnOnce(&Path)) -> Pair {
        Pair::with(args, fill, |args| Mount::listen_for_sender_on(machine, address, args))
    }

    fn with(args: &[&str], fill: impl FnOnce(&Path), listen: impl FnOnce(&[&str]) -> (Mount, SocketAddr)) -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let (token, tree) = (dir.path().join("token"), dir.path().join("tree"));
        fs::create_dir(&tree).unwrap();
        fill(&tree);
        let mut args = args.to_vec();
        args.extend(["--token-file", token.to_str().unwrap()]);
        let (mount, address) = listen(&args);
        Pair { mount, address, dir, token, tree }
    }

    /// Sends the tree as the root of the mount.
    pub(super) fn send(&self, to: SocketAddr, args: &[&str]) -> Sender {
        self.send_with(&self.token, to, args)
    }

    pub(super) fn send_with(&self, token: &Path, to: SocketAddr, args: &[&str]) -> Sender {
        self.send_by(Command::new(RESTOREFS), token, to, args)
    }

    /// The same by a command that runs what follows it.
    pub(super) fn send_by(&self, mut command: Command, token: &Path, to: SocketAddr, args: &[&str]) -> Sender {
        command.args(["send", ".", "--json", "-C"]).arg(&self.tree).args(["--to", &to.to_string()]);
        command.arg("--token-file").arg(token).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Sender(Group::start(&mut command))
    }
}

/// A running `restorefs send`.
pub(super) struct Sender(pub(super) Group);

/// How it ended.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) code: Option<i32>,
    pub(super) report: Value,
    pub(super) printed: String,
}

impl Sender {
    pub(super) fn end(mut self) -> Sent {
        use std::io::Read;
        let code = self.0.wait().code();
        let (mut out, mut printed) = (String::new(), String::new());
        self.0.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.0.0.stderr.take().unwrap().read_to_string(&mut printed).unwrap();
        Sent { code, report: serde_json::from_str(&out).unwrap_or(Value::Null), printed }
    }

    /// Ends well.
    pub(super) fn delivered(self) -> Sent {
        let sent = self.end();
        assert_eq!(sent.code, Some(0), "{sent:#?}");
        assert!(sent.printed.contains("has confirmed"), "{sent:#?}");
        sent
    }
}

/// A file that takes more than fits between the two ends, and is sent first.
pub(super) fn long_file(tree: &Path) {
    fs::write(tree.join("a-long"), bytes(1, 48 << 20)).unwrap();
}

#[test]
fn a_tree_with_everything_arrives_as_it_is() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| make(tree, Features::ALL));
    // tar has no sockets.
    drop(std::os::unix::net::UnixListener::bind(pair.tree.join("devices/socket")).unwrap());
    crate::support::shell(&pair.tree, "touch -d @1000000000.5 devices");
    pair.send(pair.address, &[]).delivered();
    assert_eq!(pair.mount.wait_front(), Some(0));
    same_tree(&pair.tree, &pair.mount.point);
    same_holes(&pair.tree.join("holes"), &pair.mount.path("holes"));
    let status = pair.mount.status();
    assert_eq!(status["end"]["verdict"], "complete");
    assert!(status["sender"]["host"].as_str().is_some_and(|host| !host.is_empty()), "{status:#}");
    let dest = pair.dir.path().join("dest");
    let output = restorefs(&["materialize", "--verify"], &[&pair.mount.point, &dest]);
    assert!(output.status.success(), "{output:?}");
    same_tree(&pair.tree, &dest);
    pair.mount.unmount();
}

#[test]
fn materialize_follows_a_sender() {
    needs_fuse!();
    let dest = tempfile::tempdir().unwrap();
    let mut pair = Pair::new(&["--materialize", dest.path().to_str().unwrap()], |tree| make(tree, Features::ALL));
    pair.send(pair.address, &[]).delivered();
    assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
    same_tree(&pair.tree, dest.path());
    pair.mount.unmount();
}

#[test]
fn names_are_there_before_contents_and_what_is_read_comes_next() {
    needs_fuse!();
    let pair = Pair::new(&[], |tree| {
        long_file(tree);
        for n in 0..3000 {
            fs::write(tree.join(format!("small-{n:04}")), format!("contents of {n}")).unwrap();
        }
        fs::write(tree.join("z-large"), bytes(2, 1 << 20)).unwrap();
    });
    // The catalogue has some 300 kB; the rest of what passes is contents of the first file.
    let proxy = Proxy::start(pair.address, |_| Way { hold: Some(4 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    pair.mount.wait_for("z-large");
    assert_eq!(fs::read_dir(&pair.mount.point).unwrap().count(), 3002);
    assert_eq!(pair.mount.state("z-large"), "announced");
    let large = pair.mount.path("z-large");
    let reader = std::thread::spawn(move || fs::read(large).unwrap());
    // Whoever waits for a path by name has it sent too.
    let wait = Group::start(Command::new(RESTOREFS).arg("wait").arg(&pair.mount.point).arg("small-2999"));
    pair.mount.wait_status("somebody waits for both", |status| status["sender"]["wanted"] == 2);
    proxy.release();
    assert_eq!(reader.join().unwrap(), bytes(2, 1 << 20));
    // What is behind them in the order has not come before them, whatever the machine is busy with.
    let mut wait = wait;
    assert!(wait.wait().success());
    sender.delivered();
    pair.mount.wait_clean();
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn ctrl_c_at_the_receiver_is_told_on_both_sides() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        long_file(tree);
        fs::write(tree.join("z"), "last").unwrap();
    });
    let proxy = Proxy::start(pair.address, |_| Way { hold: Some(1 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    pair.mount.wait_for("z");
    pair.mount.signal(Signal::INT);
    proxy.release();
    let sent = sender.end();
    assert_eq!(sent.code, Some(4), "{sent:#?}");
    assert!(sent.printed.contains("2 of 2 files are missing"), "{sent:#?}");
    assert_eq!(pair.mount.wait_front(), Some(4), "{}", pair.mount.printed());
    let status = pair.mount.status();
    assert_eq!(status["end"]["verdict"], "incomplete", "{status:#}");
    // Nothing of the other one has come.
    assert_eq!((&status["end"]["cut"], &status["sender"]["cut_files"]), (&"a-long".into(), &1.into()), "{status:#}");
    assert!(pair.mount.printed().contains("; 'a-long' was cut. What arrived"), "{}", pair.mount.printed());
    assert!(pair.mount.state("a-long").starts_with("truncated "), "{}", pair.mount.state("a-long"));
    assert_eq!(fs::read(pair.mount.path("z")).unwrap_err().raw_os_error(), Some(libc::EIO));
    pair.mount.unmount();
}

#[test]
fn all_files_that_were_cut_are_named() {
    needs_fuse!();
    // There is room for the beginnings of both, whatever is on its way when the second is asked for.
    let spool = Disk::new("tmpfs", "size=40M");
    let mut pair = Pair::new(&["--spool", spool.path().to_str().unwrap()], |tree| {
        long_file(tree);
        fs::write(tree.join("z\nlong"), bytes(2, 64 << 20)).unwrap();
    });
    let proxy = Proxy::start(pair.address, |_| Way { hold: Some(1 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    pair.mount.wait_for("z\nlong");
    let reader = Group::start(Command::new("cat").arg(pair.mount.path("z\nlong")).stdout(Stdio::null()));
    pair.mount.wait_status("it is waited for", |status| status["sender"]["wanted"] == 1);
    proxy.release();
    pair.mount.wait_status("there is no room", |status| status["phase"] == "no-space");
    pair.mount.signal(Signal::INT);
    assert_eq!(pair.mount.wait_front(), Some(4), "{}", pair.mount.printed());
    assert_eq!(sender.end().code, Some(4));
    let printed = pair.mount.printed();
    assert!(printed.contains(r"; 'a-long' and 'z\nlong' were cut. What arrived"), "{printed}");
    let status = pair.mount.status();
    assert_eq!(status["sender"]["cut"], serde_json::json!(["a-long", r"z\nlong"]), "{status:#}");
    let output = restorefs(&["status"], &[&pair.mount.point]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(told.lines().filter(|line| line.starts_with("  cut ")).count(), 2, "{told}");
    drop(reader);
    pair.mount.unmount();
}

#[test]
fn a_receiver_that_dies_leaves_the_sender_with_an_error() {
    needs_fuse!();
    let pair = Pair::new(&[], long_file);
    let proxy = Proxy::start(pair.address, |_| Way { hold: Some(1 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--retry", "1"]);
    proxy.wait_held();
    rustix::process::kill_process(pair.mount.daemon(), Signal::KILL).unwrap();
    proxy.release();
    let sent = sender.end();
    assert_eq!(sent.code, Some(4), "{sent:#?}");
    assert!(sent.printed.contains("1 of 1 files are missing"), "{sent:#?}");
}

#[test]
fn a_full_disk_holds_the_sender_back_and_it_goes_on() {
    needs_fuse!();
    let spool = Disk::new("tmpfs", "size=8M");
    let mut pair = Pair::new(&["--spool", spool.path().to_str().unwrap()], |tree| {
        fs::write(tree.join("file"), bytes(5, 12 << 20)).unwrap();
    });
    let sender = pair.send(pair.address, &["--no-compress"]);
    pair.mount.wait_status("there is no room", |status| status["phase"] == "no-space");
    // Names are there, and it is told so also when contents wait.
    assert_eq!(pair.mount.status()["sender"]["missing_files"], 1, "{:#}", pair.mount.status());
    spool.remount("size=256M");
    sender.delivered();
    assert_eq!(pair.mount.wait_front(), Some(0));
    same_tree(&pair.tree, &pair.mount.point);
    drop(pair);
}

#[test]
fn a_spool_that_somebody_cleaned_up_is_not_confirmed() {
    needs_fuse!();
    for (harm, cause) in [
        ("rm -r restorefs-*", "was removed or cut by something else"),
        ("rm restorefs-*/blobs/0", "has lost contents of 1 file "),
        ("truncate -s 1 restorefs-*/blobs/0", "has lost contents of 1 file "),
    ] {
        let spool = tempfile::tempdir().unwrap();
        let mut pair = Pair::new(&["--spool", spool.path().to_str().unwrap()], |tree| {
            fs::write(tree.join("a"), bytes(1, 1 << 20)).unwrap();
            fs::write(tree.join("z"), bytes(2, 8 << 20)).unwrap();
        });
        let proxy = Proxy::start(pair.address, |_| Way { hold: Some(3 << 20), ..Way::default() });
        let sender = pair.send(proxy.address, &["--no-compress"]);
        proxy.wait_held();
        // What was read by name has its blob open no longer.
        wait_until("the first is whole", || (pair.mount.state("a") == "complete").then_some(()));
        pair.mount.wait_status("the second has begun", |status| status["bytes"].as_u64() > Some(1 << 20));
        crate::support::shell(spool.path(), harm);
        proxy.release();
        let sent = sender.end();
        assert_eq!(sent.code, Some(4), "{harm}: {sent:#?}");
        assert!(sent.printed.contains(cause), "{harm}: {sent:#?}");
        assert_eq!(pair.mount.wait_front(), Some(1), "{harm}: {}", pair.mount.printed());
        pair.mount.unmount();
    }
}

#[test]
fn who_waits_through_an_outage_is_counted() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        long_file(tree);
        fs::write(tree.join("z"), bytes(9, 300_000)).unwrap();
    });
    let proxy = Proxy::start(pair.address, |_| Way { hold: Some(4 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    pair.mount.wait_for("z");
    sender.0.signal(Signal::KILL);
    drop(sender);
    proxy.cut();
    pair.mount.wait_status("the sender is away", |status| status["sender"]["connected"] == false);
    let z = pair.mount.path("z");
    let reader = std::thread::spawn(move || fs::read(z).unwrap());
    pair.mount.wait_status("somebody waits", |status| status["sender"]["wanted"] == 1);
    pair.send(pair.address, &[]).delivered();
    assert_eq!(reader.join().unwrap(), bytes(9, 300_000));
    assert_eq!(pair.mount.wait_front(), Some(0));
    pair.mount.unmount();
}

#[test]
fn an_archive_and_a_receiver_get_the_same() {
    needs_fuse!();
    let pair = Pair::new(&[], |tree| make(tree, Features::ALL));
    pair.send(pair.address, &["--exclude", "sizes/4*", "--rate-limit", "100M"]).delivered();
    assert!(!pair.mount.path("sizes/4096").exists() && pair.mount.path("sizes/513").exists());
    pair.mount.unmount();
}
