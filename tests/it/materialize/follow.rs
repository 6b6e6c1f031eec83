//! Restoring what is still arriving.

use std::fs;
use std::io::Write;
use std::path::Path;

use tar::EntryType::{Directory, Link, Regular};

use super::{archive, command, ended, materialize, start, wait};
use crate::support::feed::{end, file, link, member, whole};
use crate::support::mount::Mount;
use crate::support::{needs_fuse, wait_until};

fn wait_for(path: &Path) {
    wait_until(&format!("{path:?} is there"), || path.symlink_metadata().ok());
}

fn wait_contents(path: &Path, contents: &[u8]) {
    wait_until(&format!("{path:?} is whole"), || fs::read(path).ok().filter(|found| found == contents));
}

#[test]
fn it_keeps_pace_and_ends_with_the_stream() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    let dest = mount.dir.path().join("dest");
    stdin.write_all(&[whole("before", b"was there"), link("absolute", "/etc/passwd")].concat()).unwrap();
    mount.wait_for("absolute");
    let mut running = start(&mount, &dest, &[]);
    wait_contents(&dest.join("before"), b"was there");
    // Nothing follows them yet: each link is there at once, and leads where it is to lead.
    for (name, target) in [("absolute", "/etc/passwd"), ("up", "../../.."), ("beside", "before"), ("none", "no/such")] {
        if name != "absolute" {
            stdin.write_all(&link(name, target)).unwrap();
        }
        wait_for(&dest.join(name));
        assert_eq!(fs::read_link(dest.join(name)).unwrap(), Path::new(target));
    }
    let large = crate::support::tree::bytes(1, 500_000);
    stdin.write_all(&member(Directory, "d", "", 7, b"")).unwrap();
    stdin.write_all(&whole("d/large", &large)).unwrap();
    wait_contents(&dest.join("d/large"), &large);
    stdin.write_all(&member(Link, "d/second", "before", 7, b"")).unwrap();
    wait_contents(&dest.join("d/second"), b"was there");
    // A file is restored when it is whole; what came before it waits for nothing.
    stdin.write_all(&[whole("small", b"x"), file("half", 1000), vec![1; 400]].concat()).unwrap();
    wait_contents(&dest.join("small"), b"x");
    mount.wait_for("half");
    assert!(!dest.join("half").exists());
    assert!(!running.has_ended());
    stdin.write_all(&[vec![1; 600], vec![0; 24], end()].concat()).unwrap();
    let ended = wait(running).with(0);
    assert_eq!(fs::read(dest.join("half")).unwrap(), [1; 1000]);
    assert_eq!(std::os::unix::fs::MetadataExt::mtime(&dest.join("d").metadata().unwrap()), 7);
    assert_eq!(ended.count("entries"), 10);
    drop(stdin);
    mount.unmount();
}

#[test]
fn what_is_cut_is_named_and_not_there() {
    needs_fuse!();
    for (size, sent) in [(1000, 400), (1 << 20, 300_000)] {
        let (mount, mut stdin) = Mount::pipe(&[]);
        let dest = mount.dir.path().join("dest");
        let running = start(&mount, &dest, &[]);
        stdin
            .write_all(&[whole("whole", b"x"), link("link", "cut"), file("cut", size), vec![1; sent]].concat())
            .unwrap();
        wait_for(&dest.join("link"));
        drop(stdin);
        wait(running).with(4).says(&["'cut'"]).names(&["cut"]);
        let mut there: Vec<_> = fs::read_dir(&dest).unwrap().map(|e| e.unwrap().file_name()).collect();
        there.sort();
        assert_eq!(there, ["link", "whole"]);
        // The same when it is over.
        materialize(&mount, &dest, &[]).with(4).names(&["cut"]);
        assert!(!dest.join("cut").exists());
        mount.unmount();
    }
}

#[test]
fn what_is_cut_in_an_archive_in_place() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("x.tar");
    fs::write(&archive, [whole("whole", b"x"), file("cut", 1000), vec![1; 400]].concat()).unwrap();
    let mount = Mount::file(&archive, &[]);
    materialize(&mount, &dir.path().join("dest"), &[]).with(4).says(&["only 400 of its 1000 bytes"]).names(&["cut"]);
    assert!(!dir.path().join("dest/cut").exists());
    mount.unmount();
}

#[test]
fn what_is_corrupt_ends_with_its_code() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&[whole("whole", b"x"), vec![b'?'; 512], end()].concat()).unwrap();
    let dest = mount.dir.path().join("dest");
    materialize(&mount, &dest, &[]).with(5);
    assert_eq!(fs::read(dest.join("whole")).unwrap(), b"x");
    drop(stdin);
    mount.unmount();
}

#[test]
fn what_is_there_now_and_no_more() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    let dest = mount.dir.path().join("dest");
    // Nothing at all.
    materialize(&mount, &dest, &["--no-wait"]).with(0);
    assert_eq!(fs::read_dir(&dest).unwrap().count(), 0);
    stdin.write_all(&[whole("d/whole", b"x"), link("link", "x"), file("half", 1000), vec![1; 400]].concat()).unwrap();
    mount.wait_for("half");
    materialize(&mount, &dest, &["--no-wait"]).with(0);
    assert_eq!(fs::read(dest.join("d/whole")).unwrap(), b"x");
    assert!(dest.join("link").is_symlink() && !dest.join("half").exists());
    stdin.write_all(&[vec![1; 600], vec![0; 24], end()].concat()).unwrap();
    drop(stdin);
    let ended = materialize(&mount, &dest, &[]).with(0);
    assert_eq!((ended.count("entries"), ended.count("unchanged")), (1, 2));
    mount.unmount();
}

