//! Reads with `O_DIRECT`: past the page cache, by the same rules as any other read.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

use rustix::process::Signal;

use crate::readers::{Reader, wait_state};
use crate::support::mount::Mount;
use crate::support::process::Group;
use crate::support::tree::bytes;
use crate::support::{feed, needs_fuse, wait_until};

const PAGE: usize = 4096;

/// Within a page, a page, what the kernel sends as one request, and what it sends as several.
const BLOCKS: [&str; 5] = ["512", "4K", "64K", "1M", "4M"];

/// Flags of dd that read through the page cache.
const CACHED: &str = "skip_bytes";

/// Copies a file in blocks, with the flags of dd.
fn dd(path: &Path, block: &str, flags: &str) -> Reader {
    let (from, block, flags) = (format!("if={}", path.display()), format!("bs={block}"), format!("iflag={flags}"));
    Reader::start("dd", &[&from[..], &block, &flags, "status=none"].map(OsStr::new))
}

#[test]
fn a_direct_reader_waits_and_gets_right_bytes() {
    needs_fuse!();
    // In the journal, in a blob, and in a blob that takes several requests.
    for size in [60_001, 500_001, 3_000_001] {
        let (mount, mut to) = Mount::pipe(&[]);
        let contents = bytes(1, size);
        to.write_all(&feed::file("file", size)).unwrap();
        wait_state(&mount, "file", "announced");
        let path = mount.path("file");
        let mut readers = Vec::new();
        let mut at = 0usize;
        let pieces = [100, PAGE - 100, 3 * PAGE + 17, size / 2];
        for piece in pieces.into_iter().chain([size - pieces.iter().sum::<usize>()]) {
            // Readers through the page cache ask for the same pages at the same time.
            readers.extend(BLOCKS.map(|block| dd(&path, block, "direct")));
            readers.extend(BLOCKS.map(|block| dd(&path, block, CACHED)));
            readers.push(Reader::cat(&path));
            for reader in &mut readers {
                reader.process.wait_parked();
                assert!(!reader.process.has_ended(), "at {at} of {size}");
            }
            to.write_all(&contents[at..at + piece]).unwrap();
            at += piece;
            if at < size {
                wait_state(&mount, "file", &format!("arriving {at}/{size}"));
            }
        }
        to.write_all(&feed::padding(size)).unwrap();
        for reader in &mut readers {
            assert!(reader.contents() == contents, "{size} bytes");
        }
        wait_state(&mount, "file", "complete");
        assert!(dd(&path, "4M", "direct").contents() == contents);
        to.write_all(&feed::end()).unwrap();
        mount.wait_end();
        mount.unmount();
    }
}

#[test]
fn a_direct_reader_gets_what_has_arrived_without_waiting_for_the_rest() {
    needs_fuse!();
    let size = 2_000_000;
    let contents = bytes(2, size);
    let (mount, mut to) = Mount::pipe(&[]);
    to.write_all(&feed::file("file", size)).unwrap();
    mount.wait_for("file");
    let mut arrived = 0;
    for until in [PAGE, 70_000, 300_000, 1_234_567] {
        to.write_all(&contents[arrived..until]).unwrap();
        arrived = until;
        wait_state(&mount, "file", &format!("arriving {until}/{size}"));
        let count = format!("count={}", until / 512);
        let from = format!("if={}", mount.path("file").display());
        let args = [&from[..], "bs=512", &count, "iflag=direct", "status=none"];
        let read = Reader::start("dd", &args.map(OsStr::new)).contents();
        assert!(read == contents[..until / 512 * 512], "until {until}");
    }
    drop(to);
    mount.wait_end();
    mount.unmount();
}

#[test]
fn a_waiting_direct_reader_can_be_killed() {
    needs_fuse!();
    let size = 3_000_000;
    let contents = bytes(3, size);
    let (mount, mut to) = Mount::pipe(&[]);
    to.write_all(&feed::file("file", size)).unwrap();
    wait_state(&mount, "file", "announced");
    let path = mount.path("file");
    let mut arrived = 0;
    let mut spared = Vec::new();
    for until in [0, 1000, 300_000, 2_000_000] {
        to.write_all(&contents[arrived..until]).unwrap();
        arrived = until;
        if until > 0 {
            wait_state(&mount, "file", &format!("arriving {until}/{size}"));
        }
        for signal in [Signal::TERM, Signal::KILL] {
            for block in BLOCKS {
                let mut reader = dd(&path, block, "direct");
                reader.process.wait_parked();
                reader.process.signal(signal);
                assert_eq!(reader.process.wait().signal(), Some(signal.as_raw()), "{until} bytes have arrived");
            }
        }
        spared.push(dd(&path, "1M", "direct"));
    }
    to.write_all(&contents[arrived..]).unwrap();
    to.write_all(&[feed::padding(size), feed::end()].concat()).unwrap();
    for mut reader in spared {
        assert!(reader.contents() == contents);
    }
    mount.wait_end();
    mount.unmount();
}

/// A mount whose daemon is in a pid namespace of its own: it cannot see who reads.
struct Elsewhere {
    point: PathBuf,
    _daemon: Group,
    dir: tempfile::TempDir,
}

