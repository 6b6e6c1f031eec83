//! Kills at random moments, while archives and senders of every kind fill a spool: what was complete is complete again,
//! nothing has wrong bytes, what was cut is named, and whoever goes on completes the tree.
//!
//! A few kills here; `scripts/kill-loop COUNT SEED` for more.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use super::{same_beginning, tree};
use crate::support::compare::same_tree;
use crate::support::mount::{Mount, RESTOREFS, restorefs};
use crate::support::needs_fuse;
use crate::support::pack::compress;
use crate::support::process::{Group, is_gone};
use crate::support::proxy::{Proxy, Way};
use crate::support::random::Random;
use crate::support::wait_until;

const KINDS: &[&str] = &["plain", "gzip", "zstd", "sender", "in place"];

/// What came out for one kind.
#[derive(Default)]
struct Count {
    kills: u64,
    /// Nothing had come yet.
    empty: u64,
    /// Everything had.
    whole: u64,
    complete: u64,
    cut: u64,
    missing: u64,
    resumed: u64,
    /// The most bytes that came over the wire beyond the size of the tree.
    again: u64,
}

/// What a mount showed a moment before its daemon was killed: inodes of all, and those that were complete.
#[derive(Default)]
struct Seen {
    inodes: BTreeMap<PathBuf, u64>,
    complete: Vec<PathBuf>,
}

impl Seen {
    fn of(mount: &Mount) -> Seen {
        let mut seen = Seen::default();
        for name in tree::names(&mount.point) {
            let path = mount.path(&name);
            let Ok(found) = path.symlink_metadata() else { continue };
            seen.inodes.insert(name.clone(), found.ino());
            if found.is_file() && mount.state(&name) == "complete" {
                seen.complete.push(name);
            }
        }
        seen
    }
}

struct Case {
    dir: tempfile::TempDir,
    truth: tree::Truth,
    random: Random,
}

impl Case {
    fn new(seed: u64) -> Case {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random(seed);
        let truth = tree::make(dir.path(), &mut random);
        Case { dir, truth, random }
    }

    /// Looks at the mount, or not: that takes its time, and more arrives meanwhile.
    fn look(&mut self, mount: &Mount) -> Seen {
        if self.random.chance(50) { Seen::of(mount) } else { Seen::default() }
    }

    /// Lets a moment pass: none, or up to two milliseconds.
    fn moment(&mut self) {
        let begun = Instant::now();
        let moment = Duration::from_micros(self.random.below(2000) as u64);
        while begun.elapsed() < moment {
            std::hint::spin_loop();
        }
    }

    fn kill(&mut self, mount: &mut Mount) {
        self.moment();
        kill_process(mount.daemon(), Signal::KILL).unwrap();
        mount.wait_front();
        wait_until("the daemon is gone", || is_gone(mount.daemon()).then_some(()));
    }

