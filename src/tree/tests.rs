use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{Error, OpenError, Opener, Options, Origin, Step, Walk};
use crate::entry::{Entry, EntryKind, EntryPath, Segment};

/// What a walk came by: entries with their contents' origins, and problems as `path: reason`.
#[derive(Default)]
struct Walked {
    entries: Vec<(Entry, Option<Origin>)>,
    problems: Vec<String>,
    notes: Vec<String>,
}

impl Walked {
    fn of(walk: &mut Walk) -> Self {
        let mut walked = Walked::default();
        for step in walk {
            walked.take(step);
        }
        walked
    }

    fn take(&mut self, step: Step) {
        let line = |path: Vec<u8>, text: String| format!("{}: {text}", crate::entry::escape(&path));
        match step {
            Step::Entry { entry, contents } => self.entries.push((*entry, contents)),
            Step::Problem { path, reason } => self.problems.push(line(path, reason)),
            Step::Note { path, message } => self.notes.push(line(path, message)),
        }
    }

    fn paths(&self) -> Vec<String> {
        self.entries.iter().map(|(entry, _)| entry.path.to_string()).collect()
    }

    fn get(&self, path: &str) -> &(Entry, Option<Origin>) {
        self.entries.iter().find(|(entry, _)| entry.path.to_string() == path).unwrap()
    }
}

fn walk_with(dir: &Path, paths: &[&str], options: Options) -> Walk {
    let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
    Walk::new(&paths, Options { directory: Some(dir.into()), ..options }).unwrap()
}

fn walk(dir: &Path, paths: &[&str]) -> Walk {
    walk_with(dir, paths, Options::default())
}

fn all(opener: &Opener, origin: &Origin) -> Vec<u8> {
    let mut contents = opener.open(origin).unwrap();
    let mut read = Vec::new();
    // In pieces that fit nothing.
    let mut piece = [0; 1000];
    loop {
        let n = contents.read(read.len() as u64, &mut piece).unwrap();
        read.extend_from_slice(&piece[..n]);
        if n == 0 {
            assert!(contents.is_unchanged().unwrap());
            return read;
        }
    }
}

#[test]
fn in_order_of_names_directories_first() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("t/b/x")).unwrap();
    for name in ["t/c", "t/a", "t/b.c", "t/b/z", "t/b/x/y"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let mut steps = walk(dir.path(), &["t"]);
    let walked = Walked::of(&mut steps);
    assert_eq!(walked.paths(), ["t", "t/a", "t/b", "t/b/x", "t/b/x/y", "t/b/z", "t/b.c", "t/c"]);
    assert!(walked.problems.is_empty() && steps.notes().is_empty());
    let opener = steps.opener();
    for (entry, origin) in walked.entries.iter().rev() {
        if let EntryKind::File { size, sparse: None } = entry.kind {
            let read = all(&opener, origin.as_ref().unwrap());
            assert_eq!(read, entry.path.as_bytes());
            assert_eq!(read.len() as u64, size);
        }
    }
    assert_eq!(Walked::of(&mut walk(dir.path(), &["t/b/../b/x"])).paths(), ["b/x", "b/x/y"]);
    assert_eq!(Walked::of(&mut walk(&dir.path().join("t/b"), &["."])).paths(), [".", "x", "x/y", "z"]);
    assert_eq!(Walked::of(&mut walk(dir.path(), &["t/a", "t/c", "t/b/z"])).paths(), ["t/a", "t/c", "t/b/z"]);
    let absolute = dir.path().join("t/c");
    let mut steps = Walk::new(std::slice::from_ref(&absolute), Options::default()).unwrap();
    assert_eq!(steps.notes().len(), 1);
    let path = EntryPath::parse(absolute.as_os_str().as_bytes()).unwrap();
    assert_eq!(Walked::of(&mut steps).paths(), [path.to_string()]);
}

#[test]
fn what_cannot_be_sent_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let new = |path: &str, options| Walk::new(&[dir.path().join(path)], options).err().unwrap();
    assert!(matches!(new("nothing", Options::default()), Error::Path(..)));
    let directory = Some(dir.path().join("nothing"));
    assert!(matches!(new("", Options { directory, ..Options::default() }), Error::Directory(..)));
    let exclude = vec!["[".to_owned()];
    assert!(matches!(new("", Options { exclude, ..Options::default() }), Error::Pattern(..)));
}

#[test]
fn links_on_the_command_line_are_links() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("t")).unwrap();
    fs::write(dir.path().join("t/a"), "a").unwrap();
    symlink("t", dir.path().join("l")).unwrap();
    let walked = Walked::of(&mut walk(dir.path(), &["l", "l/", "l/a"]));
    assert_eq!(walked.paths(), ["l", "l", "l/a", "l/a"]);
    assert_eq!(walked.entries[0].0.kind, EntryKind::Symlink { target: (*b"t").into() });
    assert_eq!(walked.entries[1].0.kind, EntryKind::Directory);
}

