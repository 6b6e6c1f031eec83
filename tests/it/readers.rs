//! Readers of files that are still on their way: they wait, get right bytes, can be killed, and are in nobody's way.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::io::Errno;
use rustix::process::Signal;

use crate::support::mount::Mount;
use crate::support::process::Group;
use crate::support::tree::bytes;
use crate::support::{feed, needs_fuse, run, wait_until};

const PAGE: usize = 4096;

/// A process with its output in a file.
pub struct Reader {
    pub process: Group,
    out: tempfile::NamedTempFile,
}

impl Reader {
    pub fn start(program: &str, args: &[&OsStr]) -> Reader {
        let out = tempfile::NamedTempFile::new().unwrap();
        // What was started in the background of a script ignores SIGINT, and so do its children.
        let mut command = Command::new("env");
        command
            .args(["--default-signal=INT", program])
            .args(args)
            .stdout(out.reopen().unwrap())
            .stderr(Stdio::null())
            .stdin(Stdio::null());
        Reader { process: Group::start(&mut command), out }
    }

    pub fn cat(path: &Path) -> Reader {
        Reader::start("cat", &[path.as_os_str()])
    }

    /// Reads from `offset` on. Unlike dd, tail leaves the signals as they are.
    fn tail(path: &Path, offset: usize) -> Reader {
        Reader::start("tail", &["-c".as_ref(), format!("+{}", offset + 1).as_ref(), path.as_os_str()])
    }

    /// Reads `len` bytes at `offset`.
    fn dd(path: &Path, offset: usize, len: usize) -> Reader {
        let (from, skip) = (format!("if={}", path.display()), format!("skip={offset}"));
        let (count, block) = (format!("count={len}"), "bs=64K");
        let args = [&from, &skip, &count, block, "iflag=skip_bytes,count_bytes,fullblock", "status=none"];
        Reader::start("dd", &args.map(OsStr::new))
    }

    /// What it has read, when it has ended well.
    pub fn contents(&mut self) -> Vec<u8> {
        let (status, contents) = self.end();
        assert!(status.success(), "a reader ended: {status}");
        contents
    }

    /// How it ended, and what it had read by then.
    pub fn end(&mut self) -> (ExitStatus, Vec<u8>) {
        (self.process.wait(), fs::read(self.out.path()).unwrap())
    }
}

pub fn wait_state(mount: &Mount, name: &str, state: &str) {
    mount.wait_for(name);
    wait_until(&format!("{name} is {state}"), || (mount.state(name) == state).then_some(()));
}

#[test]
fn a_reader_waits_and_gets_right_bytes() {
    needs_fuse!();
    // A small file lies in memory and in the journal, a large one in a blob.
    for size in [60_001, 1_500_001] {
        let (mount, mut to) = Mount::pipe(&[]);
        let contents = bytes(1, size);
        to.write_all(&feed::file("file", size)).unwrap();
        wait_state(&mount, "file", "announced");
        let path = mount.path("file");
        let mut cats = vec![Reader::cat(&path)];
        let mut last = Reader::dd(&path, size - 1, 1);
        let mut at = 0usize;
        // Within a page, up to the edge of one, beyond a read-ahead, to the end.
        let pieces = [100, PAGE - 100, 3 * PAGE + 17, size / 2];
        for piece in pieces.into_iter().chain([size - pieces.iter().sum::<usize>()]) {
            // The kernel reads whole pages: a reader waits until its page is whole.
            let page = at / PAGE * PAGE;
            let mut within = Reader::dd(&path, page, 2);
            for reader in cats.iter_mut().chain([&mut last, &mut within]) {
                reader.process.wait_parked();
                assert!(!reader.process.has_ended());
            }
            to.write_all(&contents[at..at + piece]).unwrap();
            at += piece;
            if at < size {
                wait_state(&mount, "file", &format!("arriving {at}/{size}"));
                cats.push(Reader::cat(&path));
            }
            if at >= page + PAGE {
                assert_eq!(within.contents(), contents[page..page + 2], "at {at} of {size}");
            } else {
                within.process.wait_parked();
            }
        }
        to.write_all(&feed::padding(size)).unwrap();
        for mut cat in cats {
            assert!(cat.contents() == contents);
        }
        assert_eq!(last.contents(), contents[size - 1..]);
        wait_state(&mount, "file", "complete");
        to.write_all(&feed::end()).unwrap();
        mount.wait_end();
        mount.unmount();
    }
}

