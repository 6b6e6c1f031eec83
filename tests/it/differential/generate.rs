//! Odd archives that are legal, or that programs have written: every case from its seed.

use super::archive::{Archive, Dialect, End, Extension, Member, Numbers, OldMap, Payload, Record, normal};
use crate::support::random::Random;

/// Sizes at the edges of blocks, of what the journal takes, and of the buffers in between.
const SIZES: &[usize] = &[0, 1, 2, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 5000, 10_240];
const LARGE: &[usize] = &[65_536, 131_071, 131_072, 131_073, 200_000];

const MODES: &[u64] = &[0o644, 0o600, 0o755, 0o777, 0o400, 0o000, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777, 0o100644];
const IDS: &[i64] = &[0, 0, 1, 1000, 65_534, 65_535, 65_536, 2_097_151, 2_097_152, 3_000_000_000];
const TIMES: &[i64] = &[0, 1, 499_162_500, 1_000_000_000, 2_147_483_647, 2_147_483_648, 4_294_967_296, 8_589_934_591];

/// What the two tools are known to see differently. An archive has one such thing at most, so that for all else it has
/// two witnesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quirk {
    None,
    /// GNU tar starts every segment of a sparse file at a block, wants the last one to end the file, fails on a map with
    /// an empty slot in its middle, and takes a pax map in a GNU header for none.
    Sparse,
    /// bsdtar loses the next member where the size of a sparse one has its padding in it.
    Padding,
    /// bsdtar takes whichever of `L` and `path` comes first.
    TwoNames,
    /// bsdtar passes over global headers.
    Global,
    /// GNU tar fails on a time without a value, bsdtar takes 1970.
    EmptyTime,
    /// GNU tar skips what a directory says that it has, bsdtar does not.
    DirectorySize,
    /// GNU tar does not know libarchive's attributes.
    Libarchive,
    /// bsdtar does not know GNU tar's escapes in names of attributes.
    Escapes,
    /// GNU tar follows a symbolic link of the archive, bsdtar does not.
    Through,
    /// GNU tar takes -1.5 s for what it says, bsdtar for -0.5 s.
    NegativeFraction,
}

const QUIRKS: [Quirk; 14] = [
    Quirk::None,
    Quirk::None,
    Quirk::None,
    Quirk::None,
    Quirk::Sparse,
    Quirk::Padding,
    Quirk::TwoNames,
    Quirk::Global,
    Quirk::EmptyTime,
    Quirk::DirectorySize,
    Quirk::Libarchive,
    Quirk::Escapes,
    Quirk::Through,
    Quirk::NegativeFraction,
];

pub(super) struct Generator {
    pub(super) random: Random,
    pub(super) quirk: Quirk,
    dialect: Dialect,
    /// What is in the archive by now: path, and whether it is a directory.
    pub(super) there: Vec<(Vec<u8>, bool)>,
    /// Names that links have as their target already.
    pub(super) awaited: Vec<Vec<u8>>,
    pub(super) names: usize,
}

/// The archive of a seed.
pub fn archive(seed: u64) -> Archive {
    let mut random = Random(seed);
    random.next();
    let dialect = *random.of(&[Dialect::Ustar, Dialect::Ustar, Dialect::Gnu, Dialect::Gnu, Dialect::V7, Dialect::Star]);
    let quirk = *random.of(&QUIRKS);
    let mut generator = Generator { random, quirk, dialect, there: Vec::new(), awaited: Vec::new(), names: 0 };
    let members = (0..generator.random.below(10) + 2).map(|_| generator.member()).collect();
    let end = match generator.random.below(50) {
        0 => 0,
        1..=3 => 1,
        4..=10 => 20,
        _ => 2,
    };
    Archive { members, end: End(end) }
}

impl Generator {
    /// Whether GNU tar is going to fail: then bsdtar must not.
    pub(super) fn gnu_fails(&self) -> bool {
        matches!(self.quirk, Quirk::Sparse | Quirk::EmptyTime)
    }

