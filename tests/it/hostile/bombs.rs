//! Little input that asks for much: memory, room, time, depth.

use std::io::Read as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::support::disk::Disk;
use crate::support::mount::Mount;
use crate::support::{needs_fuse, shell, wait_until};
use restorefs::monitor::Verdict;
use restorefs::spool::BLOB_THRESHOLD;

/// Pieces until the index is full; the rest is for nothing.
fn fills_the_index(what: &str, piece: impl Fn(usize) -> Vec<u8>, count: usize) {
    const LIMIT: u64 = 4 << 20;
    let mut archive = file("first", b"12345");
    for i in 0..count {
        archive.extend(piece(i));
    }
    archive.extend(END);
    for from in BOTH {
        let received = receive_with(&archive, from, |job| job.max_index = LIMIT);
        let Some(Verdict::Corrupt { cause, .. }) = &received.status.end else {
            panic!("{what}, {from:?}: {:?} with {}", received.status.end, received.store.index().memory());
        };
        assert!(cause.contains("--max-index"), "{cause}");
        // What one piece of input holds comes on top.
        let memory = received.store.index().memory();
        assert!(memory < 16 * LIMIT, "{what}: {memory}");
        assert_eq!(received.contents("first").unwrap(), b"12345");
    }
}

#[test]
fn the_limit_of_the_index_counts_everything() {
    fills_the_index("names", |i| file(&format!("{i:080}"), b""), 30_000);
    let deep = |i: usize| {
        let path = format!("{i}/{}f", "d/".repeat(4000));
        [pax(b'x', &[("path", path.as_bytes())]), file("f", b"")].concat()
    };
    fills_the_index("depth", deep, 60);
    fills_the_index("links that wait", |i| link(&format!("{i:080}"), b'1', "never"), 20_000);
    fills_the_index("one link that waits", |_| link("same", b'1', "never"), 50_000);
    fills_the_index("the same name", |_| file("same", b""), 80_000);
    let xattr = |i: usize| {
        let value = [i.to_string().as_bytes(), &[b'v'; 60_000]].concat();
        [pax(b'x', &[("SCHILY.xattr.user.a", &value)]), file("f", b"")].concat()
    };
    fills_the_index("xattrs", xattr, 100);
    fills_the_index("maps", |_| sparse("s", 20_000, 7), 30);
    let target = "t".repeat(4000);
    let symlink = |i: usize| [pax(b'x', &[("linkpath", target.as_bytes())]), link(&format!("{i}"), b'2', "")].concat();
    fills_the_index("targets", symlink, 1500);
}

/// A file in so many pieces of one byte, `step` apart.
fn sparse(name: &str, count: usize, step: usize) -> Vec<u8> {
    let mut map = format!("{count}\n");
    for i in 0..count {
        map.push_str(&format!("{}\n1\n", i * step));
    }
    let stored: Vec<u8> = (0..count).map(|i| i as u8 | 1).collect();
    let size = (count * step).to_string();
    let records: &[(&str, &[u8])] =
        &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size.as_bytes())];
    [pax(b'x', records), member(name, b'0', &[padded(map.as_bytes()), stored].concat())].concat()
}

#[test]
fn a_file_of_a_hundred_thousand_pieces_is_read_as_it_was() {
    let archive = [sparse("s", 100_000, 3), END.to_vec()].concat();
    for from in BOTH {
        let received = receive(&archive, from);
        assert_eq!(received.exit(), 0, "{:?}", received.status);
        let contents = received.contents("s").unwrap();
        assert_eq!(contents.len(), 300_000);
        for (i, piece) in contents.chunks(3).enumerate() {
            assert_eq!(piece, [i as u8 | 1, 0, 0]);
        }
    }
}

#[test]
fn many_links_that_wait_for_one_name_are_bound_at_once() {
    const LINKS: usize = 20_000;
    let mut archive = Vec::new();
    for i in 0..LINKS {
        // Each waits for the one before it, and the first for the file.
        let target = if i == 0 { "target".to_owned() } else { format!("l{}", i - 1) };
        archive.extend(link(&format!("l{i}"), b'1', &target));
    }
    archive.extend(file("target", b"1"));
    archive.extend(END);
    for from in BOTH {
        let received = receive(&archive, from);
        assert_eq!((received.exit(), received.status.entries), (0, LINKS as u64 + 1));
        let nlink = received.store.index().attributes(received.ino("target")).unwrap().nlink;
        assert_eq!(nlink as usize, LINKS + 1);
    }
}

