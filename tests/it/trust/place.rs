//! What is unmounted is what was named, wherever it is by now, and nothing else that has its path.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_move};
use rustix::process::{Signal, kill_process};

use super::home;
use crate::support::feed::{end, whole};
use crate::support::mount::{Mount, restorefs};
use crate::support::process::{Group, is_gone};
use crate::support::{needs_fuse, run, wait_until};

/// A directory that something is mounted on, and where nothing is any more afterwards.
pub(super) struct Place(pub(super) PathBuf);

impl Place {
    pub(super) fn new(path: PathBuf) -> Place {
        fs::create_dir_all(&path).unwrap();
        Place(path)
    }

    /// Where anything else is mounted.
    pub(super) fn tmpfs(path: PathBuf) -> Place {
        let place = Place::new(path);
        run(Command::new("mount").args(["-t", "tmpfs", "stranger"]).arg(&place.0));
        fs::write(place.0.join("strange"), "s").unwrap();
        place
    }

    pub(super) fn is_strange(&self) -> bool {
        self.0.join("strange").exists()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while rustix::mount::unmount(&self.0, UnmountFlags::DETACH).is_ok() {}
    }
}

/// A mount with all of its archive in the spool.
pub(super) fn spooled() -> Mount {
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&[whole("small", b"s"), whole("large", &[7; 300_000]), end()].concat()).unwrap();
    drop(stdin);
    mount.wait_clean();
    mount
}

pub(super) fn umount(args: &[&str], path: &Path) -> String {
    let output = restorefs(&[&["umount"], args].concat(), &[path]);
    let told = String::from_utf8(output.stderr).unwrap();
    format!("{}{told}", output.status.code().unwrap())
}

pub(super) fn is_clean(mount: &Mount) {
    wait_until("the daemon is gone", || is_gone(mount.daemon()).then_some(()));
    let left: Vec<_> = mount.dir.path().join("spool").read_dir().unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_bind_mount_is_unmounted_itself() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&whole("small", b"s")).unwrap();
    mount.wait_for("small");
    let other = Place::new(mount.dir.path().join("other"));
    mount_bind(&mount.point, &other.0).unwrap();
    // Nothing is lost by it, though it still receives.
    for force in [&[][..], &["--force"]] {
        assert_eq!(umount(force, &other.0), "0");
        assert!(!other.0.join("small").exists());
        assert_eq!(fs::read(mount.path("small")).unwrap(), b"s");
        mount_bind(&mount.point, &other.0).unwrap();
    }
    stdin.write_all(&end()).unwrap();
    drop(stdin);
    mount.wait_clean();

    // The daemon stays for as long as one of them does, also where that is not the first.
    assert_eq!(umount(&[], &mount.point), "0");
    assert!(!mount.path("small").exists());
    assert_eq!(fs::read(other.0.join("small")).unwrap(), b"s");
    assert!(restorefs(&["status"], &[&other.0]).status.success());
    assert_eq!(umount(&[], &other.0), "0");
    is_clean(&mount);
}

#[test]
fn a_bind_mount_of_a_part_stands_for_that_part() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin
        .write_all(&[whole("top", b"t"), whole("d/e/file", b"f"), whole("d/e/g/other", b"o"), end()].concat())
        .unwrap();
    drop(stdin);
    mount.wait_clean();
    let part = Place::new(mount.dir.path().join("part"));
    mount_bind(mount.path("d/e"), &part.0).unwrap();
    for path in ["file", "g/other"].map(PathBuf::from).into_iter().chain([part.0.join("file")]) {
        let output = restorefs(&["wait"], &[&part.0, &path]);
        assert!(output.status.success(), "{path:?}: {output:?}");
    }
    assert_eq!(restorefs(&["wait"], &[&part.0, Path::new("top")]).status.code(), Some(4));
    let restored = |paths: &[&Path]| {
        let out = mount.dir.path().join("out");
        let output = restorefs(&["materialize"], &[&[&*part.0, &out], paths].concat());
        assert!(output.status.success(), "{output:?}");
        let mut names: Vec<_> = ["top", "d", "e", "file", "g", "g/other"].to_vec();
        names.retain(|name| out.join(name).exists());
        fs::remove_dir_all(&out).unwrap();
        names
    };
    assert_eq!(restored(&[]), ["file", "g", "g/other"]);
    assert_eq!(restored(&[Path::new("g")]), ["g", "g/other"]);
    assert_eq!(umount(&[], &part.0), "0");
    mount.unmount();
}

#[test]
fn what_is_mounted_over_it_stays() {
    needs_fuse!();
    for by_signal in [false, true] {
        let mount = spooled();
        let over = Place::tmpfs(mount.point.clone());
        let told = umount(&[], &mount.point);
        assert!(told.starts_with("1") && told.contains("something else is at its path"), "{told}");
        // Its daemon need not stay with it, where that is asked for.
        if by_signal {
            mount.signal(Signal::INT);
            mount.wait_printed("something else is at its path");
            assert!(!is_gone(mount.daemon()));
            mount.signal(Signal::INT);
        } else {
            let told = umount(&["--force"], &mount.point);
            assert!(told.starts_with("1") && told.contains("its daemon is ended"), "{told}");
        }
        is_clean(&mount);
        assert!(over.is_strange());
        rustix::mount::unmount(&over.0, UnmountFlags::DETACH).unwrap();
        assert_eq!(umount(&[], &mount.point), "0");
        assert!(!mount.is_mounted());
    }
}

