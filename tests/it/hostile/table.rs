//! What each kind of input gets, from a file in its place and through a pipe.

use super::*;
use restorefs::monitor::{Problem, Severity};

/// How it ends, and how much is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    exit: u8,
    refused: u64,
    warnings: u64,
}

pub(super) const fn outcome(exit: u8, refused: u64, warnings: u64) -> Outcome {
    Outcome { exit, refused, warnings }
}

pub(super) const CLEAN: Outcome = outcome(0, 0, 0);
pub(super) const MENDED: Outcome = outcome(0, 0, 1);
pub(super) const REFUSED: Outcome = outcome(3, 1, 0);
pub(super) const STOPPED: Outcome = outcome(5, 0, 0);
const CUT: Outcome = outcome(4, 0, 0);

/// The pieces with a file before and behind them, and the end.
pub(super) fn archive(pieces: &[Vec<u8>]) -> Vec<u8> {
    [file("A", b"before"), pieces.concat(), file("Z", b"behind"), END.to_vec()].concat()
}

/// Receives the pieces with a file before and behind them. Both are there, whatever is between, unless it stops.
#[track_caller]
pub(super) fn gets(what: &str, pieces: &[Vec<u8>], want: &Outcome, tree: &[&str]) {
    let stops = want.exit >= 4;
    for from in BOTH {
        let received = receive(&archive(pieces), from);
        let status = &received.status;
        let got = outcome(received.exit(), status.refused, status.warnings);
        assert_eq!(&got, want, "{what}, {from:?}: {:?} {:?}", status.problems, status.end);
        let mut all: Vec<String> = tree.iter().map(ToString::to_string).collect();
        all.extend(["A 6".to_owned()].into_iter().chain((!stops).then(|| "Z 6".to_owned())));
        all.sort();
        assert_eq!(received.tree(), all, "{what}, {from:?}");
        assert_eq!(received.contents("A").unwrap(), b"before", "{what}");
        if !stops {
            assert_eq!(received.contents("Z").unwrap(), b"behind", "{what}");
        }
        // What is refused is named, where it has a name.
        let named = |p: &Problem| {
            !p.path.is_empty() || p.severity == Severity::Warning || p.reason.contains("the name is empty")
        };
        assert!(status.problems.iter().all(named), "{what}: {:?}", status.problems);
        assert_eq!(status.problems.len() as u64, want.refused + want.warnings, "{what}");
        assert!(status.end.is_some(), "{what}");
    }
}

/// A header with this field for its size, or another one.
fn with(name: &str, typeflag: u8, at: usize, field: &[u8]) -> Vec<u8> {
    header(name.as_bytes(), typeflag, 0, |b| b[at..at + field.len()].copy_from_slice(field))
}

const SIZE: usize = 124;