#[test]
fn hard_links_lead_to_the_first_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("d")).unwrap();
    fs::write(path("d/x"), "x").unwrap();
    fs::hard_link(path("d/x"), path("e")).unwrap();
    fs::hard_link(path("d/x"), path("f")).unwrap();
    let link = |walked: &Walked, path: &str| match &walked.get(path).0.kind {
        EntryKind::HardLink { target } => Some(target.to_string()),
        _ => None,
    };
    let walked = Walked::of(&mut walk(dir.path(), &["."]));
    assert_eq!((link(&walked, "d/x"), link(&walked, "e")), (None, Some("d/x".into())));
    assert_eq!(link(&walked, "f"), Some("d/x".into()));
    // The first that is sent, not the first that there is.
    let exclude = Options { exclude: vec!["d".into()], ..Options::default() };
    let walked = Walked::of(&mut walk_with(dir.path(), &["."], exclude));
    assert_eq!((link(&walked, "e"), link(&walked, "f")), (None, Some("e".into())));
    // The same name again is not a link to itself.
    let walked = Walked::of(&mut walk(dir.path(), &["e", "e", "f"]));
    let kinds: Vec<_> = walked.entries.iter().map(|(entry, _)| matches!(entry.kind, EntryKind::File { .. })).collect();
    assert_eq!(kinds, [true, true, false]);
}

#[test]
fn holes_are_found_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("sparse")).unwrap();
    file.write_all_at(&[1; 5000], 1 << 20).unwrap();
    file.write_all_at(&[2; 10], 1 << 21).unwrap();
    file.set_len(1 << 22).unwrap();
    fs::write(dir.path().join("dense"), vec![0; 1 << 20]).unwrap();
    let mut steps = walk(dir.path(), &["."]);
    let walked = Walked::of(&mut steps);
    assert!(matches!(walked.get("dense").0.kind, EntryKind::File { size: 1_048_576, sparse: None }));
    let (entry, Some(origin)) = walked.get("sparse") else { panic!() };
    let EntryKind::File { size: 4_194_304, sparse: Some(map) } = &entry.kind else { panic!("{entry:?}") };
    assert_eq!(map.segments(), [Segment { offset: 1 << 20, len: 8192 }, Segment { offset: 1 << 21, len: 4096 }]);
    let mut want = vec![0; 8192 + 4096];
    want[..5000].fill(1);
    want[8192..8202].fill(2);
    assert_eq!(all(&steps.opener(), origin), want);
    assert_eq!((origin.stored_len(), origin.size()), (12288, 1 << 22));
}

#[test]
fn what_changes_between_walk_and_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let names = ["gone", "grown", "link", "replaced", "fifo", "shrunk", "dir/inside", "moved/inside"];
    fs::create_dir(path("dir")).unwrap();
    fs::create_dir(path("moved")).unwrap();
    for name in names {
        fs::write(path(name), vec![1; 10_000]).unwrap();
    }
    let mut steps = walk(dir.path(), &["."]);
    let (walked, opener) = (Walked::of(&mut steps), steps.opener());
    drop(steps);
    let origin = |name: &str| walked.get(name).1.as_ref().unwrap();
    fs::remove_file(path("gone")).unwrap();
    fs::remove_file(path("link")).unwrap();
    symlink("grown", path("link")).unwrap();
    fs::write(path("new"), "another").unwrap();
    fs::rename(path("new"), path("replaced")).unwrap();
    fs::remove_file(path("fifo")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::rename(path("dir"), path("elsewhere")).unwrap();
    symlink("elsewhere", path("dir")).unwrap();
    // The directory itself may be open still, and then its files are found.
    fs::rename(path("moved"), path("moved again")).unwrap();
    assert!(matches!(opener.open(origin("gone")), Err(OpenError::Vanished)));
    for name in ["link", "replaced", "fifo"] {
        assert!(matches!(opener.open(origin(name)), Err(OpenError::Replaced)), "{name}");
    }
    for name in ["dir/inside", "moved/inside"] {
        if let Ok(mut contents) = opener.open(origin(name)) {
            let mut buf = [0; 10_000];
            assert_eq!(contents.read(0, &mut buf).unwrap(), 10_000);
            assert_eq!(buf, [1; 10_000]);
        }
    }

    let (mut grown, mut shrunk) = (opener.open(origin("grown")).unwrap(), opener.open(origin("shrunk")).unwrap());
    assert!(grown.is_unchanged().unwrap() && shrunk.is_unchanged().unwrap());
    fs::OpenOptions::new().append(true).open(path("grown")).unwrap().write_all_at(&[2; 10], 10_000).unwrap();
    fs::OpenOptions::new().write(true).open(path("shrunk")).unwrap().set_len(1000).unwrap();
    let mut buf = [0; 20_000];
    assert_eq!(grown.read(0, &mut buf).unwrap(), 10_000);
    assert_eq!(grown.read(10_000, &mut buf).unwrap(), 0);
    assert_eq!(shrunk.read(0, &mut buf).unwrap(), 1000);
    assert_eq!(shrunk.read(1000, &mut buf).unwrap(), 0);
    assert!(!grown.is_unchanged().unwrap() && !shrunk.is_unchanged().unwrap());
}

