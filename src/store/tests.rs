//! Recovery of spools that were laid down record by record.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::recover::{Found, Job as Recovery, Lost, Resume, run as recover};
use super::{Read, Store};
use crate::entry::{Entry, EntryKind, EntryPath, Metadata, Timestamp};
use crate::index::{Arrival, Index, Ino};
use crate::monitor::{Monitor, Verdict};
use crate::proof::{EXTENT, Sums};
use crate::record::{self, Record};
use crate::spool::left::Left;
use crate::spool::{Config, Spool};
use crate::stop::Stop;
use crate::store::intake::FileRef;

fn file(path: &str, size: u64) -> (Record, Vec<u8>) {
    let kind = EntryKind::File { size, sparse: None };
    let path = EntryPath::parse(path.as_bytes()).unwrap();
    (Record::Entry(Box::new(Entry { path, kind, metadata: Metadata::default() })), Vec::new())
}

fn only(record: Record) -> (Record, Vec<u8>) {
    (record, Vec::new())
}

fn bytes(len: u64) -> Vec<u8> {
    (0..len).map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

/// All checksums of these bytes.
fn sums(bytes: &[u8]) -> Vec<u8> {
    let mut sums = Sums::default();
    sums.update(bytes);
    sums.encode(0, true)
}

fn spool(directory: &Path, records: &[(Record, Vec<u8>)], blobs: &[&[u8]]) -> PathBuf {
    let config = Config { directory: directory.into(), keep: true, ..Config::default() };
    let spool = Spool::create(&config, Monitor::new()).unwrap();
    let mut journal = Vec::new();
    record::encode(&Record::Begin { version: record::VERSION }, &[], &mut journal);
    for (record, behind) in records {
        record::encode(record, behind, &mut journal);
    }
    spool.append(&journal, &|| true).unwrap();
    for (number, bytes) in blobs.iter().enumerate() {
        std::fs::write(spool.path().join(format!("blobs/{number}")), bytes).unwrap();
    }
    spool.path().into()
}

fn job(left: Left) -> Recovery {
    let monitor = Monitor::new();
    let store = Arc::new(Store::new(Index::new(0, 0, Timestamp::default())));
    store.set_spool(left.into_spool(None, true, monitor.clone()).unwrap());
    Recovery { store, monitor, stop: Stop::new().unwrap(), max_index: u64::MAX, same_boot: true }
}

fn read_only(path: &Path) -> (Arc<Store>, Arc<Monitor>) {
    read_only_on(path, true)
}

fn read_only_on(path: &Path, same_boot: bool) -> (Arc<Store>, Arc<Monitor>) {
    let job = Recovery { same_boot, ..job(Left::open(path, false).unwrap()) };
    let (store, monitor) = (job.store.clone(), job.monitor.clone());
    recover(job);
    (store, monitor)
}

/// As far as before the first byte comes.
fn resume(path: &Path, of_sender: bool) -> (Arc<Store>, Result<Found, Lost>) {
    let left = Left::open(path, true).unwrap();
    let about = left.about().clone();
    let job = job(left);
    let found = job.store.resume(&job, Resume { about, mountpoint: "/mnt".into(), of_sender });
    (job.store, found)
}

#[test]
fn what_the_disk_may_not_have_is_read_back_before_it_is_called_complete() {
    let dir = tempfile::tempdir().unwrap();
    let contents = bytes(3 * EXTENT + 5);
    let records = [
        file("f", contents.len() as u64),
        only(Record::Blob { id: 0, number: 0, packed: false }),
        (Record::Sums { id: 0, first: 0 }, sums(&contents)),
        only(Record::End { id: 0, received: contents.len() as u64, complete: true }),
        only(Record::Finish { complete: true }),
    ];
    let (_, monitor) = read_only(&spool(dir.path(), &records, &[&contents]));
    assert_eq!(monitor.verdict(), Some(Verdict::Complete));
    // The disk has lost a page, and has told the daemon that is gone.
    let mut lost = contents.clone();
    lost[70_000..74_096].fill(0);
    let path = spool(dir.path(), &records, &[&lost]);
    if !Spool::create(&Config { directory: dir.path().into(), ..Config::default() }, Monitor::new())
        .unwrap()
        .is_in_memory()
    {
        let (_, monitor) = read_only(&path);
        assert!(matches!(monitor.verdict(), Some(Verdict::Failed { .. })), "{:?}", monitor.verdict());
        assert_eq!(monitor.refused_count(), 1);
    }
}

#[test]
fn a_tree_with_a_cut_file_is_not_complete_whatever_the_journal_says() {
    let dir = tempfile::tempdir().unwrap();
    let records = [file("f", 5), file("g", 5), (Record::Data { id: 1, offset: 0 }, b"bytes".to_vec())];
    let records = [&records[..], &[only(Record::Finish { complete: true })]].concat();
    let (store, monitor) = read_only(&spool(dir.path(), &records, &[]));
    assert_eq!(store.index().arrival(Ino(2)), Some(Arrival::Truncated { received: 0 }));
    assert!(matches!(monitor.verdict(), Some(Verdict::Incomplete { .. })), "{:?}", monitor.verdict());
}

#[test]
fn an_end_that_was_written_before_its_contents_shows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let records = [file("f", 5), only(Record::End { id: 0, received: 5, complete: false })];
    let (store, _) = read_only(&spool(dir.path(), &records, &[]));
    assert_eq!(store.index().arrival(Ino(2)), Some(Arrival::Truncated { received: 0 }));
    assert_eq!(store.read(Ino(2), 0, 5, &mut Vec::new()).unwrap(), Read::Lost);
}

