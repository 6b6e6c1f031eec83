//! Disks that lose what they took, spools that something else removes or writes to, disks that hang: an error and a name,
//! never wrong bytes, and never "complete".

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::disk::Disk;
use crate::support::feed;
use crate::support::mount::{Mount, restorefs};
use crate::support::tree::bytes;
use crate::support::{needs_fuse, run, wait_until};

const LARGE: usize = 300_000;
const SMALL: usize = 5_000;

/// Files, every fifth of them small.
fn files(count: u64) -> Vec<(String, Vec<u8>)> {
    (0..count).map(|n| (format!("f{n}"), bytes(n, if n % 5 == 4 { SMALL } else { LARGE }))).collect()
}

/// The only spool in a directory.
fn spool_in(dir: &Path) -> PathBuf {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.join("journal").exists()).unwrap()
}

fn spool_of(mount: &Mount) -> PathBuf {
    spool_in(&mount.dir.path().join("spool"))
}

fn drop_caches() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Reads all files, of which each is right or an error. The names of those that are errors.
fn unreadable(mount: &Mount, files: &[(String, Vec<u8>)]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, contents) in files {
        match fs::read(mount.path(name)) {
            Ok(read) => assert!(read == *contents, "'{name}' has wrong bytes"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "{name}");
                assert_eq!(mount.state(name), "damaged");
                names.insert(name.clone());
            }
        }
    }
    names
}

