//! Transfers that go on in the spool of a killed daemon, and end as if nothing had happened.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use super::recover;
use crate::support::compare::{same_holes, same_tree};
use crate::support::feed::{end, file, whole};
use crate::support::mount::{Mount, RESTOREFS, fifo, restorefs};
use crate::support::needs_fuse;
use crate::support::pack::{compress, gnu_tar};
use crate::support::process::Group;
use crate::support::proxy::{Proxy, Way};
use crate::support::tree::{Features, bytes, make};
use crate::support::wait_until;

/// Mounts an archive again, to go on in a spool.
fn resume(archive: &Path, spool: &Path) -> Mount {
    Mount::start(Stdio::null(), &["--resume", spool.to_str().unwrap()], |command| {
        command.arg(archive);
    })
}

/// A spool into which the first `upto` bytes of an archive have come, with `name` cut.
fn killed_within(archive: &[u8], upto: usize, name: &str) -> (Mount, PathBuf) {
    let (mut mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&archive[..upto]).unwrap();
    mount.wait_for(name);
    wait_until("a part of it has come", || {
        let state = mount.state(name);
        (state.starts_with("arriving ") && !state.starts_with("arriving 0/")).then_some(())
    });
    let spool = mount.spool();
    mount.kill();
    (mount, spool)
}

#[test]
fn an_archive_that_is_read_again_completes_the_tree() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("zz-large"), bytes(99, 8 << 20)).unwrap();
    make(&tree, Features { attributes: false, ..Features::ALL });
    let archive = dir.path().join("x.tar");
    gnu_tar(&tree, &archive, &["--format=pax", "--sparse", "--sort=name"]);
    let pipe = fifo(dir.path());
    for source in [&archive, &compress(&archive, &["gzip", "-1"]), &compress(&archive, &["zstd", "-1"]), &pipe] {
        let stream = fs::read(if *source == pipe { &archive } else { source }).unwrap();
        // What is cut takes more than half of it.
        let (_mount, spool) = killed_within(&stream, stream.len() - (3 << 20), "zz-large");
        let writer = (*source == pipe).then(|| {
            let script = format!("exec cat {archive:?} >{pipe:?}");
            Group::start(Command::new("bash").args(["-c", &script]))
        });
        let mut mount = resume(source, &spool);
        assert_eq!(mount.wait_front(), Some(0), "{source:?}: {}", mount.printed());
        drop(writer);
        mount.wait_clean();
        same_tree(&tree, &mount.point);
        same_holes(&tree.join("holes"), &mount.path("holes"));
        mount.unmount();
        assert!(!spool.exists(), "it went with its mount, as that of any other");
    }
}

#[test]
fn another_archive_is_refused_and_takes_nothing_away() {
    needs_fuse!();
    const SIZE: usize = 2 << 20;
    let archive = [whole("a", b"1"), whole("b", &bytes(1, 300_000)), file("c", SIZE), bytes(2, SIZE), end()].concat();
    let (_mount, spool) = killed_within(&archive, archive.len() - (SIZE / 2), "c");
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other.tar");
    for stream in [
        [whole("a", b"1"), whole("other", &bytes(1, 300_000)), end()].concat(),
        [whole("a", b"1"), whole("b", &bytes(1, 300_001)), end()].concat(),
        [whole("a", b"1"), end()].concat(),
        [whole("a", b"1"), whole("b", &bytes(1, 300_000))].concat(),
        b"no archive at all, but long enough to be looked at".repeat(100),
    ] {
        fs::write(&other, stream).unwrap();
        let mut mount = resume(&other, &spool);
        let code = mount.wait_front();
        assert!(code.is_some_and(|code| code != 0), "{}", mount.printed());
        if mount.is_mounted() {
            assert!(restorefs(&["umount"], &[&mount.point]).status.success());
        }
        drop(mount);
        let recovered = recover(&spool);
        recovered.ends(4, &["the last entry is 'c'"]);
        assert_eq!(fs::read(recovered.mount.path("a")).unwrap(), b"1");
        assert!(fs::read(recovered.mount.path("b")).unwrap() == bytes(1, 300_000));
        super::same_beginning(&recovered.mount, "c", &bytes(2, SIZE));
        recovered.unmount(&spool);
    }
    fs::write(&other, [whole("a", b"1"), whole("other", b"2"), end()].concat()).unwrap();
    let mut mount = resume(&other, &spool);
    mount.wait_front();
    mount.wait_printed("it is not the archive that the spool was filled from: entry 2 is 'b' there, and 'other' here");
    drop(mount);
    // The right one completes it.
    fs::write(&other, &archive).unwrap();
    let mut mount = resume(&other, &spool);
    assert_eq!(mount.wait_front(), Some(0), "{}", mount.printed());
    assert!(fs::read(mount.path("c")).unwrap() == bytes(2, SIZE));
    mount.unmount();
}

/// A tree, its sender's token, and something between the two ends.
struct Native {
    dir: TempDir,
    tree: PathBuf,
    address: SocketAddr,
    proxy: Proxy,
}

const FILES: u64 = 24;

