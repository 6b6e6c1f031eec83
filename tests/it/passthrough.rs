//! Large files that the kernel reads by itself, small ones that are brought to it before it asks, and what it is told to
//! forget. A daemon that is stopped shows who reads: what comes all the same comes without it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

use crate::support::mount::{Mount, Stopped, passthrough_wanted, restorefs};
use crate::support::process::{Group, is_gone};
use crate::support::tree::bytes;
use crate::support::{feed, needs_fuse, run, wait_until};

/// Ends a test that is of passthrough where that is switched off.
macro_rules! needs_passthrough {
    () => {
        needs_fuse!();
        if !passthrough_wanted() {
            return;
        }
    };
}

const SIZE: usize = 1_500_001;

/// Opens files and tells so; reads and prints them, by mapping them or without, when it is told to.
const READER: &str = "
import mmap, sys
files = [open(name, 'rb') for name in sys.argv[2:]]
print('open', flush=True)
sys.stdin.readline()
for f in files:
    sys.stdout.buffer.write(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:] if sys.argv[1] == 'map' else f.read())
";

/// A process that has files open.
struct Reader(Group);

impl Reader {
    fn open(how: &str, paths: &[&Path]) -> Reader {
        let mut command = Command::new("python3");
        command.args(["-c", READER, how]).args(paths).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut reader = Reader(Group::start(&mut command));
        let mut line = String::new();
        // Unbuffered but for this line: nothing comes behind it before it is asked for.
        BufReader::new(reader.0.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "open\n");
        reader
    }

    fn go(&mut self) {
        self.0.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    }

    fn contents(mut self) -> Vec<u8> {
        let mut contents = Vec::new();
        std::io::Read::read_to_end(&mut self.0.0.stdout.take().unwrap(), &mut contents).unwrap();
        assert!(self.0.wait().success());
        contents
    }
}

fn read_all(file: &File) -> Vec<u8> {
    let mut contents = vec![0; SIZE + 1];
    let mut at = 0;
    while let n @ 1.. = file.read_at(&mut contents[at..], at as u64).unwrap() {
        at += n;
    }
    contents.truncate(at);
    contents
}

fn wait_state(mount: &Mount, name: &str, state: &str) {
    mount.wait_for(name);
    wait_until(&format!("{name} is {state}"), || (mount.state(name) == state).then_some(()));
}

/// A mount with one large file, of which all is there: attributes too are the kernel's then.
fn with_large_file(args: &[&str]) -> (Mount, Vec<u8>) {
    let contents = bytes(11, SIZE);
    let (mount, mut to) = Mount::pipe(args);
    to.write_all(&feed::whole("file", &contents)).unwrap();
    to.write_all(&feed::end()).unwrap();
    mount.wait_clean();
    (mount, contents)
}

#[test]
fn a_complete_large_file_is_read_without_the_daemon() {
    needs_passthrough!();
    let (mount, contents) = with_large_file(&[]);
    let path = mount.path("file");
    let (mut reads, mut maps) = (Reader::open("read", &[&path]), Reader::open("map", &[&path]));
    let own = File::open(&path).unwrap();
    {
        let _stopped = Stopped::new(&mount);
        reads.go();
        maps.go();
        assert!(reads.contents() == contents);
        assert!(maps.contents() == contents);
        let mut piece = [0; 5000];
        for at in [0, 4095, 777_777, SIZE - 5000] {
            own.read_exact_at(&mut piece, at as u64).unwrap();
            assert!(piece == contents[at..at + 5000]);
        }
        assert_eq!(own.read_at(&mut piece, SIZE as u64).unwrap(), 0);
    }
    drop(own);
    mount.unmount();
}

#[test]
fn without_it_the_daemon_reads() {
    needs_fuse!();
    let (mount, contents) = with_large_file(&["--no-passthrough"]);
    for how in ["read", "map"] {
        let mut reader = Reader::open(how, &[&mount.path("file")]);
        {
            let _stopped = Stopped::new(&mount);
            if how == "read" {
                reader.go();
                reader.0.wait_parked();
            }
        }
        if how == "map" {
            reader.go();
        }
        assert!(reader.contents() == contents);
    }
    mount.unmount();
}