    fn member(&mut self) -> Member {
        let mut member = self.head();
        match self.random.below(100) {
            0..=27 => self.file(&mut member, b'0'),
            28..=30 => self.file(&mut member, 0),
            31..=32 => self.file(&mut member, b'7'),
            33..=34 => {
                let typeflag = *self.random.of(b"QZ89a");
                self.file(&mut member, typeflag);
            }
            35..=47 => self.directory(&mut member, b'5'),
            48..=53 => {
                let typeflag = *self.random.of(&[0, b'0']);
                self.directory(&mut member, typeflag);
            }
            54..=56 => self.dumpdir(&mut member),
            57..=64 => self.symlink(&mut member),
            65..=76 => self.hard_link(&mut member),
            77..=80 => self.special(&mut member),
            81..=85 => self.old_sparse(&mut member),
            86..=93 => self.pax_sparse(&mut member),
            94 => self.label(&mut member),
            _ => self.file(&mut member, b'0'),
        }
        if self.random.chance(6) {
            let records = self.global();
            member.before.insert(0, Extension::Global(records));
        }
        let has_records = member.before.iter().any(|e| matches!(e, Extension::Pax(_)));
        // With two of them bsdtar does not see that it is a directory by its name, and complains of some.
        let by_name = member.is_directory() && member.typeflag != b'5';
        if has_records && !by_name && !self.gnu_fails() && self.random.chance(10) {
            // An earlier extended header, which does not count.
            let path = self.fresh();
            let records = [
                ("path".into(), path),
                ("mtime".into(), b"77".to_vec()),
                ("SCHILY.xattr.user.earlier".into(), b"1".to_vec()),
            ];
            let some = self.random.below(records.len()) + 1;
            member.before.insert(0, Extension::Pax(records[..some].to_vec()));
        }
        let directory = member.is_directory();
        if member.typeflag != b'V' {
            self.there.push((member.path(), directory));
        }
        member
    }

    /// Everything but the name and the kind.
    fn head(&mut self) -> Member {
        let others = [Dialect::V7, Dialect::Ustar, Dialect::Gnu, Dialect::Star];
        let dialect = if self.random.chance(20) { *self.random.of(&others) } else { self.dialect };
        let numbers = match self.random.below(20) {
            0 => Numbers::Blank,
            1 => Numbers::Padded,
            2 => Numbers::Full,
            3 => Numbers::Base256,
            _ => Numbers::Octal,
        };
        let mut member = Member {
            dialect,
            numbers,
            signed: self.random.chance(15),
            mode: *self.random.of(MODES),
            uid: *self.random.of(IDS),
            gid: *self.random.of(IDS),
            mtime: *self.random.of(TIMES),
            owner: *self.random.of(&[None, Some(("root", "root")), Some(("nobody-here", "no-group-here"))]),
            ..Member::default()
        };
        if dialect == Dialect::Gnu && self.random.chance(10) {
            member.mtime = -(self.random.below(3_000_000_000) as i64);
        }
        if self.random.chance(25) {
            let records = self.records();
            member.before.push(Extension::Pax(records));
        }
        member
    }

    /// Records that say again, or more exactly, what the header says.
    fn records(&mut self) -> Vec<Record> {
        let mut records: Vec<Record> = Vec::new();
        for _ in 0..=self.random.below(3) {
            let (key, value): (&str, &[u8]) = match self.random.below(14) {
                0 => {
                    ("mtime", *self.random.of(&[&b"1234567890.123456789"[..], b"5.5", b"1.000000001", b"7.1234567899"]))
                }
                1 => ("mtime", *self.random.of(&[&b"-1"[..], b"-1000000000", b"99999999999"])),
                2 => ("uid", *self.random.of(&[&b"0"[..], b"4711", b"4000000000"])),
                3 => ("gid", *self.random.of(&[&b"0"[..], b"4711", b"4000000000"])),
                4 => ("uname", b"nobody-here"),
                5 => ("comment", b"nothing of it counts\nnot even a new line"),
                6 if self.quirk == Quirk::NegativeFraction => ("mtime", b"-1.5"),
                6 => ("atime", b"1000000000.5"),
                7 if self.quirk == Quirk::EmptyTime => ("mtime", b""),
                8 => ("VENDOR.unknown", &[0xff, 0, b'=', b'\n']),
                9 => ("LIBARCHIVE.creationtime", b"1700000000.5"),
                10 => ("hdrcharset", b"BINARY"),
                11 => ("hdrcharset", b"ISO-IR 10646 2000 UTF-8"),
                12 => ("SCHILY.ino", b"4711"),
                _ => ("ctime", b"1000000000"),
            };
            records.push((key.into(), value.to_vec()));
        }
        records
    }

