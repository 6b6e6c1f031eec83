//! Somebody swaps directories for links to elsewhere, while they are written into.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use tar::EntryType::{Directory, Link, Regular, Symlink};

use super::{Canary, archive, command, ended, materialize};
use crate::support::compare::same_tree;
use crate::support::feed::member;
use crate::support::needs_fuse;

const TIME: u64 = 1_000_000_000;
const DIRECTORIES: usize = 30;

/// Swaps again and again, and leaves everything as it was.
fn swap(dest: &Path, elsewhere: &Path, over: &AtomicBool) -> usize {
    let mut swapped = 0;
    while !over.load(Ordering::Relaxed) {
        for n in 0..DIRECTORIES {
            for name in [format!("p{n}"), format!("p{n}/d")] {
                let (path, aside) = (dest.join(&name), dest.join(format!("aside{n}")));
                if !path.is_dir() || path.is_symlink() || fs::rename(&path, &aside).is_err() {
                    continue;
                }
                let linked = symlink(elsewhere, &path).is_ok();
                std::thread::yield_now();
                if linked {
                    // It may have been replaced meanwhile.
                    let _ = fs::remove_file(&path);
                    swapped += 1;
                }
                while fs::rename(&aside, &path).is_err() {
                    let _ = fs::remove_dir_all(&path);
                }
            }
        }
    }
    swapped
}

/// Ends it also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn directories_that_turn_into_links() {
    needs_fuse!();
    let mut members = vec![member(Directory, "./", "", TIME, b"")];
    for n in 0..DIRECTORIES {
        let name = |rest: &str| format!("p{n}/{rest}");
        members.push(member(Directory, &name(""), "", TIME, b""));
        members.push(member(Regular, &name("f"), "", TIME, b"packed"));
        members.push(member(Symlink, &name("l"), "elsewhere", TIME, b""));
        members.push(member(Directory, &name("d/"), "", TIME, b""));
        for file in ["d/f", "d/g", "d/new"] {
            members.push(member(Regular, &name(file), "", TIME, b"packed"));
        }
        members.push(member(Link, &name("d/h"), &name("f"), TIME, b""));
    }
    let (dir, mount, dest) = archive(&members);
    let canary = Canary::new(dir.path());
    materialize(&mount, &dest, &[]).with(0);
    let over = AtomicBool::new(false);
    let mut refused = 0;
    std::thread::scope(|scope| {
        let stop = Stop(&over);
        let swapping = scope.spawn(|| swap(&dest, &canary.path, &over));
        let begun = std::time::Instant::now();
        let mut runs = 0;
        while runs < 30 || refused == 0 {
            let run = command(&mount.point, &dest, &["--overwrite", "always"]);
            // With hardly a directory held open, each is opened again and again.
            let mut limited = Command::new("prlimit");
            limited.arg(if runs % 2 == 0 { "--nofile=64:64" } else { "--nofile=4096:4096" });
            limited.arg(run.get_program()).args(run.get_args());
            let ended = ended(limited.stdin(Stdio::null()).output().unwrap());
            assert!(matches!(ended.code, 0 | 3), "{}", ended.text);
            refused += ended.text.matches("nothing is written through it").count();
            canary.sings();
            assert!(begun.elapsed() < crate::support::HANGS, "no run has met a link");
            runs += 1;
        }
        drop(stop);
        assert!(swapping.join().unwrap() > 0);
    });
    // What came between has done no harm that another run does not mend.
    materialize(&mount, &dest, &[]).with(0);
    same_tree(&mount.point, &dest);
    canary.sings();
    mount.unmount();
}
