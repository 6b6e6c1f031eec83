//! Pax extended headers: records `LENGTH KEY=VALUE\n`, taken in whatever pieces they come.
//!
//! Where a header ends is certain, whatever its records say: a malformed record costs the member that the header
//! belongs to, and no more. Keys that mean nothing here are passed over without being held; each of the others has a
//! bound.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use base64::Engine as _;

use super::key::{Key, MAX_PATH};
use super::number::{decimal, signed_decimal, time};
use crate::entry::{MAX_SEGMENTS, MAX_XATTR_VALUE, Timestamp};

/// A key longer than this is none that anybody writes.
const MAX_KEY: usize = 1 << 10;

/// The length of a record has no more digits: so many has the largest number, and leading zeros count.
const MAX_DIGITS: u32 = 20;

/// Names and attributes that a global header may give to every member. Each member of 512 bytes has them again, in
/// memory and in the journal; what git and GNU tar write there are times and a comment.
const MAX_GLOBAL: usize = 4 << 10;

/// So many problems of one header are told in full: each carries the path, and a header has room for tens of
/// thousands.
pub(super) const MAX_PROBLEMS: usize = 64;

/// What is told of all further ones.
pub(super) const MORE_PROBLEMS: &str = "more of its attributes are left out, too many to name";

/// What is wrong with an extended header.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// A record cannot be read. The end of the header is certain all the same.
    #[error("{0}")]
    Record(&'static str),
    /// A size that is no number: the next header could be anywhere.
    #[error("{0}")]
    Size(String),
}

/// A value that a header may set, or take back from the global ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Field<T> {
    #[default]
    Unset,
    Removed,
    Set(T),
}

impl<T> Field<T> {
    /// This header's alone.
    pub(super) fn get(&self) -> Option<&T> {
        match self {
            Field::Set(value) => Some(value),
            _ => None,
        }
    }

    /// This header's, else the global ones'.
    pub(super) fn or<'a>(&'a self, global: &'a Field<T>) -> Option<&'a T> {
        match (self, global) {
            (Field::Set(value), _) | (Field::Unset, Field::Set(value)) => Some(value),
            _ => None,
        }
    }
}

/// What the `GNU.sparse.*` keys say.
#[derive(Clone, Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Box<[u8]>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub(super) size: Option<u64>,
    /// Offsets and lengths in turn (0.0 and 0.1).
    pub(super) numbers: Vec<u64>,
    pub(super) broken: bool,
}

impl PaxSparse {
    pub(super) fn is_present(&self) -> bool {
        self.major.is_some() || self.size.is_some() || !self.numbers.is_empty() || self.broken
    }
}

/// The values of one extended header, or of all global ones so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    pub(super) path: Field<Box<[u8]>>,
    pub(super) link: Field<Box<[u8]>>,
    pub(super) size: Field<u64>,
    pub(super) uid: Field<i128>,
    pub(super) gid: Field<i128>,
    pub(super) user: Field<Box<[u8]>>,
    pub(super) group: Field<Box<[u8]>>,
    pub(super) mtime: Field<Timestamp>,
    pub(super) atime: Field<Timestamp>,
    pub(super) device_major: Field<u64>,
    pub(super) device_minor: Field<u64>,
    pub(super) acl_access: Field<Box<[u8]>>,
    pub(super) acl_default: Field<Box<[u8]>>,
    /// By their names as written, with who wrote them. An empty value is an empty attribute, not one taken
    /// back: files have such.
    xattrs: BTreeMap<Box<[u8]>, WrittenXattr>,
    pub(super) sparse: PaxSparse,
    pub(super) label: Option<Box<[u8]>>,
    /// Attributes left out, with the reason.
    pub(super) refused: Vec<String>,
    /// What was mended.
    pub(super) warnings: Vec<String>,
    /// The whole member has to be left out.
    pub(super) refuse_member: Option<String>,
    /// The header cannot be read to its end: records that count may be missing.
    pub(super) malformed: bool,
    xattr_bytes: usize,
    global_bytes: usize,
}

