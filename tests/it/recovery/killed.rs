//! What is mounted after a kill -9: everything that had arrived, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tar::EntryType;

use super::{discard, recover, refused, same_beginning};
use crate::support::feed::{end, file, link, member, whole};
use crate::support::mount::{Mount, restorefs};
use crate::support::needs_fuse;
use crate::support::tree::bytes;
use crate::support::wait_until;

/// Everything in a mount: inode, number of links, mode, size and time.
fn numbers(mount: &Mount) -> BTreeMap<PathBuf, (u64, u64, u32, u64, i64)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![mount.point.clone()];
    while let Some(path) = todo.pop() {
        let m = path.symlink_metadata().unwrap();
        if m.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let relative = path.strip_prefix(&mount.point).unwrap().to_owned();
        found.insert(relative, (m.ino(), m.nlink(), m.mode(), m.size(), m.mtime()));
    }
    found
}

const LARGE: usize = 3 << 20;

/// A mount with one of each, whose last file has come by half.
fn half_of_it() -> Mount {
    let (mount, mut stdin) = Mount::pipe(&[]);
    let stream = [
        member(EntryType::Directory, "made/", "", 1_100_000_000, b""),
        whole("made/small", b"the first version"),
        whole("big", &bytes(1, 400_000)),
        whole("implied/below/file", &bytes(2, 5000)),
        whole("empty", b""),
        link("symbolic", "made/small"),
        member(EntryType::Link, "hard", "big", 0, b""),
        member(EntryType::Link, "made/other", "made/small", 0, b""),
        // Whoever has the other name keeps the first version.
        whole("made/small", b"the second, which is longer"),
        whole("replaced", &bytes(3, 300_000)),
        whole("replaced", &bytes(4, 10)),
        file("cut", LARGE),
        bytes(5, LARGE)[..LARGE / 2].to_vec(),
    ];
    stdin.write_all(&stream.concat()).unwrap();
    mount.wait_for("cut");
    let half = format!("arriving {}/{LARGE}", LARGE / 2);
    wait_until("half of it has come", || (mount.state("cut") == half).then_some(()));
    // Its writer stays until after the kill.
    std::mem::forget(stdin);
    mount
}

#[test]
fn all_that_had_arrived_is_there_under_the_same_numbers() {
    needs_fuse!();
    let mut mount = half_of_it();
    let (before, spool) = (numbers(&mount), mount.spool());
    mount.kill();
    let recovered = recover(&spool);
    recovered.ends(4, &["the daemon was killed", "the last entry is 'cut'", "'cut' was cut"]);
    let tree = &recovered.mount;
    assert_eq!(numbers(tree), before);
    for (name, contents) in [
        ("made/small", b"the second, which is longer".to_vec()),
        ("made/other", b"the first version".to_vec()),
        ("big", bytes(1, 400_000)),
        ("hard", bytes(1, 400_000)),
        ("implied/below/file", bytes(2, 5000)),
        ("empty", Vec::new()),
        ("replaced", bytes(4, 10)),
    ] {
        assert!(fs::read(tree.path(name)).unwrap() == contents, "{name}");
        assert_eq!(tree.state(name), "complete", "{name}");
    }
    assert_eq!(fs::read_link(tree.path("symbolic")).unwrap().to_str(), Some("made/small"));
    // All but what no checksum in the journal tells of.
    let there = same_beginning(tree, "cut", &bytes(5, LARGE));
    assert!(there + (1 << 20) >= LARGE as u64 / 2, "only {there} bytes are there");
    let status = tree.status();
    assert_eq!((&status["end"]["verdict"], &status["end"]["cut"]), (&"incomplete".into(), &"cut".into()));
    assert_eq!(status["source"], "standard input");
    recovered.unmount(&spool);
    // As often as one likes.
    let again = recover(&spool);
    assert_eq!(numbers(&again.mount), before);
    again.unmount(&spool);
    discard(&spool);
}

#[test]
fn a_second_mount_of_a_live_spool_names_the_first() {
    needs_fuse!();
    let mut mount = half_of_it();
    let spool = mount.spool();
    let free = tempfile::tempdir().unwrap();
    let pid = |mount: &Mount| format!("is in use by PID {} ", mount.daemon().as_raw_nonzero());
    refused(&restorefs(&["mount"], &[&spool, free.path()]), &[&pid(&mount)]);
    mount.kill();
    let recovered = recover(&spool);
    refused(&restorefs(&["mount"], &[&spool, free.path()]), &[&pid(&recovered.mount)]);
    refused(&restorefs(&["mount", "-", "--resume"], &[&spool, free.path()]), &[&pid(&recovered.mount)]);
    refused(&restorefs(&["discard"], &[&spool]), &["is in use"]);
    recovered.unmount(&spool);
    discard(&spool);
}

