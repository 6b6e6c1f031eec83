//! Random archives against a reference model: thousands through the index, some through a real mount.

mod reference;
mod restored;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt};
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::Config;
use restorefs::entry::{Device, Entry, EntryKind, EntryPath, Metadata, Timestamp};
use restorefs::index::{Index, Ino, Kind};

use crate::support::mount::Mount;
use crate::support::needs_fuse;
use reference::{Member, Model, Seen, View, What, parent};

/// Few names, so that they meet.
fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    prop_oneof![
        1 => Just(String::new()),
        40 => prop::collection::vec(name, 1..4).prop_map(|names| names.join("/")),
    ]
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        4 => (0u64..3).prop_map(|size| What::File { size }),
        3 => Just(What::Directory),
        2 => prop::sample::select(vec!["a", "../b", "/", "c/a"]).prop_map(|to| What::Symlink { target: to.into() }),
        4 => path().prop_map(|target| What::HardLink { target }),
        1 => (0u32..500, 0u32..70_000).prop_map(|(major, minor)| What::Device { major, minor }),
        1 => Just(What::Fifo),
    ]
}

fn members(mtime: impl Strategy<Value = (i64, u32)>, len: usize) -> impl Strategy<Value = Vec<Member>> {
    let member = (path(), what(), 0u16..0o10000, 0u32..2_000_000, 0u32..2_000_000, mtime)
        .prop_map(|(path, what, mode, uid, gid, mtime)| Member { path, what, mode, uid, gid, mtime, fill: b'x' });
    prop::collection::vec(member, 0..len)
}

fn config(cases: u32) -> Config {
    Config { cases, failure_persistence: None, max_shrink_iters: 5000, ..Config::default() }
}

fn entry(member: &Member) -> Entry {
    let parse =
        |path: &str| if path.is_empty() { EntryPath::root() } else { EntryPath::parse(path.as_bytes()).unwrap() };
    let kind = match &member.what {
        What::File { size } => EntryKind::File { size: *size, sparse: None },
        What::Directory => EntryKind::Directory,
        What::Symlink { target } => EntryKind::Symlink { target: target.as_bytes().into() },
        What::HardLink { target } => EntryKind::HardLink { target: parse(target) },
        &What::Device { major, minor } => EntryKind::BlockDevice { device: Device { major, minor } },
        What::Fifo => EntryKind::Fifo,
    };
    let mtime = Timestamp::new(member.mtime.0, member.mtime.1);
    let metadata = Metadata { mode: member.mode, uid: member.uid, gid: member.gid, mtime, ..Metadata::default() };
    Entry { path: parse(&member.path), kind, metadata }
}

/// What the index shows.
fn look(index: &Index) -> View {
    let mut found = View::new();
    let mut groups: BTreeMap<Ino, String> = BTreeMap::new();
    let mut todo = vec![(String::new(), Ino::ROOT)];
    while let Some((path, ino)) = todo.pop() {
        let attributes = index.attributes(ino).unwrap();
        let mut names = Vec::new();
        let what = match attributes.kind {
            Kind::File => What::File { size: attributes.size },
            Kind::Symlink => What::Symlink { target: String::from_utf8(index.target(ino).unwrap().to_vec()).unwrap() },
            Kind::BlockDevice => {
                let device = attributes.device.unwrap();
                What::Device { major: device.major, minor: device.minor }
            }
            Kind::Fifo => What::Fifo,
            Kind::Directory => {
                for (_, name, child) in index.list(ino, 0) {
                    let name = std::str::from_utf8(name).unwrap();
                    assert_eq!(index.lookup(ino, name.as_bytes()), Some(child));
                    let below = join(&path, name);
                    assert_eq!(index.resolve(below.as_bytes()), Some(child));
                    if let Some(up) = index.parent(child) {
                        assert_eq!(up, ino, "'..' of {below}");
                    }
                    names.push(name.to_owned());
                    todo.push((below, child));
                }
                What::Directory
            }
            kind => panic!("nobody packed a {kind:?}"),
        };
        group(&mut groups, ino, &path);
        let m = attributes.mtime;
        let seen = Seen {
            what,
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            mtime: Some((m.seconds(), m.nanos())),
            nlink: attributes.nlink.into(),
            group: String::new(),
            names,
        };
        found.insert(path, seen);
    }
    for (path, seen) in &mut found {
        seen.group.clone_from(&groups[&index.resolve(path.as_bytes()).unwrap()]);
    }
    found
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.into() } else { format!("{dir}/{name}") }
}

fn group<K: Ord>(groups: &mut BTreeMap<K, String>, ino: K, path: &str) {
    groups.entry(ino).and_modify(|first| *first = path.min(first).to_owned()).or_insert_with(|| path.to_owned());
}

/// Directories that nobody announced have a time of their own.
fn any_time(mut seen: View, model: &View) -> View {
    for (path, seen) in &mut seen {
        if model.get(path).is_some_and(|m| m.mtime.is_none()) {
            seen.mtime = None;
        }
    }
    seen
}

