//! Targets that cannot take everything: full, read-only, without attributes, of an ordinary user.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tar::EntryType::{Directory, Regular};

use super::{archive, command, ended, materialize};
use crate::support::compare::same_tree;
use crate::support::disk::Disk;
use crate::support::feed::member;
use crate::support::mount::{Mount, RESTOREFS};
use crate::support::pack::gnu_tar;
use crate::support::{needs_fuse, run, shell};

const TIME: u64 = 1_000_000_000;

fn large(name: &str, len: usize) -> Vec<u8> {
    member(Regular, name, "", TIME, &crate::support::tree::bytes(len as u64, len))
}

#[test]
fn a_full_target() {
    needs_fuse!();
    let (_dir, mount, _) = archive(&[
        member(Directory, "./", "", TIME, b""),
        member(Directory, "d/", "", TIME, b""),
        large("d/fits", 100_000),
        large("d/fits not", 3 << 20),
        large("later", 1000),
    ]);
    let disk = Disk::new("tmpfs", "size=1M");
    for _ in 0..2 {
        let ended = materialize(&mount, disk.path(), &[]).with(1);
        ended.says(&["'d/fits not'", "No space left", "the same command goes on"]);
        assert_eq!(fs::metadata(disk.path().join("d/fits")).unwrap().len(), 100_000);
        assert!(!disk.path().join("d/fits not").exists());
    }
    // As many names as there may be.
    disk.remount("size=20M,nr_inodes=4");
    materialize(&mount, disk.path(), &[]).with(1).says(&["'later'", "No space left"]);
    disk.remount("nr_inodes=1000");
    materialize(&mount, disk.path(), &[]).with(0);
    same_tree(&mount.point, disk.path());
    mount.unmount();
}

#[test]
fn a_full_target_loses_no_attributes() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    // Attributes of a tmpfs take room of its inodes.
    shell(dir.path(), "mkdir tree; echo x >tree/f; setfattr -n user.large -v $(printf '%03000d' 0) tree/f");
    let tar = dir.path().join("x.tar");
    gnu_tar(&dir.path().join("tree"), &tar, &["--format=pax", "--xattrs"]);
    let mount = Mount::file(&tar, &[]);
    let disk = Disk::new("tmpfs", "size=1M,nr_inodes=2");
    materialize(&mount, disk.path(), &[]).with(1).says(&["'f'", "No space left"]);
    assert!(!disk.path().join("f").exists());
    disk.remount("nr_inodes=1000");
    materialize(&mount, disk.path(), &[]).with(0);
    same_tree(&dir.path().join("tree"), disk.path());
    mount.unmount();
}

#[test]
fn a_read_only_target() {
    needs_fuse!();
    let (_dir, mount, _) = archive(&[member(Directory, "d/", "", TIME, b""), large("d/file", 1000)]);
    let disk = Disk::new("tmpfs", "size=1M");
    disk.remount("ro");
    materialize(&mount, disk.path(), &[]).with(1).says(&["'d'", "Read-only file system"]);
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    materialize(&mount, &disk.path().join("below"), &[]).with(1).says(&["disk/below", "Read-only file system"]);
    disk.remount("rw");
    materialize(&mount, disk.path(), &[]).with(0);
    assert_eq!(fs::metadata(disk.path().join("d/file")).unwrap().len(), 1000);
    mount.unmount();
}

#[test]
fn a_target_without_attributes() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    shell(
        dir.path(),
        "mkdir -p tree/d; touch tree/a tree/b tree/plain; setfattr -n user.one -v 1 tree/a
         setfattr -n user.two -v 2 tree/a
         setfattr -n user.one -v 1 tree/b; setfattr -n trusted.x -v 1 tree/d; setfacl -m u:1234:r tree/b
         ln tree/b tree/second",
    );
    let tar = dir.path().join("x.tar");
    gnu_tar(&dir.path().join("tree"), &tar, &["--format=pax", "--xattrs", "--xattrs-include=*", "--acls"]);
    let mount = Mount::file(&tar, &[]);
    let disk = Disk::new("ramfs", "mode=755");
    // They are told each time, also when everything else is right already.
    for entries in [5, 0] {
        let ended =
            materialize(&mount, disk.path(), &[]).with(3).says(&["could not be set", "Operation not supported"]);
        let attributes = ended.json["attributes"].as_array().unwrap();
        let mut kinds: Vec<_> = attributes.iter().map(|a| a.as_str().unwrap()).collect();
        kinds.sort_unstable();
        let begins: Vec<_> = kinds.iter().map(|kind| kind.split(", first").next().unwrap()).collect();
        assert_eq!(
            begins,
            [
                "ACLs could not be set on 1 entry",
                "trusted.* could not be set on 1 entry",
                "user.* could not be set on 3 entries",
            ]
        );
        assert_eq!(ended.count("entries"), entries, "{}", ended.text);
        ended.names(&[]);
    }
    crate::support::compare::same_tree_except(&dir.path().join("tree"), disk.path(), &["--no-xattrs", "--no-acls"]);
    mount.unmount();
}