#[test]
fn a_waiting_reader_can_be_killed() {
    needs_fuse!();
    let size = 1_000_000;
    let contents = bytes(2, size);
    let (mount, mut to) = Mount::pipe(&[]);
    to.write_all(&feed::file("file", size)).unwrap();
    wait_state(&mount, "file", "announced");
    let mut arrived = 0;
    let mut spared = Vec::new();
    // Nothing has arrived, a part of a page, some pages, an edge of a page in the middle of a read-ahead.
    for until in [0, 1000, 300_000, 320 * 1024] {
        to.write_all(&contents[arrived..until]).unwrap();
        arrived = until;
        if until > 0 {
            wait_state(&mount, "file", &format!("arriving {until}/{size}"));
        }
        for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
            for mut reader in [
                Reader::cat(&mount.path("file")),
                Reader::tail(&mount.path("file"), until),
                Reader::tail(&mount.path("file"), 777_777),
            ] {
                reader.process.wait_parked();
                reader.process.signal(signal);
                assert_eq!(reader.process.wait().signal(), Some(signal.as_raw()), "{until} bytes have arrived");
            }
        }
        // The first asks for the page, the second waits for the answer to that.
        let mut first = Reader::cat(&mount.path("file"));
        first.process.wait_parked();
        let second = Reader::cat(&mount.path("file"));
        second.process.wait_parked();
        first.process.signal(Signal::KILL);
        first.process.wait();
        second.process.wait_parked();
        spared.push(second);
    }
    to.write_all(&contents[arrived..]).unwrap();
    to.write_all(&feed::padding(size)).unwrap();
    for mut reader in spared {
        assert!(reader.contents() == contents);
    }
    to.write_all(&feed::end()).unwrap();
    mount.wait_end();
    mount.unmount();
}

#[test]
fn forty_waiting_readers_are_in_nobodys_way() {
    needs_fuse!();
    let size = 8_000_000;
    let (contents, other) = (bytes(3, size), bytes(4, 700_000));
    let (mount, mut to) = Mount::pipe(&[]);
    to.write_all(&feed::whole("there", &other)).unwrap();
    to.write_all(&feed::link("link", "/a/target")).unwrap();
    to.write_all(&feed::file("file", size)).unwrap();
    mount.wait_for("file");
    let place = |n: usize| n * 195_000 + 123;
    let mut readers: Vec<_> = (0..40).map(|n| Reader::dd(&mount.path("file"), place(n), 9_000)).collect();
    for reader in &readers {
        reader.process.wait_parked();
    }

    assert!(Reader::cat(&mount.path("there")).contents() == other);
    assert_eq!(Reader::start("readlink", &[mount.path("link").as_os_str()]).contents(), b"/a/target\n");
    let mut stat = Reader::start("stat", &["-c%s".as_ref(), mount.path("file").as_os_str()]);
    assert_eq!(stat.contents(), b"8000000\n");
    assert_eq!(Reader::start("ls", &[mount.point.as_os_str()]).contents(), b"file\nlink\nthere\n");
    assert_eq!(mount.state("file"), "announced");
    for reader in &mut readers {
        assert!(!reader.process.has_ended());
    }

    to.write_all(&contents).unwrap();
    for (n, reader) in readers.iter_mut().enumerate() {
        assert!(reader.contents() == contents[place(n)..place(n) + 9_000], "reader {n}");
    }
    to.write_all(&feed::padding(size)).unwrap();
    to.write_all(&feed::end()).unwrap();
    mount.wait_end();
    mount.unmount();
}

