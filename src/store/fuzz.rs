//! A spool with any journal and any blobs, recovered: what is shown then has to be what was written. For tests, and for
//! fuzzing (`fuzz/`). No part of the library.
//!
//! What may be shown is worked out from the bytes themselves: of a file, what stands in a [`Record::Data`] of its entry, or
//! in the blob that a [`Record::Blob`] of its entry names, at the same place.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::recover::{Found, Job as Recovery, Resume, run as recover};
use super::{Read, Store};
use crate::entry::check::{Checked, check};
use crate::entry::{Entry, EntryKind, SparseMap, Timestamp};
use crate::index::insert::Inserted;
use crate::index::{Arrival, Index, Ino, Kind};
use crate::monitor::Monitor;
use crate::proof::EXTENT;
use crate::record::{self, Record};
use crate::replay::{Contents, Item, Replay};
use crate::spool::left::Left;
use crate::spool::{Config, Spool};
use crate::stop::Stop;
use crate::store::intake::FileRef;

/// Checksums of frames, and of contents, are made right.
const SEAL: u8 = 1;
/// The spool is of another boot.
const REBOOTED: u8 = 2;

/// Of no file more is read: one with holes can say that it has exabytes.
const LOOK: u64 = 256 << 10;

/// The index of one takes no more.
const MAX_INDEX: u64 = 64 << 20;

/// A spool, as it lies on the disk.
struct Spooled {
    journal: Vec<u8>,
    blobs: BTreeMap<u64, Vec<u8>>,
    rebooted: bool,
}

/// The first byte says how; then come blobs, of which the first byte says how many; the rest is the journal. A blob is its
/// number, its length in units of eight bytes (u16, little endian), and a length and bytes that are repeated in it.
fn parse(input: &[u8]) -> Option<Spooled> {
    let (&[how, count], mut rest) = input.split_first_chunk()?;
    let mut blobs = BTreeMap::new();
    for _ in 0..count % 8 {
        let (&[number, low, high, pattern], after) = rest.split_first_chunk()?;
        let (pattern, after) = after.split_at_checked(pattern.into())?;
        rest = after;
        let length = usize::from(u16::from_le_bytes([low, high])) * 8;
        let pattern = if pattern.is_empty() { &[0] } else { pattern };
        // No two extents are the same.
        let bytes = pattern.iter().cycle().zip(0u64..).map(|(byte, at)| byte.wrapping_add((at / 4096) as u8));
        blobs.insert(u64::from(number % 16), bytes.take(length).collect());
    }
    let mut spooled = Spooled { journal: rest.to_vec(), blobs, rebooted: how & REBOOTED != 0 };
    if how & SEAL != 0 {
        record::seal(&mut spooled.journal);
        spooled.seal_sums();
    }
    Some(spooled)
}

impl Spooled {
    /// Makes the checksums of contents right: each whose first byte is even.
    fn seal_sums(&mut self) {
        let mut written = Written::default();
        let mut at = 0;
        while let Ok((record, bytes, length)) = record::decode::<Record>(&self.journal[at..]) {
            let (end, bytes) = (at + length, bytes.to_vec());
            if let Record::Sums { id, first } = &record
                && let Some(file) = written.files.get(id)
                && let Some(&(number, packed)) = file.blobs.last()
                && let Some(blob) = self.blobs.get(&number)
            {
                let begin = end - bytes.len();
                for (sum, extent) in self.journal[begin..end].as_chunks_mut::<4>().0.iter_mut().zip(*first..) {
                    if sum[0] & 1 == 0
                        && let Some(right) = file.sum(blob, packed, extent)
                    {
                        *sum = right.to_le_bytes();
                    }
                }
                record::end(at, &mut self.journal[..end]);
            }
            written.add(&record, &bytes);
            at = end;
        }
    }