#[test]
fn a_directory_swapped_for_a_link_is_not_walked_into() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("t/b")).unwrap();
    fs::create_dir(path("outside")).unwrap();
    fs::write(path("outside/secret"), "secret").unwrap();
    fs::write(path("t/a"), "a").unwrap();
    let mut steps = walk(dir.path(), &["t"]);
    let mut walked = Walked::default();
    while walked.entries.len() < 2 {
        walked.take(steps.next().unwrap());
    }
    fs::remove_dir(path("t/b")).unwrap();
    symlink("../outside", path("t/b")).unwrap();
    steps.for_each(|step| walked.take(step));
    assert_eq!(walked.paths(), ["t", "t/a", "t/b"]);
    assert!(matches!(walked.get("t/b").0.kind, EntryKind::Symlink { .. }));
    assert!(walked.problems.is_empty(), "{:?}", walked.problems);
}

#[test]
fn what_vanishes_during_the_walk_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir_all(path("t/d")).unwrap();
    fs::write(path("t/a"), "a").unwrap();
    fs::write(path("t/b"), "b").unwrap();
    let mut steps = walk(dir.path(), &["t"]);
    let mut walked = Walked::default();
    while walked.entries.len() < 2 {
        walked.take(steps.next().unwrap());
    }
    fs::remove_file(path("t/b")).unwrap();
    fs::remove_dir(path("t/d")).unwrap();
    steps.for_each(|step| walked.take(step));
    let vanished = "it vanished before it was read";
    assert_eq!(walked.problems, [format!("t/b: {vanished}"), format!("t/d: {vanished}")]);
}

#[test]
fn deeper_than_a_path_and_than_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let name = "d".repeat(100);
    let mut at = rustix::fs::open(dir.path(), super::directories::DIRECTORY, 0.into()).unwrap();
    for _ in 0..200 {
        rustix::fs::mkdirat(&at, &*name, 0o755.into()).unwrap();
        let file = rustix::fs::openat(&at, "z", rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY, 0o644.into());
        rustix::io::write(file.unwrap(), b"deep").unwrap();
        at = rustix::fs::openat(&at, &*name, super::directories::DIRECTORY, 0.into()).unwrap();
    }
    let mut steps = walk(dir.path(), &["."]);
    let walked = Walked::of(&mut steps);
    assert!(walked.problems.is_empty(), "{:?}", walked.problems);
    assert_eq!(walked.entries.len(), 1 + 200 * 2);
    let opener = steps.opener();
    for (_, origin) in &walked.entries {
        if let Some(origin) = origin {
            assert_eq!(all(&opener, origin), b"deep");
        }
    }
}

#[test]
fn valid_cache_tags_count_and_the_tag_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for (name, tag) in [("cache", "Signature: 8a477f597d28d172789f06886806bc55\n# x"), ("other", "Signature: 0")] {
        fs::create_dir_all(path(name).join("sub")).unwrap();
        fs::write(path(name).join("a"), "a").unwrap();
        fs::write(path(name).join("CACHEDIR.TAG"), tag).unwrap();
    }
    let options = Options { exclude_caches: true, ..Options::default() };
    let walked = Walked::of(&mut walk_with(dir.path(), &["cache", "other"], options));
    assert_eq!(walked.paths(), ["cache", "cache/CACHEDIR.TAG", "other", "other/CACHEDIR.TAG", "other/a", "other/sub"]);
}

#[test]
fn the_archive_itself_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x.tar"), "").unwrap();
    let stat = rustix::fs::stat(dir.path().join("x.tar")).unwrap();
    let options = Options { archive: Some((stat.st_dev, stat.st_ino)), ..Options::default() };
    let walked = Walked::of(&mut walk_with(dir.path(), &["."], options));
    assert_eq!(walked.paths(), ["."]);
    assert_eq!((walked.notes.len(), walked.problems.len()), (1, 0));
}

#[test]
fn modes_times_and_owners() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
    let time = rustix::fs::Timespec { tv_sec: -5, tv_nsec: 250_000_000 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).unwrap();
    rustix::fs::setxattr(&path, "user.x", b"\0value", rustix::fs::XattrFlags::empty()).unwrap();
    let options = Options { user_name: |uid| Some(format!("u{uid}").into_bytes()), ..Options::default() };
    let walked = Walked::of(&mut walk_with(dir.path(), &["f"], options));
    let metadata = &walked.get("f").0.metadata;
    let us = rustix::process::geteuid().as_raw();
    assert_eq!((metadata.mode, metadata.uid), (0o4751, us));
    assert_eq!(metadata.user.as_deref(), Some(format!("u{us}").as_bytes()));
    assert_eq!(metadata.group, None);
    assert_eq!((metadata.mtime.seconds(), metadata.mtime.nanos()), (-5, 250_000_000));
    assert_eq!(metadata.xattrs.get(b"user.x"), Some(&b"\0value"[..]));
}
