//! The decoder against the odd inputs of docs/policy.md, in every split, cut everywhere. Archives of real tools are
//! compared through the mount, in tests/it.

use super::fuzz::{Seen, decode};
use super::*;
use crate::entry::Entry;
use crate::entry::{EntryKind, Segment};

/// A header block of the given type; `edit` changes fields before the checksum is made.
pub(crate) fn header(name: &[u8], typeflag: u8, size: u64, edit: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0001750");
    block[116..123].copy_from_slice(b"0001751");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"14524770000");
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    edit(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block.to_vec()
}

fn payload(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.resize(bytes.len().next_multiple_of(BLOCK), 0);
    out
}

fn member(name: &[u8], typeflag: u8, bytes: &[u8]) -> Vec<u8> {
    [header(name, typeflag, bytes.len() as u64, |_| {}), payload(bytes)].concat()
}

fn link(name: &[u8], typeflag: u8, target: &[u8]) -> Vec<u8> {
    header(name, typeflag, 0, |b| b[157..157 + target.len()].copy_from_slice(target))
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len += 1;
    }
    [len.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

fn pax(typeflag: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    member(b"pax", typeflag, &records.iter().flat_map(|(k, v)| record(k, v)).collect::<Vec<_>>())
}

const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

fn all(archive: &[u8]) -> (Vec<Seen>, Result<End, Stop>) {
    decode(archive, usize::MAX, Options::default())
}

fn entries(seen: &[Seen]) -> Vec<&Entry> {
    seen.iter()
        .filter_map(|s| match s {
            Seen::Event(Event::Entry { entry, .. }) => Some(&**entry),
            _ => None,
        })
        .collect()
}

fn names(seen: &[Seen]) -> Vec<String> {
    entries(seen).iter().map(|e| e.path.to_string()).collect()
}

fn reasons(seen: &[Seen]) -> Vec<&str> {
    seen.iter()
        .filter_map(|s| match s {
            Seen::Event(Event::Refused { reason, .. }) => Some(reason.as_str()),
            _ => None,
        })
        .collect()
}

fn warnings(seen: &[Seen]) -> Vec<&str> {
    seen.iter()
        .filter_map(|s| match s {
            Seen::Event(Event::Warning { message, .. }) => Some(message.as_str()),
            _ => None,
        })
        .collect()
}

fn size_of_only(archive: &[u8]) -> u64 {
    let (seen, end) = all(archive);
    assert_eq!(end, Ok(End::Complete), "{seen:?}");
    assert_eq!(entries(&seen).len(), 1);
    entries(&seen)[0].kind.stored_len()
}

/// Everything at once.
fn everything() -> Vec<u8> {
    let mut sparse = header(b"old-sparse", b'S', 8, |b| {
        b[257..265].copy_from_slice(b"ustar  \0");
        for i in 0..4 {
            let at = 386 + 24 * i;
            b[at..at + 11].copy_from_slice(format!("{:011o}", i * 100).as_bytes());
            b[at + 12..at + 23].copy_from_slice(b"00000000001");
        }
        b[482] = 1;
        b[483..494].copy_from_slice(format!("{:011o}", 1000).as_bytes());
    });
    let mut more = vec![0; BLOCK];
    more[..11].copy_from_slice(format!("{:011o}", 500).as_bytes());
    more[12..23].copy_from_slice(b"00000000004");
    sparse.extend(more);
    sparse.extend(payload(b"abcdefgh"));
    let lines = b"2\n10\n3\n100\n2\n";
    let sparse_1_0 = [
        pax(
            b'x',
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"sparse-1.0"),
                ("GNU.sparse.realsize", b"200"),
            ],
        ),
        member(b"GNUSparseFile.1/x", b'0', &[payload(lines), b"xyzXY".to_vec()].concat()),
    ]
    .concat();
    [
        pax(b'g', &[("comment", b"hello"), ("mtime", b"-1.5")]),
        member(b"dir/", b'5', b""),
        member(b"dir/empty", b'0', b""),
        member(b"dir/file", b'0', &b"0123456789".repeat(100)),
        member(b"long", b'L', b"a/very/long/name\0"),
        member(b"long", b'K', b"../target\0"),
        link(b"short", b'2', b"nothing"),
        pax(b'x', &[("path", "pax-ü".as_bytes()), ("SCHILY.xattr.user.a", b"1\n=2"), ("uid", b"4000000000")]),
        member(b"x", b'0', b"data"),
        link(b"hard", b'1', b"dir/file"),
        header(b"null", b'3', 0, |b| {
            b[329..336].copy_from_slice(b"0000001");
            b[337..344].copy_from_slice(b"0000003");
        }),
        member(b"pipe", b'6', b""),
        sparse,
        sparse_1_0,
        pax(
            b'x',
            &[
                ("GNU.sparse.size", b"50"),
                ("GNU.sparse.offset", b"4"),
                ("GNU.sparse.numbytes", b"2"),
                ("GNU.sparse.offset", b"10"),
                ("GNU.sparse.numbytes", b"1"),
            ],
        ),
        member(b"sparse-0.0", b'0', b"abc"),
        END.to_vec(),
    ]
    .concat()
}

