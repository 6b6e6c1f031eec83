//! What the target must hold after a restore, compared with what it holds.
//!
//! Nothing that the restore knows is used: the whole stream is read once more, and what each of its names means in the end
//! is what the target must hold.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::Stat;
use rustix::io::Errno;

use super::bindings::Bindings;
use super::select::Selection;
use crate::entry::{EntryPath, Metadata, SparseMap};
use crate::index::{Arrival, Attributes, Index, Ino, Kind, Place};
use crate::materialize::error::{Error, Failure};
use crate::materialize::report::{self, Report};

/// A file of the target, by device and number.
type Inode = (u64, u64);

/// What a name of the target must hold.
pub(in crate::materialize) struct Expected<'a> {
    /// Its path, for messages.
    pub(in crate::materialize) path: &'a [u8],
    pub(in crate::materialize) attributes: &'a Attributes,
    /// None where there is nothing to compare but the kind: a directory that no header announced.
    pub(in crate::materialize) metadata: Option<&'a Metadata>,
    /// Of a symbolic link.
    pub(in crate::materialize) target: Option<&'a [u8]>,
    /// Of a file.
    pub(in crate::materialize) place: Option<Place>,
    pub(in crate::materialize) sparse: Option<&'a SparseMap>,
}

/// How it is told what the target holds.
pub(in crate::materialize) trait Compare {
    /// What differs in the root itself.
    fn root(&self, expected: &Expected<'_>) -> io::Result<Option<&'static str>>;

    /// What differs in a name of the directory `parent`. Of what is the right kind of thing with the right metadata, `links`
    /// is asked whether it is the right file. A directory is held open as `child`.
    fn name(
        &mut self,
        parent: Ino,
        child: Ino,
        name: CString,
        expected: &Expected<'_>,
        links: &mut dyn FnMut(&Stat) -> Option<String>,
    ) -> Result<Option<String>, Failure>;

    /// Whether a directory is held open.
    fn has(&self, directory: Ino) -> bool;

    /// Whether a failure is of the target as a whole.
    fn is_fatal(&self, cause: &Failure) -> bool;
}

/// Compares the target with the tree that the whole stream makes.
pub(in crate::materialize) struct Verify<'a> {
    target: &'a Path,
    selection: &'a Selection,
    strip: usize,
    report: &'a Report,
    /// What the names of the stream mean in the end.
    bindings: Bindings<'a>,
    disk: &'a mut dyn Compare,
    links: Links,
}

/// What has several names in the target.
#[derive(Default)]
struct Links {
    /// By entry, the file that it was seen as, and its first name.
    groups: HashMap<Ino, (Inode, Vec<u8>)>,
    /// What these files are.
    entries: HashMap<Inode, Ino>,
}

impl<'a> Verify<'a> {
    pub(in crate::materialize) fn new(
        target: &'a Path,
        selection: &'a Selection,
        strip: usize,
        report: &'a Report,
        bindings: Bindings<'a>,
        disk: &'a mut dyn Compare,
    ) -> Self {
        Verify { target, selection, strip, report, bindings, disk, links: Links::default() }
    }

    /// Compares everything that was to be restored. What differs is a problem.
    pub(in crate::materialize) fn run(mut self) -> Result<(), Error> {
        self.root()?;
        let needed = self.needed();
        let mut directories = vec![(Ino::ROOT, Vec::new())];
        while let Some((directory, path)) = directories.pop() {
            let children: Vec<(Vec<u8>, Ino)> =
                self.bindings.target().list(directory, 0).map(|(_, name, child)| (name.to_vec(), child)).collect();
            for (name, child) in children {
                let path = if path.is_empty() { name.clone() } else { [&*path, &*name].join(&b'/') };
                let Some(a) = self.attributes(child) else { continue };
                if !needed.contains(&child) && !self.is_wanted(&path, child, &a) {
                    continue;
                }
                let compared = CString::new(name)
                    .map_err(|e| Failure::Target(e.into()))
                    .and_then(|name| self.compare(directory, child, name, &path, &a));
                self.tell(&path, compared)?;
                if a.kind == Kind::Directory && self.disk.has(child) {
                    directories.push((child, path));
                }
            }
        }
        Ok(())
    }

    /// Of a name in the tree of the target, what it is in the mount.
    fn attributes(&self, child: Ino) -> Option<Attributes> {
        self.bindings.index.attributes(self.bindings.ino(child)?)
    }