#[test]
fn opened_while_it_arrives_and_again_when_it_is_complete() {
    needs_passthrough!();
    let contents = bytes(12, SIZE);
    let (mount, mut to) = Mount::pipe(&[]);
    let path = mount.path("file");
    // Before anything of it is there, and in the middle.
    to.write_all(&feed::file("file", SIZE)).unwrap();
    wait_state(&mount, "file", "announced");
    let announced = File::open(&path).unwrap();
    to.write_all(&contents[..700_000]).unwrap();
    wait_state(&mount, "file", &format!("arriving 700000/{SIZE}"));
    let arriving = File::open(&path).unwrap();
    let mut piece = vec![0; 600_000];
    arriving.read_exact_at(&mut piece, 0).unwrap();
    assert!(piece == contents[..600_000]);
    to.write_all(&contents[700_000..]).unwrap();
    to.write_all(&feed::padding(SIZE)).unwrap();
    wait_state(&mount, "file", "complete");

    // At once: whoever comes now reads as those before do, whichever of them stays.
    let complete = File::open(&path).unwrap();
    for file in [&complete, &arriving, &announced] {
        assert!(read_all(file) == contents);
    }
    drop((announced, arriving));
    let last = File::open(&path).unwrap();
    drop(complete);
    assert!(read_all(&last) == contents);
    assert!(read_all(&File::open(&path).unwrap()) == contents);
    drop(last);
    to.write_all(&feed::end()).unwrap();
    mount.wait_clean();

    // In sequence: when nobody has it open any more, the kernel reads it; whoever opens it then too. The daemon hears
    // of a close only after it.
    for _ in 0..3 {
        wait_until("the kernel reads it", || {
            let mut reader = Reader::open("read", &[&path, &path]);
            let file = File::open(&path).unwrap();
            let stopped = Stopped::new(&mount);
            reader.go();
            let by_kernel = wait_until("it reads, or waits", || {
                let place = format!("/proc/{}/wchan", reader.0.pid().as_raw_nonzero());
                let place = fs::read_to_string(place).unwrap_or_default();
                match place {
                    place if place.contains("folio_wait") || place.contains("request_wait") => Some(false),
                    // Its output is more than a pipe holds.
                    place if place.contains("pipe_write") => Some(true),
                    _ => None,
                }
            });
            if by_kernel {
                assert!(reader.contents() == [&contents[..], &contents[..]].concat());
                assert!(read_all(&file) == contents);
                return Some(());
            }
            drop(stopped);
            assert!(reader.contents() == [&contents[..], &contents[..]].concat());
            None
        });
    }
    mount.unmount();
}

#[test]
fn many_files_and_many_handles_of_each() {
    needs_fuse!();
    for args in [&[][..], &["--no-passthrough"]] {
        let size = 140_000;
        let (mount, mut to) = Mount::pipe(args);
        let files: Vec<_> = (0..300).map(|n| (format!("file-{n}"), bytes(n, size))).collect();
        for (name, contents) in &files {
            to.write_all(&feed::whole(name, contents)).unwrap();
        }
        to.write_all(&feed::end()).unwrap();
        mount.wait_clean();
        let descriptors = || fs::read_dir(format!("/proc/{}/fd", mount.daemon().as_raw_nonzero())).unwrap().count();
        let before = descriptors();
        let handles: Vec<Vec<File>> =
            files.iter().map(|(name, _)| (0..4).map(|_| File::open(mount.path(name)).unwrap()).collect()).collect();
        for ((name, contents), handles) in files.iter().zip(&handles) {
            for (n, handle) in handles.iter().enumerate() {
                let mut piece = [0; 10_000];
                handle.read_exact_at(&mut piece, n as u64 * 33_333).unwrap();
                assert!(piece == contents[n * 33_333..][..10_000], "{name}, handle {n}");
            }
        }
        // At most one for each file, however many handles; and none is left.
        assert!(descriptors() <= before + files.len(), "{} descriptors are open", descriptors());
        drop(handles);
        wait_until("all are closed", || (descriptors() <= before).then_some(()));
        mount.unmount();
    }
}

#[test]
fn an_open_file_is_read_on_when_it_is_unmounted() {
    needs_fuse!();
    for args in [&[][..], &["--no-passthrough"]] {
        let (mut mount, contents) = with_large_file(args);
        let file = File::open(mount.path("file")).unwrap();
        let output = restorefs(&["umount", "--lazy"], &[&mount.point]);
        assert!(output.status.success(), "{output:?}");
        assert!(!mount.path("file").exists());
        assert!(read_all(&file) == contents);
        drop(file);
        mount.wait_front();
        let left: Vec<_> = mount.dir.path().join("spool").read_dir().unwrap().collect();
        assert!(left.is_empty(), "the spool stays behind: {left:?}");
    }
}

