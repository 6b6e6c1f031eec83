//! Nothing outside of the target, whatever the archive says and whatever lies in the target.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, makedev, mknodat};
use tar::EntryType::{Directory, Link, Regular, Symlink};

use super::{Canary, archive, materialize};
use crate::support::feed::member;
use crate::support::{needs_fuse, shell};

const TIME: u64 = 1_000_000_000;

fn file(name: &str) -> Vec<u8> {
    member(Regular, name, "", TIME, b"packed")
}

fn dir(name: &str) -> Vec<u8> {
    member(Directory, name, "", TIME, b"")
}

fn soft(name: &str, target: &str) -> Vec<u8> {
    member(Symlink, name, target, TIME, b"")
}

fn hard(name: &str, target: &str) -> Vec<u8> {
    member(Link, name, target, TIME, b"")
}

fn names(dest: &Path) -> Vec<String> {
    shell(dest, "find . -mindepth 1 -printf '%P\\n' | LC_ALL=C sort").lines().map(str::to_owned).collect()
}

#[test]
fn names_and_links_that_lead_outside() {
    needs_fuse!();
    // The target is beside the canary: `../canary`.
    let (dir_, mount, dest) = archive(&[
        file("../canary/f"),
        file("d/../../canary/f"),
        file("/absolute"),
        hard("hard", "../canary/f"),
        hard("hard2", "/../canary/f"),
        hard("/hard3", "/canary/f"),
        // Through a link: a file, a directory, a hard link, a second link, metadata.
        soft("out", "../canary"),
        file("out/f"),
        dir("out/d/"),
        hard("out/h", "absolute"),
        soft("out/l", "f"),
        hard("inner", "out/f"),
        soft("up", ".."),
        soft("chain", "up/canary"),
        file("chain/f"),
        // A hard link to a link is one more link; nothing is written through it.
        hard("again", "out"),
        file("again/f"),
        soft("to file", "../canary/f"),
        file("to file"),
        soft("to file again", "../canary/f"),
        hard("hard to it", "to file again"),
        file("hard to it"),
    ]);
    let canary = Canary::new(dir_.path());
    mount.wait_end();
    assert!(mount.status()["refused"].as_u64().unwrap() >= 10);
    for _ in 0..2 {
        materialize(&mount, &dest, &[]).with(3).names(&[]);
        canary.sings();
        assert_eq!(names(&dest), ["absolute", "again", "chain", "hard to it", "out", "to file", "to file again", "up"]);
        assert!(dest.join("again").is_symlink() && !dest.join("to file").is_symlink());
        assert!(!dest.join("hard to it").is_symlink());
    }
    materialize(&mount, &dest, &["--overwrite", "always"]).with(3);
    canary.sings();
    mount.unmount();
}

#[test]
fn a_directory_over_a_link() {
    needs_fuse!();
    let (dir_, mount, dest) =
        archive(&[soft("d", "../canary/d"), dir("d/"), file("d/f"), soft("e", "../canary"), file("x"), hard("e", "x")]);
    let canary = Canary::new(dir_.path());
    materialize(&mount, &dest, &[]).with(0);
    canary.sings();
    assert_eq!(names(&dest), ["d", "d/f", "e", "x"]);
    assert!(dest.join("e").symlink_metadata().unwrap().is_file());
    mount.unmount();
}

#[test]
fn links_that_are_in_the_target_already() {
    needs_fuse!();
    let (dir_, mount, dest) = archive(&[
        dir("d/"),
        file("d/f"),
        dir("d/d/"),
        file("d/d/f"),
        file("deep/er/f"),
        file("f"),
        soft("l", "x"),
        hard("d/h", "f"),
        file("good"),
    ]);
    let canary = Canary::new(dir_.path());
    let prepare = || {
        shell(&dest, "rm -rf *; ln -s ../canary d; mkdir deep; ln -s ../../canary deep/er");
        shell(&dest, "ln -s ../canary/f f; ln -s ../canary/d l; ln -s ../canary/f good");
    };
    for overwrite in ["if-changed", "always", "if-newer", "never"] {
        prepare();
        let ended = materialize(&mount, &dest, &["--overwrite", overwrite]).with(3);
        canary.sings();
        // Each of them once, since none of them is there.
        ended.says(&["'d'", "nothing is written through it"]).names(&[
            "d",
            "d/d",
            "d/d/f",
            "d/f",
            "d/h",
            "deep/er",
            "deep/er/f",
        ]);
        assert!(dest.join("d").is_symlink() && dest.join("deep/er").is_symlink());
        let replaced = overwrite == "if-changed" || overwrite == "always";
        assert_eq!(!dest.join("f").is_symlink(), replaced);
        assert_eq!(fs::read_link(dest.join("l")).unwrap() == Path::new("x"), replaced);
    }
    mount.unmount();
}