    /// What a recovery may trust.
    fn written(&self, go_on: bool, rebooted: bool) -> Written {
        let mut frames = Vec::new();
        let (mut at, mut durable) = (0, 0);
        while let Ok((record, bytes, length)) = record::decode::<Record>(&self.journal[at..]) {
            let record = match record {
                Record::Entry(entry) => match check(*entry) {
                    Checked::Right(entry) | Checked::Mended(entry, _) => Record::Entry(entry.into()),
                    Checked::Refused(..) => break,
                },
                Record::Begin { version } if version != record::VERSION => break,
                record => record,
            };
            if let Record::Durable { upto } = record
                && upto <= at as u64
            {
                durable = upto;
            }
            at += length;
            frames.push((at as u64, record, bytes));
        }
        let mut written = Written::default();
        for (end, record, bytes) in frames {
            let over = match record {
                Record::Cut => go_on,
                Record::Finish { .. } => go_on && written.is_catalogue,
                _ => false,
            };
            if over || rebooted && end > durable {
                break;
            }
            written.add(&record, bytes);
        }
        written
    }

    /// Lays it down.
    fn make(&self, directory: &Path) -> PathBuf {
        let config = Config { directory: directory.into(), keep: true, source: "fuzz".into(), ..Config::default() };
        let spool = Spool::create(&config, Monitor::new()).expect("a spool can be made");
        spool.append(&self.journal, &|| true).expect("there is room");
        for (number, bytes) in &self.blobs {
            fs::write(spool.path().join("blobs").join(number.to_string()), bytes).expect("there is room");
        }
        spool.path().into()
    }
}

/// What stands in a journal.
#[derive(Default)]
struct Written {
    entries: Vec<Entry>,
    files: HashMap<u64, File>,
    is_catalogue: bool,
}

/// What stands there of a file.
#[derive(Default, PartialEq)]
struct File {
    size: u64,
    stored: u64,
    map: Option<Arc<SparseMap>>,
    /// Where they begin, and what they are.
    data: Vec<(u64, Vec<u8>)>,
    blobs: Vec<(u64, bool)>,
    /// Checksums of the extents in a blob.
    sums: Vec<u32>,
    /// Whether there were others that are none.
    odd: bool,
    /// What was said of its end.
    ends: Vec<(u64, bool)>,
}

impl Written {
    fn add(&mut self, record: &Record, bytes: &[u8]) {
        match record {
            Record::Entry(entry) => {
                if let EntryKind::File { size, sparse } = &entry.kind {
                    let file =
                        File { size: *size, stored: entry.kind.stored_len(), map: sparse.clone(), ..File::default() };
                    self.files.insert(self.entries.len() as u64, file);
                }
                self.entries.push((**entry).clone());
            }
            Record::Catalogue => self.is_catalogue |= self.entries.is_empty(),
            Record::Data { id, offset } => {
                if let Some(file) = self.files.get_mut(id) {
                    file.data.push((*offset, bytes.to_vec()));
                }
            }
            Record::Blob { id, number, packed } => {
                if let Some(file) = self.files.get_mut(id) {
                    file.blobs.push((*number, *packed));
                }
            }
            Record::Sums { id, first } => {
                if let Some(file) = self.files.get_mut(id) {
                    let (sums, rest) = bytes.as_chunks::<4>();
                    file.odd |= !rest.is_empty() || *first > file.sums.len() as u64;
                    file.sums.truncate(usize::try_from(*first).unwrap_or(usize::MAX));
                    file.sums.extend(sums.iter().map(|sum| u32::from_le_bytes(*sum)));
                }
            }
            Record::End { id, received, complete } => {
                if let Some(file) = self.files.get_mut(id) {
                    file.ends.push((*received, *complete));
                }
            }
            _ => {}
        }
    }
}

impl File {
    /// Where stored bytes lie in a blob: so many that follow each other.
    fn place(&self, packed: bool, at: u64, len: u64) -> Vec<(u64, u64)> {
        match &self.map {
            Some(map) if !packed => map.place(at, len).map(|segment| (segment.offset, segment.len)).collect(),
            _ => vec![(at, len)],
        }
    }

