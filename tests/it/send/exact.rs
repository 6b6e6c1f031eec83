//! What tar, bsdtar and a mount make of it is the tree.

use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, mkdirat, openat};

use super::send;
use crate::support::compare::{data_ranges, same_tree};
use crate::support::mount::{Mount, RESTOREFS};
use crate::support::tree::{self, Features, bytes};
use crate::support::{needs_fuse, run, shell};

/// What libarchive reads as a fraction of a second before 1970, nobody else writes so.
const BSDTAR: Features = Features { wide: false, ..Features::ALL };

/// More than the tree of all tests has.
fn more(root: &Path) {
    shell(
        root,
        "mkdir more; cd more; mkdir -m 1777 sticky; printf x >labelled; printf x >named
         setfattr -n security.selinux -v 0x73797374656d5f753a6f626a6563745f723a6574635f743a733000 labelled
         setfattr -n user.empty labelled
         ln -s labelled link; setfattr -h -n trusted.link -v value link; ln link 'link again'
         mkfifo fifo; ln fifo 'fifo again'; setfattr -n trusted.fifo -v value fifo
         setfacl -m u:daemon:rw,u:99999:r,g:daemon:r named; touch -d @-5 past; touch -d @20000000000 future
         chown 4294967294:4294967294 future",
    );
    fs::write(root.join("more/\u{fc}"), "u").unwrap();
    let long = root.join("more").join("l\u{f6}ng".repeat(50)).join("\u{fc}".repeat(120));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("f"), "f").unwrap();
    let mut raw = CString::new(b"\xff".repeat(120)).unwrap();
    let at = fs::File::open(root.join("more")).unwrap();
    mkdirat(&at, &*raw, Mode::RWXU).unwrap();
    let at = openat(&at, &*raw, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    raw = CString::new(b"\xfe".repeat(200)).unwrap();
    drop(openat(&at, &*raw, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap());
}

fn packed(features: Features, dir: &Path) -> Vec<u8> {
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    tree::make(&tree, features);
    more(&tree);
    // Of the root too.
    shell(dir, "chmod 751 tree; chown 12:34 tree; touch -d @1000000000.5 tree");
    send(&tree, &["."]).with(0).archive
}

fn extract(command: &mut Command, archive: &[u8], into: &Path) {
    fs::create_dir(into).unwrap();
    let mut child = command.current_dir(into).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(archive).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.is_empty(), "{command:?}: {told}");
}

fn same_data(packed: &Path, restored: &Path) {
    for entry in fs::read_dir(packed).unwrap() {
        let name = entry.unwrap().file_name();
        assert_eq!(data_ranges(&packed.join(&name)), data_ranges(&restored.join(&name)), "{name:?}");
    }
}

#[test]
fn gnu_tar() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = packed(Features::ALL, dir.path());
    let mut tar = Command::new("tar");
    tar.args(["-xpf", "-", "--xattrs", "--xattrs-include=*", "--acls", "--selinux", "--numeric-owner"]);
    // It cannot know of records that say how names are to be read, and says so; of others there must be none.
    let tar = tar.args(["--warning=no-unknown-keyword", "--warning=no-timestamp"]);
    extract(tar, &archive, &dir.path().join("out"));
    same_tree(&dir.path().join("tree"), &dir.path().join("out"));
    same_data(&dir.path().join("tree/holes"), &dir.path().join("out/holes"));
}

#[test]
fn bsdtar() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    packed(BSDTAR, dir.path());
    // It does not give the label its NUL back, which is for SELinux to do; nor, to "./", its time.
    shell(dir.path(), "setfattr -x security.selinux tree/more/labelled");
    let archive = send(dir.path(), &["tree"]).with(0).archive;
    let mut bsdtar = Command::new("bsdtar");
    // In the locale C it takes no long name beyond ASCII from anybody.
    let bsdtar = bsdtar.args(["-xpf", "-", "--numeric-owner", "--xattrs", "--acls"]).env("LC_ALL", "C.UTF-8");
    extract(bsdtar, &archive, &dir.path().join("out"));
    same_tree(&dir.path().join("tree"), &dir.path().join("out/tree"));
    same_data(&dir.path().join("tree/holes"), &dir.path().join("out/tree/holes"));
}

#[test]
fn a_mount() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = packed(Features::ALL, dir.path());
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&archive).unwrap();
    drop(stdin);
    mount.wait_clean();
    same_tree(&dir.path().join("tree"), &mount.point);
    crate::support::compare::same_holes(&dir.path().join("tree/holes"), &mount.path("holes"));
    // What a mount shows can be sent too, and is the same archive.
    let again = send(&mount.point, &["."]).with(0).archive;
    assert!(again == archive, "a mount of an archive makes another archive");
    mount.unmount();
}

#[test]
fn straight_from_one_command_to_the_next() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("tree/d")).unwrap();
    for size in [1, 300_000, 3_000_000] {
        fs::write(dir.path().join(format!("tree/d/{size}")), bytes(size, size as usize)).unwrap();
    }
    let line = format!("mkdir out; '{RESTOREFS}' send tree - 2>/dev/null | tar xf - -C out");
    shell(dir.path(), &line);
    same_tree(&dir.path().join("tree"), &dir.path().join("out/tree"));
}

/// Too deep for any path: no tool compares that, but what is restored makes the same archive again.
#[test]
fn deeper_than_a_path_can_be() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    let name = "d".repeat(200);
    let mut at = fs::File::open(dir.path().join("tree")).unwrap().into();
    for n in 0..40 {
        mkdirat(&at, &*name, Mode::RWXU).unwrap();
        let file = openat(&at, format!("f{n}"), OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
        rustix::io::write(file, b"deep down").unwrap();
        at = openat(&at, &*name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let archive = send(&dir.path().join("tree"), &["."]).with(0).archive;
    fs::write(dir.path().join("x.tar"), &archive).unwrap();
    let mount = Mount::file(&dir.path().join("x.tar"), &[]);
    // GNU tar and bsdtar cannot restore the times of directories so deep.
    run(Command::new(RESTOREFS).args(["materialize", "--no-sync"]).arg(&mount.point).arg(dir.path().join("out")));
    assert!(send(&dir.path().join("out"), &["."]).with(0).archive == archive);
    assert!(send(&mount.point, &["."]).with(0).archive == archive);
    mount.unmount();
    run(Command::new("rm").arg("-rf").arg(dir.path().join("tree")).arg(dir.path().join("out")));
}

#[test]
fn the_owners_of_an_acl_by_name_and_number() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    shell(dir.path(), "mkdir tree; echo x >tree/f; setfacl -m u:daemon:rw,g:12345:r tree/f");
    let archive = send(dir.path(), &["tree"]).with(0).archive;
    let needle = b"SCHILY.acl.access=user::rw-,user:daemon:rw-:1,group::r--,group:12345:r--,mask::rw-,other::r--\n";
    assert!(archive.windows(needle.len()).any(|window| window == needle));
}

#[test]
fn sockets_are_left_out_and_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    let _socket = UnixListener::bind(dir.path().join("tree/socket")).unwrap();
    let ended = send(dir.path(), &["tree"]).with(0).says(&["'tree/socket': it is left out: tar has no sockets"]);
    assert_eq!(ended.names(), ["tree/"]);
}

#[test]
fn many_in_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    for n in 0..100_000 {
        fs::File::create(dir.path().join(format!("tree/{n}"))).unwrap();
    }
    let names = send(dir.path(), &["tree"]).with(0).names();
    assert_eq!(names.len(), 100_001);
    assert!(names.is_sorted());
}