    /// Compares everything that is mounted from the spool with what was packed. Whether there is something, and not all.
    fn compare(&self, spool: &Path, seen: &Seen, count: &mut Count) -> bool {
        let free = tempfile::tempdir().unwrap();
        let point = free.path().canonicalize().unwrap();
        let first = restorefs(&["mount"], &[spool, &point]);
        if first.status.code() == Some(1) {
            let printed = String::from_utf8_lossy(&first.stderr);
            assert!(printed.contains("no entry had arrived"), "{printed}");
            assert!(seen.complete.is_empty(), "{:?} were complete", seen.complete);
            count.empty += 1;
            return false;
        }
        assert!(restorefs(&["umount"], &[&point]).status.success(), "{first:?}");
        let mut mount = Mount::start(Stdio::null(), &["-f"], |command| {
            command.arg(spool);
        });
        let status = mount.wait_end();
        let mut cut = 0;
        for (name, versions) in &self.truth.files {
            let Ok(found) = mount.path(name).symlink_metadata() else {
                count.missing += 1;
                continue;
            };
            if let Some(before) = seen.inodes.get(name) {
                assert!(versions.len() > 1 || *before == found.ino(), "{name:?} has another number");
            }
            let state = mount.state(name);
            let packed = versions.iter().find(|packed| packed.len() as u64 == found.len());
            let packed = packed.unwrap_or_else(|| panic!("{name:?} has the size of no version: {}", found.len()));
            if state == "complete" {
                assert!(&fs::read(mount.path(name)).unwrap() == packed, "{name:?} has wrong bytes");
                count.complete += 1;
            } else {
                assert!(!seen.complete.contains(name) || versions.len() > 1, "{name:?} was complete, and is {state}");
                if state.ends_with(&format!("/{}", packed.len())) {
                    same_beginning(&mount, name.to_str().unwrap(), packed);
                }
                same_pages(&mount, name, packed);
                cut += 1;
            }
        }
        count.cut += cut;
        for (link, first) in &self.truth.links {
            if let (Ok(a), Ok(b)) = (mount.path(link).symlink_metadata(), mount.path(first).symlink_metadata()) {
                assert_eq!(a.ino(), b.ino(), "{link:?} is not {first:?}");
            }
        }
        for name in &seen.complete {
            assert!(mount.path(name).exists(), "{name:?} was complete, and is gone");
        }
        if status["end"]["verdict"] == "complete" {
            assert_eq!(cut, 0, "{status:#}");
            same_tree(&self.truth.root, &mount.point);
            count.whole += 1;
        } else {
            assert_eq!(status["end"]["verdict"], "incomplete", "{status:#}");
            let cause = status["end"]["cause"].as_str().unwrap();
            assert!(cause.contains("the last entry is") || cause.contains("missing or cut") || cut == 0, "{status:#}");
            assert!(cut == 0 || status["end"]["cut"].is_string() || cause.contains("missing or cut"), "{status:#}");
        }
        let complete = status["end"]["verdict"] == "complete";
        assert!(restorefs(&["umount"], &[&mount.point]).status.success());
        assert_eq!(mount.wait_front(), Some(if complete { 0 } else { 4 }), "{}", mount.printed());
        assert!(spool.join("journal").exists());
        !complete
    }

    /// An archive through a pipe.
    fn archive(&mut self, compressor: Option<&[&str]>, count: &mut Count) {
        let archive = match compressor {
            Some(command) => compress(&self.truth.archive, command),
            None => self.truth.archive.clone(),
        };
        let stream = fs::read(&archive).unwrap();
        let upto = self.random.below(stream.len() + 1);
        let (mut mount, mut stdin) = Mount::pipe(&[]);
        let spool = mount.spool();
        let fed = Arc::new(AtomicUsize::new(0));
        let size = 1 + self.random.below(100_000);
        let feeder = std::thread::spawn({
            let fed = fed.clone();
            move || {
                for piece in stream.chunks(size) {
                    if stdin.write_all(piece).is_err() {
                        return;
                    }
                    fed.fetch_add(piece.len(), Ordering::Release);
                }
            }
        });
        wait_until("enough has come", || (fed.load(Ordering::Acquire) >= upto).then_some(()));
        let seen = self.look(&mount);
        self.kill(&mut mount);
        feeder.join().unwrap();
        if !self.compare(&spool, &seen, count) {
            return;
        }
        let args = ["-f", "--resume", spool.to_str().unwrap()];
        let mut mount = Mount::start(Stdio::from(File::open(&archive).unwrap()), &args, |command| {
            command.arg("-");
        });
        mount.wait_clean();
        same_tree(&self.truth.root, &mount.point);
        assert!(restorefs(&["umount"], &[&mount.point]).status.success());
        assert_eq!(mount.wait_front(), Some(0), "{}", mount.printed());
        count.resumed += 1;
    }