#[test]
fn the_target_itself_may_be_a_link() {
    needs_fuse!();
    let (dir_, mount, dest) = archive(&[file("f")]);
    let link = dir_.path().join("link");
    symlink("dest", &link).unwrap();
    materialize(&mount, &link, &[]).with(0);
    assert_eq!(fs::read(dest.join("f")).unwrap(), b"packed");
    assert!(link.is_symlink());
    // What is no directory, or is nowhere, is named.
    materialize(&mount, &dest.join("f"), &[]).with(1).says(&["dest/f"]);
    materialize(&mount, &dest.join("no/such"), &[]).with(1).says(&["dest/no/such"]);
    mount.unmount();
}

#[test]
fn what_stands_where_something_else_belongs() {
    needs_fuse!();
    let (_dir, mount, dest) = archive(&[
        file("fifo"),
        file("device"),
        file("socket"),
        file("directory"),
        file("empty"),
        dir("file/"),
        file("file/inside"),
        dir("pipe/"),
        soft("full", "x"),
        hard("second", "fifo"),
        file("good"),
    ]);
    let make = |name: &str, kind, device| mknodat(CWD, dest.join(name), kind, 0o644.into(), device).unwrap();
    for name in ["fifo", "pipe", "second"] {
        make(name, FileType::Fifo, 0);
    }
    make("device", FileType::CharacterDevice, makedev(1, 7));
    make("socket", FileType::Socket, 0);
    // As if it were the very file, by all that `stat` tells but its kind.
    shell(&dest, "touch -d @1000000000 fifo device socket pipe second");
    for name in ["directory", "full"] {
        fs::create_dir(dest.join(name)).unwrap();
        fs::write(dest.join(name).join("theirs"), b"theirs").unwrap();
    }
    fs::create_dir(dest.join("empty")).unwrap();
    fs::write(dest.join("file"), b"theirs").unwrap();
    let refused = &["directory", "file", "file/inside", "full", "pipe"];
    for overwrite in ["never", "if-changed", "always"] {
        let ended = materialize(&mount, &dest, &["--overwrite", overwrite]).with(3);
        if overwrite == "never" {
            ended.names(&["file", "file/inside", "pipe"]);
            assert!(dest.join("fifo").symlink_metadata().unwrap().file_type().is_fifo());
            assert!(dest.join("empty").is_dir());
            continue;
        }
        ended.names(refused);
        for name in ["fifo", "device", "socket", "second", "empty", "good"] {
            assert_eq!(fs::read(dest.join(name)).unwrap(), b"packed", "{name}");
        }
        for name in ["directory", "full"] {
            assert_eq!(fs::read(dest.join(name).join("theirs")).unwrap(), b"theirs");
        }
        assert_eq!(fs::read(dest.join("file")).unwrap(), b"theirs");
        assert!(dest.join("pipe").symlink_metadata().unwrap().file_type().is_fifo());
        assert_eq!(dest.join("second").metadata().unwrap().ino(), dest.join("fifo").metadata().unwrap().ino());
    }
    mount.unmount();
}

#[test]
fn deeper_than_any_path_can_be_named() {
    needs_fuse!();
    let dir_ = tempfile::tempdir().unwrap();
    // 60 directories with names of 200 bytes, each with a file, a link up, and a second name of the file above.
    let script = "import sys, tarfile, io\n\
        with tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT) as a:\n    \
            path = ''\n    \
            for n in range(60):\n        \
                above = path\n        \
                path += ('%03d' % n) + 'n' * 197 + '/'\n        \
                def add(name, type, link='', contents=b''):\n            \
                    t = tarfile.TarInfo(name)\n            \
                    t.type, t.linkname, t.size, t.mtime = type, link, len(contents), 1000000000\n            \
                    t.mode = 0o755\n            \
                    a.addfile(t, io.BytesIO(contents))\n        \
                add(path, tarfile.DIRTYPE)\n        \
                add(path + 'f', tarfile.REGTYPE, '', b'level %d' % n)\n        \
                add(path + 'l', tarfile.SYMTYPE, '../' * 60 + 'x')\n        \
                add(path + 'h', tarfile.LNKTYPE, above + 'f' if above else path + 'f')\n";
    let tar = dir_.path().join("x.tar");
    crate::support::run(std::process::Command::new("python3").args(["-c", script]).arg(&tar));
    let mount = crate::support::mount::Mount::file(&tar, &[]);
    let dest = dir_.path().join("dest");
    materialize(&mount, &dest, &[]).with(0).names(&[]);
    let again = materialize(&mount, &dest, &[]).with(0);
    assert_eq!(again.count("entries"), 0, "{}", again.text);
    let bottom = shell(
        &dest,
        "for n in $(seq 60); do cd -P ./[0-9]*; done; cat f h; readlink l | wc -c; stat -c '%Y %h' f . | tr '\\n' ' '",
    );
    assert_eq!(bottom, "level 59level 58182\n1000000000 1 1000000000 2 ");
    shell(dir_.path(), "rm -rf dest");
    mount.unmount();
}
