//! Which entries are restored.
//!
//! Paths name entries from the root of the archive; what is below them belongs to them. What was asked for and is in no
//! entry is named in the end: a path, a pattern, or a number of components.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::entry::{EntryPath, PathError, Timestamp, escape};
use crate::materialize::report::Report;
use crate::pattern::{self, Patterns};

/// What is restored of a tree.
#[derive(Debug, Default)]
pub struct Selection {
    paths: Vec<(EntryPath, AtomicBool)>,
    include: Option<Include>,
    exclude: Option<Patterns>,
    newer_than: Option<Timestamp>,
    /// The most components that a selected entry has.
    deepest: AtomicUsize,
}

#[derive(Debug)]
struct Include {
    patterns: Patterns,
    /// Each as it was given, and whether an entry matches it.
    each: Vec<(String, AtomicBool)>,
    missing: AtomicBool,
}

impl Include {
    fn matches(&self, path: &EntryPath) -> bool {
        if !self.missing.load(Ordering::Relaxed) {
            return self.patterns.matches(path);
        }
        let mut matches = false;
        for number in self.patterns.which(path) {
            matches = true;
            self.each[number].1.store(true, Ordering::Relaxed);
        }
        if matches && self.each.iter().all(|(_, seen)| seen.load(Ordering::Relaxed)) {
            self.missing.store(false, Ordering::Relaxed);
        }
        matches
    }
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
            Err(e) => Err(Error::Path(escape(path), e)),
        };
        Ok(Selection {
            paths: paths.iter().map(parse).collect::<Result<_, _>>()?,
            include: Patterns::new(include)?.map(|patterns| Include {
                patterns,
                each: include.iter().map(|pattern| (pattern.clone(), AtomicBool::new(false))).collect(),
                missing: AtomicBool::new(true),
            }),
            exclude: Patterns::new(exclude)?,
            newer_than,
            deepest: AtomicUsize::new(0),
        })
    }

    /// Whether an entry of this path is restored.
    pub(in crate::materialize) fn wants(&self, path: &EntryPath) -> bool {
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
            && self.include.as_ref().is_none_or(|include| include.matches(path))
            && self.exclude.as_ref().is_none_or(|patterns| !patterns.matches(path))
    }

    /// Whether what was changed last at this time is restored.
    pub(in crate::materialize) fn is_new(&self, mtime: Timestamp) -> bool {
        self.newer_than.is_none_or(|than| (mtime.seconds(), mtime.nanos()) > (than.seconds(), than.nanos()))
    }

    /// Whether it is about more than a part of the tree.
    pub(in crate::materialize) fn is_all(&self) -> bool {
        self.paths.is_empty() && self.include.is_none()
    }

    /// An entry is selected that has so many components.
    pub(in crate::materialize) fn saw(&self, components: usize) {
        self.deepest.fetch_max(components, Ordering::Relaxed);
    }

    /// Reports what was asked for in vain: paths and patterns that no entry has, and `strip` components where none of the
    /// selected entries has more.
    pub(in crate::materialize) fn tell_missed(&self, strip: usize, report: &Report) {
        for (path, _) in self.paths.iter().filter(|(_, seen)| !seen.load(Ordering::Relaxed)) {
            report.problem(path.as_bytes(), "there is no such entry");
        }
        for (pattern, _) in
            self.include.iter().flat_map(|include| &include.each).filter(|(_, seen)| !seen.load(Ordering::Relaxed))
        {
            report.unmatched(format!("'--include {}' matched nothing", escape(pattern.as_bytes())));
        }
        let deepest = self.deepest.load(Ordering::Relaxed);
        if (1..=strip).contains(&deepest) {
            report.unmatched(format!(
                "'--strip-components {strip}' left nothing: no path that is to be restored has more than {deepest}"
            ));
        }
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
