//! A tree with everything in it that an archive format can carry.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Timespec, Timestamps, makedev, mknodat, utimensat};

use super::shell;

/// What a format can carry beyond modes, owners, times in seconds, links, devices and plain names.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// Names and targets of any length.
    pub long: bool,
    /// Times before 1970, and numbers of owners beyond seven octal digits.
    pub wide: bool,
    /// Fractions of seconds.
    pub nanoseconds: bool,
    /// Extended attributes, capabilities and ACLs.
    pub attributes: bool,
    /// Devices and FIFOs.
    pub devices: bool,
}

impl Features {
    pub const ALL: Features = Features { long: true, wide: true, nanoseconds: true, attributes: true, devices: true };
}

/// Bytes that repeat nowhere within a file, and differ between files.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut out: Vec<u8> = std::iter::repeat_with(&mut next).take(len / 8 + 1).flatten().collect();
    out.truncate(len);
    out
}

/// Makes the tree in an existing, empty directory.
pub fn make(root: &Path, features: Features) {
    let file = |name: &str, contents: &[u8]| fs::write(root.join(name), contents).unwrap();
    let link = |target: &str, name: &str| symlink(target, root.join(name)).unwrap();

    // Contents around every size that matters: none, a block of tar, a page, the least for a blob.
    fs::create_dir(root.join("sizes")).unwrap();
    for size in [0, 1, 511, 512, 513, 4095, 4096, 4097, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, 1 << 20] {
        file(&format!("sizes/{size}"), &bytes(size as u64, size));
    }

    fs::create_dir_all(root.join("modes/empty")).unwrap();
    for mode in [0o000, 0o400, 0o644, 0o755, 0o777, 0o4755, 0o2711, 0o1644, 0o6750] {
        let name = format!("modes/{mode:04o}");
        file(&name, b"mode");
        fs::set_permissions(root.join(&name), fs::Permissions::from_mode(mode)).unwrap();
        let name = format!("modes/d{mode:04o}");
        fs::create_dir(root.join(&name)).unwrap();
        fs::set_permissions(root.join(&name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fs::create_dir(root.join("links")).unwrap();
    link("/etc/hostname", "links/absolute");
    link("../sizes/513", "links/dotdot");
    link("absolute", "links/relative");
    link("no such file", "links/dangling");
    link("../..", "links/up");
    link("/", "links/root");
    link(&"t/".repeat(49), "links/target98");
    file("links/first name", b"several names");
    fs::hard_link(root.join("links/first name"), root.join("links/second name")).unwrap();
    fs::hard_link(root.join("links/first name"), root.join("third name")).unwrap();
    file("links/big", &bytes(7, 200_000));
    fs::hard_link(root.join("links/big"), root.join("another big")).unwrap();

    // Owners, of every kind of entry.
    fs::create_dir(root.join("owners")).unwrap();
    file("owners/file", b"x");
    fs::create_dir(root.join("owners/dir")).unwrap();
    link("file", "owners/link");
    for name in ["owners/file", "owners/dir", "owners/link"] {
        lchown(root.join(name), Some(1234), Some(4321)).unwrap();
    }

    fs::create_dir(root.join("names")).unwrap();
    for name in ["-rf", " ", "a b", "tab\there", "new\nline", "back\\slash", "...", "*", "\x1b[31mred", "ümläut", "%s"]
    {
        file(&format!("names/{name}"), name.as_bytes());
    }
    fs::write(root.join("names").join(std::ffi::OsStr::from_bytes(b"\xff\xfe not utf-8")), b"raw").unwrap();

    // Holes at the beginning, in the middle, at the end, everywhere, and a dense file that looks alike.
    fs::create_dir(root.join("holes")).unwrap();
    let sparse = |name: &str, size: u64, data: &[(u64, usize)]| {
        let out = File::create(root.join(name)).unwrap();
        for &(at, len) in data {
            out.write_all_at(&bytes(at + 1, len), at).unwrap();
        }
        out.set_len(size).unwrap();
    };
    sparse("holes/first", 1 << 20, &[((1 << 20) - 4096, 4096)]);
    sparse("holes/last", 1 << 20, &[(0, 4096)]);
    sparse("holes/middle", 1 << 20, &[(0, 8192), (1 << 19, 300), ((1 << 20) - 10, 10)]);
    sparse("holes/only", 1 << 20, &[]);
    sparse("holes/odd", 777_777, &[(65_536, 777)]);
    let many: Vec<(u64, usize)> = (0..60).map(|n| (n * 65_536, 4096)).collect();
    sparse("holes/many", 60 * 65_536 + 1, &many);
    fs::write(root.join("holes/zeros"), vec![0; 100_000]).unwrap();

    if features.devices {
        fs::create_dir(root.join("devices")).unwrap();
        for (name, kind, major, minor) in [
            ("null", FileType::CharacterDevice, 1, 3),
            ("disk", FileType::BlockDevice, 259, 70_000),
            ("fifo", FileType::Fifo, 0, 0),
        ] {
            mknodat(CWD, root.join("devices").join(name), kind, 0o640.into(), makedev(major, minor)).unwrap();
        }
    }
    if features.long {
        long_names(root);
    }
    if features.wide {
        file("owners/beyond", b"x");
        lchown(root.join("owners/beyond"), Some(3_000_000_000), Some(2_097_152)).unwrap();
    }
    if features.attributes {
        attributes(root);
    }
    times(root, features);
}

fn long_names(root: &Path) {
    let dir = root.join("long");
    fs::create_dir(&dir).unwrap();
    for len in [99, 100, 101, 154, 155, 156, 255] {
        fs::write(dir.join("n".repeat(len)), len.to_string()).unwrap();
    }
    let mut deep = dir.clone();
    for n in 0..12 {
        deep.push(format!("{n}").repeat(40));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), b"deep down").unwrap();
    fs::hard_link(deep.join("bottom"), deep.join("bottom again")).unwrap();
    for len in [99, 100, 101, 1000, 4095] {
        symlink("t".repeat(len), dir.join(format!("target{len}"))).unwrap();
    }
}

fn attributes(root: &Path) {
    let dir = root.join("attributes");
    fs::create_dir(&dir).unwrap();
    fs::create_dir(dir.join("dir")).unwrap();
    for name in ["plain", "several", "binary", "equals", "big", "acl", "capable"] {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(dir.join(name))
            .unwrap()
            .write_all(b"x")
            .unwrap();
    }
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(dir.join(name), attribute, value, rustix::fs::XattrFlags::empty())
            .unwrap_or_else(|e| panic!("{attribute} of {name}: {e}; set TMPDIR to a place that takes attributes"));
    };
    set("plain", "user.one", b"value");
    set("dir", "user.of a directory", b"value");
    set("several", "user.one", b"1");
    set("several", "user.two", b"2");
    set("several", "trusted.three", b"3");
    set("binary", "user.binary", b"\0\xff\n=\0");
    set("big", "user.big", &bytes(3, 3000));
    shell(&dir, "setfacl -m u:1234:rw,g:4321:r,m::rw acl; setfacl -m u:1234:rwx,d:u:1234:rx,d:g::rx dir");
    shell(&dir, "PATH=$PATH:/usr/sbin:/sbin; setcap cap_net_raw,cap_setuid+ep capable");
}

/// Times last, since everything else changes them, and directories after what is in them.
fn times(root: &Path, features: Features) {
    let mut n = 0;
    let mut todo = vec![root.to_owned()];
    let mut all = Vec::new();
    while let Some(path) = todo.pop() {
        if path.symlink_metadata().unwrap().is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.push(path);
    }
    for path in all.iter().rev() {
        n += 1;
        let seconds = match n % 5 {
            0 if features.wide => -1_000_000 - n,
            1 if features.wide => 17_000_000_000 + n,
            _ => 1_000_000_000 + n * 1000,
        };
        let nanos = if features.nanoseconds { n * 7_654_321 % 1_000_000_000 } else { 0 };
        let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
        let times = Timestamps { last_access: time, last_modification: time };
        // Hard links are met several times; the last counts for all.
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}
