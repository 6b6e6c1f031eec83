//! Archives that are odd and legal, or nearly so, beside what GNU tar and bsdtar make of them.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;

use super::table::{CLEAN, MENDED, Outcome, REFUSED, STOPPED, archive, gets, outcome};
use super::*;
use restorefs::entry::{ACL_ACCESS, ACL_DEFAULT};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    Gnu,
    Bsd,
}
use Peer::{Bsd, Gnu};

impl Peer {
    /// What it extracts, whatever it says of it.
    fn extract(self, archive: &[u8]) -> TempDir {
        let dir = scratch();
        let file = dir.path().join("x.tar");
        fs::write(&file, archive).unwrap();
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        let mut command = Command::new(if self == Gnu { "tar" } else { "bsdtar" });
        command.args(["--acls", "--xattrs", "--numeric-owner", "-xpf"]).arg(file).arg("-C").arg(&out);
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e}: scripts/install installs it"));
        dir
    }
}

/// Paths below a directory, those of directories with a `/` at their end, sorted.
fn paths(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let path = dir.join(entry.unwrap().file_name());
            let is_dir = root.join(&path).symlink_metadata().unwrap().is_dir();
            found.push(format!("{}{}", path.display(), if is_dir { "/" } else { "" }));
            if is_dir {
                todo.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A line as in [`Received::tree`].
fn line(root: &Path, path: &str) -> String {
    let full = root.join(path);
    let m = full.symlink_metadata().unwrap();
    let kind = m.file_type();
    let device = || Some((rustix::fs::major(m.rdev()), rustix::fs::minor(m.rdev())));
    let mut line = if kind.is_dir() {
        path.to_owned()
    } else if kind.is_symlink() {
        format!("{path} -> {}", full.read_link().unwrap().display())
    } else if kind.is_file() {
        format!("{path} {}", m.len())
    } else if kind.is_char_device() {
        format!("{path} CharDevice {:?}", device())
    } else if kind.is_block_device() {
        format!("{path} BlockDevice {:?}", device())
    } else {
        format!("{path} Fifo None")
    };
    if !kind.is_dir() && m.nlink() != 1 {
        line.push_str(&format!(" *{}", m.nlink()));
    }
    line
}

/// The same tree: kinds, sizes, contents, modes and times. The peer has what we have `lost`.
#[track_caller]
fn same(what: &str, received: &Received, peer: Peer, archive: &[u8], lost: &[&str]) {
    let dir = peer.extract(archive);
    let root = dir.path().join("out");
    let mut theirs = paths(&root);
    theirs.retain(|path| !lost.contains(&path.as_str()));
    let lines: Vec<String> = theirs.iter().map(|path| line(&root, path)).collect();
    let mut ours = received.tree();
    ours.retain(|line| !line.is_empty());
    assert_eq!(ours, lines, "{what}: {peer:?}");
    for path in theirs {
        let ino = received.ino(&path);
        let m = root.join(&path).symlink_metadata().unwrap();
        let index = received.store.index();
        let a = index.attributes(ino).unwrap();
        if !index.is_implied(ino) {
            assert_eq!(a.mtime.seconds(), m.mtime(), "{what}: time of {path}, {peer:?}");
            assert!(m.is_symlink() || m.mode() & 0o7777 == u32::from(a.mode), "{what}: mode of {path}, {peer:?}");
        }
        drop(index);
        if m.is_file() {
            let same = received.contents(&path).unwrap() == fs::read(root.join(&path)).unwrap();
            assert!(same, "{what}: contents of {path}, {peer:?}");
        }
    }
}

/// As [`gets`], and these peers make the same of it, but for what is `lost` here.
#[track_caller]
fn gets_as(what: &str, pieces: &[Vec<u8>], want: &Outcome, tree: &[&str], peers: &[Peer], lost: &[&str]) {
    gets(what, pieces, want, tree);
    let archive = archive(pieces);
    let received = receive(&archive, From::Pipe);
    for &peer in peers {
        same(what, &received, peer, &archive, lost);
    }
}

const BOTH_PEERS: &[Peer] = &[Gnu, Bsd];

fn x(records: &[(&str, &[u8])]) -> Vec<u8> {
    pax(b'x', records)
}

fn long(typeflag: u8, name: &str) -> Vec<u8> {
    member("././@LongLink", typeflag, format!("{name}\0").as_bytes())
}

/// A header that says that contents of 1000 bytes follow.
fn lying(name: &str, typeflag: u8) -> Vec<u8> {
    header(name.as_bytes(), typeflag, 1000, |b| b[157] = b't')
}

#[test]
fn a_directory_by_its_name_has_no_contents() {
    let v7 = |name: &str, typeflag| {
        header(name.as_bytes(), typeflag, 1000, |b| {
            b[257..].fill(0);
        })
    };
    for typeflag in [0, b'0', b'7'] {
        gets_as("ustar", &[lying("d/", typeflag), file("d/f", b"1")], &CLEAN, &["d/", "d/f 1"], BOTH_PEERS, &[]);
        gets_as("v7", &[v7("d/", typeflag), file("d/f", b"1")], &CLEAN, &["d/", "d/f 1"], BOTH_PEERS, &[]);
    }
    // What counts is the name that it has in the end.
    gets_as("L", &[long(b'L', "long/"), lying("f", b'0')], &CLEAN, &["long/"], BOTH_PEERS, &[]);
    gets_as("pax path", &[x(&[("path", b"p/")]), lying("f", b'0')], &CLEAN, &["p/"], BOTH_PEERS, &[]);
    let contents = [header(b"d/", b'0', 600, |_| {}), padded(&[7; 600])].concat();
    gets_as("L of a file", &[long(b'L', "f"), contents.clone()], &CLEAN, &["f 600"], BOTH_PEERS, &[]);
    gets_as("path of a file", &[x(&[("path", b"f")]), contents.clone()], &CLEAN, &["f 600"], BOTH_PEERS, &[]);
    let prefix = header(b"", b'0', 1000, |b| b[345..348].copy_from_slice(b"p/q"));
    gets("prefix", &[prefix], &CLEAN, &["p/", "p/q/"]);
    for size in [&b"0"[..], b"600", b"1000000"] {
        gets_as("pax size", &[x(&[("size", size)]), lying("d/", b'0')], &CLEAN, &["d/"], BOTH_PEERS, &[]);
    }
    let junk = header(b"d/", b'0', 0, |b| b[124..136].copy_from_slice(b"0000000000x\0"));
    gets("a size that is no number", &[junk], &CLEAN, &["d/"]);
    let sparse: &[(&str, &[u8])] = &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,3")];
    gets_as("sparse", &[x(sparse), lying("d/", b'0')], &CLEAN, &["d/"], &[Bsd], &[]);
    // These have none by their type, with and without the slash.
    for (typeflag, line) in [
        (b'2', "n -> t"),
        (b'3', "n CharDevice Some((0, 0))"),
        (b'4', "n BlockDevice Some((0, 0))"),
        (b'5', "n/"),
        (b'6', "n Fifo None"),
    ] {
        gets_as("by its type", &[lying("n/", typeflag)], &CLEAN, &[line], BOTH_PEERS, &[]);
        gets_as("without the slash", &[lying("n", typeflag)], &CLEAN, &[line], BOTH_PEERS, &[]);
        // Here bsdtar skips what is not there.
        gets_as("pax size", &[x(&[("size", b"600")]), lying("n", typeflag)], &CLEAN, &[line], &[Gnu], &[]);
    }
    gets_as("link", &[file("f", b"1"), link("n/", b'1', "f")], &CLEAN, &["f 1 *2", "n 1 *2"], BOTH_PEERS, &[]);
    // Where contents follow all the same, the place of the next header is not certain. GNU tar and bsdtar search for it.
    gets("with contents", &[contents], &STOPPED, &["d/"]);
}

#[test]
fn of_several_pax_headers_the_last_counts() {
    let f = || file("f", b"abc");
    let both = |what: &str, pieces: &[Vec<u8>], tree: &[&str]| gets_as(what, pieces, &MENDED, tree, BOTH_PEERS, &[]);
    both("size", &[x(&[("size", b"600")]), x(&[("comment", b"c")]), f()], &["f 3"]);
    both("path", &[x(&[("path", b"one")]), x(&[("path", b"two")]), f()], &["two 3"]);
    both("another key", &[x(&[("path", b"one")]), x(&[("mtime", b"5")]), f()], &["f 3"]);
    both("three", &[x(&[("path", b"one")]), x(&[("size", b"9")]), x(&[("mtime", b"5")]), f()], &["f 3"]);
    both("of Solaris", &[pax(b'X', &[("path", b"one")]), x(&[("mtime", b"5")]), f()], &["f 3"]);
    let between = [x(&[("path", b"one")]), long(b'L', "by L"), x(&[("mtime", b"5")]), f()];
    both("L between", &between, &["by L 3"]);
    let between = [x(&[("linkpath", b"one")]), long(b'K', "by K"), x(&[("mtime", b"5")]), link("f", b'2', "t")];
    both("K between", &between, &["f -> by K"]);
    let g = || pax(b'g', &[("comment", b"c")]);
    both("g between", &[x(&[("path", b"one")]), g(), x(&[("mtime", b"5")]), f()], &["f 3"]);
    both("a malformed one first", &[member("x", b'x', b"99 a=b\n"), x(&[("path", b"two")]), f()], &["two 3"]);
    gets_as("g alone between", &[x(&[("path", b"one")]), g(), f()], &CLEAN, &["one 3"], BOTH_PEERS, &[]);
    let size = [x(&[("size", b"600")]), g(), header(b"f", b'0', 3, |_| {}), padded(&[7; 600])];
    gets_as("g between, with a size", &size, &CLEAN, &["f 600"], BOTH_PEERS, &[]);
    let attribute = [x(&[("SCHILY.xattr.user.a", b"1")]), x(&[("comment", b"c")]), f()];
    both("an attribute", &attribute, &["f 3"]);
    let received = receive(&archive(&attribute), From::File);
    assert!(received.store.index().xattrs(received.ino("f")).unwrap().is_empty());
    assert_eq!(received.status.problems[0].path, "f");
}

#[test]
fn a_malformed_pax_header_costs_its_member_alone() {
    let broken: [&[u8]; 16] = [
        b"5 a=b\n",
        b"7 a=b\n",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"6 a=b",
        b"6 a b\n",
        b"2 \n",
        b"\n",
        b"99 a=b\n",
        b"x a=b\n",
        b"6 ab\n\n",
        b"7 a=bcd",
        b"6 a=b\n\n",
        b" 6 a=b\n",
        b"99999999999999999999999 a=b\n",
        b"0000000000000000000026 a=b\n",
    ];
    let lost = |what: &str, pieces: &[Vec<u8>], name: &str| {
        gets_as(what, pieces, &REFUSED, &[], BOTH_PEERS, &[name]);
        let received = receive(&archive(pieces), From::File);
        let problem = &received.status.problems[0];
        assert_eq!(problem.path, name.trim_end_matches('/'), "{what}");
        assert!(problem.reason.contains("malformed"), "{}", problem.reason);
    };
    for records in broken {
        lost(&escape(records), &[member("x", b'x', records), file("f", b"abc")], "f");
        let long = [records.to_vec(), record("comment", &[b'c'; 3000])].concat();
        lost("with more behind it", &[member("x", b'x', &long), file("f", b"abc")], "f");
    }
    let bad = || member("x", b'x', b"99 a=b\n");
    lost("an empty key", &[bad(), file("f", b"")], "f");
    lost("a file that is the last one", &[bad(), file("f", &[7; 5000])], "f");
    lost("directory", &[bad(), dir("d")], "d/");
    lost("symbolic link", &[bad(), link("l", b'2', "t")], "l");
    lost("named by L", &[bad(), long(b'L', "by L"), file("f", b"abc")], "by L");
    lost("behind a good one", &[x(&[("path", b"two")]), bad(), file("f", b"abc")], "f");
    gets("hard link", &[bad(), link("h", b'1', "A")], &REFUSED, &[]);
    gets("label", &[bad(), member("label", b'V', b"")], &REFUSED, &[]);
    let sparse = header(b"s", b'S', 3, |b| {
        b[257..265].copy_from_slice(b"ustar  \0");
        b[398..409].copy_from_slice(b"00000000003");
        b[483..494].copy_from_slice(b"00000000003");
    });
    lost("sparse", &[bad(), sparse, padded(b"abc")], "s");
    // Its name and size count, where they were read: GNU tar and bsdtar follow such a size, too.
    let size = [record("size", b"600"), record("path", b"new"), b"99 a=b\n".to_vec()].concat();
    let pieces = [member("x", b'x', &size), header(b"f", b'0', 3, |_| {}), padded(&[7; 600])];
    gets("a size before", &pieces, &REFUSED, &[]);
    assert_eq!(receive(&archive(&pieces), From::Pipe).status.problems[0].path, "new");
    // Where no header is found behind the size that is known, there was another one.
    let size = [b"99 a=b\n".to_vec(), record("size", b"600")].concat();
    let pieces = [member("x", b'x', &size), header(b"f", b'0', 3, |_| {}), padded(&[7; 600])];
    gets("a size behind", &pieces, &outcome(5, 1, 0), &[]);
    for from in BOTH {
        // The end of the archive stands there.
        let received = receive(&[file("A", b"before"), bad(), file("f", b"abc"), END.to_vec()].concat(), from);
        assert_eq!((received.exit(), received.tree()), (3, vec!["A 6".to_owned()]));
        let received = receive(&[file("A", b"before"), bad(), file("f", b"abc")].concat(), from);
        assert_eq!((received.exit(), received.tree()), (4, vec!["A 6".to_owned()]));
    }
}

#[test]
fn a_malformed_global_header_costs_no_member() {
    let records = [record("mtime", b"7"), b"0 a=b\n".to_vec(), record("uid", b"9")].concat();
    let pieces = [member("g", b'g', &records), file("f", b"abc")];
    for from in BOTH {
        let archive = archive(&pieces);
        let received = receive(&archive, from);
        assert_eq!((received.exit(), received.status.refused), (3, 1), "{:?}", received.status.problems);
        // What stands before it counts, as for GNU tar.
        same("global", &received, Gnu, &archive, &[]);
    }
}

#[test]
fn global_headers_name_no_member() {
    let told = |key: &str, value: &[u8]| {
        let pieces = [pax(b'g', &[(key, value)]), file("f", b"abc"), file("h", b"abc")];
        gets_as(key, &pieces, &MENDED, &["f 3", "h 3"], &[Bsd], &[]);
        receive(&archive(&pieces), From::File).status.problems[0].reason.clone()
    };
    assert!(told("path", b"all").contains("'path'"));
    assert!(told("linkpath", b"all").contains("'linkpath'"));
    assert!(told("GNU.sparse.name", b"all").contains("'GNU.sparse.name'"));
    // Of GNU tar's every member has the one name, so that one file is left. The own name of a member wins anywhere.
    let own = [pax(b'g', &[("path", b"all")]), x(&[("path", b"own")]), file("f", b"abc")];
    gets_as("own", &own, &MENDED, &["own 3"], &[Bsd], &[]);
}

/// An old GNU sparse header; `more` blocks of its map follow, each with its segments.
fn old_sparse(segments: &[(u64, u64)], more: &[&[(u64, u64)]], real: u64, size: u64, stored: &[u8]) -> Vec<u8> {
    let put = |block: &mut [u8], segments: &[(u64, u64)]| {
        for (slot, (offset, len)) in block.chunks_exact_mut(24).zip(segments) {
            slot[..12].copy_from_slice(format!("{offset:011o}\0").as_bytes());
            slot[12..].copy_from_slice(format!("{len:011o}\0").as_bytes());
        }
    };
    let mut out = header(b"s", b'S', size, |b| {
        b[257..265].copy_from_slice(b"ustar  \0");
        put(&mut b[386..482], segments);
        b[482] = (!more.is_empty()).into();
        b[483..494].copy_from_slice(format!("{real:011o}").as_bytes());
    });
    for (i, segments) in more.iter().enumerate() {
        let mut block = vec![0; BLOCK];
        put(&mut block[..504], segments);
        block[504] = (i + 1 < more.len()).into();
        out.extend(block);
    }
    [out, padded(stored)].concat()
}

#[test]
fn sparse_maps_that_are_odd() {
    let data: Vec<u8> = (1..=250).cycle().take(8192).collect();
    let s = |segments: &[(u64, u64)], more: &[&[(u64, u64)]], real, size: u64| {
        old_sparse(segments, more, real, size, &data[..size as usize])
    };
    // GNU tar takes the first empty slot for the end of the map, and loses its way.
    let gap = s(&[(0, 512)], &[&[(1024, 512)]], 3000, 1024);
    gets_as("an empty slot before a block of the map", &[gap], &CLEAN, &["s 3000"], &[Bsd], &[]);
    let none: &[(u64, u64)] = &[];
    let full = [(0, 512), (512, 512), (1024, 512), (1536, 512)];
    let gap = s(&full, &[none, &[(2048, 512)]], 5000, 2560);
    gets_as("an empty block of the map", &[gap], &CLEAN, &["s 5000"], &[Bsd], &[]);
    gets("no segment in the header", &[s(none, &[&[(512, 512)]], 3000, 512)], &CLEAN, &["s 3000"]);
    gets("a map without segments", &[s(none, &[none, none], 3000, 0)], &CLEAN, &["s 3000"]);
    // Sum of the map, and size of the header. bsdtar goes by the lesser of the two.
    for (sum, size) in [(4099, 4100), (4100, 4099)] {
        let line = format!("s {sum}");
        let stored = data[..4100].to_vec();
        let old = old_sparse(&[(0, sum)], &[], sum, size, &stored);
        gets_as("old", &[old], &CLEAN, &[&line], &[Gnu], &[]);
        let map = padded(format!("1\n0\n{sum}\n").as_bytes());
        let real = sum.to_string();
        let records: &[(&str, &[u8])] = &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"s"),
            ("GNU.sparse.realsize", real.as_bytes()),
        ];
        let head = header(b"f", b'0', size + BLOCK as u64, |_| {});
        gets_as("1.0", &[x(records), head, map, padded(&stored)], &CLEAN, &[&line], &[Gnu], &[]);
    }
    // From here on another block is meant.
    gets("a block more", &[old_sparse(&[(0, 4096)], &[], 4096, 4097, &data[..4097])], &REFUSED, &[]);
    gets("a block less", &[old_sparse(&[(0, 4097)], &[], 4097, 4096, &data[..4096])], &REFUSED, &[]);
}