#[test]
fn zeros_without_end_are_an_end_marker_and_padding() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&file("f", b"1")).unwrap();
    for _ in 0..256 {
        gzip.write_all(&[0; 1 << 20]).unwrap();
    }
    let bomb = gzip.finish().unwrap();
    for from in BOTH {
        let received = receive(&bomb, from);
        assert_eq!((received.exit(), received.tree()), (0, vec!["f 1".to_owned()]));
        // Nothing of it is kept.
        assert!(received.store.spool().unwrap().bytes() < 1000);
    }
}

#[test]
fn a_window_of_zstd_that_is_too_large_stops() {
    let dir = scratch();
    fs::write(dir.path().join("x.tar"), [file("f", b"1"), END.to_vec()].concat()).unwrap();
    // Of a pipe zstd does not know that it is short.
    shell(dir.path(), "cat x.tar | zstd -qc --long=28 >x.tar.zst");
    let bomb = fs::read(dir.path().join("x.tar.zst")).unwrap();
    for from in BOTH {
        let received = receive(&bomb, from);
        let Some(Verdict::Corrupt { cause, .. }) = &received.status.end else {
            panic!("{from:?}: {:?}", received.status.end);
        };
        assert!(cause.contains("zstd -dc --long=31"), "{cause}");
    }
}

#[test]
fn a_reader_is_answered_when_receiving_is_stopped_while_the_spool_is_full() {
    needs_fuse!();
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    zstd.write_all(&header(b"f", b'0', 4 << 30, |_| {})).unwrap();
    for _ in 0..64 {
        zstd.write_all(&[7; 1 << 20]).unwrap();
    }
    let bomb = zstd.finish().unwrap();
    let (mount, mut stdin) = Mount::pipe(&["--spool-limit", "2M"]);
    stdin.write_all(&bomb).unwrap();
    let status = mount.wait_status("the spool is full", |status| status["phase"] == "no-space");
    assert!(status["spool"]["bytes"].as_u64().unwrap() <= 2 << 20, "{status:#}");
    let path = mount.path("f");
    let there = Arc::new(AtomicUsize::new(0));
    let count = there.clone();
    let reader = std::thread::spawn(move || {
        let mut file = fs::File::open(path).unwrap();
        let mut page = [0; 4096];
        loop {
            match file.read(&mut page) {
                Ok(0) => return Ok(()),
                Ok(n) => count.fetch_add(n, Ordering::Relaxed),
                Err(e) => return Err(e.raw_os_error()),
            };
        }
    });
    // Behind these it waits for what there is no room for.
    wait_until("it has read what is there", || (there.load(Ordering::Relaxed) >= 1 << 20).then_some(()));
    mount.signal(rustix::process::Signal::INT);
    assert_eq!(reader.join().unwrap(), Err(Some(libc::EIO)));
    assert!(there.load(Ordering::Relaxed) <= 2 << 20);
    let status = mount.wait_end();
    assert_eq!((&status["end"]["verdict"], &status["end"]["cut"]), (&"incomplete".into(), &"f".into()), "{status:#}");
    drop(stdin);
    assert_eq!(mount.unmount(), Some(4));
}

#[test]
fn a_disk_without_inodes_is_waited_for() {
    needs_fuse!();
    let disk = Disk::new("tmpfs", "nr_inodes=8");
    let (mount, mut stdin) = Mount::pipe(&["--spool", disk.path().to_str().unwrap()]);
    let contents = vec![7; BLOB_THRESHOLD as usize];
    let sender = std::thread::spawn(move || {
        for i in 0..6 {
            stdin.write_all(&file(&format!("f{i}"), &contents)).unwrap();
        }
        stdin.write_all(&END).unwrap();
    });
    let status = mount.wait_status("the disk is full", |status| status["phase"] == "no-space");
    assert!(status["paused"].as_str().unwrap().contains("No space"), "{status:#}");
    disk.remount("nr_inodes=100");
    sender.join().unwrap();
    mount.wait_clean();
    assert_eq!(fs::read(mount.path("f5")).unwrap(), vec![7; BLOB_THRESHOLD as usize]);
    assert_eq!(mount.unmount(), Some(0));
}
