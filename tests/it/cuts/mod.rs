//! Streams that end at every byte: what arrived is there and right, what did not is never made up, and the cut is told.

mod mounted;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use parking_lot::Mutex;
use restorefs::entry::{Timestamp, escape};
use restorefs::filter;
use restorefs::index::{Attributes, Index, Ino, Kind};
use restorefs::ingest::{self, Job};
use restorefs::monitor::{Monitor, Status, Verdict};
use restorefs::source::{Source, Spec};
use restorefs::spool::{self, Spool};
use restorefs::stop::Stop;
use restorefs::store::{Read, Store};
use restorefs::tarball;
use tempfile::TempDir;

use crate::support::members::{Member, members};
use crate::support::pack::{compress, gnu_tar};
use crate::support::tree::bytes;
use crate::support::{needs_fuse, run, small};

/// How the bytes come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    File,
    Pipe,
}

fn source(bytes: &[u8], from: From, scratch: &Path) -> Source {
    match from {
        From::File => {
            let path = scratch.join("cut");
            fs::write(&path, bytes).unwrap();
            Source::open(&Spec::Path(path)).unwrap()
        }
        From::Pipe => {
            // All of it fits into the pipe, so nobody has to write while it is read.
            let (read, mut write) = std::io::pipe().unwrap();
            let room = rustix::pipe::fcntl_setpipe_size(&write, 1 << 20).unwrap();
            assert!(bytes.len() <= room, "it does not fit into a pipe");
            write.write_all(bytes).unwrap();
            Source::open(&Spec::Path(format!("/proc/self/fd/{}", read.as_raw_fd()).into())).unwrap()
        }
    }
}

fn receive(bytes: &[u8], from: From, scratch: &Path) -> (Store, Status) {
    let source = source(bytes, from, scratch);
    let monitor = Monitor::new();
    let store = Arc::new(Store::new(Index::new(0, 0, Timestamp::default())));
    if ingest::needs_spool(&source) {
        let config = spool::Config {
            directory: scratch.into(),
            limit: None,
            keep: false,
            source: String::new(),
            ..spool::Config::default()
        };
        store.set_spool(Spool::create(&config, monitor.clone()).unwrap());
    } else {
        store.set_archive(Arc::new(source.file().unwrap().try_clone().unwrap())).unwrap();
    }
    ingest::run(Job {
        source,
        store: store.clone(),
        monitor: monitor.clone(),
        stop: Stop::new().unwrap(),
        options: tarball::Options::default(),
        max_index: u64::MAX,
        resume: None,
    });
    (Arc::into_inner(store).unwrap(), monitor.status())
}

/// In memory where that can be: thousands of spools come and go.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// Runs `look` for each cut, on two threads, each with a directory of its own.
fn at_each(cuts: impl Iterator<Item = usize> + Clone + Send, look: impl Fn(usize, &Path) + Sync) {
    let look = &look;
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let cuts = cuts.clone().skip(thread).step_by(2);
            scope.spawn(move || {
                let scratch = scratch();
                cuts.for_each(|cut| look(cut, scratch.path()));
            });
        }
    });
}

fn at_every_byte(len: usize, look: impl Fn(usize, &Path) + Sync) {
    at_each(0..=len, look);
}

/// The whole tree of an index, by path.
fn tree(index: &Index) -> BTreeMap<String, Attributes> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(String::new(), Ino::ROOT)];
    while let Some((path, ino)) = todo.pop() {
        for (_, name, child) in index.list(ino, 0) {
            let slash = if path.is_empty() { "" } else { "/" };
            todo.push((format!("{path}{slash}{}", std::str::from_utf8(name).unwrap()), child));
        }
        found.insert(path, index.attributes(ino).unwrap());
    }
    found
}

