//! Trees that change while they are sent, files that may not be read, and readers that go away.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use super::{Ended, ended, send, start};
use crate::support::mount::RESTOREFS;
use crate::support::process::is_gone;
use crate::support::tree::bytes;
use crate::support::{needs_fuse, shell, wait_until};

/// More than pipe and buffers hold: while nobody reads, the sender is in the middle of it.
const LARGE: usize = 16 << 20;

/// Waits until the walk is at its end, and the first bytes are there.
fn begun(child: &mut Child) -> Vec<u8> {
    let mut first = vec![0; 512];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    let tasks = format!("/proc/{}/task", child.id());
    wait_until("the walk is over", || {
        let names = fs::read_dir(&tasks).unwrap().map(|task| fs::read(task.unwrap().path().join("comm")));
        (!names.flatten().any(|name| name == b"walk\n")).then_some(())
    });
    first
}

/// Takes all the rest.
fn rest(mut child: Child, mut archive: Vec<u8>) -> Ended {
    child.stdout.take().unwrap().read_to_end(&mut archive).unwrap();
    let output = child.wait_with_output().unwrap();
    Ended { archive, ..ended(output) }
}

/// The contents of one member.
fn member(ended: &Ended, name: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x.tar"), &ended.archive).unwrap();
    shell(dir.path(), "tar xf x.tar");
    fs::read(dir.path().join(name)).unwrap()
}

fn tree(dir: &Path) {
    fs::create_dir(dir.join("t")).unwrap();
    fs::write(dir.join("t/a"), bytes(1, LARGE)).unwrap();
    for name in ["b", "c", "d"] {
        fs::write(dir.join("t").join(name), name).unwrap();
    }
    fs::hard_link(dir.join("t/c"), dir.join("t/e")).unwrap();
}

#[test]
fn what_vanishes_or_is_replaced_before_it_is_read_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let mut child = start(dir.path(), &["t"]);
    let first = begun(&mut child);
    fs::remove_file(dir.path().join("t/b")).unwrap();
    fs::remove_file(dir.path().join("t/c")).unwrap();
    fs::remove_file(dir.path().join("t/d")).unwrap();
    symlink("/etc/passwd", dir.path().join("t/d")).unwrap();
    let ended = rest(child, first).with(3).says(&[
        "'t/b': it has vanished",
        "'t/c': it has vanished",
        "'t/d': something else is in its place",
        "'t/e': it is another name of 't/c', which is not in the archive",
        "4 could not be sent as they are",
    ]);
    assert_eq!(ended.names(), ["t/", "t/a"]);
    assert!(member(&ended, "t/a") == bytes(1, LARGE));
}

#[test]
fn what_becomes_shorter_is_named_and_the_rest_stays_right() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let mut child = start(dir.path(), &["t"]);
    let first = begun(&mut child);
    let half = LARGE / 2;
    fs::File::options().write(true).open(dir.path().join("t/a")).unwrap().set_len(half as u64).unwrap();
    let zeros = format!("'t/a': it has become shorter: the last {half} bytes of what is sent of it are zeros");
    let ended = rest(child, first).with(3).says(&[&zeros, "1 could not be sent as it is"]);
    let sent = member(&ended, "t/a");
    assert!(sent[..half] == bytes(1, LARGE)[..half] && sent[half..] == vec![0; half]);
    assert_eq!(member(&ended, "t/d"), b"d");
    assert_eq!(ended.names().len(), 6);
}

#[test]
fn what_grows_or_is_written_to_is_named_and_as_long_as_announced() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let mut child = start(dir.path(), &["t"]);
    let first = begun(&mut child);
    let file = fs::File::options().append(true).open(dir.path().join("t/a")).unwrap();
    (&file).write_all(b"more").unwrap();
    fs::File::options().write(true).open(dir.path().join("t/b")).unwrap().write_all_at(b"B", 0).unwrap();
    let ended = rest(child, first).with(3).says(&[
        "'t/a': it was changed while it was sent",
        "'t/b': it was changed while it was sent",
        "2 could not be sent as they are",
    ]);
    assert!(member(&ended, "t/a") == bytes(1, LARGE));
    assert_eq!(member(&ended, "t/c"), b"c");
}