#[test]
fn the_index_is_the_model() {
    proptest!(config(3000), |(members in members((-2_000_000_000i64..4_000_000_000, 0u32..1_000_000_000), 30))| {
        let mut model = Model::new(77, 88);
        let mut index = Index::new(77, 88, Timestamp::default());
        let mut refused = 0;
        // A listing that goes on while members arrive, name by name.
        let (mut cookie, mut listed) = (0, Vec::new());
        for member in &members {
            model.put(member);
            let mut later = 0;
            if index.insert(&entry(member), &mut |late| later += usize::from(late.bound.is_err())).is_err() {
                refused += 1;
            }
            refused += later;
            prop_assert_eq!(refused, model.refused, "after {:?}", member);
            if let Some((next, name, _)) = index.list(Ino::ROOT, cookie).next() {
                cookie = next;
                listed.push(String::from_utf8(name.to_vec()).unwrap());
            }
            let (seen, expected) = (look(&index), model.view());
            prop_assert_eq!(any_time(seen, &expected), expected, "after {:?}", member);
        }
        index.finish(&mut |_, _| refused += 1);
        model.finish();
        prop_assert_eq!(refused, model.refused);
        listed.extend(index.list(Ino::ROOT, cookie).map(|(_, name, _)| String::from_utf8(name.to_vec()).unwrap()));
        prop_assert_eq!(listed, model.names(""));
    });
}

/// What a mount shows.
fn walk(root: &Path) -> View {
    let mut found = View::new();
    let mut groups: BTreeMap<u64, String> = BTreeMap::new();
    let mut inos = BTreeMap::new();
    let mut todo = vec![String::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let metadata = full.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let mut names = Vec::new();
        let what = if kind.is_dir() {
            for entry in fs::read_dir(&full).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                assert_eq!(entry.ino(), entry.metadata().unwrap().ino(), "{name} in {path}");
                todo.push(join(&path, &name));
                names.push(name);
            }
            if let Some(dir) = parent(&path) {
                let up = full.join("..").symlink_metadata().unwrap().ino();
                assert_eq!(up, root.join(dir).symlink_metadata().unwrap().ino(), "'..' of {path}");
            }
            What::Directory
        } else if kind.is_symlink() {
            What::Symlink { target: fs::read_link(&full).unwrap().into_os_string().into_string().unwrap() }
        } else if kind.is_block_device() {
            let device = metadata.rdev();
            What::Device { major: rustix::fs::major(device), minor: rustix::fs::minor(device) }
        } else if kind.is_fifo() {
            What::Fifo
        } else {
            What::File { size: metadata.size() }
        };
        group(&mut groups, metadata.ino(), &path);
        inos.insert(path.clone(), metadata.ino());
        let seen = Seen {
            what,
            mode: (metadata.mode() & 0o7777) as u16,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: Some((metadata.mtime(), metadata.mtime_nsec() as u32)),
            nlink: metadata.nlink(),
            group: String::new(),
            names,
        };
        found.insert(path, seen);
    }
    for (path, seen) in &mut found {
        seen.group.clone_from(&groups[&inos[path]]);
    }
    found
}

/// The members as an archive.
fn pack(members: &[Member], out: &Path) {
    let mut builder = tar::Builder::new(File::create(out).unwrap());
    for member in members {
        let mut header = tar::Header::new_gnu();
        let field = |field: &mut [u8], path: &str| {
            // With a slash at its end, a file would be a directory.
            let name = if path.is_empty() { ".".to_owned() } else { format!("./{path}") };
            field[..name.len()].copy_from_slice(name.as_bytes());
        };
        field(&mut header.as_gnu_mut().unwrap().name, &member.path);
        let mut contents = Vec::new();
        let kind = match &member.what {
            What::File { size } => {
                contents = vec![member.fill; *size as usize];
                tar::EntryType::Regular
            }
            What::Directory => tar::EntryType::Directory,
            What::Symlink { target } => {
                header.set_link_name_literal(target).unwrap();
                tar::EntryType::Symlink
            }
            What::HardLink { target } => {
                field(&mut header.as_gnu_mut().unwrap().linkname, target);
                tar::EntryType::Link
            }
            What::Device { major, minor } => {
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                tar::EntryType::Block
            }
            What::Fifo => tar::EntryType::Fifo,
        };
        header.set_entry_type(kind);
        header.set_size(contents.len() as u64);
        header.set_mode(member.mode.into());
        header.set_uid(member.uid.into());
        header.set_gid(member.gid.into());
        header.set_mtime(member.mtime.0 as u64);
        header.set_cksum();
        builder.append(&header, &contents[..]).unwrap();
    }
    builder.into_inner().unwrap();
}

#[test]
fn a_mount_is_the_model() {
    needs_fuse!();
    proptest!(config(15), |(members in members((0i64..4_000_000_000, Just(0u32)), 60))| {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("x.tar");
        pack(&members, &archive);
        let mut model = Model::new(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        members.iter().for_each(|member| model.put(member));
        model.finish();
        let mount = Mount::file(&archive, &[]);
        let status = mount.wait_end();
        prop_assert_eq!(status["refused"].as_u64(), Some(model.refused as u64), "{}", status);
        let expected = model.view();
        let seen = any_time(walk(&mount.point), &expected);
        prop_assert_eq!(seen, expected);
        mount.unmount();
    });
}
