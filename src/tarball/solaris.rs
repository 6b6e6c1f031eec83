//! ACLs as Solaris tar packs them: in a member of type `A` before the one that they belong to.
//!
//! Its payload is an octal number, a NUL, and the entries as text. The lower bits of the number are how many entries
//! there are, the upper ones of which kind (libarchive's `header_Solaris_ACL`).

use super::key::MAX_ACL;

/// The texts of a POSIX ACL, as [`Acl::parse`](crate::entry::Acl::parse) reads them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Texts {
    pub(super) access: Option<Vec<u8>>,
    /// Of a directory, for what is made in it.
    pub(super) default: Option<Vec<u8>>,
}

/// Why an ACL is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("its NFSv4 ACL is left out: Linux has none")]
    Nfs4,
    #[error("its Solaris ACL is left out: it does not begin with the number of a known kind")]
    Kind,
    #[error("its Solaris ACL is left out: it has no entries")]
    Empty,
    #[error("its Solaris ACL is left out: it is too large")]
    TooLarge,
}

const KIND: u64 = !0o777_777;
const POSIX: u64 = 0o1_000_000;
const NFS4: u64 = 0o3_000_000;

/// The longest number that libarchive takes has eight digits.
const MAX_DIGITS: usize = 8;

/// Reads the payload of such a member.
pub(super) fn parse(payload: &[u8]) -> Result<Texts, Error> {
    if payload.len() > MAX_ACL {
        return Err(Error::TooLarge);
    }
    let digits = payload.iter().take(MAX_DIGITS).take_while(|b| matches!(b, b'0'..=b'7')).count();
    let number = payload[..digits].iter().fold(0, |n, b| n << 3 | u64::from(b - b'0'));
    let Some((0, text)) = payload[digits..].split_first() else { return Err(Error::Kind) };
    match number & KIND {
        POSIX => {}
        NFS4 => return Err(Error::Nfs4),
        _ => return Err(Error::Kind),
    }
    let text = super::header::until_nul(text).trim_ascii();
    if text.is_empty() {
        return Err(Error::Empty);
    }
    let mut texts = Texts::default();
    for entry in text.split(|&b| b == b',' || b == b'\n') {
        let (text, entry) = match entry.trim_ascii_start().strip_prefix(b"default") {
            Some(rest) => (&mut texts.default, rest.strip_prefix(b":").unwrap_or(rest)),
            None => (&mut texts.access, entry),
        };
        let text = text.get_or_insert_default();
        text.extend_from_slice(entry);
        text.push(b',');
    }
    Ok(texts)
}
