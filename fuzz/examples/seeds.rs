//! Writes what fuzzing begins with to `corpus/`: conversations and archives as they should be.

#[path = "../tree.rs"]
mod tree;

use std::fs;
use std::io;
use std::path::Path;

use restorefs::entry::{Entry, EntryKind, EntryPath, Metadata, Segment, SparseMap};
use restorefs::tree::{Options, Walk};
use restorefs::wire::{Batch, Fate, FromReceiver, FromSender, Leave, Position, SMALL, Token, Totals};
use restorefs::record::Record;
use restorefs::{record, send};

/// The checksums of messages and headers are made right.
const SEAL: u8 = 1;

/// The spool is of another boot.
const REBOOTED: u8 = 2;

fn main() -> io::Result<()> {
    write("from_sender", "whole", &conversation(SEAL, &[sender(1, &files())]))?;
    write("from_sender", "again", &conversation(SEAL, &[sender(1, &files()), sender(2, &files()[..3])]))?;
    let mut cut = sender(1, &files());
    cut.truncate(cut.len() / 2);
    write("from_sender", "cut", &conversation(0, &[cut, sender(1, &[])]))?;
    let receiver = receiver();
    write("from_receiver", "whole", &conversation(SEAL, &[receiver.clone()]))?;
    write("from_receiver", "again", &conversation(SEAL, &[receiver.clone(), receiver]))?;
    for (name, how) in [("killed", SEAL), ("rebooted", SEAL | REBOOTED)] {
        write("spool", &format!("stream-{name}"), &spool(how, &stream(), &[]))?;
        write("spool", &format!("cut-{name}"), &spool(how, &stream(), &cut_stream()))?;
        write("spool", &format!("catalogue-{name}"), &spool(how, &catalogue(), &[]))?;
    }
    write("token", "right", Token::generate()?.reveal().as_bytes())?;
    let mut archive = vec![SEAL];
    let walk = Walk::new(&[".".into()], Options { directory: Some(tree::make()?), ..Options::default() })
        .map_err(io::Error::other)?;
    let tar_options = send::Options { rate_limit: None, user_name: |_| None, group_name: |_| None };
    let mut packed = Vec::new();
    send::tar(walk, &mut packed, tar_options, &send::Report::default())?;
    archive.extend(packed);
    write("tarball", "pax", &archive)
}

fn write(target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(format!("seed-{name}")), bytes)
}

fn conversation(how: u8, connections: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![how];
    for connection in connections {
        bytes.extend((connection.len() as u16).to_le_bytes());
        bytes.extend(connection);
    }
    bytes
}

fn frame(messages: &[(FromSender, &[u8])]) -> Vec<u8> {
    let mut batch = Batch::default();
    for (message, bytes) in messages {
        record::encode(message, bytes, batch.records());
    }
    batch.finish()
}

fn entry(path: &str, kind: EntryKind) -> FromSender {
    let path = EntryPath::parse(path.as_bytes()).expect("a sound path");
    FromSender::Entry { entry: Box::new(Entry { path, kind, metadata: Metadata::default() }), ctime: None }
}

/// Entries, with the bytes of those that have some.
fn files() -> Vec<(FromSender, &'static [u8])> {
    let map = SparseMap::new(100, [Segment { offset: 10, len: 4 }]).expect("a sound map");
    let link = EntryKind::HardLink { target: EntryPath::parse(b"a/small").expect("a sound path") };
    vec![
        (entry("a", EntryKind::Directory), b""),
        (entry("a/small", EntryKind::File { size: 5, sparse: None }), b"bytes"),
        (entry("large", EntryKind::File { size: SMALL, sparse: None }), b"the beginning of it"),
        (entry("sparse", EntryKind::File { size: 100, sparse: Some(map.into()) }), b"data"),
        (entry("link", EntryKind::Symlink { target: b"../x"[..].into() }), b""),
        (entry("waits", link), b""),
    ]
}

