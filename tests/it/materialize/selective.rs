//! Parts of a tree: paths, patterns, times, and paths that lose their first components.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tar::EntryType::{Directory, Link, Regular, Symlink};

use super::{archive, materialize};
use crate::support::feed::member;
use crate::support::mount::Mount;
use crate::support::{needs_fuse, shell};

const TIME: u64 = 1_000_000_000;

fn file(name: &str, contents: &[u8]) -> Vec<u8> {
    member(Regular, name, "", TIME, contents)
}

fn dir(name: &str) -> Vec<u8> {
    member(Directory, name, "", TIME, b"")
}

fn hard(name: &str, target: &str) -> Vec<u8> {
    member(Link, name, target, TIME, b"")
}

/// What lies below, directories with a slash.
fn tree(root: &Path) -> BTreeSet<String> {
    shell(root, "find . -mindepth 1 -type d -printf '%P/\\n' -o -mindepth 1 -printf '%P\\n'")
        .lines()
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn gives(mount: &Mount, dest: &Path, args: &[&str], wanted: &[&str]) {
    shell(dest, "rm -rf * .[a-z]*");
    materialize(mount, dest, args).with(0);
    assert_eq!(tree(dest), wanted.iter().map(|&name| name.to_owned()).collect(), "{args:?}");
}

#[test]
fn paths_and_patterns() {
    needs_fuse!();
    let (_dir, mount, dest) = archive(&[
        dir("etc/"),
        dir("etc/deep/"),
        file("etc/deep/a.conf", b"a"),
        file("etc/b.conf", b"b"),
        file("etc/c.txt", b"c"),
        dir("home/"),
        dir("home/target/"),
        file("home/target/x.o", b"x"),
        file("home/.hidden", b"x"),
        member(Symlink, "home/link", "../etc", TIME, b""),
        dir("empty/"),
        file("[odd]*", b"x"),
    ]);
    let inside = mount.path("etc/deep");
    gives(&mount, &dest, &["etc/c.txt"], &["etc/", "etc/c.txt"]);
    gives(&mount, &dest, &["home/link", "./empty/"], &["home/", "home/link", "empty/"]);
    gives(&mount, &dest, &[inside.to_str().unwrap()], &["etc/", "etc/deep/", "etc/deep/a.conf"]);
    gives(&mount, &dest, &["[odd]*"], &["[odd]*"]);
    gives(&mount, &dest, &["--include", "*.conf"], &["etc/", "etc/deep/", "etc/deep/a.conf", "etc/b.conf"]);
    gives(&mount, &dest, &["--include", "*.conf", "--exclude", "deep"], &["etc/", "etc/b.conf"]);
    gives(&mount, &dest, &["etc", "--exclude", "/etc/*.conf"], &["etc/", "etc/deep/", "etc/c.txt"]);
    gives(&mount, &dest, &["--exclude", "target", "--exclude=/etc", "home"], &["home/", "home/.hidden", "home/link"]);
    gives(&mount, &dest, &["--strip-components=1", "etc"], &["deep/", "deep/a.conf", "b.conf", "c.txt"]);
    // Parents of what is selected are as they were packed; the target itself is the user's.
    shell(&dest, "rm -rf *; touch -d @5 .");
    materialize(&mount, &dest, &["etc/deep/a.conf"]).with(0);
    for name in ["etc", "etc/deep"] {
        let m = dest.join(name).metadata().unwrap();
        assert_eq!((m.mtime(), m.mode() & 0o7777), (TIME as i64, 0o755), "{name}");
    }
    assert_ne!(dest.metadata().unwrap().mtime(), TIME as i64);
    // Nothing has this path: that is said, and what there is restored.
    materialize(&mount, &dest, &["home/target", "no/such"]).with(3).says(&["no/such"]).names(&["no/such"]);
    assert!(dest.join("home/target/x.o").exists());
    materialize(&mount, &dest, &["--include", "["]).with(2);
    materialize(&mount, &dest, &["../etc"]).with(2);
    mount.unmount();
}

#[test]
fn what_matches_nothing_is_named() {
    needs_fuse!();
    let members = [dir("etc/"), file("etc/b.conf", b"b"), file("x.o", b"x")];
    let (_dir, in_place, dest) = archive(&members);
    let (streamed, mut stdin) = Mount::pipe(&[]);
    std::io::Write::write_all(&mut stdin, &[members.concat(), crate::support::feed::end()].concat()).unwrap();
    drop(stdin);
    streamed.wait_end();
    let cases: &[(&[&str], &[&str])] = &[
        (&["--include", "*.conf", "--include", "*.x"], &["'--include *.x' matched nothing"]),
        (&["--include=nothing", "--include=[n]one"], &["'--include nothing' matched", "'--include [n]one' matched"]),
        // Only outside of what was asked for.
        (&["etc", "--include", "*.o"], &["'--include *.o' matched nothing"]),
        (&["no/such", "x.o"], &["'no/such': there is no such entry"]),
        (&["no/such", "--include=*.o"], &["'no/such': there is no such entry", "'--include *.o' matched nothing"]),
        (&["--strip-components=2"], &["'--strip-components 2' left nothing"]),
        (&["x.o", "--strip-components=1"], &["'--strip-components 1' left nothing"]),
    ];
    for mount in [&in_place, &streamed] {
        for how in [&[][..], &["--no-wait"], &["--verify"], &["--dry-run"]] {
            for (args, says) in cases {
                let mut args = [how, args].concat();
                let ended = if how == ["--dry-run"] {
                    let mut command = std::process::Command::new(crate::support::mount::RESTOREFS);
                    super::ended(command.arg("materialize").args([&mount.point, &dest]).args(&args).output().unwrap())
                } else {
                    args.push("--overwrite=always");
                    materialize(mount, &dest, &args)
                };
                ended.with(3).says(says);
            }
            // An entry that is left out for another reason was there; and nothing has to match what is excluded.
            for args in [
                &["--include=*.o", "--exclude=*.o"][..],
                &["--exclude=*.x"],
                &["--include=*.o", "--newer-than=@2000000000"],
            ] {
                let args = [if how == ["--dry-run"] { &["--no-wait"][..] } else { how }, args].concat();
                assert_eq!(materialize(mount, &dest, &args).with(0).json["unmatched"], serde_json::json!([]));
            }
        }
    }
    in_place.unmount();
    streamed.unmount();
}

#[test]
fn only_what_is_newer() {
    needs_fuse!();
    let (dir, mount, dest) = archive(&[
        member(Directory, "d/", "", TIME, b""),
        member(Regular, "d/old", "", TIME, b"x"),
        member(Regular, "d/new", "", TIME + 1, b"x"),
        member(Link, "d/link to old", "d/old", TIME + 1, b""),
        member(Link, "d/link to new", "d/new", TIME, b""),
        member(Symlink, "d/soft", "x", TIME + 1, b""),
    ]);
    let wanted = &["d/", "d/new", "d/link to new", "d/soft"];
    gives(&mount, &dest, &["--newer-than", &format!("@{TIME}")], wanted);
    let stamp = dir.path().join("stamp");
    shell(dir.path(), &format!("touch -d @{TIME} stamp"));
    gives(&mount, &dest, &["--newer-than", stamp.to_str().unwrap()], wanted);
    materialize(&mount, &dest, &["--newer-than", "/no/such"]).with(1 + 1);
    mount.unmount();
}

#[test]
fn names_of_one_file_without_the_first() {
    needs_fuse!();
    let large = crate::support::tree::bytes(1, 300_000);
    let (_dir, mount, dest) = archive(&[
        file("a/first", b"contents"),
        hard("b/second", "a/first"),
        hard("c/third", "b/second"),
        file("a/large", &large),
        hard("b/large", "a/large"),
        file("a/replaced", b"old"),
        hard("b/keeps", "a/replaced"),
        file("a/replaced", b"new"),
        hard("c/keeps", "b/keeps"),
        // The first name that is restored is another file when the next comes.
        hard("b/moves", "a/first"),
        file("b/moves", b"moved"),
        hard("c/moves", "a/first"),
    ]);
    materialize(&mount, &dest, &["b/second"]).with(0);
    assert_eq!(tree(&dest), ["b/", "b/second"].map(str::to_owned).into());
    assert_eq!(fs::read(dest.join("b/second")).unwrap(), b"contents");
    let m = dest.join("b/second").metadata().unwrap();
    assert_eq!((m.mode() & 0o7777, m.mtime(), m.nlink()), (0o644, TIME as i64, 1));
    shell(&dest, "rm -r *");

    materialize(&mount, &dest, &["b", "c"]).with(0);
    assert_eq!(fs::read(dest.join("b/large")).unwrap(), large);
    let same = |a: &str, b: &str| {
        let (a, b) = (dest.join(a), dest.join(b));
        assert_eq!(a.metadata().unwrap().ino(), b.metadata().unwrap().ino());
    };
    same("b/second", "c/third");
    same("b/keeps", "c/keeps");
    assert_eq!(fs::read(dest.join("b/keeps")).unwrap(), b"old");
    assert_eq!(fs::read(dest.join("b/moves")).unwrap(), b"moved");
    shell(&dest, "rm -r *");
    // Of `a/first`, only names that change their meaning.
    materialize(&mount, &dest, &["b/moves", "c/moves"]).with(0);
    assert_eq!(fs::read(dest.join("b/moves")).unwrap(), b"moved");
    assert_eq!(fs::read(dest.join("c/moves")).unwrap(), b"contents");
    mount.unmount();
}

#[test]
fn several_directories_become_one() {
    needs_fuse!();
    let mut members = vec![dir("x/"), dir("x/d/"), file("x/d/only x", b"x"), file("x/top", b"x")];
    // So many that other threads make them.
    members.extend((0..300).map(|n| file(&format!("x/d/f{n}"), format!("x of {n}").as_bytes())));
    members.extend([hard("x/link", "x/d/f0"), hard("x/d/f1 again", "x/d/f1")]);
    members.extend([dir("y/"), member(Directory, "y/d/", "", TIME + 7, b""), file("y/d/only y", b"y")]);
    // Of the same length and time.
    members.extend((0..300).map(|n| file(&format!("y/d/f{n}"), format!("y of {n}").as_bytes())));
    // What was made of `x/d/f2` has another's contents by now; a link to it has not.
    members.extend([hard("z/f2 of x", "x/d/f2"), hard("z/f3 of y", "y/d/f3")]);
    members.extend([file("z/shape", b"x"), dir("w/shape/"), file("w/shape/inside", b"x")]);
    let (_dir, mount, dest) = archive(&members);
    for _ in 0..5 {
        shell(&dest, "rm -rf *");
        materialize(&mount, &dest, &["--strip-components=1"]).with(0);
        let read = |name: &str| fs::read_to_string(dest.join(name)).unwrap();
        for n in 0..300 {
            assert_eq!(read(&format!("d/f{n}")), format!("y of {n}"));
        }
        assert_eq!((read("link"), read("d/f1 again")), ("x of 0".into(), "x of 1".into()));
        assert_eq!((read("f2 of x"), read("f3 of y")), ("x of 2".into(), "y of 3".into()));
        assert_eq!(dest.join("d").metadata().unwrap().mtime(), TIME as i64 + 7);
        assert_eq!((read("d/only x"), read("d/only y"), read("shape/inside")), ("x".into(), "y".into(), "x".into()));
        assert!(!dest.join("x").exists());
    }
    mount.unmount();
}
