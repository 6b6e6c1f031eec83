//! The intake by example: where frames land, what is shown when they do not, and how it ends.

use parking_lot::Mutex;

use super::*;
use crate::entry::{EntryKind, Metadata, Timestamp};
use crate::record::{self, Record};
use crate::spool::{Config, Spool};
use crate::store::Read;

struct Bench {
    store: Arc<Store>,
    intake: Intake,
    draft: Draft,
    /// What those who wait were told of, and how much they could read of it then.
    told: Arc<Mutex<Vec<(Ino, u64)>>>,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(layout: Layout, limit: Option<u64>) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let monitor = Monitor::new();
        let store = Arc::new(Store::new(Index::new(0, 0, Timestamp::default())));
        let config =
            Config { directory: dir.path().into(), limit, keep: false, source: "test".into(), ..Config::default() };
        store.set_spool(Spool::create(&config, monitor.clone()).unwrap());
        let told = Arc::new(Mutex::new(Vec::new()));
        store.set_listener({
            let (told, store) = (told.clone(), Arc::downgrade(&store));
            move |ino| {
                let store = store.upgrade().unwrap();
                let (_, known, _) = store.known(ino).unwrap();
                let read = store.read(ino, 0, known as usize, &mut Vec::new()).unwrap();
                assert_eq!(read, Read::Bytes(known as usize));
                told.lock().push((ino, known));
            }
        });
        let intake = Intake::new(store.clone(), monitor, 1 << 30);
        Bench { store, intake, draft: Draft::new(layout), told, _dir: dir }
    }

    fn commit(&mut self) -> Result<(), Error> {
        let committed = self.intake.commit(self.draft.take(), &|| true, |_| ());
        assert!(committed.refused.is_empty(), "{:?}", committed.refused);
        self.draft.reuse(committed.spent);
        committed.outcome
    }

    fn ino(&self, path: &str) -> Ino {
        self.store.index().resolve(path.as_bytes()).unwrap()
    }

    fn arrival(&self, path: &str) -> Arrival {
        self.store.index().arrival(self.ino(path)).unwrap()
    }

    fn read(&self, path: &str, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        assert_eq!(self.store.read(self.ino(path), 0, len, &mut bytes).unwrap(), Read::Bytes(len));
        bytes.truncate(len);
        bytes
    }

    fn journal(&self) -> Vec<Record> {
        let spool = self.store.spool().unwrap();
        let journal = std::fs::read(spool.path().join("journal")).unwrap();
        let mut rest = &journal[..spool.position() as usize];
        let mut records = Vec::new();
        while !rest.is_empty() {
            let (record, _, length) = record::decode(rest).unwrap();
            records.push(record);
            rest = &rest[length..];
        }
        records
    }
}

fn entry(path: &str, kind: EntryKind) -> Box<Entry> {
    Box::new(Entry { path: EntryPath::parse(path.as_bytes()).unwrap(), kind, metadata: Metadata::default() })
}

fn file(path: &str, size: u64) -> Box<Entry> {
    entry(path, EntryKind::File { size, sparse: None })
}

fn last(entry: u64) -> FileRef {
    FileRef { entry, ino: None }
}

#[test]
fn offsets_are_right_whoever_else_appends() {
    let mut bench = Bench::new(Layout::Stream, None);
    for n in 0..10u64 {
        let name = format!("f{n}");
        let number = bench.draft.entry(file(&name, 3));
        assert_eq!(number, n);
        bench.draft.data(last(number), format!("<{n}>").as_bytes(), Arrival::Complete);
        // Between what is gathered and what is committed, somebody appends.
        let mut frames = Vec::new();
        record::encode(&Record::End { id: 1000, received: 0, complete: false }, &vec![0; n as usize], &mut frames);
        bench.store.spool().unwrap().append(&frames, &|| true).unwrap();
        bench.commit().unwrap();
    }
    for n in 0..10 {
        assert_eq!(bench.read(&format!("f{n}"), 3), format!("<{n}>").as_bytes());
    }
}

#[test]
fn readers_are_told_when_the_bytes_can_be_read() {
    let mut bench = Bench::new(Layout::Stream, None);
    let number = bench.draft.entry(file("f", 6));
    bench.draft.in_memory(last(number), b"abc".to_vec());
    bench.commit().unwrap();
    assert!(bench.told.lock().is_empty(), "nobody can have waited");
    assert_eq!((bench.arrival("f"), bench.read("f", 3)), (Arrival::Arriving { received: 3 }, b"abc".to_vec()));
    bench.draft.data(last(0), b"abcdef", Arrival::Complete);
    bench.commit().unwrap();
    assert_eq!(*bench.told.lock(), [(bench.ino("f"), 6)]);
    assert_eq!((bench.arrival("f"), bench.read("f", 6)), (Arrival::Complete, b"abcdef".to_vec()));
}