    /// `restorefs send`, that goes on trying or is started again.
    fn sender(&mut self, count: &mut Count) {
        let token = self.dir.path().join("token");
        let args = ["--token-file", token.to_str().unwrap()];
        let (mut mount, address) = Mount::listen_for_sender(&args);
        let spool = mount.spool();
        let proxy = Proxy::start(address, |_| Way::default());
        let to = proxy.address.to_string();
        let send = || {
            let mut command = Command::new(RESTOREFS);
            command.args(["send", ".", "--no-compress", "--to", &to, "-C"]).arg(&self.truth.root).args(args);
            Group::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
        };
        let size = self.truth.size;
        let upto = self.random.below(size as usize);
        let mut sender = send();
        wait_until("enough has come", || (proxy.passed() >= upto || sender.has_ended()).then_some(()));
        let look = self.random.chance(50);
        let seen = if look { Seen::of(&mount) } else { Seen::default() };
        let again = self.random.chance(50);
        self.moment();
        kill_process(mount.daemon(), Signal::KILL).unwrap();
        mount.wait_front();
        wait_until("the daemon is gone", || is_gone(mount.daemon()).then_some(()));
        if again && !sender.has_ended() {
            sender.kill();
            sender.wait();
        }
        self.compare(&spool, &seen, count);
        let address = address.to_string();
        let args = ["--listen", &address, "--token-file", token.to_str().unwrap(), "--resume", spool.to_str().unwrap()];
        let mut mount = Mount::start(Stdio::null(), &args, |_| {});
        if sender.has_ended() {
            let mut command = Command::new(RESTOREFS);
            command.args(["send", ".", "--no-compress", "--to", &to, "-C"]).arg(&self.truth.root);
            command.arg("--token-file").arg(&token);
            sender = Group::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        }
        assert_eq!(sender.wait().code(), Some(0), "{}", mount.printed());
        assert_eq!(mount.wait_front(), Some(0), "{}", mount.printed());
        same_tree(&self.truth.root, &mount.point);
        // What was in flight between the two, and in the proxy; the beginning of each file that was open; the catalogue.
        let over = (proxy.passed() as u64).saturating_sub(size);
        assert!(over < 16 << 20, "{over} bytes more than the tree has");
        count.again = count.again.max(over);
        count.resumed += 1;
        mount.unmount();
    }

    /// An archive in a file has no spool: it is mounted again.
    fn in_place(&mut self, count: &mut Count) {
        let mut mount = Mount::file(&self.truth.archive, &[]);
        self.kill(&mut mount);
        drop(mount);
        let mount = Mount::file(&self.truth.archive, &[]);
        mount.wait_clean();
        same_tree(&self.truth.root, &mount.point);
        count.whole += 1;
        count.complete += self.truth.files.len() as u64;
        mount.unmount();
    }
}

/// What can be read of a file that was cut is right, page by page, and something cannot be read.
fn same_pages(mount: &Mount, name: &Path, packed: &[u8]) {
    let file = File::open(mount.path(name)).unwrap();
    let mut missing = 0;
    for (n, page) in packed.chunks(4096).enumerate() {
        let mut read = vec![0; page.len()];
        match file.read_exact_at(&mut read, n as u64 * 4096) {
            Ok(()) => assert!(read == page, "{name:?} has wrong bytes in page {n}"),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EIO), "{name:?}, page {n}: {e}");
                missing += 1;
            }
        }
    }
    assert!(missing > 0, "{name:?} is cut, and nothing of it is missing");
}

fn case(seed: u64, count: &mut Count) {
    let mut case = Case::new(seed);
    match KINDS[seed as usize % KINDS.len()] {
        "plain" => case.archive(None, count),
        "gzip" => case.archive(Some(&["gzip", "-1"]), count),
        "zstd" => case.archive(Some(&["zstd", "-1"]), count),
        "sender" => case.sender(count),
        _ => case.in_place(count),
    }
    count.kills += 1;
}

#[test]
fn what_arrived_survives_a_kill_at_any_moment() {
    needs_fuse!();
    let asked = std::env::var("RESTOREFS_KILLS").unwrap_or_else(|_| "10:1".into());
    let (kills, first) = asked.split_once(':').unwrap();
    let (kills, first): (u64, u64) = (kills.parse().unwrap(), first.parse().unwrap());
    let mut counts: Vec<Count> = KINDS.iter().map(|_| Count::default()).collect();
    let mut failed = Vec::new();
    for seed in first..first + kills {
        let count = &mut counts[seed as usize % KINDS.len()];
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| case(seed, count))).is_err() {
            eprintln!("seed {seed} failed: scripts/kill-loop 1 {seed}");
            failed.push(seed);
            count.kills += 1;
        }
    }
    let mut summary = String::new();
    for (kind, c) in KINDS.iter().zip(&counts) {
        writeln!(
            summary,
            "{kind}: {} kills; {} trees empty, {} whole; files: {} complete, {} cut, {} not there; {} resumed; at most {} \
             KiB sent again",
            c.kills, c.empty, c.whole, c.complete, c.cut, c.missing, c.resumed, c.again >> 10
        )
        .unwrap();
    }
    eprintln!("{summary}");
    assert!(failed.is_empty(), "these seeds failed: {failed:?}\n{summary}");
}