/// The names that `scrub` finds.
fn scrub(mount: &Mount) -> BTreeSet<String> {
    let output = restorefs(&["scrub", "--json"], &[&mount.point]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let names: BTreeSet<String> =
        found["damaged"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    assert_eq!(output.status.code(), Some(if names.is_empty() { 0 } else { 1 }), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(names.iter().all(|name| told.contains(&format!("damaged: '{name}'"))), "{told}");
    names
}

/// Restores all files: each is right, or one of `damaged`, named, and not made.
fn restores_all_but(mount: &Mount, files: &[(String, Vec<u8>)], damaged: &BTreeSet<String>) {
    let dest = mount.dir.path().join("dest");
    let output = restorefs(&["materialize", "--verify", "--json"], &[&mount.point, &dest]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let problems = report["problems"].to_string();
    for (name, contents) in files {
        if damaged.contains(name) {
            assert!(problems.contains(&format!("\"{name}\"")), "'{name}' is not named: {report:#}");
            assert!(!dest.join(name).exists(), "'{name}' is made");
        } else {
            assert!(fs::read(dest.join(name)).unwrap() == *contents, "{name}");
        }
    }
    assert_ne!(output.status.code(), Some(0), "{report:#}");
}

#[test]
fn a_disk_that_loses_writes_is_found_before_complete() {
    needs_fuse!();
    // With so many blobs that they are synced one by one, and with more.
    for count in [30, 60] {
        loses_writes(count);
    }
}

fn loses_writes(count: u64) {
    // An ext4 whose device takes its own metadata and some megabytes, and then nothing more, which the kernel notices
    // only when it writes back.
    let store = Disk::new("tmpfs", "size=64M");
    let image = store.path().join("image");
    run(Command::new("truncate").args(["-s", "300M"]).arg(&image));
    run(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]).arg(&image));
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::of_image(&image, &dir.path().join("disk"), "errors=continue");
    let mut filler = File::create(store.path().join("filler")).unwrap();
    let free = rustix::fs::statvfs(store.path()).unwrap();
    let room = free.f_bavail * free.f_frsize;
    assert!(room > 6 << 20, "{room}");
    filler.write_all(&vec![1; (room - (6 << 20)) as usize]).unwrap();

    let files = files(count);
    let (mut mount, mut to) = Mount::pipe(&["--spool", disk.path().to_str().unwrap()]);
    for (name, contents) in &files {
        to.write_all(&feed::whole(name, contents)).unwrap();
    }
    to.write_all(&feed::end()).unwrap();
    let status = mount.wait_end();
    assert_eq!(status["end"]["verdict"], "failed", "{status:#}");
    drop_caches();
    let damaged = unreadable(&mount, &files);
    assert!(!damaged.is_empty() && damaged.len() < files.len(), "{damaged:?}");
    let named: BTreeSet<String> = status["problems"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|problem| problem["severity"] == "refused")
        .map(|problem| problem["path"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(named, damaged, "{status:#}");
    assert_eq!(scrub(&mount), damaged);
    let wait = restorefs(&["wait"], &[&mount.point]);
    assert_eq!(wait.status.code(), Some(1), "{wait:?}");
    restorefs(&["umount"], &[&mount.point]);
    assert_eq!(mount.wait_front(), Some(1));
}

#[test]
fn a_spool_that_is_removed_or_cut_is_not_complete() {
    needs_fuse!();
    let files = files(10);
    for cut in [false, true] {
        let (mount, mut to) = Mount::pipe(&[]);
        for (name, contents) in &files {
            to.write_all(&feed::whole(name, contents)).unwrap();
        }
        wait_until("the last has come", || (mount.status()["entries"] == 10).then_some(()));
        for number in ["0", "3"] {
            let blob = spool_of(&mount).join("blobs").join(number);
            if cut { File::options().write(true).open(blob).unwrap().set_len(4096) } else { fs::remove_file(blob) }
                .unwrap();
        }
        to.write_all(&feed::end()).unwrap();
        let status = mount.wait_end();
        assert_eq!(status["end"]["verdict"], "failed", "{status:#}");
        // Of blobs 0 and 3.
        let expected = BTreeSet::from(["f0".to_owned(), "f3".to_owned()]);
        assert_eq!(unreadable(&mount, &files), expected);
        assert_eq!(scrub(&mount), expected);
        restores_all_but(&mount, &files, &expected);
    }
}

/// Changes a byte of a file in the spool.
fn flip(path: &Path, find: &[u8], at: usize) {
    let contents = fs::read(path).unwrap();
    let begin = contents.windows(find.len()).position(|window| window == find).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&[!contents[begin + at]], (begin + at) as u64).unwrap();
}

#[test]
fn a_changed_byte_is_an_error_wherever_it_is_read() {
    needs_fuse!();
    let files = files(15);
    let (mount, mut to) = Mount::pipe(&["--no-passthrough"]);
    for (name, contents) in &files {
        to.write_all(&feed::whole(name, contents)).unwrap();
    }
    to.write_all(&feed::end()).unwrap();
    mount.wait_clean();
    assert_eq!(scrub(&mount), BTreeSet::new());
    let spool = spool_of(&mount);
    flip(&spool.join("blobs/2"), &files[2].1[..64], LARGE - 1);
    flip(&spool.join("journal"), &files[4].1[..64], 77);
    let damaged = BTreeSet::from(["f2".to_owned(), "f4".to_owned()]);
    // Of the large one only what shares the extent is lost.
    let large = File::open(mount.path("f2")).unwrap();
    let mut piece = [0; 4096];
    large.read_exact_at(&mut piece, 8192).unwrap();
    assert!(piece == files[2].1[8192..8192 + 4096]);
    assert_eq!(large.read_exact_at(&mut piece, LARGE as u64 - 4096).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(unreadable(&mount, &files), damaged);
    assert!(mount.status()["problems"].to_string().contains("scrub"), "{:#}", mount.status());
    let output = restorefs(&["scrub"], &[&mount.point]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    drop(large);
    mount.unmount();
}

#[test]
fn a_large_file_that_changed_in_the_spool_is_not_restored() {
    needs_fuse!();
    let files = files(4);
    for early in [false, true] {
        let (mount, mut to) = Mount::pipe(&[]);
        for (name, contents) in &files {
            to.write_all(&feed::whole(name, contents)).unwrap();
        }
        if !early {
            to.write_all(&feed::end()).unwrap();
            mount.wait_clean();
        } else {
            wait_until("the last has come", || (mount.status()["entries"] == 4).then_some(()));
        }
        flip(&spool_of(&mount).join("blobs/1"), &files[1].1[..64], 200_000);
        if early {
            // Readers do not get it before the end either.
            let read = fs::read(mount.path("f1"));
            assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO));
            to.write_all(&feed::end()).unwrap();
            mount.wait_end();
        }
        restores_all_but(&mount, &files, &BTreeSet::from(["f1".to_owned()]));
    }
}

#[test]
fn a_disk_that_hangs_is_named_and_nothing_is_lost_when_it_goes_on() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::ext4(&dir.path().join("image"), &dir.path().join("disk"), "", "rw");
    let files = files(10);
    let (mount, mut to) = Mount::pipe(&["--spool", disk.path().to_str().unwrap()]);
    to.write_all(&feed::whole(&files[0].0, &files[0].1)).unwrap();
    mount.wait_for(&files[0].0);
    let frozen = Frozen::new(disk.path());
    let feeder = std::thread::spawn({
        let files = files.clone();
        move || {
            for (name, contents) in &files[1..] {
                to.write_all(&feed::whole(name, contents)).unwrap();
            }
            to.write_all(&feed::end()).unwrap();
        }
    });
    let status = mount.wait_status("the hanging disk is named", |status| !status["paused"].is_null());
    assert!(status["paused"].as_str().unwrap().contains("has not taken a write for"), "{status:#}");
    drop(frozen);
    feeder.join().unwrap();
    mount.wait_clean();
    assert_eq!(unreadable(&mount, &files), BTreeSet::new());
    restorefs(&["umount"], &[&mount.point]);
}

#[test]
fn damage_that_is_found_while_it_arrives_is_not_complete_and_goes_when_it_is_mended() {
    needs_fuse!();
    let files = files(4);
    for mended in [false, true] {
        let (mount, mut to) = Mount::pipe(&["--no-passthrough"]);
        for (name, contents) in &files {
            to.write_all(&feed::whole(name, contents)).unwrap();
        }
        wait_until("the last has come", || (mount.status()["entries"] == 4).then_some(()));
        let blob = spool_of(&mount).join("blobs/1");
        flip(&blob, &files[1].1[..64], 200_000);
        assert_eq!(scrub(&mount), BTreeSet::from(["f1".to_owned()]));
        if mended {
            fs::write(&blob, &files[1].1).unwrap();
        }
        to.write_all(&feed::end()).unwrap();
        let status = mount.wait_end();
        assert_eq!(status["end"]["verdict"], if mended { "complete" } else { "failed" }, "{status:#}");
        let damaged = if mended { BTreeSet::new() } else { BTreeSet::from(["f1".to_owned()]) };
        assert_eq!(unreadable(&mount, &files), damaged);
        assert_eq!(mount.state("f1"), if mended { "complete" } else { "damaged" });
    }
}

#[test]
fn damage_of_a_stream_that_is_cut_is_named_too() {
    needs_fuse!();
    let files = files(4);
    let (mut mount, mut to) = Mount::pipe(&[]);
    for (name, contents) in &files {
        to.write_all(&feed::whole(name, contents)).unwrap();
    }
    to.write_all(&feed::file("cut", LARGE)).unwrap();
    to.write_all(&[1; 1000]).unwrap();
    wait_until("the last has come", || (mount.status()["entries"] == 5).then_some(()));
    fs::remove_file(spool_of(&mount).join("blobs/1")).unwrap();
    drop(to);
    let status = mount.wait_end();
    assert_eq!(status["end"]["verdict"], "failed", "{status:#}");
    let cause = status["end"]["cause"].as_str().unwrap();
    assert!(cause.contains("has lost contents of 1 file") && cause.contains("'cut' was cut"), "{cause}");
    restorefs(&["umount"], &[&mount.point]);
    assert_eq!(mount.wait_front(), Some(1), "{}", mount.printed());
}

/// A filesystem that takes no writes, until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(path: &Path) -> Self {
        run(Command::new("fsfreeze").arg("--freeze").arg(path));
        Frozen(path.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0).status();
    }
}

