//! The same name several times in an archive: on disk is what the mount shows, whatever it took the place of.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tar::EntryType::{Directory, Link, Regular, Symlink};

use super::{archive, materialize};
use crate::support::compare::same_tree;
use crate::support::feed::{link, member, whole};
use crate::support::needs_fuse;

const TIME: u64 = 1_000_000_000;

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
    // Again, and over what it is not.
    materialize(&mount, &dest, &[]).with(0);
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
