//! Odd but legal archives, made at random, against GNU tar and bsdtar: what both make of an archive, we make too; where
//! they differ, we make what one of them does, or the table in `allowed` gives the reason.
//!
//! A hundred archives here; `scripts/differential COUNT SEED` for more.

mod allowed;
mod archive;
mod compare;
mod extract;
mod generate;
mod names;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::hostile::{From, scratch};
use crate::support::needs_fuse;
use allowed::Allowed;
use archive::{Archive, End, Extension, Numbers};
use compare::{Difference, differences, same};
use extract::{Extracted, bsdtar, gnu_tar, mounted, own_umask, restorefs};

/// One in so many archives is mounted too.
const MOUNTED: u64 = 10;

/// What was found out about one archive.
#[derive(Default)]
struct Findings {
    /// Those that no row of the table explains.
    unexplained: Vec<Difference>,
    /// Rows that explain one.
    allowed: Vec<usize>,
    said: String,
}

fn examine(archive: &Archive, also_mounted: bool) -> Findings {
    let dir = scratch();
    let file = dir.path().join("x.tar");
    let bytes = archive.bytes();
    fs::write(&file, &bytes).unwrap();
    let at = |name: &str| dir.path().join(name);
    let gnu = gnu_tar(&file, &at("gnu"));
    let bsd = bsdtar(&file, &at("bsd"));
    let ours = restorefs(&bytes, From::File, &at("file"));
    let piped = restorefs(&bytes, From::Pipe, &at("pipe"));
    let mut findings = Findings::default();
    for difference in differences(archive, &gnu, &bsd, &ours) {
        match allowed::TABLE.iter().position(|row| (row.applies)(archive, &difference)) {
            Some(row) => findings.allowed.push(row),
            None => findings.unexplained.push(difference),
        }
    }
    let mut others = vec![piped];
    if also_mounted {
        others.extend(mounted(&file, &bytes));
    }
    // Between our own there is nothing to explain.
    for other in &others {
        findings.unexplained.extend(same(archive, &ours, other));
    }
    let told = |name: &str, e: &Extracted| {
        // GNU tar tells of every time that is not near; bsdtar of every block that it passes over.
        let dull = ["time stamp", "Ignoring unknown extended header", "Retrying", "Damaged tar archive"];
        let lines = e.said.lines().filter(|line| !dull.iter().any(|dull| line.contains(dull))).take(8);
        format!("{name} exits with {}: {}\n", e.exit, lines.collect::<Vec<_>>().join("\n  "))
    };
    findings.said = told("GNU tar", &gnu) + &told("bsdtar", &bsd) + &told("restorefs", &ours);
    findings
}

/// The smallest archive that still shows the same kind of difference.
fn shrink(archive: &Archive, class: &str, also_mounted: bool) -> Archive {
    let mut smallest = archive.clone();
    let mut tries = 0;
    loop {
        let before = smallest.clone();
        for smaller in simpler(&smallest) {
            tries += 1;
            let shows = smaller != smallest
                && examine(&smaller, also_mounted).unexplained.iter().any(|difference| difference.class() == class);
            if shows {
                smallest = smaller;
                break;
            }
        }
        if smallest == before || tries > 400 {
            return smallest;
        }
    }
}

/// The same archive with one thing less.
fn simpler(archive: &Archive) -> Vec<Archive> {
    let mut all = Vec::new();
    let mut edit = |change: &dyn Fn(&mut Archive)| {
        let mut copy = archive.clone();
        change(&mut copy);
        if copy != *archive {
            all.push(copy);
        }
    };
    for i in 0..archive.members.len() {
        edit(&|a| drop(a.members.remove(i)));
    }
    edit(&|a| a.end = End(2));
    for (i, member) in archive.members.iter().enumerate() {
        for (j, extension) in member.before.iter().enumerate() {
            if !matches!(extension, Extension::Pax(records) if records.iter().any(|r| r.0.starts_with("GNU."))) {
                edit(&|a| drop(a.members[i].before.remove(j)));
            }
            if let Extension::Pax(records) | Extension::Global(records) = extension {
                // Of a sparse map no part can be left out.
                for k in (0..records.len()).filter(|k| !records[*k].0.starts_with("GNU.")) {
                    edit(&|a| {
                        if let Extension::Pax(records) | Extension::Global(records) = &mut a.members[i].before[j] {
                            records.remove(k);
                        }
                    });
                }
            }
        }
        let usual = archive::Member::default();
        edit(&|a| a.members[i].numbers = Numbers::Octal);
        edit(&|a| a.members[i].signed = false);
        edit(&|a| a.members[i].owner = None);
        edit(&|a| a.members[i].mode = usual.mode);
        edit(&|a| a.members[i].mtime = usual.mtime);
        edit(&|a| (a.members[i].uid, a.members[i].gid) = (0, 0));
        let plain = member.map.is_none() && member.pax("GNU.sparse.size").is_none() && member.payload.front.is_empty();
        if plain && member.payload.len > 1 && member.size == member.payload.len() {
            edit(&|a| (a.members[i].payload.len, a.members[i].size) = (0, 0));
            edit(&|a| (a.members[i].payload.len, a.members[i].size) = (1, 1));
        }
        edit(&|a| {
            let member = &mut a.members[i];
            if member.prefix.is_empty() && member.map.is_none() {
                member.dialect = archive::Dialect::Ustar;
            }
        });
    }
    all
}

