//! Each form of compression from a pipe that stays open: all that was delivered has to come out.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use super::*;
use crate::source::Spec;

/// A source that reads the end of a pipe, and the pipe's other end.
fn pipe() -> (Source, File) {
    let (read, write): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&read));
    let source = Source::open(&Spec::Path(path.into())).unwrap();
    (source, File::from(write))
}

fn compress(program: &[&str], input: &[u8]) -> Vec<u8> {
    if program == ["lzip"] {
        return lzip(input);
    }
    let mut child =
        Command::new(program[0]).args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// A member of lzip, by its manual, around what xz makes.
fn lzip(input: &[u8]) -> Vec<u8> {
    let stream = compress(&["xz", "-c", "--format=raw", "--lzma1=dict=64KiB,lc=3,lp=0,pb=2"], input);
    let header = b"LZIP\x01\x10";
    let len = (header.len() + stream.len() + 20) as u64;
    let trailer =
        [&crc32fast::hash(input).to_le_bytes()[..], &(input.len() as u64).to_le_bytes(), &len.to_le_bytes()].concat();
    [header, &stream[..], &trailer].concat()
}

/// Text that compresses, but not to nothing.
fn text(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b"restore files now "[(state >> 24) as usize % 18]
        })
        .collect()
}

const TOOLS: &[&[&str]] = &[
    &["cat"],
    &["gzip", "-c"],
    &["zstd", "-qc"],
    &["zstd", "-qc", "--long=27"],
    &["xz", "-1c"],
    &["bzip2", "-c"],
    &["lz4", "-qc"],
    &["lz4", "-qc", "-BD", "--content-size"],
    &["lzip"],
    &["bash", "-c", "gzip -c | xz -1c"],
    &["bash", "-c", "lz4 -qc | gzip -c"],
    &["xz", "-c", "--format=lzma"],
];

fn take(chunks: &mut Chunks, len: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < len {
        let chunk = chunks.next_chunk().unwrap().expect("the stream is not over");
        got.extend_from_slice(&chunk);
        chunks.recycle(chunk);
    }
    got
}

#[test]
fn every_byte_is_there_while_the_pipe_is_open() {
    for tool in TOOLS {
        for len in [0, 1, 700, 1_000_000] {
            let plain = [text(len), text(len)].concat();
            // Two members, one after the other.
            let packed = [compress(tool, &text(len)), compress(tool, &text(len))].concat();
            let (source, mut writer) = pipe();
            let mut chunks = Chunks::new(source, Stop::new().unwrap(), Monitor::new()).unwrap();
            let thread = std::thread::spawn(move || {
                writer.write_all(&packed).unwrap();
                writer
            });
            assert!(take(&mut chunks, plain.len()) == plain, "{tool:?} {len}");
            // The end of the member may be all that is left to tell.
            while !chunks.is_whole() {
                assert_eq!(chunks.next_chunk().unwrap().as_deref(), Some(&[][..]), "{tool:?} {len}");
            }
            drop(thread.join().unwrap());
            while let Some(chunk) = chunks.next_chunk().unwrap() {
                assert!(chunk.is_empty() && chunks.is_whole(), "{tool:?} {len}");
            }
        }
    }
}

#[test]
fn byte_by_byte() {
    let plain = text(5000);
    for tool in TOOLS {
        let packed = compress(tool, &plain);
        let (source, mut writer) = pipe();
        let mut chunks = Chunks::new(source, Stop::new().unwrap(), Monitor::new()).unwrap();
        let thread = std::thread::spawn(move || {
            for b in packed {
                writer.write_all(&[b]).unwrap();
            }
        });
        let mut got = Vec::new();
        while let Some(chunk) = chunks.next_chunk().unwrap() {
            assert!(!chunk.is_empty() || chunks.is_whole());
            got.extend_from_slice(&chunk);
        }
        thread.join().unwrap();
        assert!(got == plain, "{tool:?}");
    }
}

/// What comes out of a pipe with these bytes, and how it ends.
fn run(packed: &[u8]) -> (Vec<u8>, Result<(), Error>, Arc<Monitor>) {
    let (source, mut writer) = pipe();
    let monitor = Monitor::new();
    let mut chunks = Chunks::new(source, Stop::new().unwrap(), monitor.clone()).unwrap();
    let packed = packed.to_vec();
    let thread = std::thread::spawn(move || {
        let _ = writer.write_all(&packed);
    });
    let mut got = Vec::new();
    let end = loop {
        match chunks.next_chunk() {
            Ok(Some(chunk)) => got.extend_from_slice(&chunk),
            Ok(None) => break Ok(()),
            Err(e) => break Err(e),
        }
    };
    drop(chunks);
    thread.join().unwrap();
    (got, end, monitor)
}

#[test]
fn cut_and_broken_streams_keep_what_came_before() {
    let plain = text(500_000);
    for tool in &TOOLS[1..] {
        let packed = compress(tool, &plain);
        let (got, end, _) = run(&packed[..packed.len() - 3]);
        assert!(matches!(end, Err(Error::Truncated(_))), "{tool:?}: {end:?}");
        assert!(plain.starts_with(&got));
        let mut broken = packed.clone();
        let middle = broken.len() / 2;
        for b in &mut broken[middle..middle + 64] {
            *b ^= 0x5a;
        }
        let (_, end, _) = run(&broken);
        // It has no checksum.
        let unnoticed = tool.contains(&"--format=lzma");
        assert!(matches!(end, Err(Error::Corrupt(_))) || unnoticed, "{tool:?}: {end:?}");
    }
}

#[test]
fn what_may_stand_behind_a_stream_and_before_it() {
    let plain = text(1000);
    let packed = compress(&["gzip", "-c"], &plain);
    let (got, end, monitor) = run(&[&packed[..], &[0; 512]].concat());
    assert!(got == plain && end.is_ok() && monitor.status().warnings == 0);
    let (got, end, monitor) = run(&[&packed[..], b"garbage"].concat());
    assert!(got == plain && end.is_ok() && monitor.status().warnings == 1);
    let skippable = [b"\x50\x2a\x4d\x18\x05\0\0\0skip!".to_vec(), compress(&["zstd", "-qc"], &plain)].concat();
    let (got, end, _) = run(&[skippable.clone(), skippable].concat());
    assert!(got == [&plain[..], &plain].concat() && end.is_ok());
    let (_, end, _) = run(b"\x1f\x9d\x90abcdefghijkl");
    assert!(matches!(end, Err(Error::Unsupported(message)) if message.contains("gzip -dc FILE | restorefs mount")));
    let (_, end, _) = run(&compress(&["gzip", "-c"], b"\x89LZO\0\r\n\x1a\n\0\0"));
    assert!(matches!(end, Err(Error::Unsupported(message)) if message.contains("gzip -dc FILE | lzop -dc |")));
}

#[test]
fn what_is_compressed_twice_says_so() {
    let packed = compress(&["bash", "-c", "zstd -qc | gzip -c"], &text(1000));
    let (_, end, monitor) = run(&packed);
    assert!(end.is_ok());
    assert_eq!(monitor.status().compression.as_deref(), Some("gzip, then zstd"));
    // Twice, and not more often.
    let (got, end, _) = run(&compress(&["bash", "-c", "gzip -c | xz -c | zstd -qc"], &text(1000)));
    assert!(end.is_ok() && got.starts_with(b"\x1f\x8b"), "{end:?}");
}