#[test]
fn what_cannot_be_written_is_shown_as_cut_and_the_journal_has_no_gaps() {
    let mut bench = Bench::new(Layout::Stream, Some(1000));
    let kept = bench.draft.entry(file("kept", 4));
    bench.draft.data(last(kept), b"kept", Arrival::Complete);
    let cut = bench.draft.entry(file("cut", 2000));
    bench.draft.in_memory(last(cut), b"begin".to_vec());
    bench.commit().unwrap();
    bench.draft.data(last(cut), &[1; 2000], Arrival::Complete);
    let lost = bench.draft.entry(file("lost", 4));
    bench.draft.data(last(lost), b"lost", Arrival::Complete);
    assert!(matches!(bench.commit(), Err(Error::Spool(spool::Error::Stopped))));
    assert_eq!(bench.arrival("cut"), Arrival::Truncated { received: 5 });
    assert_eq!(bench.arrival("lost"), Arrival::Truncated { received: 0 });
    // Later ones would fit. But then an entry would be missing between them.
    let later = bench.draft.entry(file("later", 1));
    bench.draft.data(last(later), b"l", Arrival::Complete);
    bench.commit().unwrap();
    assert_eq!(bench.arrival("later"), Arrival::Truncated { received: 0 });
    assert!(matches!(bench.intake.finish(&mut bench.draft, true, &|| true), Err(Error::Lost)));
    let mut closing = bench.intake.closing(&mut bench.draft);
    closing.data(last(later), b"l");
    assert!(bench.intake.close(closing, false).is_empty());
    assert_eq!(bench.read("kept", 4), b"kept");
    assert!(bench.store.is_over());
    let journal = bench.journal();
    assert!(
        matches!(
            &journal[..],
            [
                Record::Begin { .. },
                Record::Entry(_),
                Record::Data { id: 0, .. },
                Record::Entry(_),
                Record::Cut,
                Record::Finish { complete: false }
            ]
        ),
        "{journal:?}"
    );
}

#[test]
fn the_end_stands_once() {
    let mut bench = Bench::new(Layout::Catalogue, None);
    let number = bench.draft.entry(file("f", 3));
    bench.draft.entry(entry("link", EntryKind::HardLink { target: EntryPath::parse(b"never").unwrap() }));
    bench.commit().unwrap();
    let file = FileRef { entry: number, ino: Some(bench.ino("f")) };
    let mut closing = bench.intake.closing(&mut bench.draft);
    closing.data(file, b"ab");
    let refused = bench.intake.close(closing, false);
    assert_eq!(refused, [(EntryPath::parse(b"link").unwrap(), Refusal::LinkTargetMissing)]);
    assert_eq!((bench.arrival("f"), bench.read("f", 2)), (Arrival::Truncated { received: 2 }, b"ab".to_vec()));
    let written = bench.store.spool().unwrap().position();
    let closing = bench.intake.closing(&mut bench.draft);
    assert!(bench.intake.close(closing, true).is_empty());
    assert_eq!(bench.store.spool().unwrap().position(), written);
    let journal = bench.journal();
    assert!(matches!(&journal[..2], [Record::Begin { .. }, Record::Catalogue]), "{journal:?}");
    let end = Record::End { id: 0, received: 2, complete: false };
    assert!(journal.ends_with(&[end, Record::Finish { complete: false }]), "{journal:?}");
}

#[test]
fn whoever_waits_for_what_never_came_is_told_at_the_end() {
    let mut bench = Bench::new(Layout::Catalogue, None);
    bench.draft.entry(file("f", 3));
    bench.draft.entry(file("g", 3));
    bench.commit().unwrap();
    let closing = bench.intake.closing(&mut bench.draft);
    assert!(bench.intake.close(closing, false).is_empty());
    assert_eq!(*bench.told.lock(), [(bench.ino("f"), 0), (bench.ino("g"), 0)]);
    assert_eq!(bench.arrival("g"), Arrival::Truncated { received: 0 });
}

#[test]
fn a_store_that_is_partly_filled_is_filled_further() {
    let mut bench = Bench::new(Layout::Stream, None);
    let number = bench.draft.entry(file("f", 300_000));
    bench.commit().unwrap();
    let spool = bench.store.spool().unwrap();
    let mut blob = bench.draft.begin_blob(spool, last(number), 300_000, None, &|| true).unwrap();
    blob.write(spool, &[7; 100_000], &|| true).unwrap();
    bench.draft.blob(&mut blob);
    bench.commit().unwrap();
    // As if by another process: what is known is the store, how many entries there are, and the blob.
    let Blob { spooled, .. } = blob;
    bench.intake = Intake::resume(bench.store.clone(), Monitor::new(), 1 << 30, 1, bench.intake.last().clone());
    bench.draft = Draft::resume(Layout::Stream, 1);
    let file_ref = FileRef { entry: 0, ino: Some(bench.ino("f")) };
    let mut blob = Blob::resume(file_ref, spooled, 300_000, None, 100_000);
    let spool = bench.store.spool().unwrap();
    blob.write(spool, &[8; 200_000], &|| true).unwrap();
    bench.draft.end_blob(blob, 300_000, true);
    assert_eq!(bench.draft.entry(file("g", 0)), 1);
    bench.commit().unwrap();
    assert_eq!(bench.arrival("f"), Arrival::Complete);
    assert!(bench.read("f", 300_000) == [[7; 100_000].as_slice(), &[8; 200_000]].concat());
    let begins = bench.journal().iter().filter(|record| matches!(record, Record::Begin { .. })).count();
    assert_eq!(begins, 1);
    assert!(bench.intake.finish(&mut bench.draft, true, &|| true).unwrap().is_empty());
    assert_eq!(bench.journal().last(), Some(&Record::Finish { complete: true }));
}
