//! Whether a mount is the tree that was packed: all metadata, contents, hard-link groups and holes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{SeekFrom, seek};

use super::run;

/// Asks rsync: it looks at types, contents, modes, owners, times to the nanosecond, devices, hard-link groups,
/// extended attributes and ACLs. Then at what rsync does not look at: the number of links.
pub fn same_tree(packed: &Path, mounted: &Path) {
    same_tree_except(packed, mounted, &[]);
}

/// The same, with further options for rsync: what a format cannot carry.
pub fn same_tree_except(packed: &Path, mounted: &Path, options: &[&str]) {
    let slash = |path: &Path| format!("{}/", path.display());
    let output = run(Command::new("rsync")
        .args(["-aHAXn", "--numeric-ids", "--itemize-changes", "--checksum", "--modify-window=-1", "--delete"])
        .args(options)
        .args([slash(mounted), slash(packed)]));
    let differences = String::from_utf8_lossy(&output.stdout);
    assert!(differences.is_empty(), "{mounted:?} is not {packed:?}:\n{differences}");
    let (a, b) = (links(packed), links(mounted));
    for (path, nlink) in &a {
        assert_eq!(Some(nlink), b.get(path), "links of {path:?}");
    }
    assert_eq!(a.len(), b.len());
}

/// The number of links of everything below.
fn links(root: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path.strip_prefix(root).unwrap().to_owned(), metadata.nlink());
    }
    found
}

/// Where the data of a file lies, from SEEK_DATA and SEEK_HOLE.
pub fn data_ranges(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Ok(data) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(data)).unwrap();
        ranges.push((data, at));
    }
    ranges
}

/// Compares holes below a directory: the mount has data where the packed file has, and no more blocks than that.
pub fn same_holes(packed: &Path, mounted: &Path) {
    for entry in fs::read_dir(packed).unwrap() {
        let name = entry.unwrap().file_name();
        let (a, b) = (packed.join(&name), mounted.join(&name));
        let (before, after) = (data_ranges(&a), data_ranges(&b));
        assert_eq!(before, after, "holes of {name:?}");
        let stored: u64 = after.iter().map(|(from, to)| to - from).sum();
        assert_eq!(b.metadata().unwrap().blocks(), stored.div_ceil(512), "blocks of {name:?}");
    }
}
