//! The sink against senders that lie, and against bytes that no sender sends.

use proptest::prelude::*;

use super::fuzz::Receiver;
use super::sink::Stopped;
use crate::entry::{Entry, EntryKind, EntryPath, Metadata, Timestamp};
use crate::index::Arrival;
use crate::monitor::Verdict;
use crate::record::{self, Record};
use crate::store::{Read, intake};
use crate::wire::{Fate, FromReceiver, FromSender, MAX_DATA, SMALL, Totals};

struct Bench {
    receiver: Receiver,
    _dir: tempfile::TempDir,
}

impl std::ops::Deref for Bench {
    type Target = Receiver;

    fn deref(&self) -> &Receiver {
        &self.receiver
    }
}

impl std::ops::DerefMut for Bench {
    fn deref_mut(&mut self) -> &mut Receiver {
        &mut self.receiver
    }
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut receiver = Receiver::new(dir.path());
        assert_eq!(receiver.sink.begin([1; 16]), 0);
        Bench { receiver, _dir: dir }
    }

    fn take(&mut self, messages: &[(FromSender, &[u8])]) -> Result<Vec<FromReceiver>, Stopped> {
        self.body(&encode(messages))
    }

    /// Small files.
    fn files(&mut self, files: &[(u64, &[u8], Fate)]) -> Result<Vec<FromReceiver>, Stopped> {
        self.body(&small_files(files))
    }

    fn violates(&mut self, messages: &[(FromSender, &[u8])]) -> String {
        match self.take(messages) {
            Err(Stopped::Violation(what)) => what.to_string(),
            other => panic!("{messages:?} is taken: {other:?}"),
        }
    }

    fn contents(&self, path: &str) -> Option<Vec<u8>> {
        let ino = self.store.index().resolve(path.as_bytes())?;
        let mut bytes = Vec::new();
        match self.store.read(ino, 0, 1 << 24, &mut bytes).unwrap() {
            Read::Bytes(len) => Some(bytes[..len].to_vec()),
            Read::NotYet { .. } | Read::Lost => None,
        }
    }
}