#[test]
fn a_directory_swapped_for_a_link_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["t/d/sub", "t/x", "outside/sub"] {
        fs::create_dir_all(path(name)).unwrap();
    }
    for n in 0..50 {
        fs::write(path(&format!("t/d/sub/{n}")), "inside").unwrap();
        fs::write(path(&format!("outside/sub/{n}")), "SECRET").unwrap();
    }
    symlink("../outside", path("t/link")).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let swap = rustix::fs::RenameFlags::EXCHANGE;
            while !over.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(rustix::fs::CWD, path("t/d"), rustix::fs::CWD, path("t/link"), swap).unwrap();
            }
        });
        let mut complete = 0;
        for _ in 0..60 {
            let ended = send(dir.path(), &["t"]);
            assert!(matches!(ended.code, Some(0 | 3)), "{}", ended.text);
            assert!(!ended.archive.windows(6).any(|window| window == b"SECRET"), "{}", ended.text);
            complete += usize::from(ended.archive.windows(6).any(|window| window == b"inside"));
        }
        over.store(true, Ordering::Relaxed);
        assert!(complete > 0, "nothing was ever sent: this test sees nothing");
    });
}

#[test]
fn what_may_not_be_read_is_named() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    // Where it was built, others may not be let in.
    fs::copy(RESTOREFS, dir.path().join("restorefs")).unwrap();
    shell(
        dir.path(),
        "chmod 755 .; mkdir -p t/closed t/open; echo 1 >t/secret; echo 2 >t/closed/f; echo 3 >t/open/f; : >t/empty
         ln t/secret t/secret2; chmod 600 t/secret t/empty; chmod 700 t/closed",
    );
    let mut setpriv = Command::new("setpriv");
    setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups", "./restorefs", "send", "t", "-"]);
    let ended = ended(setpriv.current_dir(dir.path()).output().unwrap()).with(3).says(&[
        "'t/closed': what is in it cannot be listed: Permission denied",
        "'t/secret': it cannot be opened: Permission denied",
        "'t/secret2': it is another name of 't/secret'",
        "3 could not be sent as they are",
    ]);
    // Of an empty file there is nothing to be read.
    assert_eq!(ended.names(), ["t/", "t/closed/", "t/empty", "t/open/", "t/open/f"]);
}

#[test]
fn a_reader_that_goes_away_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let mut child = start(dir.path(), &["t"]);
    begun(&mut child);
    drop(child.stdout.take());
    ended(child.wait_with_output().unwrap()).with(4).says(&["has ended before it was complete"]);
}

#[test]
fn a_disk_that_is_full_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = super::command(dir.path(), &["t"]).stdout(full).output().unwrap();
    ended(output).with(1).says(&["cannot write the archive: No space left on device"]);
}

#[test]
fn ctrl_c_leaves_no_end_marker() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let mut child = start(dir.path(), &["t"]);
    let first = begun(&mut child);
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    wait_until("it has ended", || is_gone(pid).then_some(()));
    let ended = rest(child, first).with(4).says(&["stopped"]);
    assert!(ended.archive.len() < LARGE);
}

#[test]
fn neither_a_fifo_nor_a_device_is_opened() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    // A FIFO without a writer, and a terminal that nobody has: opening either would wait, or fail.
    shell(dir.path(), "mkdir t; mkfifo t/fifo; mknod t/modem c 4 95; mknod t/disk b 259 1048575");
    let ended = send(dir.path(), &["t", "t/fifo"]).with(0);
    assert_eq!(ended.names(), ["t/", "t/disk", "t/fifo", "t/modem", "t/fifo"]);
}

#[test]
fn no_faster_than_it_may() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("t")).unwrap();
    fs::write(dir.path().join("t/a"), bytes(1, 1 << 20)).unwrap();
    let begun = std::time::Instant::now();
    let ended = send(dir.path(), &["t", "--rate-limit", "2M"]).with(0);
    // Half a second's worth, of which the last piece is not waited for.
    assert!(begun.elapsed().as_secs_f64() > 0.39, "{:?}", begun.elapsed());
    assert!(member(&ended, "t/a") == bytes(1, 1 << 20));
}
