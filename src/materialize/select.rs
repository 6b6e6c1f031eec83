//! Which entries are restored.
//!
//! Paths name entries from the root of the archive; what is below them belongs to them.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::entry::{EntryPath, PathError, Timestamp};
use crate::pattern::{self, Patterns};

/// What is restored of a tree.
#[derive(Debug, Default)]
pub struct Selection {
    paths: Vec<(EntryPath, AtomicBool)>,
    include: Option<Patterns>,
    exclude: Option<Patterns>,
    newer_than: Option<Timestamp>,
}

/// Why nothing can be selected so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path that no entry can have.
    #[error("'{0}' cannot be the path of an entry: {1}")]
    Path(String, PathError),
    /// A pattern that cannot be understood.
    #[error(transparent)]
    Pattern(#[from] pattern::Error),
}

impl Selection {
    /// Of these paths (all where there are none) what a pattern of `include` matches (all where there are none), but not
    /// what one of `exclude` does; and only what was changed after a time, directories aside.
    pub fn new(
        paths: &[Vec<u8>],
        include: &[String],
        exclude: &[String],
        newer_than: Option<Timestamp>,
    ) -> Result<Self, Error> {
        // '/' is the root of the archive, and so is '.'.
        let below = |path: &Vec<u8>| match path.iter().position(|&b| b != b'/') {
            Some(begin) => EntryPath::parse(&path[begin..]),
            None => EntryPath::parse(b"."),
        };
        let parse = |path: &Vec<u8>| match below(path) {
            Ok(path) => Ok((path, AtomicBool::new(false))),
            Err(e) => Err(Error::Path(crate::entry::escape(path), e)),
        };
        Ok(Selection {
            paths: paths.iter().map(parse).collect::<Result<_, _>>()?,
            include: Patterns::new(include)?,
            exclude: Patterns::new(exclude)?,
            newer_than,
        })
    }

    /// Whether an entry of this path is restored.
    pub(super) fn wants(&self, path: &EntryPath) -> bool {
        let bytes = path.as_bytes();
        let mut named = self.paths.is_empty();
        for (wanted, seen) in &self.paths {
            let wanted = wanted.as_bytes();
            if wanted.is_empty() || bytes.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest[0] == b'/') {
                seen.store(true, Ordering::Relaxed);
                named = true;
            }
        }
        named
            && self.include.as_ref().is_none_or(|patterns| patterns.matches(path))
            && self.exclude.as_ref().is_none_or(|patterns| !patterns.matches(path))
    }

    /// Whether what was changed last at this time is restored.
    pub(super) fn is_new(&self, mtime: Timestamp) -> bool {
        self.newer_than.is_none_or(|than| (mtime.seconds(), mtime.nanos()) > (than.seconds(), than.nanos()))
    }

    /// Whether it is about more than a part of the tree.
    pub(super) fn is_all(&self) -> bool {
        self.paths.is_empty() && self.include.is_none()
    }

    /// Paths that no entry had.
    pub(super) fn missed(&self) -> impl Iterator<Item = &[u8]> {
        self.paths.iter().filter(|(_, seen)| !seen.load(Ordering::Relaxed)).map(|(path, _)| path.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(paths: &[&str], include: &[&str], exclude: &[&str], path: &str) -> bool {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let paths: Vec<Vec<u8>> = paths.iter().map(|p| p.as_bytes().to_vec()).collect();
        Selection::new(&paths, &strings(include), &strings(exclude), None)
            .unwrap()
            .wants(&EntryPath::parse(path.as_bytes()).unwrap())
    }

    #[test]
    fn paths_with_what_is_below() {
        assert!(wants(&[], &[], &[], "a"));
        assert!(wants(&["a"], &[], &[], "a"));
        assert!(wants(&["./a/"], &[], &[], "a/b"));
        assert!(wants(&["/a"], &[], &[], "a/b"));
        assert!(!wants(&["a"], &[], &[], "ab"));
        assert!(wants(&["."], &[], &[], "ab"));
        assert!(wants(&["/"], &[], &[], "ab"));
        assert!(!wants(&["a/b"], &[], &[], "a"));
    }

    #[test]
    fn patterns() {
        assert!(!wants(&[], &[], &["*.o"], "src/x.o"));
        assert!(wants(&[], &[], &["/a"], "b/a"));
        assert!(wants(&[], &["*.conf"], &[], "etc/x.conf"));
        assert!(!wants(&[], &["*.conf"], &["etc"], "etc/x.conf"));
        assert!(!wants(&[], &["*.conf"], &[], "etc/x"));
        assert!(Selection::new(&[], &["[".into()], &[], None).is_err());
        assert!(Selection::new(&[b"../x".to_vec()], &[], &[], None).is_err());
    }
}