    fn global(&mut self) -> Vec<Record> {
        let kinds = if self.quirk == Quirk::Global { 6 } else { 1 };
        let (key, value): (&str, &[u8]) = match self.random.below(kinds) {
            1 => ("mtime", b"1111111111"),
            2 => ("uid", b"77"),
            3 => ("gid", b"78"),
            4 => ("uname", b"nobody-here"),
            _ => ("comment", b"0123456789abcdef0123456789abcdef01234567"),
        };
        vec![(key.into(), value.to_vec())]
    }

    /// Adds to the extended header of a member, or gives it one.
    pub(super) fn add(&mut self, member: &mut Member, key: &str, value: &[u8]) {
        let record = (key.to_owned(), value.to_vec());
        match member.before.iter_mut().rev().find(|e| matches!(e, Extension::Pax(_))) {
            Some(Extension::Pax(records)) => records.push(record),
            _ => member.before.push(Extension::Pax(vec![record])),
        }
    }

    fn contents(&mut self) -> Payload {
        let len = if self.random.chance(4) { *self.random.of(LARGE) } else { *self.random.of(SIZES) };
        Payload { front: Vec::new(), seed: self.random.next(), len }
    }

    /// Says how much is stored: in the header, in a record, in both and differently.
    fn size(&mut self, member: &mut Member) {
        let stored = member.payload.len();
        member.size = stored;
        if self.random.chance(8) {
            self.add(member, "size", stored.to_string().as_bytes());
            member.size = *self.random.of(&[0, stored, stored / 2, stored + 1000]);
        }
    }

    fn attributes(&mut self, member: &mut Member, directory: bool) {
        if !self.random.chance(18) {
            return;
        }
        for _ in 0..=self.random.below(2) {
            let values: [&[u8]; 4] = [b"value", b"a\nb=c\0d", b"\xff\xfe", b""];
            let value = *self.random.of(&values);
            match self.random.below(8) {
                0..=2 => self.add(member, "SCHILY.xattr.user.one", value),
                3 => self.add(member, "SCHILY.xattr.user.caf\u{e9}", value),
                4 if self.quirk == Quirk::Libarchive => {
                    use base64::Engine as _;
                    let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(value);
                    self.add(member, "LIBARCHIVE.xattr.user.two", text.as_bytes());
                    if self.random.chance(50) {
                        self.add(member, "SCHILY.xattr.user.two", value);
                    }
                }
                5 if self.quirk == Quirk::Escapes => self.add(member, "SCHILY.xattr.user.per%25cent", value),
                5 => self.add(member, "SCHILY.xattr.trusted.three", value),
                6 if directory => {
                    let text = "user::rwx,user:4711:r-x,group::r-x,mask::rwx,other::---";
                    self.add(member, "SCHILY.acl.default", text.as_bytes());
                }
                _ => {
                    let text = "user::rw-,user:4711:rwx,group::r--,group:99:-w-,mask::rwx,other::---";
                    self.add(member, "SCHILY.acl.access", text.as_bytes());
                }
            }
        }
    }

    fn file(&mut self, member: &mut Member, typeflag: u8) {
        member.typeflag = typeflag;
        let path = self.path(false);
        let raw = self.decorate(&path);
        self.name(member, raw);
        self.attributes(member, false);
        member.payload = self.contents();
        self.size(member);
    }

