//! Files with holes, in every way that archives write them down: the same contents, and the same holes.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::support::compare::{data_ranges, same_holes, same_tree};
use crate::support::mount::Mount;
use crate::support::needs_fuse;
use crate::support::pack::{bsdtar, gnu_tar};
use crate::support::tree::{self, Features};

const PLAIN: Features = Features { long: false, wide: false, nanoseconds: false, attributes: false, devices: false };

/// Packs a tree with holes, and mounts the archive where it lies, and through a pipe, where holes become such of blobs.
fn check(pack: impl FnOnce(&Path, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    let (packed, archive) = (dir.path().join("tree"), dir.path().join("x.tar"));
    std::fs::create_dir(&packed).unwrap();
    tree::make(&packed, PLAIN);
    many_extents(&packed.join("holes"));
    assert_eq!(data_ranges(&packed.join("holes/very many")).len(), EXTENTS);
    pack(&packed, &archive);
    // An archive in which the holes are stored would pass everything else here.
    assert!(archive.metadata().unwrap().len() < 6 << 20, "it was not packed sparse");

    let mount = Mount::file(&archive, &[]);
    mount.wait_clean();
    same_tree(&packed, &mount.point);
    same_holes(&packed.join("holes"), &mount.path("holes"));
    mount.unmount();

    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&std::fs::read(&archive).unwrap()).unwrap();
    mount.wait_clean();
    same_tree(&packed, &mount.point);
    same_holes(&packed.join("holes"), &mount.path("holes"));
    drop(stdin);
    mount.unmount();
}

/// More than the header and five extension blocks of old GNU tar take.
const EXTENTS: usize = 150;

fn many_extents(dir: &Path) {
    let file = File::create(dir.join("very many")).unwrap();
    for n in 0..EXTENTS as u64 {
        file.write_all_at(&tree::bytes(n, 4096), n * 65_536).unwrap();
    }
    file.set_len(EXTENTS as u64 * 65_536).unwrap();
    // No fractions of seconds: not every format here has them.
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    file.set_modified(time).unwrap();
    File::open(dir).unwrap().set_modified(time).unwrap();
}

#[test]
fn gnu_tar_gnu() {
    needs_fuse!();
    check(|tree, out| gnu_tar(tree, out, &["--format=gnu", "--sparse"]));
}

#[test]
fn gnu_tar_oldgnu() {
    needs_fuse!();
    check(|tree, out| gnu_tar(tree, out, &["--format=oldgnu", "--sparse"]));
}

#[test]
fn gnu_tar_pax_0_0() {
    needs_fuse!();
    check(|tree, out| gnu_tar(tree, out, &["--format=pax", "--sparse", "--sparse-version=0.0"]));
}

#[test]
fn gnu_tar_pax_0_1() {
    needs_fuse!();
    check(|tree, out| gnu_tar(tree, out, &["--format=pax", "--sparse", "--sparse-version=0.1"]));
}

#[test]
fn gnu_tar_pax_1_0() {
    needs_fuse!();
    check(|tree, out| gnu_tar(tree, out, &["--format=pax", "--sparse", "--sparse-version=1.0"]));
}

#[test]
fn bsdtar_pax() {
    needs_fuse!();
    check(|tree, out| bsdtar(tree, out, &["--format=pax"]));
}