    fn tell(&self, path: &[u8], compared: Result<Option<String>, Failure>) -> Result<(), Error> {
        match compared {
            Ok(None) => {}
            Ok(Some(what)) => self.report.problem(path, format!("verified: {what}")),
            Err(e) if e.errno() == Some(Errno::ACCESS) => {
                self.report.problem(path, format!("it cannot be read back: {e}"));
            }
            Err(cause) if self.disk.is_fatal(&cause) => {
                return Err(Error::Entry { path: report::told(path), cause });
            }
            Err(e) => self.report.problem(path, e),
        }
        Ok(())
    }

    fn root(&self) -> Result<(), Error> {
        if self.strip > 0 || !self.selection.is_all() || self.bindings.index.is_implied(Ino::ROOT) {
            return Ok(());
        }
        if let (Some(a), Some(metadata)) =
            (self.bindings.index.attributes(Ino::ROOT), self.bindings.metadata(Ino::ROOT))
        {
            let expected = expected(&self.bindings.index, b".", &a, Some(&metadata));
            match self.disk.root(&expected) {
                Ok(None) => {}
                Ok(Some(what)) => self.report.problem(b".", format!("verified: {what}")),
                Err(cause) => return Err(Error::Target { path: self.target.to_owned(), cause }),
            }
        }
        Ok(())
    }

    /// The directories that something wanted is in.
    fn needed(&self) -> HashSet<Ino> {
        let target = self.bindings.target();
        let mut needed = HashSet::new();
        target.walk(&mut |path, child| {
            if self.attributes(child).is_none_or(|a| !self.is_wanted(path, child, &a)) {
                return;
            }
            let parent = path.iter().rposition(|&b| b == b'/').map_or(&b""[..], |slash| &path[..slash]);
            let mut at = target.resolve(parent);
            while let Some(directory) = at
                && needed.insert(directory)
            {
                at = target.parent(directory);
            }
        });
        needed
    }

    /// Whether a name in the tree of the target was to be restored for its own sake.
    fn is_wanted(&self, path: &[u8], child: Ino, a: &Attributes) -> bool {
        let selection = self.selection;
        // The tree of shortened paths has only what is selected.
        let selected = self.strip > 0 || EntryPath::parse(path).is_ok_and(|path| selection.wants(&path));
        selected
            && match a.kind {
                Kind::Directory => !self.bindings.target().is_implied(child),
                // What has not arrived has been named.
                _ => selection.is_new(a.mtime) && self.bindings.index.arrival(a.ino) == Some(Arrival::Complete),
            }
    }

    /// What differs.
    fn compare(
        &mut self,
        parent: Ino,
        child: Ino,
        name: CString,
        path: &[u8],
        a: &Attributes,
    ) -> Result<Option<String>, Failure> {
        let implied = a.kind == Kind::Directory && self.bindings.index.is_implied(a.ino);
        let metadata = if implied { None } else { self.bindings.metadata(a.ino) };
        let expected = expected(&self.bindings.index, path, a, metadata.as_ref());
        let links = &mut self.links;
        self.disk.name(parent, child, name, &expected, &mut |there| links.compare(path, a, there))
    }
}

fn expected<'e>(index: &'e Index, path: &'e [u8], a: &'e Attributes, metadata: Option<&'e Metadata>) -> Expected<'e> {
    let sparse = index.sparse(a.ino).map(Arc::as_ref);
    Expected { path, attributes: a, metadata, target: index.target(a.ino), place: index.place(a.ino), sparse }
}

impl Links {
    /// All names of one entry are one file, and those of two entries are two. That a file has further names, which were not
    /// restored, is no fault.
    fn compare(&mut self, path: &[u8], a: &Attributes, there: &Stat) -> Option<String> {
        if a.kind == Kind::Directory || (a.nlink <= 1 && there.st_nlink <= 1) {
            return None;
        }
        let inode = (there.st_dev, there.st_ino);
        let (first, name) = self.groups.entry(a.ino).or_insert_with(|| (inode, path.to_vec()));
        if *first != inode {
            return Some(format!("it is no hard link to '{}'", report::told(name)));
        }
        let entry = *self.entries.entry(inode).or_insert(a.ino);
        if entry != a.ino {
            let (_, name) = self.groups.get(&entry)?;
            return Some(format!("it is a hard link to '{}', which is another file", report::told(name)));
        }
        None
    }
}
