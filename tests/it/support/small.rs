//! An archive with one of everything, small enough to be looked at byte by byte.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Timespec, Timestamps, makedev, mknodat, utimensat};

use super::pack::gnu_tar;
use super::tree::bytes;

/// As GNU writes it by itself, and as pax with attributes.
pub const FORMATS: &[&[&str]] = &[&["--format=gnu"], &["--format=pax", "--xattrs", "--xattrs-include=user.*"]];

/// Packs one of everything with GNU tar in an empty directory.
pub fn archive(dir: &Path, args: &[&str]) -> PathBuf {
    let root = dir.join("tree");
    fs::create_dir_all(root.join("dir/inner")).unwrap();
    for (name, len) in [("0", 0), ("10", 10), ("512", 512), ("600", 600), ("pages", 4500)] {
        fs::write(root.join("dir").join(name), bytes(len as u64, len)).unwrap();
    }
    fs::write(root.join("dir").join("n".repeat(150)), b"under a long name").unwrap();
    let sparse = File::create(root.join("dir/sparse")).unwrap();
    sparse.write_all_at(&bytes(1, 4096), 8192).unwrap();
    sparse.write_all_at(&bytes(2, 10), 20_480).unwrap();
    fs::hard_link(root.join("dir/10"), root.join("dir/ten again")).unwrap();
    fs::hard_link(root.join("dir/10"), root.join("dir").join("t".repeat(120))).unwrap();
    symlink("dir/600", root.join("link")).unwrap();
    symlink("../nowhere", root.join("dir/dangling")).unwrap();
    symlink("l".repeat(140), root.join("dir/long target")).unwrap();
    symlink("m".repeat(130), root.join("dir").join("s".repeat(130))).unwrap();
    mknodat(CWD, root.join("dir/fifo"), FileType::Fifo, 0o640.into(), 0).unwrap();
    mknodat(CWD, root.join("dir/device"), FileType::CharacterDevice, 0o600.into(), makedev(1, 3)).unwrap();
    fs::set_permissions(root.join("dir/inner"), fs::Permissions::from_mode(0o1711)).unwrap();
    fs::set_permissions(root.join("dir/600"), fs::Permissions::from_mode(0o4755)).unwrap();
    lchown(root.join("dir/600"), Some(1234), Some(4321)).unwrap();
    lchown(root.join("link"), Some(5), Some(6)).unwrap();
    rustix::fs::lsetxattr(root.join("dir/600"), "user.one", b"value", rustix::fs::XattrFlags::empty()).unwrap();
    // A receiver's own root, made just now, must not look alike.
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, &root, &times, AtFlags::empty()).unwrap();
    let out = dir.join("small.tar");
    gnu_tar(&root, &out, &[&["--sparse", "--sort=name", "--blocking-factor=1"], args].concat());
    out
}
