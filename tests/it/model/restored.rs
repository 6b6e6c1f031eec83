//! Random archives restored while they arrive, through the library and without a mount: the restore starts at a random
//! moment, and the rest arrives in random pieces. The tree on disk is compared with the reference model, and with what GNU
//! tar extracts.
//!
//! RESTOREFS_CASES sets how many archives each test tries.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use restorefs::entry::Timestamp;
use restorefs::index::Index;
use restorefs::ingest::{self, Job};
use restorefs::materialize::{self, Options, Origin, Overwrite, Progress, Report, Selection, Summary};
use restorefs::monitor::Monitor;
use restorefs::record::{self, Record};
use restorefs::replay::Contents;
use restorefs::source::{Source, Spec};
use restorefs::spool::{self, Spool};
use restorefs::stop::Stop;
use restorefs::store::Store;
use restorefs::store::give_back::Following;
use restorefs::tarball;
use tempfile::TempDir;

use super::reference::{Member, Model, View, What};
use super::{config, pack, path, walk};
use crate::support::mount::{Mount, RESTOREFS};
use crate::support::process::Group;
use crate::support::{needs_fuse, sequence, shell};

/// Files of this size have a blob of their own.
const LARGE: u64 = spool::BLOB_THRESHOLD + 5;

/// How an archive arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Each file is followed by its contents.
    Stream,
    /// Names first, contents in any order, by this seed.
    Catalogue(u64),
    /// In place: all of it is there.
    Archive,
}

/// When the restore starts, and how the rest arrives, in thousandths of what there is.
#[derive(Clone, Debug)]
struct Arrival {
    kind: Kind,
    start: u64,
    steps: Vec<u64>,
    /// Whether the daemon says that names have been replaced, where it could also not have noticed yet.
    replaced: bool,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![5 => Just(Kind::Stream), 3 => any::<u64>().prop_map(Kind::Catalogue), 1 => Just(Kind::Archive)]
}

fn arrival() -> impl Strategy<Value = Arrival> {
    (kind(), 0u64..=1000, prop::collection::vec(0u64..=1000, 0..6), any::<bool>()).prop_map(
        |(kind, start, mut steps, replaced)| {
            steps.sort_unstable();
            Arrival { kind, start, steps, replaced }
        },
    )
}

/// Few names, few times, and contents that nothing but reading tells apart.
fn members(symlinks: &'static [&'static str], len: usize) -> impl Strategy<Value = Vec<Member>> {
    let what = prop_oneof![
        60 => (0u64..3).prop_map(|size| What::File { size }),
        3 => Just(What::File { size: LARGE }),
        30 => Just(What::Directory),
        15 => prop::sample::select(symlinks).prop_map(|to| What::Symlink { target: to.into() }),
        70 => path().prop_map(|target| What::HardLink { target }),
        6 => (0u32..500, 0u32..70_000).prop_map(|(major, minor)| What::Device { major, minor }),
        10 => Just(What::Fifo),
    ];
    let mtime = prop::sample::select(vec![(1000, 0), (2000, 0)]);
    let owner = prop::sample::select(vec![7u32, 8]);
    let member = (path(), what, prop::sample::select(vec![0o644u16, 0o4711]), owner.clone(), owner, mtime, any::<u8>())
        .prop_map(|(path, what, mode, uid, gid, mtime, fill)| Member { path, what, mode, uid, gid, mtime, fill });
    prop::collection::vec(member, 0..len)
}

fn overwrite() -> impl Strategy<Value = Overwrite> {
    prop::sample::select(vec![Overwrite::Never, Overwrite::IfNewer, Overwrite::IfChanged, Overwrite::Always])
}