    /// The stored bytes from `at` on, as a blob has them.
    fn of_blob(&self, blob: &[u8], packed: bool, at: u64, len: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for (at, len) in self.place(packed, at, len) {
            bytes.extend_from_slice(blob.get(usize::try_from(at).ok()?..)?.get(..usize::try_from(len).ok()?)?);
        }
        Some(bytes)
    }

    /// The checksum of an extent, as a blob has it.
    fn sum(&self, blob: &[u8], packed: bool, extent: u64) -> Option<u32> {
        let at = extent.checked_mul(EXTENT)?;
        let len = self.stored.checked_sub(at)?.min(EXTENT);
        Some(crc32fast::hash(&self.of_blob(blob, packed, at, len)?))
    }

    /// Whether `bytes` are stored bytes from `at` on.
    fn has(&self, bytes: &[u8], at: u64, blobs: &BTreeMap<u64, Vec<u8>>) -> bool {
        let in_data = |(begin, data): &(u64, Vec<u8>)| {
            let from = at.checked_sub(*begin).and_then(|at| data.get(usize::try_from(at).ok()?..));
            from.is_some_and(|data| data.starts_with(bytes))
        };
        let in_blob = |(number, packed): &(u64, bool)| {
            let of = |blob: &Vec<u8>| self.of_blob(blob, *packed, at, bytes.len() as u64);
            blobs.get(number).and_then(of).is_some_and(|there| there == bytes)
        };
        self.data.iter().any(in_data) || self.blobs.iter().any(in_blob)
    }

    /// Whether `bytes` are those of the file from `offset` on: nothing else where it has holes, and no more.
    fn is(&self, bytes: &[u8], offset: u64, blobs: &BTreeMap<u64, Vec<u8>>) -> bool {
        let Some(map) = &self.map else {
            return bytes.is_empty() || offset + bytes.len() as u64 <= self.size && self.has(bytes, offset, blobs);
        };
        let mut hole = bytes.to_vec();
        for (segment, stored) in map.within(offset, bytes.len() as u64) {
            let at = (segment.offset - offset) as usize..(segment.offset - offset + segment.len) as usize;
            if !self.has(&bytes[at.clone()], stored, blobs) {
                return false;
            }
            hole[at].fill(0);
        }
        hole.iter().all(|byte| *byte == 0)
    }

    /// Whether a blob is not what its checksums say, or not all of it is: then it was the disk that failed.
    fn is_damaged(&self, blobs: &BTreeMap<u64, Vec<u8>>) -> bool {
        self.blobs.iter().any(|(number, packed)| {
            let Some(blob) = blobs.get(number) else { return true };
            let is_right = |(sum, extent): (&u32, u64)| self.sum(blob, *packed, extent) == Some(*sum);
            let are_all = self.sums.len() as u64 == self.stored.div_ceil(EXTENT);
            self.odd
                || !are_all
                || !self.sums.iter().zip(0..).all(is_right)
                || self.of_blob(blob, *packed, 0, self.stored).is_none()
        })
    }
}

/// A tree of these entries, and the inode of each.
fn tree(entries: &[Entry]) -> (Index, Vec<Option<Ino>>) {
    let mut index = Index::new(0, 0, Timestamp::default());
    let insert = |entry: &Entry| match index.insert(entry, &mut |_| ()) {
        Ok(Inserted::Bound(ino)) if !matches!(entry.kind, EntryKind::HardLink { .. }) => Some(ino),
        _ => None,
    };
    let inodes = entries.iter().map(insert).collect();
    (index, inodes)
}

fn names(index: &Index) -> Vec<(Vec<u8>, Ino)> {
    let mut names = Vec::new();
    index.walk(&mut |path, ino| names.push((path.to_vec(), ino)));
    names.sort();
    names
}

/// How far each file is there, and what can be read of its beginning.
type Shown = BTreeMap<Ino, (Option<Arrival>, Option<Vec<u8>>)>;