/// A member of type `A` for the one behind it.
fn acl(text: &str) -> Vec<u8> {
    member("f", b'A', format!("{text}\0").as_bytes())
}

impl Received {
    fn acl(&self, path: &str, name: &[u8]) -> Option<Vec<u8>> {
        let xattrs = self.store.index().xattrs(self.ino(path)).unwrap();
        xattrs.get(name).map(<[u8]>::to_vec)
    }
}

/// As the kernel has it below a directory.
fn attribute(path: &Path, name: &[u8]) -> Option<Vec<u8>> {
    let mut value = vec![0; 64 << 10];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    Some(value[..n].to_vec())
}

#[test]
fn acls_of_solaris() {
    let posix = "1000006\0user::rw-,user:lp:--x:7,user:100:r-x:100,group::r--,mask:r-x,other:r--";
    let on_directory = "1000012\0user::rwx,user:101:r-x:101,group::r-x,mask:r-x,other:r--,\
        defaultuser::rwx,default:user:100:r-x:100,defaultgroup::r-x,defaultmask:r-x,defaultother:---";
    let with_name = x(&[("path", b"named")]);
    for (what, pieces, path) in [
        ("file", vec![acl(posix), file("f", b"abc")], "f"),
        ("directory", vec![acl(on_directory), dir("f")], "f"),
        ("pax header behind it", vec![acl(posix), with_name.clone(), file("f", b"abc")], "named"),
        ("pax header before it", vec![with_name, acl(posix), file("f", b"abc")], "named"),
        ("size of a pax header", vec![x(&[("size", b"3")]), acl(posix), file("f", b"abc")], "f"),
    ] {
        let line = if what == "directory" { "f/".to_owned() } else { format!("{path} 3") };
        gets_as(what, &pieces, &CLEAN, &[&line], &[Bsd], &[]);
        let archive = archive(&pieces);
        let theirs = Bsd.extract(&archive);
        for from in BOTH {
            let received = receive(&archive, from);
            for name in [ACL_ACCESS, ACL_DEFAULT] {
                let expected = attribute(&theirs.path().join("out").join(path), name);
                assert_eq!(received.acl(path, name), expected, "{what}");
                assert_eq!(expected.is_some(), name == ACL_ACCESS || what == "directory", "{what}");
            }
        }
    }
    let f = || file("f", b"abc");
    let out = |what: &str, acl: Vec<u8>, reason: &str| {
        gets_as(what, &[acl.clone(), f()], &REFUSED, &["f 3"], BOTH_PEERS, &[]);
        let received = receive(&archive(&[acl, f()]), From::File);
        let problem = &received.status.problems[0];
        assert_eq!(problem.path, "f", "{what}");
        assert!(problem.reason.contains(reason), "{what}: {}", problem.reason);
    };
    out("NFSv4", acl("3000001\0everyone@:r-----a-R-c--s:-------:allow"), "NFSv4");
    out("no number", acl("xyz"), "known kind");
    out("an unknown kind", acl("2000001\0user::rwx"), "known kind");
    out("nothing in it", acl("1000006"), "no entries");
    out("a number without end", member("f", b'A', b"1000006"), "known kind");
    out("nonsense", acl("1000001\0nonsense"), "'nonsense'");
    out("a name without a number", acl("1000001\0user:nobody-here:rwx"), "nobody-here");
    out("too large", acl(&format!("1000001\0{}", "u".repeat(600_000))), "too large");
    gets("of a link", &[acl(posix), link("l", b'2', "t")], &REFUSED, &["l -> t"]);
    // Of nobody.
    let received = receive(&[file("A", b""), acl(posix), END.to_vec()].concat(), From::File);
    assert_eq!((received.exit(), received.status.warnings), (0, 1));
}
