//! Paths of entries: relative, normalised, and unable to leave the tree.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use serde_bytes::ByteBuf;

/// A component may have this many bytes (NAME_MAX of Linux); the kernel fails a whole `getdents` on a longer one.
pub const MAX_NAME: usize = 255;

/// A path may have this many components. Real trees stay under PATH_MAX / 2 = 2048; a bound keeps a
/// hostile `a/a/a/…` of megabytes from making as many directories.
pub const MAX_COMPONENTS: usize = 4096;

/// A path below the root of an archive: components parted by single `/`, none of them empty, `.` or
/// `..`, none over [`MAX_NAME`] bytes, no NUL. The empty path is the root.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "ByteBuf")]
pub struct EntryPath(Box<[u8]>);

/// Why bytes are not a path that may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// There is nothing in it.
    #[error("the name is empty")]
    Empty,
    /// It holds a `..` component.
    #[error("the name has a '..' component")]
    DotDot,
    /// It holds a NUL byte.
    #[error("the name has a NUL byte")]
    Nul,
    /// A component is longer than the kernel takes.
    #[error("a component of the name is over {MAX_NAME} bytes long")]
    NameTooLong,
    /// It is nested too deeply.
    #[error("the name has over {MAX_COMPONENTS} components")]
    TooDeep,
}

impl EntryPath {
    /// The root of the tree.
    pub fn root() -> Self {
        EntryPath(Box::default())
    }

    /// Normalises `bytes`: `/` at either end, `//` and `.` components go. `.` and `./` are the root.
    pub fn parse(bytes: &[u8]) -> Result<Self, PathError> {
        if bytes.is_empty() {
            return Err(PathError::Empty);
        }
        // As most are packed: `./` in front of it at most, and behind it the slash of a directory.
        let inner = bytes.strip_prefix(b"./").unwrap_or(bytes);
        let inner = inner.strip_suffix(b"/").unwrap_or(inner);
        if is_normal(inner) {
            return Ok(EntryPath(inner.into()));
        }
        if bytes.contains(&0) {
            return Err(PathError::Nul);
        }
        let mut out = Vec::with_capacity(bytes.len());
        let mut components = 0;
        for name in bytes.split(|&b| b == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err(PathError::DotDot),
                name if name.len() > MAX_NAME => return Err(PathError::NameTooLong),
                name => {
                    components += 1;
                    if components > MAX_COMPONENTS {
                        return Err(PathError::TooDeep);
                    }
                    if !out.is_empty() {
                        out.push(b'/');
                    }
                    out.extend_from_slice(name);
                }
            }
        }
        Ok(EntryPath(out.into_boxed_slice()))
    }

    /// What has this name in here.
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        match name {
            b"" | b"." => return Err(PathError::Empty),
            b".." => return Err(PathError::DotDot),
            name if name.iter().any(|b| matches!(b, 0 | b'/')) => {
                return EntryPath::parse(&[&self.0, name].join(&b'/'));
            }
            name if name.len() > MAX_NAME => return Err(PathError::NameTooLong),
            _ => {}
        }
        if self.is_root() {
            return Ok(EntryPath(name.into()));
        }
        // The path has one component more than it has slashes.
        if self.0.iter().filter(|&&b| b == b'/').count() + 2 > MAX_COMPONENTS {
            return Err(PathError::TooDeep);
        }
        let mut path = Vec::with_capacity(self.0.len() + 1 + name.len());
        path.extend_from_slice(&self.0);
        path.push(b'/');
        path.extend_from_slice(name);
        Ok(EntryPath(path.into_boxed_slice()))
    }

    /// The bytes, without `/` at either end.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The names on the way from the root.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|c| !c.is_empty())
    }

    /// What is left of it without its first `count` components; none where nothing is.
    pub fn without_first(&self, count: usize) -> Option<&[u8]> {
        let mut bytes = self.as_bytes();
        for _ in 0..count {
            let slash = bytes.iter().position(|&b| b == b'/')?;
            bytes = &bytes[slash + 1..];
        }
        (!bytes.is_empty()).then_some(bytes)
    }

    /// The path of the directory it is in, and its name there. None for the root.
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|&b| b == b'/') {
            Some(i) => Some((&self.0[..i], &self.0[i + 1..])),
            None => Some((&[], &self.0)),
        }
    }
}

/// Whether every component may stand as it is. One that begins with a dot is looked at elsewhere.
fn is_normal(bytes: &[u8]) -> bool {
    if bytes.len() > MAX_COMPONENTS {
        return false;
    }
    let mut begin = 0;
    for (i, &b) in bytes.iter().enumerate() {
        match b {
            b'/' if i == begin || i - begin > MAX_NAME => return false,
            b'/' => begin = i + 1,
            b'.' if i == begin => return false,
            0 => return false,
            _ => {}
        }
    }
    begin < bytes.len() && bytes.len() - begin <= MAX_NAME
}

impl Serialize for EntryPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl TryFrom<ByteBuf> for EntryPath {
    type Error = PathError;

    fn try_from(bytes: ByteBuf) -> Result<Self, PathError> {
        if bytes.is_empty() { Ok(EntryPath::root()) } else { EntryPath::parse(&bytes) }
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() { f.write_str(".") } else { f.write_str(&escape(&self.0)) }
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryPath({self})")
    }
}