#[test]
fn what_has_arrived_is_read_without_waiting_for_the_rest() {
    needs_fuse!();
    let size = 2_000_000;
    let contents = bytes(5, size);
    let (mount, mut to) = Mount::pipe(&[]);
    to.write_all(&feed::file("file", size)).unwrap();
    mount.wait_for("file");
    let path = mount.path("file");
    let mut arrived = 0;
    for until in [PAGE, 70_000, 300_000, 300_001, 1_234_567] {
        to.write_all(&contents[arrived..until]).unwrap();
        arrived = until;
        wait_state(&mount, "file", &format!("arriving {until}/{size}"));
        let pages = until / PAGE * PAGE;
        // From the beginning, the last page alone, and from the middle: each makes the kernel read ahead beyond.
        for from in [0, pages - PAGE, pages / PAGE / 2 * PAGE] {
            let read = Reader::dd(&path, from, pages - from).contents();
            assert!(read == contents[from..pages], "from {from} until {pages}");
        }
    }
    to.write_all(&contents[arrived..]).unwrap();
    to.write_all(&feed::padding(size)).unwrap();
    to.write_all(&feed::end()).unwrap();
    mount.wait_end();
    mount.unmount();
}

/// Writes a file from a mapping of it.
const MAPPED: &str = "
import mmap, sys
with open(sys.argv[1], 'rb') as f:
    sys.stdout.buffer.write(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:])
";

#[test]
fn a_mapped_file_waits_and_one_that_was_cut_gives_sigbus() {
    needs_fuse!();
    let size = 500_000;
    let contents = bytes(6, size);
    let (mount, mut to) = Mount::pipe(&[]);
    let mapped = |name: &str| Reader::start("python3", &["-c".as_ref(), MAPPED.as_ref(), mount.path(name).as_os_str()]);
    to.write_all(&feed::file("file", size)).unwrap();
    to.write_all(&contents[..100_000]).unwrap();
    wait_state(&mount, "file", "arriving 100000/500000");
    let mut reader = mapped("file");
    reader.process.wait_parked();
    to.write_all(&contents[100_000..]).unwrap();
    to.write_all(&feed::padding(size)).unwrap();
    assert!(reader.contents() == contents);

    to.write_all(&feed::file("cut", size)).unwrap();
    to.write_all(&contents[..100_000]).unwrap();
    wait_state(&mount, "cut", "arriving 100000/500000");
    let mut reader = mapped("cut");
    reader.process.wait_parked();
    drop(to);
    assert_eq!(reader.process.wait().signal(), Some(Signal::BUS.as_raw()));
    mount.wait_end();
    mount.unmount();
}

#[test]
fn a_directory_is_listed_rightly_while_it_fills() {
    needs_fuse!();
    const ENTRIES: usize = 1_000_000;
    let (mount, mut to) = Mount::pipe(&[]);
    let feeder = std::thread::spawn(move || {
        let mut blocks = Vec::new();
        for n in 0..ENTRIES {
            blocks.extend(feed::file(&format!("dir/{n:07}"), 0));
            if blocks.len() >= 1 << 20 {
                to.write_all(&blocks).unwrap();
                blocks.clear();
            }
        }
        blocks.extend(feed::end());
        to.write_all(&blocks).unwrap();
    });
    mount.wait_for("dir");
    let mut listings = 0;
    loop {
        let before = mount.status();
        let visible = before["entries"].as_u64().unwrap() as usize;
        let mut seen = HashSet::with_capacity(visible);
        for entry in fs::read_dir(mount.path("dir")).unwrap() {
            let n: usize = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
            assert!(seen.insert(n), "{n} is listed twice");
        }
        // They arrived in order: with one, all before it are there.
        let last = seen.iter().max().map_or(0, |n| n + 1);
        assert_eq!(seen.len(), last, "of those before {last} some are not listed");
        assert!(seen.len() >= visible, "{visible} were there, {} are listed", seen.len());
        listings += 1;
        if before["phase"] == "over" {
            assert_eq!(seen.len(), ENTRIES);
            break;
        }
    }
    assert!(listings > 1, "nothing was listed while entries arrived");
    feeder.join().unwrap();
    mount.unmount();
}

