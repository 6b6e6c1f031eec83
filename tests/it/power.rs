//! A machine that loses power while a spool is written: what its disk had not flushed is gone, in part or as a whole. What
//! is recovered is true, and what a durable point tells of is there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use restorefs::record::Record;
use restorefs::replay::{Records, Step};
use serde_json::Value;

use crate::support::compare::same_tree;
use crate::support::disk::Disk;
use crate::support::layer::{Layer, Loop};
use crate::support::mount::{Mount, RESTOREFS, restorefs};
use crate::support::pack::{compress, gnu_tar};
use crate::support::process::Group;
use crate::support::random::Random;
use crate::support::remains::{everything, true_to};
use crate::support::tree::{self, Features, bytes};
use crate::support::{needs_fuse, run};

/// A transfer takes that long, so that there are some durable points: these are 5 s apart.
const LASTS: Duration = Duration::from_secs(18);

const MIB: u64 = 1 << 20;

/// How a tree arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Plain,
    Zstd,
    Sender,
}

/// How the disk of the spool is made, and mounted.
#[derive(Clone, Copy, Debug)]
struct Kind {
    make: &'static [&'static str],
    mebibytes: u64,
    options: &'static str,
    direct: bool,
}

const EXT4: Kind =
    Kind { make: &["mkfs.ext4", "-q", "-E", "nodiscard"], mebibytes: 256, options: "noatime", direct: false };

/// Every one with every way, by and by.
const KINDS: &[Kind] = &[
    // What is behind the last sync of a file may be anything there.
    Kind { options: "data=writeback", ..EXT4 },
    Kind { direct: true, ..EXT4 },
    Kind { make: &["mkfs.xfs", "-q", "-K", "-s", "size=4096"], mebibytes: 400, options: "noatime", direct: false },
    Kind { make: &["mkfs.btrfs", "-q", "-K"], mebibytes: 400, options: "noatime", direct: true },
];

const WAYS: &[Way] = &[Way::Plain, Way::Sender, Way::Zstd];

/// What is left by a power failure.
struct Loss {
    image: PathBuf,
    /// What durable points that were over tell of.
    must: BTreeSet<PathBuf>,
    any: bool,
}

struct Fixture {
    dir: tempfile::TempDir,
    tree: PathBuf,
    archive: PathBuf,
}

impl Fixture {
    fn new(random: &mut Random) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        tree::make(&tree, Features::ALL);
        for directory in ["a", "m", "t"] {
            fs::create_dir(tree.join(directory)).unwrap();
            for n in 0..60 {
                let most = *random.of(&[100, 5000, 100_000, 100_000, 600_000]);
                fs::write(tree.join(directory).join(n.to_string()), bytes(random.next(), random.below(most))).unwrap();
            }
            fs::write(tree.join(directory).join("big"), bytes(random.next(), (3 << 20) + random.below(5000))).unwrap();
        }
        let archive = dir.path().join("x.tar");
        let xattrs = ["--format=pax", "--sparse", "--sort=name", "--xattrs", "--xattrs-include=*", "--acls"];
        gnu_tar(&tree, &archive, &xattrs);
        Fixture { dir, tree, archive }
    }
}