/// A path of this machine, made safe in the same way as [`escape`] does it.
pub fn escape_path(path: &std::path::Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    escape(path.as_os_str().as_bytes())
}

/// As much of a text from elsewhere as is shown: as long as a path of Linux can be.
pub fn clipped(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(4096)]
}

/// A text of at most `most` bytes: of a longer one the beginning and the end.
pub fn shortened(text: String, most: usize) -> String {
    const GAP: &str = "…";
    if text.len() <= most {
        return text;
    }
    let each = most.saturating_sub(GAP.len()) / 2;
    let boundary = |at: &usize| text.is_char_boundary(*at);
    let begin = (0..=each).rev().find(boundary).unwrap_or(0);
    let end = (text.len() - each..=text.len()).find(boundary).unwrap_or(text.len());
    format!("{}{GAP}{}", &text[..begin], &text[end..])
}

/// Bytes from a stream, made safe for a terminal and a log: control characters and what is not UTF-8
/// become `\n`, `\x1b` and the like; a backslash is doubled, so that the text is unambiguous.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                // Bidirectional overrides can make a name read as another one.
                c if c.is_control()
                    || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
                {
                    let mut utf8 = [0; 4];
                    for b in c.encode_utf8(&mut utf8).bytes() {
                        out.push_str(&format!("\\x{b:02x}"));
                    }
                }
                c => out.push(c),
            }
        }
        for b in chunk.invalid() {
            out.push_str(&format!("\\x{b:02x}"));
        }
    }
    out
}

/// Text from another process, made safe for a terminal. Unlike [`escape`] it leaves backslashes alone: most of such text
/// is escaped already.
pub fn printable(text: &str) -> String {
    text.split('\\').map(|part| escape(part.as_bytes())).collect::<Vec<_>>().join("\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(bytes: &[u8]) -> Vec<u8> {
        EntryPath::parse(bytes).unwrap().as_bytes().to_vec()
    }

    #[test]
    fn normalises() {
        assert_eq!(normal(b"./usr//bin/./env/"), b"usr/bin/env");
        assert_eq!(normal(b"/etc/passwd"), b"etc/passwd");
        assert_eq!(normal(b"./"), b"");
        assert_eq!(normal(b"..."), b"...");
        assert_eq!(normal(b"-rf \xff\n"), b"-rf \xff\n");
    }

    #[test]
    fn long_texts_keep_both_ends() {
        assert_eq!(shortened("short".into(), 5), "short");
        assert_eq!(shortened("0123456789".into(), 9), "012…789");
        assert_eq!(shortened("äöüäöüäöü".into(), 10), "ä…ü");
    }

    #[test]
    fn refuses() {
        assert_eq!(EntryPath::parse(b""), Err(PathError::Empty));
        assert_eq!(EntryPath::parse(b"a/../b"), Err(PathError::DotDot));
        assert_eq!(EntryPath::parse(b"a\0b"), Err(PathError::Nul));
        assert_eq!(EntryPath::parse(&[b'x'; 256]), Err(PathError::NameTooLong));
        assert!(EntryPath::parse(&[b'x'; 255]).is_ok());
        assert!(EntryPath::parse(&b"a/".repeat(4096)).is_ok());
        assert_eq!(EntryPath::parse(&b"a/".repeat(4097)), Err(PathError::TooDeep));
    }

    #[test]
    fn joins() {
        let join = |path: &[u8], name: &[u8]| EntryPath::parse(path).unwrap().join(name).map(|p| p.as_bytes().to_vec());
        assert_eq!(join(b".", b"a"), Ok(b"a".to_vec()));
        assert_eq!(join(b"a/b", b"c"), Ok(b"a/b/c".to_vec()));
        assert_eq!(join(b"a", b".."), Err(PathError::DotDot));
        assert_eq!(join(b"a", b"b/../c"), Err(PathError::DotDot));
        assert_eq!(join(b"a", b"b\0"), Err(PathError::Nul));
        assert_eq!(join(b"a", b"."), Err(PathError::Empty));
        assert_eq!(join(b"a", &[b'x'; 256]), Err(PathError::NameTooLong));
        assert!(join(&b"a/".repeat(4095), b"a").is_ok());
        assert_eq!(join(&b"a/".repeat(4096), b"a"), Err(PathError::TooDeep));
    }

    #[test]
    fn splits() {
        assert_eq!(EntryPath::parse(b"a/b/c").unwrap().split(), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(EntryPath::parse(b"a").unwrap().split(), Some((&b""[..], &b"a"[..])));
        assert_eq!(EntryPath::root().split(), None);
    }

    #[test]
    fn what_is_escaped_already_stays_so() {
        assert_eq!(printable("a\x1b[2J\nb\\n \u{202e}ü"), "a\\x1b[2J\\nb\\n \\xe2\\x80\\xaeü");
        let once = escape(b"a\x1b\xff\\");
        assert_eq!(printable(&once), once);
    }

    #[test]
    fn escapes() {
        assert_eq!(escape(b"a\x1b[31m\n\xff\\"), "a\\x1b[31m\\n\\xff\\\\");
        assert_eq!(escape("\u{202e}txt.exe ü".as_bytes()), "\\xe2\\x80\\xaetxt.exe ü");
    }
}
