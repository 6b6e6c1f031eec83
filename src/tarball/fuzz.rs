//! The decoder with any bytes, in any pieces: for tests, and for fuzzing (`fuzz/`). No part of the library.

use super::{BLOCK, Decoder, End, Event, Options, Stop};

/// Events with owned data, runs of data joined.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// Any but contents.
    Event(Event<'static>),
    /// Contents.
    Data(Vec<u8>),
}

/// All that comes of an archive that is given in pieces of this length.
pub fn decode(archive: &[u8], piece: usize, options: Options) -> (Vec<Seen>, Result<End, Stop>) {
    let mut decoder = Decoder::new(options);
    let mut seen: Vec<Seen> = Vec::new();
    for chunk in archive.chunks(piece) {
        let mut input = chunk;
        loop {
            let event = match decoder.step(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(stop) => return (seen, Err(stop)),
            };
            let new = match event {
                Event::Data(data) => {
                    if let Some(Seen::Data(before)) = seen.last_mut() {
                        before.extend_from_slice(data);
                        continue;
                    }
                    Seen::Data(data.to_vec())
                }
                Event::Entry { entry, offset } => Seen::Event(Event::Entry { entry, offset }),
                Event::EntryEnd => Seen::Event(Event::EntryEnd),
                Event::Refused { path, reason } => Seen::Event(Event::Refused { path, reason }),
                Event::Warning { path, message } => Seen::Event(Event::Warning { path, message }),
                Event::Label(label) => Seen::Event(Event::Label(label)),
                Event::EndOfArchive => Seen::Event(Event::EndOfArchive),
            };
            seen.push(new);
        }
        assert!(input.is_empty(), "input was left");
    }
    let end = decoder.finish();
    (seen, Ok(end))
}

/// Whatever the bytes are, they come to the same in pieces as at once; no contents are longer than their entry says, and
/// none that has its end is shorter.
///
/// The first byte says how: its lowest bit whether the checksums of what look like headers are made right, so that
/// there is something behind them; the others how long the pieces are.
pub fn any_bytes(input: &[u8]) {
    let Some((&how, archive)) = input.split_first() else { return };
    let mut archive = archive.to_vec();
    if how & 1 == 1 {
        archive.chunks_exact_mut(BLOCK).for_each(sum);
    }
    let options = Options { concatenated: how & 2 == 2, ..Options::default() };
    let (seen, end) = decode(&archive, usize::MAX, options);
    let piece = [1, 2, 3, 7, 100, 511, 512, 513][usize::from(how >> 2) % 8];
    assert_eq!(decode(&archive, piece, options), (seen.clone(), end), "in pieces of {piece}");
    let mut left = None;
    for seen in seen {
        match seen {
            Seen::Event(Event::Entry { entry, offset }) => {
                assert!(left.is_none(), "an entry within another one");
                assert!(offset <= archive.len() as u64);
                left = Some(entry.kind.stored_len());
            }
            Seen::Data(data) => {
                let stored = left.expect("contents belong to an entry");
                left = Some(stored.checked_sub(data.len() as u64).expect("no more contents than announced"));
            }
            Seen::Event(Event::EntryEnd) => assert_eq!(left.take(), Some(0)),
            Seen::Event(_) => {}
        }
    }
}

/// Makes the checksum of what looks like a header right.
fn sum(block: &mut [u8]) {
    if block[257..].starts_with(b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
