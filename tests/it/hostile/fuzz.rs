//! Small archives of every tool with bytes changed at random, their checksums made right again: no panic, no hang,
//! what came before the first change is as it was, and a file and a pipe give the same.
//!
//! `RESTOREFS_FUZZ=SECONDS` lets it run for so long, from another seed each time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;
use crate::support::pack::{bsdtar, compress, gnu_tar, python_tar};
use crate::support::random::Random;
use crate::support::{needs_fuse, small};
use restorefs::monitor::Verdict;

/// So many archives are made from one seed where nobody says for how long.
const ROUNDS: u64 = 600;

/// Of no file more is looked at: one that says it has exabytes of holes is read in a moment all the same.
const LOOK: usize = 64 << 10;

/// Runs a check for each round's seed, and names the seed that failed.
fn rounds(count: u64, check: impl Fn(&mut Random)) {
    let seconds: Option<u64> = std::env::var("RESTOREFS_FUZZ").ok().map(|s| s.parse().unwrap());
    let begun = Instant::now();
    let first = seconds.map_or(1, |_| std::process::id().into());
    let goes_on = |round: u64| seconds.map_or(round < count, |s| begun.elapsed() < Duration::from_secs(s));
    for round in (0..).take_while(|round| goes_on(*round)) {
        let seed = first << 32 | round;
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mut Random(seed))));
        assert!(checked.is_ok(), "with the seed {seed}");
    }
}

fn corpus(dir: &Path) -> Vec<Vec<u8>> {
    let tree = dir.join("tree");
    let mut all = vec![fs::read(small::archive(dir, small::FORMATS[0])).unwrap()];
    gnu_tar(&tree, &dir.join("pax.tar"), &["--format=pax", "--xattrs", "--sparse", "-b1"]);
    all.push(fs::read(dir.join("pax.tar")).unwrap());
    let out = dir.join("x.tar");
    for version in ["0.0", "0.1", "1.0"] {
        gnu_tar(&tree, &out, &["--format=pax", "--sparse", &format!("--sparse-version={version}"), "-b1"]);
        all.push(fs::read(&out).unwrap());
    }
    gnu_tar(
        &tree,
        &out,
        &[
            "--format=v7",
            "-b1",
            "--exclude=*nnn*",
            "--exclude=*ttt*",
            "--exclude=*sss*",
            "--exclude=long target",
            "--exclude=fifo",
            "--exclude=device",
            "-h",
            "--exclude=dangling",
        ],
    );
    all.push(fs::read(&out).unwrap());
    bsdtar(&tree, &out, &["--format=pax", "--xattrs"]);
    all.push(fs::read(&out).unwrap());
    python_tar(&tree, &out, "PAX_FORMAT");
    all.push(fs::read(&out).unwrap());
    let extras = [
        pax(b'g', &[("comment", b"c"), ("mtime", b"1.5"), ("uname", b"joe")]),
        link("waits", b'1', "comes"),
        pax(b'x', &[("SCHILY.acl.access", b"user::rw-,user:7:r--,group::r--,mask::r--,other::---")]),
        file("comes", b"later"),
        pax(b'x', &[("size", b"3"), ("LIBARCHIVE.xattr.user.a", b"YWJj")]),
        file("comes", b"abc"),
        member("label", b'V', b""),
        member("dump", b'D', b"Yfile\0"),
        END.to_vec(),
    ];
    all.push(extras.concat());
    all
}

/// Numbers as they stand in headers and records, at the edges.
const NUMBERS: &[&[u8]] = &[
    b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xfe\0",
    b"77777777777\0",
    b"00000000000\0",
    b"9223372036854775807",
    b"18446744073709551615",
    b"-1",
    b"../",
    b"\0",
];

/// Changes something. Returns the place of the first change.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) -> usize {
    let mut first = bytes.len();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return 0;
        }
        // Headers are where most of the meaning is.
        let headers: Vec<usize> =
            (0..bytes.len() / BLOCK).map(|i| i * BLOCK).filter(|at| bytes[at + 257..].starts_with(b"ustar")).collect();
        let block = if headers.is_empty() { 0 } else { *random.of(&headers) };
        let at = match random.below(8) {
            0 => {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
                at
            }
            1 => {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
                at
            }
            2 | 3 => {
                let field = *random.of(&[0, 100, 108, 116, 124, 136, 157, 329, 337, 345, 386, 398, 482, 483]);
                let at = (block + field).min(bytes.len());
                for (to, from) in bytes[at..].iter_mut().zip(*random.of(NUMBERS)) {
                    *to = *from;
                }
                at
            }
            4 => {
                let at = (block + 156).min(bytes.len() - 1);
                bytes[at] = *random.of(b"01234567LKxgXSVMND\0Q");
                at
            }
            5 => {
                let at = random.below(bytes.len() / BLOCK + 1) * BLOCK;
                let end = (at + BLOCK * (1 + random.below(3))).min(bytes.len());
                bytes.drain(at..end);
                at
            }
            6 => {
                let at = random.below(bytes.len() / BLOCK + 1) * BLOCK;
                let piece = bytes[block.min(bytes.len())..(block + BLOCK).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
                at
            }
            _ => {
                let at = random.below(bytes.len());
                bytes.truncate(at);
                at
            }
        };
        first = first.min(at);
    }
    // Where the sum is wrong nothing behind it is seen: that is one way of many.
    if random.below(8) > 0 {
        for at in (0..bytes.len() / BLOCK).map(|i| i * BLOCK) {
            let block = &mut bytes[at..at + BLOCK];
            if block[257..].starts_with(b"ustar") {
                let before = block[148..156].to_vec();
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                if block[148..156] != before {
                    first = first.min(at + 148);
                }
            }
        }
    }
    first
}

