//! What becomes of archives that are not simply a tree: joined, empty, labelled, appended to, of one day's changes. And
//! whether docs/policy.md names tests that exist.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::compare::same_tree;
use crate::support::mount::Mount;
use crate::support::{needs_fuse, run, shell};

/// A directory in which a line of shell has made `x.tar`.
fn made(line: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    shell(dir.path(), line);
    dir
}

/// Mounts `x.tar` in `dir`, and waits for the end.
fn mounted(dir: &TempDir, args: &[&str]) -> (Mount, Value) {
    let mount = Mount::file(&dir.path().join("x.tar"), args);
    let status = mount.wait_end();
    (mount, status)
}

#[track_caller]
fn expect(status: &Value, verdict: &str, refused: u64, warnings: u64) {
    assert_eq!(status["end"]["verdict"], verdict, "{status:#}");
    assert_eq!((&status["refused"], &status["warnings"]), (&refused.into(), &warnings.into()), "{status:#}");
}

/// Names in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

const JOINED: &str = "echo 1 >a; echo 2 >b; tar -cf a.tar a; tar -cf b.tar b; cat a.tar b.tar >x.tar";

#[test]
fn joined_archives_end_at_the_first_end_marker() {
    needs_fuse!();
    let (mount, status) = mounted(&made(JOINED), &[]);
    expect(&status, "complete", 0, 1);
    assert_eq!(names(&mount.point), ["a"]);
    mount.wait_printed("--concatenated");
    assert_eq!(mount.unmount(), Some(0));
}

#[test]
fn joined_archives_are_read_on_when_asked_for() {
    needs_fuse!();
    let dir = made(JOINED);
    let (mount, status) = mounted(&dir, &["--concatenated"]);
    expect(&status, "complete", 0, 0);
    assert_eq!(names(&mount.point), ["a", "b"]);
    assert_eq!(fs::read(mount.path("b")).unwrap(), b"2\n");
    assert_eq!(mount.unmount(), Some(0));

    // Through a pipe the end of the stream is the only end there is.
    let (mount, mut stdin) = Mount::pipe(&["--concatenated"]);
    stdin.write_all(&fs::read(dir.path().join("x.tar")).unwrap()).unwrap();
    mount.wait_for("b");
    assert_eq!(fs::read(mount.path("b")).unwrap(), b"2\n");
    assert_eq!(mount.status()["end"], Value::Null);
    drop(stdin);
    mount.wait_clean();
    assert_eq!(mount.unmount(), Some(0));
}

#[test]
fn an_empty_archive_is_an_empty_tree() {
    needs_fuse!();
    let (mount, status) = mounted(&made("tar -cf x.tar -T /dev/null"), &[]);
    expect(&status, "complete", 0, 0);
    assert_eq!(names(&mount.point), [""; 0]);
    assert_eq!(mount.unmount(), Some(0));
}

#[test]
fn a_volume_label_is_told_and_is_no_file() {
    needs_fuse!();
    for format in ["gnu", "pax"] {
        let line = format!("echo 1 >a; tar --format={format} -V 'Tuesday, all of it' -cf x.tar a");
        let (mount, status) = mounted(&made(&line), &[]);
        expect(&status, "complete", 0, 0);
        assert_eq!(status["label"], "Tuesday, all of it", "{format}");
        assert_eq!(names(&mount.point), ["a"]);
        assert_eq!(mount.unmount(), Some(0));
    }
}

#[test]
fn incremental_archives_are_trees_without_their_listings() {
    needs_fuse!();
    for format in ["gnu", "pax"] {
        let dir = made(&format!(
            "mkdir -p t/d/e; touch -d @1000000000 t/d/a t/d/e t/d t; tar -C t --format={format} -g snap -cf x.tar ."
        ));
        let (mount, status) = mounted(&dir, &[]);
        expect(&status, "complete", 0, 0);
        same_tree(&dir.path().join("t"), &mount.point);
        assert_eq!(mount.unmount(), Some(0));
    }
}

#[test]
fn of_two_members_with_one_name_the_later_wins() {
    needs_fuse!();
    let line = "echo first >a; mkdir d; echo x >d/f; tar -cf x.tar a d/f; echo the second >a; tar -rf x.tar a";
    let dir = made(line);
    let (mount, status) = mounted(&dir, &[]);
    expect(&status, "complete", 0, 0);
    assert_eq!(names(&mount.point), ["a", "d"]);
    assert_eq!(fs::read(mount.path("a")).unwrap(), b"the second\n");
    assert_eq!(mount.unmount(), Some(0));

    // Whoever had the first open keeps it.
    let archive = fs::read(dir.path().join("x.tar")).unwrap();
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&archive[..1024]).unwrap();
    mount.wait_for("a");
    let mut first = File::open(mount.path("a")).unwrap();
    let ino = first.metadata().unwrap().ino();
    stdin.write_all(&archive[1024..]).unwrap();
    mount.wait_clean();
    assert_eq!(fs::read(mount.path("a")).unwrap(), b"the second\n");
    assert_ne!(mount.path("a").metadata().unwrap().ino(), ino);
    let mut contents = String::new();
    first.read_to_string(&mut contents).unwrap();
    assert_eq!(contents, "first\n");
    drop((first, stdin));
    assert_eq!(mount.unmount(), Some(0));
}