/// What a run came to.
#[derive(Default)]
struct Sum {
    failed: Vec<u64>,
    allowed: BTreeMap<usize, u64>,
    classes: BTreeMap<String, u64>,
}

/// Examines the archives of `count` seeds; keeps those that fail.
fn run(first: u64, count: u64, kept: &Path) -> Sum {
    let next = AtomicU64::new(first);
    let sum = Mutex::new(Sum::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                own_umask();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    check(seed, kept, &sum);
                }
            });
        }
    });
    sum.into_inner()
}

fn check(seed: u64, kept: &Path, sum: &Mutex<Sum>) {
    let archive = generate::archive(seed);
    let also_mounted = seed.is_multiple_of(MOUNTED);
    let findings = examine(&archive, also_mounted);
    let mut new = Vec::new();
    {
        let mut sum = sum.lock();
        for row in &findings.allowed {
            *sum.allowed.entry(*row).or_default() += 1;
        }
        for difference in &findings.unexplained {
            let count = sum.classes.entry(difference.class()).or_default();
            *count += 1;
            if *count <= 3 && !new.contains(&difference.class()) {
                new.push(difference.class());
            }
        }
        if findings.unexplained.is_empty() {
            return;
        }
        sum.failed.push(seed);
    }
    fs::create_dir_all(kept).unwrap();
    fs::write(kept.join(format!("{seed}.tar")), archive.bytes()).unwrap();
    let mut text = format!("seed {seed}:\n{}", describe(&archive, &findings));
    for class in new {
        let small = shrink(&archive, &class, also_mounted);
        fs::write(kept.join(format!("{seed} {class}.tar")), small.bytes()).unwrap();
        let _ =
            write!(text, "\nthe same, smaller, for '{class}':\n{}", describe(&small, &examine(&small, also_mounted)));
    }
    fs::write(kept.join(format!("{seed}.txt")), &text).unwrap();
    eprintln!("{text}\nkept in {}; to repeat it: scripts/differential 1 {seed}\n", kept.display());
}

fn describe(archive: &Archive, findings: &Findings) -> String {
    let mut text = String::new();
    for member in &archive.members {
        let _ = writeln!(text, "  {member:?}");
    }
    let _ = writeln!(text, "  {:?}", archive.end);
    for difference in &findings.unexplained {
        let _ = writeln!(text, "* {difference:?}");
    }
    text + &findings.said
}

#[test]
fn what_both_tools_make_of_an_archive_we_make_too() {
    needs_fuse!();
    // COUNT:SEED, of the script.
    let asked = std::env::var("RESTOREFS_DIFFERENTIAL").ok();
    let (count, first) = asked.as_deref().map_or((100, 1), |asked| {
        let (count, seed) = asked.split_once(':').unwrap();
        (count.parse().unwrap(), seed.parse().unwrap())
    });
    let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("differential");
    let _ = fs::remove_dir_all(&kept);
    let sum = run(first, count, &kept);
    if asked.is_some() {
        for (row, count) in &sum.allowed {
            let Allowed { what, reason, .. } = &allowed::TABLE[*row];
            eprintln!("{count:6} times, {what}: {reason}");
        }
        eprintln!("{count} archives from the seed {first} on: {} failed", sum.failed.len());
    }
    assert!(sum.failed.is_empty(), "seeds {:?} of {first} to {}, {:?}", sum.failed, first + count - 1, sum.classes);
}

#[test]
fn every_allowed_difference_is_there() {
    needs_fuse!();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            own_umask();
            for (i, row) in allowed::TABLE.iter().enumerate() {
                let findings = examine(&(row.example)(), false);
                assert!(findings.unexplained.is_empty(), "{}: {:?}", row.what, findings.unexplained);
                assert!(findings.allowed.contains(&i), "{}:\n{}", row.what, findings.said);
            }
        });
    });
}
