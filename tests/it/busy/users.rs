//! A mount that is in use is not unmounted, and who uses it is named.

use std::fs::{self, File};
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{Running, arriving, complete, is_restored, says, spooled, umount, wait_gone};
use crate::support::feed::{end, member, whole};
use crate::support::mount::{Mount, restorefs};
use crate::support::process::Group;
use crate::support::users::Home;
use crate::support::{needs_fuse, run, wait_until};

/// A process that says when it uses the mount, and does so until it is killed.
fn user(mount: &Mount, program: &str, args: &[&str]) -> Group {
    let mut command = Command::new(program);
    command.args(args).arg(&mount.point).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut user = Group::start(&mut command);
    let mut said = [0; 6];
    std::io::Read::read_exact(user.0.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(&said, b"there\n");
    user
}

#[test]
fn whoever_uses_it_is_named_and_keeps_it() {
    needs_fuse!();
    let mount = spooled();
    let python = |line: &str| {
        format!("import os, sys, time, mmap; mnt = sys.argv[1]; {line}; print('there', flush=True); time.sleep(1000)")
    };
    for (program, line, use_) in [
        ("bash", "cd \"$0\"; echo there; exec sleep 1000", "working directory"),
        ("bash", "exec 7<\"$0/small\"; echo there; exec sleep 1000", "open file"),
        ("bash", "exec 7<\"$0/small\" 8<\"$0/large\" 9<\"$0\"; echo there; exec sleep 1000", "3 open files"),
        ("python3", &python("os.chroot(mnt)"), "root directory"),
        ("python3", &python("os.open(mnt, os.O_PATH)"), "open file"),
        ("python3", &python("m = mmap.mmap(os.open(mnt + '/large', 0), 0, prot=mmap.PROT_READ)"), "mapping"),
    ] {
        let mut user = user(&mount, program, &["-c", line]);
        let pid = user.pid().as_raw_nonzero().to_string();
        let told = umount(&[], &mount.point);
        says(&told, &["1 ", "target is busy: ", &format!("(PID {pid}, "), use_, "--force", "--lazy"]);
        assert!(!told.contains("loses what has not come"), "{told}");
        assert_eq!(fs::read(mount.path("small")).unwrap(), b"s");
        user.kill();
        user.wait();
    }
    mount.unmount();
}

#[test]
fn a_program_that_runs_keeps_it() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let sleep = fs::canonicalize(String::from_utf8(run(Command::new("which").arg("sleep")).stdout).unwrap().trim());
    fs::copy(sleep.unwrap(), tree.join("sleep")).unwrap();
    let archive = dir.path().join("x.tar");
    crate::support::pack::gnu_tar(&tree, &archive, &[]);
    let mount = Mount::file(&archive, &[]);
    mount.wait_clean();
    let mut program = Group::start(Command::new(mount.path("sleep")).arg("1000"));
    says(
        &umount(&[], &mount.point),
        &["1 ", "target is busy: sleep", &format!("(PID {}, program)", program.pid().as_raw_nonzero())],
    );
    program.kill();
    program.wait();
    mount.unmount();
}

#[test]
fn commands_at_work_keep_it() {
    needs_fuse!();
    let (mount, stdin) = arriving();
    let dest = mount.dir.path().join("dest");
    let materialize = Running::materialize(&mount, &dest);
    let waits = [&["wait"][..], &["wait"]].map(|args| Running::start(args, &[&mount.point]));
    let named = wait_until("all are at work", || {
        let told = umount(&[], &mount.point);
        (told.matches("wait (PID ").count() == 2).then_some(told)
    });
    says(
        &named,
        &["1 ", "target is busy: ", &format!("materialize (PID {})", materialize.pid()), "loses what has not come"],
    );
    for wait in &waits {
        says(&named, &[&format!("wait (PID {})", wait.pid())]);
    }
    complete(stdin);
    materialize.ends(0);
    for wait in waits {
        wait.ends(0);
    }
    is_restored(&dest, true);
    mount.unmount();
}

#[test]
fn a_materialize_of_an_archive_in_place_keeps_it_to_its_end() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("x.tar");
    let files = (0..3000).map(|n| whole(&format!("f{n}"), b"x")).collect::<Vec<_>>().concat();
    fs::write(&archive, [files, end()].concat()).unwrap();
    let mount = Mount::file(&archive, &[]);
    mount.wait_clean();
    let dest = dir.path().join("dest");
    let running = Running::start(&["materialize", "--no-sync"], &[&mount.point, &dest]);
    wait_until("it has begun", || dest.join("f0").exists().then_some(()));
    running.stop();
    if dest.join("f2999").exists() {
        eprintln!("SKIPPED the rest of a test: it was too quick");
        return;
    }
    says(&umount(&[], &mount.point), &["1 ", &format!("materialize (PID {})", running.pid())]);
    running.0.signal(rustix::process::Signal::CONT);
    running.ends(0);
    assert_eq!(dest.read_dir().unwrap().count(), 3000);
    mount.unmount();
}

