//! The same name several times in an archive: on disk is what the mount shows, whatever it took the place of.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tar::EntryType::{Directory, Link, Regular, Symlink};

use super::{archive, look, materialize, start, wait};
use crate::support::compare::same_tree;
use crate::support::feed::{end, link, member, whole};
use crate::support::mount::Mount;
use crate::support::{needs_fuse, shell, wait_until};

const TIME: u64 = 1_000_000_000;

/// Everything but directories, whose times may be set again.
fn files(dest: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = look(dest);
    all.retain(|path, _| !path.symlink_metadata().unwrap().is_dir());
    all
}

#[test]
fn what_comes_later_wins() {
    needs_fuse!();
    let file = |name: &str, contents: &[u8]| member(Regular, name, "", TIME, contents);
    let dir = |name: &str| member(Directory, name, "", TIME, b"");
    let soft = |name: &str, target: &str| member(Symlink, name, target, TIME, b"");
    let hard = |name: &str, target: &str| member(Link, name, target, TIME, b"");
    let (_dir, mount, dest) = archive(&[
        dir("./"),
        // Nothing that `stat` tells is different.
        file("same", b"first"),
        file("same", b"later"),
        file("becomes link", b"x"),
        soft("becomes link", "../../outside"),
        soft("becomes dir", "/etc"),
        dir("becomes dir/"),
        file("becomes dir/inside", b"x"),
        dir("becomes file/"),
        file("becomes file", b"x"),
        dir("twice dir/"),
        file("twice dir", b"x"),
        soft("twice dir", "x"),
        dir("twice dir/"),
        file("twice dir/inside", b"x"),
        // A second name keeps what it was bound to when its first name is replaced.
        file("a", b"older"),
        hard("b", "a"),
        file("a", b"new"),
        hard("c", "b"),
        hard("d", "a"),
        // A link over what was there, to itself through another name, and of a link.
        file("e", b"e"),
        hard("e", "a"),
        hard("same again", "same"),
        hard("same", "same again"),
        soft("soft", "target"),
        hard("hard of soft", "soft"),
        // What waits for its target, over something and over nothing.
        file("waits over", b"x"),
        hard("waits over", "late"),
        hard("waits", "late"),
        hard("waits for a link", "waits"),
        file("late", b"late"),
        file("late", b"later"),
    ]);
    mount.wait_end();
    let ended = materialize(&mount, &dest, &[]).with(0);
    assert_eq!(ended.count("left_out"), 0);
    same_tree(&mount.point, &dest);
    assert_eq!(fs::read(dest.join("same")).unwrap(), b"later");
    assert_eq!(dest.join("a").metadata().unwrap().nlink(), 3);
    // Again: nothing is made only to be replaced. And over what it is not.
    let before = files(&dest);
    let again = materialize(&mount, &dest, &[]).with(0);
    assert_eq!((again.count("entries"), again.count("left_out")), (0, 0), "{}", again.text);
    assert_eq!(files(&dest), before);
    same_tree(&mount.point, &dest);
    for name in ["same", "a", "b", "late"] {
        fs::write(dest.join(name), b"another").unwrap();
    }
    materialize(&mount, &dest, &["--overwrite", "always"]).with(0);
    same_tree(&mount.point, &dest);
    mount.unmount();
}

#[test]
fn what_is_kept_is_not_replaced_by_the_second_of_two() {
    needs_fuse!();
    let (_dir, mount, dest) = archive(&[
        whole("file", b"first"),
        whole("file", b"second"),
        whole("becomes link", b"x"),
        link("becomes link", "x"),
        whole("becomes dir", b"x"),
        member(Directory, "becomes dir", "", TIME, b""),
        member(Link, "waits", "late", TIME, b""),
        whole("late", b"x"),
        whole("missing", b"first"),
        whole("missing", b"second"),
    ]);
    for overwrite in ["never", "if-newer"] {
        for name in ["file", "becomes link", "becomes dir", "waits"] {
            fs::write(dest.join(name), b"theirs").unwrap();
        }
        materialize(&mount, &dest, &["--overwrite", overwrite]).with(3).names(&["becomes dir"]);
        for name in ["file", "becomes link", "becomes dir", "waits"] {
            assert_eq!(fs::read(dest.join(name)).unwrap(), b"theirs", "{name}");
        }
        assert_eq!(fs::read(dest.join("missing")).unwrap(), b"second");
        fs::remove_file(dest.join("missing")).unwrap();
    }
    mount.unmount();
}