    fn directory(&mut self, member: &mut Member, typeflag: u8) {
        member.typeflag = typeflag;
        if self.quirk == Quirk::Padding {
            // GNU tar gives it to what is made in there; that bsdtar does not, is not to be seen where it loses a member.
            member.mode &= !0o2000;
        }
        let path = self.path(true);
        let mut raw = self.decorate(&path);
        if typeflag != b'5' || self.random.chance(60) {
            raw.push(b'/');
        }
        self.name(member, raw);
        self.attributes(member, true);
        // Of v7 and of some programs since: a size with nothing behind it.
        let says_size = match typeflag {
            b'5' if self.quirk == Quirk::DirectorySize => 30,
            b'5' => 0,
            _ => 25,
        };
        if self.random.chance(says_size) {
            member.size = *self.random.of(&[1, 512, 513, 4096]);
        }
    }

    fn dumpdir(&mut self, member: &mut Member) {
        member.dialect = Dialect::Gnu;
        let path = self.path(true);
        let raw = [self.decorate(&path), b"/".to_vec()].concat();
        let listing = b"Yone\0Ntwo\0Dthree\0\0";
        if self.random.chance(50) {
            member.typeflag = b'D';
            member.payload.front = listing.to_vec();
            member.size = listing.len() as u64;
        } else {
            member.typeflag = b'5';
            self.add(member, "GNU.dumpdir", listing);
        }
        self.name(member, raw);
    }

    fn symlink(&mut self, member: &mut Member) {
        member.typeflag = b'2';
        member.mode = 0o777;
        let path = self.path(false);
        let raw = self.decorate(&path);
        self.name(member, raw);
        let targets: [&[u8]; 7] = [b"n1", b"./n2", b"nothing", b"/absolute", b"../outside", &[b't'; 150], b"caf\xe9"];
        let most = if self.gnu_fails() { 6 } else { 7 };
        let target = self.random.of(&targets[..most]).to_vec();
        self.link(member, target);
        if self.random.chance(10) {
            self.add(member, "SCHILY.xattr.trusted.on-link", b"1");
        }
    }

    fn hard_link(&mut self, member: &mut Member) {
        member.typeflag = b'1';
        let path = self.path(false);
        let raw = self.decorate(&path);
        let files: Vec<_> =
            self.there.iter().filter(|(_, directory)| !directory).map(|(path, _)| path.clone()).collect();
        let target = match self.random.below(40) {
            // bsdtar removes what is to be a link to itself.
            0 if !self.gnu_fails() => normal(&raw),
            1 => b"never there".to_vec(),
            2 if !self.there.is_empty() && !self.gnu_fails() => self.random.of(&self.there).0.clone(),
            3..=8 if !self.gnu_fails() => {
                let target = self.fresh();
                self.awaited.push(target.clone());
                target
            }
            _ if !files.is_empty() => self.random.of(&files).clone(),
            _ => return self.file(member, b'0'),
        };
        if self.gnu_fails() && target == normal(&raw) {
            return self.file(member, b'0');
        }
        self.name(member, raw);
        let target = self.decorate(&target);
        self.link(member, target);
    }

    fn special(&mut self, member: &mut Member) {
        if member.dialect == Dialect::V7 {
            member.dialect = Dialect::Ustar;
        }
        member.typeflag = *self.random.of(b"3346");
        // None of them leads anywhere when it is opened by mistake.
        member.device = match member.typeflag {
            b'3' => *self.random.of(&[(1, 3), (1, 5), (0, 0), (511, 70_000)]),
            b'4' => *self.random.of(&[(240, 0), (250, 1_000_000)]),
            _ => (0, 0),
        };
        let path = self.path(false);
        let raw = self.decorate(&path);
        self.name(member, raw);
        if self.quirk == Quirk::DirectorySize && self.random.chance(30) {
            member.size = 512;
        }
    }

    fn label(&mut self, member: &mut Member) {
        member.dialect = Dialect::Gnu;
        member.typeflag = b'V';
        member.name = b"Tuesday, all of it".to_vec();
        member.before.clear();
    }

