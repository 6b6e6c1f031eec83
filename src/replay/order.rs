//! Entries whose contents come in any order, given so that names mean in the end what they mean in the mount.
//!
//! An entry is given when all of its contents are there, but never before an earlier one of the same name, or of one that a
//! part of its path has; nor a hard link before such an entry of its target; nor anything before an earlier entry that is
//! in it as in a directory. What replaces, what is linked to, and what is refused, is what it was in the order of the
//! journal. A name that a hard link has waited for binds that one too: it comes behind all before it, and before all
//! behind it. Where paths lose their leading components, the same holds for what is left of them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

use super::items::Item;
use crate::entry::{Entry, EntryKind};
use crate::index::Place;
use crate::record::{self, Record};

/// Those that have been announced, and not been given.
#[derive(Default)]
pub(super) struct Order {
    /// By their numbers.
    announced: BTreeMap<u64, Announced>,
    /// The last one that gives a name or links to it, by a hash. Two names that meet there only wait for each other.
    last: HashMap<u64, u64>,
    /// Who waits for an entry.
    waiting: HashMap<u64, Vec<u64>>,
    /// To be given, in this order.
    ready: VecDeque<Item>,
    /// What names of those that wait are in, by a hash.
    above: HashSet<u64>,
    /// Names that hard links repeat, by a hash.
    linked: HashSet<u64>,
    /// The entries of those that wait for their contents.
    kept: Kept,
    /// What comes later waits for this entry.
    barrier: Option<u64>,
    /// Leading components that paths lose.
    strip: usize,
    keys: RandomState,
}

/// Where a path is a path.
#[derive(Clone, Copy, Hash)]
enum Tree {
    Mount,
    /// Without its leading components.
    Target,
}

/// Small: of a catalogue whose contents have not come all files are here.
struct Announced {
    state: State,
    /// So many have to be given before.
    after: u32,
    /// All that came before have to.
    last: bool,
}

const _: () = assert!(size_of::<Announced>() <= 24);

/// What has come of one.
enum State {
    Entry(Spot),
    /// The entry, and where its contents go.
    Blob(Box<(Spot, Place)>),
    Item(Box<Item>),
    /// It is being made into an item.
    Taken,
}

/// Where an entry is [`Kept`].
#[derive(Clone, Copy)]
struct Spot {
    segment: u32,
    offset: u32,
}

/// Entries as they are encoded, in large segments: in memory, one takes many times as much.
#[derive(Default)]
struct Kept(Vec<Segment>);

struct Segment {
    bytes: Vec<u8>,
    /// Of those in it, so many have not been taken.
    left: u32,
}

/// A segment is full when it has so many bytes.
const SEGMENT: usize = 256 << 10;

impl Kept {
    fn add(&mut self, entry: Box<Entry>) -> Spot {
        if self.0.last().is_none_or(|segment| segment.bytes.len() >= SEGMENT) {
            // The last entry in it goes beyond.
            self.0.push(Segment { bytes: Vec::with_capacity(SEGMENT + (4 << 10)), left: 0 });
        }
        let number = self.0.len() - 1;
        let segment = &mut self.0[number];
        let offset = segment.bytes.len();
        record::encode(&Record::Entry(entry), &[], &mut segment.bytes);
        segment.left += 1;
        Spot { segment: number as u32, offset: offset as u32 }
    }

    fn take(&mut self, spot: Spot) -> Option<Box<Entry>> {
        let segment = self.0.get_mut(spot.segment as usize)?;
        let decoded = record::decode(segment.bytes.get(spot.offset as usize..)?);
        segment.left -= 1;
        let entry = match decoded {
            Ok((Record::Entry(entry), ..)) => Some(entry),
            _ => None,
        };
        if segment.left == 0 {
            // The last one is used again, the others are given back.
            match spot.segment as usize + 1 == self.0.len() {
                true => self.0[spot.segment as usize].bytes.clear(),
                false => self.0[spot.segment as usize].bytes = Vec::new(),
            }
        }
        entry
    }
}

