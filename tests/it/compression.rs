//! Compressed archives over connections that stay open: all that a decompressor can know is there before they end.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::compare::same_tree;
use crate::support::mount::Mount;
use crate::support::pack::gnu_tar;
use crate::support::tree::{self, Features};
use crate::support::{needs_fuse, shell, wait_until};

/// A tree with everything, its archive, and what a line of shell makes of that: `x.tar` to `packed`.
fn packed(line: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    tree::make(&tree, Features::ALL);
    gnu_tar(
        &tree,
        &dir.path().join("x.tar"),
        &["--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "--sparse"],
    );
    shell(dir.path(), line);
    (dir, tree)
}

/// Everything is there while the sender holds the connection, and from a file too.
fn check(name: &str, line: &str) {
    let (dir, tree) = packed(line);
    let archive = fs::read(dir.path().join("packed")).unwrap();

    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&archive).unwrap();
    mount.wait_clean();
    same_tree(&tree, &mount.point);
    assert_eq!(mount.status()["compression"], name);
    drop(stdin);
    assert_eq!(mount.unmount(), Some(0));

    let mount = Mount::file(&dir.path().join("packed"), &[]);
    mount.wait_clean();
    same_tree(&tree, &mount.point);
    assert_eq!(mount.unmount(), Some(0));
}

#[test]
fn gzip() {
    needs_fuse!();
    check("gzip", "gzip -c x.tar >packed");
}

#[test]
fn gzip_of_several_members() {
    needs_fuse!();
    check("gzip", "split -n 7 x.tar part.; for f in part.*; do gzip -c $f; done >packed");
}

#[test]
fn zstd() {
    needs_fuse!();
    check("zstd", "zstd -qc x.tar >packed");
}

#[test]
fn zstd_of_several_frames_and_skippable_ones() {
    needs_fuse!();
    // A skippable frame: its magic, a length, so many bytes that mean nothing to us.
    check(
        "zstd",
        r"skip() { printf '\x5a\x2a\x4d\x18\x05\0\0\0hello'; }
          split -n 7 x.tar part.; (skip; for f in part.*; do zstd -qc $f; skip; done) >packed",
    );
}

#[test]
fn zstd_with_a_large_window() {
    needs_fuse!();
    check("zstd", "zstd -qc --long=27 x.tar >packed");
}

#[test]
fn xz() {
    needs_fuse!();
    check("xz", "xz -1c x.tar >packed");
}

#[test]
fn xz_of_several_streams() {
    needs_fuse!();
    // Streams are padded to multiples of four with zeros.
    check("xz", r"split -n 7 x.tar part.; for f in part.*; do xz -0c $f; printf '\0\0\0\0'; done >packed");
}

#[test]
fn bzip2() {
    needs_fuse!();
    check("bzip2", "bzip2 -c x.tar >packed");
}

#[test]
fn pbzip2() {
    needs_fuse!();
    check("bzip2", "pbzip2 -cb1 x.tar >packed");
}

#[test]
fn lz4() {
    needs_fuse!();
    check("lz4", "lz4 -qc x.tar >packed");
}

#[test]
fn lz4_of_several_frames() {
    needs_fuse!();
    check("lz4", "split -n 7 x.tar part.; for f in part.*; do lz4 -qc -BD -B4 $f; done >packed");
}

#[test]
fn lzma() {
    needs_fuse!();
    check("lzma", "xz -1c --format=lzma x.tar >packed");
    // The size may be in the header.
    check(
        "lzma",
        r#"xz -1c --format=lzma x.tar >packed; python3 -c 'import os, struct
with open("packed", "r+b") as packed:
    packed.seek(5)
    packed.write(struct.pack("<Q", os.stat("x.tar").st_size))'"#,
    );
}

/// Makes a file of lzip of so many members, as the manual of lzip has it, and has libarchive read it.
fn as_lzip(members: u32) -> String {
    let script = r#"
import lzma, struct, sys, zlib
data, n = open("x.tar", "rb").read(), int(sys.argv[1])
size = -(-len(data) // n)
for piece in (data[i : i + size] for i in range(0, len(data), size)):
    raw = lzma.compress(piece, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20}])
    trailer = struct.pack("<IQQ", zlib.crc32(piece), len(piece), len(raw) + 26)
    sys.stdout.buffer.write(b"LZIP\x01\x14" + raw + trailer)
"#;
    format!("python3 -c '{script}' {members} >packed; bsdcat packed | cmp - x.tar")
}

