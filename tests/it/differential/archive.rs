//! An archive as a list of pieces that can be packed, printed, and made smaller.

use std::fmt;

use restorefs::entry::escape;

pub const BLOCK: usize = 512;

/// Who wrote a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    V7,
    Ustar,
    Gnu,
    Star,
}

/// How numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Padded with zeros, ended by NUL.
    Octal,
    /// Padded with zeros, ended by a blank.
    Blank,
    /// Padded with blanks, ended by a blank and NUL.
    Padded,
    /// Every byte is a digit.
    Full,
    Base256,
}

/// What comes before a member's header.
#[derive(Clone, PartialEq, Eq)]
pub enum Extension {
    /// Typeflag `x`.
    Pax(Vec<Record>),
    /// Typeflag `g`.
    Global(Vec<Record>),
    /// `L` or `K`.
    Long(u8, Vec<u8>),
}

pub type Record = (String, Vec<u8>);

/// Stored bytes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Payload {
    /// What they begin with: a sparse map, a listing.
    pub front: Vec<u8>,
    pub seed: u64,
    pub len: usize,
}

impl Payload {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.front.clone();
        out.extend(crate::support::tree::bytes(self.seed, self.len));
        out
    }

    pub fn len(&self) -> u64 {
        (self.front.len() + self.len) as u64
    }
}

/// The map of an old GNU sparse header. An empty slot is all NULs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldMap {
    pub slots: Vec<Option<(u64, u64)>>,
    pub real: u64,
}

/// One header with what belongs to it.
#[derive(Clone, PartialEq, Eq)]
pub struct Member {
    pub before: Vec<Extension>,
    pub dialect: Dialect,
    pub typeflag: u8,
    pub prefix: Vec<u8>,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u64,
    pub uid: i64,
    pub gid: i64,
    /// What the header says; it need not be what is stored.
    pub size: u64,
    pub mtime: i64,
    pub owner: Option<(&'static str, &'static str)>,
    pub device: (u64, u64),
    pub numbers: Numbers,
    pub signed: bool,
    pub map: Option<OldMap>,
    pub payload: Payload,
}

impl Default for Member {
    fn default() -> Self {
        Member {
            before: Vec::new(),
            dialect: Dialect::Ustar,
            typeflag: b'0',
            prefix: Vec::new(),
            name: Vec::new(),
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 1_000_000_000,
            owner: None,
            device: (0, 0),
            numbers: Numbers::Octal,
            signed: false,
            map: None,
            payload: Payload::default(),
        }
    }
}

/// How an archive ends: so many blocks of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End(pub usize);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    pub members: Vec<Member>,
    pub end: End,
}

impl Archive {
    pub fn bytes(&self) -> Vec<u8> {
        let mut out: Vec<u8> = self.members.iter().flat_map(Member::bytes).collect();
        out.resize(out.len() + self.end.0 * BLOCK, 0);
        out
    }
}

impl Member {
    /// The record of the last extended header: earlier ones do not count.
    pub fn pax(&self, key: &str) -> Option<&[u8]> {
        let last = self.before.iter().rev().find_map(|extension| match extension {
            Extension::Pax(records) => Some(records),
            _ => None,
        });
        last?.iter().rev().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| &**v)
    }

    fn long(&self, typeflag: u8) -> Option<&[u8]> {
        self.before.iter().rev().find_map(|extension| match extension {
            Extension::Long(flag, name) if *flag == typeflag => {
                Some(name.split(|&b| b == 0).next().unwrap_or_default())
            }
            _ => None,
        })
    }

    /// The name as packed.
    pub fn raw_path(&self) -> Vec<u8> {
        let named = self.pax("GNU.sparse.name").or_else(|| self.pax("path")).or_else(|| self.long(b'L'));
        match named {
            Some(name) => name.to_vec(),
            None if self.prefix.is_empty() => self.name.clone(),
            None => [&*self.prefix, b"/", &*self.name].concat(),
        }
    }

    /// Where it is in the tree.
    pub fn path(&self) -> Vec<u8> {
        normal(&self.raw_path())
    }

    /// Where its link leads, if it is a hard one.
    pub fn target(&self) -> Vec<u8> {
        normal(self.pax("linkpath").or_else(|| self.long(b'K')).unwrap_or(&self.link))
    }

    /// Whether readers take it for a directory.
    pub fn is_directory(&self) -> bool {
        match self.typeflag {
            b'5' | b'D' => true,
            0 | b'0' => self.raw_path().ends_with(b"/"),
            _ => false,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out: Vec<u8> = self.before.iter().flat_map(Extension::bytes).collect();
        out.extend(self.header());
        if let Some(map) = &self.map {
            let more = map.slots.get(4..).unwrap_or_default();
            for (n, slots) in more.chunks(21).enumerate() {
                let mut block = [0; BLOCK];
                write_slots(&mut block, slots);
                block[504] = u8::from((n + 1) * 21 < more.len());
                out.extend(block);
            }
        }
        out.extend(padded(self.payload.bytes()));
        out
    }

    fn header(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name);
        put(100, &number(8, self.mode as i64, self.numbers));
        put(108, &number(8, self.uid, self.numbers));
        put(116, &number(8, self.gid, self.numbers));
        put(124, &number(12, self.size as i64, self.numbers));
        put(136, &number(12, self.mtime, self.numbers));
        put(156, &[self.typeflag]);
        put(157, &self.link);
        match self.dialect {
            Dialect::V7 => {}
            Dialect::Gnu => put(257, b"ustar  \0"),
            Dialect::Ustar | Dialect::Star => put(257, b"ustar\x0000"),
        }
        if self.dialect != Dialect::V7 {
            if let Some((user, group)) = self.owner {
                put(265, user.as_bytes());
                put(297, group.as_bytes());
            }
            if matches!(self.typeflag, b'3' | b'4') {
                put(329, &number(8, self.device.0 as i64, self.numbers));
                put(337, &number(8, self.device.1 as i64, self.numbers));
            }
            put(345, &self.prefix);
        }
        if self.dialect == Dialect::Star {
            put(476, b"07346545001\0");
            put(488, b"07346545002\0");
            put(508, b"tar\0");
        }
        if let Some(map) = &self.map {
            write_slots(&mut block[386..], &map.slots[..map.slots.len().min(4)]);
            block[482] = u8::from(map.slots.len() > 4);
            block[483..495].copy_from_slice(&number(12, map.real as i64, Numbers::Octal));
        }
        block[148..156].fill(b' ');
        let unsigned: i64 = block.iter().map(|&b| i64::from(b)).sum();
        let signed: i64 = block.iter().map(|&b| i64::from(b as i8)).sum();
        let sum = if self.signed && signed > 0 { signed } else { unsigned };
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }
}

