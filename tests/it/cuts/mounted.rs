//! Cuts seen through the kernel: at the edge of every block, and a byte before and behind it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use restorefs::cli::Exit;
use restorefs::monitor::{Monitor, Status};
use restorefs::mount::{Handle, Options, Running};
use restorefs::tarball;

use super::{From, at_each, end, is_told, source};
use crate::support::members::{Member, is_shown, members};
use crate::support::mount::passthrough_wanted;
use crate::support::{HANGS, needs_fuse, small};

/// The kernel takes contents by the page.
const PAGE: usize = 4096;

/// A mount in this process.
struct Mounted {
    running: Option<Running>,
    handle: Arc<Handle>,
    monitor: Arc<Monitor>,
    point: PathBuf,
}

impl Mounted {
    fn new(bytes: &[u8], from: From, scratch: &Path) -> Mounted {
        let point = scratch.join("mnt");
        fs::create_dir_all(&point).unwrap();
        let monitor = Monitor::new();
        let options = Options {
            feed: restorefs::mount::Feed::Archive(source(bytes, from, scratch)),
            mountpoint: point.clone(),
            spool_directory: scratch.into(),
            spool_limit: None,
            keep_spool: false,
            allow_other: false,
            passthrough: passthrough_wanted(),
            xattrs: true,
            max_index: None,
            resume: None,
            helper: None,
            tar: tarball::Options::default(),
        };
        let running = Running::start(options, &monitor).unwrap();
        Mounted { handle: running.handle(), running: Some(running), monitor, point }
    }

    fn end(&self) -> Status {
        self.monitor.wait_end(HANGS).expect("the stream ends");
        self.monitor.status()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = self.handle.unmount();
        if let (Some(running), Ok(())) = (self.running.take(), &unmounted) {
            running.join().unwrap();
        }
        if !std::thread::panicking() {
            unmounted.unwrap();
        }
    }
}

fn walk(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let slash = if dir.is_empty() { "" } else { "/" };
            let path = format!("{dir}{slash}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                todo.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}

/// Pages that came whole are right; the one that was cut, and all behind it, cannot be read.
fn has_pages(root: &Path, m: &Member, received: u64) {
    let what = format!("{} after {received} of {} bytes", m.path, m.stored());
    let path = root.join(&m.path);
    let whole = received == m.stored();
    let state = if whole { "complete".to_owned() } else { format!("truncated {received}/{}", m.stored()) };
    let mut value = [0; 100];
    let n = rustix::fs::lgetxattr(&path, "user.restorefs.state", &mut value).unwrap();
    assert_eq!(std::str::from_utf8(&value[..n]).unwrap(), state, "{what}");
    let known = m.known(received) as usize;
    let file = File::open(&path).unwrap();
    for (n, page) in m.contents.chunks(PAGE).enumerate() {
        let mut buf = [0; PAGE];
        let read = file.read_at(&mut buf, (n * PAGE) as u64);
        if n * PAGE + page.len() <= known {
            assert!(&buf[..read.unwrap()] == page, "{what}: wrong bytes in page {n}");
        } else {
            let error = read.expect_err(&format!("{what}: page {n} never came"));
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}: page {n}");
        }
    }
    match fs::read(&path) {
        Ok(bytes) => assert!(whole && bytes == m.contents, "{what}"),
        Err(e) => assert!(!whole && e.raw_os_error() == Some(libc::EIO), "{what}: {e}"),
    }
}

fn mounted(from: From, args: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let archive = small::archive(dir.path(), args);
    let members = members(&archive);
    let bytes = fs::read(archive).unwrap();
    let cuts = (0..=bytes.len()).filter(|cut| [0, 1, 511].contains(&(cut % 512)));
    at_each(cuts, |at, scratch| {
        let mount = Mounted::new(&bytes[..at], from, scratch);
        let (status, cut) = (mount.end(), at as u64);
        is_told(&status, &members, cut, bytes.len() as u64);
        let exit = match cut {
            // Nothing came that could stay.
            _ if cut < members[0].header_end => Exit::Failed,
            _ if cut < end(&members) + 512 => Exit::Incomplete,
            _ => Exit::Complete,
        };
        assert_eq!(Exit::of(&status), exit, "cut at {cut}");
        let there: Vec<_> = members.iter().filter(|m| m.header_end <= cut).collect();
        let paths: BTreeSet<_> = there.iter().map(|m| m.path.clone()).filter(|path| !path.is_empty()).collect();
        assert_eq!(walk(&mount.point), paths, "cut at {cut}");
        for m in there {
            is_shown(&mount.point, m);
            if m.is("file") {
                has_pages(&mount.point, m, m.received(cut));
            }
        }
    });
}

#[test]
fn a_mounted_file_cut_at_every_block() {
    needs_fuse!();
    mounted(From::File, small::FORMATS[0]);
}

#[test]
fn a_mounted_stream_cut_at_every_block() {
    needs_fuse!();
    mounted(From::Pipe, small::FORMATS[1]);
}
