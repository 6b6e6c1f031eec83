//! Extended attributes, as the kernel takes them, and POSIX ACLs, from their text.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A value may have this many bytes (XATTR_SIZE_MAX of Linux).
pub const MAX_XATTR_VALUE: usize = 64 << 10;

/// All names and values of an entry together; a bound on what one header can make us hold.
pub const MAX_XATTR_TOTAL: usize = 1 << 20;

/// The xattr in which the kernel keeps a file's ACL.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";

/// The xattr in which the kernel keeps the ACL that new files in a directory get.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// All names of an entry together, each with its NUL (XATTR_LIST_MAX of Linux): of an entry with more the kernel
/// lists none.
pub const MAX_XATTR_NAMES: usize = 64 << 10;

/// Names and values, sorted by name, each name once. Cheap to clone, and nothing when empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Attribute>", into = "Vec<Attribute>")]
pub struct Xattrs(Option<Arc<List>>);

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct List {
    attributes: Vec<Attribute>,
    /// Bytes of the names, each with its NUL.
    names: usize,
    /// Bytes of the values.
    values: usize,
}

/// Name and value.
type Attribute = (Box<[u8]>, Box<[u8]>);

/// Why an attribute is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XattrError {
    /// Empty, over 255 bytes, with a NUL, or without a namespace.
    #[error("its name is not one that Linux takes")]
    Name,
    /// Over [`MAX_XATTR_VALUE`].
    #[error("its value is over 64 KiB")]
    Value,
    /// Over [`MAX_XATTR_TOTAL`].
    #[error("the entry's attributes are over 1 MiB together")]
    Total,
    /// Over [`MAX_XATTR_NAMES`].
    #[error("the names of the entry's attributes are over 64 KiB together")]
    Names,
}

impl Xattrs {
    /// Adds or replaces one.
    pub fn insert(&mut self, name: &[u8], value: &[u8]) -> Result<(), XattrError> {
        let namespace = name.iter().position(|&b| b == b'.').unwrap_or(0);
        if name.len() > 255 || name.contains(&0) || namespace == 0 || namespace + 1 == name.len() {
            return Err(XattrError::Name);
        }
        if value.len() > MAX_XATTR_VALUE {
            return Err(XattrError::Value);
        }
        let list = self.0.as_deref();
        let before = list.and_then(|list| list.find(name).ok().map(|i| &list.attributes[i]));
        let (old_name, old_value) = before.map_or((0, 0), |(n, v)| (n.len() + 1, v.len()));
        let names = list.map_or(0, |list| list.names) - old_name + name.len() + 1;
        let values = list.map_or(0, |list| list.values) - old_value + value.len();
        if names > MAX_XATTR_NAMES {
            return Err(XattrError::Names);
        }
        if names + values > MAX_XATTR_TOTAL {
            return Err(XattrError::Total);
        }
        let list = Arc::make_mut(self.0.get_or_insert_default());
        (list.names, list.values) = (names, values);
        match list.find(name) {
            Ok(i) => list.attributes[i].1 = value.into(),
            Err(i) => list.attributes.insert(i, (name.into(), value.into())),
        }
        Ok(())
    }

    /// Takes one out again.
    pub fn remove(&mut self, name: &[u8]) {
        if let Some(list) = &mut self.0
            && let Ok(i) = list.find(name)
        {
            let list_mut = Arc::make_mut(list);
            let (name, value) = list_mut.attributes.remove(i);
            list_mut.names -= name.len() + 1;
            list_mut.values -= value.len();
            if list_mut.attributes.is_empty() {
                self.0 = None;
            }
        }
    }

    /// One by its name.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let list = self.0.as_ref()?;
        list.find(name).ok().map(|i| &*list.attributes[i].1)
    }

    /// All, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().flat_map(|list| list.attributes.iter().map(|(n, v)| (&**n, &**v)))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl List {
    /// Where a name is, or belongs.
    fn find(&self, name: &[u8]) -> Result<usize, usize> {
        self.attributes.binary_search_by(|(n, _)| (**n).cmp(name))
    }
}

