//! Archives by every tool and in every format, mounted and compared with the packed tree.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::compare::same_tree;
use crate::support::mount::Mount;
use crate::support::pack::{bsdtar, gnu_tar, python_tar};
use crate::support::tree::{self, Features};
use crate::support::{needs_fuse, run};

/// What old GNU headers can carry: base-256 numbers and long names, but nothing beyond the fields of a header.
const GNU: Features = Features { long: true, wide: true, nanoseconds: false, attributes: false, devices: true };
/// The fields of a POSIX header, and names split in two.
const USTAR: Features = Features { long: false, wide: false, nanoseconds: false, attributes: false, devices: true };
const V7: Features = Features { long: false, wide: false, nanoseconds: false, attributes: false, devices: false };
/// libarchive writes a fraction of a second before 1970 as `-2.25` for -1.75 s, which POSIX and GNU tar take for
/// -2.25 s: of fractions and times before 1970 there can be one in a test.
const BSDTAR_PAX: Features = Features { wide: false, ..Features::ALL };
const EVERYTHING: &[&str] = &["--format=pax", "--xattrs", "--xattrs-include=*", "--acls"];

/// Packs a tree, and mounts the archive where it lies, and through a pipe that is held open until all is compared.
fn check(features: Features, pack: impl FnOnce(&Path, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    let (packed, archive) = (dir.path().join("tree"), dir.path().join("x.tar"));
    std::fs::create_dir(&packed).unwrap();
    tree::make(&packed, features);
    pack(&packed, &archive);

    let mount = Mount::file(&archive, &[]);
    mount.wait_clean();
    same_tree(&packed, &mount.point);
    mount.unmount();

    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&std::fs::read(&archive).unwrap()).unwrap();
    mount.wait_clean();
    same_tree(&packed, &mount.point);
    drop(stdin);
    mount.unmount();
}

/// Mounts what a tool writes into a pipe, as it comes from there.
fn check_piped(features: Features, tool: impl FnOnce(&Path) -> Command) {
    let dir = tempfile::tempdir().unwrap();
    tree::make(dir.path(), features);
    let mut tool = tool(dir.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut mount = Mount::start(tool.stdout.take().unwrap().into(), &["-f"], |command| {
        command.arg("-");
    });
    mount.wait_clean();
    assert!(tool.wait().unwrap().success());
    same_tree(dir.path(), &mount.point);
    run(Command::new("umount").arg(&mount.point));
    assert_eq!(mount.wait_front(), Some(0));
}

#[test]
fn gnu_tar_pax_with_everything() {
    needs_fuse!();
    check(Features::ALL, |tree, out| gnu_tar(tree, out, EVERYTHING));
}

#[test]
fn gnu_tar_gnu() {
    needs_fuse!();
    check(GNU, |tree, out| gnu_tar(tree, out, &["--format=gnu"]));
}

#[test]
fn gnu_tar_oldgnu() {
    needs_fuse!();
    check(GNU, |tree, out| gnu_tar(tree, out, &["--format=oldgnu"]));
}

#[test]
fn gnu_tar_ustar() {
    needs_fuse!();
    check(USTAR, |tree, out| gnu_tar(tree, out, &["--format=ustar"]));
}

#[test]
fn gnu_tar_v7() {
    needs_fuse!();
    check(V7, |tree, out| gnu_tar(tree, out, &["--format=v7"]));
}

#[test]
fn gnu_tar_through_a_pipe() {
    needs_fuse!();
    check_piped(Features::ALL, |tree| {
        let mut tar = Command::new("tar");
        tar.args(EVERYTHING).arg("-C").arg(tree).args(["-cf", "-", "."]);
        tar
    });
}

#[test]
fn bsdtar_pax_with_everything() {
    needs_fuse!();
    check(BSDTAR_PAX, |tree, out| bsdtar(tree, out, &["--format=pax", "--xattrs", "--acls"]));
}

#[test]
fn bsdtar_pax_with_whole_seconds() {
    needs_fuse!();
    let features = Features { nanoseconds: false, ..Features::ALL };
    check(features, |tree, out| bsdtar(tree, out, &["--format=pax", "--xattrs", "--acls"]));
}

#[test]
fn bsdtar_gnutar() {
    needs_fuse!();
    // libarchive clamps times to what eleven octal digits say in this format.
    check(Features { wide: false, ..GNU }, |tree, out| bsdtar(tree, out, &["--format=gnutar"]));
}

#[test]
fn bsdtar_ustar() {
    needs_fuse!();
    check(USTAR, |tree, out| bsdtar(tree, out, &["--format=ustar"]));
}

#[test]
fn bsdtar_v7() {
    needs_fuse!();
    check(V7, |tree, out| bsdtar(tree, out, &["--format=v7"]));
}

#[test]
fn bsdtar_through_a_pipe() {
    needs_fuse!();
    check_piped(BSDTAR_PAX, |tree| {
        let mut tar = Command::new("bsdtar");
        // It warns of the name that is not UTF-8, and packs it.
        tar.stderr(Stdio::null());
        tar.args(["--format=pax", "--xattrs", "--acls"]).arg("-C").arg(tree).args(["-cf", "-", "."]);
        tar
    });
}

#[test]
fn python_pax() {
    needs_fuse!();
    check(GNU, |tree, out| python_tar(tree, out, "PAX_FORMAT"));
}

#[test]
fn python_gnu() {
    needs_fuse!();
    check(GNU, |tree, out| python_tar(tree, out, "GNU_FORMAT"));
}

#[test]
fn python_ustar() {
    needs_fuse!();
    check(USTAR, |tree, out| python_tar(tree, out, "USTAR_FORMAT"));
}

#[test]
fn python_through_a_pipe() {
    needs_fuse!();
    check_piped(GNU, |tree| {
        let mut tar = Command::new("python3");
        let script = "import sys, tarfile\nwith tarfile.open(fileobj=sys.stdout.buffer, mode='w|') as archive:\n    \
            archive.add(sys.argv[1], '.')\n";
        tar.args(["-c", script]).arg(tree);
        tar
    });
}
