//! Streams that come byte by byte: each entry is there with the last byte of its header, before one more is sent, and
//! each file is whole with the last byte of its data.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::process::ChildStdin;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::support::members::{Member, is_shown, members};
use crate::support::mount::Mount;
use crate::support::{needs_fuse, small, wait_until};

fn send(stdin: &mut ChildStdin, bytes: &[u8]) {
    for byte in bytes {
        stdin.write_all(&[*byte]).unwrap();
        stdin.flush().unwrap();
    }
}

fn taken(mount: &Mount, bytes: u64) {
    mount.wait_status(&format!("{bytes} bytes of the archive are taken"), |status| status["bytes"] == bytes);
}

fn is_missing(mount: &Mount, m: &Member) {
    // The root is there before its header.
    if !m.path.is_empty() {
        let there = mount.path(&m.path).symlink_metadata();
        assert_eq!(there.unwrap_err().kind(), ErrorKind::NotFound, "{} before its header", m.path);
    }
}

/// Waits for the entry. Once it is there, all of it is right.
fn appears(mount: &Mount, m: &Member) {
    let path = mount.path(&m.path);
    wait_until(&format!("{} is there", m.path), || {
        let seen = path.symlink_metadata().ok()?;
        // The root is there before its header, with another time.
        let there = !m.path.is_empty() || seen.mtime() == m.mtime.0;
        there.then(|| is_shown(&mount.point, m))
    });
}

fn is_whole(mount: &Mount, m: &Member) {
    wait_until(&format!("{} is complete", m.path), || (mount.state(&m.path) == "complete").then_some(()));
    assert!(fs::read(mount.path(&m.path)).unwrap() == m.contents, "{}", m.path);
}

fn plain(args: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let archive = small::archive(dir.path(), args);
    let (members, bytes) = (members(&archive), fs::read(&archive).unwrap());
    let (mount, mut stdin) = Mount::pipe(&[]);
    let mut at = 0;
    let mut next = |to: u64| {
        send(&mut stdin, &bytes[at..to as usize]);
        at = to as usize;
    };
    for m in &members {
        next(m.header_end - 1);
        taken(&mount, m.header_end - 1);
        is_missing(&mount, m);
        next(m.header_end);
        appears(&mount, m);
        if m.is("file") {
            if let n @ 1.. = m.stored() {
                next(m.data + n - 1);
                taken(&mount, m.data + n - 1);
                let state = if n == 1 { "announced".into() } else { format!("arriving {}/{n}", n - 1) };
                wait_until(&state, || (mount.state(&m.path) == state).then_some(()));
                next(m.data + n);
            }
            is_whole(&mount, m);
        }
    }
    next(bytes.len() as u64);
    assert_eq!(mount.wait_end()["end"]["verdict"], "complete");
    drop(stdin);
    mount.unmount();
}

#[test]
fn gnu_byte_by_byte() {
    needs_fuse!();
    plain(small::FORMATS[0]);
}

#[test]
fn pax_byte_by_byte() {
    needs_fuse!();
    plain(small::FORMATS[1]);
}

/// What a compressor has given so far.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The archive goes through a compressor that is flushed behind each header and each file.
fn flushed<W: Write>(begin: impl FnOnce(Sink) -> W, finish: impl FnOnce(W)) {
    let dir = tempfile::tempdir().unwrap();
    let archive = small::archive(dir.path(), &["--format=pax"]);
    let (members, bytes) = (members(&archive), fs::read(&archive).unwrap());
    let (mount, mut stdin) = Mount::pipe(&[]);
    let sink = Sink::default();
    let mut compressor = begin(sink.clone());
    let mut at = 0;
    let mut next = |compressor: &mut W, to: u64| {
        compressor.write_all(&bytes[at..to as usize]).unwrap();
        compressor.flush().unwrap();
        at = to as usize;
        send(&mut stdin, &std::mem::take(&mut *sink.0.lock()));
    };
    for m in &members {
        next(&mut compressor, m.header_end - 1);
        taken(&mount, m.header_end - 1);
        is_missing(&mount, m);
        next(&mut compressor, m.header_end);
        appears(&mount, m);
        if m.is("file") {
            next(&mut compressor, m.data + m.stored());
            is_whole(&mount, m);
        }
    }
    next(&mut compressor, bytes.len() as u64);
    finish(compressor);
    send(&mut stdin, &std::mem::take(&mut *sink.0.lock()));
    drop(stdin);
    let status = mount.wait_end();
    assert_eq!((&status["end"]["verdict"], &status["warnings"]), (&"complete".into(), &0.into()), "{status}");
    mount.unmount();
}

#[test]
fn gzip_flushed_behind_each_header() {
    needs_fuse!();
    let begin = |sink| flate2::write::GzEncoder::new(sink, flate2::Compression::default());
    flushed(begin, |gzip| drop(gzip.finish().unwrap()));
}

#[test]
fn zstd_flushed_behind_each_header() {
    needs_fuse!();
    flushed(|sink| zstd::stream::write::Encoder::new(sink, 3).unwrap(), |zstd| drop(zstd.finish().unwrap()));
}

#[test]
fn lz4_flushed_behind_each_header() {
    needs_fuse!();
    flushed(lz4_flex::frame::FrameEncoder::new, |lz4| drop(lz4.finish().unwrap()));
}
