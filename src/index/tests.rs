//! The index by example.

use super::insert::{Inserted, Refusal};
use super::*;
use crate::entry::{Entry, EntryKind, Metadata};

fn path(p: &str) -> EntryPath {
    EntryPath::parse(p.as_bytes()).unwrap()
}

fn put(index: &mut Index, p: &str, kind: EntryKind) -> Result<Inserted, Refusal> {
    index.insert(&Entry { path: path(p), kind, metadata: Metadata::default() }, &mut |late| {
        assert!(late.bound.is_ok(), "{late:?}")
    })
}

fn file() -> EntryKind {
    EntryKind::File { size: 3, sparse: None }
}

fn link(to: &str) -> EntryKind {
    EntryKind::HardLink { target: path(to) }
}

fn new() -> Index {
    Index::new(0, 0, Timestamp::default())
}

#[test]
fn rows_are_small() {
    assert!(size_of::<Inode>() <= 64);
    assert_eq!(size_of::<Dentry>(), 16);
}

#[test]
fn makes_parents_and_lists_in_order() {
    let mut x = new();
    put(&mut x, "a/b/c", file()).unwrap();
    put(&mut x, "a/d", EntryKind::Directory).unwrap();
    let a = x.resolve(b"a").unwrap();
    assert_eq!(x.list(a, 0).map(|(_, n, _)| n.to_vec()).collect::<Vec<_>>(), [b"b".to_vec(), b"d".to_vec()]);
    let (first, ..) = x.list(a, 0).next().unwrap();
    put(&mut x, "a/e", file()).unwrap();
    assert_eq!(x.list(a, first).map(|(_, n, _)| n.to_vec()).collect::<Vec<_>>(), [b"d".to_vec(), b"e".to_vec()]);
    assert_eq!(x.attributes(a).unwrap().nlink, 4);
    assert_eq!(x.parent(x.resolve(b"a/d").unwrap()), Some(a));
}

#[test]
fn the_later_wins() {
    let mut x = new();
    put(&mut x, "f", file()).unwrap();
    let old = x.resolve(b"f").unwrap();
    put(&mut x, "f", EntryKind::Symlink { target: b"/etc".as_slice().into() }).unwrap();
    let new = x.resolve(b"f").unwrap();
    assert_ne!(old, new);
    assert_eq!(x.attributes(old).unwrap().nlink, 0);
    assert_eq!(x.target(new), Some(&b"/etc"[..]));
    assert_eq!(put(&mut x, "f/g", file()), Err(Refusal::ThroughNonDirectory));
    put(&mut x, "f", EntryKind::Directory).unwrap();
    put(&mut x, "f/g", file()).unwrap();
    assert_eq!(put(&mut x, "f", file()), Err(Refusal::NotEmpty));
    assert_eq!(x.list(Ino::ROOT, 0).count(), 1);
}

#[test]
fn a_replaced_empty_directory_is_no_parent_any_more() {
    let mut x = new();
    put(&mut x, "a/d", EntryKind::Directory).unwrap();
    x.directory(b"a/d").unwrap();
    put(&mut x, "a/d", file()).unwrap();
    assert_eq!(put(&mut x, "a/d/e", file()), Err(Refusal::ThroughNonDirectory));
}

#[test]
fn links_before_and_after() {
    let mut x = new();
    assert_eq!(put(&mut x, "late", link("mid")), Ok(Inserted::Waits));
    assert_eq!(put(&mut x, "mid", link("f")), Ok(Inserted::Waits));
    assert_eq!(x.resolve(b"late"), None);
    put(&mut x, "f", file()).unwrap();
    let f = x.resolve(b"f").unwrap();
    assert_eq!((x.resolve(b"late"), x.resolve(b"mid")), (Some(f), Some(f)));
    assert_eq!(x.attributes(f).unwrap().nlink, 3);
    assert_eq!(put(&mut x, "f", link("f")), Err(Refusal::LinkToItself));
    assert_eq!(put(&mut x, "l", link(".")), Err(Refusal::LinkToDirectory));
    put(&mut x, "never", link("gone")).unwrap();
    let mut left = Vec::new();
    x.finish(&mut |l, r| left.push((l.clone(), r)));
    assert_eq!(left, [(path("never"), Refusal::LinkTargetMissing)]);
}