    /// Data and holes: segments, and the size of it all.
    fn segments(&mut self, most: usize) -> (Vec<(u64, u64)>, u64) {
        let mut segments = Vec::new();
        let mut at = 0;
        let count = self.random.below(most);
        for n in 0..count {
            at += *self.random.of(&[0, 1, 512, 4096, 70_000]);
            let anything = n + 1 == count || self.quirk == Quirk::Sparse;
            let lengths: &[u64] = if anything { &[1, 3, 512, 513, 4096] } else { &[512, 1024, 4096] };
            let len = *self.random.of(lengths);
            segments.push((at, len));
            at += len;
        }
        let hole = *self.random.of(&[0, 0, 1, 512, 100_000]);
        (segments, at + hole)
    }

    fn old_sparse(&mut self, member: &mut Member) {
        member.dialect = Dialect::Gnu;
        member.typeflag = b'S';
        let most = *self.random.of(&[4, 6, 30, 60]);
        let (segments, real) = self.segments(most);
        let mut slots: Vec<_> = segments.iter().map(|segment| Some(*segment)).collect();
        let ends = segments.last().is_some_and(|(offset, len)| offset + len == real);
        if self.random.chance(50) || !ends && self.quirk != Quirk::Sparse {
            // As GNU tar ends a map.
            slots.push(Some((real, 0)));
        }
        if self.quirk == Quirk::Sparse && (2..4).contains(&slots.len()) && self.random.chance(30) {
            // As libarchive's test has it: the rest of the header stays empty, and more follows.
            let more = slots.split_off(slots.len() / 2);
            slots.resize(4, None);
            slots.extend(more);
        }
        let stored = segments.iter().map(|(_, len)| *len as usize).sum();
        let path = self.path(false);
        let raw = self.decorate(&path);
        self.name(member, raw);
        member.payload = Payload { front: Vec::new(), seed: self.random.next(), len: stored };
        member.size = stored as u64;
        member.map = Some(OldMap { slots, real });
        if self.quirk == Quirk::Padding && stored % 512 != 0 {
            member.size = member.size.next_multiple_of(512);
        }
    }

    fn pax_sparse(&mut self, member: &mut Member) {
        if self.quirk != Quirk::Sparse {
            member.dialect = Dialect::Ustar;
        }
        let (mut segments, real) = self.segments(8);
        let ends = segments.last().is_some_and(|(offset, len)| offset + len == real);
        if self.random.chance(60) || !ends && self.quirk != Quirk::Sparse {
            segments.push((real, 0));
        }
        let stored = segments.iter().map(|(_, len)| *len as usize).sum();
        member.payload = Payload { front: Vec::new(), seed: self.random.next(), len: stored };
        let path = self.path(false);
        let raw = self.decorate(&path);
        self.name(member, raw.clone());
        match self.random.below(3) {
            0 => {
                self.add(member, "GNU.sparse.size", real.to_string().as_bytes());
                self.add(member, "GNU.sparse.numblocks", segments.len().to_string().as_bytes());
                for (offset, len) in segments {
                    self.add(member, "GNU.sparse.offset", offset.to_string().as_bytes());
                    self.add(member, "GNU.sparse.numbytes", len.to_string().as_bytes());
                }
            }
            1 => {
                let map: Vec<String> = segments.iter().map(|(offset, len)| format!("{offset},{len}")).collect();
                self.add(member, "GNU.sparse.size", real.to_string().as_bytes());
                self.add(member, "GNU.sparse.numblocks", segments.len().to_string().as_bytes());
                self.add(member, "GNU.sparse.map", map.join(",").as_bytes());
                self.add(member, "GNU.sparse.name", &raw);
            }
            _ => {
                let mut map = format!("{}\n", segments.len());
                for (offset, len) in segments {
                    map.push_str(&format!("{offset}\n{len}\n"));
                }
                member.payload.front = map.into_bytes();
                member.payload.front.resize(member.payload.front.len().next_multiple_of(512), 0);
                self.add(member, "GNU.sparse.major", b"1");
                self.add(member, "GNU.sparse.minor", b"0");
                self.add(member, "GNU.sparse.realsize", real.to_string().as_bytes());
                self.add(member, "GNU.sparse.name", &raw);
            }
        }
        self.size(member);
    }
}