impl Order {
    /// Where so many leading components of each path are left away, others can have the same name.
    pub(super) fn new(strip: usize) -> Self {
        Order { strip, ..Order::default() }
    }

    /// An entry. Where it has contents, these are to come.
    pub(super) fn announce(&mut self, id: u64, entry: Box<Entry>) {
        let paths = self.paths(&entry);
        let keys = paths.map(|path| path.map(|path| self.keys.hash_one(path)));
        let above: Vec<u64> = paths.into_iter().flatten().flat_map(|(tree, path)| self.above(tree, path)).collect();
        let mut before: Vec<u64> =
            keys.iter().flatten().chain(&above).filter_map(|key| self.last.get(key).copied()).collect();
        before.extend(self.barrier.filter(|id| self.announced.contains_key(id)));
        before.sort_unstable();
        before.dedup();
        let repeated = keys[0].is_some_and(|key| self.linked.contains(&key));
        self.linked.extend(keys[1]);
        let is_above = || [keys[0], keys[2]].into_iter().flatten().any(|key| self.above.contains(&key));
        let last = !self.announced.is_empty() && (repeated || is_above());
        let has_contents = entry.kind.stored_len() > 0;
        if before.is_empty() && !last && !has_contents {
            self.ready.push_back(Item::new(entry, Place::Empty));
            return;
        }
        if repeated {
            self.barrier = Some(id);
        }
        for &other in &before {
            self.waiting.entry(other).or_default().push(id);
        }
        self.last.extend(keys.iter().flatten().map(|&key| (key, id)));
        self.above.extend(above);
        let state = match has_contents {
            true => State::Entry(self.kept.add(entry)),
            false => State::Item(Box::new(Item::new(entry, Place::Empty))),
        };
        self.announced.insert(id, Announced { state, after: before.len() as u32, last });
    }

