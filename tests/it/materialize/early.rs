//! A large file while it is arriving: what is there of it is in the target already, under no name.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tar::EntryType::Regular;

use super::{materialize, start, wait};
use crate::support::disk::Disk;
use crate::support::feed::{end, file, member, padding, whole};
use crate::support::mount::Mount;
use crate::support::process::Group;
use crate::support::{needs_fuse, shell, wait_until};

const SIZE: usize = 40 << 20;
const SENT: usize = 33 << 20;
/// Not all that was sent is copied before more comes.
const COPIED: u64 = 24 << 20;

fn names(dest: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dest).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What takes room in a file system.
fn used(disk: &Disk) -> u64 {
    let there = rustix::fs::statvfs(disk.path()).unwrap();
    (there.f_blocks - there.f_bfree) * there.f_frsize
}

/// A mount that has got most of a large file, a restore of it that has copied what there is, and the rest.
fn held(contents: &[u8], args: &[&str], prepare: &str) -> (Mount, std::process::ChildStdin, Disk, Group) {
    let (mount, mut stdin) = Mount::pipe(&[]);
    let disk = Disk::new("tmpfs", "size=100M");
    shell(disk.path(), prepare);
    let before = used(&disk);
    let running = start(&mount, disk.path(), args);
    stdin.write_all(&[whole("before", b"x"), file("large", SIZE), contents[..SENT].to_vec()].concat()).unwrap();
    wait_until("most of it is in the target", || (used(&disk) >= before + COPIED).then_some(()));
    (mount, stdin, disk, running)
}

#[test]
fn it_gets_its_name_when_it_is_whole() {
    needs_fuse!();
    let contents = crate::support::tree::bytes(5, SIZE);
    for (overwrite, prepare) in [("if-changed", ":"), ("if-changed", "echo old >large"), ("never", ":")] {
        let (mount, mut stdin, disk, running) = held(&contents, &["--overwrite", overwrite, "--verify"], prepare);
        let old = disk.path().join("large").metadata().map(|m| m.size()).ok();
        assert_eq!(old, (prepare != ":").then_some(4));
        assert!(names(disk.path()).iter().all(|name| name == "before" || name == "large"));
        let rest = [contents[SENT..].to_vec(), padding(SIZE), member(Regular, "after", "", 7, b"x"), end()].concat();
        stdin.write_all(&rest).unwrap();
        let ended = wait(running).with(0);
        assert_eq!((ended.count("entries"), ended.count("bytes")), (3, SIZE as u64 + 2), "{}", ended.text);
        assert_eq!(names(disk.path()), ["after", "before", "large"]);
        assert!(fs::read(disk.path().join("large")).unwrap() == contents);
        let m = disk.path().join("large").metadata().unwrap();
        assert_eq!((m.mode() & 0o7777, m.mtime(), m.nlink()), (0o644, 1_000_000_000, 1));
        assert_eq!(materialize(&mount, disk.path(), &[]).with(0).count("entries"), 0);
        drop(stdin);
        mount.unmount();
    }
}

#[test]
fn nothing_stays_of_what_is_cut_or_killed() {
    needs_fuse!();
    let contents = crate::support::tree::bytes(6, SIZE);
    for kill in [false, true] {
        let (mount, stdin, disk, mut running) = held(&contents, &[], ":");
        if kill {
            running.kill();
            running.wait();
        } else {
            drop(stdin);
            let ended = wait(running).with(4);
            assert_eq!(ended.count("bytes"), 1);
            ended.names(&["large"]);
        }
        assert!(used(&disk) < 1 << 20);
        assert!(!names(disk.path()).contains(&"large".into()));
        drop(mount);
    }
}

#[test]
fn what_is_right_or_not_wanted_is_not_copied() {
    needs_fuse!();
    let contents = crate::support::tree::bytes(7, SIZE);
    let (mount, mut stdin) = Mount::pipe(&[]);
    let disk = Disk::new("tmpfs", "size=60M");
    fs::write(disk.path().join("large"), &contents).unwrap();
    shell(disk.path(), "touch -d @1000000000 large");
    // There is no room for another.
    let running = start(&mount, disk.path(), &[]);
    let excluding = start(&mount, disk.path(), &["--exclude=large"]);
    stdin.write_all(&[file("large", SIZE), contents[..SENT].to_vec()].concat()).unwrap();
    mount.wait_status("it has come that far", |status| status["source_bytes"].as_u64() >= Some(SENT as u64));
    stdin.write_all(&[contents[SENT..].to_vec(), padding(SIZE), end()].concat()).unwrap();
    let ended = wait(running).with(0);
    assert_eq!((ended.count("unchanged"), ended.count("bytes")), (1, 0), "{}", ended.text);
    assert_eq!(wait(excluding).with(0).count("bytes"), 0);
    drop(stdin);
    mount.unmount();
}

#[test]
fn a_target_without_room_is_told_when_the_file_is_there() {
    needs_fuse!();
    let contents = crate::support::tree::bytes(8, SIZE);
    let (mount, mut stdin) = Mount::pipe(&[]);
    let disk = Disk::new("tmpfs", "size=20M");
    let running = start(&mount, disk.path(), &[]);
    stdin.write_all(&[file("large", SIZE), contents, padding(SIZE), end()].concat()).unwrap();
    wait(running).with(1).says(&["'large'", "No space left"]);
    assert_eq!((names(disk.path()).len(), used(&disk)), (0, 0));
    drop(stdin);
    mount.unmount();
}