#[test]
fn force_unmounts_what_is_in_use() {
    needs_fuse!();
    let mount = spooled();
    let _user = user(&mount, "bash", &["-c", "cd \"$0\"; echo there; exec sleep 1000"]);
    assert_eq!(umount(&["--force"], &mount.point), "0 ");
    super::is_clean(&mount);
}

#[test]
fn open_files_that_no_process_shows_keep_it() {
    needs_fuse!();
    let mount = spooled();
    let (from, to) = UnixDatagram::pair().unwrap();
    let file = File::open(mount.path("small")).unwrap();
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    sendmsg(&from, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
    drop(file);
    // It is on its way, and nobody has it.
    says(&umount(&[], &mount.point), &["1 ", "target is busy: 1 open file that no process shows"]);
    drop((from, to));
    mount.unmount();
}

#[test]
fn open_files_of_processes_that_cannot_be_looked_at_are_counted() {
    needs_fuse!();
    let home = Home::new(9);
    fs::write(home.path.join("x.tar"), [whole("small", b"s"), whole("large", &[7; 300_000]), end()].concat()).unwrap();
    home.give();
    let told = home.script(
        r#"
        # Who cannot read a program cannot look at what runs it.
        cp "$(readlink -f "$(which sleep)")" hidden
        chmod 111 hidden
        as $uid './restorefs mount -d --spool . <(cat x.tar) mnt; ./restorefs wait mnt
                 ./hidden 1000 <mnt/large 3<mnt/small & echo $! >pid'
        at_end="kill $(cat pid)"
        until [[ $(cat /proc/$(cat pid)/comm) = hidden ]]; do sleep 0.01; done
        as $uid './restorefs umount mnt || echo "exit $?"; cat mnt/small; echo'
        ./restorefs umount mnt || echo "root: exit $?"
        kill $(cat pid)
        at_end=:
        as $uid './restorefs umount mnt && echo away'
        "#,
    );
    says(&told, &["target is busy: 2 open files of processes that only root can see", "exit 1\ns\n", "away\n"]);
    says(&told, &["target is busy: hidden (PID ", "2 open files", "root: exit 1\n"]);
}

#[test]
fn of_several_mounts_only_the_last_is_kept_by_all_users() {
    needs_fuse!();
    let mount = spooled();
    let other = mount.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    rustix::mount::mount_bind(&mount.point, &other).unwrap();
    let mut user = user(&mount, "bash", &["-c", "cd \"$0\"; echo there; exec sleep 1000"]);
    let pid = user.pid().as_raw_nonzero();
    // Who is in the one is not in the other.
    says(&umount(&[], &mount.point), &["1 ", &format!("(PID {pid}, working directory)")]);
    assert_eq!(umount(&[], &other), "0 ");
    says(&umount(&[], &mount.point), &["1 ", &format!("(PID {pid}, working directory)")]);
    user.kill();
    user.wait();
    mount.unmount();
}

#[test]
fn a_path_in_a_mount_is_not_the_mount() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    let directory = member(tar::EntryType::Directory, "dir/", "", 1, b"");
    stdin.write_all(&[directory, whole("dir/small", b"s"), end()].concat()).unwrap();
    drop(stdin);
    mount.wait_clean();
    let inside = format!("is not a mount point; it is inside the mount at '{}'", mount.point.display());
    for path in ["dir", "dir/small", "nothing"] {
        for args in [&["umount"][..], &["umount", "--force"], &["umount", "--lazy"], &["stop"]] {
            let output = restorefs(args, &[&mount.path(path)]);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            says(&String::from_utf8_lossy(&output.stderr), &[&inside]);
        }
    }
    assert_eq!(fs::read(mount.path("dir/small")).unwrap(), b"s");
    // There is more than one way to write it.
    let link = mount.dir.path().join("link");
    std::os::unix::fs::symlink(&mount.point, &link).unwrap();
    let daemon = mount.daemon();
    assert_eq!(umount(&[], &link.join("dir/..").join(Path::new("."))), "0 ");
    wait_gone(daemon);
}

#[test]
fn what_was_opened_before_the_end_of_the_stream_and_closed_behind_it_does_not_keep_it() {
    needs_fuse!();
    // Without anything large, the kernel need not tell of opens when the stream is over, and tells of no close then.
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&whole("small", b"s")).unwrap();
    mount.wait_for("small");
    let (file, directory) = (File::open(mount.path("small")).unwrap(), File::open(&mount.point).unwrap());
    stdin.write_all(&end()).unwrap();
    mount.wait_clean();
    assert_eq!(fs::read(mount.path("small")).unwrap(), b"s");
    assert_eq!(mount.point.read_dir().unwrap().count(), 1);
    drop((file, directory));
    mount.unmount();
}
