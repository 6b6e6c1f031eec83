//! A mount that goes away under those who restore from it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Signal, kill_process};

use super::{Running, arriving, complete, is_clean, is_restored, says, spool, umount, wait_gone};
use crate::support::mount::Mount;
use crate::support::{needs_fuse, run, wait_until};

/// The ways in which a mount goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Lazily,
    ByForce,
    Killed,
}

const WAYS: [Way; 3] = [Way::Lazily, Way::ByForce, Way::Killed];

fn take_away(mount: &Mount, way: Way) {
    match way {
        Way::Lazily => drop(run(Command::new("umount").arg("-l").arg(&mount.point))),
        Way::ByForce => says(&umount(&["--force"], &mount.point), &["0 "]),
        Way::Killed => {
            kill_process(mount.daemon(), Signal::KILL).unwrap();
            wait_gone(mount.daemon());
        }
    }
}

#[test]
fn what_had_arrived_is_restored() {
    needs_fuse!();
    for way in WAYS {
        let (mount, stdin) = arriving();
        let dest = mount.dir.path().join("dest");
        let materialize = Running::materialize(&mount, &dest);
        take_away(&mount, way);
        let told = materialize.ends(4);
        let happened = if way == Way::Killed {
            "has ended, or was killed, before the stream was over"
        } else {
            "was unmounted meanwhile"
        };
        says(&told, &[happened, "'cut'", "restored 2 entries"]);
        is_restored(&dest, false);
        if way != Way::Killed {
            is_clean(&mount);
        }
        drop(stdin);
    }
}

#[test]
fn what_was_complete_is_restored_as_a_whole() {
    needs_fuse!();
    for way in WAYS {
        let (mount, stdin) = arriving();
        let dest = mount.dir.path().join("dest");
        let materialize = Running::materialize(&mount, &dest);
        materialize.stop();
        complete(stdin);
        mount.wait_clean();
        take_away(&mount, way);
        assert_eq!(fs::read_dir(mount.dir.path().join("spool")).unwrap().count(), 1, "{way:?}: the spool is gone");
        materialize.0.signal(Signal::CONT);
        let told = materialize.ends(0);
        if way == Way::Killed {
            says(&told, &["has ended, or was killed; the stream was complete"]);
        } else {
            is_clean(&mount);
        }
        is_restored(&dest, true);
    }
}

#[test]
fn a_record_that_was_only_begun_is_dropped() {
    needs_fuse!();
    // The beginning of a record; zeros; a whole one whose checksum is wrong.
    let tails = [vec![200, 0, 0, 0, 1], vec![0; 100], [&[10, 0, 0, 0][..], &[1; 50]].concat()];
    for tail in tails {
        for verify in [false, true] {
            let (mount, stdin) = arriving();
            let dest = mount.dir.path().join("dest");
            let args: &[&str] =
                if verify { &["materialize", "--no-sync", "--verify"] } else { &["materialize", "--no-sync"] };
            let materialize = Running::start(args, &[&mount.point, &dest]);
            wait_until("it has begun", || dest.join("large").exists().then_some(()));
            materialize.stop();
            let journal = spool(&mount).join("journal");
            take_away(&mount, Way::Killed);
            File::options().append(true).open(journal).unwrap().write_all(&tail).unwrap();
            materialize.0.signal(Signal::CONT);
            says(&materialize.ends(4), &["has ended, or was killed, before the stream was over", "'cut'"]);
            is_restored(&dest, false);
            drop(stdin);
        }
    }
}

#[test]
fn wait_ends_with_the_code_of_what_had_arrived() {
    needs_fuse!();
    for way in WAYS {
        let (mount, stdin) = arriving();
        let all = Running::start(&["wait"], &[&mount.point]);
        let one = Running::start(&["wait"], &[&mount.point, Path::new("cut")]);
        wait_until("both wait", || (umount(&[], &mount.point).matches("wait (PID ").count() == 2).then_some(()));
        take_away(&mount, way);
        let told = [all.ends(4), one.ends(4)];
        for told in told {
            assert_eq!(told.contains("has ended, or was killed"), way == Way::Killed, "{told}");
        }
        drop(stdin);
    }
}

#[test]
fn mount_with_materialize_restores_what_had_arrived() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("dest");
    let fifo = crate::support::mount::fifo(dir.path());
    let mut mount = Mount::start(std::process::Stdio::null(), &["--materialize", dest.to_str().unwrap()], |command| {
        command.arg(&fifo);
    });
    let mut writer = File::options().write(true).open(&fifo).unwrap();
    let archive = [crate::support::feed::whole("small", b"s"), crate::support::feed::file("cut", 600_000)].concat();
    writer.write_all(&archive).unwrap();
    wait_until("it has begun", || fs::read(dest.join("small")).ok().filter(|small| small == b"s"));
    take_away(&mount, Way::Killed);
    assert_eq!(mount.wait_front(), Some(4));
    mount.wait_printed("restored 1 entry");
}

/// What a daemon has beside its socket.
fn beside(mount: &Mount) -> [PathBuf; 2] {
    let device = mount.point.metadata().unwrap().dev();
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    ["sock", "json"].map(|kind| Path::new("/run/restorefs").join(format!("{number}.{kind}")))
}

#[test]
fn umount_of_a_dead_mount_cleans_up_and_names_the_spool() {
    needs_fuse!();
    for args in [&[][..], &["--force"], &["--lazy"]] {
        let (mount, stdin) = arriving();
        let (left, spool) = (beside(&mount), spool(&mount));
        take_away(&mount, Way::Killed);
        assert!(left.iter().all(|file| file.symlink_metadata().is_ok()));
        let told = umount(args, &mount.point);
        let (point, kept) = (mount.point.display(), spool.display());
        says(&told, &["0 ", &format!("'restorefs mount {kept} {point}'"), &format!("'restorefs discard {kept}'")]);
        assert!(!mount.is_mounted());
        assert!(left.iter().all(|file| file.symlink_metadata().is_err()), "{left:?}");
        assert!(spool.join("journal").exists());
        drop(stdin);
    }
}