fn cases(few: u32) -> u32 {
    std::env::var("RESTOREFS_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(few)
}

/// An archive as the daemon keeps it.
struct Kept {
    scratch: TempDir,
    _store: Arc<Store>,
    /// Who restores from it is there from the beginning.
    _following: Following,
    journal: PathBuf,
    blobs: PathBuf,
}

impl Kept {
    fn new(members: &[Member], kind: Kind) -> Kept {
        let scratch = scratch();
        let archive = scratch.path().join("x.tar");
        pack(members, &archive);
        let (read, write) = std::io::pipe().unwrap();
        let source = Source::open(&Spec::Path(format!("/proc/self/fd/{}", read.as_raw_fd()).into())).unwrap();
        let monitor = Monitor::new();
        let store = Arc::new(Store::new(Index::new(0, 0, Timestamp::default())));
        let config = spool::Config {
            directory: scratch.path().into(),
            limit: None,
            keep: false,
            source: String::new(),
            ..spool::Config::default()
        };
        store.set_spool(Spool::create(&config, monitor.clone()).unwrap());
        let following = store.follow();
        let (stop, options) = (Stop::new().unwrap(), tarball::Options::default());
        std::thread::scope(|scope| {
            let archive = &archive;
            scope.spawn(move || std::io::copy(&mut File::open(archive).unwrap(), &mut { write }).unwrap());
            ingest::run(Job {
                source,
                store: store.clone(),
                monitor,
                stop,
                options,
                max_index: u64::MAX,
                resume: None,
            });
        });
        let spool = store.spool().unwrap().path();
        let (mut journal, blobs) = (spool.join("journal"), spool.join("blobs"));
        if let Kind::Catalogue(seed) = kind {
            let shuffled = catalogue(&fs::read(&journal).unwrap(), seed);
            journal = scratch.path().join("catalogue");
            fs::write(&journal, shuffled).unwrap();
        }
        Kept { scratch, _store: store, _following: following, journal, blobs }
    }

    fn archive(&self) -> PathBuf {
        self.scratch.path().join("x.tar")
    }

    /// What the daemon hands over, and tells from then on.
    fn origin(&self, arrival: &Arrival) -> Origin {
        if arrival.kind == Kind::Archive {
            let replaced = true;
            let all = Progress { journal: 0, over: true, replaced, changed: false, spooled: 0, broken_off: false };
            let contents = Contents::archive(File::open(self.archive()).unwrap().into()).unwrap();
            return Origin {
                contents,
                concatenated: false,
                made: Timestamp::default(),
                more: Box::new(move |_, _| Ok(all)),
            };
        }
        let journal = File::open(&self.journal).unwrap();
        let length = journal.metadata().unwrap().len();
        let contents = Contents::spool(journal.into(), File::open(&self.blobs).unwrap().into(), 0).unwrap();
        let at = |step: u64| length * step / 1000;
        let mut lengths: Vec<u64> = std::iter::once(arrival.start)
            .chain(arrival.steps.iter().copied().filter(|&s| s >= arrival.start))
            .map(at)
            .collect();
        lengths.reverse();
        let mut now = lengths.pop().unwrap();
        let replaced = arrival.replaced;
        let more = move |known: Option<u64>, _| {
            while let Some(known) = known
                && now <= known
                && now < length
            {
                now = lengths.pop().unwrap_or(length);
            }
            let over = now == length;
            Ok(Progress {
                journal: now,
                over,
                replaced: replaced || over,
                changed: false,
                spooled: now,
                broken_off: false,
            })
        };
        Origin { contents, concatenated: false, made: Timestamp::default(), more: Box::new(more) }
    }
}

/// The same journal as a native sender's: what belongs to an entry comes at any time behind it.
fn catalogue(journal: &[u8], seed: u64) -> Vec<u8> {
    let random = sequence(seed);
    type Frames = Vec<Vec<u8>>;
    let (mut entries, mut waiting): (Vec<Frames>, Vec<Frames>) = (Vec::new(), Vec::new());
    let mut out = Vec::new();
    let mut rest = journal;
    let mut finish = Vec::new();
    while let Ok((record, _, length)) = record::decode::<Record>(rest) {
        let frame = rest[..length].to_vec();
        rest = &rest[length..];
        match record {
            Record::Begin { .. } => {
                out.extend(frame);
                record::encode(&Record::Catalogue, b"", &mut out);
            }
            Record::Finish { .. } => finish = frame,
            Record::Entry(_) => entries.push(vec![frame]),
            _ => entries.last_mut().unwrap().push(frame),
        }
    }
    entries.reverse();
    while !entries.is_empty() || !waiting.is_empty() {
        if !random().is_multiple_of(3)
            && let Some(entry) = entries.pop()
        {
            out.extend(&entry[0]);
            waiting.push(entry[1..].to_vec());
        } else if !waiting.is_empty() {
            let which = random() as usize % waiting.len();
            out.extend(waiting.swap_remove(which).concat());
        }
    }
    out.extend(finish);
    out
}

/// In memory where that can be.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

fn options(target: &Path) -> Options {
    Options {
        target: target.into(),
        selection: Selection::default(),
        overwrite: Overwrite::IfChanged,
        strip: 0,
        by_name: false,
        sync: false,
        follow: true,
        dry_run: None,
        verify: true,
        tar: tarball::Options::default(),
    }
}

fn restore(kept: &Kept, arrival: &Arrival, options: &Options) -> Summary {
    let report = Arc::new(Report::default());
    materialize::run(options, kept.origin(arrival), &report).unwrap();
    report.summary()
}

fn model_of(members: &[Member]) -> Model {
    let mut model = Model::new(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    members.iter().for_each(|member| model.put(member));
    model.finish();
    model
}

fn whole(model: &Model) -> BTreeMap<String, usize> {
    model.selected(|_| true)
}

/// Compares a directory with what these names are to mean. `root`: whether it is the root of the archive itself.
fn same(dest: &Path, model: &Model, names: &BTreeMap<String, usize>, root: bool) -> Result<(), TestCaseError> {
    let mut expected = model.view_of(names);
    let mut seen = walk(dest);
    for path in expected.keys().cloned().collect::<Vec<_>>() {
        let (Some(e), Some(s)) = (expected.get_mut(&path), seen.get_mut(&path)) else { continue };
        s.names.sort();
        if e.mtime.is_none() {
            s.mtime = None;
        }
        if matches!(e.what, What::Symlink { .. }) {
            s.mode = e.mode;
        }
        if path.is_empty() && (!root || e.mtime.is_none()) {
            (s.mode, s.uid, s.gid, s.mtime) = (e.mode, e.uid, e.gid, e.mtime);
        }
    }
    prop_assert_eq!(&seen, &expected);
    contents(dest, model, names, &seen)
}

fn contents(dest: &Path, model: &Model, names: &BTreeMap<String, usize>, seen: &View) -> Result<(), TestCaseError> {
    for (path, seen) in seen {
        if let What::File { size } = seen.what {
            let fill = model.member(names[path]).fill;
            prop_assert!(fs::read(dest.join(path)).unwrap() == vec![fill; size as usize], "contents of '{}'", path);
        }
    }
    Ok(())
}

const SYMLINKS: &[&str] = &["a", "../b", "/", "c/a"];

#[test]
fn what_arrives_is_restored_whenever_it_starts() {
    needs_fuse!();
    proptest!(config(cases(250)), |(
        members in members(SYMLINKS, 30), arrival in arrival(), overwrite in overwrite()
    )| {
        let kept = Kept::new(&members, arrival.kind);
        let model = model_of(&members);
        let dest = kept.scratch.path().join("dest");
        let summary = restore(&kept, &arrival, &Options { overwrite, ..options(&dest) });
        same(&dest, &model, &whole(&model), true)?;
        prop_assert_eq!((summary.left_out, summary.kept), (0, 0), "{:?}", summary);
    });
}

/// Paths, patterns to include and to exclude. Each pattern is a name.
type Selected = (Vec<&'static str>, Vec<&'static str>, Vec<&'static str>);

fn selected() -> impl Strategy<Value = Selected> {
    prop::sample::select(vec![
        (vec!["a"], vec![], vec![]),
        (vec!["b/c", "c/a/b"], vec![], vec![]),
        (vec![], vec!["c"], vec![]),
        (vec![], vec!["a", "b"], vec!["c"]),
        (vec!["a", "b"], vec!["c"], vec![]),
        (vec![], vec![], vec!["b"]),
    ])
}

#[test]
fn a_part_of_it_is_that_part_of_the_whole() {
    needs_fuse!();
    proptest!(config(cases(150)), |(
        members in members(SYMLINKS, 30), arrival in arrival(), overwrite in overwrite(), selected in selected()
    )| {
        let kept = Kept::new(&members, arrival.kind);
        let model = model_of(&members);
        let dest = kept.scratch.path().join("dest");
        let (paths, include, exclude) = &selected;
        let strings = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>();
        let bytes: Vec<Vec<u8>> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        let selection = Selection::new(&bytes, &strings(include), &strings(exclude), None).unwrap();
        let summary = restore(&kept, &arrival, &Options { overwrite, selection, ..options(&dest) });
        let below = |path: &str, dir: &str| path == dir || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        let named = |path: &str| paths.is_empty() || paths.iter().any(|dir| below(path, dir));
        let matches = |path: &str, list: &[&str]| path.split('/').any(|name| list.contains(&name));
        let included = |path: &str| include.is_empty() || matches(path, include);
        let names = model.selected(|path| named(path) && included(path) && !matches(path, exclude));
        same(&dest, &model, &names, paths.is_empty() && include.is_empty())?;
        let mut missed: Vec<_> = summary.problems.iter().map(|p| (&*p.path, &*p.reason)).collect();
        missed.sort_unstable();
        let in_vain = paths.iter().filter(|dir| !model.paths().any(|path| below(path, dir)));
        prop_assert_eq!(missed, in_vain.map(|&dir| (dir, "there is no such entry")).collect::<Vec<_>>());
        let in_vain = include.iter().filter(|&&name| !model.paths().any(|path| named(path) && matches(path, &[name])));
        let sentences: Vec<_> = in_vain.map(|name| format!("'--include {name}' matched nothing")).collect();
        prop_assert_eq!(summary.unmatched, sentences);
    });
}

#[test]
fn shortened_paths_are_restored_whenever_it_starts() {
    needs_fuse!();
    proptest!(config(cases(150)), |(
        members in members(SYMLINKS, 30), arrival in arrival(), overwrite in overwrite(), strip in 1usize..3
    )| {
        let kept = Kept::new(&members, arrival.kind);
        let model = model_of(&members);
        let dest = kept.scratch.path().join("dest");
        let summary = restore(&kept, &arrival, &Options { overwrite, strip, ..options(&dest) });
        let (names, refused) = model.stripped(strip, |_| true);
        same(&dest, &model, &names, false)?;
        // What had its place refused may have got it later.
        prop_assert!(summary.left_out <= refused as u64, "{} refused: {:?}", refused, summary);
        prop_assert!(summary.problems.iter().all(|p| p.reason.starts_with("without its first components")));
    });
}

/// Everything in a directory, with which inode it is.
fn inodes(dest: &Path) -> BTreeMap<String, (u64, What)> {
    let inode = |path: &str| dest.join(path).symlink_metadata().unwrap().ino();
    walk(dest).into_iter().map(|(path, seen)| (path.clone(), (inode(&path), seen.what))).collect()
}

#[test]
fn a_run_that_was_stopped_is_finished_by_another() {
    needs_fuse!();
    proptest!(config(cases(250)), |(
        members in members(SYMLINKS, 30), first in 0u64..1000, arrival in arrival(), overwrite in overwrite()
    )| {
        let kept = Kept::new(&members, arrival.kind);
        let model = model_of(&members);
        let dest = kept.scratch.path().join("dest");
        let stopped = Arrival { start: first, steps: Vec::new(), ..arrival.clone() };
        restore(&kept, &stopped, &Options { follow: false, ..options(&dest) });
        let before = inodes(&dest);
        // A directory never takes the place of what is in the target already: that is named, and tested elsewhere.
        let in_the_way = |path: &str| {
            let is_directory = model.get(path).is_some_and(|member| member.what == What::Directory);
            is_directory && before.get(path).is_some_and(|(_, what)| *what != What::Directory)
        };
        if model.paths().any(in_the_way) {
            return Ok(());
        }
        let changes = matches!(overwrite, Overwrite::IfChanged | Overwrite::Always);
        let summary = restore(&kept, &arrival, &Options { overwrite, verify: changes, ..options(&dest) });
        if changes {
            same(&dest, &model, &whole(&model), true)?;
            prop_assert_eq!((summary.left_out, summary.kept), (0, 0), "{:?}", summary);
        } else {
            let after = inodes(&dest);
            for (path, (inode, what)) in &after {
                match before.get(path) {
                    Some((there, _)) if overwrite == Overwrite::Never => prop_assert_eq!(inode, there, "'{}'", path),
                    Some(_) => {}
                    None => {
                        let member = model.get(path).unwrap();
                        prop_assert_eq!(what, &member.what, "'{}'", path);
                        if let What::File { size } = member.what {
                            prop_assert!(fs::read(dest.join(path)).unwrap() == vec![member.fill; size as usize]);
                        }
                    }
                }
            }
        }
    });
}

/// What GNU tar makes of an archive in another way, and why that is no fault of either. Such members are left out before
/// the two are compared.
fn gnu_differs(model: &Model, member: &Member) -> Option<&'static str> {
    let through_link = |path: &str| {
        path.match_indices('/')
            .any(|(at, _)| model.get(&path[..at]).is_some_and(|m| matches!(m.what, What::Symlink { .. })))
    };
    if let What::HardLink { target } = &member.what {
        match model.get(target) {
            None => return Some("it takes members in order, and fails for a link before its target"),
            Some(m) if m.what == What::Directory => return Some("it removes what has the name before it fails"),
            Some(_) if through_link(target) => return Some("it follows symbolic links of the archive"),
            Some(_) => {}
        }
    }
    if through_link(&member.path) {
        return Some("it follows symbolic links of the archive");
    }
    None
}

#[test]
fn what_arrives_is_what_gnu_tar_extracts() {
    needs_fuse!();
    // Links that lead up or to the root are made late by GNU tar; that is for another test.
    let symlinks = &["none", "no/such"];
    proptest!(config(cases(100)), |(members in members(symlinks, 40), arrival in arrival())| {
        let mut model = model_of(&[]);
        let mut taken = Vec::new();
        for member in members {
            if gnu_differs(&model, &member).is_none() {
                model.put(&member);
                taken.push(member);
            }
        }
        model.finish();
        let kept = Kept::new(&taken, arrival.kind);
        let (dest, extracted) = (kept.scratch.path().join("dest"), kept.scratch.path().join("extracted"));
        restore(&kept, &arrival, &options(&dest));
        fs::create_dir(&extracted).unwrap();
        // It fails where it refuses a member, as we do.
        let output = Command::new("tar").args(["-xpf"]).arg(kept.archive()).arg("-C").arg(&extracted).output().unwrap();
        let names = whole(&model);
        same(&dest, &model, &names, true)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        // It sets the time of a directory when it comes to something outside of it, and not again when more comes.
        for (path, _) in walk(&extracted).iter().filter(|(_, seen)| seen.what == What::Directory) {
            let time = model.get(path).map_or(0, |member| member.mtime.0);
            shell(&extracted, &format!("touch -d @{time} './{path}'"));
        }
        let same = same(&extracted, &model, &names, true);
        prop_assert!(same.is_ok(), "{:?}\n{}", same, error);
    });
}

#[test]
fn a_mount_is_restored_whenever_it_starts() {
    needs_fuse!();
    proptest!(config(cases(12)), |(members in members(SYMLINKS, 40), cuts in prop::collection::vec(0u64..=1000, 1..5))| {
        let model = model_of(&members);
        let scratch = scratch();
        let (archive, dest) = (scratch.path().join("x.tar"), scratch.path().join("dest"));
        pack(&members, &archive);
        let bytes = fs::read(&archive).unwrap();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| bytes.len() * *cut as usize / 1000).collect();
        cuts.sort_unstable();
        let (mount, mut stdin) = Mount::pipe(&[]);
        stdin.write_all(&bytes[..cuts[0]]).unwrap();
        let came = |at: usize| move |status: &serde_json::Value| status["source_bytes"].as_u64() >= Some(at as u64);
        mount.wait_status("it has come so far", came(cuts[0]));
        let command = |args: &[&str]| {
            let mut command = Command::new(RESTOREFS);
            command.args(["materialize", "--no-sync", "--verify"]).args(args).args([&mount.point, &dest]);
            command
        };
        let mut running = Group::start(command(&[]).stdin(Stdio::null()).stderr(Stdio::piped()));
        for (from, to) in cuts.iter().zip(cuts[1..].iter().chain([&bytes.len()])) {
            stdin.write_all(&bytes[*from..*to]).unwrap();
            mount.wait_status("it has come so far", came(*to));
        }
        drop(stdin);
        let status = running.wait();
        let mut text = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        // 3 where the mount has refused something.
        let refused = if model.refused > 0 { Some(3) } else { Some(0) };
        prop_assert_eq!(status.code(), refused, "{}", text);
        prop_assert!(!text.contains("could not be restored"), "{}", text);
        same(&dest, &model, &whole(&model), true)?;
        mount.unmount();
    });
}