#[test]
fn lzip() {
    needs_fuse!();
    check("lzip", &as_lzip(1));
}

#[test]
fn lzip_of_several_members() {
    needs_fuse!();
    check("lzip", &as_lzip(7));
}

#[test]
fn compressed_twice() {
    needs_fuse!();
    check("xz, then gzip", "gzip -c x.tar | xz -0c >packed");
    check("gzip, then zstd", "zstd -qc x.tar | gzip -c >packed");
    check("bzip2, then lz4", "lz4 -qc x.tar | bzip2 -c >packed");
}

/// An archive of one large file of text, `big`, behind a small one, `small`.
fn large() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let text: String = tree::bytes(1, 1 << 20).iter().map(|byte| format!("{byte:02x} ")).collect();
    fs::write(dir.path().join("big"), text).unwrap();
    shell(dir.path(), "echo hello >small; tar -b1 -cf x.tar small big");
    dir
}

/// Where the contents of `big` begin.
const BIG_AT: u64 = 3 * 512;

/// Delivers a part of the compressed archive, and holds the connection: what `decompress` makes of that part, which is
/// another implementation or another program, has to be visible, to the byte.
fn check_prefix(compress: &str, decompress: &str) {
    let dir = large();
    shell(dir.path(), &format!("{compress} -c x.tar >packed"));
    let archive = fs::read(dir.path().join("packed")).unwrap();
    let big = fs::read(dir.path().join("big")).unwrap();
    let cut = archive.len() * 2 / 3;
    fs::write(dir.path().join("part"), &archive[..cut]).unwrap();
    // The program complains of the end; what it writes before counts.
    let known = Command::new("bash").args(["-c", decompress]).current_dir(&dir).stderr(Stdio::null()).output().unwrap();
    let known = known.stdout.len() as u64;
    assert!(known > big.len() as u64 / 2, "{known}");

    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&archive[..cut]).unwrap();
    mount.wait_status("all is decompressed that can be", |status| status["bytes"].as_u64() >= Some(known));
    assert_eq!(mount.status()["bytes"], known);
    let state = format!("arriving {}/{}", known - BIG_AT, big.len());
    wait_until("it is visible", || (mount.state("big") == state).then_some(()));
    assert_eq!(fs::read(mount.path("small")).unwrap(), b"hello\n");
    let half = big.len() / 2;
    let mut first = vec![0; half];
    File::open(mount.path("big")).unwrap().read_exact(&mut first).unwrap();
    assert!(first == big[..half]);

    stdin.write_all(&archive[cut..]).unwrap();
    mount.wait_clean();
    assert!(fs::read(mount.path("big")).unwrap() == big);
    drop(stdin);
    assert_eq!(mount.unmount(), Some(0));
}

#[test]
fn of_a_part_in_gzip_all_is_visible() {
    needs_fuse!();
    let script =
        "import sys, zlib; sys.stdout.buffer.write(zlib.decompressobj(31).decompress(open('part', 'rb').read()))";
    check_prefix("gzip", &format!("python3 -c \"{script}\""));
}

#[test]
fn of_a_part_in_zstd_all_is_visible() {
    needs_fuse!();
    check_prefix("zstd -q", "zstd -dc part");
}

#[test]
fn of_a_part_in_xz_all_is_visible() {
    needs_fuse!();
    let script =
        "import sys, lzma; sys.stdout.buffer.write(lzma.LZMADecompressor().decompress(open('part', 'rb').read()))";
    check_prefix("xz -0", &format!("python3 -c \"{script}\""));
}

#[test]
fn of_a_part_in_lzma_all_is_visible() {
    needs_fuse!();
    let script =
        "import sys, lzma; sys.stdout.buffer.write(lzma.LZMADecompressor().decompress(open('part', 'rb').read()))";
    check_prefix("xz -0 --format=lzma", &format!("python3 -c \"{script}\""));
}

#[test]
fn of_a_part_in_bzip2_all_is_visible() {
    needs_fuse!();
    let script =
        "import sys, bz2; sys.stdout.buffer.write(bz2.BZ2Decompressor().decompress(open('part', 'rb').read()))";
    check_prefix("bzip2 -2", &format!("python3 -c \"{script}\""));
}

#[test]
fn of_a_part_in_lz4_all_is_visible() {
    needs_fuse!();
    check_prefix("lz4 -q -B4", "lz4 -dc part");
}