impl TryFrom<Vec<Attribute>> for Xattrs {
    type Error = XattrError;

    fn try_from(list: Vec<Attribute>) -> Result<Self, XattrError> {
        let mut xattrs = Xattrs::default();
        for (name, value) in list {
            xattrs.insert(&name, &value)?;
        }
        Ok(xattrs)
    }
}

impl From<Xattrs> for Vec<Attribute> {
    fn from(xattrs: Xattrs) -> Self {
        xattrs.0.map_or_else(Vec::new, |list| Arc::unwrap_or_clone(list).attributes)
    }
}

/// A POSIX ACL in the form the kernel keeps: version 2, little endian (`linux/posix_acl_xattr.h`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<u8>);

/// Why a text is not an ACL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// It does not read `tag:qualifier:permissions`.
    #[error("'{0}' is not an ACL entry")]
    Syntax(String),
    /// It names somebody who has no number here.
    #[error("'{0}' is not known here, and the archive has no number for it")]
    Unknown(String),
}

const TAG_USER_OBJ: u16 = 0x01;
const TAG_USER: u16 = 0x02;
const TAG_GROUP_OBJ: u16 = 0x04;
const TAG_GROUP: u16 = 0x08;
const TAG_MASK: u16 = 0x10;
const TAG_OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

impl Acl {
    /// Reads the text of `acl_to_text(3)`, as `SCHILY.acl.*` carries it: entries parted by `,` or newlines,
    /// `user:NAME:rwx`, with star's number as a fourth field where it is given. A number wins over a name;
    /// names go through `user` and `group`.
    pub fn parse(
        text: &[u8],
        mut user: impl FnMut(&[u8]) -> Option<u32>,
        mut group: impl FnMut(&[u8]) -> Option<u32>,
    ) -> Result<Acl, AclError> {
        let mut entries: Vec<(u16, u32, u16)> = Vec::new();
        for line in text.split(|&b| b == b',' || b == b'\n') {
            let line = line.split(|&b| b == b'#').next().unwrap_or_default().trim_ascii();
            if line.is_empty() {
                continue;
            }
            let syntax = || AclError::Syntax(super::escape(line));
            let mut fields = line.split(|&b| b == b':').map(<[u8]>::trim_ascii);
            let tag = fields.next().ok_or_else(syntax)?;
            let mut qualifier = fields.next().ok_or_else(syntax)?;
            let mut perm = fields.next();
            // Solaris and old star write `other:r--` and `mask:r--` with one field.
            if perm.is_none() && matches!(tag, b"other" | b"o" | b"mask" | b"m") {
                perm = Some(std::mem::take(&mut qualifier));
            }
            let perm = perm.and_then(permissions).ok_or_else(syntax)?;
            let number = fields.next().map(|n| parse_id(n).ok_or_else(syntax)).transpose()?;
            let id = |resolve: &mut dyn FnMut(&[u8]) -> Option<u32>| {
                number
                    .or_else(|| parse_id(qualifier))
                    .or_else(|| resolve(qualifier))
                    .ok_or_else(|| AclError::Unknown(super::escape(qualifier)))
            };
            entries.push(match (tag, qualifier.is_empty()) {
                (b"user" | b"u", true) => (TAG_USER_OBJ, NO_ID, perm),
                (b"user" | b"u", false) => (TAG_USER, id(&mut user)?, perm),
                (b"group" | b"g", true) => (TAG_GROUP_OBJ, NO_ID, perm),
                (b"group" | b"g", false) => (TAG_GROUP, id(&mut group)?, perm),
                (b"mask" | b"m", true) => (TAG_MASK, NO_ID, perm),
                (b"other" | b"o", true) => (TAG_OTHER, NO_ID, perm),
                _ => return Err(syntax()),
            });
        }
        // The kernel wants them by tag, then by number, each once (posix_acl_valid).
        entries.sort_unstable();
        if entries.windows(2).any(|w| w[0].0 == w[1].0 && w[0].1 == w[1].1) {
            return Err(AclError::Syntax(super::escape(text)));
        }
        let mut bytes = Vec::with_capacity(4 + 8 * entries.len());
        bytes.extend_from_slice(&2u32.to_le_bytes());
        for (tag, id, perm) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&perm.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        Ok(Acl(bytes))
    }

