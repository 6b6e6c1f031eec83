//! Where a target, an archive or a name is not as it mostly is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use tar::EntryType::{Directory, Link, Regular};

use super::{archive, materialize};
use crate::support::disk::Disk;
use crate::support::feed::{member, whole};
use crate::support::mount::{Mount, RESTOREFS};
use crate::support::{needs_fuse, run, shell};

const TIME: u64 = 1_000_000_000;

/// A pax archive of empty files with these times, one of them a second name.
fn times(archive: &Path) {
    let script = "import sys, tarfile\n\
        with tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT) as a:\n    \
            for name, time in ('far', 99999999999.5), ('past', -5000000000.5), ('fraction', 1000000000.25):\n        \
                t = tarfile.TarInfo(name)\n        \
                t.mtime = time\n        \
                a.addfile(t)\n    \
            t.name, t.type, t.linkname = 'second', tarfile.LNKTYPE, 'fraction'\n    \
            a.addfile(t)\n";
    run(Command::new("python3").args(["-c", script]).arg(archive));
}

#[test]
fn times_that_the_target_does_not_keep() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("x.tar");
    times(&tar);
    let mount = Mount::file(&tar, &[]);
    // Whole seconds from 1901 to 2038.
    let disk = Disk::ext4(&dir.path().join("disk.img"), &dir.path().join("disk"), "-I 128", "noatime");
    let dest = disk.path().join("dest");
    let first = materialize(&mount, &dest, &["--verify"]).with(3);
    first.says(&["times could not be set on 4 entries"]).names(&[]);
    for overwrite in ["if-changed", "if-newer"] {
        let again = materialize(&mount, &dest, &["--overwrite", overwrite]).with(0);
        assert_eq!((again.count("entries"), again.count("bytes")), (0, 0), "{overwrite}: {}", again.text);
        let dry = crate::support::mount::restorefs(
            &["materialize", "--dry-run", "--overwrite", overwrite],
            &[&mount.point, &dest],
        );
        let told = String::from_utf8(dry.stdout).unwrap();
        let word = if overwrite == "if-newer" { "keep" } else { "right" };
        assert!(told.contains(&format!("{word:<8} far")), "{told}");
    }
    // What somebody has changed is none of that.
    shell(&dest, "touch -d @1000000001 fraction; touch -d @7 far");
    materialize(&mount, &dest, &["--verify", "--overwrite=never"]).with(3).names(&["far", "fraction", "second"]);
    assert_eq!(materialize(&mount, &dest, &[]).with(0).count("entries"), 3);
    mount.unmount();
}

#[test]
fn a_target_that_gives_its_group_on() {
    needs_fuse!();
    let (dir, mount, _) = archive(&[
        member(Directory, "d/", "", TIME, b""),
        whole("d/f", b"x"),
        member(Directory, "d/e/", "", TIME, b""),
        whole("d/e/f", b"x"),
    ]);
    let disk = Disk::ext4(&dir.path().join("disk.img"), &dir.path().join("disk"), "", "grpid");
    shell(disk.path(), "mkdir d && chgrp 77 d");
    materialize(&mount, disk.path(), &["--verify"]).with(0);
    assert_eq!(shell(disk.path(), "stat -c %g d d/f d/e d/e/f"), "0\n0\n0\n0\n");
    mount.unmount();
}