type WrittenXattr = (Writer, Box<[u8]>);

impl Values {
    /// Whether nothing in it makes an extended attribute.
    pub(super) fn has_no_attributes(&self) -> bool {
        self.xattrs.is_empty() && matches!((&self.acl_access, &self.acl_default), (Field::Unset, Field::Unset))
    }
}

/// Whose way of writing down the name of an xattr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// `SCHILY.xattr.NAME`: `=` and `%` are escaped by GNU tar.
    Schily,
    /// `LIBARCHIVE.xattr.NAME`: everything is escaped that is not plain. The value is in base64.
    Libarchive,
}

/// Takes the payload of an extended header apart.
#[derive(Debug)]
pub(super) struct Parser {
    global: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Length { value: u64, digits: u32 },
    Key { key: Vec<u8>, left: u64 },
    Value { key: Key, value: Vec<u8>, left: u64, over: bool },
}

const WRONG_LENGTH: &str = "a record does not end where its length says";

const BEGIN: State = State::Length { value: 0, digits: 0 };

impl Parser {
    pub(super) fn new(global: bool) -> Self {
        Parser { global, state: BEGIN }
    }

    /// Takes the next piece of the header.
    pub(super) fn feed(&mut self, input: &mut &[u8], values: &mut Values) -> Result<(), Fault> {
        while let Some((&b, rest)) = input.split_first() {
            match &mut self.state {
                State::Length { value, digits } => {
                    *input = rest;
                    match b {
                        b'0'..=b'9' => {
                            if *digits == MAX_DIGITS {
                                return Err(Fault::Record("the length of a record is too large"));
                            }
                            *digits += 1;
                            *value = value
                                .checked_mul(10)
                                .and_then(|n| n.checked_add(u64::from(b - b'0')))
                                .ok_or(Fault::Record("the length of a record is too large"))?;
                        }
                        b' ' if *digits > 0 => {
                            // What counts: the digits, this blank, at least "k=" and the newline.
                            let left = value
                                .checked_sub(u64::from(*digits) + 1)
                                .filter(|&left| left >= 3)
                                .ok_or(Fault::Record("the length of a record is too small"))?;
                            self.state = State::Key { key: Vec::new(), left };
                        }
                        _ => return Err(Fault::Record("a record does not begin with its length")),
                    }
                }
                State::Key { key, left } => {
                    *input = rest;
                    *left -= 1;
                    if b == b'=' && !key.is_empty() {
                        if *left == 0 {
                            return Err(Fault::Record(WRONG_LENGTH));
                        }
                        let (mut parsed, left) = (Key::parse(key), *left);
                        if self.global && parsed.is_of_one_member() {
                            values.warn(format!(
                                "a global header sets '{}' for all members: ignored",
                                crate::entry::escape(key)
                            ));
                            parsed = Key::Unknown;
                        }
                        let key = parsed;
                        self.state = State::Value { key, value: Vec::new(), left, over: false };
                    } else if *left <= 1 || key.len() == MAX_KEY || b == b'\n' || b == b'=' {
                        return Err(Fault::Record("a record has no key"));
                    } else {
                        key.push(b);
                    }
                }
                State::Value { key, value, left, over } => {
                    if *left > 1 {
                        let n = ((*left - 1).min(input.len() as u64)) as usize;
                        let (piece, rest) = input.split_at(n);
                        if value.len() + n > key.limit() {
                            *over = true;
                            value.clear();
                        } else if !*over {
                            value.extend_from_slice(piece);
                        }
                        *input = rest;
                        *left -= n as u64;
                    } else {
                        *input = rest;
                        if b != b'\n' {
                            return Err(Fault::Record(WRONG_LENGTH));
                        }
                        let State::Value { key, value, over, .. } = std::mem::replace(&mut self.state, BEGIN) else {
                            continue;
                        };
                        values.set(key, value, over, self.global)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The payload is at its end: it must not be inside a record.
    pub(super) fn finish(&self) -> Result<(), Fault> {
        match self.state {
            State::Length { digits: 0, .. } => Ok(()),
            _ => Err(Fault::Record("the last record is longer than its header")),
        }
    }
}

impl Values {
    fn refuse(&mut self, reason: String) {
        match self.refused.len().cmp(&MAX_PROBLEMS) {
            Ordering::Less => self.refused.push(reason),
            Ordering::Equal => self.refused.push(MORE_PROBLEMS.into()),
            Ordering::Greater => {}
        }
    }

    /// The member is left out, since its header is malformed. What was read before counts no more, but for its name
    /// and size.
    pub(super) fn lose_member(&mut self, reason: String) {
        let sparse = PaxSparse { name: self.sparse.name.take(), ..PaxSparse::default() };
        *self = Values {
            path: std::mem::take(&mut self.path),
            size: std::mem::take(&mut self.size),
            sparse,
            refuse_member: Some(reason),
            malformed: true,
            ..Values::default()
        };
    }

    pub(super) fn warn(&mut self, message: String) {
        if self.warnings.len() < MAX_PROBLEMS && !self.warnings.contains(&message) {
            self.warnings.push(message);
        }
    }

    fn set(&mut self, key: Key, value: Vec<u8>, over: bool, global: bool) -> Result<(), Fault> {
        if let (true, Some(name)) = (global, key.attribute()) {
            self.global_bytes += name + value.len();
            if over || self.global_bytes > MAX_GLOBAL {
                self.refuse(format!("an attribute for all members is left out: such are over {MAX_GLOBAL} bytes"));
                return Ok(());
            }
        }
        match key {
            Key::Unknown => {}
            Key::AclNfs4 => self.refuse("its NFSv4 ACL is left out: Linux has none".into()),
            Key::Path | Key::Link | Key::SparseName if over => {
                self.refuse_member = Some(format!("its name or target is over {MAX_PATH} bytes long"));
            }
            Key::Path => self.path = bytes(value),
            Key::Link => self.link = bytes(value),
            Key::Size if global => return Err(Fault::Size("a global pax header has a size".into())),
            Key::Size if value.is_empty() && !over => self.size = Field::Removed,
            Key::Size => match decimal(&value).filter(|&n| !over && i128::from(n) <= super::header::MAX_SIZE) {
                Some(n) => self.size = Field::Set(n),
                None => {
                    let reason = format!("the pax size '{}' is no number of bytes", crate::entry::escape(&value));
                    return Err(Fault::Size(reason));
                }
            },
            Key::Uid => self.uid = self.parsed(&value, "uid", signed_decimal),
            Key::Gid => self.gid = self.parsed(&value, "gid", signed_decimal),
            Key::Mtime => self.mtime = self.parsed(&value, "mtime", time),
            Key::Atime => self.atime = self.parsed(&value, "atime", time),
            Key::DeviceMajor => self.device_major = self.parsed(&value, "SCHILY.devmajor", decimal),
            Key::DeviceMinor => self.device_minor = self.parsed(&value, "SCHILY.devminor", decimal),
            Key::User => self.user = bytes(value),
            Key::Group => self.group = bytes(value),
            Key::AclAccess | Key::AclDefault if over => self.refuse("its ACL is left out: it is too large".into()),
            Key::AclAccess => self.acl_access = bytes(value),
            Key::AclDefault => self.acl_default = bytes(value),
            Key::Label => self.label = Some(value.into()),
            Key::Xattr(name) => self.set_xattr(Writer::Schily, name, value, over),
            Key::XattrBase64(name) => match BASE64.decode(&value) {
                Ok(value) => self.set_xattr(Writer::Libarchive, name, value, over),
                Err(_) => self.refuse(format!(
                    "the xattr '{}' is left out: its value is not base64",
                    crate::entry::escape(&name)
                )),
            },
            Key::Selinux if value.is_empty() && !over => {}
            Key::Selinux => {
                let mut value = value;
                // The kernel's value ends with a NUL; GNU tar packs it without, and restores it with.
                if value.last() != Some(&0) {
                    value.push(0);
                }
                self.set_xattr(Writer::Schily, b"security.selinux".as_slice().into(), value, over);
            }
            Key::SparseMajor => self.sparse.major = self.sparse_number(&value),
            Key::SparseMinor => self.sparse.minor = self.sparse_number(&value),
            Key::SparseSize => self.sparse.size = self.sparse_number(&value),
            Key::SparseName => self.sparse.name = Some(value.into()),
            Key::SparseOffset | Key::SparseLen => {
                // The two come in turn; an offset is at an even place.
                if self.sparse.numbers.len() % 2 != usize::from(matches!(key, Key::SparseLen)) {
                    self.sparse.broken = true;
                }
                self.push_sparse(&value);
            }
            Key::SparseMap => {
                self.sparse.numbers.clear();
                self.sparse.broken |= over;
                for number in value.split(|&b| b == b',').filter(|_| !value.is_empty()) {
                    self.push_sparse(number);
                }
            }
        }
        Ok(())
    }

    fn parsed<T>(&mut self, value: &[u8], key: &str, parse: impl Fn(&[u8]) -> Option<T>) -> Field<T> {
        if value.is_empty() {
            return Field::Removed;
        }
        match parse(value) {
            Some(value) => Field::Set(value),
            None => {
                self.warn(format!("the pax {key} '{}' is no number: ignored", crate::entry::escape(value)));
                Field::Unset
            }
        }
    }

    fn sparse_number(&mut self, value: &[u8]) -> Option<u64> {
        let number = decimal(value);
        self.sparse.broken |= number.is_none();
        number
    }

    fn push_sparse(&mut self, value: &[u8]) {
        match decimal(value) {
            Some(n) if self.sparse.numbers.len() < 2 * MAX_SEGMENTS + 2 => self.sparse.numbers.push(n),
            _ => self.sparse.broken = true,
        }
    }

    /// Names and values, the names as the kernel knows them.
    pub(super) fn xattrs(&self) -> impl Iterator<Item = (Vec<u8>, &[u8])> {
        self.xattrs.iter().map(|(name, (writer, value))| {
            let escaped: fn(u8) -> bool = match writer {
                Writer::Schily => |b| matches!(b, b'=' | b'%'),
                Writer::Libarchive => |_| true,
            };
            (percent_decode(name, escaped), &**value)
        })
    }

    fn set_xattr(&mut self, writer: Writer, name: Box<[u8]>, value: Vec<u8>, over: bool) {
        let limit = crate::entry::MAX_XATTR_TOTAL;
        if over || value.len() > MAX_XATTR_VALUE {
            let name = crate::entry::escape(&name);
            return self.refuse(format!("the xattr '{name}' is left out: it is over {MAX_XATTR_VALUE} bytes"));
        }
        // Counted for all names, also those that come again: memory is bounded either way.
        self.xattr_bytes += name.len() + value.len() + 32;
        if self.xattr_bytes > 2 * limit {
            let name = crate::entry::escape(&name);
            return self.refuse(format!("the xattr '{name}' is left out: all together are over {limit} bytes"));
        }
        // libarchive writes each attribute both ways, with one and the same name, which it escapes in its own way.
        if writer == Writer::Libarchive || !matches!(self.xattrs.get(&name), Some((Writer::Libarchive, _))) {
            self.xattrs.insert(name, (writer, value.into()));
        }
    }
}

/// libarchive writes it without padding; others pad.
const BASE64: base64::engine::GeneralPurpose = base64::engine::GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

fn bytes(value: Vec<u8>) -> Field<Box<[u8]>> {
    if value.is_empty() { Field::Removed } else { Field::Set(value.into()) }
}

/// `%41` to `A`, where that is one that is `escaped`; what is no escape stays as it is.
fn percent_decode(name: &[u8], escaped: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&b, after)) = rest.split_first() {
        let hex = |i: usize| after.get(i).and_then(|&b| char::from(b).to_digit(16));
        let decoded = match (b, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => Some((high * 16 + low) as u8).filter(|&b| escaped(b)),
            _ => None,
        };
        out.push(decoded.unwrap_or(b));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    out
}