    /// Takes the value of the xattr. None where it is not one that the kernel gives.
    pub fn from_bytes(bytes: &[u8]) -> Option<Acl> {
        let entries = bytes.strip_prefix(&2u32.to_le_bytes())?;
        let known = |entry: &[u8]| {
            let tags = [TAG_USER_OBJ, TAG_USER, TAG_GROUP_OBJ, TAG_GROUP, TAG_MASK, TAG_OTHER];
            tags.contains(&u16::from_le_bytes([entry[0], entry[1]])) && entry[3] == 0 && entry[2] <= 7
        };
        let is_acl = entries.len().is_multiple_of(8) && entries.chunks_exact(8).all(known);
        is_acl.then(|| Acl(bytes.to_vec()))
    }

    /// As text on one line, as [`Acl::parse`] reads it: with the name, where there is one, and the number behind it.
    pub fn to_text(
        &self,
        mut user: impl FnMut(u32) -> Option<Arc<[u8]>>,
        mut group: impl FnMut(u32) -> Option<Arc<[u8]>>,
    ) -> Vec<u8> {
        let mut text = Vec::new();
        for entry in self.0[4..].chunks_exact(8) {
            if !text.is_empty() {
                text.push(b',');
            }
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            let (tag, named) = match u16::from_le_bytes([entry[0], entry[1]]) {
                TAG_USER_OBJ => ("user", None),
                TAG_USER => ("user", Some(user(id))),
                TAG_GROUP_OBJ => ("group", None),
                TAG_GROUP => ("group", Some(group(id))),
                TAG_MASK => ("mask", None),
                _ => ("other", None),
            };
            text.extend_from_slice(tag.as_bytes());
            text.push(b':');
            // A name that would read as something else is none.
            let named = named.map(|name| {
                name.filter(|name| {
                    !name.is_empty()
                        && !name.iter().all(u8::is_ascii_digit)
                        && !name.iter().any(|b| b.is_ascii_whitespace() || b":,#\0".contains(b))
                })
            });
            match &named {
                None => {}
                Some(Some(name)) => text.extend_from_slice(name),
                Some(None) => text.extend_from_slice(id.to_string().as_bytes()),
            }
            text.push(b':');
            for (bit, letter) in [(4, b'r'), (2, b'w'), (1, b'x')] {
                text.push(if entry[2] & bit != 0 { letter } else { b'-' });
            }
            if let Some(Some(_)) = named {
                text.extend_from_slice(format!(":{id}").as_bytes());
            }
        }
        text
    }

    /// The value of the xattr.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The mode bits of a file with this access ACL: the group's are those of the mask, where there is one.
    /// What it does not say is as in `mode`.
    pub fn apply_to_mode(&self, mode: u16) -> u16 {
        let mut mode = mode;
        // In order of their tags: the mask comes behind the group.
        for entry in self.0[4..].chunks_exact(8) {
            let perm = u16::from_le_bytes([entry[2], entry[3]]);
            let shift = match u16::from_le_bytes([entry[0], entry[1]]) {
                TAG_USER_OBJ => 6,
                TAG_GROUP_OBJ | TAG_MASK => 3,
                TAG_OTHER => 0,
                _ => continue,
            };
            mode = mode & !(7 << shift) | perm << shift;
        }
        mode
    }

    /// Whether it says no more than the mode bits do: user, group and other. The kernel keeps no xattr for
    /// such an access ACL.
    pub fn is_minimal(&self) -> bool {
        self.0.len() <= 4 + 3 * 8
    }
}

fn parse_id(bytes: &[u8]) -> Option<u32> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok().filter(|&id| id != NO_ID)
}