/// Compares a store with what the first `cut` bytes of the archive say.
fn is_prefix(store: &Store, members: &[Member], cut: u64) {
    let index = store.index();
    let seen = tree(&index);
    let there: Vec<_> = members.iter().filter(|m| m.header_end <= cut).collect();
    let mut paths: BTreeSet<_> = there.iter().map(|m| m.path.as_str()).collect();
    // The root is always there.
    paths.insert("");
    assert_eq!(seen.keys().map(String::as_str).collect::<BTreeSet<_>>(), paths, "cut at {cut}");
    for m in &there {
        let attributes = &seen[&m.path];
        let links = |m: &Member| there.iter().filter(|o| o.is("hardlink") && o.target == m.path).count() as u32;
        if m.is("hardlink") {
            assert_eq!(attributes.ino, seen[&m.target].ino, "{} cut at {cut}", m.path);
            continue;
        }
        let kind = match m.kind.as_str() {
            "file" => Kind::File,
            "dir" => Kind::Directory,
            "symlink" => Kind::Symlink,
            "fifo" => Kind::Fifo,
            "char" => Kind::CharDevice,
            other => panic!("{other}"),
        };
        assert_eq!(attributes.kind, kind, "{} cut at {cut}", m.path);
        let metadata = (u32::from(attributes.mode), attributes.uid, attributes.gid);
        assert_eq!(metadata, (m.mode, m.uid, m.gid), "{} cut at {cut}", m.path);
        assert_eq!((attributes.mtime.seconds(), attributes.mtime.nanos()), m.mtime, "{} cut at {cut}", m.path);
        let inside = |o: &&&Member| o.is("dir") && o.path.rsplit_once('/').map_or("", |(dir, _)| dir) == m.path;
        let nlink = if m.is("dir") {
            2 + there.iter().filter(inside).filter(|o| !o.path.is_empty()).count() as u32
        } else {
            1 + links(m)
        };
        assert_eq!(attributes.nlink, nlink, "{} cut at {cut}", m.path);
        let xattrs = index.xattrs(attributes.ino).unwrap();
        let xattrs: BTreeMap<_, _> = xattrs.iter().map(|(n, v)| (utf8(n), utf8(v))).collect();
        assert_eq!(xattrs, m.xattrs, "{} cut at {cut}", m.path);
        if m.is("symlink") {
            assert_eq!(index.target(attributes.ino), Some(m.target.as_bytes()), "{} cut at {cut}", m.path);
        }
        if m.is("char") {
            let device = attributes.device.unwrap();
            assert_eq!((device.major, device.minor), m.device);
        }
    }
    drop(index);
    for m in there.iter().filter(|m| m.is("file")) {
        has_contents(store, m, seen[&m.path].ino, m.received(cut));
    }
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A file of which so many stored bytes came reads right as far as that goes, and fails beyond.
fn has_contents(store: &Store, m: &Member, ino: Ino, received: u64) {
    let what = format!("{} after {received} of {} bytes", m.path, m.stored());
    let whole = received == m.stored();
    let expected = if whole { "complete".to_owned() } else { format!("truncated {received}/{}", m.stored()) };
    assert_eq!(restorefs::fs::state(store, &store.index(), ino), Some(expected), "{what}");
    let mut buf = Vec::new();
    let known = m.known(received) as usize;
    let size = m.contents.len();
    let mut read = |from: usize, len: usize| match store.read(ino, from as u64, len, &mut buf).unwrap() {
        Read::Bytes(n) => Ok(buf[..n].to_vec()),
        other => Err(other),
    };
    // From the beginning, from somewhere within, and the last byte.
    for from in [0, known / 2, known.saturating_sub(1)] {
        match read(from, known - from) {
            Ok(bytes) => assert!(bytes == m.contents[from..known], "{what}: wrong bytes from {from}"),
            Err(other) => panic!("{what}: {other:?}"),
        }
    }
    if !whole {
        for (from, len) in [(known, 1), (0, known + 1), (size - 1, 1), (0, size), (known, size - known)] {
            let lost = read(from, len);
            assert!(matches!(lost, Err(Read::Lost)), "{what}: {len} bytes at {from}: {lost:?}");
        }
    }
}

/// The end of the archive's last member: what follows is the end marker.
fn end(members: &[Member]) -> u64 {
    members.iter().map(|m| (m.data + m.stored()).next_multiple_of(512)).max().unwrap()
}

/// What is told of an archive that is not compressed and was cut there.
fn is_told(status: &Status, members: &[Member], cut: u64, len: u64) {
    assert_eq!((status.refused, status.bytes), (0, cut), "cut at {cut}: {status:?}");
    let end = end(members);
    if cut >= end + 512 {
        // One zero block is taken for the end, too, and warned of.
        assert_eq!(status.end, Some(Verdict::Complete), "cut at {cut}");
        assert_eq!(status.warnings, u64::from(cut < len), "cut at {cut}");
    } else {
        let Some(Verdict::Incomplete { cut: file, .. }) = &status.end else { panic!("cut at {cut}: {status:?}") };
        let within = |m: &&Member| m.header_end <= cut && cut < m.data + m.stored() && m.stored() > 0;
        assert_eq!(*file, members.iter().find(within).map(|m| escape(m.path.as_bytes())), "cut at {cut}");
    }
}

fn plain(from: From, args: &[&str]) {
    // Nothing is mounted; but only root can make what is packed.
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = small::archive(dir.path(), args);
    let members = members(&archive);
    let bytes = fs::read(archive).unwrap();
    assert_eq!(bytes.len() as u64, end(&members) + 1024);
    at_every_byte(bytes.len(), |cut, scratch| {
        let (store, status) = receive(&bytes[..cut], from, scratch);
        is_prefix(&store, &members, cut as u64);
        is_told(&status, &members, cut as u64, bytes.len() as u64);
    });
}

#[test]
fn a_gnu_file_cut_at_every_byte() {
    plain(From::File, small::FORMATS[0]);
}

#[test]
fn a_gnu_stream_cut_at_every_byte() {
    plain(From::Pipe, small::FORMATS[0]);
}

#[test]
fn a_pax_file_cut_at_every_byte() {
    plain(From::File, small::FORMATS[1]);
}

#[test]
fn a_pax_stream_cut_at_every_byte() {
    plain(From::Pipe, small::FORMATS[1]);
}

/// Contents that have a blob of their own in the spool, or are passed over in a file.
#[test]
fn large_contents_cut_here_and_there() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("large"), bytes(1, 400_000)).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    for n in 0..6 {
        sparse.write_all_at(&bytes(n, 40_960), n * 1_000_000 / 4096 * 4096).unwrap();
    }
    let archive = dir.path().join("x.tar");
    gnu_tar(&tree, &archive, &["--sparse", "--sort=name", "-b1"]);
    let (members, packed) = (members(&archive), fs::read(archive).unwrap());
    assert_eq!(members[2].segments.len(), 6);
    // A prime step meets pages and segments at any place, the edges are met on purpose.
    let mut cuts: BTreeSet<usize> = (0..=packed.len()).step_by(6_007).collect();
    for m in &members {
        let edges = m.segments.iter().scan(m.data, |at, (_, len)| {
            *at += len;
            Some(*at)
        });
        cuts.extend(edges.flat_map(|edge| [edge - 1, edge, edge + 1].map(|cut| cut as usize)));
    }
    let cuts: Vec<_> = cuts.into_iter().collect();
    for from in [From::File, From::Pipe] {
        at_each(cuts.iter().copied(), |cut, scratch| {
            let (store, status) = receive(&packed[..cut], from, scratch);
            is_prefix(&store, &members, cut as u64);
            is_told(&status, &members, cut as u64, packed.len() as u64);
        });
    }
}