#[test]
fn a_link_that_waits_does_not_take_a_name_from_a_later_entry() {
    let mut x = new();
    put(&mut x, "name", link("f")).unwrap();
    put(&mut x, "name", file()).unwrap();
    let own = x.resolve(b"name").unwrap();
    put(&mut x, "f", file()).unwrap();
    assert_eq!(x.resolve(b"name"), Some(own));
    put(&mut x, "other", link("never")).unwrap();
    put(&mut x, "other", file()).unwrap();
    x.finish(&mut |l, r| panic!("{l}: {r}"));
}

#[test]
fn arrival_moves_on_and_never_back() {
    let (announced, complete) = (Arrival::Announced, Arrival::Complete);
    let arriving = |received| Arrival::Arriving { received };
    let truncated = |received| Arrival::Truncated { received };
    let all = [announced, arriving(1), arriving(2), truncated(0), truncated(1), truncated(2), complete];
    for (before, may_follow) in [
        (announced, &all[..]),
        (arriving(1), &all[1..]),
        (arriving(2), &all[2..]),
        (truncated(1), &[truncated(1)]),
        (complete, &[complete]),
    ] {
        for now in all {
            let mut x = new();
            put(&mut x, "f", file()).unwrap();
            let f = x.resolve(b"f").unwrap();
            assert_eq!(x.arrival(f), Some(announced));
            x.set_arrival(f, before);
            x.set_arrival(f, now);
            let expected = if may_follow.contains(&now) { now } else { before };
            assert_eq!(x.arrival(f), Some(expected), "{now:?} after {before:?}");
        }
    }
}

#[test]
fn what_loses_a_name_is_known_until_the_next_entry() {
    let mut x = new();
    put(&mut x, "f", file()).unwrap();
    let f = x.resolve(b"f").unwrap();
    assert!(x.replaced().is_empty());
    put(&mut x, "f", file()).unwrap();
    assert_eq!(x.replaced(), [f]);
    put(&mut x, "g", file()).unwrap();
    assert!(x.replaced().is_empty());
    // A link that waited takes a name from another file.
    put(&mut x, "f", link("late")).unwrap();
    let f = x.resolve(b"f").unwrap();
    put(&mut x, "late", file()).unwrap();
    assert_eq!(x.replaced(), [f]);
}

#[test]
fn directories_are_numbered_and_have_a_path() {
    let mut x = new();
    put(&mut x, "a/b/c", file()).unwrap();
    put(&mut x, "d", EntryKind::Directory).unwrap();
    put(&mut x, "a/b", EntryKind::Directory).unwrap();
    put(&mut x, "e", file()).unwrap();
    put(&mut x, "e", EntryKind::Directory).unwrap();
    let paths =
        |x: &Index| (0..).map_while(|n| x.directory_at(n).map(|_| x.directory_path(n, 4096))).collect::<Vec<_>>();
    let some = |p: &str| Some(p.as_bytes().to_vec());
    assert_eq!(paths(&x), [some("a"), some("a/b"), some("d"), some("e")]);
    for (n, p) in [(0, "a"), (1, "a/b"), (2, "d"), (3, "e")] {
        let ino = x.resolve(p.as_bytes()).unwrap();
        assert_eq!((x.directory_at(n), x.directory_number(ino)), (Some(ino), Some(n)));
    }
    assert_eq!(x.directory_number(Ino::ROOT), None);
    assert_eq!(x.directory_number(x.resolve(b"a/b/c").unwrap()), None);
    // Its name is taken from it; the number stays.
    put(&mut x, "d", file()).unwrap();
    assert_eq!(paths(&x), [some("a"), some("a/b"), None, some("e")]);
}