#[test]
fn a_replaced_name_leaves_open_handles_what_they_had() {
    needs_fuse!();
    // In the journal, and in a blob.
    for size in [3 * PAGE, 400_000] {
        let (old, new) = (bytes(7, size), bytes(8, size + 1));
        let (mount, mut to) = Mount::pipe(&[]);
        to.write_all(&feed::whole("file", &old)).unwrap();
        wait_state(&mount, "file", "complete");
        let before = File::open(mount.path("file")).unwrap();
        let inode = fs::metadata(mount.path("file")).unwrap();
        // The rest is read for the first time when the name is somebody else's.
        before.read_exact_at(&mut [0; 10], 0).unwrap();
        to.write_all(&feed::whole("file", &new)).unwrap();
        wait_until("the name is replaced", || {
            (fs::metadata(mount.path("file")).unwrap().len() == size as u64 + 1).then_some(())
        });
        wait_state(&mount, "file", "complete");
        let mut read = vec![0; size];
        before.read_exact_at(&mut read, 0).unwrap();
        assert!(read == old);
        assert_eq!(before.read_at(&mut [0; 10], size as u64).unwrap(), 0);
        assert!(fs::read(mount.path("file")).unwrap() == new);
        assert_ne!(fs::metadata(mount.path("file")).unwrap().ino(), inode.ino());
        assert_eq!(before.metadata().unwrap().nlink(), 0);
        drop(before);
        to.write_all(&feed::end()).unwrap();
        mount.wait_end();
        mount.unmount();
    }
}

#[test]
fn nothing_can_be_written() {
    needs_fuse!();
    let (mount, mut to) = Mount::pipe(&[]);
    to.write_all(&feed::whole("file", b"contents")).unwrap();
    to.write_all(&feed::link("link", "file")).unwrap();
    mount.wait_for("link");
    let (file, link, new) = (mount.path("file"), mount.path("link"), mount.path("new"));
    let none = rustix::fs::XattrFlags::empty();
    let time = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 },
    };
    let both = |file: &Path, link: &Path, new: &Path| {
        let at = rustix::fs::CWD;
        let fifo = rustix::fs::FileType::Fifo;
        for (what, done) in [
            ("create", File::create(new).map(drop)),
            ("write", File::options().append(true).open(file).map(drop)),
            ("truncate", File::options().write(true).truncate(true).open(file).map(drop)),
            ("mkdir", fs::create_dir(new)),
            ("mknod", rustix::fs::mknodat(at, new, fifo, 0o600.into(), 0).map_err(Into::into)),
            ("symlink", symlink("target", new)),
            ("link", fs::hard_link(file, new)),
            ("rename", fs::rename(file, new)),
            ("unlink", fs::remove_file(link)),
            ("chmod", fs::set_permissions(file, fs::Permissions::from_mode(0o777))),
            ("chown", std::os::unix::fs::lchown(link, Some(1), Some(1))),
            ("utimens", rustix::fs::utimensat(at, file, &time, rustix::fs::AtFlags::empty()).map_err(Into::into)),
            ("setxattr", rustix::fs::setxattr(file, "user.new", b"x", none).map_err(Into::into)),
            ("removexattr", rustix::fs::removexattr(file, "user.restorefs.state").map_err(Into::into)),
        ] {
            let error = done.expect_err(what);
            assert_eq!(error.raw_os_error(), Some(Errno::ROFS.raw_os_error()), "{what}: {error}");
        }
    };
    both(&file, &link, &new);
    to.write_all(&feed::end()).unwrap();
    mount.wait_end();
    both(&file, &link, &new);
    assert_eq!(run(Command::new("cat").arg(&link)).stdout, b"contents");
    mount.unmount();
}

#[test]
fn it_is_read_ahead_widely_before_the_end_is_told() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    let device = fs::metadata(&mount.point).unwrap().dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let setting = Path::new("/sys/class/bdi").join(device).join("read_ahead_kb");
    let wide = || fs::read_to_string(&setting).unwrap().trim() == "1024";
    // A read beyond what has come would have to be asked for again.
    assert!(!wide());
    stdin.write_all(&[feed::whole("f", b"x"), feed::end()].concat()).unwrap();
    mount.wait_end();
    assert!(wide());
    drop(stdin);
    mount.unmount();
}