#[test]
fn digests_behind_a_batch_that_was_torn_are_those_of_their_entries() {
    let dir = tempfile::tempdir().unwrap();
    let digest = |n: u64| n.to_le_bytes().to_vec();
    let records = [
        only(Record::Catalogue),
        file("f", 5),
        file("g", 5),
        (Record::Digests { first: 1 }, digest(22)),
        file("h", 5),
        (Record::Digests { first: 2 }, [digest(33), digest(44)].concat()),
    ];
    let (_, found) = resume(&spool(dir.path(), &records, &[]), true);
    assert_eq!(found.unwrap().digests, [0, 22, 33]);
}

#[test]
fn going_on_in_vain_takes_nothing_away() {
    let dir = tempfile::tempdir().unwrap();
    let contents = bytes(3 * EXTENT + 5);
    let part = &contents[..2 * EXTENT as usize + 77];
    for of_sender in [false, true] {
        let begin = if of_sender { vec![only(Record::Catalogue)] } else { Vec::new() };
        let records = [
            file("f", contents.len() as u64),
            only(Record::Blob { id: 0, number: 0, packed: false }),
            only(Record::Cut),
            (Record::Sums { id: 0, first: 0 }, sums(part)),
            only(Record::End { id: 0, received: part.len() as u64, complete: false }),
            only(Record::Finish { complete: false }),
        ];
        let path = spool(dir.path(), &[begin, records.to_vec()].concat(), &[part]);
        let received = |arrival| match arrival {
            Some(Arrival::Truncated { received } | Arrival::Arriving { received }) => received,
            other => panic!("{other:?}"),
        };
        let shown = |store: &Store| received(store.index().arrival(Ino(2)));
        assert_eq!(shown(&read_only(&path).0), part.len() as u64);
        let (store, found) = resume(&path, of_sender);
        assert_eq!(shown(&store), part.len() as u64);
        for (entry, part) in found.unwrap().parts {
            store.reopen(part, FileRef { entry, ino: None }).unwrap();
        }
        drop(store);
        // The daemon is killed before anything comes: whole extents are there still.
        assert_eq!(shown(&read_only(&path).0), 2 * EXTENT, "of a sender: {of_sender}");
        // Nor does a power failure take it then.
        assert_eq!(shown(&read_only_on(&path, false).0), 2 * EXTENT, "of a sender: {of_sender}");
    }
}

#[test]
fn what_was_replaced_before_it_was_whole_keeps_nobody_from_going_on() {
    let dir = tempfile::tempdir().unwrap();
    let blob = only(Record::Blob { id: 0, number: 0, packed: false });
    let records = [only(Record::Catalogue), file("f", EXTENT), blob, file("f", 5)];
    // Its blob is gone already.
    let (store, found) = resume(&spool(dir.path(), &records, &[]), true);
    assert!(found.unwrap().parts.is_empty());
    assert_eq!(store.index().arrival(Ino(2)), Some(Arrival::Truncated { received: 0 }));
    assert_eq!(store.index().arrival(Ino(3)), Some(Arrival::Announced));
}