/// One connection of a sender that has this.
fn sender(session: u8, files: &[(FromSender, &'static [u8])]) -> Vec<u8> {
    let mut bytes = frame(&[(FromSender::Hello { session: [session; 16], host: "host".into(), pid: 1, take_over: false }, b"")]);
    let entries: Vec<_> = files.iter().map(|(entry, _)| (entry.clone(), &b""[..])).collect();
    let mut records = Vec::new();
    for (entry, _) in &entries {
        record::encode(entry, &[], &mut records);
    }
    let stored = |message: &FromSender| match message {
        FromSender::Entry { entry, .. } => entry.kind.stored_len(),
        _ => 0,
    };
    let totals = Totals {
        records: entries.len() as u64,
        entries: entries.len() as u64,
        files: entries.iter().filter(|(entry, _)| stored(entry) > 0).count() as u64,
        bytes: entries.iter().map(|(entry, _)| stored(entry)).sum(),
        hash: *blake3::hash(&records).as_bytes(),
    };
    bytes.extend(frame(&entries));
    bytes.extend(frame(&[(FromSender::CatalogueEnd(totals), b"")]));
    for (id, (entry, contents)) in files.iter().enumerate().filter(|(_, (_, contents))| !contents.is_empty()) {
        let id = id as u64;
        let whole = stored(entry) == contents.len() as u64;
        let path = b"path".to_vec();
        let fate = if whole { Fate::Whole } else { Fate::Short { path: path.clone(), reason: "it shrank".into() } };
        let sum = |bytes: &[u8]| *blake3::hash(bytes).as_bytes();
        let messages = if id > 1 {
            let end = FromSender::End { id, hash: sum(contents), fate };
            vec![(FromSender::Begin { id, path }, &b""[..]), (FromSender::Data { id, offset: 0 }, contents), (end, b"")]
        } else {
            let file = FromSender::File { id, fate };
            let mut body = Vec::new();
            record::encode(&file, contents, &mut body);
            vec![(file, *contents), (FromSender::Sum { hash: sum(&body) }, b"")]
        };
        bytes.extend(frame(&messages));
    }
    bytes.extend(frame(&[(FromSender::Done, b"")]));
    bytes.extend(frame(&[(FromSender::Bye(Leave::Done), b"")]));
    bytes
}

/// One connection of a receiver.
fn receiver() -> Vec<u8> {
    let position = |id, checked, received| Position { id, checked, received };
    let messages = [
        FromReceiver::Welcome { catalogue: 0 },
        FromReceiver::Consumed { bytes: 0 },
        FromReceiver::Taken { catalogue: 1 },
        FromReceiver::Want(position(3, 0, 0)),
        FromReceiver::Whole { ranges: vec![(0, 2)] },
        FromReceiver::Cut { ranges: vec![(2, 1)] },
        FromReceiver::Parts(vec![position(3, 0, 100), position(5, 5, 10)]),
        FromReceiver::Ready,
        FromReceiver::Waiting { reason: Some("no room".into()) },
        FromReceiver::Waiting { reason: None },
        FromReceiver::Want(position(2, 0, 0)),
        FromReceiver::Commit { totals: Totals::default(), refused: 0, cut: 0 },
        FromReceiver::Bye { reason: "over".into() },
    ];
    let mut bytes = Vec::new();
    for message in &messages {
        let mut batch = Batch::default();
        batch.push(message);
        bytes.extend(batch.finish());
    }
    bytes
}

/// A spool: two blobs, and a journal that tells of them.
fn spool(how: u8, records: &[(Record, &[u8])], more: &[(Record, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![how, 2];
    for (number, length) in [(0, 200_000_u32), (1, 150_000)] {
        let [low, high] = ((length / 8) as u16).to_le_bytes();
        bytes.extend([number, low, high, 3, 11, 22, 33]);
    }
    record::encode(&Record::Begin { version: record::VERSION }, &[], &mut bytes);
    for (record, behind) in records.iter().chain(more) {
        record::encode(record, behind, &mut bytes);
    }
    bytes
}

fn named(path: &str, kind: EntryKind) -> (Record, &'static [u8]) {
    let path = EntryPath::parse(path.as_bytes()).expect("a sound path");
    (Record::Entry(Box::new(Entry { path, kind, metadata: Metadata::default() })), b"")
}

/// Checksums of two extents; the right ones are put in.
const TWO: &[u8] = &[0; 8];

/// A sparse file of 70 pieces, the last of them in a third extent.
fn sparse() -> EntryKind {
    let map = SparseMap::new(1 << 20, (0..70).map(|n| Segment { offset: n * 2000, len: 1900 })).expect("a sound map");
    EntryKind::File { size: 1 << 20, sparse: Some(map.into()) }
}

fn stream() -> Vec<(Record, &'static [u8])> {
    let link = EntryKind::HardLink { target: EntryPath::parse(b"d/small").expect("a sound path") };
    vec![
        named("d", EntryKind::Directory),
        named("d/small", EntryKind::File { size: 5, sparse: None }),
        (Record::Data { id: 1, offset: 0 }, b"bytes"),
        named("link", link),
        named("large", EntryKind::File { size: 160_000, sparse: None }),
        (Record::Blob { id: 3, number: 0, packed: false }, b""),
        (Record::Sums { id: 3, first: 0 }, TWO),
        (Record::Sums { id: 3, first: 2 }, &[0; 4]),
        (Record::End { id: 3, received: 160_000, complete: true }, b""),
        (Record::Problem { warning: true, path: b"d".to_vec(), reason: "odd".into() }, b""),
        named("sparse", sparse()),
        (Record::Blob { id: 4, number: 1, packed: false }, b""),
        (Record::Durable { upto: 300 }, b""),
        (Record::Sums { id: 4, first: 0 }, TWO),
        (Record::Durable { upto: 400 }, b""),
    ]
}

/// How a stream ends that is stopped.
fn cut_stream() -> Vec<(Record, &'static [u8])> {
    vec![
        (Record::Cut, b""),
        (Record::Sums { id: 4, first: 1 }, TWO),
        (Record::End { id: 4, received: 133_000, complete: false }, b""),
        (Record::Finish { complete: false }, b""),
    ]
}

fn catalogue() -> Vec<(Record, &'static [u8])> {
    vec![
        (Record::Catalogue, b""),
        named("f", EntryKind::File { size: 3, sparse: None }),
        named("large", EntryKind::File { size: 200_000, sparse: None }),
        named("packed", sparse()),
        (Record::Digests { first: 0 }, &[7; 24]),
        (Record::Blob { id: 2, number: 1, packed: true }, b""),
        (Record::Blob { id: 1, number: 0, packed: false }, b""),
        (Record::Sums { id: 1, first: 0 }, TWO),
        (Record::Data { id: 0, offset: 0 }, b"abc"),
        (Record::Sums { id: 2, first: 0 }, &[0; 12]),
        (Record::End { id: 2, received: 133_000, complete: true }, b""),
        (Record::Anew, b""),
        named("f", EntryKind::File { size: 3, sparse: None }),
        (Record::Changed { id: 3 }, b""),
        (Record::Durable { upto: 350 }, b""),
        (Record::Finish { complete: true }, b""),
    ]
}