    /// The name of an entry, the one that it links to, and what is left of its name.
    fn paths<'e>(&self, entry: &'e Entry) -> [Option<(Tree, &'e [u8])>; 3] {
        let target = match &entry.kind {
            EntryKind::HardLink { target } => Some(target),
            _ => None,
        };
        let left = if self.strip > 0 { entry.path.without_first(self.strip) } else { None };
        [
            Some((Tree::Mount, entry.path.as_bytes())),
            target.map(|target| (Tree::Mount, target.as_bytes())),
            left.map(|left| (Tree::Target, left)),
        ]
    }

    /// The directories that a path is in, by their hashes.
    fn above<'a>(&'a self, tree: Tree, path: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
        let slashes = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        slashes.map(move |at| self.keys.hash_one((tree, &path[..at])))
    }

    /// Where its contents go.
    pub(super) fn set_blob(&mut self, id: u64, blob: Place) {
        let Some(announced) = self.announced.get_mut(&id) else { return };
        match &mut announced.state {
            State::Entry(spot) => announced.state = State::Blob(Box::new((*spot, blob))),
            State::Blob(kept) => kept.1 = blob,
            State::Item(_) | State::Taken => {}
        }
    }

    /// No more of its contents comes. `item` makes of the entry, and the place of its blob, what is given.
    pub(super) fn end(&mut self, id: u64, item: impl FnOnce(Box<Entry>, Option<Place>) -> Item) {
        let Some(announced) = self.announced.get_mut(&id) else { return };
        let (spot, blob) = match std::mem::replace(&mut announced.state, State::Taken) {
            State::Entry(spot) => (spot, None),
            State::Blob(kept) => (kept.0, Some(kept.1)),
            before @ (State::Item(_) | State::Taken) => {
                announced.state = before;
                return;
            }
        };
        let Some(entry) = self.kept.take(spot) else { return };
        announced.state = State::Item(Box::new(item(entry, blob)));
        if self.can_be_given(id) {
            self.give(id);
        } else if let Some(Announced { state: State::Item(item), .. }) = self.announced.get_mut(&id) {
            // What is read is not kept for as long as that takes.
            item.bytes = None;
        }
    }

    fn can_be_given(&self, id: u64) -> bool {
        let is_first = || self.announced.first_key_value().is_some_and(|(&first, _)| first == id);
        self.announced
            .get(&id)
            .is_some_and(|one| matches!(one.state, State::Item(_)) && one.after == 0 && (!one.last || is_first()))
    }

    /// The next one that can be given.
    pub(super) fn pop(&mut self) -> Option<Item> {
        self.ready.pop_front()
    }

    /// No more comes of any: the first one, whatever it waits for.
    pub(super) fn pop_first(&mut self, item: impl FnOnce(Box<Entry>) -> Item) -> Option<Item> {
        if self.ready.is_empty() {
            let (&id, announced) = self.announced.first_key_value()?;
            // Whatever it had to wait for came before it.
            debug_assert_eq!(announced.after, 0);
            self.end(id, |entry, _| item(entry));
        }
        self.ready.pop_front()
    }

    fn give(&mut self, id: u64) {
        let mut next = vec![id];
        while let Some(id) = next.pop() {
            let Some(Announced { state: State::Item(item), .. }) = self.announced.remove(&id) else { continue };
            for path in self.paths(&item.entry).into_iter().flatten() {
                let key = self.keys.hash_one(path);
                if self.last.get(&key) == Some(&id) {
                    self.last.remove(&key);
                }
            }
            self.ready.push_back(*item);
            let waiting = self.waiting.remove(&id).unwrap_or_default();
            for other in waiting.into_iter().rev() {
                let Some(after) = self.announced.get_mut(&other).map(|other| &mut other.after) else { continue };
                *after -= 1;
                if *after == 0 && self.can_be_given(other) {
                    next.push(other);
                }
            }
            if next.is_empty()
                && let Some((&first, Announced { last: true, .. })) = self.announced.first_key_value()
                && self.can_be_given(first)
            {
                next.push(first);
            }
        }
        if self.announced.is_empty() {
            self.above.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{EntryPath, Metadata};

    fn entry(path: &str, kind: EntryKind) -> Box<Entry> {
        Box::new(Entry { path: EntryPath::parse(path.as_bytes()).unwrap(), kind, metadata: Metadata::default() })
    }

    fn file(path: &str, size: u64) -> Box<Entry> {
        entry(path, EntryKind::File { size, sparse: None })
    }

    fn link(path: &str, target: &str) -> Box<Entry> {
        entry(path, EntryKind::HardLink { target: EntryPath::parse(target.as_bytes()).unwrap() })
    }

    fn end(order: &mut Order, id: u64) {
        order.end(id, |entry, _| Item::new(entry, Place::Empty));
    }

    /// Path and length of what can be given.
    fn given(order: &mut Order) -> Vec<(String, u64)> {
        std::iter::from_fn(|| order.pop())
            .map(|item| (item.entry.path.to_string(), item.entry.kind.stored_len()))
            .collect()
    }

    fn names(names: &[(&str, u64)]) -> Vec<(String, u64)> {
        names.iter().map(|&(name, len)| (name.into(), len)).collect()
    }

    #[test]
    fn each_is_given_when_its_contents_are_there() {
        let mut order = Order::default();
        order.announce(0, file("a", 1));
        order.announce(1, file("empty", 0));
        order.announce(2, file("b", 2));
        assert_eq!(given(&mut order), names(&[("empty", 0)]));
        end(&mut order, 2);
        assert_eq!(given(&mut order), names(&[("b", 2)]));
        end(&mut order, 0);
        assert_eq!(given(&mut order), names(&[("a", 1)]));
        assert!(order.announced.is_empty() && order.last.is_empty() && order.waiting.is_empty());
    }

    #[test]
    fn what_waits_is_as_it_was_and_its_memory_is_given_back() {
        let mut order = Order::default();
        let name = |n: u64| format!("{n}-{}", "x".repeat(200));
        for n in 0..5000 {
            order.announce(n, file(&name(n), n + 1));
        }
        assert!(order.kept.0.len() > 2);
        for n in (0..5000).rev() {
            order.set_blob(n, Place::in_blob(n, false));
            order.end(n, |entry, blob| Item::new(entry, blob.unwrap()));
            let item = order.pop().unwrap();
            assert_eq!(item.entry, file(&name(n), n + 1));
            assert!(matches!(item.place, Place::Blob(number) if number == n));
        }
        assert!(order.announced.is_empty() && order.last.is_empty());
        let (last, others) = order.kept.0.split_last().unwrap();
        assert!(others.iter().all(|segment| segment.bytes.capacity() == 0) && last.bytes.is_empty());
        // One after the other they take no more.
        let segments = order.kept.0.len();
        for n in 5000..20_000 {
            order.announce(n, file(&name(n), 1));
            end(&mut order, n);
        }
        assert_eq!(order.kept.0.len(), segments);
    }

    #[test]
    fn a_link_waits_for_the_file_that_its_target_means_by_then() {
        let mut order = Order::default();
        order.announce(0, file("f", 1));
        order.announce(1, link("l", "f"));
        order.announce(2, link("m", "l"));
        end(&mut order, 0);
        assert_eq!(given(&mut order), names(&[("f", 1), ("l", 0), ("m", 0)]));
        // Another sender, another file.
        order.announce(3, file("f", 2));
        order.announce(4, link("m", "l"));
        order.announce(5, link("l", "f"));
        assert!(given(&mut order).is_empty());
        end(&mut order, 3);
        assert_eq!(given(&mut order), names(&[("f", 2), ("m", 0), ("l", 0)]));
    }

    #[test]
    fn what_replaces_waits_for_what_it_replaces() {
        let mut order = Order::default();
        order.announce(0, file("f", 1));
        order.announce(1, file("f", 2));
        order.announce(2, link("l", "f"));
        order.announce(3, entry("f", EntryKind::Fifo));
        end(&mut order, 1);
        end(&mut order, 1);
        assert!(given(&mut order).is_empty());
        end(&mut order, 0);
        let all = given(&mut order);
        assert_eq!(all[..2], names(&[("f", 1), ("f", 2)]));
        assert_eq!(all.len(), 4);
        assert!(order.announced.is_empty() && order.last.is_empty() && order.waiting.is_empty());
    }

    #[test]
    fn a_name_is_not_replaced_before_what_links_to_it() {
        let mut order = Order::default();
        order.announce(0, file("l", 1));
        order.announce(1, link("l", "f"));
        order.announce(2, entry("f", EntryKind::Fifo));
        assert!(given(&mut order).is_empty());
        end(&mut order, 0);
        assert_eq!(given(&mut order), names(&[("l", 1), ("l", 0), ("f", 0)]));
    }

    #[test]
    fn what_is_in_a_directory_is_in_the_one_of_that_time() {
        // A file, a link to it, and then a directory of that name.
        let mut order = Order::default();
        order.announce(0, file("p", 1));
        order.announce(1, link("l", "p"));
        order.announce(2, entry("p", EntryKind::Directory));
        order.announce(3, entry("p/x", EntryKind::Fifo));
        order.announce(4, link("m", "p/x"));
        assert!(given(&mut order).is_empty());
        end(&mut order, 0);
        assert_eq!(given(&mut order), names(&[("p", 1), ("l", 0), ("p", 0), ("p/x", 0), ("m", 0)]));
    }

    #[test]
    fn what_takes_the_place_of_a_directory_comes_behind_all_that_is_in_it() {
        let mut order = Order::default();
        order.announce(0, entry("a", EntryKind::Directory));
        order.announce(1, file("a/b/f", 1));
        order.announce(2, file("a/g", 2));
        order.announce(3, entry("a", EntryKind::Fifo));
        order.announce(4, file("a", 4));
        order.announce(5, entry("other", EntryKind::Fifo));
        assert_eq!(given(&mut order), names(&[("a", 0), ("other", 0)]));
        end(&mut order, 4);
        end(&mut order, 2);
        assert_eq!(given(&mut order), names(&[("a/g", 2)]));
        end(&mut order, 1);
        assert_eq!(given(&mut order), names(&[("a/b/f", 1), ("a", 0), ("a", 4)]));
        assert!(
            order.announced.is_empty() && order.last.is_empty() && order.waiting.is_empty() && order.above.is_empty()
        );
    }

    #[test]
    fn what_is_left_of_a_name_can_be_that_of_another() {
        for (strip, first) in [(0, "b/f"), (1, "a/f")] {
            let mut order = Order::new(strip);
            order.announce(0, file("a/f", 0));
            order.announce(1, file("a/f", 1));
            order.announce(2, entry("b/f", EntryKind::Fifo));
            assert_eq!(order.pop().map(|item| item.entry.path.to_string()), Some("a/f".into()));
            if strip == 0 {
                assert_eq!(given(&mut order), names(&[(first, 0)]));
            }
            end(&mut order, 1);
            assert_eq!(given(&mut order)[0].0, "a/f");
        }
    }

    #[test]
    fn a_directory_comes_behind_what_was_refused_before_it_was_one() {
        for strip in [0, 1] {
            let mut order = Order::new(strip);
            order.announce(0, entry("a", EntryKind::Fifo));
            order.announce(1, file("a/f", 1));
            order.announce(2, entry("a", EntryKind::Directory));
            assert_eq!(given(&mut order), names(&[("a", 0)]));
            end(&mut order, 1);
            assert_eq!(given(&mut order), names(&[("a/f", 1), ("a", 0)]));
        }
        // The same where only the shortened paths meet.
        let mut order = Order::new(1);
        order.announce(0, file("x/a", 1));
        order.announce(1, entry("y/a/b", EntryKind::Fifo));
        order.announce(2, entry("z/c", EntryKind::Fifo));
        assert_eq!(given(&mut order), names(&[("z/c", 0)]));
        end(&mut order, 0);
        assert_eq!(given(&mut order), names(&[("x/a", 1), ("y/a/b", 0)]));
    }

    #[test]
    fn a_name_that_a_link_waits_for_binds_it_at_its_place() {
        let mut order = Order::default();
        order.announce(0, link("c", "b"));
        order.announce(1, file("c/x", 1));
        order.announce(2, file("b", 1));
        order.announce(3, entry("c/y", EntryKind::Fifo));
        end(&mut order, 2);
        assert_eq!(given(&mut order), names(&[("c", 0)]));
        end(&mut order, 1);
        assert_eq!(given(&mut order), names(&[("c/x", 1), ("b", 1), ("c/y", 0)]));
        assert!(order.announced.is_empty() && order.last.is_empty() && order.waiting.is_empty());
    }

    #[test]
    fn what_never_comes_is_given_in_order() {
        let mut order = Order::default();
        order.announce(0, file("f", 1));
        order.announce(1, link("l", "f"));
        order.announce(2, file("f", 2));
        order.announce(3, file("g", 3));
        end(&mut order, 2);
        let rest: Vec<_> = std::iter::from_fn(|| order.pop_first(|entry| Item::lost(entry, 0)))
            .map(|item| (item.entry.path.to_string(), item.lost))
            .collect();
        assert_eq!(rest, [("f".into(), Some(0)), ("l".into(), None), ("f".into(), None), ("g".into(), Some(0))]);
    }
}
