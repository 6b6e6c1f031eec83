//! Archives by every tool and in every format, restored, and compared with the packed tree.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::{command, ended, materialize};
use crate::support::compare::{data_ranges, same_tree};
use crate::support::mount::Mount;
use crate::support::pack::{bsdtar, gnu_tar, python_tar};
use crate::support::tree::{self, Features};
use crate::support::{needs_fuse, run, shell};

const GNU: Features = Features { long: true, wide: true, nanoseconds: false, attributes: false, devices: true };
const USTAR: Features = Features { long: false, wide: false, nanoseconds: false, attributes: false, devices: true };
const V7: Features = Features { long: false, wide: false, nanoseconds: false, attributes: false, devices: false };
/// What libarchive writes for a fraction of a second before 1970, nobody else reads so.
const BSDTAR_PAX: Features = Features { wide: false, ..Features::ALL };

/// Packs a tree; restores it from the archive mounted where it lies, and out of a pipe.
fn check(features: Features, holes: bool, pack: impl FnOnce(&Path, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    let (packed, archive) = (dir.path().join("tree"), dir.path().join("x.tar"));
    std::fs::create_dir(&packed).unwrap();
    tree::make(&packed, features);
    pack(&packed, &archive);
    for piped in [false, true] {
        let (mount, stdin) = if piped {
            let (mount, mut stdin) = Mount::pipe(&[]);
            stdin.write_all(&std::fs::read(&archive).unwrap()).unwrap();
            (mount, Some(stdin))
        } else {
            (Mount::file(&archive, &[]), None)
        };
        let dest = dir.path().join(format!("restored-{piped}"));
        materialize(&mount, &dest, &[]).with(0);
        same_tree(&packed, &dest);
        if holes {
            same_data(&packed.join("holes"), &dest.join("holes"));
        }
        let again = materialize(&mount, &dest, &[]).with(0);
        assert_eq!(again.count("entries"), 0, "{}", again.text);
        drop(stdin);
        mount.unmount();
    }
}

fn same_data(packed: &Path, restored: &Path) {
    for entry in std::fs::read_dir(packed).unwrap() {
        let name = entry.unwrap().file_name();
        assert_eq!(data_ranges(&packed.join(&name)), data_ranges(&restored.join(&name)), "{name:?}");
    }
}

macro_rules! exact {
    ($($name:ident: $features:expr, $holes:expr, $pack:expr;)*) => {$(
        #[test]
        fn $name() {
            needs_fuse!();
            check($features, $holes, $pack);
        }
    )*};
}

exact! {
    gnu_tar_pax: Features::ALL, true, |tree, out| {
        gnu_tar(tree, out, &["--format=pax", "--sparse", "--xattrs", "--xattrs-include=*", "--acls"]);
    };
    gnu_tar_gnu: GNU, true, |tree, out| gnu_tar(tree, out, &["--format=gnu", "--sparse"]);
    gnu_tar_oldgnu: GNU, false, |tree, out| gnu_tar(tree, out, &["--format=oldgnu"]);
    gnu_tar_ustar: USTAR, false, |tree, out| gnu_tar(tree, out, &["--format=ustar"]);
    gnu_tar_v7: V7, false, |tree, out| gnu_tar(tree, out, &["--format=v7"]);
    // It packs holes by itself in this format.
    bsdtar_pax: BSDTAR_PAX, true, |tree, out| bsdtar(tree, out, &["--format=pax", "--xattrs", "--acls"]);
    bsdtar_gnutar: Features { wide: false, ..GNU }, false, |tree, out| bsdtar(tree, out, &["--format=gnutar"]);
    bsdtar_ustar: USTAR, false, |tree, out| bsdtar(tree, out, &["--format=ustar"]);
    bsdtar_v7: V7, false, |tree, out| bsdtar(tree, out, &["--format=v7"]);
    python_pax: GNU, false, |tree, out| python_tar(tree, out, "PAX_FORMAT");
    python_gnu: GNU, false, |tree, out| python_tar(tree, out, "GNU_FORMAT");
    python_ustar: USTAR, false, |tree, out| python_tar(tree, out, "USTAR_FORMAT");
}

#[test]
fn with_sync_and_without_json() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let (packed, archive) = (dir.path().join("tree"), dir.path().join("x.tar"));
    std::fs::create_dir(&packed).unwrap();
    tree::make(&packed, USTAR);
    gnu_tar(&packed, &archive, &["--format=gnu"]);
    let mount = Mount::file(&archive, &[]);
    let dest = dir.path().join("dest");
    let output = run(Command::new(crate::support::mount::RESTOREFS).arg("materialize").arg(&mount.point).arg(&dest));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("restored "));
    same_tree(&packed, &dest);
    mount.unmount();
}

#[test]
fn what_the_target_would_give_by_itself_is_not_taken() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    shell(dir.path(), "mkdir -p tree/d/e; echo 1 >tree/f; echo 2 >tree/d/f; mkfifo tree/d/e/p; chmod 640 tree/f");
    let archive = dir.path().join("x.tar");
    gnu_tar(&dir.path().join("tree"), &archive, &["--format=pax"]);
    let mount = Mount::file(&archive, &[]);
    // The group and the ACL of the directory that something is made in go to what is made.
    shell(
        dir.path(),
        "mkdir -p dest/d; chgrp 4321 dest dest/d; chmod g+s dest dest/d; setfacl -d -m u:1234:rwx dest dest/d",
    );
    let dest = dir.path().join("dest");
    materialize(&mount, &dest, &[]).with(0);
    // They stay with what was there before.
    shell(dir.path(), "setfacl -b dest dest/d");
    same_tree(&dir.path().join("tree"), &dest);
    mount.unmount();
}

#[test]
fn more_directories_than_files_can_be_open() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    shell(dir.path(), "mkdir tree; cd tree; mkdir $(seq 3000); for n in $(seq 3000); do echo $n >$n/f; done");
    let (tree, archive) = (dir.path().join("tree"), dir.path().join("x.tar"));
    gnu_tar(&tree, &archive, &["--format=gnu", "--mtime=@1000000000"]);
    let mount = Mount::file(&archive, &[]);
    let dest = dir.path().join("dest");
    let run = command(&mount.point, &dest, &[]);
    let mut limited = Command::new("prlimit");
    limited.args(["--nofile=256:256", "--"]).arg(run.get_program()).args(run.get_args());
    ended(limited.output().unwrap()).with(0);
    crate::support::compare::same_tree_except(&tree, &dest, &["--no-times"]);
    mount.unmount();
}
