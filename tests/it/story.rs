//! The story that restorefs is made for: `tar cf - tree | nc host port`, and something goes wrong in the middle.
//!
//! Whatever ends the stream (Ctrl-C, a sender that dies, a connection that breaks), what arrived is right, every
//! symbolic link among it, and the one file that was cut is named.

use std::fs::{self, File};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::support::compare::same_tree_except;
use crate::support::mount::{Mount, restorefs};
use crate::support::process::{Group, is_gone};
use crate::support::tree::bytes;
use crate::support::{needs_fuse, run, wait_until};

const PAGE: usize = 4096;

/// Of the file that is cut, this much arrives: not whole pages, and not whole blocks of tar.
const RECEIVED: usize = 3_001_234;
const SIZE: usize = 6_000_000;
const CUT: &str = "data/cut";
const WHOLE: [(&str, usize); 3] = [("data/empty", 0), ("data/small", 777), ("data/whole", 500_001)];
const LINKS: [(&str, &str); 5] = [
    ("links/absolute", "/etc/hostname"),
    ("links/dotdot", "../data/whole"),
    ("links/relative", "absolute"),
    ("links/dangling", "no such file"),
    ("links/up", "../../.."),
];

#[derive(Clone, Copy)]
enum Packed {
    Plain,
    Gzip,
    Zstd,
}

#[derive(Clone, Copy, PartialEq)]
enum Ending {
    /// Ctrl-C in front of the receiver.
    Interrupt,
    /// All processes of the sender are killed.
    Kill,
    /// The connection breaks.
    Reset,
}

/// A tree, its archive, and the archive in two parts: cut in the middle of a file.
struct Story {
    dir: TempDir,
    parts: [Vec<u8>; 2],
}

impl Story {
    fn new(packed: Packed) -> Story {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("links")).unwrap();
        fs::create_dir_all(tree.join("data")).unwrap();
        for (name, target) in LINKS {
            symlink(target, tree.join(name)).unwrap();
        }
        for (name, size) in WHOLE {
            fs::write(tree.join(name), bytes(size as u64, size)).unwrap();
        }
        fs::write(tree.join(CUT), bytes(9, SIZE)).unwrap();
        fs::write(tree.join("last"), b"behind it").unwrap();
        let archive = dir.path().join("x.tar");
        // In this order; the directories too, or they would have the times of the receiver.
        let links = LINKS.iter().map(|(name, _)| *name);
        let files = WHOLE.iter().map(|(name, _)| *name).chain([CUT, "last"]);
        let names = [".", "links", "data"].into_iter().chain(links).chain(files);
        run(Command::new("tar").current_dir(&tree).args(["--no-recursion", "-cf"]).arg(&archive).args(names));
        let cut = RECEIVED
            + tar::Archive::new(File::open(&archive).unwrap())
                .entries_with_seek()
                .unwrap()
                .map(Result::unwrap)
                .find(|entry| entry.path_bytes() == CUT.as_bytes())
                .unwrap()
                .raw_file_position() as usize;
        let whole = fs::read(archive).unwrap();
        Story { dir, parts: in_two(whole.split_at(cut), packed) }
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    /// `tar cf - tree | nc`, held after the first part.
    fn sender(&self, to: SocketAddr) -> Group {
        let part = self.dir.path().join("part");
        fs::write(&part, &self.parts[0]).unwrap();
        // Sleeps in a shell that has to be killed: nothing ends here by itself.
        let line = format!("(cat part; sleep infinity) | nc 127.0.0.1 {}", to.port());
        sh(&line, self.dir.path())
    }
}

/// Compresses the two so that all of the first can be had from the first part alone: by a sender that flushes.
fn in_two((first, second): (&[u8], &[u8]), packed: Packed) -> [Vec<u8>; 2] {
    fn parts<W: Write>(mut to: W, data: [&[u8]; 2], taken: impl Fn(&W) -> usize) -> (W, usize) {
        to.write_all(data[0]).unwrap();
        to.flush().unwrap();
        let at = taken(&to);
        to.write_all(data[1]).unwrap();
        (to, at)
    }
    let (mut all, at) = match packed {
        Packed::Plain => return [first.to_vec(), second.to_vec()],
        Packed::Gzip => {
            let to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            let (to, at) = parts(to, [first, second], |to| to.get_ref().len());
            (to.finish().unwrap(), at)
        }
        Packed::Zstd => {
            let to = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            let (to, at) = parts(to, [first, second], |to| to.get_ref().len());
            (to.finish().unwrap(), at)
        }
    };
    let rest = all.split_off(at);
    [all, rest]
}