#[test]
fn another_file_system_in_the_target() {
    needs_fuse!();
    let contents = crate::support::tree::bytes(3, 100_000);
    let (dir, mount, dest) = archive(&[
        member(Directory, "closed/", "", TIME, b""),
        member(Directory, "other/", "", TIME, b""),
        whole("other/f", &contents),
        member(Directory, "zz/", "", TIME, b""),
        whole("zz/f", b"x"),
    ]);
    // It is brought to the disk too: nothing but a sync does that within the hour.
    let image = dir.path().join("other.img");
    let other = Disk::ext4(&image, &dest.join("other"), "", "commit=3600");
    let ended = Command::new(RESTOREFS)
        .arg("materialize")
        .args([&mount.point, &dest])
        .args(["--exclude=zz", "--exclude=closed"])
        .output();
    assert!(ended.unwrap().status.success());
    let there = fs::read(&image).unwrap();
    let (begin, end) = (&contents[..4096], &contents[90_000..94_000]);
    for part in [begin, end] {
        assert!(there.windows(part.len()).any(|window| window == part), "not on the disk");
    }
    // One that is read-only is no reason to leave the others as they are.
    other.remount("ro");
    shell(&dest.join("."), "touch -d @5 .");
    materialize(&mount, &dest, &[]).with(3).says(&["'other': Read-only file system"]).names(&["other"]);
    for name in ["closed", "zz"] {
        let m = dest.join(name).metadata().unwrap();
        assert_eq!((m.mode() & 0o7777, m.mtime()), (0o755, TIME as i64), "{name}");
    }
    mount.unmount();
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_with_a_path() {
    needs_fuse!();
    let (dir, mount, dest) = archive(&[whole("before", b"x"), whole("large", &[7; 300_000]), whole("small", b"x")]);
    // Blocks of 1024 bytes.
    let limited = |line: &str| {
        let line = format!("ulimit -f 100; exec {RESTOREFS} {line}");
        Command::new("bash").args(["-c", &line]).current_dir(dir.path()).output().unwrap()
    };
    let text = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let output = limited("materialize --no-sync mnt dest".replace("mnt", mount.point.to_str().unwrap()).as_str());
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output).contains("'large': File too large"), "{}", text(&output));
    assert!(!dest.join("large").exists());
    assert_eq!(
        (fs::read(dest.join("before")).unwrap(), fs::read(dest.join("small")).unwrap()),
        (b"x".into(), b"x".into())
    );
    mount.unmount();
    fs::write(dir.path().join("packed"), [7; 300_000]).unwrap();
    let output = limited("send packed - >sent.tar");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let named = format!(
        "cannot write the archive to '{}': File too large",
        dir.path().canonicalize().unwrap().join("sent.tar").display()
    );
    assert!(text(&output).contains(&named), "{}", text(&output));
}

#[test]
fn what_a_run_left_behind_may_have_been_packed() {
    needs_fuse!();
    let name = ".restorefs-2147483647-abc-0.part";
    let (_dir, mount, dest) = archive(&[whole(name, b"x"), whole(&format!("d/{name}"), b"x")]);
    for args in [&[][..], &["--strip-components=1"]] {
        for _ in 0..3 {
            materialize(&mount, &dest, &[args, &["--verify"]].concat()).with(0);
        }
        assert!(dest.join(name).exists());
    }
    // One that was not is taken away.
    let other = dest.join(name.replace("-0.", "-1."));
    fs::write(&other, b"x").unwrap();
    materialize(&mount, &dest, &[]).with(0);
    assert!(!other.exists());
    mount.unmount();
}

#[test]
fn an_archive_that_is_changed_while_it_is_mounted() {
    needs_fuse!();
    let (dir, mount, dest) = archive(&[whole("a", b"a"), whole("b", b"b"), whole("c", b"c")]);
    mount.wait_end();
    let tar = dir.path().join("x.tar");
    // From the second header on it is nothing that can be read.
    shell(dir.path(), "head -c 512 /dev/zero | tr '\\0' x | dd of=x.tar bs=512 seek=2 conv=notrunc status=none");
    assert!(tar.exists());
    let says = &["has been changed since it was mounted"];
    materialize(&mount, &dest, &[]).with(1).says(says);
    materialize(&mount, &dest, &["--verify"]).with(1).says(says);
    assert_eq!(fs::read_dir(&dest).unwrap().count(), 0);
    mount.unmount();
}

