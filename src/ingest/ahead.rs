//! Reading an archive in place, from its front to its end, with leaps over what is not wanted.
//!
//! A thread of its own is a few chunks ahead. It goes from header to header and gathers these alone (`walk`); where it
//! does not know where the next one is, it reads everything, until the decoder has come to a place behind. What the
//! decoder wants and the thread has left out, whoever asks reads.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::Scope;

use super::walk::{Found, Parts, Walk};
use crate::filter::CHUNK;
use crate::tarball::BLOCK;

/// So many chunks may be ready: with the ones being read and decoded they stay in the processor's cache.
const READY: usize = 2;

/// So much is read of what the thread has left out. It doubles as long as no leap follows, until it is a chunk.
const FIRST: usize = 8 << 10;

/// The bytes of a file, wherever they are wanted next.
pub(super) struct Ahead<'f> {
    file: &'f File,
    chunks: Receiver<Parts>,
    used: Sender<Parts>,
    /// Nothing in front of this is wanted any more, and a header is here.
    wanted: Arc<AtomicU64>,
    chunk: Parts,
    /// Which of its parts is the next.
    part: usize,
    own: Parts,
    /// Up to here it was read, and so much at once.
    end: u64,
    size: usize,
}

/// What was asked for.
pub(super) struct Piece<'a> {
    pub(super) bytes: &'a [u8],
    /// It takes time to get what follows.
    pub(super) last: bool,
}