#[test]
fn a_stream_that_was_over_is_complete() {
    needs_fuse!();
    for (archive, code) in [
        ([whole("a", b"1"), whole("b", &bytes(1, 500_000)), end()].concat(), 0),
        (
            [whole("a", b"1"), member(EntryType::Regular, "../up", "", 0, b"2"), whole("b", &bytes(1, 500_000)), end()]
                .concat(),
            3,
        ),
    ] {
        let (mut mount, mut stdin) = Mount::pipe(&[]);
        stdin.write_all(&archive).unwrap();
        drop(stdin);
        let before = mount.wait_end();
        let (told, spool) = (restorefs(&["status", "--problems"], &[&mount.point]).stdout, mount.spool());
        mount.kill();
        let recovered = recover(&spool);
        recovered.ends(code, if code == 3 { &["../up"] } else { &["complete"] });
        let status = recovered.mount.status();
        for key in ["refused", "warnings", "problems", "entries", "end"] {
            assert_eq!(status[key], before[key], "{key}");
        }
        let again = restorefs(&["status", "--problems"], &[&recovered.mount.point]).stdout;
        assert_eq!(problems(&again), problems(&told));
        assert_eq!(problems(&again).len(), usize::from(code == 3));
        assert!(fs::read(recovered.mount.path("b")).unwrap() == bytes(1, 500_000));
        recovered.unmount(&spool);
    }
}

/// The lines about problems.
fn problems(printed: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(printed).lines().filter(|line| line.contains("up")).map(str::to_owned).collect()
}

/// Makes a spool one of another boot.
fn of_another_boot(spool: &Path) {
    let about = fs::read_to_string(spool.join("spool.json")).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(about.contains(boot.trim()), "{about}");
    fs::write(spool.join("spool.json"), about.replace(boot.trim(), "00000000-0000-4000-8000-000000000000")).unwrap();
}

#[test]
fn of_another_boot_nothing_behind_the_last_durable_point_counts() {
    needs_fuse!();
    let (mut mount, mut stdin) = Mount::pipe(&[]);
    let before = [whole("small", b"durable"), whole("big", &bytes(1, 400_000)), file("cut", LARGE)];
    stdin.write_all(&[before.concat(), bytes(5, LARGE / 2)].concat()).unwrap();
    mount.wait_for("cut");
    let half = format!("arriving {}/{LARGE}", LARGE / 2);
    wait_until("half of it has come", || (mount.state("cut") == half).then_some(()));
    let spool = mount.spool();
    let journal = spool.join("journal");
    let length = || journal.metadata().unwrap().len();
    let written = length();
    // Nothing else is written meanwhile.
    wait_until("there is a durable point", || (length() > written).then_some(()));
    let point = Instant::now();
    let rest = bytes(5, LARGE)[LARGE / 2..].to_vec();
    stdin.write_all(&[rest, whole("behind", b"not on the disk")].concat()).unwrap();
    mount.wait_for("behind");
    mount.kill();
    // Where we were slow there may have been another one.
    let is_only = point.elapsed() < Duration::from_secs(4);
    drop(stdin);

    let dir = tempfile::tempdir().unwrap();
    let copy = super::copy_of(&spool, dir.path());
    of_another_boot(&copy);
    let recovered = recover(&copy);
    let tree = &recovered.mount;
    assert_eq!(fs::read(tree.path("small")).unwrap(), b"durable");
    assert!(fs::read(tree.path("big")).unwrap() == bytes(1, 400_000));
    if is_only {
        recovered.ends(4, &["the machine went down", "the last entry is 'cut'"]);
        assert!(!tree.path("behind").exists());
        let there = same_beginning(tree, "cut", &bytes(5, LARGE));
        assert!(there <= LARGE as u64 / 2 && there + (1 << 20) >= LARGE as u64 / 2, "{there} bytes are there");
    }
    recovered.unmount(&copy);
    // As one of this boot it is all there.
    let recovered = recover(&spool);
    recovered.ends(4, &["the daemon was killed", "the last entry is 'behind'"]);
    assert!(fs::read(recovered.mount.path("cut")).unwrap() == bytes(5, LARGE));
    assert_eq!(fs::read(recovered.mount.path("behind")).unwrap(), b"not on the disk");
    recovered.unmount(&spool);
}

#[test]
fn what_was_over_is_complete_on_another_boot_too() {
    needs_fuse!();
    let (mut mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&[whole("a", b"1"), whole("b", &bytes(1, 500_000)), end()].concat()).unwrap();
    drop(stdin);
    mount.wait_clean();
    let spool = mount.spool();
    mount.kill();
    of_another_boot(&spool);
    let recovered = recover(&spool);
    recovered.ends(0, &["complete"]);
    assert!(fs::read(recovered.mount.path("b")).unwrap() == bytes(1, 500_000));
    recovered.unmount(&spool);
}

#[test]
fn a_recovered_mount_that_is_killed_can_be_recovered() {
    needs_fuse!();
    let mut mount = half_of_it();
    let (before, spool) = (numbers(&mount), mount.spool());
    mount.kill();
    for _ in 0..2 {
        let mut recovered = recover(&spool).mount;
        assert_eq!(numbers(&recovered), before);
        recovered.kill();
    }
    let mut foreground = Mount::start(Stdio::null(), &["-f"], |command| {
        command.arg(&spool);
    });
    foreground.wait_end();
    assert_eq!(numbers(&foreground), before);
    assert!(restorefs(&["umount"], &[&foreground.point]).status.success());
    assert_eq!(foreground.wait_front(), Some(4));
    assert!(spool.join("journal").exists());
}
