//! A journal whose end is torn, or damaged: what is shown is right, and as much as can be.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{copy_of, recover};
use crate::support::feed::{member, whole};
use crate::support::mount::Mount;
use crate::support::needs_fuse;
use crate::support::tree::bytes;
use tar::EntryType;

/// Names with all the contents that they may have.
type Files = &'static [(&'static str, u64, usize)];

const FILES: Files = &[("one", 1, 50), ("two", 2, 300_000), ("three", 3, 40), ("four", 4, 30)];

/// A spool of a killed daemon that had received four files and two links.
fn killed() -> Mount {
    let (mut mount, mut stdin) = Mount::pipe(&[]);
    for (name, seed, size) in FILES {
        stdin.write_all(&whole(name, &bytes(*seed, *size))).unwrap();
    }
    stdin.write_all(&member(EntryType::Link, "five", "one", 0, b"")).unwrap();
    stdin.write_all(&member(EntryType::Symlink, "six", "two", 0, b"")).unwrap();
    mount.wait_for("six");
    mount.kill();
    mount
}

/// Each file is right as far as it can be read, and files are there in their order. Returns how many are complete.
#[track_caller]
fn right(spool: &Path) -> usize {
    let recovered = recover(spool);
    let tree = &recovered.mount;
    let mut complete = 0;
    for (n, (name, seed, size)) in FILES.iter().enumerate() {
        if !tree.path(name).exists() {
            continue;
        }
        let packed = bytes(*seed, *size);
        match tree.state(name).as_str() {
            "complete" => {
                assert!(fs::read(tree.path(name)).unwrap() == packed, "{name} has wrong bytes");
                assert_eq!(complete, n, "what was before {name} is not there");
                complete += 1;
            }
            state => {
                let there: u64 = state.strip_prefix("truncated ").unwrap().split('/').next().unwrap().parse().unwrap();
                let file = File::open(tree.path(name)).unwrap();
                let mut read = vec![0; there as usize / 4096 * 4096];
                file.read_exact_at(&mut read, 0).unwrap();
                assert!(read == packed[..read.len()], "{name} has wrong bytes");
            }
        }
    }
    assert_eq!(recovered.code, Some(4), "{}", tree.printed());
    if tree.path("five").exists() {
        assert!(fs::read(tree.path("five")).unwrap() == bytes(1, 50));
    }
    recovered.mount.unmount();
    complete
}

/// Looks at spools with a journal that `change` has made of the whole one, by several threads.
fn each(spool: &Path, cases: &[u64], change: impl Fn(&File, u64) + Sync) -> Vec<usize> {
    let next = AtomicU64::new(0);
    let found = parking_lot::Mutex::new(vec![0; cases.len()]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let dir = tempfile::tempdir().unwrap();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(&case) = cases.get(n) else { break };
                    let copy = copy_of(spool, dir.path());
                    let journal = File::options().read(true).write(true).open(copy.join("journal")).unwrap();
                    change(&journal, case);
                    let complete = right(&copy);
                    found.lock()[n] = complete;
                }
            });
        }
    });
    found.into_inner()
}

#[test]
fn one_that_ends_anywhere_shows_what_is_before() {
    needs_fuse!();
    let mount = killed();
    let spool = fs::read_dir(mount.dir.path().join("spool")).unwrap().next().unwrap().unwrap().path();
    let length = spool.join("journal").metadata().unwrap().len();
    let cases: Vec<u64> = (0..=length).rev().take(220).collect();
    let complete = each(&spool, &cases, |journal, length| journal.set_len(length).unwrap());
    assert_eq!(complete[0], FILES.len());
    assert!(complete.is_sorted_by(|longer, shorter| longer >= shorter), "{complete:?}");
    assert!(complete.last() < Some(&FILES.len()), "these are all of one record");
}

#[test]
fn a_bit_that_flipped_ends_it_there() {
    needs_fuse!();
    let mount = killed();
    let spool = fs::read_dir(mount.dir.path().join("spool")).unwrap().next().unwrap().unwrap().path();
    let length = spool.join("journal").metadata().unwrap().len();
    // Behind the first entry: where there is none, nothing is mounted.
    let cases: Vec<u64> = (300..length).step_by(((length as usize).saturating_sub(300) / 60).max(1)).collect();
    let complete = each(&spool, &cases, |journal, at| {
        let mut byte = [0];
        journal.read_exact_at(&mut byte, at).unwrap();
        journal.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    });
    assert!(complete.is_sorted(), "{complete:?}");
    assert!(complete[0] < FILES.len() && complete.last() == Some(&FILES.len()), "{complete:?}");
}