/// Damages a compressed archive, mounts it from a pipe that is held open: it is told, what came before is there.
/// Returns the state of `big`.
fn check_corrupt(compress: &str, damage: impl FnOnce(&mut Vec<u8>)) -> String {
    let dir = large();
    shell(dir.path(), &format!("{compress} -c x.tar >packed"));
    let mut archive = fs::read(dir.path().join("packed")).unwrap();
    damage(&mut archive);
    let (mount, mut stdin) = Mount::pipe(&[]);
    // It stops reading when it knows.
    let _ = stdin.write_all(&archive);
    let status = mount.wait_end();
    assert_eq!(status["end"]["verdict"], "corrupt", "{status:#}");
    assert_eq!(fs::read(mount.path("small")).unwrap(), b"hello\n");
    let mut first = vec![0; 4096];
    File::open(mount.path("big")).unwrap().read_exact(&mut first).unwrap();
    assert!(fs::read(dir.path().join("big")).unwrap().starts_with(&first));
    let state = mount.state("big");
    drop(stdin);
    assert_eq!(mount.unmount(), Some(5), "{compress}");
    state
}

#[test]
fn corrupt_in_the_middle() {
    needs_fuse!();
    for compress in ["gzip", "zstd -q", "xz -0", "bzip2 -2", "lz4 -q -B4"] {
        let state = check_corrupt(compress, |archive| {
            let middle = archive.len() / 2;
            // A run of zeros is not valid in any of them, or breaks the checksum.
            archive[middle..middle + 64].fill(0);
        });
        // Nothing but the checksum at its end guards what is in a gzip member: that may still look like data.
        assert!(compress == "gzip" || state.starts_with("truncated"), "{compress}: {state}");
    }
}

#[test]
fn corrupt_where_only_the_checksum_tells() {
    needs_fuse!();
    // The checksum comes behind the end of the archive: it counts, and all that is before it is there.
    for (compress, from_end) in [("gzip", 8), ("zstd -q --check", 1), ("bzip2 -2", 3), ("lz4 -q", 1)] {
        let state = check_corrupt(compress, |archive| {
            let at = archive.len() - from_end;
            archive[at] ^= 0x10;
        });
        assert_eq!(state, "complete", "{compress}");
    }
}

#[test]
fn a_stream_is_not_complete_before_its_checksum() {
    needs_fuse!();
    let dir = large();
    shell(dir.path(), "gzip -c x.tar >packed");
    let archive = fs::read(dir.path().join("packed")).unwrap();
    let bytes = dir.path().join("x.tar").metadata().unwrap().len();
    for (damage, verdict, code) in [(0, "complete", 0), (1, "corrupt", 5)] {
        let (data, trailer) = archive.split_at(archive.len() - 8);
        let mut trailer = trailer.to_vec();
        trailer[0] ^= damage;
        let (mount, mut stdin) = Mount::pipe(&[]);
        stdin.write_all(data).unwrap();
        mount.wait_status("the end marker of the archive is there", |status| status["bytes"] == bytes);
        wait_until("all is visible", || (mount.state("big") == "complete").then_some(()));
        assert_eq!(mount.status()["phase"], "receiving");
        stdin.write_all(&trailer).unwrap();
        let status = mount.wait_end();
        assert_eq!(status["end"]["verdict"], verdict, "{status:#}");
        assert!(fs::read(mount.path("big")).unwrap() == fs::read(dir.path().join("big")).unwrap());
        drop(stdin);
        assert_eq!(mount.unmount(), Some(code));
    }
}

#[test]
fn what_follows_the_compressed_stream_is_warned_of() {
    needs_fuse!();
    let dir = large();
    shell(dir.path(), "gzip -c x.tar >packed; echo 'this is no gzip, at all' >>packed");
    let told = |status: &Value| status["warnings"] == 1;
    let check = |mount: &Mount| {
        let status =
            mount.wait_status("it is warned of what follows", |status| told(status) && status["phase"] == "over");
        assert_eq!((&status["end"]["verdict"], &status["refused"]), (&"complete".into(), &0.into()), "{status:#}");
        assert!(fs::read(mount.path("big")).unwrap() == fs::read(dir.path().join("big")).unwrap());
    };
    let archive: &Path = &dir.path().join("packed");
    let mount = Mount::file(archive, &[]);
    check(&mount);
    assert_eq!(mount.unmount(), Some(0));
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&fs::read(archive).unwrap()).unwrap();
    check(&mount);
    drop(stdin);
    assert_eq!(mount.unmount(), Some(0));
}