/// What is there is right while the rest is still to come, and afterwards.
fn arrived_is_right(mount: &Mount) {
    for (name, target) in LINKS {
        assert_eq!(fs::read_link(mount.path(name)).unwrap(), Path::new(target), "{name}");
    }
    for (name, size) in WHOLE {
        assert_eq!(mount.state(name), "complete", "{name}");
        assert!(fs::read(mount.path(name)).unwrap() == bytes(size as u64, size), "{name}");
    }
    let file = File::open(mount.path(CUT)).unwrap();
    let contents = bytes(9, SIZE);
    for at in (0..RECEIVED / PAGE).map(|page| page * PAGE) {
        let mut page = [0; PAGE];
        file.read_exact_at(&mut page, at as u64).unwrap_or_else(|e| panic!("page at {at}: {e}"));
        assert!(page[..] == contents[at..at + PAGE], "page at {at}");
    }
}

fn is_eio(result: std::io::Result<usize>) -> bool {
    result.is_err_and(|e| e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()))
}

fn story(packed: Packed, ending: Ending) {
    let story = Story::new(packed);
    let (mut mount, address) = Mount::listen_daemon(&[]);
    let mut by_nc = None;
    let mut by_hand = None;
    if ending == Ending::Reset {
        by_hand.insert(TcpStream::connect(address).unwrap()).write_all(&story.parts[0]).unwrap();
    } else {
        by_nc = Some(story.sender(address));
    }

    mount.wait_for(CUT);
    let arriving = format!("arriving {RECEIVED}/{SIZE}");
    wait_until("all that was sent has arrived", || (mount.state(CUT) == arriving).then_some(()));
    arrived_is_right(&mount);
    assert!(!mount.path("last").exists());
    let copy = story.dir.path().join("copy");
    let mut cat = Group::start(
        Command::new("cat").arg(mount.path(CUT)).stdout(File::create(&copy).unwrap()).stderr(Stdio::null()),
    );
    cat.wait_parked();

    match ending {
        Ending::Interrupt => mount.signal(Signal::INT),
        Ending::Kill => by_nc.as_ref().unwrap().kill(),
        Ending::Reset => {
            let connection = by_hand.take().unwrap();
            rustix::net::sockopt::set_socket_linger(&connection, Some(Duration::ZERO)).unwrap();
        }
    }

    assert_eq!(mount.wait_front(), Some(4));
    assert!(!cat.wait().success());
    let pages = RECEIVED / PAGE * PAGE;
    assert!(fs::read(&copy).unwrap() == bytes(9, SIZE)[..pages], "what the waiting cat has read");

    mount.wait_printed("it stays mounted");
    assert!(mount.printed().contains(&format!("'{CUT}' was cut")), "{}", mount.printed());
    let status = mount.wait_end();
    assert_eq!(status["end"]["verdict"], "incomplete");
    assert_eq!(status["end"]["cut"], CUT);
    assert_eq!(mount.state(CUT), format!("truncated {RECEIVED}/{SIZE}"));
    arrived_is_right(&mount);
    let file = File::open(mount.path(CUT)).unwrap();
    for at in [pages, RECEIVED, RECEIVED + PAGE, SIZE - 1] {
        assert!(is_eio(file.read_at(&mut [0; PAGE], at as u64)), "read at {at}");
    }
    assert_eq!(file.metadata().unwrap().len(), SIZE as u64);
    drop(file);
    mount.unmount();
}

#[test]
fn ctrl_c_plain() {
    needs_fuse!();
    story(Packed::Plain, Ending::Interrupt);
}

#[test]
fn ctrl_c_gzip() {
    needs_fuse!();
    story(Packed::Gzip, Ending::Interrupt);
}

#[test]
fn ctrl_c_zstd() {
    needs_fuse!();
    story(Packed::Zstd, Ending::Interrupt);
}

#[test]
fn killed_sender_plain() {
    needs_fuse!();
    story(Packed::Plain, Ending::Kill);
}

#[test]
fn killed_sender_gzip() {
    needs_fuse!();
    story(Packed::Gzip, Ending::Kill);
}

#[test]
fn killed_sender_zstd() {
    needs_fuse!();
    story(Packed::Zstd, Ending::Kill);
}

#[test]
fn reset_connection_plain() {
    needs_fuse!();
    story(Packed::Plain, Ending::Reset);
}

#[test]
fn reset_connection_gzip() {
    needs_fuse!();
    story(Packed::Gzip, Ending::Reset);
}

#[test]
fn reset_connection_zstd() {
    needs_fuse!();
    story(Packed::Zstd, Ending::Reset);
}

#[test]
fn a_killed_front_hurts_nothing() {
    needs_fuse!();
    let story = Story::new(Packed::Gzip);
    for signal in [Signal::KILL, Signal::TERM] {
        let (mut mount, address) = Mount::listen_daemon(&[]);
        let mut sender = TcpStream::connect(address).unwrap();
        sender.write_all(&story.parts[0]).unwrap();
        mount.wait_for(CUT);
        mount.signal(signal);
        mount.wait_front();
        sender.write_all(&story.parts[1]).unwrap();
        drop(sender);
        assert_eq!(mount.wait_end()["end"]["verdict"], "complete");
        same_but_for_nanoseconds(&story.tree(), &mount.point);
        mount.unmount();
    }
}