#[test]
fn everything_is_decoded() {
    let (seen, end) = all(&everything());
    assert_eq!(end, Ok(End::Complete));
    assert_eq!(warnings(&seen), [""; 0]);
    assert_eq!(reasons(&seen), [""; 0]);
    assert_eq!(
        names(&seen),
        [
            "dir",
            "dir/empty",
            "dir/file",
            "a/very/long/name",
            "pax-ü",
            "hard",
            "null",
            "pipe",
            "old-sparse",
            "sparse-1.0",
            "sparse-0.0"
        ]
    );
    let entries = entries(&seen);
    assert_eq!(entries[3].kind, EntryKind::Symlink { target: b"../target".as_slice().into() });
    assert_eq!(entries[4].metadata.uid, 4_000_000_000);
    assert_eq!(entries[4].metadata.xattrs.get(b"user.a"), Some(&b"1\n=2"[..]));
    assert_eq!((entries[0].metadata.mtime.seconds(), entries[0].metadata.mtime.nanos()), (-2, 500_000_000));
    let EntryKind::File { size: 200, sparse: Some(map) } = &entries[9].kind else { panic!("{:?}", entries[9]) };
    assert_eq!(map.segments(), [Segment { offset: 10, len: 3 }, Segment { offset: 100, len: 2 }]);
    let data: Vec<&[u8]> = seen
        .iter()
        .filter_map(|s| match s {
            Seen::Data(data) => Some(&data[..]),
            Seen::Event(_) => None,
        })
        .collect();
    assert_eq!(data, [&b"0123456789".repeat(100)[..], b"data", b"abcdefgh", b"xyzXY", b"abc"]);
}

#[test]
fn any_split_gives_the_same() {
    let archive = everything();
    let whole = all(&archive);
    for piece in [1, 2, 3, 7, 100, 511, 512, 513, 1000, 1024] {
        assert_eq!(decode(&archive, piece, Options::default()), whole, "pieces of {piece}");
    }
}

#[test]
fn every_cut_gives_a_beginning() {
    let archive = everything();
    let (whole, _) = all(&archive);
    for cut in 0..archive.len() - BLOCK {
        let (seen, end) = all(&archive[..cut]);
        assert!(matches!(end, Ok(End::Cut(_))), "cut at {cut}: {end:?}");
        for (i, (a, b)) in seen.iter().zip(&whole).enumerate() {
            match (a, b) {
                (Seen::Data(a), Seen::Data(b)) if i == seen.len() - 1 => assert!(b.starts_with(a)),
                (a, b) => assert_eq!(a, b, "cut at {cut}"),
            }
        }
        assert!(seen.len() <= whole.len());
    }
    // Nothing is missing when only the second zero block is.
    assert_eq!(all(&archive[..archive.len() - BLOCK]).1, Ok(End::LoneZeroBlock));
}