/// Losses at random moments of one transfer, and one after its end.
fn transfer(fixture: &Fixture, way: Way, kind: Kind, losses: usize, random: &mut Random) -> Vec<Loss> {
    let layer = Layer::new();
    let image = layer.path().join("image");
    File::create(&image).unwrap().set_len(kind.mebibytes * MIB).unwrap();
    let device = Loop::new(&image, kind.direct);
    run(Command::new(kind.make[0]).args(&kind.make[1..]).arg(&device.0));
    let point = fixture.dir.path().join("disk");
    let disk = Disk::of_device(&device.0, &point, kind.options);
    let spool = ["--spool", disk.path().to_str().unwrap(), "--keep-spool"];

    let mut moments: Vec<usize> = (1..losses).map(|_| random.below(1000)).collect();
    moments.sort_unstable();
    let mut found = Vec::new();
    let mut lose = |random: &mut Random, must: BTreeSet<PathBuf>| {
        let out = fixture.dir.path().join(format!("{}.img", found.len()));
        let percent = *random.of(&[0, 0, 50, 90]);
        let any = !must.is_empty();
        layer.lose_power("image", random, percent, &out);
        found.push(Loss { image: out, must, any });
    };
    let mount = match way {
        Way::Plain | Way::Zstd => {
            let archive =
                if way == Way::Zstd { compress(&fixture.archive, &["zstd", "-1"]) } else { fixture.archive.clone() };
            let (mount, mut stdin) = Mount::pipe(&spool);
            let archive = fs::read(archive).unwrap();
            let mut begin = 0;
            let begun = Instant::now();
            for end in (0..archive.len()).step_by(8192).skip(1).chain([archive.len()]) {
                stdin.write_all(&archive[begin..end]).unwrap();
                begin = end;
                let share = end as f64 / archive.len() as f64;
                while moments.first().is_some_and(|moment| *moment as f64 <= share * 1000.0) {
                    moments.remove(0);
                    lose(random, promised(disk.path()));
                }
                std::thread::sleep(LASTS.mul_f64(share).saturating_sub(begun.elapsed()));
            }
            drop(stdin);
            mount
        }
        Way::Sender => {
            let token = fixture.dir.path().join("token");
            let args = [&spool[..], &["--token-file", token.to_str().unwrap()]].concat();
            let (mount, address) = Mount::listen_for_sender_in_front(&args);
            let total: u64 = fs::metadata(&fixture.archive).unwrap().len();
            let rate = (total / LASTS.as_secs()).to_string();
            let mut sender = Group::start(
                Command::new(RESTOREFS)
                    .args(["send", "-C", fixture.tree.to_str().unwrap(), ".", "--no-compress"])
                    .args(["--to", &address.to_string(), "--rate-limit", &rate])
                    .arg("--token-file")
                    .arg(&token)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null()),
            );
            let begun = Instant::now();
            for moment in moments {
                std::thread::sleep((LASTS * moment as u32 / 1000).saturating_sub(begun.elapsed()));
                lose(random, promised(disk.path()));
            }
            assert_eq!(sender.wait().code(), Some(0));
            mount
        }
    };
    mount.wait_clean();
    // Whoever was told "complete" was told the truth.
    lose(random, everything(&fixture.tree));
    assert!(restorefs(&["umount"], &[&mount.point]).status.success());
    drop(mount);
    drop(disk);
    drop(device);
    found
}

/// What the journal tells of before its last durable point but one: since points are made one after the other, that one has
/// been made for certain.
fn promised(disk: &Path) -> BTreeSet<PathBuf> {
    let journal = spool_in(disk).join("journal");
    let file = File::open(journal).unwrap();
    let length = file.metadata().unwrap().len();
    let mut records = Records::new(Arc::new(file), length);
    let (mut paths, mut over, mut points) = (Vec::new(), Vec::new(), Vec::new());
    while let Step::Record { at, record, .. } = records.next_step().unwrap() {
        match record {
            Record::Entry(entry) => paths.push(entry.path),
            Record::Data { id, .. } | Record::End { id, complete: true, .. } => over.push((at, id)),
            Record::Durable { upto } => points.push(upto),
            _ => {}
        }
    }
    let upto = points.len().checked_sub(2).map_or(0, |n| points[n]);
    let path = |id: u64| PathBuf::from(OsStr::from_bytes(paths[id as usize].as_bytes()));
    over.into_iter().filter(|(at, _)| *at < upto).map(|(_, id)| path(id)).collect()
}

fn spool_in(disk: &Path) -> PathBuf {
    let mut found: Vec<PathBuf> = disk.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("restorefs-"));
    assert!(found.len() <= 1, "{found:?}");
    found.pop().unwrap_or_else(|| disk.join("nothing"))
}