/// A directory, and one in it that is to be somebody else's.
fn with_home() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    (dir, home)
}

/// Runs a script in a namespace of mounts of its own, where /dev/fuse is for everybody and `as UID SCRIPT` is somebody
/// else, in a directory of theirs with the binary in it.
fn as_others(home: &Path, script: &str) -> String {
    fs::copy(RESTOREFS, home.join("restorefs")).unwrap();
    shell(home, "chmod 755 .. . && chown -R 65534:65534 .");
    let script = format!(
        r#"
        mknod -m 666 fuse c 10 229
        mount --bind fuse /dev/fuse
        mkdir -p mnt && chown 65534:65534 mnt
        trap 'umount -l mnt 2>/dev/null || true' EXIT
        unset XDG_RUNTIME_DIR
        as() {{ setpriv --reuid "$1" --regid "$1" --clear-groups bash -euc "$2"; }}
        {script}"#
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-euc", &script]).current_dir(home);
    String::from_utf8(run(&mut command).stdout).unwrap()
}

#[test]
fn an_ordinary_user() {
    needs_fuse!();
    let (dir, home) = with_home();
    shell(
        dir.path(),
        "mkdir -p tree/d/sub tree/closed tree/readonly; cd tree; echo 1 >f; echo 2 >d/f; ln d/f d/second
         ln -s /etc/passwd d/l
         echo 3 >suid; chmod 6755 suid; chown 1234:4321 d/f; chmod 000 d/second; mknod null c 1 3; mkfifo fifo
         echo 4 >own; chown 65534:65534 own; chmod 4711 own; setfattr -n trusted.x -v 1 f; echo 5 >closed/f
         chmod 000 closed; echo 6 >readonly/f; chmod 555 readonly; touch -d @1000000000 f d/f suid d",
    );
    gnu_tar(
        &dir.path().join("tree"),
        &home.join("x.tar"),
        &["--format=pax", "--xattrs", "--xattrs-include=*", "--owner=+0", "--sort=name"],
    );
    let told = as_others(
        &home,
        r#"
        as 65534 './restorefs mount x.tar mnt -d --spool . && ./restorefs wait mnt
            run() { ./restorefs materialize --no-sync mnt dest "$@" 2>&1 && echo code 0 || echo "code $?"; }
            run; echo ---; run
            stat -c "%n %a %u %g %Y" dest/f dest/d/f dest/suid dest/d dest/closed dest/readonly dest/fifo
            readlink dest/d/l; stat -c "links %h" dest/d/f
            chmod 755 dest/readonly; rm dest/readonly/f; chmod 555 dest/readonly; echo x >>dest/f
            echo ---; run; chmod 700 dest/closed; cat dest/readonly/f dest/closed/f dest/f
            stat -c "%n %a" dest/readonly
            chmod -R u+rwx dest; ./restorefs umount mnt'
        "#,
    );
    let parts: Vec<_> = told.split("---\n").collect();
    let [first, second, third] = parts[..] else { panic!("{told}") };
    for (part, needles) in [
        (
            first,
            &[
                "'null': Operation not permitted (os error 1) (only root may make this)",
                "trusted.* could not be set on 1 entry, first on 'f'",
                "entries are yours now, since only root can give them to their owners",
                "code 3",
            ][..],
        ),
        (
            second,
            &[
                "restored 0 entries",
                "trusted.* could not be set on 1 entry, first on 'f'",
                "code 3",
                "dest/f 644 65534 65534 1000000000",
                "dest/d/f 0 65534 65534 1000000000",
                "dest/suid 755 65534 65534 1000000000",
                "dest/d 755 65534 65534 1000000000",
                "dest/closed 0 ",
                "dest/readonly 555 ",
                "/etc/passwd\nlinks 2\n",
            ],
        ),
        (third, &["restored 2 entries", "6\n5\n1\n", "dest/readonly 555"]),
    ] {
        for needle in needles {
            assert!(part.contains(needle), "'{needle}' is not in {part}\nof {told}");
        }
    }
    let yours = |part: &str| part.lines().find(|line| line.contains("are yours now")).map(str::to_owned);
    assert!(yours(first).is_some() && yours(first) == yours(second), "{told}");
    assert!(!second.contains("Permission denied") && !third.contains("Permission denied"), "{told}");
}

#[test]
fn attributes_and_groups_of_an_ordinary_user() {
    needs_fuse!();
    let (dir, home) = with_home();
    shell(
        dir.path(),
        "mkdir -p tree/d home/shared; cd tree; echo 1 >f; echo 2 >prog; mkfifo fifo; ln -s f l
         for name in f d; do setfattr -n user.x -v $name $name; done
         chown -hR 65534:65534 .; chmod 444 f; chmod 2755 prog; chmod 555 d",
    );
    gnu_tar(&dir.path().join("tree"), &home.join("x.tar"), &["--format=pax", "--xattrs", "--xattrs-include=*"]);
    // What is made in a directory with this bit gets its group.
    let told = as_others(
        &home,
        r#"
        chown 65534:4321 shared; chmod 2755 shared
        as 65534 './restorefs mount x.tar mnt -d --spool . && ./restorefs wait mnt
            ./restorefs materialize --no-sync mnt shared --verify; ./restorefs umount mnt
            stat -c "%n %a %g" shared/*; getfattr -n user.x --only-values shared/f; getfattr -n user.x --only-values shared/d'
        "#,
    );
    for line in [
        "shared/f 444 65534",
        "shared/prog 2755 65534",
        "shared/d 555 65534",
        "shared/fifo 644 65534",
        "shared/l 777 65534",
        "fd",
    ] {
        assert!(told.contains(line), "'{line}' is not in {told}");
    }
}

#[test]
fn a_target_that_is_not_theirs() {
    needs_fuse!();
    let (_dir, home) = with_home();
    fs::write(home.join("x.tar"), [large("file", 1000), crate::support::feed::end()].concat()).unwrap();
    let told = as_others(
        &home,
        r#"
        mkdir -m 755 roots
        as 65534 './restorefs mount x.tar mnt -d --spool . && ./restorefs wait mnt
            ./restorefs materialize --no-sync mnt roots 2>&1 || echo "code $?"
            ./restorefs materialize --no-sync mnt roots/below 2>&1 || echo "code $?"; ./restorefs umount mnt'
        ls -A roots
        "#,
    );
    assert!(told.contains("'file': Permission denied") && told.contains("code 3"), "{told}");
    assert!(told.contains("roots/below': Permission denied") && told.ends_with("code 1\n"), "{told}");
}

#[test]
fn a_target_below_its_own_mount() {
    needs_fuse!();
    let (_dir, mount, _) = archive(&[member(Directory, "d/", "", TIME, b""), large("d/file", 1000)]);
    ended(command(&mount.point, &mount.path("d"), &[]).output().unwrap()).with(1).says(&["Read-only file system"]);
    mount.unmount();
}

#[test]
fn what_is_immutable_is_named_and_made_later() {
    needs_fuse!();
    let (dir, mount, target) = archive(&[
        member(Directory, "./", "", TIME, b""),
        member(Directory, "d/", "", TIME, b""),
        large("d/file", 1000),
        large("file", 1000),
    ]);
    fs::write(target.join("file"), "old").unwrap();
    let change = |flag: &str| Command::new("chattr").args([flag, "dest", "dest/file"]).current_dir(dir.path()).output();
    if !change("+i").is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: nothing can be made immutable in {}", dir.path().display());
        return;
    }
    let ended = materialize(&mount, &target, &[]);
    assert!(change("-i").unwrap().status.success());
    ended.with(3).says(&["'.'", "'d'", "'file'", "Operation not permitted", "chattr"]);
    assert_eq!(fs::read(target.join("file")).unwrap(), b"old");
    materialize(&mount, &target, &[]).with(0);
    same_tree(&mount.point, &target);
}
