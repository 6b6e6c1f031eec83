//! Other mounts over, below and beside the one that is unmounted, and daemons that are elsewhere or not willing: what is
//! received is lost by force only, and by force every mount can be unmounted.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::Signal;

use super::home;
use super::place::{Place, is_clean, spooled, umount};
use crate::support::feed::{end, whole};
use crate::support::mount::{Mount, RESTOREFS, Stopped, restorefs};
use crate::support::needs_fuse;

#[test]
fn a_copy_in_a_shared_mount_does_not_count_as_another() {
    needs_fuse!();
    for signal in [None, Some(Signal::INT)] {
        let (mount, mut stdin) = Mount::pipe(&[]);
        stdin.write_all(&whole("small", b"s")).unwrap();
        mount.wait_for("small");
        let shared = Place::tmpfs(mount.dir.path().join("shared"));
        mount_change(&shared.0, MountPropagationFlags::SHARED).unwrap();
        let peer = Place::new(mount.dir.path().join("peer"));
        mount_bind(&shared.0, &peer.0).unwrap();
        let point = Place::new(shared.0.join("mnt"));
        mount_bind(&mount.point, &point.0).unwrap();
        assert_eq!(umount(&[], &mount.point), "0");

        // The kernel would unmount both.
        let copy = peer.0.join("mnt/small");
        for path in [&point.0, copy.parent().unwrap()] {
            let told = umount(&[], path);
            assert!(told.starts_with("1") && told.contains("is still receiving"), "{told}");
        }
        assert_eq!(fs::read(&copy).unwrap(), b"s");
        stdin.write_all(&end()).unwrap();
        drop(stdin);
        assert!(restorefs(&["wait"], &[&point.0]).status.success());
        match signal {
            Some(signal) => mount.signal(signal),
            None => assert_eq!(umount(&[], &point.0), "0"),
        }
        is_clean(&mount);
        assert!(!copy.exists());
        assert!(!mount.printed().contains("cannot unmount"), "{}", mount.printed());
    }
}

#[test]
fn a_daemon_answers_clients_in_other_pid_namespaces() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&whole("small", b"s")).unwrap();
    mount.wait_for("small");
    let ask = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--propagation", "private", RESTOREFS]);
        let output = command.args(args).arg(&mount.point).stdin(Stdio::null()).output().unwrap();
        format!("{:?} {output:?}", output.status.code())
    };
    let told = ask(&["status"]);
    assert!(told.starts_with("Some(0)") && told.contains("receiving"), "{told}");
    // It unmounts the copy in its own mount namespace.
    let told = ask(&["umount"]);
    assert!(told.starts_with("Some(0)") && told.contains("stderr: \"\""), "{told}");
    stdin.write_all(&[whole("more", b"m"), end()].concat()).unwrap();
    drop(stdin);
    mount.wait_clean();
    assert_eq!(fs::read(mount.path("more")).unwrap(), b"m");
    mount.unmount();
}

#[test]
fn what_is_mounted_below_is_unmounted_by_force_only() {
    needs_fuse!();
    let mount = spooled();
    let file = mount.dir.path().join("file");
    fs::write(&file, "below").unwrap();
    mount_bind(&file, mount.path("small")).unwrap();
    let told = umount(&[], &mount.point);
    let needle = format!("'{}' is mounted below it", mount.path("small").display());
    assert!(told.starts_with("1") && told.contains(&needle), "{told}");
    assert_eq!(fs::read(mount.path("small")).unwrap(), b"below");
    assert_eq!(umount(&["--force"], &mount.point), "0");
    is_clean(&mount);
}

#[test]
fn of_two_over_each_other_the_visible_one_is_unmounted() {
    needs_fuse!();
    let (lower, upper) = (spooled(), spooled());
    mount_bind(&upper.point, &lower.point).unwrap();
    assert_eq!(umount(&[], &lower.point), "0");
    assert_eq!(upper.status()["phase"], "over");
    assert_eq!(umount(&[], &lower.point), "0");
    is_clean(&lower);
    upper.unmount();
}

#[test]
fn two_that_are_mounted_at_once_do_not_cover_each_other() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("x.tar");
    fs::write(&archive, [whole("small", b"s"), end()].concat()).unwrap();
    let point = Place::new(dir.path().canonicalize().unwrap().join("mnt"));
    for _ in 0..10 {
        let start = || {
            let mut command = Command::new(RESTOREFS);
            command.args(["mount", "-d"]).arg(&archive).arg(&point.0).stdin(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        };
        let both = [start(), start()].map(|child| child.wait_with_output().unwrap());
        let lost: Vec<_> = both.iter().filter(|output| !output.status.success()).collect();
        assert_eq!(lost.len(), 1, "{both:?}");
        let told = String::from_utf8_lossy(&lost[0].stderr);
        assert!(told.contains("is mounted there already") || told.contains("at the same time"), "{told}");
        assert_eq!(fs::read(point.0.join("small")).unwrap(), b"s");
        assert_eq!(umount(&[], &point.0), "0");
        assert!(!point.0.join("small").exists());
    }
}

#[test]
fn root_unmounts_by_force_whatever_the_daemon_answers() {
    needs_fuse!();
    let home = home(33);
    fs::write(home.path.join("daemon.py"), include_str!("daemon.py")).unwrap();
    home.give();
    let told = home.script(
        r#"
        for mode in closes failed receiving 'done' deep; do
            echo "== $mode"
            as $uid './restorefs mount -d --spool . <(cat x.tar) mnt; ./restorefs wait mnt'
            exec 3< <(as $uid "exec python3 daemon.py /tmp/restorefs-$uid")
            liar=$!
            at_end="kill $liar"
            read -u3
            echo "$mode" >mode
            ./restorefs umount mnt || echo "exit $?"
            grep -qF " $PWD/mnt " /proc/self/mountinfo && echo stays
            timeout 60 ./restorefs umount --force mnt && echo "exit $?"
            grep -qF " $PWD/mnt " /proc/self/mountinfo || echo away
            kill $liar
            at_end=:
            rm -f /tmp/restorefs-$uid/*
        done
        "#,
    );
    let parts: Vec<&str> = told.split("== ").skip(1).collect();
    assert_eq!(parts.len(), 5, "{told}");
    for part in parts {
        assert!(part.contains("exit 1\nstays\n"), "{told}");
        assert!(part.ends_with("did not agree, and may still run\nexit 0\naway\n"), "{told}");
    }
}

#[test]
fn a_path_in_a_mount_whose_daemon_is_stopped_does_not_unmount_it() {
    needs_fuse!();
    let mount = spooled();
    let stopped = Stopped::new(&mount);
    let told = umount(&["--force"], &mount.path("large"));
    assert!(told.starts_with("1") && told.contains("is inside the mount at"), "{told}");
    let told = umount(&["--force"], &mount.point);
    assert!(told.starts_with("0") && told.contains("was not asked"), "{told}");
    drop(stopped);
    assert!(!mount.is_mounted());
    is_clean(&mount);
}