/// As if the machine had been started again.
fn reboot(spool: &Path) -> bool {
    let path = spool.join("spool.json");
    let Ok(text) = fs::read(&path) else { return false };
    let Ok(mut about) = serde_json::from_slice::<Value>(&text) else { return false };
    about["boot"] = "another".into();
    fs::write(&path, serde_json::to_vec(&about).unwrap()).unwrap();
    true
}

/// Recovers what is left, compares it with the truth, and goes on to the end.
fn recover(fixture: &Fixture, way: Way, kind: Kind, loss: &Loss) {
    let point = fixture.dir.path().join("after");
    let disk = Disk::of_image(&loss.image, &point, kind.options);
    let spool = spool_in(disk.path());
    if !reboot(&spool) {
        assert!(!loss.any, "there is no spool any more");
        let output = restorefs(&["mount"], &[&spool, &fixture.tree]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        drop(disk);
        fs::remove_dir(&point).unwrap();
        eprintln!("  nothing");
        return;
    }
    let mut mount = match Mount::attempt(Stdio::null(), &[], |command| {
        command.arg(&spool);
    }) {
        Ok(mount) => mount,
        Err((code, text)) => {
            assert!(!loss.any && code == Some(1) && text.contains("the machine went down"), "{code:?}: {text}");
            eprintln!("  no entry");
            drop(disk);
            return fs::remove_dir(&point).unwrap();
        }
    };
    let status = mount.status();
    let remains = true_to(&fixture.tree, &mount.point, &loss.must, true);
    eprintln!("  {} durable: {remains:?}, {}", loss.must.len(), status["end"]["verdict"]);
    let over = status["end"]["verdict"] == "complete";
    assert!(restorefs(&["umount"], &[&mount.point]).status.success());
    assert_eq!(mount.wait_front(), Some(if over { 0 } else { 4 }), "{}", mount.printed());
    if over {
        assert_eq!((remains.cut, remains.absent), (0, 0));
    } else if way != Way::Sender {
        let mount = Mount::file(&fixture.archive, &["--resume", spool.to_str().unwrap()]);
        mount.wait_clean();
        same_tree(&fixture.tree, &mount.point);
        assert!(restorefs(&["umount"], &[&mount.point]).status.success());
    }
    drop(mount);
    drop(disk);
    fs::remove_dir(&point).unwrap();
    fs::remove_file(&loss.image).unwrap();
}

#[test]
fn what_a_power_failure_leaves_is_true() {
    needs_fuse!();
    if let Some(why) = Loop::unavailable() {
        eprintln!("SKIPPED what_a_power_failure_leaves_is_true: no loop devices: {why}");
        return;
    }
    let asked = std::env::var("RESTOREFS_POWER").ok();
    let asked = asked.as_deref().and_then(|asked| asked.split_once(':'));
    let (count, seed) = asked.map_or((8_usize, 1), |(count, seed)| (count.parse().unwrap(), seed.parse().unwrap()));
    let mut random = Random(seed);
    let mut done = 0;
    // Few for the short form: one way after the other, on ext4.
    let each = if count <= 10 { count.div_ceil(2) } else { 8 };
    for round in 0.. {
        if done >= count {
            break;
        }
        let (way, mut kind) = (WAYS[round % WAYS.len()], KINDS[round % KINDS.len()]);
        if Command::new(kind.make[0]).arg("-V").output().is_err() {
            eprintln!("there is no {}: ext4 in its place", kind.make[0]);
            kind = EXT4;
        }
        eprintln!("{way:?} on {}, {}{}", kind.make[0], kind.options, if kind.direct { ", direct" } else { "" });
        let fixture = Fixture::new(&mut random);
        let losses = transfer(&fixture, way, kind, each.min(count - done), &mut random);
        for loss in &losses {
            recover(&fixture, way, kind, loss);
        }
        done += losses.len();
    }
    eprintln!("{done} power failures");
}
