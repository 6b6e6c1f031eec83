//! A tree made at random, with all that its files may hold: small and large ones, holes, hard links, replaced names.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::pack::gnu_tar;
use crate::support::random::Random;
use crate::support::run;
use crate::support::tree::bytes;

/// What was packed.
pub(super) struct Truth {
    pub(super) root: PathBuf,
    pub(super) archive: PathBuf,
    /// Every name of a file, with the versions in the archive, each of another size.
    pub(super) files: BTreeMap<PathBuf, Vec<Vec<u8>>>,
    /// Further names, each with the first.
    pub(super) links: Vec<(PathBuf, PathBuf)>,
    /// Bytes in all files, without holes.
    pub(super) size: u64,
}

/// Everything below, without the root.
pub(super) fn names(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(entry.path());
            }
            found.push(entry.path().strip_prefix(root).unwrap().to_owned());
        }
    }
    found
}

/// Makes it, and packs it with GNU tar: some files are changed after that, and appended.
pub(super) fn make(dir: &Path, random: &mut Random) -> Truth {
    let root = dir.join("tree");
    fs::create_dir(&root).unwrap();
    let (mut names, mut links) = (Vec::new(), Vec::new());
    for n in 0..60 {
        let name = PathBuf::from(format!("dir-{}/file-{n:02}", n % 7));
        fs::create_dir_all(root.join(name.parent().unwrap())).unwrap();
        let path = root.join(&name);
        match random.below(10) {
            0 => fs::write(&path, bytes(random.next(), (1 << 20) + random.below(2 << 20))).unwrap(),
            1 | 2 => fs::write(&path, bytes(random.next(), random.below(400_000))).unwrap(),
            3 => {
                let file = File::create(&path).unwrap();
                for at in 0..3 {
                    file.write_all_at(&bytes(random.next(), 1 + random.below(100_000)), at * 300_000).unwrap();
                }
                file.set_len(1_000_000).unwrap();
            }
            4 if !names.is_empty() => {
                let first: &PathBuf = random.of(&names);
                fs::hard_link(root.join(first), &path).unwrap();
                links.push((name, first.clone()));
                continue;
            }
            _ => fs::write(&path, bytes(random.next(), random.below(6000))).unwrap(),
        }
        names.push(name);
    }
    let archive = dir.join("x.tar");
    gnu_tar(&root, &archive, &["--format=pax", "--sparse", "--sort=name"]);
    let read = |name: &PathBuf| fs::read(root.join(name)).unwrap();
    let mut files: BTreeMap<PathBuf, Vec<Vec<u8>>> =
        names.iter().map(|name| (name.clone(), vec![read(name)])).collect();
    files.extend(links.iter().map(|(name, first)| (name.clone(), vec![read(first)])));
    // Those that have one name only: a new version of one with several parts them.
    let single: Vec<PathBuf> =
        names.iter().filter(|name| links.iter().all(|(_, first)| first != *name)).cloned().collect();
    for _ in 0..3 {
        let name = random.of(&single);
        let versions = files.get_mut(name).unwrap();
        let longer = versions.iter().map(Vec::len).max().unwrap() + 1 + random.below(1000);
        let version = bytes(random.next(), longer);
        fs::write(root.join(name), &version).unwrap();
        versions.push(version);
        run(Command::new("tar")
            .arg("-C")
            .arg(&root)
            .args(["--format=pax", "--no-recursion", "-rf"])
            .arg(&archive)
            .arg(Path::new(".").join(name)));
    }
    let stored =
        |name: &PathBuf| root.join(name).metadata().map(|found| found.len().min(found.blocks() * 512)).unwrap();
    let size = names.iter().map(stored).sum();
    Truth { root, archive, files, links, size }
}
