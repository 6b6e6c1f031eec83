//! Patterns for paths, like those of tar's `--exclude`: `*`, `?`, `[…]` and `{a,b}`, where `*` and `?` match `/` too.
//!
//! A pattern matches an entry when it matches its path from the root or from behind any `/`, or that of a directory
//! that it is in. With a `/` in front it matches from the root only.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::entry::EntryPath;

/// Some patterns, of which one has to match.
#[derive(Clone, Debug)]
pub struct Patterns {
    set: GlobSet,
    /// The number of the pattern that each glob of the set comes from.
    numbers: Vec<usize>,
}

/// A pattern that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no pattern: {1}")]
pub struct Error(String, globset::Error);

impl Patterns {
    /// None where there are none.
    pub fn new(patterns: &[String]) -> Result<Option<Self>, Error> {
        if patterns.is_empty() {
            return Ok(None);
        }
        let mut set = GlobSetBuilder::new();
        let mut numbers = Vec::new();
        for (number, pattern) in patterns.iter().enumerate() {
            let pattern = pattern.trim_end_matches('/');
            let (anchored, pattern) = match pattern.strip_prefix('/') {
                Some(rest) => (true, rest),
                None => (false, pattern),
            };
            for before in if anchored { &[""][..] } else { &["", "**/"][..] } {
                for behind in ["", "/**"] {
                    let glob = Glob::new(&format!("{before}{pattern}{behind}"));
                    set.add(glob.map_err(|e| Error(pattern.into(), e))?);
                    numbers.push(number);
                }
            }
        }
        let set = set.build().map_err(|e| Error(patterns.join(" "), e))?;
        Ok(Some(Patterns { set, numbers }))
    }

    /// Whether one of them matches.
    pub fn matches(&self, path: &EntryPath) -> bool {
        self.set.is_match(Path::new(OsStr::from_bytes(path.as_bytes())))
    }

    /// The numbers of those that match, in the order in which they were given; one may come twice.
    pub fn which(&self, path: &EntryPath) -> impl Iterator<Item = usize> {
        let globs = self.set.matches(Path::new(OsStr::from_bytes(path.as_bytes())));
        globs.into_iter().map(|glob| self.numbers[glob])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_those_of_tar() {
        let matches = |pattern: &str, path: &str| {
            let patterns = Patterns::new(&[pattern.into()]).unwrap().unwrap();
            patterns.matches(&EntryPath::parse(path.as_bytes()).unwrap())
        };
        assert!(matches("*.o", "src/x.o"));
        assert!(matches("target", "a/target/debug/x"));
        assert!(matches("target/", "a/target/debug/x"));
        assert!(!matches("target", "a/targets"));
        assert!(matches("a/*/c", "a/b/b/c/d"));
        assert!(!matches("/a", "b/a"));
        assert!(matches("/a", "a/b"));
        assert!(matches("{a,b}", "b"));
        assert!(Patterns::new(&["[".into()]).is_err());
        assert!(Patterns::new(&[]).unwrap().is_none());
    }
}