/// Prints how much can be decompressed of each beginning of a file.
const DECOMPRESS: &str = r#"
import bz2, lzma, sys, zlib
make = {"gzip": lambda: zlib.decompressobj(31), "bzip2": bz2.BZ2Decompressor, "xz": lzma.LZMADecompressor}
d, total = make[sys.argv[1]](), 0
for byte in open(sys.argv[2], "rb").read():
    if d.eof:
        d = make[sys.argv[1]]()
    total += len(d.decompress(bytes([byte])))
    print(total)
"#;

/// The longest of the magic numbers: that of bzip2 with its first block.
const MAGIC: usize = 10;

/// The archive in pieces, each compressed by itself, one after the other: decompressors that work block by block then
/// have something to give before the end.
fn compressed(piece: usize, command: &[&str]) {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = small::archive(dir.path(), &["--format=gnu", "--exclude=pages", "--exclude=sparse"]);
    let members = members(&archive);
    let whole = archive.metadata().unwrap().len();
    let marker_end = members.iter().map(|m| (m.data + m.stored()).next_multiple_of(512)).max().unwrap() + 1024;
    let mut bytes = Vec::new();
    // Where the checksum of a piece has come, when the end marker of the archive has.
    let mut ends = BTreeSet::new();
    let mut plain = 0;
    for piece in fs::read(&archive).unwrap().chunks(piece) {
        let path = dir.path().join("piece.tar");
        fs::write(&path, piece).unwrap();
        bytes.extend(fs::read(compress(&path, command)).unwrap());
        plain += piece.len() as u64;
        if plain >= marker_end {
            ends.insert(bytes.len());
        }
    }
    let packed = dir.path().join("packed");
    fs::write(&packed, &bytes).unwrap();
    for from in [From::File, From::Pipe] {
        let taken = Mutex::new(vec![0; bytes.len() + 1]);
        at_every_byte(bytes.len(), |cut, scratch| {
            let (store, status) = receive(&bytes[..cut], from, scratch);
            // The tree is that of a beginning of the archive: of as much as could be decompressed.
            is_prefix(&store, &members, status.bytes);
            // Of a stream the first checksum behind the end marker is awaited; a file is read to its end.
            let complete = match from {
                From::File => ends.contains(&cut),
                From::Pipe => ends.first().is_some_and(|&end| cut >= end),
            };
            if complete {
                assert_eq!((&status.end, status.refused), (&Some(Verdict::Complete), 0), "cut at {cut}: {status:?}");
                assert_eq!(status.warnings, u64::from(!ends.contains(&cut)), "cut at {cut}: {status:?}");
            } else {
                let incomplete = matches!(status.end, Some(Verdict::Incomplete { .. }));
                assert!(incomplete, "cut at {cut}: {status:?}");
            }
            taken.lock()[cut] = status.bytes;
        });
        let mut taken = taken.into_inner();
        // As long as a magic number is not whole, its bytes count as bytes of an archive.
        taken[..MAGIC].fill(0);
        assert!(taken.is_sorted(), "more bytes gave less: {taken:?}");
        assert_eq!(taken.last(), Some(&whole));
        if !["zstd", "lz4"].contains(&command[0]) {
            let other = run(Command::new("python3").args(["-c", DECOMPRESS, command[0]]).arg(&packed));
            let other: Vec<u64> =
                String::from_utf8(other.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect();
            assert_eq!(taken[1..], other, "another decompressor gives more, or less");
        }
    }
}

#[test]
fn gzip_cut_at_every_byte() {
    compressed(usize::MAX, &["gzip"]);
}

#[test]
fn joined_gzip_cut_at_every_byte() {
    compressed(3000, &["gzip"]);
}

#[test]
fn zstd_cut_at_every_byte() {
    compressed(3000, &["zstd", "-q"]);
}

#[test]
fn xz_cut_at_every_byte() {
    compressed(usize::MAX, &["xz"]);
}

#[test]
fn bzip2_cut_at_every_byte() {
    compressed(3000, &["bzip2"]);
}

#[test]
fn lz4_cut_at_every_byte() {
    compressed(3000, &["lz4", "-q"]);
}

/// Contents of an archive in a file are passed over, not read. Here that begins within the padding between a sparse
/// map and the data: the padding is no data.
#[test]
fn padding_that_is_passed_over_is_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), vec![1; 300_300]).unwrap();
    fs::write(tree.join("b"), b"").unwrap();
    let sparse = fs::File::create(tree.join("c")).unwrap();
    sparse.write_all_at(&vec![2; 8192], 65_536).unwrap();
    drop(sparse);
    let pack = || {
        let archive = dir.path().join("x.tar");
        gnu_tar(&tree, &archive, &["--format=pax", "--sparse", "--sort=name", "-b1"]);
        (members(&archive), fs::read(archive).unwrap())
    };
    // The chunk behind the contents of `a` shall end in the padding of the map of `c`.
    let chunk_end = |members: &[Member]| members[1].data + members[1].stored() + filter::CHUNK as u64;
    let (found, _) = pack();
    let filler = (chunk_end(&found) - found[3].data).next_multiple_of(512);
    fs::write(tree.join("b"), vec![3; filler as usize]).unwrap();
    let (members, bytes) = pack();
    let (c, end) = (&members[3], chunk_end(&members));
    assert!(c.path == "c" && c.header_end < end && end < c.data, "{c:?} {end}");
    for cut in [end, c.data, c.data + 1, c.data + 5000] {
        let (store, status) = receive(&bytes[..cut as usize], From::File, dir.path());
        is_prefix(&store, &members, cut);
        is_told(&status, &members, cut, bytes.len() as u64);
    }
}