#[test]
fn skipping_gives_the_same_entries() {
    let archive = everything();
    let (whole, _) = all(&archive);
    let mut decoder = Decoder::new(Options::default());
    let mut at = 0;
    let mut found = Vec::new();
    while at < archive.len() {
        let skip = decoder.skippable().min((archive.len() - at) as u64);
        decoder.skip(skip);
        at += skip as usize;
        let mut input = &archive[at..(at + 64).min(archive.len())];
        let len = input.len();
        while let Some(event) = decoder.step(&mut input).unwrap() {
            if let Event::Entry { entry, offset } = event {
                found.push((entry.path.to_string(), offset));
                break;
            }
        }
        at += len - input.len();
        assert_eq!(decoder.position(), at as u64);
    }
    assert_eq!(found.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>(), names(&whole));
    let (_, offset) = &found[9];
    assert!(archive[*offset as usize..].starts_with(b"xyzXY"));
}

#[test]
fn framing_that_is_not_certain_stops() {
    let stop = |archive: &[u8], what: &str| {
        let archive = [member(b"before", b'0', b"x"), archive.to_vec(), END.to_vec()].concat();
        let whole = all(&archive);
        assert_eq!(decode(&archive, 1, Options::default()), whole);
        let stop = whole.1.unwrap_err();
        assert!(stop.reason.contains(what), "{stop}");
    };
    stop(&header(b"a", b'0', 0, |b| b[124..136].copy_from_slice(b"0000000000x\0")), "size of a member");
    stop(&header(b"a", b'0', 0, |b| b[124..136].copy_from_slice(&[0xff; 12])), "size of a member");
    stop(
        &header(b"a", b'0', 0, |b| b[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff")),
        "size",
    );
    stop(&header(b"a", b'x', 0, |b| b[124] = b'z'), "size of an extended header");
    stop(&pax(b'x', &[("size", b"+5")]), "pax size");
    stop(&pax(b'g', &[("size", b"5")]), "global pax header has a size");
    stop(&[b'x'; BLOCK], "checksum");
    assert!(all(&[b'x'; BLOCK]).1.unwrap_err().reason.contains("no tar archive"));
}

const MALFORMED: [&[u8]; 11] = [
    b"5 a=b\n",
    b"0 a=b\n",
    b"x a=b\n",
    b"99 a=b\n",
    b"6 ab\n\n",
    b"5 =b\n",
    b"7 a=bcd",
    b"6 a=b\n\n",
    b" 6 a=b\n",
    b"99999999999999999999999 a=b\n",
    b"0000000000000000000026 a=b\n",
];

#[test]
fn a_malformed_pax_header_costs_its_member_alone() {
    for broken in MALFORMED {
        let lost = [member(b"pax", b'x', broken), member(b"lost", b'0', b"contents")].concat();
        let archive = [lost.clone(), member(b"next", b'0', b"x"), END.to_vec()].concat();
        let whole = all(&archive);
        assert_eq!(names(&whole.0), ["next"]);
        assert_eq!((reasons(&whole.0).len(), &whole.1), (1, &Ok(End::Complete)));
        for piece in [1, 3, 511, 513] {
            assert_eq!(decode(&archive, piece, Options::default()), whole, "{broken:?} in pieces of {piece}");
        }
        // What stands there is no header: another size may have been said.
        let stop = all(&[lost, vec![7; BLOCK], END.to_vec()].concat()).1.unwrap_err();
        assert!(stop.reason.contains("malformed"), "{stop}");
    }
}

#[test]
fn pax_size_wins_and_only_for_the_member() {
    let long_between = [
        pax(b'x', &[("size", b"600")]),
        member(b"long", b'L', b"name-from-L\0"),
        header(b"f", b'0', 3, |_| {}),
        payload(&[b'z'; 600]),
        END.to_vec(),
    ]
    .concat();
    assert_eq!(size_of_only(&long_between), 600);
    let next = [pax(b'x', &[("size", b"3")]), member(b"a", b'0', b"abc"), member(b"b", b'0', b"four"), END.to_vec()];
    let (seen, end) = all(&next.concat());
    assert_eq!(end, Ok(End::Complete));
    assert_eq!(entries(&seen)[1].kind.stored_len(), 4);
}

#[test]
fn sizes_where_there_is_no_payload_are_none() {
    for typeflag in b'1'..=b'6' {
        let first = header(b"a", typeflag, 1000, |b| b[157..160].copy_from_slice(b"tgt"));
        let (seen, end) = all(&[first, member(b"next", b'0', b"x"), END.to_vec()].concat());
        assert_eq!((end, names(&seen)), (Ok(End::Complete), vec!["a".to_owned(), "next".into()]));
    }
    let hard = |payload: &[u8]| {
        [
            pax(b'x', &[("comment", b"pax")]),
            header(b"a", b'1', 1000, |b| b[157..160].copy_from_slice(b"tgt")),
            payload.to_vec(),
            member(b"next", b'0', b"x"),
            END.to_vec(),
        ]
        .concat()
    };
    for archive in [hard(b""), hard(&payload(&[7; 1000]))] {
        let (seen, end) = all(&archive);
        assert_eq!((end, names(&seen)), (Ok(End::Complete), vec!["a".to_owned(), "next".into()]));
    }
}

#[test]
fn names_that_are_refused_and_names_that_are_not() {
    let refused = [&b"../x"[..], b"a/../b", b"..", b"a/.."];
    for name in refused {
        let (seen, end) = all(&[member(name, b'0', b"payload"), member(b"next", b'0', b""), END.to_vec()].concat());
        assert_eq!((end, names(&seen)), (Ok(End::Complete), vec!["next".to_owned()]));
        assert!(reasons(&seen)[0].contains("'..'"));
    }
    for value in [&b"a\0b"[..], &[b'x'; 256], &b"y/".repeat(40_000)] {
        let (seen, _) = all(&[pax(b'x', &[("path", value)]), member(b"x", b'0', b"1"), END.to_vec()].concat());
        assert_eq!((entries(&seen).len(), reasons(&seen).len()), (0, 1));
    }
    let (seen, _) = all(&[member(b"L", b'L', &[b'n'; 70_000]), member(b"x", b'0', b"1"), END.to_vec()].concat());
    assert!(reasons(&seen)[0].contains("65536"), "{seen:?}");
    for name in [&b"-rf"[..], b"a\\b", b"...", b"\xff\xfe", b"new\nline", b"\x1b[31m", b"..a"] {
        let (seen, _) = all(&[member(name, b'0', b""), END.to_vec()].concat());
        assert_eq!(entries(&seen)[0].path.as_bytes(), name);
        assert!(reasons(&seen).is_empty() && warnings(&seen).is_empty());
    }
    let (seen, _) = all(&[member(b"/a", b'0', b""), member(b"/b/", b'5', b""), END.to_vec()].concat());
    assert_eq!((names(&seen), warnings(&seen).len()), (vec!["a".to_owned(), "b".into()], 1));
}

#[test]
fn metadata_that_is_mended() {
    let (seen, _) = all(&[
        pax(b'x', &[("uid", b"4294967295")]),
        header(b"a", b'0', 0, |b| b[100..107].copy_from_slice(b"0006755")),
        END.to_vec(),
    ]
    .concat());
    let a = entries(&seen)[0];
    assert_eq!((a.metadata.uid, a.metadata.mode, warnings(&seen).len()), (65534, 0o755, 1));
    let (seen, _) = all(&[header(b"a", b'0', 0, |b| b[100..108].copy_from_slice(b"0100644\0")), END.to_vec()].concat());
    assert_eq!(entries(&seen)[0].metadata.mode, 0o644);
    let (seen, _) = all(&[
        pax(b'x', &[("mtime", b"5"), ("mtime", b""), ("uname", b"a"), ("uname", b"b")]),
        header(b"a", b'0', 0, |_| {}),
        END.to_vec(),
    ]
    .concat());
    let a = entries(&seen)[0];
    assert_eq!((a.metadata.mtime.seconds(), a.metadata.user.as_deref()), (0o14524770000, Some(&b"b"[..])));
}

#[test]
fn names_of_xattrs_are_unescaped_as_their_writer_escaped_them() {
    let (seen, _) = all(&[
        pax(
            b'x',
            &[
                // libarchive: each twice, in either order.
                ("LIBARCHIVE.xattr.user.a%20b", b"MQ"),
                ("SCHILY.xattr.user.a%20b", b"1"),
                ("SCHILY.xattr.user.a%2520b", b"2"),
                ("LIBARCHIVE.xattr.user.a%2520b", b"Mg"),
                // GNU tar.
                ("SCHILY.xattr.user.%3D%25%41", b"3"),
            ],
        ),
        member(b"f", b'0', b""),
    ]
    .concat());
    let xattrs: Vec<_> = entries(&seen)[0].metadata.xattrs.iter().collect();
    let expected: [(&[u8], &[u8]); 3] = [(b"user.=%%41", b"3"), (b"user.a b", b"1"), (b"user.a%20b", b"2")];
    assert_eq!(xattrs, expected);
}

#[test]
fn xattrs_are_bounded_and_refused_alone() {
    let (seen, end) = all(&[
        pax(
            b'x',
            &[
                ("SCHILY.xattr.user.big", &[0; 65_537]),
                ("SCHILY.xattr.nonamespace", b"x"),
                ("SCHILY.xattr.user.empty", b""),
                ("LIBARCHIVE.xattr.user.%41", b"aGk"),
                ("LIBARCHIVE.xattr.user.b", b"!!"),
                ("RHT.security.selinux", b"system_u:object_r:etc_t:s0"),
                ("SCHILY.acl.access", b"user::rw-,user:7:r--,group::r--,mask::r--,other::---"),
                ("SCHILY.acl.default", b"user::rw-,group::r--,other::---"),
            ],
        ),
        member(b"a", b'0', b""),
        END.to_vec(),
    ]
    .concat());
    assert_eq!(end, Ok(End::Complete));
    assert_eq!(reasons(&seen).len(), 4, "{:?}", reasons(&seen));
    let xattrs = &entries(&seen)[0].metadata.xattrs;
    assert_eq!(xattrs.get(b"user.empty"), Some(&b""[..]));
    assert_eq!(xattrs.get(b"user.A"), Some(&b"hi"[..]));
    assert_eq!(xattrs.get(b"security.selinux"), Some(&b"system_u:object_r:etc_t:s0\0"[..]));
    assert!(xattrs.get(crate::entry::ACL_ACCESS).is_some());
    assert_eq!(xattrs.iter().count(), 4);
}

#[test]
fn what_a_global_header_gives_to_every_member_is_bounded() {
    let big = vec![b'v'; 3000];
    let (seen, end) = all(&[
        pax(b'g', &[("SCHILY.xattr.user.one", &big), ("SCHILY.xattr.user.two", &big)]),
        pax(b'g', &[("SCHILY.acl.access", &big), ("uname", &big), ("mtime", b"5")]),
        member(b"f", b'0', b""),
        END.to_vec(),
    ]
    .concat());
    assert_eq!(end, Ok(End::Complete));
    assert_eq!(reasons(&seen).len(), 3);
    let metadata = &entries(&seen)[0].metadata;
    assert_eq!(metadata.xattrs.iter().map(|(name, _)| name).collect::<Vec<_>>(), [b"user.one"]);
    assert_eq!((metadata.user.as_deref(), metadata.mtime.seconds()), (None, 5));
}

#[test]
fn problems_of_one_header_are_bounded() {
    let path = [&[b'p'; 250][..], b"/"].concat().repeat(200);
    let nameless: Vec<_> = (0..1000).map(|i| format!("SCHILY.xattr.{i}")).collect();
    let not_base64: Vec<_> = (0..1000).map(|i| format!("LIBARCHIVE.xattr.user.{i}")).collect();
    let mut records: Vec<(&str, &[u8])> = vec![("path", &path[..])];
    records.extend(nameless.iter().map(|key| (key.as_str(), &b"v"[..])));
    records.extend(not_base64.iter().map(|key| (key.as_str(), &b"!"[..])));
    let (seen, end) = all(&[pax(b'x', &records), member(b"f", b'0', b""), END.to_vec()].concat());
    assert_eq!(end, Ok(End::Complete));
    let reasons = reasons(&seen);
    assert!((100..200).contains(&reasons.len()), "{}", reasons.len());
    assert_eq!(reasons.iter().filter(|reason| reason.contains("too many to name")).count(), 2);
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let sparse = |size: &[u8], map: &[u8]| {
        let (seen, end) = all(&[
            pax(b'x', &[("GNU.sparse.size", size), ("GNU.sparse.map", map)]),
            member(b"s", b'0', b"12345"),
            member(b"next", b'0', b"x"),
            END.to_vec(),
        ]
        .concat());
        assert_eq!(end, Ok(End::Complete));
        assert_eq!(names(&seen).last().unwrap(), "next");
        names(&seen).len() == 2
    };
    assert!(sparse(b"100", b"0,5"));
    assert!(sparse(b"100", b"0,2,50,3,100,0"));
    // The difference is in the padding of the last block.
    assert!(sparse(b"100", b"0,4"));
    for (size, map) in [
        (&b"1000"[..], &b"0,513"[..]),
        (b"100", b"0,3,2,2"),
        (b"100", b"98,5"),
        (b"x", b"0,5"),
        (b"9223372036854775808", b"0,5"),
        (b"100", b"0"),
        (b"100", b"0,x"),
        (b"4", b"0,5"),
        (b"100", b"50,2,0,3"),
    ] {
        assert!(!sparse(size, map), "{map:?}");
    }
}

#[test]
fn ends() {
    assert_eq!(all(&END).1, Ok(End::Complete));
    assert_eq!(all(b"").1, Ok(End::Cut("the stream ended before its first byte")));
    assert_eq!(all(&END[..BLOCK]).1, Ok(End::LoneZeroBlock));
    let behind = [member(b"a", b'0', b""), END.to_vec(), member(b"b", b'0', b""), END.to_vec()].concat();
    let (seen, end) = all(&behind);
    assert_eq!((names(&seen), end, warnings(&seen).len()), (vec!["a".to_owned()], Ok(End::Complete), 1));
    let on = Options { concatenated: true, ..Options::default() };
    let (seen, end) = decode(&behind, 512, on);
    assert_eq!((names(&seen), end), (vec!["a".to_owned(), "b".into()], Ok(End::Complete)));
    let lone = [member(b"a", b'0', b""), END[..BLOCK].to_vec(), member(b"b", b'0', b"")].concat();
    let (seen, end) = all(&lone);
    assert_eq!((names(&seen), end, warnings(&seen).len()), (vec!["a".to_owned()], Ok(End::Complete), 1));
}

#[test]
fn other_members() {
    let (seen, end) = all(&[
        header(b"my label", b'V', 0, |_| {}),
        member(b"dump/", b'D', b"Yfile\0\0"),
        member(b"rest", b'M', b"x"),
        member(b"odd", b'Z', b"contents"),
        member(b"by-slash/", 0, b""),
        END.to_vec(),
    ]
    .concat());
    assert_eq!(end, Ok(End::Complete));
    assert!(matches!(&seen[0], Seen::Event(Event::Label(l)) if l == b"my label"));
    assert_eq!(names(&seen), ["dump", "odd", "by-slash"]);
    assert_eq!(entries(&seen)[2].kind, EntryKind::Directory);
    assert_eq!((reasons(&seen).len(), warnings(&seen).len()), (1, 1));
}