#[test]
fn in_one_process_the_signals_that_would_end_it_unmount() {
    needs_fuse!();
    for signal in [Signal::TERM, Signal::QUIT] {
        let (mut mount, _to) = Mount::pipe(&[]);
        mount.signal(signal);
        mount.wait_front();
        assert!(!mount.is_mounted(), "{signal:?}");
    }
}

#[test]
fn a_killed_daemon_is_told_of_and_its_spool_is_kept() {
    needs_fuse!();
    let story = Story::new(Packed::Plain);
    let (mut mount, address) = Mount::listen_daemon(&[]);
    let mut sender = TcpStream::connect(address).unwrap();
    sender.write_all(&story.parts[0]).unwrap();
    let arriving = format!("arriving {RECEIVED}/{SIZE}");
    mount.wait_for(CUT);
    wait_until("all that was sent has arrived", || (mount.state(CUT) == arriving).then_some(()));
    let spool = mount.status()["spool"]["directory"].as_str().unwrap().to_owned();

    kill_process(mount.daemon(), Signal::KILL).unwrap();
    wait_until("the daemon is gone", || is_gone(mount.daemon()).then_some(()));
    assert_eq!(mount.wait_front(), Some(1));
    mount.wait_printed("the daemon is gone");
    let error = fs::read_dir(&mount.point).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()));

    for command in ["status", "wait", "umount"] {
        let output = restorefs(&[command], &[&mount.point]);
        assert_eq!(output.status.code(), Some(if command == "umount" { 0 } else { 1 }), "{output:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(&spool), "{command} does not name the spool: {told}");
    }
    assert_eq!(fs::read_dir(&mount.point).unwrap().count(), 0, "still mounted");
    assert!(Path::new(&spool).join("journal").metadata().unwrap().len() > 0);
    // Nobody is left to ask, and that is told too.
    let output = restorefs(&["status"], &[&mount.point]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("not in a restorefs mount"), "{output:?}");
}

#[test]
fn a_netcat_without_an_end_is_let_go() {
    needs_fuse!();
    let story = Story::new(Packed::Plain);
    let (mut mount, address) = Mount::listen_daemon(&[]);
    // Without -N it does not tell that its input has ended, and waits until we do.
    let line = format!("tar -C tree -cf - . | nc 127.0.0.1 {}", address.port());
    let mut sender = sh(&line, story.dir.path());
    assert_eq!(mount.wait_front(), Some(0));
    assert!(sender.wait().success());
    same_but_for_nanoseconds(&story.tree(), &mount.point);
    mount.unmount();
}

#[test]
fn a_connection_that_stays_open_holds_up_nothing() {
    needs_fuse!();
    let story = Story::new(Packed::Plain);
    let (mut mount, address) = Mount::listen_daemon(&[]);
    let mut sender =
        sh(&format!("(tar -C tree -cf - .; sleep infinity) | nc 127.0.0.1 {}", address.port()), story.dir.path());
    assert_eq!(mount.wait_front(), Some(0));
    assert_eq!(mount.wait_end()["end"]["verdict"], "complete");
    same_but_for_nanoseconds(&story.tree(), &mount.point);
    assert!(!sender.has_ended(), "the sender was to stay");
    mount.unmount();
}

fn sh(line: &str, dir: &Path) -> Group {
    Group::start(Command::new("sh").args(["-c", line]).current_dir(dir).stdout(Stdio::null()))
}

/// GNU tar without `--format` writes its own format, which has whole seconds only.
fn same_but_for_nanoseconds(packed: &Path, mounted: &Path) {
    same_tree_except(packed, mounted, &["--modify-window=0"]);
}

#[test]
fn in_one_process_the_first_ctrl_c_stops_and_the_second_unmounts() {
    needs_fuse!();
    let story = Story::new(Packed::Plain);
    let (mut mount, address) = Mount::listen(&[]);
    let mut sender = TcpStream::connect(address).unwrap();
    sender.write_all(&story.parts[0]).unwrap();
    let arriving = format!("arriving {RECEIVED}/{SIZE}");
    mount.wait_for(CUT);
    wait_until("all that was sent has arrived", || (mount.state(CUT) == arriving).then_some(()));
    mount.signal(Signal::INT);
    let status = mount.wait_end();
    assert_eq!(status["end"]["cut"], CUT);
    arrived_is_right(&mount);
    assert!(mount.front.try_wait().unwrap().is_none(), "it serves on");
    mount.signal(Signal::INT);
    assert_eq!(mount.wait_front(), Some(4));
    assert_eq!(fs::read_dir(&mount.point).unwrap().count(), 0, "still mounted");
    assert_eq!(fs::read_dir(mount.dir.path().join("spool")).unwrap().count(), 0, "the spool stays behind");
}