#[test]
fn versions_that_look_the_same() {
    needs_fuse!();
    let members = [
        whole("a", b"first"),
        member(Link, "b", "a", TIME, b""),
        whole("a", b"later"),
        member(Link, "c", "b", TIME, b""),
        whole("alone", b"first"),
        whole("alone", b"later"),
    ];
    let (_dir, mount, dest) = archive(&members);
    let check = |dest: &Path| {
        let read = |name: &str| fs::read_to_string(dest.join(name)).unwrap();
        assert_eq!(["a", "b", "c", "alone"].map(read), ["later", "first", "first", "later"]);
        let inode = |name: &str| dest.join(name).metadata().unwrap().ino();
        assert_eq!(inode("b"), inode("c"));
        assert_ne!(inode("a"), inode("b"));
    };
    for overwrite in ["if-changed", "never", "if-newer", "always"] {
        materialize(&mount, &dest, &["--overwrite", overwrite]).with(0);
        check(&dest);
    }
    let again = materialize(&mount, &dest, &[]).with(0);
    assert_eq!((again.count("entries"), again.count("unchanged")), (0, 4));
    // As a run leaves it that was killed before the later versions came.
    let first = "rm -f *; echo -n first >a; ln a b; echo -n first >alone; touch -d @1000000000 a alone";
    shell(&dest, first);
    materialize(&mount, &dest, &[]).with(0);
    check(&dest);
    mount.unmount();
    // The same while more is still to come, and what comes then replaces what was right so far.
    let (mount, mut stdin) = Mount::pipe(&[]);
    let send = |stdin: &mut std::process::ChildStdin, bytes: &[u8]| std::io::Write::write_all(stdin, bytes).unwrap();
    send(&mut stdin, &members.concat());
    mount.wait_for("alone");
    shell(&dest, first);
    let running = start(&mount, &dest, &[]);
    // Second names are made last.
    let is_there = |name: &str, contents: &[u8]| fs::read(dest.join(name)).is_ok_and(|found| found == contents);
    wait_until("it has come so far", || (is_there("alone", b"later") && is_there("c", b"first")).then_some(()));
    check(&dest);
    send(&mut stdin, &[whole("a", b"third"), member(Link, "d", "a", TIME, b""), end()].concat());
    wait(running).with(0);
    assert_eq!(["a", "b", "d"].map(|name| fs::read_to_string(dest.join(name)).unwrap()), ["third", "first", "third"]);
    drop(stdin);
    mount.unmount();
}

#[test]
fn what_lives_on_under_another_name_is_not_what_only_looks_like_it() {
    needs_fuse!();
    let first = [whole("a", b"first"), member(Link, "b", "a", TIME, b""), member(Link, "c", "b", TIME, b"")];
    let later = [whole("a", b"later"), end()];
    let (_dir, whole, dest) = archive(&[first.concat(), later.concat()]);
    materialize(&whole, &dest, &[]).with(0);
    whole.unmount();
    // The same again, where it is not yet known that the name comes twice.
    let (mount, mut stdin) = Mount::pipe(&[]);
    let mut send = |bytes: &[u8]| std::io::Write::write_all(&mut stdin, bytes).unwrap();
    send(&first.concat());
    mount.wait_for("c");
    let running = start(&mount, &dest, &["--verify"]);
    let inode = |name: &str| dest.join(name).metadata().unwrap().ino();
    // What is in the target is taken for right, and gets its other names.
    wait_until("it has come so far", || (inode("a") == inode("b") && inode("a") == inode("c")).then_some(()));
    send(&later.concat());
    drop(stdin);
    wait(running).with(0);
    assert_eq!(["a", "b", "c"].map(|name| fs::read_to_string(dest.join(name)).unwrap()), ["later", "first", "first"]);
    assert!(inode("b") == inode("c") && inode("a") != inode("b"));
    mount.unmount();
}

#[test]
fn names_that_are_the_same_without_their_first_components() {
    needs_fuse!();
    let (_dir, mount, dest) = archive(&[
        whole("x/f", b"first"),
        whole("y/f", b"later"),
        whole("x/g", b"x"),
        member(Directory, "y/g", "", TIME, b""),
        member(Link, "x/h", "x/f", TIME, b""),
        member(Link, "y/h", "y/f", TIME, b""),
    ]);
    for (entries, unchanged) in [(3, 0), (0, 3)] {
        let ended = materialize(&mount, &dest, &["--strip-components", "1", "--verify"]).with(0);
        assert_eq!((ended.count("entries"), ended.count("unchanged")), (entries, unchanged), "{}", ended.text);
        assert_eq!(fs::read(dest.join("f")).unwrap(), b"later");
        assert!(dest.join("g").is_dir());
        assert_eq!(dest.join("h").metadata().unwrap().ino(), dest.join("f").metadata().unwrap().ino());
    }
    mount.unmount();
}

#[test]
fn a_link_to_what_was_replaced_is_not_made_from_what_a_run_before_left() {
    needs_fuse!();
    let soft = |name: &str, target: &str| member(Symlink, name, target, TIME, b"");
    let (mount, mut to) = Mount::pipe(&[]);
    let dest = mount.dir.path().join("dest");
    // Nothing that `stat` tells is different.
    std::io::Write::write_all(&mut to, &soft("l", "/")).unwrap();
    mount.wait_for("l");
    materialize(&mount, &dest, &["--no-wait"]);
    let rest = [soft("l", "a"), member(Link, "second", "l", TIME, b""), end()].concat();
    std::io::Write::write_all(&mut to, &rest).unwrap();
    mount.wait_end();
    materialize(&mount, &dest, &["--overwrite=never"]);
    assert_eq!(fs::read_link(dest.join("l")).unwrap(), Path::new("/"));
    assert_eq!(fs::read_link(dest.join("second")).unwrap(), Path::new("a"));
    mount.unmount();
}
