//! Somebody swaps directories for links to elsewhere, while they are written into.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use tar::EntryType::{Directory, Fifo, Link, Regular, Symlink};

use super::{Canary, archive, command, ended, materialize};
use crate::support::compare::same_tree;
use crate::support::feed::member;
use crate::support::{needs_fuse, shell};

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

const NAMES: usize = 400;

/// Puts a second name of what lies outside in the place of each link and FIFO, as soon as it is there.
fn take_places(dest: &Path, outside: &Path, over: &AtomicBool) {
    for n in 0..NAMES {
        let (name, aside) = (dest.join(format!("n{n}")), outside.join(format!("aside{n}")));
        fs::hard_link(outside.join(if n % 2 == 0 { "link" } else { "fifo" }), &aside).unwrap();
        while name.symlink_metadata().is_err() {
            if over.load(Ordering::Relaxed) {
                return;
            }
        }
        let _ = fs::rename(&aside, &name);
    }
}

#[test]
fn links_that_turn_into_names_of_what_lies_outside() {
    needs_fuse!();
    let kind = |n| if n % 2 == 0 { (Symlink, "elsewhere") } else { (Fifo, "") };
    let members: Vec<_> = (0..NAMES).map(|n| member(kind(n).0, &format!("n{n}"), kind(n).1, TIME, b"")).collect();
    let (dir, mount, dest) = archive(&members);
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    shell(&outside, "ln -s elsewhere link; mkfifo -m 600 fifo; chown -h 7:7 link fifo; touch -h -d @7 link fifo");
    let metadata = || {
        ["link", "fifo"].map(|name| {
            let m = outside.join(name).symlink_metadata().unwrap();
            (m.mode(), m.uid(), m.gid(), m.mtime())
        })
    };
    let before = metadata();
    let begun = std::time::Instant::now();
    let mut refused = 0;
    while refused == 0 {
        shell(&dest, "rm -f *");
        shell(&outside, "rm -f aside*");
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = Stop(&over);
            scope.spawn(|| take_places(&dest, &outside, &over));
            let ended = materialize(&mount, &dest, &[]);
            assert!(matches!(ended.code, 0 | 3), "{}", ended.text);
            refused = ended.text.matches("something else has taken its place").count();
            drop(stop);
        });
        assert_eq!(metadata(), before);
        assert!(begun.elapsed() < crate::support::HANGS, "nobody was fast enough");
    }
    mount.unmount();
}
