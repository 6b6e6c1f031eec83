//! Killed at any point and run again: the result is right, and meanwhile nothing stands where a link belongs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use super::{command, materialize};
use crate::support::compare::same_tree;
use crate::support::disk::Disk;
use crate::support::mount::Mount;
use crate::support::pack::gnu_tar;
use crate::support::process::Group;
use crate::support::{needs_fuse, shell, wait_until};

/// Directories, in each of them files, links to the file before, second names of it, and something large.
const DIRECTORIES: usize = 12;
const FILES: usize = 40;

fn target(dir: usize, n: usize) -> String {
    ["/etc/no such file", "../up", "plain"][n % 3].to_owned() + &format!("/{dir}/{n}")
}

fn make(root: &Path) {
    for dir in 0..DIRECTORIES {
        let at = root.join(format!("d{dir}"));
        fs::create_dir(&at).unwrap();
        for n in 0..FILES {
            fs::write(at.join(format!("f{n}")), vec![n as u8; 1000 + n]).unwrap();
            symlink(target(dir, n), at.join(format!("l{n}"))).unwrap();
            if n % 4 == 0 {
                fs::hard_link(at.join(format!("f{n}")), at.join(format!("h{n}"))).unwrap();
            }
        }
        fs::write(at.join("large"), vec![7; 700_000]).unwrap();
    }
    shell(
        root,
        "chmod 4755 d1/f1; chown 7:7 d2; chown -h 8:8 d3/l3; setfattr -n user.x -v y d4/f4; touch -d @1000000000 d*",
    );
}

/// The number of names below, whatever becomes of them meanwhile. `check` sees every link.
fn count(root: &Path, check: &mut dyn FnMut(&str, &Path)) -> usize {
    let mut names = 0;
    for dir in fs::read_dir(root).into_iter().flatten() {
        names += 1;
        for entry in fs::read_dir(dir.unwrap().path()).into_iter().flatten().flatten() {
            names += 1;
            if let Ok(target) = fs::read_link(entry.path()) {
                check(entry.path().strip_prefix(root).unwrap().to_str().unwrap(), &target);
            }
        }
    }
    names
}

/// Every link that there is leads where it is to lead, and where a link is to be, nothing else is.
fn links_are_right(root: &Path) {
    count(root, &mut |path, found| {
        let (dir, name) = path.split_once('/').unwrap();
        if !name.starts_with('.') {
            assert_eq!(found, Path::new(&target(dir[1..].parse().unwrap(), name[1..].parse().unwrap())), "{path}");
        }
    });
    for dir in 0..DIRECTORIES {
        for n in 0..FILES {
            if let Ok(there) = root.join(format!("d{dir}/l{n}")).symlink_metadata() {
                assert!(there.is_symlink(), "d{dir}/l{n}");
            }
        }
    }
}

/// Kills it when it has made about so many names.
fn kill_at(mount: &Mount, dest: &Path, names: usize, args: &[&str]) {
    let mut running = Group::start(command(&mount.point, dest, args).stdout(Stdio::null()).stderr(Stdio::null()));
    wait_until("it has come that far", || (count(dest, &mut |_, _| {}) >= names || running.has_ended()).then_some(()));
    if !running.has_ended() {
        running.kill();
        running.wait();
    }
    links_are_right(dest);
}

fn check(iterations: usize, args: &[&str], prepare: impl Fn(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let (packed, archive) = (dir.path().join("tree"), dir.path().join("x.tar"));
    let disk = Disk::new("tmpfs", "size=200M");
    fs::create_dir(&packed).unwrap();
    make(&packed);
    gnu_tar(&packed, &archive, &["--format=pax", "--xattrs", "--xattrs-include=user.*", "--sort=name"]);
    let mount = Mount::file(&archive, &[]);
    let all = count(&packed, &mut |_, _| {});
    for n in 0..iterations {
        let dest = disk.path().join("dest");
        fs::create_dir(&dest).unwrap();
        prepare(&dest);
        // Once, twice, or three times, at places that lie all over it.
        for time in 0..=n % 3 {
            kill_at(&mount, &dest, (n * 7919 + time * 101) % all, args);
        }
        materialize(&mount, &dest, args).with(0);
        same_tree(&packed, &dest);
        fs::remove_dir_all(&dest).unwrap();
    }
    mount.unmount();
}

#[test]
fn at_any_point_of_a_restore() {
    needs_fuse!();
    check(30, &[], |_| {});
}

#[test]
fn at_any_point_of_a_restore_that_keeps_what_is_there() {
    needs_fuse!();
    check(10, &["--overwrite", "never"], |_| {});
    check(10, &["--overwrite", "if-newer"], |_| {});
}

#[test]
fn while_it_replaces_what_is_there() {
    needs_fuse!();
    check(30, &[], |dest| {
        for dir in 0..DIRECTORIES {
            fs::create_dir(dest.join(format!("d{dir}"))).unwrap();
            for n in 0..FILES {
                fs::write(dest.join(format!("d{dir}/f{n}")), "old").unwrap();
            }
            fs::write(dest.join(format!("d{dir}/large")), vec![1; 700_000]).unwrap();
        }
    });
}
