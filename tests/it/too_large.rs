//! Files that are too large for where the spool is: each is left out alone, and what comes behind it arrives.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::process::{Resource, Rlimit, prlimit};

use crate::delivery::Pair;
use crate::support::mount::Mount;
use crate::support::tree::bytes;
use crate::support::{needs_fuse, shell};

/// The daemon may write no larger file, as after `ulimit -f 4096`.
const LIMIT: u64 = 4 << 20;

/// Stored bytes of the file that is too large for its holes: whole pages, as every file system has them.
const STORED: usize = 150 * 4096;

/// Of the files in the middle, one grows too large and the other one cannot even begin, since a file with holes is given its
/// length first.
fn fill(tree: &Path) {
    fs::write(tree.join("a-small"), "small").unwrap();
    fs::write(tree.join("b-large"), bytes(1, 1 << 20)).unwrap();
    fs::write(tree.join("c-grows"), bytes(2, 6 << 20)).unwrap();
    let holes = File::create(tree.join("d-holes")).unwrap();
    holes.set_len(1 << 30).unwrap();
    let (first, second) = (bytes(3, STORED / 2), bytes(4, STORED / 2));
    holes.write_all_at(&first, 0).unwrap();
    holes.write_all_at(&second, 1 << 29).unwrap();
    fs::write(tree.join("e-large"), bytes(5, 2 << 20)).unwrap();
    fs::write(tree.join("f-small"), "small again").unwrap();
}

fn limit(mount: &Mount) {
    let limit = Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) };
    prlimit(Some(mount.daemon()), Resource::Fsize, limit).unwrap();
}

fn check(mount: &Mount, tree: &Path) {
    let status = mount.wait_end();
    assert_eq!(status["end"]["verdict"], "incomplete", "a tree with a file that is cut is not complete: {status:#}");
    assert_eq!(status["refused"], 2, "{status:#}");
    let problems = status["problems"].to_string();
    for path in ["c-grows", "d-holes"] {
        assert!(problems.contains(path), "{path} is not named: {status:#}");
    }
    assert!(problems.contains("File too large"), "{status:#}");
    for whole in ["a-small", "b-large", "e-large", "f-small"] {
        assert_eq!(mount.state(whole), "complete", "{whole}");
        assert!(fs::read(mount.path(whole)).unwrap() == fs::read(tree.join(whole)).unwrap(), "{whole}");
    }
    let state = mount.state("c-grows");
    let kept = state.strip_prefix("truncated ").and_then(|state| state.strip_suffix("/6291456"));
    let kept: usize = kept.and_then(|kept| kept.parse().ok()).unwrap_or_else(|| panic!("c-grows is {state}"));
    assert!(kept > 0 && kept as u64 <= LIMIT, "{kept}");
    // The kernel asks for whole pages.
    let mut read = vec![0; kept - kept % 4096];
    let mut file = File::open(mount.path("c-grows")).unwrap();
    file.read_exact(&mut read).unwrap();
    assert!(read == fs::read(tree.join("c-grows")).unwrap()[..read.len()]);
    assert_eq!(file.read(&mut [0; 4096]).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(mount.state("d-holes"), format!("truncated 0/{STORED}"));
}

#[test]
fn of_an_archive() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fill(&tree);
    shell(dir.path(), "tar --sort=name -cSf x.tar -C tree .");
    let (mount, mut stdin) = Mount::pipe(&[]);
    limit(&mount);
    stdin.write_all(&fs::read(dir.path().join("x.tar")).unwrap()).unwrap();
    drop(stdin);
    check(&mount, &tree);
    let dest = dir.path().join("dest");
    let output = crate::support::mount::restorefs(&["materialize"], &[&mount.point, &dest]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    for whole in ["a-small", "b-large", "e-large", "f-small"] {
        assert!(fs::read(dest.join(whole)).unwrap() == fs::read(tree.join(whole)).unwrap(), "{whole}");
    }
    assert!(!dest.join("c-grows").exists() && !dest.join("d-holes").exists());
    assert_eq!(mount.unmount(), Some(4));
}

#[test]
fn of_a_sender() {
    needs_fuse!();
    let mut pair = Pair::new(&[], fill);
    limit(&pair.mount);
    let sent = pair.send(pair.address, &[]).end();
    assert_eq!(sent.code, Some(4), "{sent:#?}");
    check(&pair.mount, &pair.tree);
    assert_eq!(pair.mount.wait_front(), Some(4), "{}", pair.mount.printed());
    pair.mount.unmount();
}
