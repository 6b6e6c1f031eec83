//! Archives that are read again, where a spool has the first part of them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::{Job, run};
use crate::entry::Timestamp;
use crate::index::Index;
use crate::monitor::{Monitor, Verdict};
use crate::record::{self, Record};
use crate::source::{Source, Spec};
use crate::spool::left::Left;
use crate::spool::{Config, Spool};
use crate::stop::Stop;
use crate::store::Store;
use crate::store::recover::{Job as Recovery, Resume, run as recover};
use crate::tarball;

fn receive(archive: &Path, store: &Arc<Store>, monitor: &Arc<Monitor>, resume: Option<Resume>) {
    run(Job {
        source: Source::open(&Spec::Path(archive.into())).unwrap(),
        store: store.clone(),
        monitor: monitor.clone(),
        stop: Stop::new().unwrap(),
        options: tarball::Options::default(),
        max_index: u64::MAX,
        resume,
    });
}

fn store() -> Arc<Store> {
    Arc::new(Store::new(Index::new(0, 0, Timestamp::default())))
}

/// A spool that has all of an archive, its journal changed by `change`.
fn spooled(archive: &Path, change: impl Fn(Record) -> Vec<Record>) -> PathBuf {
    let (store, monitor) = (store(), Monitor::new());
    let config = Config { directory: archive.parent().unwrap().into(), keep: true, ..Config::default() };
    store.set_spool(Spool::create(&config, monitor.clone()).unwrap());
    receive(archive, &store, &monitor, None);
    assert_eq!(monitor.verdict(), Some(Verdict::Complete));
    let path = store.spool().unwrap().path().to_owned();
    let journal = std::fs::read(path.join("journal")).unwrap();
    let (mut at, mut changed) = (0, Vec::new());
    while let Ok((record, behind, length)) = record::decode::<Record>(&journal[at..]) {
        for record in change(record) {
            record::encode(&record, behind, &mut changed);
        }
        at += length;
    }
    std::fs::write(path.join("journal"), changed).unwrap();
    path
}

fn resumed(archive: &Path, path: &Path) -> Arc<Monitor> {
    let (store, monitor) = (store(), Monitor::new());
    let left = Left::open(path, true).unwrap();
    let about = left.about().clone();
    store.set_spool(left.into_spool(None, true, monitor.clone()).unwrap());
    receive(archive, &store, &monitor, Some(Resume { about, mountpoint: "/mnt".into(), of_sender: false }));
    monitor
}

fn read_only(path: &Path) -> Arc<Monitor> {
    let (store, monitor) = (store(), Monitor::new());
    store.set_spool(Left::open(path, false).unwrap().into_spool(None, true, monitor.clone()).unwrap());
    let stop = Stop::new().unwrap();
    recover(Recovery { store, monitor: monitor.clone(), stop, max_index: u64::MAX, same_boot: true });
    monitor
}

#[test]
fn a_file_that_the_spool_could_not_hold_is_cut_still_when_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a-large"), vec![7; 300_000]).unwrap();
    std::fs::write(dir.path().join("b"), "b").unwrap();
    let archive = dir.path().join("x.tar");
    let packed = Command::new("tar").arg("cf").arg(&archive).arg("-C").arg(dir.path()).args(["a-large", "b"]).status();
    assert!(packed.unwrap().success());
    let path = spooled(&archive, |record| match record {
        Record::End { id, .. } => {
            let reason = "only 65536 bytes of its contents are kept".to_owned();
            let problem = Record::Problem { warning: false, path: b"a-large".to_vec(), reason };
            vec![problem, Record::End { id, received: 65536, complete: false }]
        }
        Record::Finish { .. } | Record::Durable { .. } => Vec::new(),
        record => vec![record],
    });
    let monitor = resumed(&archive, &path);
    let Some(Verdict::Incomplete { cut, .. }) = monitor.verdict() else { panic!("{:?}", monitor.verdict()) };
    assert_eq!((cut.as_deref(), monitor.refused_count()), (Some("a-large"), 1));
    let monitor = read_only(&path);
    assert!(matches!(monitor.verdict(), Some(Verdict::Incomplete { .. })), "{:?}", monitor.verdict());
    assert_eq!(monitor.refused_count(), 1);
}

#[test]
fn a_problem_behind_the_last_entry_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), "a").unwrap();
    std::fs::write(dir.path().join("b"), "b").unwrap();
    let archive = dir.path().join("x.tar");
    let packed = Command::new("tar").arg("cf").arg(&archive).arg("-C").arg(dir.path()).args(["a", "b"]).status();
    assert!(packed.unwrap().success());
    // The rest of a file of another volume, between the two.
    let mut bytes = std::fs::read(&archive).unwrap();
    let mut odd = bytes[..512].to_vec();
    (odd[0], odd[156]) = (b'x', b'M');
    odd[148..156].fill(b' ');
    let sum: u32 = odd.iter().map(|&b| u32::from(b)).sum();
    odd[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    odd.extend([0; 512]);
    bytes.splice(1024..1024, odd);
    std::fs::File::create(&archive).unwrap().write_all(&bytes).unwrap();
    let (entries, is_over) =
        (std::cell::Cell::new(0), |record: &Record| matches!(record, Record::Finish { .. } | Record::Durable { .. }));
    let path = spooled(&archive, |record| {
        entries.set(entries.get() + u64::from(matches!(record, Record::Entry(_))));
        if entries.get() > 1 || is_over(&record) { Vec::new() } else { vec![record] }
    });
    assert_eq!(entries.get(), 2);
    let all = |monitor: &Monitor| monitor.problems().map(|problem| format!("{problem:?}")).collect::<Vec<_>>();
    let before = all(&read_only(&path));
    assert!(!before.is_empty(), "it is told of");
    assert_eq!(all(&resumed(&archive, &path)), before);
    assert_eq!(all(&read_only(&path)), before);
}