#[test]
fn before_the_daemon_has_read_the_archive() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.tar");
    let members: Vec<u8> = (0..20_000).flat_map(|n| whole(&format!("f{n}"), b"x")).collect();
    fs::write(&file, [members, end()].concat()).unwrap();
    let mount = Mount::file(&file, &[]);
    let dest = dir.path().join("dest");
    ended(command(&mount.point, &dest, &["f7"]).output().unwrap()).with(0);
    mount.unmount();
}

#[test]
fn a_daemon_that_dies_leaves_it_incomplete_and_another_mount_finishes() {
    needs_fuse!();
    let members = [
        member(Directory, "./", "", 7, b""),
        whole("one", b"1"),
        member(Directory, "d/", "", 7, b""),
        whole("d/two", b"2"),
    ];
    let (mount, mut stdin) = Mount::pipe(&[]);
    let dest = tempfile::tempdir().unwrap();
    let running = start(&mount, dest.path(), &[]);
    stdin.write_all(&[members.concat(), file("half", 1000)].concat()).unwrap();
    wait_contents(&dest.path().join("d/two"), b"2");
    rustix::process::kill_process(mount.daemon(), rustix::process::Signal::KILL).unwrap();
    wait(running).with(4).says(&["has ended, or was killed"]);
    drop(mount);
    let (_dir, mount, _) = archive(&members);
    materialize(&mount, dest.path(), &[]).with(0);
    crate::support::compare::same_tree(&mount.point, dest.path());
    mount.unmount();
}

#[test]
fn a_link_to_what_was_there_before_it_started() {
    needs_fuse!();
    for overwrite in ["never", "if-newer", "if-changed", "always"] {
        let (mount, mut stdin) = Mount::pipe(&[]);
        let dest = mount.dir.path().join("dest");
        // A name that comes twice, before it starts and behind.
        let begin = [whole("x", b"1"), whole("x", b"2"), whole("a", b"old"), whole("b", b"of b"), whole("c", b"old")];
        stdin.write_all(&begin.concat()).unwrap();
        mount.wait_for("c");
        let running = start(&mount, &dest, &["--verify", "--overwrite", overwrite]);
        wait_contents(&dest.join("c"), b"old");
        let hard = |name: &str, target: &str| member(Link, name, target, 7, b"");
        // `a` becomes `b`, `d` what `a` was by then, and `b` something else; what waits takes the place of `c`.
        let then =
            [hard("a", "b"), hard("c", "late"), hard("d", "a"), whole("b", b"new"), whole("late", b"late"), end()];
        stdin.write_all(&then.concat()).unwrap();
        wait(running).with(0);
        let read = |name: &str| fs::read_to_string(dest.join(name)).unwrap();
        let inode = |name: &str| std::os::unix::fs::MetadataExt::ino(&dest.join(name).metadata().unwrap());
        assert_eq!(["a", "b", "c", "d", "late", "x"].map(read), ["of b", "new", "late", "of b", "late", "2"]);
        assert!(inode("a") == inode("d") && inode("c") == inode("late") && inode("a") != inode("b"));
        drop(stdin);
        mount.unmount();
    }
}

#[test]
fn an_older_version_that_stays_is_named() {
    needs_fuse!();
    let cut = [file("a", 1000), vec![1; 400]].concat();
    let old = [member(Regular, "a", "", 7, b"old"), end()].concat();
    for (args, later, code, says) in [
        (&[][..], cut, 4, "only 400 of its 1000 bytes have arrived; the version that came before it stays"),
        (&["--newer-than=@1000"], old, 3, "older than --newer-than; the one before it stays"),
    ] {
        let (mount, mut stdin) = Mount::pipe(&[]);
        let dest = mount.dir.path().join("dest");
        let running = start(&mount, &dest, args);
        stdin.write_all(&member(Regular, "a", "", 2000, b"first")).unwrap();
        wait_contents(&dest.join("a"), b"first");
        stdin.write_all(&later).unwrap();
        drop(stdin);
        wait(running).with(code).says(&[says]).names(&["a"]);
        assert_eq!(fs::read(dest.join("a")).unwrap(), b"first");
        mount.unmount();
    }
}

#[test]
fn what_was_there_is_never_taken_for_what_was_passed_over() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    let dest = mount.dir.path().join("dest");
    fs::create_dir_all(dest.join("d")).unwrap();
    fs::write(dest.join("f"), "mine").unwrap();
    let marker = |name: &str| member(Regular, name, "", 2000, b"x");
    // The first ones: a file that is too old, and a directory, which is there already.
    stdin
        .write_all(
            &[member(Regular, "f", "", 7, b"old"), member(Directory, "d/", "", 2000, b""), marker("one")].concat(),
        )
        .unwrap();
    mount.wait_for("one");
    let running = start(&mount, &dest, &["--overwrite=never", "--newer-than=@1000"]);
    wait_contents(&dest.join("one"), b"x");
    let later = [member(Regular, "f", "", 2000, b"new"), member(Regular, "d", "", 2000, b"new"), marker("two"), end()];
    stdin.write_all(&later.concat()).unwrap();
    let ended = wait(running).with(0);
    assert_eq!(fs::read(dest.join("f")).unwrap(), b"mine");
    assert!(dest.join("d").is_dir());
    assert!(dest.join("two").exists());
    assert_eq!((ended.count("entries"), ended.count("kept")), (2, 2), "{}", ended.text);
    drop(stdin);
    mount.unmount();
}