#[test]
fn small_pieces_between_holes_take_no_page_each() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    // One of them small enough for the journal, one too large.
    for pieces in [5_000, 200_000_u64] {
        let packed = dir.path().join("packed.tar");
        // A map in pax 1.0 is text in front of the stored bytes.
        let mut map = format!("{pieces}\n");
        for n in 0..pieces {
            map.push_str(&format!("{}\n1\n", n * 4096));
        }
        let mut stored = map.into_bytes();
        stored.resize(stored.len().next_multiple_of(512), 0);
        stored.extend((0..pieces).map(|n| (n % 251) as u8 + 1));
        let mut pax = Vec::new();
        for (key, value) in [
            ("GNU.sparse.major", "1".to_owned()),
            ("GNU.sparse.minor", "0".into()),
            ("GNU.sparse.name", "pieces".into()),
            ("GNU.sparse.realsize", (pieces * 4096).to_string()),
        ] {
            pax.extend(pax_record(key, &value));
        }
        let archive = [
            feed::member(tar::EntryType::XHeader, "x", "", 0, &pax),
            feed::member(tar::EntryType::Regular, "GNUSparseFile.0/pieces", "", 1, &stored),
            feed::end(),
        ]
        .concat();
        fs::write(&packed, &archive).unwrap();
        let (mount, mut to) = Mount::pipe(&[]);
        to.write_all(&archive).unwrap();
        mount.wait_clean();
        let usage: u64 = walk_blocks(&spool_of(&mount));
        assert!(usage < 4 * pieces + (1 << 20), "{usage} bytes for {pieces} pieces");
        // GNU tar never writes a piece that ends within a block, and cannot read one.
        let theirs = dir.path().join(format!("bsdtar{pieces}"));
        fs::create_dir(&theirs).unwrap();
        run(Command::new("bsdtar").arg("-xf").arg(&packed).arg("-C").arg(&theirs));
        run(Command::new("cmp").arg(theirs.join("pieces")).arg(mount.path("pieces")));
        let dest = mount.dir.path().join("dest");
        let output = restorefs(&["materialize", "--verify"], &[&mount.point, &dest]);
        assert!(output.status.success(), "{output:?}");
        run(Command::new("cmp").arg(theirs.join("pieces")).arg(dest.join("pieces")));
        mount.unmount();
    }
}

fn pax_record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    format!("{len} {key}={value}\n").into_bytes()
}

/// What everything in a directory takes on its disk.
fn walk_blocks(dir: &Path) -> u64 {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            metadata.blocks() * 512 + if metadata.is_dir() { walk_blocks(&path) } else { 0 }
        })
        .sum()
}