impl Native {
    fn new() -> (Native, Mount) {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for n in 0..FILES {
            fs::write(tree.join(format!("file-{n:02}")), bytes(n, 1 << 20)).unwrap();
        }
        make(&tree, Features::ALL);
        let token = dir.path().join("token");
        let (mount, address) = Mount::listen_for_sender(&["--token-file", token.to_str().unwrap()]);
        let proxy = Proxy::start(address, |_| Way::default());
        (Native { dir, tree, address, proxy }, mount)
    }

    fn token(&self) -> PathBuf {
        self.dir.path().join("token")
    }

    fn send(&self, args: &[&str]) -> Group {
        let mut command = Command::new(RESTOREFS);
        command.args(["send", ".", "--json", "-C"]).arg(&self.tree).args(["--to", &self.proxy.address.to_string()]);
        command.arg("--token-file").arg(self.token()).args(args);
        Group::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
    }

    /// Listens again where the killed one did.
    fn resume(&self, spool: &Path) -> Mount {
        let (address, token) = (self.address.to_string(), self.token());
        let args = ["--listen", &address, "--token-file", token.to_str().unwrap(), "--resume", spool.to_str().unwrap()];
        Mount::start(Stdio::null(), &args, |_| {})
    }

    fn wait_half(&self, mount: &Mount) {
        mount.wait_for(format!("file-{:02}", FILES - 1));
        wait_until("some are whole", || {
            (0..8).all(|n| mount.state(format!("file-{n:02}")) == "complete").then_some(())
        });
    }

    /// Asserts that all has come, and little of it a second time.
    fn is_done(&self, mut mount: Mount) {
        assert_eq!(mount.wait_front(), Some(0), "{}", mount.printed());
        same_tree(&self.tree, &mount.point);
        let packed: u64 = crate::support::shell(&self.tree, "find . -type f -printf '%b+'; echo 0")
            .trim()
            .split('+')
            .map(|blocks| blocks.parse::<u64>().unwrap() * 512)
            .sum();
        // The catalogue, what was in flight, and the beginning of each file that was open.
        let most = packed + (6 << 20);
        assert!((self.proxy.passed() as u64) < most, "{} bytes passed, {packed} are there", self.proxy.passed());
        mount.unmount();
    }
}

#[test]
fn a_sender_that_still_tries_goes_on() {
    needs_fuse!();
    let (native, mut mount) = Native::new();
    let mut sender = native.send(&["--no-compress", "--rate-limit", "16M"]);
    native.wait_half(&mount);
    let spool = mount.spool();
    mount.kill();
    // An archive cannot be what it is filled from.
    let free = tempfile::tempdir().unwrap();
    let archive = free.path().join("x.tar");
    fs::write(&archive, [whole("a", b"1"), end()].concat()).unwrap();
    let mut wrong = resume(&archive, &spool);
    assert_eq!(wrong.wait_front(), Some(1), "{}", wrong.printed());
    wrong.wait_printed("the spool holds what 'restorefs send' sent");
    drop(wrong);
    let mount = native.resume(&spool);
    assert_eq!(sender.wait().code(), Some(0));
    native.is_done(mount);
}

#[test]
fn a_sender_that_is_started_again_goes_on() {
    needs_fuse!();
    let (native, mut mount) = Native::new();
    let sender = native.send(&["--no-compress", "--rate-limit", "16M"]);
    native.wait_half(&mount);
    let spool = mount.spool();
    mount.kill();
    sender.signal(Signal::KILL);
    drop(sender);
    // What has come can be looked at meanwhile.
    let recovered = recover(&spool);
    recovered.ends(4, &["missing or cut"]);
    for n in 0..8 {
        assert!(fs::read(recovered.mount.path(format!("file-{n:02}"))).unwrap() == bytes(n, 1 << 20));
    }
    recovered.unmount(&spool);
    let mount = native.resume(&spool);
    let mut sender = native.send(&["--no-compress"]);
    assert_eq!(sender.wait().code(), Some(0));
    native.is_done(mount);
}

#[test]
fn what_a_sender_was_told_is_on_the_disk_is_there_after_a_kill() {
    needs_fuse!();
    let (native, mut mount) = Native::new();
    let spool = mount.spool();
    let mut sender = native.send(&[]);
    assert_eq!(sender.wait().code(), Some(0));
    mount.kill();
    let recovered = recover(&spool);
    recovered.ends(0, &["complete"]);
    same_tree(&native.tree, &recovered.mount.point);
    same_holes(&native.tree.join("holes"), &recovered.mount.path("holes"));
    recovered.unmount(&spool);
    // Whether there is more to send is for the sender to say.
    let mut mount = native.resume(&spool);
    let before = native.proxy.passed();
    assert_eq!(native.send(&[]).wait().code(), Some(0));
    assert_eq!(mount.wait_front(), Some(0), "{}", mount.printed());
    let again = native.proxy.passed() - before;
    assert!(again < 1 << 20, "{again} bytes were sent again");
    same_tree(&native.tree, &mount.point);
    mount.unmount();
}