#[derive(Debug, PartialEq)]
struct Inode {
    attributes: restorefs::index::Attributes,
    target: Option<Vec<u8>>,
    contents: Option<Vec<u8>>,
}

/// Every inode that there ever was. The number of names may change with every later entry.
fn inodes(received: &Received) -> BTreeMap<u64, Inode> {
    let count = received.store.index().inodes() as u64;
    let inode = |ino| {
        let (mut attributes, target) = {
            let index = received.store.index();
            (index.attributes(ino).unwrap(), index.target(ino).map(<[u8]>::to_vec))
        };
        attributes.nlink = 0;
        let contents = (attributes.kind == Kind::File).then(|| received.read(ino, 0, LOOK)).flatten();
        if attributes.kind == Kind::File && attributes.size > LOOK as u64 {
            // No offset makes it fail in another way than by saying that it is lost.
            for at in [attributes.size / 2, attributes.size - 1] {
                received.read(ino, at, 10);
            }
        }
        Inode { attributes, target, contents }
    };
    (1..=count).map(|n| (n, inode(Ino(n)))).collect()
}

fn problems(received: &Received) -> Vec<String> {
    let mut all: Vec<_> = received.status.problems.iter().map(|problem| format!("{problem:?}")).collect();
    all.sort();
    all
}

fn no_panic(received: &Received) {
    match received.status.end.as_ref().expect("it ends") {
        Verdict::Failed { cause } => panic!("it failed: {cause}"),
        Verdict::Corrupt { cause, .. } => assert!(!cause.contains("decompressor failed"), "{cause}"),
        _ => {}
    }
}

#[test]
fn archives_with_bytes_changed() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path());
    rounds(ROUNDS, |random| {
        let original = random.of(&corpus);
        let mut bytes = original.clone();
        let first = mutate(&mut bytes, random);
        let [a, b] = BOTH.map(|from| receive(&bytes, from));
        no_panic(&a);
        no_panic(&b);
        assert_eq!(a.exit(), b.exit(), "{:?} {:?}", a.status.end, b.status.end);
        // What the index refuses is told with the chunk, so their order is another one.
        assert_eq!(problems(&a), problems(&b));
        assert_eq!(a.status.entries, b.status.entries);
        assert_eq!(a.tree(), b.tree());
        let seen = inodes(&a);
        assert_eq!(seen, inodes(&b), "a file and a pipe");
        // Numbers are given out in order, so what came before is the same inode. Directories may be announced again.
        let before = inodes(&receive(&bytes[..first.min(bytes.len())], From::File));
        assert_eq!(bytes[..first.min(bytes.len())], original[..first.min(bytes.len())]);
        for (ino, inode) in before.iter().filter(|(_, inode)| inode.attributes.kind != Kind::Directory) {
            assert_eq!(seen[ino].attributes, inode.attributes);
            assert_eq!(seen[ino].target, inode.target);
            if inode.contents.is_some() {
                assert_eq!(seen[ino].contents, inode.contents);
            }
        }
    });
}

#[test]
fn compressed_archives_with_bytes_changed() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = small::archive(dir.path(), small::FORMATS[1]);
    let commands: [&[&str]; 5] = [&["gzip"], &["zstd", "-q"], &["xz"], &["bzip2"], &["lz4", "-q"]];
    let corpus = commands.map(|command| fs::read(compress(&archive, command)).unwrap());
    rounds(ROUNDS / 2, |random| {
        let mut bytes = random.of(&corpus).clone();
        // Some joined, one changed behind the other.
        if random.below(3) == 0 {
            let more = random.of(&corpus);
            bytes.extend_from_slice(more);
        }
        for _ in 0..=random.below(3) {
            if bytes.is_empty() {
                break;
            }
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => drop(bytes.drain(at..(at + 1 + random.below(20)).min(bytes.len()))),
                _ => bytes.truncate(at.max(12)),
            }
        }
        let received = receive(&bytes, *random.of(&BOTH));
        no_panic(&received);
        inodes(&received);
    });
}