impl Elsewhere {
    fn start() -> (Elsewhere, ChildStdin) {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("mnt");
        fs::create_dir(&point).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", env!("CARGO_BIN_EXE_restorefs"), "mount", "-f", "--spool"]);
        command.args([dir.path(), Path::new("-"), &point]).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut daemon = Group::start(&mut command);
        let to = daemon.0.stdin.take().unwrap();
        let mount = Elsewhere { point, _daemon: daemon, dir };
        let outside = mount.dir.path().metadata().unwrap().dev();
        wait_until("it is mounted", || (mount.point.metadata().unwrap().dev() != outside).then_some(()));
        (mount, to)
    }

    fn wait_state(&self, name: &str, state: &str) {
        let mut value = [0; 100];
        wait_until(&format!("{name} is {state}"), || {
            let n = rustix::fs::lgetxattr(self.point.join(name), "user.restorefs.state", &mut value).ok()?;
            (&value[..n] == state.as_bytes()).then_some(())
        });
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH | rustix::mount::UnmountFlags::FORCE;
        let _ = rustix::mount::unmount(&self.point, flags);
    }
}

#[test]
fn a_waiting_direct_reader_that_the_daemon_cannot_see_can_be_killed() {
    needs_fuse!();
    let size = 3_000_000;
    let contents = bytes(5, size);
    let (mount, mut to) = Elsewhere::start();
    let path = mount.point.join("file");
    to.write_all(&feed::file("file", size)).unwrap();
    mount.wait_state("file", "announced");
    let mut arrived = 0;
    let mut spared = Vec::new();
    for until in [0, 300_000, 2_000_000] {
        to.write_all(&contents[arrived..until]).unwrap();
        arrived = until;
        if until > 0 {
            mount.wait_state("file", &format!("arriving {until}/{size}"));
        }
        let behind = format!("skip={}", until / (1 << 20) + 1);
        let from = format!("if={}", path.display());
        let mut reader = Reader::start("dd", &[&from[..], "bs=1M", &behind, "iflag=direct"].map(OsStr::new));
        reader.process.wait_parked();
        reader.process.signal(Signal::KILL);
        assert_eq!(reader.process.wait().signal(), Some(Signal::KILL.as_raw()), "{until} bytes have arrived");
        spared.extend(BLOCKS.map(|block| dd(&path, block, "direct")));
        for reader in &spared {
            reader.process.wait_parked();
        }
    }
    to.write_all(&contents[arrived..]).unwrap();
    to.write_all(&[feed::padding(size), feed::end()].concat()).unwrap();
    for mut reader in spared {
        assert!(reader.contents() == contents);
    }
}

/// Opens a file with `O_DIRECT`, maps it, and reads each page of the mapping that has to be there.
const MAPPED: &str = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
sys.stdout.buffer.write(mmap.mmap(fd, 0, prot=mmap.PROT_READ)[:int(sys.argv[2])])
";

#[test]
fn after_a_cut_a_direct_reader_gets_the_pages_before_it_as_any_other_does() {
    needs_fuse!();
    let size = 3_000_000;
    let contents = bytes(4, size);
    // Before the first byte, within the first page, on an edge, within the first request and the third.
    for cut in [0, 1000, 8 * PAGE, 300_000, 2_500_000] {
        let (mount, mut to) = Mount::pipe(&[]);
        to.write_all(&feed::file("file", size)).unwrap();
        to.write_all(&contents[..cut]).unwrap();
        let state = if cut == 0 { "announced".into() } else { format!("arriving {cut}/{size}") };
        wait_state(&mount, "file", &state);
        let path = mount.path("file");
        let waiting = BLOCKS.map(|block| dd(&path, block, "direct"));
        for reader in &waiting {
            reader.process.wait_parked();
        }
        drop(to);
        mount.wait_end();
        let pages = cut / PAGE * PAGE;
        let read_now = BLOCKS.map(|block| dd(&path, block, "direct"));
        for (mut reader, block) in waiting.into_iter().chain(read_now).zip(BLOCKS.iter().cycle()) {
            let (status, read) = reader.end();
            assert_eq!(status.code(), Some(1), "blocks of {block}, cut at {cut}");
            // What is smaller than a page need not be in a whole one.
            let there = if *block == "512" { cut / 512 * 512 } else { pages };
            assert!(read == contents[..there], "blocks of {block}, cut at {cut}: {} bytes", read.len());
            let (status, read) = dd(&path, block, CACHED).end();
            assert!(status.code() == Some(1) && read == contents[..pages], "through the cache: {}", read.len());
        }
        // What the kernel reads into its cache for a file that is open like this must not make the file shorter.
        if pages > 0 {
            let args =
                ["-c".as_ref(), MAPPED.as_ref(), path.as_os_str(), pages.to_string().as_ref()].map(OsStr::to_owned);
            let mut mapped = Reader::start("python3", &args.each_ref().map(|arg| &**arg));
            assert!(mapped.contents() == contents[..pages], "mapped, cut at {cut}");
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), size as u64);
        mount.unmount();
    }
}