#[test]
fn holes_are_compared_without_being_read() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    // Four tebibytes would take hours.
    shell(
        dir.path(),
        "mkdir tree; truncate -s 4T tree/holes tree/some; echo x | dd of=tree/some bs=1 seek=2T conv=notrunc status=none
         echo y | dd of=tree/some bs=1 seek=3M conv=notrunc status=none; tar --sparse -cf x.tar -C tree .",
    );
    for piped in [false, true] {
        let tar = dir.path().join("x.tar");
        let mount = if piped {
            Mount::start(fs::File::open(&tar).unwrap().into(), &["-d"], |command| {
                command.arg("/dev/stdin");
            })
        } else {
            Mount::file(&tar, &[])
        };
        mount.wait_end();
        let dest = dir.path().join(format!("dest-{piped}"));
        materialize(&mount, &dest, &["--verify"]).with(0);
        // In a hole, and a hole in place of data.
        for (name, line) in [
            ("holes", "echo z | dd of=holes bs=1 seek=1T conv=notrunc status=none"),
            ("some", "fallocate -p -o 3M -l 4096 some"),
        ] {
            shell(&dest, &format!("touch -r {name} ../time; {line}; touch -r ../time {name}"));
        }
        materialize(&mount, &dest, &["--verify"])
            .with(3)
            .says(&["'holes': verified: its contents differ", "'some': verified: its contents differ"])
            .names(&["holes", "some"]);
        mount.unmount();
    }
}

#[test]
fn more_than_was_packed_is_found() {
    needs_fuse!();
    let names = ["plain", "attribute", "capable", "shared", "d"];
    let mut members: Vec<_> = names[..4].iter().map(|name| whole(name, b"x")).collect();
    members.extend([member(Directory, "d/", "", TIME, b""), member(Regular, "root", "", TIME, b"x")]);
    let (_dir, mount, dest) = archive(&members);
    materialize(&mount, &dest, &["--verify"]).with(0);
    shell(&dest, "setfattr -n user.more -v 1 attribute; setfacl -m u:1234:r shared; setfacl -d -m u:1234:r d");
    shell(
        &dest,
        "f=capable; setcap cap_setuid+ep $f 2>/dev/null || setfattr -n security.capability -v 0sAQAAAoAAAAAAAAAAAAAAAAAAAAA= $f",
    );
    shell(&dest, "touch -d @1000000000 *");
    materialize(&mount, &dest, &["--verify"]).with(3).names(&["attribute", "capable", "d", "shared"]);
    mount.unmount();
}

#[test]
fn a_dry_run_tells_of_second_names_too() {
    needs_fuse!();
    let link = |name: &str, target: &str| member(Link, name, target, TIME, b"");
    let (_dir, mount, dest) =
        archive(&[link("early", "first"), whole("first", b"x"), link("second", "first"), link("third", "first")]);
    let dry = |args: &[&str]| {
        let args = [&["materialize", "--dry-run"], args].concat();
        let output = crate::support::mount::restorefs(&args, &[&mount.point, &dest]);
        assert!(output.status.success(), "{output:?}");
        let mut told: Vec<_> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        told.sort();
        told
    };
    let all = ["early", "first", "second", "third"];
    assert_eq!(dry(&[]), all.map(|name| format!("make     {name}")));
    assert_eq!(dry(&["--include=second", "--include=third"]), ["make     second", "make     third"]);
    materialize(&mount, &dest, &[]).with(0);
    assert_eq!(dry(&[]), all.map(|name| format!("right    {name}")));
    shell(&dest, "rm third; echo other >third; rm early");
    assert_eq!(dry(&[]), ["make     early", "replace  third", "right    first", "right    second"]);
    assert_eq!(dry(&["--overwrite=never"]), ["keep     first", "keep     third", "make     early", "right    second"]);
    // As it is then done.
    assert_eq!(materialize(&mount, &dest, &[]).with(0).count("entries"), 2);
    let both = crate::support::mount::restorefs(&["materialize", "--dry-run", "--json"], &[&mount.point, &dest]);
    assert_eq!(both.status.code(), Some(2));
    mount.unmount();
}