/// `a` and `b` are one file; its first name is packed behind the second.
const LINK_BEFORE_ITS_TARGET: &str = "echo 1 >a; ln a b; tar -cf x.tar a b; tar --delete -f x.tar a; tar -rf x.tar a";

#[test]
fn a_hard_link_waits_for_a_later_member() {
    needs_fuse!();
    let (mount, status) = mounted(&made(LINK_BEFORE_ITS_TARGET), &[]);
    expect(&status, "complete", 0, 0);
    let (a, b) = (mount.path("a").metadata().unwrap(), mount.path("b").metadata().unwrap());
    assert_eq!((a.ino(), a.nlink(), b.nlink()), (b.ino(), 2, 2));
    assert_eq!(fs::read(mount.path("b")).unwrap(), b"1\n");
    assert_eq!(mount.unmount(), Some(0));
}

#[test]
fn a_hard_link_to_what_is_not_there_is_refused_by_name() {
    needs_fuse!();
    let line = "echo 1 >a; echo 3 >c; ln a b; tar -cf x.tar a b c; tar --delete -f x.tar a";
    let (mount, status) = mounted(&made(line), &[]);
    expect(&status, "complete", 1, 0);
    assert_eq!(status["problems"][0]["path"], "b", "{status:#}");
    assert_eq!(names(&mount.point), ["c"]);
    assert_eq!(mount.unmount(), Some(3));
}

#[test]
fn absolute_names_stay_below_the_mount() {
    needs_fuse!();
    let dir = made("mkdir d; echo 1 >d/a; ln d/a d/b; ln -s /d/a d/c; tar --format=pax -cPf x.tar $PWD/d");
    let (mount, status) = mounted(&dir, &[]);
    expect(&status, "complete", 0, 1);
    let inside = mount.point.join(dir.path().canonicalize().unwrap().strip_prefix("/").unwrap()).join("d");
    same_tree(&dir.path().join("d"), &inside);
    // What a symbolic link says is its own affair.
    assert_eq!(fs::read_link(inside.join("c")).unwrap(), Path::new("/d/a"));
    assert_eq!(mount.unmount(), Some(0));
}

#[test]
fn a_global_header_speaks_for_all_members() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let script = "import io, sys, tarfile\n\
        records = {'comment': 'of git', 'mtime': '-7.25', 'uid': '1234', 'SCHILY.xattr.user.all': 'of them'}\n\
        with tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT, pax_headers=records) as archive:\n    \
            archive.addfile(tarfile.TarInfo('a'))\n    \
            own = tarfile.TarInfo('b')\n    \
            own.pax_headers = {'mtime': '1.5', 'uid': '99'}\n    \
            archive.addfile(own)\n";
    run(Command::new("python3").args(["-c", script]).arg(dir.path().join("x.tar")));
    let (mount, status) = mounted(&dir, &[]);
    expect(&status, "complete", 0, 0);
    let of = |name: &str| {
        let metadata = mount.path(name).metadata().unwrap();
        (metadata.uid(), metadata.mtime(), metadata.mtime_nsec())
    };
    assert_eq!((of("a"), of("b")), ((1234, -8, 750_000_000), (99, 1, 500_000_000)));
    let told = shell(&mount.point, "getfattr -n user.all --only-values a b");
    assert_eq!(told, "of themof them");
    assert_eq!(mount.unmount(), Some(0));
}

#[test]
fn what_git_archives_is_taken_with_its_global_header() {
    needs_fuse!();
    let dir = made(
        "mkdir t; cd t; git init -q; echo 1 >a; ln -s a b; git add .; \
         git -c user.name=u -c user.email=e@example.org commit -qm m; git archive -o ../x.tar HEAD",
    );
    let (mount, status) = mounted(&dir, &[]);
    expect(&status, "complete", 0, 0);
    assert_eq!(names(&mount.point), ["a", "b"]);
    assert_eq!(fs::read(mount.path("b")).unwrap(), b"1\n");
    assert_eq!(mount.unmount(), Some(0));
}

/// What stands between backquotes as `FILE: TEST`.
fn cited(row: &str) -> Vec<(&str, &str)> {
    row.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs: ")).collect()
}

#[test]
fn each_row_of_the_policy_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let policy = fs::read_to_string(root.join("docs/policy.md")).unwrap();
    let mut rows = 0;
    // The first section says what the outcomes are.
    for section in policy.split("\n## ").skip(1) {
        for row in section.lines().filter(|line| line.starts_with('|')).skip(2) {
            rows += 1;
            let tests = cited(row);
            assert!(!tests.is_empty(), "no test: {row}");
            for (file, name) in tests {
                let text =
                    fs::read_to_string(root.join(format!("{file}.rs"))).unwrap_or_else(|e| panic!("{file}: {e}"));
                assert!(text.contains(&format!("#[test]\nfn {name}()")), "no such test: {file}.rs: {name}");
            }
        }
    }
    assert!(rows > 40, "{rows}");
}