#[test]
fn framing_and_size() {
    let x = |records: &[(&str, &[u8])]| pax(b'x', records);
    gets("pax size wins", &[x(&[("size", b"600")]), member("f", b'0', b"x"), padded(&[1; 88])], &CLEAN, &["f 600"]);
    gets(
        "it may be less",
        &[x(&[("size", b"1")]), header(b"f", b'0', 1 << 30, |_| {}), padded(b"y")],
        &CLEAN,
        &["f 1"],
    );
    let l = member("long", b'L', b"named by L\0");
    gets("not for L", &[x(&[("size", b"3")]), l, member("f", b'0', b"abc")], &CLEAN, &["named by L 3"]);
    for field in [&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"0000000000x\0", b"00000000 12\0"] {
        // The last is two numbers: octal ends at the blank (GNU tar), and eight zeros are a size.
        let want = if field[8] == b' ' { &CLEAN } else { &STOPPED };
        let tree: &[&str] = if field[8] == b' ' { &["f 0"] } else { &[] };
        gets("size", &[with("f", b'0', SIZE, field)], want, tree);
    }
    gets("size over off_t", &[with("f", b'0', SIZE, b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")], &STOPPED, &[]);
    for size in ["+5", "-1", "9223372036854775807", "18446744073709551616", "0x10", "1e3", " 5", "5.0"] {
        gets(size, &[x(&[("size", size.as_bytes())]), file("f", b"")], &STOPPED, &[]);
    }
    for broken in
        [&b"5 a=b\n"[..], b"7 a=b\n", b"0 a=b\n", b"-6 a=b\n", b"6 a=b", b"6 a b\n", b"2 \n", b"\n", b"6  =b\n"]
    {
        let want = if broken == b"6  =b\n" { &CLEAN } else { &REFUSED };
        let tree: &[&str] = if *want == CLEAN { &["f 0"] } else { &[] };
        gets("record", &[member("x", b'x', broken), file("f", b"")], want, tree);
    }
    gets("huge", &[header(b"f", b'0', 0o77777777777, |_| {})], &CUT, &["f 8589934591"]);
    let largest = x(&[("size", b"9223372036854775295")]);
    gets("the largest", &[largest, file("f", b"")], &CUT, &["f 9223372036854775295"]);
    for (typeflag, line) in [
        (b'2', "n -> t"),
        (b'3', "n CharDevice Some((0, 0))"),
        (b'4', "n BlockDevice Some((0, 0))"),
        (b'5', "n/"),
        (b'6', "n Fifo None"),
    ] {
        let n = header(b"n", typeflag, 700, |b| b[157] = b't');
        gets("size of what has none", &[n], &CLEAN, &[line]);
    }
    let hard = header(b"n", b'1', 700, |b| b[157] = b'A');
    for from in BOTH {
        let archive = [file("A", b"before"), hard.clone(), file("Z", b"behind"), END.to_vec()].concat();
        assert_eq!(receive(&archive, from).tree(), ["A 6 *2", "Z 6", "n 6 *2"]);
        // In a pax archive the contents may follow.
        let archive = [
            file("A", b"before"),
            x(&[("comment", b"")]),
            hard.clone(),
            padded(&[9; 700]),
            file("Z", b""),
            END.to_vec(),
        ];
        assert_eq!(receive(&archive.concat(), from).tree(), ["A 6 *2", "Z 0", "n 6 *2"]);
    }
    let signed = {
        let mut block = header(b"\xff\xfe", b'0', 0, |_| {});
        let sum: i32 =
            block.iter().enumerate().map(|(i, &b)| if (148..156).contains(&i) { 32 } else { i32::from(b as i8) }).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    };
    gets("signed sum", &[signed], &CLEAN, &["\\xff\\xfe 0"]);
    let mut wrong = file("f", b"");
    wrong[0] = b'g';
    gets("wrong sum", &[wrong], &STOPPED, &[]);
    gets("unknown type", &[member("f", b'Q', b"abc")], &MENDED, &["f 3"]);
    gets("label", &[member("name of it", b'V', b"")], &CLEAN, &[]);
    gets("continuation", &[member("f", b'M', &[1; 600])], &REFUSED, &[]);
    gets("renames", &[member("f", b'N', &[1; 600])], &REFUSED, &[]);
    gets("dumpdir", &[member("d", b'D', &[b'Y'; 3 << 20])], &CLEAN, &["d/"]);
}

#[test]
fn global_headers() {
    gets("size", &[pax(b'g', &[("size", b"1")])], &STOPPED, &[]);
    // One warning for each.
    gets("path", &[pax(b'g', &[("path", b"p"), ("linkpath", b"l")]), file("f", b"")], &outcome(0, 0, 2), &["f 0"]);
    gets("sparse", &[pax(b'g', &[("GNU.sparse.size", b"9")]), file("f", b"")], &MENDED, &["f 0"]);
}

#[test]
fn ends() {
    let ends = |archive: &[Vec<u8>], want: &Outcome| {
        for from in BOTH {
            let received = receive(&archive.concat(), from);
            let status = &received.status;
            let got = outcome(received.exit(), status.refused, status.warnings);
            assert_eq!(&got, want, "{from:?}: {:?} {:?}", status.problems, status.end);
        }
    };
    let f = || file("f", b"abc");
    ends(&[f(), END.to_vec()], &CLEAN);
    ends(&[f(), END.to_vec(), vec![0; 10_000]], &CLEAN);
    ends(&[f(), END.to_vec(), vec![1; 100]], &MENDED);
    ends(&[f(), vec![0; BLOCK]], &MENDED);
    ends(&[f(), vec![0; BLOCK], f(), END.to_vec()], &MENDED);
    ends(&[f()], &CUT);
    ends(&[f()[..700].to_vec()], &CUT);
    // Nothing was received, so nothing stays mounted.
    let nothing = outcome(1, 0, 0);
    ends(&[f()[..100].to_vec()], &nothing);
    ends(&[pax(b'x', &[("path", b"p")])], &nothing);
    ends(&[], &nothing);
    ends(&[vec![1; BLOCK]], &nothing);
    ends(&[END.to_vec()], &CLEAN);
    // Zeros make an empty archive only where nothing else follows, or another archive.
    ends(&[vec![0; 32 << 10], vec![1; 100]], &STOPPED);
    ends(&[vec![0; 32 << 10], vec![1; BLOCK]], &STOPPED);
    ends(&[vec![0; BLOCK], vec![1; BLOCK]], &STOPPED);
    ends(&[vec![0; 32 << 10], f(), END.to_vec()], &MENDED);
}

#[test]
fn names() {
    let x = |path: &[u8]| [pax(b'x', &[("path", path)]), file("f", b"1")].concat();
    gets("dots and slashes", &[x(b"./a//b/./c")], &CLEAN, &["a/", "a/b/", "a/b/c 1"]);
    gets("leading slash", &[x(b"/a"), x(b"//b")], &MENDED, &["a 1", "b 1"]);
    gets("root", &[dir("./"), dir("/"), dir(".")], &MENDED, &[]);
    let long = "n".repeat(256);
    let deep = "d/".repeat(4096) + "f";
    for path in ["../f", "a/../b", "a/..", "..", "/../f", "a\0b", &long, &format!("d/{long}/f"), &deep] {
        gets(&escape(path.as_bytes()), &[x(path.as_bytes())], &REFUSED, &[]);
    }
    gets("empty", &[file("", b"1")], &REFUSED, &[]);
    gets("an empty value takes it back", &[x(b"")], &CLEAN, &["f 1"]);
    let fine: [&[u8]; 7] = [b"...", b"-rf", b"a\nb", b"\xff", b"\x1b[31m", b"a\\b", b" "];
    for path in fine {
        gets(&escape(path), &[x(path)], &CLEAN, &[&format!("{} 1", escape(path))]);
    }
    let l = member("l", b'L', b"by L\0");
    gets("pax and L", &[pax(b'x', &[("path", b"by pax")]), l, file("f", b"1")], &MENDED, &["by pax 1"]);
    let twice = pax(b'x', &[("path", b"first"), ("path", b"last")]);
    gets("repeated", &[twice, file("f", b"1")], &CLEAN, &["last 1"]);
    let prefix =
        |prefix: &[u8], name: &[u8]| header(name, b'0', 0, |b| b[345..345 + prefix.len()].copy_from_slice(prefix));
    gets("prefix", &[prefix(b"p/q", b"f")], &CLEAN, &["p/", "p/q/", "p/q/f 0"]);
    gets("prefix out of it", &[prefix(b"..", b"f"), prefix(b"p/..", b"f")], &outcome(3, 2, 0), &[]);
    gets("absolute prefix", &[prefix(b"/p", b"f")], &MENDED, &["p/", "p/f 0"]);
    let too_long = member("l", b'L', &vec![b'x'; 70_000]);
    gets("a name without end", &[too_long, file("f", b"1")], &REFUSED, &[]);
    gets("in pax", &[x(&vec![b'/'; 70_000])], &REFUSED, &[]);
}

#[test]
fn the_same_name_again() {
    gets("file", &[file("n", b"1"), file("n", b"22")], &CLEAN, &["n 2"]);
    gets("file over full directory", &[file("d/f", b"1"), file("d", b"")], &REFUSED, &["d/", "d/f 1"]);
    gets("link over full directory", &[file("d/f", b"1"), link("d", b'2', "A")], &REFUSED, &["d/", "d/f 1"]);
    gets("file over empty directory", &[dir("d"), file("d", b"1")], &CLEAN, &["d 1"]);
    gets("directory over file", &[file("d", b"1"), dir("d"), file("d/f", b"")], &CLEAN, &["d/", "d/f 0"]);
    gets("directory over link", &[link("d", b'2', "/etc"), dir("d"), file("d/f", b"")], &CLEAN, &["d/", "d/f 0"]);
    gets("directory again", &[file("d/f", b"1"), dir("d")], &CLEAN, &["d/", "d/f 1"]);
    gets("a directory that gave way", &[dir("d"), file("d", b"1"), file("d/f", b"")], &REFUSED, &["d 1"]);
    let back = [dir("d"), file("d", b"1"), dir("d"), file("d/f", b"")];
    gets("and came back", &back, &CLEAN, &["d/", "d/f 0"]);
    gets("the root as a file", &[file(".", b"1"), link("./", b'2', "A")], &outcome(3, 2, 0), &[]);
}

#[test]
fn links() {
    gets("targets", &[link("l", b'2', "/etc/../x"), link("m", b'2', "..")], &CLEAN, &["l -> /etc/../x", "m -> .."]);
    gets("no target", &[link("l", b'2', "")], &REFUSED, &[]);
    for (len, want) in [(4095, &CLEAN), (4096, &REFUSED)] {
        let target = "t".repeat(len);
        let line = format!("l -> {target}");
        let tree: &[&str] = if *want == CLEAN { &[&line] } else { &[] };
        gets("long", &[pax(b'x', &[("linkpath", target.as_bytes())]), link("l", b'2', "x")], want, tree);
    }
    gets("NUL", &[pax(b'x', &[("linkpath", b"a\0b")]), link("l", b'2', "x")], &REFUSED, &[]);
    gets("through a link", &[link("l", b'2', "/tmp"), file("l/f", b"1")], &REFUSED, &["l -> /tmp"]);
    gets("through a file", &[file("A/f", b"1")], &REFUSED, &[]);
    gets("hard, through a link", &[link("l", b'2', "."), link("h", b'1', "l/A")], &REFUSED, &["l -> ."]);
    gets("hard, to a link", &[link("l", b'2', "x"), link("h", b'1', "l")], &CLEAN, &["h -> x *2", "l -> x *2"]);
    gets("hard, absolute", &[file("f", b"1"), link("h", b'1', "/f")], &MENDED, &["f 1 *2", "h 1 *2"]);
    gets("hard, out of it", &[link("h", b'1', "../A")], &REFUSED, &[]);
    gets("hard, to itself", &[link("h", b'1', "./h")], &REFUSED, &[]);
    gets("hard, to a directory", &[dir("d"), link("h", b'1', "d")], &REFUSED, &["d/"]);
    gets("hard, to the root", &[link("h", b'1', ".")], &REFUSED, &[]);
    gets("hard, to what never comes", &[link("h", b'1', "never")], &REFUSED, &[]);
    gets("hard, before its target", &[link("h", b'1', "f"), file("f", b"1")], &CLEAN, &["f 1 *2", "h 1 *2"]);
    gets("hard, in a circle", &[link("a", b'1', "b"), link("b", b'1', "a")], &outcome(3, 2, 0), &[]);
    let chain = [link("a", b'1', "b"), link("b", b'1', "c"), file("c", b"1")];
    gets("hard, in a chain", &chain, &CLEAN, &["a 1 *3", "b 1 *3", "c 1 *3"]);
    let again = [file("f", b"1"), link("h", b'1', "f"), file("f", b"22"), link("i", b'1', "f")];
    gets("hard, to what has the name now", &again, &CLEAN, &["f 2 *2", "h 1", "i 2 *2"]);
    let below = [link("p", b'1', "p/q"), file("p/q", b"1")];
    gets("hard, over the directory of its target", &below, &REFUSED, &["p/", "p/q 1"]);
    let above = [link("p/q", b'1', "p"), file("p", b"1")];
    gets("hard, below its target", &above, &REFUSED, &["p 1"]);
    let twice = [file("f", b"1"), link("h", b'1', "f"), link("h", b'1', "f")];
    gets("hard, twice", &twice, &CLEAN, &["f 1 *2", "h 1 *2"]);
}

#[test]
fn metadata() {
    let x = |records: &[(&str, &[u8])]| [pax(b'x', records), with("f", b'0', 100, b"0006755\0")].concat();
    let of = |archive: &[u8]| {
        let received = receive(&[archive, &END].concat(), From::File);
        let index = received.store.index();
        let a = index.attributes(received.ino("f")).unwrap();
        (a.mode, a.uid, a.gid, a.mtime.seconds(), received.status.warnings)
    };
    for uid in ["4294967295", "4294967296", "-2", "99999999999999999999"] {
        let (mode, uid, ..) = of(&x(&[("uid", uid.as_bytes())]));
        assert_eq!((mode, uid), (0o755, 65534));
    }
    assert_eq!(of(&with("f", b'0', 108, b"\xff\xff\xff\xff\xff\xff\xff\xff")).1, 65534);
    assert_eq!(of(&with("f", b'0', 100, b"7777777\0")).0, 0o7777);
    for (time, want) in [("99999999999999999999", i64::MAX), ("-99999999999999999999", -i64::MAX), ("-0.5", -1)] {
        assert_eq!(of(&x(&[("mtime", time.as_bytes())])).3, want, "{time}");
    }
    assert_eq!(of(&with("f", b'0', 136, b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")).3, i64::MAX);
    assert_eq!(of(&with("f", b'0', 136, b"\xff\0\0\0\0\0\0\0\0\0\0\0")).3, i64::MIN);
    let huge = vec![b'v'; (64 << 10) + 1];
    gets("xattr too large", &[x(&[("SCHILY.xattr.user.a", &huge)])], &REFUSED, &["f 0"]);
    gets("xattr without a name", &[x(&[("SCHILY.xattr.", b"v")])], &REFUSED, &["f 0"]);
    gets("bad ACL", &[x(&[("SCHILY.acl.access", b"nonsense")])], &REFUSED, &["f 0"]);
    let device = |major: &[u8]| header(b"n", b'3', 0, |b| b[329..337].copy_from_slice(major));
    gets("device", &[device(b"\x80\0\0\0\xff\xff\xff\xff")], &CLEAN, &["n CharDevice Some((4294967295, 0))"]);
    gets("no device", &[device(b"\xff\xff\xff\xff\xff\xff\xff\xff")], &MENDED, &["n CharDevice Some((0, 0))"]);
}

#[test]
fn sparse_maps() {
    let old = |segments: &[(u64, u64)], real: &[u8], stored: &[u8]| {
        let head = header(b"s", b'S', stored.len() as u64, |b| {
            b[257..265].copy_from_slice(b"ustar  \0");
            for (i, (offset, len)) in segments.iter().enumerate() {
                b[386 + 24 * i..][..12].copy_from_slice(format!("{offset:011o}\0").as_bytes());
                b[398 + 24 * i..][..12].copy_from_slice(format!("{len:011o}\0").as_bytes());
            }
            b[483..483 + real.len()].copy_from_slice(real);
        });
        [head, padded(stored)].concat()
    };
    let max = b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
    gets("old", &[old(&[(5, 3)], b"00000000020", b"abc")], &CLEAN, &["s 16"]);
    gets(
        "as long as can be",
        &[old(&[], b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xfd\xff", b"")],
        &CLEAN,
        &["s 9223372036854775295"],
    );
    gets("longer", &[old(&[], max, b"")], &REFUSED, &[]);
    gets("out of order", &[old(&[(9, 2), (0, 1)], b"00000000020", b"abc")], &REFUSED, &[]);
    gets("overlapping", &[old(&[(0, 2), (1, 1)], b"00000000020", b"abc")], &REFUSED, &[]);
    gets("outside", &[old(&[(14, 3)], b"00000000020", b"abc")], &REFUSED, &[]);
    gets("another sum", &[old(&[(1, 513)], b"00000002020", b"abc")], &REFUSED, &[]);
    let new = |map: &str, size: &[u8], rest: &[u8]| {
        let stored = [padded(map.as_bytes()), rest.to_vec()].concat();
        let records: &[(&str, &[u8])] =
            &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size)];
        [pax(b'x', records), member("s", b'0', &stored)].concat()
    };
    gets("1.0", &[new("1\n5\n3\n", b"16", b"abc")], &CLEAN, &["s 16"]);
    gets("too many", &[new("1048578\n", b"16", b"abc")], &REFUSED, &[]);
    gets("more than the payload", &[new("9\n5\n3\n", b"16", b"")], &REFUSED, &[]);
    gets("not a number", &[new("1\n5\nx\n", b"16", b"abc")], &REFUSED, &[]);
    gets("offset beyond all", &[new("1\n9999999999999999999\n3\n", b"16", b"abc")], &REFUSED, &[]);
    gets("20 digits", &[new("1\n99999999999999999999\n3\n", b"16", b"abc")], &REFUSED, &[]);
    for size in [&b"9223372036854775808"[..], b"18446744073709551615", b"99999999999999999999", b"-1", b""] {
        gets(&escape(size), &[new("1\n5\n3\n", size, b"abc")], &REFUSED, &[]);
    }
    // As a file is opened in a spool of this size it is refused by some filesystems, and only then.
    let received = receive(&[new("1\n5\n3\n", b"9223372036854775807", b"abc"), END.to_vec()].concat(), From::File);
    assert_eq!(received.exit(), 0, "{:?}", received.status);
    let ino = received.ino("s");
    assert_eq!(received.read(ino, 0, 9).unwrap(), b"\0\0\0\0\0abc\0");
    assert_eq!(received.read(ino, i64::MAX as u64 - 3, 10).unwrap(), [0; 3]);
}
