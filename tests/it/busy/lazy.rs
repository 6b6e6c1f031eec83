//! `umount --lazy`: gone from the tree, and there for those who use it.

use std::fs;
use std::process::{Command, Stdio};

use super::{Running, SIZE, arriving, complete, contents, is_clean, is_restored, says, spooled, umount};
use crate::support::needs_fuse;
use crate::support::process::{Group, is_gone};

#[test]
fn a_materialize_goes_on_to_the_end_of_the_stream() {
    needs_fuse!();
    let (mount, stdin) = arriving();
    let dest = mount.dir.path().join("dest");
    let materialize = Running::materialize(&mount, &dest);
    let told = umount(&["--lazy"], &mount.point);
    says(&told, &["0 ", "is unmounted", &format!("goes on for materialize (PID {})", materialize.pid())]);
    assert!(!mount.is_mounted() && !is_gone(mount.daemon()));
    complete(stdin);
    materialize.ends(0);
    is_restored(&dest, true);
    is_clean(&mount);
}

#[test]
fn whoever_reads_gets_what_is_still_to_come() {
    needs_fuse!();
    let (mount, stdin) = arriving();
    let mut reader = Command::new("cat");
    reader.arg(mount.path("cut")).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut reader = Group::start(&mut reader);
    let mut read = vec![0; 4096];
    let mut pipe = reader.0.stdout.take().unwrap();
    std::io::Read::read_exact(&mut pipe, &mut read).unwrap();
    says(&umount(&["--lazy"], &mount.point), &["0 ", "cat (PID ", "open file"]);
    assert!(!mount.is_mounted());
    complete(stdin);
    std::io::Read::read_to_end(&mut pipe, &mut read).unwrap();
    assert!(reader.wait().success());
    assert!(read.len() == SIZE && read == contents());
    is_clean(&mount);
}

#[test]
fn a_working_directory_keeps_what_is_there() {
    needs_fuse!();
    let mount = spooled();
    let mut user = Group::start(
        Command::new("bash")
            .args(["-c", "read; cat small"])
            .current_dir(&mount.point)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped()),
    );
    says(&umount(&["--lazy"], &mount.point), &["0 ", "working directory"]);
    assert!(!mount.is_mounted() && !is_gone(mount.daemon()));
    drop(user.0.stdin.take());
    let mut read = String::new();
    std::io::Read::read_to_string(&mut user.0.stdout.take().unwrap(), &mut read).unwrap();
    assert_eq!(read, "s");
    user.wait();
    is_clean(&mount);
}

#[test]
fn where_nobody_uses_it_what_is_still_to_come_is_not_thrown_away() {
    needs_fuse!();
    let (mount, stdin) = arriving();
    says(&umount(&["--lazy"], &mount.point), &["1 ", "still receiving", "restorefs stop"]);
    assert!(mount.is_mounted());
    complete(stdin);
    mount.wait_clean();
    assert!(fs::read(mount.path("cut")).unwrap() == contents());
    assert_eq!(umount(&["--lazy"], &mount.point), "0 ");
    is_clean(&mount);
}

#[test]
fn a_signal_ends_what_is_detached() {
    needs_fuse!();
    let (mount, stdin) = arriving();
    let dest = mount.dir.path().join("dest");
    let materialize = Running::materialize(&mount, &dest);
    says(&umount(&["--lazy"], &mount.point), &["0 "]);
    mount.signal(rustix::process::Signal::TERM);
    // Not even then is anything taken from it.
    says(&materialize.ends(4), &["was unmounted meanwhile"]);
    is_restored(&dest, false);
    is_clean(&mount);
    drop(stdin);
}