/// Compares a recovered store with what may be shown.
fn compare(store: &Store, written: &Written, spooled: &Spooled) -> Shown {
    let (expected, inodes) = tree(&written.entries);
    assert_eq!(names(&store.index()), names(&expected), "the names");
    assert_eq!(store.index().inodes(), expected.inodes(), "the inodes");
    let entries: HashMap<Ino, u64> = inodes.iter().zip(0..).filter_map(|(ino, entry)| Some(((*ino)?, entry))).collect();
    let mut shown = Shown::new();
    for ino in (1..=expected.inodes() as u64).map(Ino) {
        let (attributes, arrival) = (store.index().attributes(ino), store.index().arrival(ino));
        let attributes = attributes.expect("it has attributes");
        let before = expected.attributes(ino).expect("it has attributes");
        assert_eq!(format!("{attributes:?}"), format!("{before:?}"));
        if attributes.kind != Kind::File {
            continue;
        }
        let file = &written.files[&entries[&ino]];
        if let Some(Arrival::Arriving { received } | Arrival::Truncated { received }) = arrival {
            assert!(received <= file.stored, "{received} of {} bytes of {ino:?}", file.stored);
        }
        let whole = arrival == Some(Arrival::Complete);
        let mut beginning = None;
        let ends = [0, 1, 4096, EXTENT - 1, EXTENT, file.size / 2, file.size.saturating_sub(LOOK)];
        for at in ends.into_iter().filter(|at| *at <= file.size) {
            for len in [LOOK, EXTENT, 10, 1] {
                let mut bytes = Vec::new();
                match store.read(ino, at, len as usize, &mut bytes) {
                    Ok(Read::Bytes(read)) => {
                        assert_eq!(read as u64, len.min(file.size - at), "{ino:?} at {at}");
                        bytes.truncate(read);
                        assert!(file.is(&bytes, at, &spooled.blobs), "{ino:?} at {at}: bytes that were not written");
                        if at == 0 && beginning.is_none() {
                            beginning = Some(bytes);
                        }
                    }
                    Ok(Read::Lost | Read::NotYet { .. }) => assert!(!whole, "{ino:?} is whole, and not there at {at}"),
                    Err(e) => assert!(file.is_damaged(&spooled.blobs), "{ino:?} at {at}: {e}"),
                }
            }
        }
        shown.insert(ino, (arrival, beginning));
    }
    shown
}

fn store_of(left: Left, monitor: &Arc<Monitor>) -> Arc<Store> {
    let store = Arc::new(Store::new(Index::new(0, 0, Timestamp::default())));
    store.set_spool(left.into_spool(None, true, monitor.clone()).expect("a spool can be opened"));
    store
}

fn job(store: &Arc<Store>, monitor: &Arc<Monitor>, same_boot: bool) -> Recovery {
    let stop = Stop::new().expect("there are descriptors");
    Recovery { store: store.clone(), monitor: monitor.clone(), stop, max_index: MAX_INDEX, same_boot }
}

/// Recovered to be read only.
fn read_only(spooled: &Spooled, path: &Path, rebooted: bool) -> (Shown, Written) {
    let monitor = Monitor::new();
    let store = store_of(Left::open(path, false).expect("it is a spool"), &monitor);
    recover(job(&store, &monitor, !rebooted));
    assert!(monitor.verdict().is_some(), "it ends");
    let written = spooled.written(false, rebooted);
    let shown = compare(&store, &written, spooled);
    let waits =
        |(arrival, _): &(Option<Arrival>, _)| matches!(arrival, Some(Arrival::Announced | Arrival::Arriving { .. }));
    assert!(!shown.values().any(waits), "nobody waits for ever");
    (shown, written)
}

/// Recovered to be filled further, as far as before the first byte comes. Whether that can be.
fn resumed(spooled: &Spooled, path: &Path, rebooted: bool) -> bool {
    let monitor = Monitor::new();
    let left = Left::open(path, true).expect("it is a spool");
    let about = left.about().clone();
    let store = store_of(left, &monitor);
    let written = spooled.written(true, rebooted);
    let resume = Resume { about, mountpoint: "/".into(), of_sender: written.is_catalogue };
    let Ok(Found { entries, parts, .. }) = store.resume(&job(&store, &monitor, !rebooted), resume) else {
        return false;
    };
    compare(&store, &written, spooled);
    assert_eq!(entries, tree(&written.entries).1, "what each entry became");
    for (entry, part) in parts {
        let ino = part.ino;
        // A blob can be missing.
        let _ = store.reopen(part, FileRef { entry, ino: Some(ino) });
    }
    compare(&store, &written, spooled);
    true
}