impl<'f> Ahead<'f> {
    /// Begins to read. The thread ends when this is dropped.
    pub(super) fn begin<'scope>(file: &'f File, scope: &'scope Scope<'scope, 'f>) -> io::Result<Self> {
        let (send, chunks) = sync_channel(READY);
        let (used, spare) = channel::<Parts>();
        let wanted = Arc::new(AtomicU64::new(0));
        let header = wanted.clone();
        std::thread::Builder::new().name("reader".into()).spawn_scoped(scope, move || {
            let mut walk = Walk::new(file);
            let (mut at, mut knows) = (0, true);
            loop {
                let header = header.load(Ordering::Relaxed);
                if header > at {
                    (at, knows) = (header, true);
                }
                let mut chunk = spare.try_recv().unwrap_or_default();
                chunk.clear();
                knows = knows && walk.gather(&mut at, &mut chunk);
                if chunk.bytes().is_empty() {
                    // Who asks for these bytes reads them again, and meets the same.
                    if chunk.read(file, CHUNK, at).is_err() || chunk.bytes().is_empty() {
                        return;
                    }
                    at += chunk.bytes().len() as u64;
                }
                if send.send(chunk).is_err() {
                    return;
                }
            }
        })?;
        Ok(Ahead {
            file,
            chunks,
            used,
            wanted,
            chunk: Parts::default(),
            part: 0,
            own: Parts::default(),
            end: 0,
            size: FIRST,
        })
    }

    /// Bytes from `at` on, as many as it sees fit; none at the end of the file. `at` never goes back.
    pub(super) fn next(&mut self, at: u64) -> io::Result<Piece<'_>> {
        let gap = loop {
            match self.chunk.find(at, &mut self.part) {
                Found::Bytes(bytes, last) => return Ok(Piece { bytes: &self.chunk.bytes()[bytes], last }),
                Found::Gap(gap) => break gap,
                Found::Nothing => {}
            }
            self.wanted.store(at.next_multiple_of(BLOCK as u64), Ordering::Relaxed);
            // The thread ends when it has met the end of the file, or failed: what it had read may be long ago.
            let Ok(chunk) = self.chunks.recv() else { break u64::MAX };
            let _ = self.used.send(std::mem::replace(&mut self.chunk, chunk));
            self.part = 0;
        };
        self.size = if at == self.end { (self.size * 2).min(CHUNK) } else { FIRST };
        self.own.read(self.file, self.size.min(usize::try_from(gap).unwrap_or(usize::MAX)), at)?;
        self.end = at + self.own.bytes().len() as u64;
        Ok(Piece { bytes: self.own.bytes(), last: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tarball::{Decoder, Event, Options};
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    /// Every byte says where it is.
    fn byte(at: usize) -> u8 {
        (at % 251) as u8
    }

    fn file(len: usize) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&(0..len).map(byte).collect::<Vec<_>>(), 0).unwrap();
        file
    }

    /// Reads with leaps of these lengths in turn; how many bytes were given.
    fn read_all(file: &File, leaps: &[u64]) -> usize {
        let len = file.metadata().unwrap().len();
        std::thread::scope(|scope| {
            let mut ahead = Ahead::begin(file, scope).unwrap();
            let (mut at, mut given) = (0, 0);
            for leap in leaps.iter().cycle() {
                let bytes = ahead.next(at).unwrap().bytes;
                assert!(bytes.iter().enumerate().all(|(i, &b)| b == byte(at as usize + i)), "at {at}");
                if bytes.is_empty() {
                    assert!(at >= len);
                    return given;
                }
                given += bytes.len();
                at += bytes.len() as u64 + leap;
            }
            unreachable!()
        })
    }

    #[test]
    fn everything_is_read_once() {
        let len = 5 * CHUNK + 1234;
        assert_eq!(read_all(&file(len), &[0]), len);
        assert_eq!(read_all(&file(0), &[0]), 0);
    }

    #[test]
    fn leaps_of_any_length_arrive_where_they_should() {
        let file = file(40 * CHUNK);
        for leaps in
            [&[1, 511][..], &[16 << 10], &[3 << 20, 0, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 700 << 10, 5], &[1 << 20]]
        {
            read_all(&file, leaps);
        }
    }

    fn header(typeflag: u8, size: u64, edit: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
        crate::tarball::tests::header(b"name", typeflag, size, edit)
    }

    /// Contents that, taken for headers, would be some.
    fn contents(len: usize) -> Vec<u8> {
        let mut bytes = header(b'0', 1 << 20, |_| {}).repeat(len.div_ceil(BLOCK));
        bytes[len..].fill(0);
        bytes
    }

    fn records(text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(text.len().next_multiple_of(BLOCK), 0);
        [header(b'x', text.len() as u64, |_| {}), bytes].concat()
    }

    /// One member of each kind that stands between two others in a way of its own.
    fn member(kind: u32) -> Vec<u8> {
        let file = |len: usize| [header(b'0', len as u64, |_| {}), contents(len)].concat();
        match kind {
            0 => file(0),
            1 => file(700),
            2 => file(5000),
            3 => file(40_000),
            4 => file(3 * CHUNK),
            5 => header(b'5', 0, |_| {}),
            // Of a link the size does not count, but where records precede it, and contents follow.
            6 => header(b'1', 999, |block| block[157..160].copy_from_slice(b"abc")),
            7 => [records("11 foo=bar\n"), header(b'1', 600, |block| block[157] = b'a'), vec![b'x'; 1024]].concat(),
            // Names.
            8 => [header(b'L', 600, |_| {}), vec![b'n'; 600], vec![0; 424], file(10)].concat(),
            9 => [header(b'L', 100_000, |_| {}), vec![b'n'; 100_000], vec![0; 352], file(10)].concat(),
            // Another size in the records, more and less than in the header.
            10 => [records("13 size=2000\n"), header(b'0', 0, |_| {}), contents(2000)].concat(),
            11 => [records("16 size=1000000\n"), header(b'0', 5, |_| {}), contents(1_000_000)].concat(),
            12 => [records("11 size=10\n"), header(b'0', 1 << 30, |_| {}), contents(10)].concat(),
            // A sparse map that goes on in two blocks.
            13 => {
                let full = b"00000023420\x0000000000000\0".repeat(21);
                let more = |map: Vec<u8>, more| [map, vec![more], vec![0; 7]].concat();
                let first = header(b'S', 1000, |block| {
                    block[257..265].copy_from_slice(b"ustar  \0");
                    block[386..482].fill(b'0');
                    for (i, field) in block[386..482].chunks_exact_mut(24).enumerate() {
                        let len = if i < 3 { 0 } else { 1000 };
                        field[..11].copy_from_slice(format!("{:011o}", i * 512).as_bytes());
                        field[11] = 0;
                        field[12..23].copy_from_slice(format!("{len:011o}").as_bytes());
                        field[23] = 0;
                    }
                    block[482] = 1;
                    block[483..494].copy_from_slice(format!("{:011o}", 10_000).as_bytes());
                });
                [first, more(full, 1), more(vec![0; 504], 0), contents(1000)].concat()
            }
            // A sparse map in front of the contents.
            14 => {
                let text = "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n28 GNU.sparse.realsize=1000\n";
                let map = [b"1\n100\n200\n".to_vec(), vec![0; 501]].concat();
                [records(text), header(b'0', 712, |_| {}), map, contents(200)].concat()
            }
            // Sizes that do not count, and payload that does.
            15 => header(b'0', 5000, |block| block[4] = b'/'),
            16 => [header(b'L', 5, |_| {}), b"dir/\0".to_vec(), vec![0; 507], header(b'0', 5000, |_| {})].concat(),
            17 => [header(b'A', 700, |_| {}), contents(700), file(10)].concat(),
            // The last one counts; the one before would lead elsewhere.
            18 => [records("13 size=9999\n"), records("11 foo=bar\n"), file(2000)].concat(),
            19 => [records("99 size=7\n"), file(2000)].concat(),
            _ => vec![0; BLOCK],
        }
    }

    /// What is told of an archive, with every byte that is given of its headers taken from `next`.
    fn told(size: u64, mut next: impl FnMut(u64, &mut Vec<u8>)) -> Vec<String> {
        let mut decoder = Decoder::new(Options { concatenated: true, ..Options::default() });
        let (mut told, mut at, mut bytes) = (Vec::new(), 0, Vec::new());
        loop {
            let skip = decoder.skippable().min(size - at);
            decoder.skip(skip);
            at += skip;
            bytes.clear();
            if skip == 0 {
                next(at, &mut bytes);
                at += bytes.len() as u64;
            }
            let mut input = bytes.as_slice();
            loop {
                match decoder.step(&mut input) {
                    Ok(Some(Event::Data(_))) => {}
                    Ok(Some(event)) => told.push(format!("{event:?}")),
                    Ok(None) => break,
                    Err(stop) => {
                        told.push(format!("{stop}"));
                        return told;
                    }
                }
            }
            if skip == 0 && bytes.is_empty() {
                told.push(format!("{:?}", decoder.finish()));
                return told;
            }
        }
    }

    /// What is told where it is read ahead; how many bytes were given.
    fn told_ahead(archive: &[u8]) -> (Vec<String>, u64) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(archive, 0).unwrap();
        let mut given = 0;
        let told = std::thread::scope(|scope| {
            let mut ahead = Ahead::begin(&file, scope).unwrap();
            told(archive.len() as u64, |at, bytes| {
                bytes.extend_from_slice(ahead.next(at).unwrap().bytes);
                given += bytes.len() as u64;
            })
        });
        (told, given)
    }

    fn told_at_once(archive: &[u8]) -> Vec<String> {
        told(archive.len() as u64, |at, bytes| bytes.extend_from_slice(&archive[at as usize..]))
    }

    #[test]
    fn of_most_archives_only_the_headers_are_read() {
        let kinds = [0, 1, 2, 3, 4, 5, 6, 8, 13];
        let mut archive: Vec<u8> = kinds.into_iter().flat_map(member).collect();
        let whole = archive.len();
        archive.extend_from_slice(&[0; 2 * BLOCK]);
        let (told, given) = told_ahead(&archive);
        assert_eq!(told, told_at_once(&archive));
        // Each has one header, a name has another and two blocks, a map two blocks.
        assert_eq!(given, ((kinds.len() + 3 + 2 + 2) * BLOCK) as u64, "of {whole}");
    }

    #[test]
    fn a_size_that_stands_elsewhere_counts() {
        let mut archive = member(11);
        for _ in 0..3 {
            archive.extend(member(4));
        }
        assert_eq!(told_ahead(&archive).0, told_at_once(&archive));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn what_is_told_does_not_depend_on_who_reads(
            kinds in proptest::collection::vec((0u32..21, 1usize..40), 1..12),
            cut in 0usize..3000,
            broken in proptest::collection::vec((any::<u32>(), any::<u8>()), 0..3),
        ) {
            let mut archive: Vec<u8> = kinds.into_iter().flat_map(|(kind, n)| {
                member(kind).repeat(if matches!(kind, 4 | 9 | 11) { 1 } else { n })
            }).collect();
            archive.truncate(archive.len() - cut.min(archive.len()));
            for (at, byte) in broken {
                let len = archive.len();
                if let Some(there) = archive.get_mut(at as usize % len.max(1)) {
                    *there = byte;
                }
            }
            prop_assert_eq!(told_ahead(&archive).0, told_at_once(&archive));
        }
    }

    #[test]
    fn an_archive_that_becomes_shorter_ends_where_it_ends() {
        let archive = member(1).repeat(20_000);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&archive, 0).unwrap();
        let cut = archive.len() as u64 / 2 + 100;
        let mut last = 0;
        std::thread::scope(|scope| {
            let mut ahead = Ahead::begin(&file, scope).unwrap();
            told(archive.len() as u64, |at, bytes| {
                bytes.extend_from_slice(ahead.next(at).unwrap().bytes);
                if !bytes.is_empty() {
                    last = at + bytes.len() as u64;
                }
                file.set_len(cut).unwrap();
            })
        });
        // Of what lies behind, a chunk or two may have been gathered before.
        assert!(last >= cut - 1636, "{last} of {cut}");
    }
}