#[test]
fn an_open_file_is_read_on_when_the_daemon_is_killed() {
    needs_passthrough!();
    let (mut mount, contents) = with_large_file(&[]);
    let file = File::open(mount.path("file")).unwrap();
    kill_process(mount.daemon(), Signal::KILL).unwrap();
    let daemon = mount.daemon();
    wait_until("the daemon is gone", || is_gone(daemon).then_some(()));
    assert!(read_all(&file) == contents);
    let error = File::open(mount.path("file")).unwrap_err();
    // Its last threads may still be ending, and what they were asked is aborted then.
    let gone = [Errno::NOTCONN, Errno::CONNABORTED].map(|e| Some(e.raw_os_error()));
    assert!(gone.contains(&error.raw_os_error()), "{error}");
    drop(file);
    let output = restorefs(&["umount"], &[&mount.point]);
    assert!(output.status.success(), "{output:?}");
    mount.wait_front();
}

/// So many bytes of a file the kernel has. Nothing is read for it.
fn in_page_cache(path: &Path) -> u64 {
    let bytes = run(Command::new("fincore").args(["-bnro", "RES"]).arg(path)).stdout;
    String::from_utf8(bytes).unwrap().trim().parse().unwrap()
}

#[test]
fn the_next_files_of_a_walk_are_there_before_they_are_asked_for() {
    needs_fuse!();
    // Pages and pieces of them, nothing, and what is too large.
    let size = |n: usize| match n % 50 {
        0 => 0,
        1 => 4096,
        2 => 8192,
        3 => 131_072,
        4 => 131_073,
        rest => rest * 173,
    };
    let files: Vec<_> = (0..600).map(|n| (format!("dir/{n:03}"), bytes(n as u64, size(n)))).collect();
    let mut archive = Vec::new();
    for (name, contents) in &files {
        archive.extend(feed::whole(name, contents));
    }
    archive.extend(feed::end());
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &archive).unwrap();
    for in_place in [true, false] {
        let mount = Mount::of(&file, in_place);
        mount.wait_clean();
        assert_eq!(fs::read_dir(mount.path("dir")).unwrap().count(), files.len());
        let mut read = 10;
        for (name, contents) in &files[..read] {
            assert!(fs::read(mount.path(name)).unwrap() == *contents, "{name}");
        }
        let brought = wait_until("the next files are brought", || {
            (read..60).find(|&n| in_page_cache(&mount.path(&files[n].0)) > 0)
        });
        if in_place {
            // An archive in place is opened without the daemon; what was brought is read without it.
            let _stopped = Stopped::new(&mount);
            let (name, contents) = &files[brought];
            assert!(fs::read(mount.path(name)).unwrap() == *contents, "{name}");
        }
        while read < files.len() {
            let (name, contents) = &files[read];
            assert!(fs::read(mount.path(name)).unwrap() == *contents, "{name}");
            read += 1;
        }
        mount.unmount();
    }
}

#[test]
fn what_the_reader_of_a_large_file_has_left_behind_is_forgotten() {
    needs_fuse!();
    const MIB: usize = 1 << 20;
    let (large, small) = (256, 32);
    // Nothing but a number in each MiB, and holes between: it takes no room.
    let archive = tempfile::NamedTempFile::new().unwrap();
    let mut at = 0;
    for (name, mib) in [("large", large), ("small", small)] {
        let header = feed::file(name, mib * MIB);
        archive.as_file().write_all_at(&header, at).unwrap();
        at += header.len() as u64;
        for n in 0..mib {
            archive.as_file().write_all_at(&n.to_le_bytes(), at + (n * MIB) as u64).unwrap();
        }
        at += (mib * MIB) as u64;
    }
    archive.as_file().write_all_at(&feed::end(), at).unwrap();
    let mount = Mount::file(archive.path(), &[]);
    mount.wait_clean();
    let read = |file: &File, n: usize| {
        let mut piece = vec![1; MIB];
        file.read_exact_at(&mut piece, (n * MIB) as u64).unwrap();
        assert_eq!(piece[..8], n.to_le_bytes());
        assert!(piece[8..].iter().all(|&b| b == 0), "MiB {n}");
    };
    for _ in 0..2 {
        let (path, file) = (mount.path("large"), File::open(mount.path("large")).unwrap());
        let mut pieces = 0..large;
        pieces.by_ref().take(128).for_each(|n| read(&file, n));
        // The kernel is told a little later; how much it had meanwhile does not matter.
        wait_until("most of it is forgotten", || {
            if in_page_cache(&path) < (64 * MIB) as u64 {
                return Some(());
            }
            read(&file, pieces.next().expect("it is forgotten before the end"));
            None
        });
        pieces.for_each(|n| read(&file, n));
    }
    let file = File::open(mount.path("small")).unwrap();
    (0..small).for_each(|n| read(&file, n));
    assert_eq!(in_page_cache(&mount.path("small")), (small * MIB) as u64);
    drop(file);
    mount.unmount();
}