/// As it is restored.
fn replayed(spooled: &Spooled, path: &Path) {
    let open = |name: &str| OwnedFd::from(fs::File::open(path.join(name)).expect("it can be opened"));
    let owner = rustix::process::geteuid().as_raw();
    let contents = Contents::spool(open("journal"), open("blobs"), owner).expect("it is a spool");
    let mut replay = Replay::new(&contents, Default::default(), 0).expect("it is a journal");
    replay.set_length(spooled.journal.len() as u64);
    let written = spooled.written(false, false);
    let mut given = 0;
    let mut look = |item: Item| {
        given += 1;
        let entry = &item.entry;
        if entry.kind.stored_len() == 0 || item.lost.is_some() {
            return;
        }
        let EntryKind::File { sparse, .. } = &entry.kind else { return };
        let stored = entry.kind.stored_len();
        // Which one of the same it is does not show.
        let files: Vec<&File> = (0u64..)
            .zip(&written.entries)
            .filter(|(_, one)| *one == &**entry)
            .map(|(id, _)| &written.files[&id])
            .collect();
        assert!(!files.is_empty(), "an entry that was not written");
        let all = if let Some(bytes) = &item.bytes {
            assert_eq!(bytes.get().len() as u64, stored);
            Ok(bytes.get().to_vec())
        } else {
            contents.read(&item.place, sparse.as_deref(), stored, |read| {
                let mut all = vec![0; stored.min(4 * LOOK) as usize];
                read(&mut all, 0).map(|()| all)
            })
        };
        match all {
            Ok(all) => {
                assert!(files.iter().any(|file| file.has(&all, 0, &spooled.blobs)), "bytes that were not written")
            }
            Err::<_, crate::replay::Error>(e) => {
                assert!(files.iter().any(|file| file.is_damaged(&spooled.blobs)), "{}: {e}", entry.path);
            }
        }
    };
    let mut ended = false;
    while let Ok(item) = replay.next_item() {
        let Some(item) = item else {
            ended = true;
            break;
        };
        look(item);
    }
    if ended {
        while let Some(item) = replay.rest() {
            look(item);
        }
        assert_eq!(given, written.entries.len(), "every entry is given once");
    }
}

/// Whatever is in a spool.
pub fn any_bytes(input: &[u8], directory: &Path) {
    let Some(spooled) = parse(input) else { return };
    let path = spooled.make(directory);
    replayed(&spooled, &path);
    let rebooted = spooled.rebooted;
    let (before, written) = read_only(&spooled, &path, rebooted);
    let journal = || fs::read(path.join("journal")).expect("it can be read");
    assert_eq!(journal(), spooled.journal, "what is read only stays as it is");
    // By then it is of this boot.
    let rebooted = !resumed(&spooled, &path, rebooted) && rebooted;
    let kept = Spooled { journal: journal(), blobs: blobs(&path), rebooted };
    let (after, left) = read_only(&kept, &path, rebooted);
    let (_, inodes) = tree(&written.entries);
    for (ino, entry) in inodes.iter().zip(0u64..) {
        let Some(whole @ (Some(Arrival::Complete), _)) = ino.and_then(|ino| before.get(&ino)) else { continue };
        // What stands behind a cut is about to come again.
        if left.files.get(&entry) == written.files.get(&entry) {
            assert_eq!(ino.and_then(|ino| after.get(&ino)), Some(whole), "{ino:?} was whole before somebody went on");
        }
    }
    fs::remove_dir_all(&path).expect("it can be removed");
}