fn permissions(bytes: &[u8]) -> Option<u16> {
    bytes.iter().try_fold(0, |perm, b| match b {
        b'r' => Some(perm | 4),
        b'w' => Some(perm | 2),
        b'x' => Some(perm | 1),
        b'-' => Some(perm),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_and_bounded() {
        let mut x = Xattrs::default();
        x.insert(b"user.b", b"2").unwrap();
        x.insert(b"user.a", b"1").unwrap();
        x.insert(b"user.b", b"3").unwrap();
        assert_eq!(x.iter().collect::<Vec<_>>(), [(&b"user.a"[..], &b"1"[..]), (b"user.b", b"3")]);
        assert_eq!(x.insert(b"user.", b""), Err(XattrError::Name));
        assert_eq!(x.insert(b"nodot", b""), Err(XattrError::Name));
        assert_eq!(x.insert(b"user.x", &vec![0; MAX_XATTR_VALUE + 1]), Err(XattrError::Value));
        for i in 0..15 {
            x.insert(format!("user.big{i}").as_bytes(), &vec![0; MAX_XATTR_VALUE]).unwrap();
        }
        assert_eq!(x.insert(b"user.last", &vec![0; MAX_XATTR_VALUE]), Err(XattrError::Total));
        x.remove(b"user.a");
        assert_eq!(x.get(b"user.a"), None);
    }

    #[test]
    fn no_more_names_than_the_kernel_lists() {
        let mut x = Xattrs::default();
        let name = |i: usize| format!("user.{i:010}").into_bytes();
        let fit = MAX_XATTR_NAMES / 16;
        for i in 0..fit {
            x.insert(&name(i), b"").unwrap();
        }
        assert_eq!(x.insert(&name(fit), b""), Err(XattrError::Names));
        x.insert(&name(0), b"another value").unwrap();
        x.remove(&name(1));
        x.insert(&name(fit), b"").unwrap();
        assert_eq!(x.iter().map(|(n, _)| n.len() + 1).sum::<usize>(), MAX_XATTR_NAMES);
        let bytes = postcard::to_stdvec(&x).unwrap();
        assert_eq!(postcard::from_bytes(&bytes), Ok(x));
        let nameless: Vec<Attribute> = vec![(Box::default(), Box::default())];
        assert!(postcard::from_bytes::<Xattrs>(&postcard::to_stdvec(&nameless).unwrap()).is_err());
    }

    #[test]
    fn acl_text() {
        let acl = Acl::parse(
            b"user::rw-,group::r--,mask::rwx,other::---,user:joe:r-x,group:7:-w-\n",
            |n| (n == b"joe").then_some(1000),
            |_| None,
        )
        .unwrap();
        let want: Vec<u8> =
            [(1u16, 6u16, NO_ID), (2, 5, 1000), (4, 4, NO_ID), (8, 2, 7), (16, 7, NO_ID), (32, 0, NO_ID)]
                .iter()
                .flat_map(|(t, p, i)| [&t.to_le_bytes()[..], &p.to_le_bytes(), &i.to_le_bytes()].concat())
                .collect();
        assert_eq!(acl.as_bytes()[..4], [2, 0, 0, 0]);
        assert_eq!(acl.as_bytes()[4..], want);
        assert!(!acl.is_minimal());
        let star = Acl::parse(b"user:nobody-here:rwx:4711", |_| None, |_| None).unwrap();
        assert_eq!(star.as_bytes()[8..], 4711u32.to_le_bytes());
        assert_eq!(
            Acl::parse(b"user:nobody-here:rwx", |_| None, |_| None),
            Err(AclError::Unknown("nobody-here".into()))
        );
        assert_eq!(Acl::from_bytes(acl.as_bytes()), Some(acl.clone()));
        assert_eq!(
            acl.to_text(|id| (id == 1000).then(|| b"joe".as_slice().into()), |_| Some(b"7".as_slice().into())),
            b"user::rw-,user:joe:r-x:1000,group::r--,group:7:-w-,mask::rwx,other::---"
        );
        assert_eq!(Acl::from_bytes(&acl.as_bytes()[..11]), None);
        assert_eq!(Acl::from_bytes(b""), None);
        assert!(Acl::parse(b"bogus", |_| None, |_| None).is_err());
        assert!(Acl::parse(b"user::rwz", |_| None, |_| None).is_err());
    }
}
