//! The names under which paths of the command line are sent, as GNU tar has them.

use crate::entry::{EntryPath, PathError};

/// What was left away at the beginning of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stripped<'a> {
    Nothing,
    /// `/`, once or more.
    Root,
    /// All up to the last `..`.
    Parents(&'a [u8]),
}

/// The path that something is sent as: without `/` in front, and without anything up to its last `..`.
pub(super) fn sent_as(path: &[u8]) -> Result<(EntryPath, Stripped<'_>), PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    let mut start = 0;
    let mut at = 0;
    for name in path.split(|&b| b == b'/') {
        at += name.len() + 1;
        if name == b".." {
            start = at.min(path.len());
        }
    }
    let stripped = match &path[..start] {
        b"" if path[0] == b'/' => Stripped::Root,
        b"" => Stripped::Nothing,
        parents => Stripped::Parents(parents),
    };
    let rest = &path[start..];
    let sent = if rest.is_empty() { EntryPath::root() } else { EntryPath::parse(rest)? };
    Ok((sent, stripped))
}

/// A path in two: the directory that something is in, and its name there. None where it is a directory for certain.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let (directory, name) = match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash + 1], &path[slash + 1..]),
        None => (&b"."[..], path),
    };
    (!matches!(name, b"" | b"." | b"..")).then_some((directory, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_gnu_tar_has_them() {
        for (path, sent, stripped) in [
            ("etc", "etc", Stripped::Nothing),
            ("./etc//x/", "etc/x", Stripped::Nothing),
            ("/etc", "etc", Stripped::Root),
            ("/", ".", Stripped::Root),
            (".", ".", Stripped::Nothing),
            ("..", ".", Stripped::Parents(b"..")),
            ("../x", "x", Stripped::Parents(b"../")),
            ("/a/../b/../c/d", "c/d", Stripped::Parents(b"/a/../b/../")),
            ("a/..", ".", Stripped::Parents(b"a/..")),
            ("..x/...", "..x/...", Stripped::Nothing),
        ] {
            let want = (EntryPath::parse(sent.as_bytes()).unwrap(), stripped);
            assert_eq!(sent_as(path.as_bytes()), Ok(want), "{path}");
        }
        assert_eq!(sent_as(b""), Err(PathError::Empty));
    }

    #[test]
    fn directory_and_name() {
        assert_eq!(split(b"a/b"), Some((&b"a/"[..], &b"b"[..])));
        assert_eq!(split(b"/b"), Some((&b"/"[..], &b"b"[..])));
        assert_eq!(split(b"b"), Some((&b"."[..], &b"b"[..])));
        assert_eq!(split(b"a/"), None);
        assert_eq!(split(b"a/.."), None);
    }
}