fn blobs(path: &Path) -> BTreeMap<u64, Vec<u8>> {
    let listed = fs::read_dir(path.join("blobs")).expect("it can be read").flatten();
    let number = |path: &Path| path.file_name()?.to_str()?.parse().ok();
    listed.filter_map(|entry| Some((number(&entry.path())?, fs::read(entry.path()).ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entry::{EntryPath, Metadata, Segment};

    /// A record, and what is behind it in its frame.
    type Frame = (Record, Vec<u8>);

    fn entry(path: &str, kind: EntryKind) -> Frame {
        let path = EntryPath::parse(path.as_bytes()).unwrap();
        (Record::Entry(Box::new(Entry { path, kind, metadata: Metadata::default() })), Vec::new())
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let path = prop_oneof![Just("f"), Just("g"), Just("d/h"), Just("d")];
        let size = prop_oneof![0..20u64, Just(EXTENT), EXTENT..5 * EXTENT];
        let (id, number) = (0..4u64, prop_oneof![0..4u64, any::<u64>()]);
        let bytes = proptest::collection::vec(any::<u8>(), 0..20);
        let nothing = |record: Record| (record, Vec::new());
        prop_oneof![
            4 => (path.clone(), size.clone()).prop_map(|(path, size)| entry(path, EntryKind::File { size, sparse: None })),
            2 => (path.clone(), 1..5000u64, 1..EXTENT, 1..40u64).prop_map(|(path, len, gap, count)| {
                let segments = (0..count).map(|n| Segment { offset: n * (len + gap), len });
                let map = SparseMap::new(count * (len + gap), segments).unwrap();
                entry(path, EntryKind::File { size: map.size(), sparse: Some(map.into()) })
            }),
            1 => path.clone().prop_map(|path| entry(path, EntryKind::Directory)),
            1 => (path.clone(), path).prop_map(|(path, target)| {
                entry(path, EntryKind::HardLink { target: EntryPath::parse(target.as_bytes()).unwrap() })
            }),
            3 => (id.clone(), prop_oneof![9 => Just(0), 1 => any::<u64>()], bytes.clone())
                .prop_map(|(id, offset, bytes)| (Record::Data { id, offset }, bytes)),
            4 => (id.clone(), number, any::<bool>())
                .prop_map(move |(id, number, packed)| nothing(Record::Blob { id, number, packed })),
            4 => (id.clone(), 0..3u64, 0..5usize).prop_map(|(id, first, n)| (Record::Sums { id, first }, vec![0; 4 * n])),
            1 => (id.clone(), any::<u64>(), bytes.clone())
                .prop_map(|(id, first, bytes)| (Record::Sums { id, first }, bytes)),
            4 => (id.clone(), prop_oneof![size, any::<u64>()], any::<bool>())
                .prop_map(move |(id, received, complete)| nothing(Record::End { id, received, complete })),
            1 => any::<bool>().prop_map(move |complete| nothing(Record::Finish { complete })),
            1 => (0..2000u64).prop_map(move |upto| nothing(Record::Durable { upto })),
            1 => Just(nothing(Record::Cut)),
            1 => Just(nothing(Record::Anew)),
            1 => Just(nothing(Record::Catalogue)),
            1 => id.prop_map(move |id| nothing(Record::Changed { id })),
            1 => (any::<u64>(), bytes).prop_map(|(first, bytes)| (Record::Digests { first }, bytes)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Whatever records there are, in whatever order: nothing is shown that was not written.
        #[test]
        fn any_journal(
            frames in proptest::collection::vec(frame(), 1..24),
            lengths in proptest::collection::vec(any::<u16>(), 0..4),
            how in 0..4u8,
            tail in proptest::collection::vec(any::<u8>(), 0..3),
        ) {
            let mut input = vec![how, lengths.len() as u8];
            for (number, length) in (0u8..).zip(lengths) {
                let [low, high] = length.to_le_bytes();
                input.extend([number, low, high, 3, 11, 22, 33]);
            }
            let begin = (Record::Begin { version: record::VERSION }, Vec::new());
            for (record, bytes) in std::iter::once(&begin).chain(&frames) {
                record::encode(record, bytes, &mut input);
            }
            input.extend(tail);
            let directory = tempfile::tempdir().unwrap();
            any_bytes(&input, directory.path());
        }
    }
}