#[test]
fn what_was_moved_or_renamed_is_unmounted_where_it_is() {
    needs_fuse!();
    for signal in [None, Some(Signal::INT)] {
        let mount = spooled();
        // A mount can be moved where the one that it is in is private.
        let private = Place::tmpfs(mount.dir.path().join("private"));
        mount_change(&private.0, MountPropagationFlags::PRIVATE).unwrap();
        let (first, second) = (Place::new(private.0.join("first/mnt")), Place::new(private.0.join("second")));
        mount_bind(&mount.point, &first.0).unwrap();
        assert_eq!(umount(&[], &mount.point), "0");
        mount_move(&first.0, &second.0).unwrap();
        // At its old place is something else.
        let stranger = Place::tmpfs(first.0.clone());
        let told = umount(&[], &first.0);
        assert!(told.starts_with("1") && told.contains("not in a restorefs mount"), "{told}");
        match signal {
            Some(signal) => mount.signal(signal),
            None => assert_eq!(umount(&[], &second.0), "0"),
        }
        is_clean(&mount);
        assert!(stranger.is_strange() && !second.0.join("small").exists());
        drop((stranger, second, first));
    }
}

#[test]
fn a_user_who_renames_has_nobody_elses_mount_taken_away() {
    needs_fuse!();
    let home = home(5);
    let told = home.script(
        r#"
        mkdir -p ../foreign/mnt
        mount -t tmpfs stranger ../foreign/mnt
        try() {
            echo "== $*"
            as $uid 'mkdir -p d/mnt; ./restorefs mount -d --spool . <(cat x.tar) d/mnt; ./restorefs wait d/mnt
                     mv d e; ln -s ../foreign d'
            "$@" || echo "failed with $?"
            mountpoint -q ../foreign/mnt && echo "the stranger stays"
            as $uid 'mountpoint -q e/mnt && echo "it stays too"' || true
            pid=$(pidof -x $PWD/restorefs) && kill -INT $pid && while kill -0 $pid 2>/dev/null; do sleep 0.01; done
            as $uid 'ls -d restorefs-* 2>/dev/null || echo clean; rm d; mv e d'
        }
        try ./restorefs umount d/mnt
        try ./restorefs umount e/mnt
        try as $uid './restorefs umount e/mnt'
        try as $uid './restorefs umount --force e/mnt'
        "#,
    );
    let parts: Vec<&str> = told.split("== ").skip(1).collect();
    assert_eq!(parts.len(), 4, "{told}");
    assert!(parts[0].contains("not in a restorefs mount") && parts[0].contains("failed with 1\n"), "{told}");
    for (n, part) in parts.iter().enumerate() {
        assert!(part.contains("the stranger stays\n") && part.ends_with("clean\n"), "{told}");
        assert_eq!(part.contains("it stays too"), n == 0, "{told}");
        assert_eq!(part.contains("failed"), n == 0, "{told}");
    }
}

/// Another mount namespace, which keeps what was mounted when it was made.
fn namespace(dir: &Path) -> Group {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", "echo $$ >copied; exec sleep 1000"]);
    let namespace = Group::start(command.current_dir(dir).stdout(Stdio::null()));
    wait_until("it is there", || fs::read_to_string(dir.join("copied")).ok().filter(|pid| pid.ends_with('\n')));
    namespace
}

#[test]
fn a_copied_namespace_keeps_no_daemon_that_is_to_end() {
    needs_fuse!();
    // By force, and by a signal when it has been unmounted without.
    for force in [true, false] {
        let mount = spooled();
        let namespace = namespace(mount.dir.path());
        let pid = mount.daemon().as_raw_nonzero();
        let told = umount(if force { &["--force"] } else { &[] }, &mount.point);
        if !force {
            assert!(told.starts_with("0") && told.contains(&format!("'kill {pid}' ends it")), "{told}");
            let there = format!("/proc/{}/root{}", namespace.pid().as_raw_nonzero(), mount.path("small").display());
            assert_eq!(fs::read(there).unwrap(), b"s");
            kill_process(mount.daemon(), Signal::TERM).unwrap();
        } else {
            assert_eq!(told, "0");
        }
        is_clean(&mount);
    }
}

#[test]
fn a_user_ends_a_daemon_that_a_copied_namespace_keeps() {
    needs_fuse!();
    let home = home(6);
    let told = home.script(
        r#"
        as $uid './restorefs mount -d --spool . <(cat x.tar) mnt; ./restorefs wait mnt'
        unshare --mount --propagation private sleep 1000 &
        at_end="kill $!"
        until [[ $(readlink /proc/$!/ns/mnt) != $(readlink /proc/$$/ns/mnt) && $(cat /proc/$!/comm) = sleep ]]; do sleep 0.01; done
        as $uid './restorefs umount --force mnt; ls -d restorefs-* 2>/dev/null || echo clean'
        pidof -x $PWD/restorefs || echo gone
        "#,
    );
    assert_eq!(told, "clean\ngone\n");
}