fn encode(messages: &[(FromSender, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (message, bytes) in messages {
        record::encode(message, bytes, &mut body);
    }
    body
}

fn small_files(files: &[(u64, &[u8], Fate)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (id, bytes, fate) in files {
        record::encode(&FromSender::File { id: *id, fate: fate.clone() }, bytes, &mut body);
    }
    let sum = FromSender::Sum { hash: hash(&body) };
    record::encode(&sum, &[], &mut body);
    body
}

fn entry(path: &str, kind: EntryKind) -> FromSender {
    let entry = Entry { path: EntryPath::parse(path.as_bytes()).unwrap(), kind, metadata: Metadata::default() };
    FromSender::Entry { entry: Box::new(entry), ctime: None }
}

fn file(path: &str, size: u64) -> FromSender {
    entry(path, EntryKind::File { size, sparse: None })
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    *blake3::hash(bytes).as_bytes()
}

fn whole(id: u64, bytes: &[u8]) -> FromSender {
    FromSender::End { id, hash: hash(bytes), fate: Fate::Whole }
}

const NOTHING: &[u8] = b"";

#[test]
fn a_sender_that_keeps_to_it() {
    let mut bench = Bench::new();
    let large = vec![7; SMALL as usize + 1];
    bench.take(&[(file("small", 5), NOTHING), (file("large", large.len() as u64), NOTHING)]).unwrap();
    bench.files(&[(0, b"bytes", Fate::Whole)]).unwrap();
    assert_eq!(bench.contents("small").unwrap(), b"bytes");
    let begin = FromSender::Begin { id: 1, path: b"large".to_vec() };
    let (first, second) = large.split_at(100_000);
    let data = |offset| FromSender::Data { id: 1, offset };
    bench.take(&[(begin.clone(), NOTHING), (data(0), first)]).unwrap();
    let ino = bench.store.index().resolve(b"large").unwrap();
    assert_eq!(bench.store.index().arrival(ino), Some(Arrival::Arriving { received: 100_000 }));
    let check = FromSender::Check { id: 1, upto: 100_000, hash: hash(first) };
    bench.take(&[(check, NOTHING), (begin, NOTHING), (data(100_000), second), (whole(1, second), NOTHING)]).unwrap();
    assert_eq!(bench.contents("large").unwrap(), large);
    let totals = bench.sink.totals();
    assert_eq!((totals.entries, totals.files, totals.bytes), (2, 2, 5 + large.len() as u64));
    let answers = bench.take(&[(FromSender::CatalogueEnd(totals), NOTHING)]).unwrap();
    assert_eq!(answers[0], FromReceiver::Whole { ranges: vec![(0, 2)] });
    assert!(bench.sink.is_whole());
    assert_eq!(bench.monitor.refused_count(), 0);
}

#[test]
fn lies_about_contents() {
    let small = || {
        let mut bench = Bench::new();
        bench.take(&[(file("f", 5), NOTHING), (entry("d", EntryKind::Directory), NOTHING)]).unwrap();
        bench
    };
    let begin = |id| (FromSender::Begin { id, path: b"f".to_vec() }, NOTHING);
    let data = |id, offset| FromSender::Data { id, offset };
    let long = vec![0; MAX_DATA + 1];
    for (what, messages) in [
        ("not announced", vec![(data(2, 0), &b"x"[..])]),
        ("not announced", vec![(data(u64::MAX, 0), b"x")]),
        ("more contents", vec![begin(0), (data(0, 0), b"123456")]),
        ("more contents", vec![begin(0), (data(0, u64::MAX), b"1")]),
        ("more contents", vec![(data(1, 0), b"1")]),
        ("has not begun", vec![(data(0, 0), b"12345")]),
        ("contents from 1 on", vec![begin(0), (data(0, 1), b"1")]),
        ("0 bytes", vec![(data(0, 0), b"")]),
        ("bytes of contents", vec![(data(0, 0), &long)]),
        ("before all of it", vec![begin(0), (data(0, 0), b"1234"), (whole(0, b"1234"), b"")]),
        ("that is over", vec![begin(0), (data(0, 0), b"12345"), (whole(0, b"12345"), b""), (data(0, 0), b"12345")]),
        ("that is over", vec![(whole(1, b""), b"")]),
        ("that has none", vec![(FromSender::Begin { id: 1, path: vec![] }, b"")]),
        ("not there", vec![(FromSender::Check { id: 0, upto: 0, hash: [0; 32] }, b"")]),
        ("does not belong", vec![begin(0), (FromSender::File { id: 0, fate: Fate::Whole }, b"")]),
        ("does not belong", vec![(FromSender::Done, b"")]),
        ("bytes behind", vec![(FromSender::Done, b"x")]),
        ("have no sum", vec![(FromSender::File { id: 0, fate: Fate::Whole }, b"12345")]),
        ("among small files", vec![(FromSender::File { id: 0, fate: Fate::Whole }, b"12345"), (whole(1, b""), b"")]),
        ("among small files", vec![(FromSender::Sum { hash: hash(b"") }, b""), (whole(1, b""), b"")]),
    ] {
        let told = small().violates(&messages);
        assert!(told.contains(what), "{messages:?}: {told}");
    }
    for (what, files) in [
        ("not announced", vec![(2, &b"12345"[..], Fate::Whole)]),
        ("that is none", vec![(1, b"", Fate::Whole)]),
        ("more contents", vec![(0, b"123456", Fate::Whole)]),
        ("before all of it", vec![(0, b"1234", Fate::Whole)]),
        ("before all of it", vec![(0, b"1234", Fate::Changed { path: vec![] })]),
        ("that is over", vec![(0, b"12345", Fate::Whole), (0, b"12345", Fate::Whole)]),
    ] {
        match small().files(&files) {
            Err(Stopped::Violation(told)) => assert!(told.to_string().contains(what), "{files:?}: {told}"),
            other => panic!("{files:?} are taken: {other:?}"),
        }
    }
    // Neither more nor other contents than were announced are ever there.
    let mut bench = small();
    bench.take(&[begin(0), (data(0, 0), b"12345"), (whole(0, b"other"), NOTHING)]).unwrap();
    assert_eq!(bench.contents("f"), None);
    assert_eq!(bench.monitor.refused_count(), 1);
}

#[test]
fn lies_about_the_catalogue() {
    let mut bench = Bench::new();
    bench.take(&[(file("f", 5), NOTHING)]).unwrap();
    let totals = bench.sink.totals();
    for wrong in [
        Totals { entries: 2, ..totals },
        Totals { bytes: 6, ..totals },
        Totals { files: 0, ..totals },
        Totals { records: 9, ..totals },
        Totals { hash: [0; 32], ..totals },
    ] {
        assert!(bench.violates(&[(FromSender::CatalogueEnd(wrong), NOTHING)]).contains("counts"));
    }
    bench.take(&[(FromSender::CatalogueEnd(totals), NOTHING)]).unwrap();
    assert!(bench.violates(&[(file("late", 1), NOTHING)]).contains("behind the end"));
}

#[test]
fn nothing_changes_once_everything_was_there() {
    let link = || entry("link", EntryKind::HardLink { target: EntryPath::parse(b"f").unwrap() });
    let mut bench = Bench::new();
    bench.take(&[(file("f", 5), NOTHING), (link(), NOTHING), (file("g", 0), NOTHING)]).unwrap();
    bench.files(&[(0, b"12345", Fate::Whole)]).unwrap();
    let totals = bench.sink.totals();
    bench.take(&[(FromSender::CatalogueEnd(totals), NOTHING)]).unwrap();
    bench.sink.finish().unwrap();
    // A sender that did not hear of it, and is started again.
    assert_eq!(bench.sink.begin([2; 16]), 0);
    bench.take(&[(file("f", 5), NOTHING), (link(), NOTHING), (file("g", 0), NOTHING)]).unwrap();
    bench.take(&[(FromSender::CatalogueEnd(totals), NOTHING)]).unwrap();
    assert!(bench.sink.is_whole());
    // The same with another tree: with more in it, with less, or with something else.
    for tree in [&["f", "g", "new"][..], &["f"], &["f", "link"]] {
        assert_eq!(bench.sink.begin([tree.len() as u8 + 2; 16]), 0);
        let size = |name: &str| if name == "f" { 5 } else { 0 };
        let messages: Vec<_> = tree.iter().map(|name| (file(name, size(name)), NOTHING)).collect();
        let taken = bench.take(&messages).and_then(|_| {
            let totals = bench.sink.totals();
            bench.take(&[(FromSender::CatalogueEnd(totals), NOTHING)])
        });
        assert!(matches!(taken, Err(Stopped::Violation(_))), "{tree:?}: {taken:?}");
        assert_eq!(bench.store.index().len(), 3);
    }
    assert_eq!(bench.monitor.refused_count(), 0);
}

#[test]
fn what_is_wanted_of_one_sender_is_wanted_of_the_next() {
    let mut bench = Bench::new();
    bench.take(&["f", "g", "h", "i"].map(|name| (file(name, 5), NOTHING))).unwrap();
    end(&mut bench);
    let [f, g, h] = ["f", "g", "h"].map(|name| bench.store.index().resolve(name.as_bytes()).unwrap());
    assert!(matches!(bench.sink.want(g), Some(FromReceiver::Want(position)) if position.id == 1));
    assert!(bench.sink.want(h).is_some());
    bench.sink.begin([2; 16]);
    // Nobody can be told of it yet.
    assert_eq!(bench.sink.want(f), None);
    bench.take(&["i", "g", "f"].map(|name| (file(name, 5), NOTHING))).unwrap();
    let mut wanted: Vec<u64> = end(&mut bench)
        .into_iter()
        .filter_map(|answer| match answer {
            FromReceiver::Want(position) => Some(position.id),
            _ => None,
        })
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    // The first is what came last, which somebody always reads here.
    assert_eq!(wanted, [0, 1, 2]);
    // The one that is gone is waited for no longer.
    assert_eq!(bench.sink.wanted(&[]), 3);
}

#[test]
fn a_file_with_another_ctime_is_sent_again() {
    let at = |seconds| {
        let FromSender::Entry { entry, .. } = file("f", 5) else { unreachable!() };
        FromSender::Entry { entry, ctime: Some(Timestamp::new(seconds, 0)) }
    };
    let mut bench = Bench::new();
    bench.take(&[(at(1), NOTHING)]).unwrap();
    bench.files(&[(0, b"first", Fate::Whole)]).unwrap();
    bench.sink.begin([2; 16]);
    bench.take(&[(at(1), NOTHING)]).unwrap();
    assert_eq!(end(&mut bench)[0], FromReceiver::Whole { ranges: vec![(0, 1)] });
    // Size and mtime are the same.
    bench.sink.begin([3; 16]);
    bench.take(&[(at(2), NOTHING)]).unwrap();
    assert_eq!(end(&mut bench)[0], FromReceiver::Whole { ranges: vec![] });
    bench.files(&[(0, b"other", Fate::Whole)]).unwrap();
    assert_eq!(bench.contents("f").unwrap(), b"other");
}

#[test]
fn what_is_there_of_a_large_catalogue_is_said_in_several_messages() {
    const FILES: u64 = 40_000;
    let mut bench = Bench::new();
    let names: Vec<_> = (0..FILES).map(|n| (file(&n.to_string(), 1), NOTHING)).collect();
    bench.take(&names).unwrap();
    let every_other: Vec<_> = (0..FILES).step_by(2).map(|id| (id, &b"x"[..], Fate::Whole)).collect();
    bench.files(&every_other).unwrap();
    let answers = end(&mut bench);
    let mut whole = Vec::new();
    let mut messages = 0;
    for answer in &answers {
        if let FromReceiver::Whole { ranges } = answer {
            messages += 1;
            whole.extend_from_slice(ranges);
        }
    }
    assert!(messages > 1, "{messages}");
    assert_eq!(whole, (0..FILES).step_by(2).map(|id| (id, 1)).collect::<Vec<_>>());
    let is_ready = |answer: &&FromReceiver| **answer == FromReceiver::Ready;
    assert_eq!(answers.iter().filter(is_ready).count(), 1);
    let after = answers.iter().position(|answer| *answer == FromReceiver::Ready).unwrap();
    assert!(answers[after..].iter().all(|answer| !matches!(answer, FromReceiver::Whole { .. })));
}

#[test]
fn a_file_that_is_cut_keeps_a_tree_from_being_complete() {
    let short = |path: &str| Fate::Short { path: path.into(), reason: "it has become shorter".into() };
    let changed = || Fate::Changed { path: b"changed".to_vec() };
    let mut bench = Bench::new();
    let names = ["whole", "changed", "small", "wrong", "left"];
    bench.take(&names.map(|name| (file(name, 5), NOTHING))).unwrap();
    bench.take(&[(file("large", SMALL), NOTHING), (link_to("other-name", "large"), NOTHING)]).unwrap();
    end(&mut bench);
    bench.files(&[(0, b"whole", Fate::Whole), (1, b"other", changed()), (2, b"sm", short("small"))]).unwrap();
    bench.files(&[(4, b"", short("left"))]).unwrap();
    let mut body = small_files(&[(3, b"wrong", Fate::Whole)]);
    let sum = small_files(&[(3, b"right", Fate::Whole)]);
    let length = sum.len() - record::frame_length(&sum).unwrap();
    body.truncate(body.len() - length);
    body.extend_from_slice(&sum[sum.len() - length..]);
    bench.body(&body).unwrap();
    let begin = FromSender::Begin { id: 5, path: b"large".to_vec() };
    let end = FromSender::End { id: 5, hash: hash(b"a part"), fate: short("large") };
    bench.take(&[(begin, NOTHING), (FromSender::Data { id: 5, offset: 0 }, b"a part"), (end, NOTHING)]).unwrap();
    let commit = bench.sink.finish().unwrap();
    assert!(matches!(commit, FromReceiver::Commit { cut: 4, refused: 5, .. }), "{commit:?}");
    assert_eq!(bench.sink.cut_files.named, ["large", "left", "small", "wrong"]);
    let verdict = bench.sink.cut_files.verdict();
    assert!(matches!(verdict, Verdict::Incomplete { cut: Some(ref cut), .. } if cut == "large"), "{verdict:?}");
    let mut records = journal(&bench);
    records.retain(|record| !matches!(record, Record::Durable { .. }));
    assert_eq!(records.pop(), Some(Record::Finish { complete: false }));
}

#[test]
fn a_file_that_changed_and_is_whole_is_not_cut() {
    let mut bench = Bench::new();
    bench.take(&[(file("f", 5), NOTHING)]).unwrap();
    end(&mut bench);
    bench.files(&[(0, b"other", Fate::Changed { path: b"f".to_vec() })]).unwrap();
    assert!(matches!(bench.sink.finish().unwrap(), FromReceiver::Commit { cut: 0, refused: 1, .. }));
    assert_eq!(bench.sink.cut_files.verdict(), Verdict::Complete);
}

#[test]
fn what_was_cut_in_one_session_is_sent_again_in_the_next() {
    let mut bench = Bench::new();
    let short = Fate::Short { path: b"f".to_vec(), reason: "it cannot be read".into() };
    bench.take(&[(file("f", 5), NOTHING), (file("g", 2), NOTHING)]).unwrap();
    bench.files(&[(0, b"cut", short)]).unwrap();
    bench.files(&[(1, b"gg", Fate::Whole)]).unwrap();
    assert_eq!(bench.contents("f"), None);
    bench.sink.begin([2; 16]);
    bench.take(&[(file("f", 5), NOTHING), (file("g", 2), NOTHING)]).unwrap();
    let answers = end(&mut bench);
    assert_eq!(answers[0], FromReceiver::Whole { ranges: vec![(1, 1)] });
    assert!(!bench.sink.is_whole());
    bench.files(&[(0, b"whole", Fate::Whole)]).unwrap();
    assert!(bench.sink.is_whole());
    assert_eq!(bench.contents("f").unwrap(), b"whole");
}

/// The end of the catalogue, as the sink counts it.
fn end(bench: &mut Bench) -> Vec<FromReceiver> {
    let totals = bench.sink.totals();
    bench.take(&[(FromSender::CatalogueEnd(totals), NOTHING)]).unwrap()
}

fn link_to(path: &str, target: &str) -> FromSender {
    entry(path, EntryKind::HardLink { target: EntryPath::parse(target.as_bytes()).unwrap() })
}

#[test]
fn a_session_counts_only_what_it_finds_itself() {
    let mut bench = Bench::new();
    let problem = || FromSender::Problem { path: b"closed".to_vec(), reason: "permission denied".into() };
    let outside = || entry("f/below", EntryKind::Fifo);
    let short = Fate::Short { path: b"f".to_vec(), reason: "it cannot be read".into() };
    bench.take(&[(file("f", 5), NOTHING), (outside(), NOTHING), (problem(), NOTHING)]).unwrap();
    bench.files(&[(0, b"", short)]).unwrap();
    assert_eq!(bench.monitor.refused_count(), 3);
    bench.sink.begin([2; 16]);
    bench.take(&[(file("f", 5), NOTHING), (outside(), NOTHING), (problem(), NOTHING)]).unwrap();
    bench.files(&[(0, b"whole", Fate::Whole)]).unwrap();
    end(&mut bench);
    assert!(bench.sink.is_whole());
    assert_eq!(bench.sink.missing(), (0, 0));
    let problems: Vec<_> = bench.monitor.status().problems.into_iter().map(|problem| problem.path).collect();
    assert_eq!(problems, ["f/below", "closed"]);
    let commit = bench.sink.finish().unwrap();
    assert!(matches!(commit, FromReceiver::Commit { refused: 2, .. }), "{commit:?}");
    // Later it is told to whoever asks, and changes nothing.
    bench.sink.begin([3; 16]);
    bench.take(&[(file("f", 5), NOTHING), (outside(), NOTHING), (problem(), NOTHING)]).unwrap();
    assert!(matches!(bench.sink.commit_message(), FromReceiver::Commit { refused: 2, .. }));
    assert_eq!(bench.monitor.refused_count(), 2);
}

#[test]
fn who_comes_when_everything_had_come_is_told_what_is_missing_of_it() {
    let mut bench = Bench::new();
    let short = Fate::Short { path: b"f".to_vec(), reason: "it cannot be read".into() };
    bench.take(&[(file("f", 5), NOTHING), (file("g", 1), NOTHING)]).unwrap();
    end(&mut bench);
    bench.files(&[(0, b"", short), (1, b"g", Fate::Whole)]).unwrap();
    assert!(matches!(bench.sink.finish().unwrap(), FromReceiver::Commit { refused: 1, .. }));
    // Its sender did not hear of it, and was started again.
    bench.sink.begin([2; 16]);
    bench.take(&[(file("f", 5), NOTHING), (file("g", 1), NOTHING)]).unwrap();
    assert_eq!(end(&mut bench)[1], FromReceiver::Cut { ranges: vec![(0, 1)] });
    assert!(bench.sink.is_whole());
    assert!(matches!(bench.sink.commit_message(), FromReceiver::Commit { refused: 1, .. }));
}

#[test]
fn what_was_gone_when_everything_had_come_is_no_change() {
    let mut bench = Bench::new();
    bench.take(&[(file("f", 1), NOTHING), (file("gone", 0), NOTHING)]).unwrap();
    for session in 2..5 {
        bench.sink.begin([session; 16]);
        bench.take(&[(file("f", 1), NOTHING)]).unwrap();
        end(&mut bench);
        if session == 2 {
            bench.files(&[(0, b"f", Fate::Whole)]).unwrap();
            bench.sink.finish().unwrap();
        }
        assert!(matches!(bench.sink.commit_message(), FromReceiver::Commit { refused: 1, .. }));
    }
    bench.sink.begin([6; 16]);
    bench.take(&[(file("gone", 0), NOTHING)]).unwrap();
    let totals = bench.sink.totals();
    bench.violates(&[(FromSender::CatalogueEnd(totals), NOTHING)]);
}

#[test]
fn what_a_sender_says_cannot_write_to_a_terminal() {
    let mut bench = Bench::new();
    let reason = "\x1b[2J".to_owned() + &"x".repeat(1 << 20);
    bench.take(&[(FromSender::Problem { path: b"\x1b".repeat(1 << 20), reason }, NOTHING)]).unwrap();
    let problem = bench.monitor.status().problems.remove(0);
    assert!(problem.reason.starts_with("\\x1b[2Jxxx") && problem.path.starts_with("\\x1b"), "{problem:?}");
    assert!(problem.reason.len() < 5000 && problem.path.len() < 20_000);
}

#[test]
fn what_a_sender_calls_a_file_is_kept_only_as_far_as_it_is_shown() {
    let mut bench = Bench::new();
    let path = vec![b'\n'; 1 << 20];
    let begin = FromSender::Begin { id: 0, path };
    let data = FromSender::Data { id: 0, offset: 0 };
    bench.take(&[(file("a", 1 << 20), b"")]).unwrap();
    end(&mut bench);
    bench.take(&[(begin, b""), (data, b"x")]).unwrap();
    assert!(bench.sink.path_bytes <= 4096);
    let shown = bench.monitor.status().receiving.unwrap().path;
    assert!((1..=4 * 4096).contains(&shown.len()), "{}", shown.len());
}

#[test]
fn few_bytes_that_name_many_directories_are_stopped_by_the_limit() {
    let mut bench = Bench::new();
    let deep = |n: u32| entry(&format!("{n}{}", "/a".repeat(4000)), EntryKind::Fifo);
    let messages: Vec<_> = (0..4000).map(|n| (deep(n), NOTHING)).collect();
    assert!(matches!(bench.take(&messages), Err(Stopped::Intake(intake::Error::Full { .. }))));
    let memory = bench.store.index().memory();
    assert!(memory < 2 * super::fuzz::MAX_INDEX, "{memory}");
}

#[test]
fn what_is_left_out_or_cut_is_not_said_to_be_there() {
    let mut bench = Bench::new();
    let short = Fate::Short { path: b"g".to_vec(), reason: "it cannot be read".into() };
    bench.take(&[(file("f", 5), NOTHING), (link_to("l", "f"), NOTHING), (file("g", 5), NOTHING)]).unwrap();
    // A file that has a name is no directory.
    bench.take(&[(file("f/below", 7), NOTHING), (file("h", 5), NOTHING)]).unwrap();
    bench.files(&[(0, b"whole", Fate::Whole)]).unwrap();
    bench.files(&[(2, b"", short)]).unwrap();
    assert_eq!(bench.sink.missing(), (1, 5));
    let answers = end(&mut bench);
    assert_eq!(answers[0], FromReceiver::Whole { ranges: vec![(0, 2)] });
    assert_eq!(answers[1], FromReceiver::Cut { ranges: vec![(2, 2)] });
}

#[test]
fn the_end_of_the_catalogue_comes_once_on_a_connection() {
    let mut bench = Bench::new();
    bench.take(&[(file("f", 5), NOTHING)]).unwrap();
    end(&mut bench);
    let totals = bench.sink.totals();
    let why = bench.violates(&[(FromSender::CatalogueEnd(totals), NOTHING)]);
    assert!(why.contains("more than once"), "{why}");
    bench.sink.begin([1; 16]);
    end(&mut bench);
}

#[test]
fn a_second_name_that_is_gone_is_named() {
    let mut bench = Bench::new();
    bench.take(&[(file("f", 5), NOTHING), (link_to("l", "f"), NOTHING), (link_to("m", "f"), NOTHING)]).unwrap();
    bench.files(&[(0, b"whole", Fate::Whole)]).unwrap();
    end(&mut bench);
    bench.sink.begin([2; 16]);
    bench.take(&[(file("f", 5), NOTHING), (link_to("m", "f"), NOTHING)]).unwrap();
    end(&mut bench);
    let problems: Vec<_> = bench.monitor.status().problems.into_iter().map(|problem| problem.path).collect();
    assert_eq!(problems, ["l"]);
}

#[test]
fn what_a_session_says_twice_has_contents_twice() {
    let mut bench = Bench::new();
    bench.take(&[(file("f", 5), NOTHING)]).unwrap();
    bench.sink.begin([2; 16]);
    bench.take(&[(file("f", 5), NOTHING), (file("f", 5), NOTHING)]).unwrap();
    let answers = end(&mut bench);
    assert_eq!(answers[0], FromReceiver::Whole { ranges: vec![] });
    bench.files(&[(0, b"first", Fate::Whole), (1, b"other", Fate::Whole)]).unwrap();
    assert!(bench.sink.is_whole());
    assert_eq!(bench.contents("f").unwrap(), b"other");
    bench.sink.finish().unwrap();
    bench.sink.begin([3; 16]);
    bench.take(&[(file("f", 5), NOTHING), (file("f", 5), NOTHING)]).unwrap();
    end(&mut bench);
    assert!(bench.sink.is_whole());
}

#[test]
fn what_was_written_to_in_one_session_is_sent_again_in_the_next() {
    let mut bench = Bench::new();
    let changed = Fate::Changed { path: b"f".to_vec() };
    bench.take(&[(file("f", 3), NOTHING)]).unwrap();
    bench.files(&[(0, b"one", changed)]).unwrap();
    bench.sink.begin([2; 16]);
    bench.take(&[(file("f", 3), NOTHING)]).unwrap();
    bench.files(&[(0, b"two", Fate::Whole)]).unwrap();
    assert_eq!(bench.contents("f").unwrap(), b"two");
    assert_eq!(bench.monitor.refused_count(), 0);
}

/// What the journal has, in order.
fn journal(bench: &Bench) -> Vec<Record> {
    let spool = bench.store.spool().unwrap();
    let mut bytes = vec![0; spool.position() as usize];
    std::os::unix::fs::FileExt::read_exact_at(spool.journal(), &mut bytes, 0).unwrap();
    let mut records = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let (record, _, length) = record::decode::<Record>(rest).unwrap();
        records.push(record);
        rest = &rest[length..];
    }
    records
}

#[test]
fn contents_with_a_wrong_hash_are_not_in_the_journal() {
    let mut bench = Bench::new();
    let short = Fate::Short { path: b"g".to_vec(), reason: "it has become shorter".into() };
    bench.take(&[(file("a", 4), NOTHING), (file("dir/f", 5), NOTHING), (file("g", 3), NOTHING)]).unwrap();
    bench.files(&[(0, b"fine", Fate::Whole)]).unwrap();
    let mut body = small_files(&[(1, b"wrong", Fate::Whole), (2, b"g", short)]);
    let sum = small_files(&[(1, b"right", Fate::Whole)]);
    let length = sum.len() - record::frame_length(&sum).unwrap();
    body.truncate(body.len() - length);
    body.extend_from_slice(&sum[sum.len() - length..]);
    bench.body(&body).unwrap();
    assert_eq!(bench.contents("a").unwrap(), b"fine");
    assert_eq!((bench.contents("dir/f"), bench.contents("g")), (None, None));
    let records = journal(&bench);
    let data = records.iter().filter(|record| matches!(record, Record::Data { .. })).count();
    assert_eq!(data, 1, "{records:#?}");
    let end = |id| Record::End { id, received: 0, complete: false };
    let ends: Vec<_> = records.into_iter().filter(|record| matches!(record, Record::End { .. })).collect();
    assert_eq!(ends, [end(1), end(2)]);
    let mut problems: Vec<_> = bench.monitor.status().problems.into_iter().map(|problem| problem.path).collect();
    problems.sort_unstable();
    assert_eq!(problems, ["dir/f", "g"]);
}

#[test]
fn what_no_more_comes_of_is_ended_in_the_journal() {
    let mut bench = Bench::new();
    let large = 2 * SMALL;
    bench.take(&[(file("f", large), NOTHING), (file("gone", 5), NOTHING), (file("f/below", 5), NOTHING)]).unwrap();
    let begin = FromSender::Begin { id: 0, path: b"f".to_vec() };
    bench.take(&[(begin, NOTHING), (FromSender::Data { id: 0, offset: 0 }, b"a part")]).unwrap();
    bench.sink.begin([2; 16]);
    bench.take(&[(file("f", 5), NOTHING)]).unwrap();
    end(&mut bench);
    let ends: Vec<_> = journal(&bench)
        .into_iter()
        .filter_map(|record| match record {
            Record::End { id, received, complete } => Some((id, received, complete)),
            _ => None,
        })
        .collect();
    assert_eq!(ends, [(2, 0, false), (0, 6, false), (1, 0, false)]);
}

#[test]
fn what_policy_refuses_is_refused_and_named() {
    let mut bench = Bench::new();
    let link = |target: &[u8]| EntryKind::Symlink { target: target.into() };
    let messages = [
        entry("out", link(b"/etc")),
        entry("out/passwd", EntryKind::File { size: 3, sparse: None }),
        entry("empty", link(b"")),
        entry("nul", link(b"a\0b")),
        entry("long", link(&[b'x'; 4096])),
        entry("huge", EntryKind::File { size: 1 << 63, sparse: None }),
        entry("self", EntryKind::HardLink { target: EntryPath::parse(b"self").unwrap() }),
    ];
    let messages: Vec<_> = messages.into_iter().map(|message| (message, NOTHING)).collect();
    bench.take(&messages).unwrap();
    assert_eq!(bench.monitor.refused_count(), 6);
    assert_eq!(bench.store.index().len(), 1);
    // Their contents are dropped, and nobody waits for them.
    bench.files(&[(1, b"abc", Fate::Whole)]).unwrap();
    let totals = bench.sink.totals();
    bench.take(&[(FromSender::CatalogueEnd(totals), NOTHING)]).unwrap();
    assert!(bench.sink.is_whole());
}

#[test]
fn paths_that_lead_out_cannot_even_be_said() {
    let mut body = encode(&[(file("aa/b", 1), NOTHING)]);
    let at = body.windows(4).position(|window| window == b"aa/b").unwrap();
    body[at..at + 4].copy_from_slice(b"../b");
    record::end(0, &mut body);
    let mut bench = Bench::new();
    assert!(matches!(bench.body(&body), Err(Stopped::Violation(_))));
    assert!(bench.store.index().is_empty());
}

/// Messages as a sender that has gone mad says them.
fn message() -> impl Strategy<Value = (FromSender, Vec<u8>)> {
    let id = prop_oneof![0..6u64, Just(u64::MAX)];
    let small = prop_oneof![Just(0u64), 1..8u64, Just(SMALL), Just(SMALL + 3), Just(u64::MAX)];
    let path = "[abc](/[abc]){0,2}";
    let bytes = proptest::collection::vec(any::<u8>(), 0..8);
    let hash = proptest::collection::vec(any::<u8>(), 0..8).prop_map(|bytes| *blake3::hash(&bytes).as_bytes());
    let nothing = |message: FromSender| (message, Vec::new());
    prop_oneof![
        (path, small.clone()).prop_map(move |(path, size)| nothing(file(&path, size))),
        path.prop_map(move |path| nothing(entry(&path, EntryKind::Directory))),
        (path, path).prop_map(move |(path, target)| {
            nothing(entry(&path, EntryKind::HardLink { target: EntryPath::parse(target.as_bytes()).unwrap() }))
        }),
        path.prop_map(move |path| nothing(entry(&path, EntryKind::Symlink { target: b"/etc"[..].into() }))),
        (id.clone(), path).prop_map(move |(id, path)| nothing(FromSender::Begin { id, path: path.into() })),
        (id.clone(), small.clone(), bytes.clone())
            .prop_map(|(id, offset, bytes)| (FromSender::Data { id, offset }, bytes)),
        (id.clone(), bytes).prop_map(|(id, bytes)| (FromSender::File { id, fate: Fate::Whole }, bytes)),
        Just(nothing(FromSender::Sum { hash: [0; 32] })),
        (id.clone(), small.clone(), hash.clone()).prop_map(move |(id, upto, hash)| nothing(FromSender::Check {
            id,
            upto,
            hash
        })),
        (id.clone(), hash.clone()).prop_map(move |(id, hash)| nothing(FromSender::End { id, hash, fate: Fate::Whole })),
        (id, hash).prop_map(move |(id, hash)| {
            let fate = Fate::Short { path: b"p".to_vec(), reason: "r".into() };
            nothing(FromSender::End { id, hash, fate })
        }),
        Just(nothing(FromSender::CatalogueEnd(Totals::default()))),
        Just(nothing(FromSender::Done)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is said, in whatever order, over several sessions: no panic, and what is not announced is not there.
    #[test]
    fn a_sender_that_has_gone_mad(bodies in proptest::collection::vec(
        proptest::collection::vec(message(), 1..6), 1..12), sessions in any::<u16>()) {
        let mut bench = Bench::new();
        for (n, body) in bodies.iter().enumerate() {
            if sessions >> n & 1 == 1 {
                bench.sink.begin([n as u8; 16]);
            }
            let mut body = encode(&body.iter().map(|(message, bytes)| (message.clone(), &bytes[..])).collect::<Vec<_>>());
            if matches!(record::decode(&body), Ok((FromSender::File { .. }, ..))) {
                let sum = FromSender::Sum { hash: hash(&body) };
                record::encode(&sum, &[], &mut body);
            }
            // Whoever breaks the rules is heard no longer.
            if bench.body(&body).is_err() {
                break;
            }
        }
        bench.receiver.end();
    }

    /// Bytes that are no messages, or messages that were damaged.
    #[test]
    fn damaged_messages(at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<prop::sample::Index>(), seal: bool) {
        let mut bench = Bench::new();
        let mut body = encode(&[(file("f", 5), NOTHING)]);
        let first = body.len();
        body.extend(encode(&[(FromSender::Begin { id: 0, path: b"f".to_vec() }, NOTHING)]));
        body.extend(encode(&[(FromSender::Data { id: 0, offset: 0 }, b"12345"), (whole(0, b"12345"), NOTHING)]));
        let at = at.index(first - record::HEADER) + record::HEADER;
        body[at] ^= 1 << bit;
        if seal {
            // A checksum that is right: it is a sender, and it lies.
            record::end(0, &mut body[..first]);
        }
        body.truncate(cut.index(body.len() + 1));
        let taken = bench.body(&body);
        prop_assert!(seal || taken.is_err() || body.is_empty(), "{taken:?}");
    }
}
