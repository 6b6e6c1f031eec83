//! Whether what a mount shows of a tree is true, though not everything may have arrived.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A read of a page that is not there fails, and that of its neighbour does not.
const PAGE: usize = 4096;

/// What was found of regular files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Remains {
    pub whole: usize,
    pub cut: usize,
    pub absent: usize,
}

/// Compares everything in the mount with the tree that was packed: names, kinds, links, modes, owners and times of what is
/// there; every byte that can be read; that whole files can be read, and of others as much as they say. What is in `must`
/// has to be whole. Where the disk under it fails, `readable` is false, and a whole file may give an error.
#[track_caller]
pub fn true_to(tree: &Path, mount: &Path, must: &BTreeSet<PathBuf>, readable: bool) -> Remains {
    let mut remains = Remains::default();
    let mut missing = must.clone();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let (packed, mounted) = (tree.join(&path), mount.join(&path));
        let before = packed.symlink_metadata().unwrap();
        if before.is_dir() {
            todo.extend(packed.read_dir().unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        let Ok(after) = mounted.symlink_metadata() else {
            remains.absent += usize::from(before.is_file());
            continue;
        };
        assert_eq!(before.file_type(), after.file_type(), "{mounted:?}");
        if before.is_dir() {
            // One may be there without its header.
            for entry in mounted.read_dir().unwrap() {
                let name = entry.unwrap().file_name();
                assert!(packed.join(&name).symlink_metadata().is_ok(), "{name:?} in {mounted:?} was never packed");
            }
            missing.remove(&path);
            continue;
        }
        let facts = |of: &std::fs::Metadata| (of.mode(), of.uid(), of.gid(), of.mtime(), of.mtime_nsec(), of.rdev());
        assert_eq!(facts(&before), facts(&after), "{mounted:?}");
        if before.is_symlink() {
            assert_eq!(packed.read_link().unwrap(), mounted.read_link().unwrap(), "{mounted:?}");
        }
        if !before.is_file() {
            missing.remove(&path);
            continue;
        }
        if file(&packed, &mounted, readable) {
            remains.whole += 1;
            missing.remove(&path);
        } else {
            remains.cut += 1;
        }
    }
    assert!(missing.is_empty(), "{} of {} that had to be there are not whole: {missing:?}", missing.len(), must.len());
    remains
}

/// Whether it is whole.
#[track_caller]
fn file(packed: &Path, mounted: &Path, readable: bool) -> bool {
    let truth = std::fs::read(packed).unwrap();
    assert_eq!(truth.len() as u64, mounted.metadata().unwrap().len(), "{mounted:?}");
    let mut state = [0; 100];
    let n = rustix::fs::lgetxattr(mounted, "user.restorefs.state", &mut state).unwrap();
    let state = std::str::from_utf8(&state[..n]).unwrap();
    let whole = state == "complete";
    // Of stored bytes: of a file without holes these are its first ones.
    let dense = mounted.metadata().unwrap().blocks() * 512 >= truth.len() as u64;
    let received: u64 = match state.strip_prefix("truncated ").and_then(|state| state.split_once('/')) {
        Some((received, _)) if dense => received.parse().unwrap(),
        Some(_) => 0,
        None if !readable && state == "damaged" => 0,
        None => {
            assert!(whole, "{mounted:?} is {state}");
            truth.len() as u64
        }
    };
    let file = match File::open(mounted) {
        Ok(file) => file,
        Err(e) => {
            assert!(!readable || !whole, "{mounted:?}: {e}");
            return false;
        }
    };
    let mut failed = false;
    for at in (0..truth.len() as u64).step_by(PAGE) {
        let expected = &truth[at as usize..truth.len().min(at as usize + PAGE)];
        let mut page = vec![0; expected.len()];
        match file.read_at(&mut page, at) {
            Ok(n) => {
                // Where it is cut, a page may be there in part.
                assert!(n == page.len() || (n > 0 && !whole), "{mounted:?} ends at {at} + {n}");
                let wrong = page[..n].iter().zip(expected).filter(|(a, b)| a != b).count();
                let zeros = page[..n].iter().filter(|byte| **byte == 0).count();
                assert!(
                    wrong == 0,
                    "{mounted:?}, which is {state}: {wrong} of {n} bytes from {at} on are wrong, {zeros} are zeros"
                );
                failed |= n < page.len();
            }
            Err(e) => {
                let there = at + expected.len() as u64 <= received;
                assert!(!readable || !there, "{mounted:?}, which is {state}, at {at}: {e}");
                failed = true;
            }
        }
    }
    assert!(whole || failed || truth.is_empty() || !dense, "{mounted:?} can be read to its end, and is {state}");
    whole && !failed
}

/// The paths of everything in a tree, and of itself.
pub fn everything(tree: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        if tree.join(&path).symlink_metadata().unwrap().is_dir() {
            todo.extend(tree.join(&path).read_dir().unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        found.insert(path);
    }
    found
}