impl Extension {
    fn bytes(&self) -> Vec<u8> {
        let (typeflag, name, body) = match self {
            Extension::Pax(records) => (b'x', "PaxHeaders/x", records.iter().flat_map(record).collect()),
            Extension::Global(records) => (b'g', "PaxHeaders/g", records.iter().flat_map(record).collect()),
            Extension::Long(typeflag, name) => (*typeflag, "././@LongLink", name.clone()),
        };
        let dialect = if matches!(self, Extension::Long(..)) { Dialect::Gnu } else { Dialect::Ustar };
        let size = body.len() as u64;
        let header = Member { dialect, typeflag, name: name.into(), size, ..Member::default() };
        [header.header().to_vec(), padded(body)].concat()
    }
}

fn write_slots(block: &mut [u8], slots: &[Option<(u64, u64)>]) {
    for (i, slot) in slots.iter().enumerate() {
        if let Some((offset, len)) = slot {
            block[i * 24..i * 24 + 12].copy_from_slice(&number(12, *offset as i64, Numbers::Octal));
            block[i * 24 + 12..i * 24 + 24].copy_from_slice(&number(12, *len as i64, Numbers::Octal));
        }
    }
}

/// A number for a field. What octal cannot say is in base 256.
fn number(width: usize, n: i64, how: Numbers) -> Vec<u8> {
    let digits = match how {
        Numbers::Full => width,
        Numbers::Padded => width - 2,
        _ => width - 1,
    };
    if n < 0 || how == Numbers::Base256 || n >> (3 * digits) != 0 {
        let mut out = i128::from(n).to_be_bytes()[16 - width..].to_vec();
        out[0] |= 0x80;
        return out;
    }
    match how {
        Numbers::Octal | Numbers::Base256 => format!("{n:0digits$o}\0"),
        Numbers::Blank => format!("{n:0digits$o} "),
        Numbers::Padded => format!("{n:digits$o} \0"),
        Numbers::Full => format!("{n:0digits$o}"),
    }
    .into_bytes()
}

fn record((key, value): &Record) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (rest + 1..).find(|len| *len == rest + len.to_string().len()).unwrap();
    [len.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// Without `/` at either end, `//` and `.`.
pub fn normal(path: &[u8]) -> Vec<u8> {
    let names: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    names.join(&b'/')
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.front.is_empty() {
            let end = self.front.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
            write!(f, "'{}' and NULs + ", escape(&self.front[..end]))?;
        }
        write!(f, "{} bytes", self.len)
    }
}

impl fmt::Debug for Extension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let records = |f: &mut fmt::Formatter<'_>, letter, records: &[Record]| {
            write!(f, "{letter}[")?;
            for (i, (key, value)) in records.iter().enumerate() {
                write!(f, "{}{key}={}", if i > 0 { ", " } else { "" }, escape(value))?;
            }
            write!(f, "]")
        };
        match self {
            Extension::Pax(list) => records(f, 'x', list),
            Extension::Global(list) => records(f, 'g', list),
            Extension::Long(typeflag, name) => write!(f, "{}[{}]", char::from(*typeflag), escape(name)),
        }
    }
}

/// Only what is not as in most headers.
impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for extension in &self.before {
            write!(f, "{extension:?} ")?;
        }
        let typeflag = if self.typeflag == 0 { "NUL".into() } else { escape(&[self.typeflag]) };
        write!(f, "{:?} '{typeflag}' ", self.dialect)?;
        if !self.prefix.is_empty() {
            write!(f, "'{}' ", escape(&self.prefix))?;
        }
        write!(f, "'{}'", escape(&self.name))?;
        if !self.link.is_empty() {
            write!(f, " -> '{}'", escape(&self.link))?;
        }
        let usual = Member::default();
        let mut field = |name: &str, value: &dyn fmt::Debug, said: bool| {
            if said { write!(f, " {name}={value:?}") } else { Ok(()) }
        };
        field("size", &self.size, self.size != 0)?;
        field("payload", &self.payload, self.payload != usual.payload)?;
        field("mode", &format_args!("{:o}", self.mode), self.mode != usual.mode)?;
        field("uid", &self.uid, self.uid != usual.uid)?;
        field("gid", &self.gid, self.gid != usual.gid)?;
        field("mtime", &self.mtime, self.mtime != usual.mtime)?;
        field("owner", &self.owner, self.owner != usual.owner)?;
        field("device", &self.device, self.device != usual.device)?;
        field("numbers", &self.numbers, self.numbers != usual.numbers)?;
        field("signed", &self.signed, self.signed != usual.signed)?;
        field("map", &self.map, self.map != usual.map)
    }
}
