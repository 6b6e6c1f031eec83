//! Each operation under the spool fails once, one after the other: nothing wrong is shown, the end is named, and what is
//! left can be recovered and filled to the end.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use tempfile::TempDir;

use crate::support::compare::same_tree;
use crate::support::layer::{Fault, Layer, Op};
use crate::support::mount::{Mount, RESTOREFS, restorefs};
use crate::support::needs_fuse;
use crate::support::pack::gnu_tar;
use crate::support::process::Group;
use crate::support::remains::{everything, true_to};
use crate::support::tree::bytes;

struct Fixture {
    layer: Layer,
    tree: PathBuf,
    archive: PathBuf,
    /// As far as into the second large file.
    cut: PathBuf,
    runs: std::cell::Cell<u32>,
    dir: TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("dir")).unwrap();
        for (n, (name, len)) in [
            ("a small", 600),
            ("b large", 300_000),
            ("dir/c empty", 0),
            ("dir/d page", 5000),
            ("e large", 400_000),
            ("g", 9),
        ]
        .into_iter()
        .enumerate()
        {
            fs::write(tree.join(name), bytes(n as u64, len)).unwrap();
        }
        let sparse = File::create(tree.join("f sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        sparse.write_all_at(&bytes(9, 150_000), 500_000 / 4096 * 4096).unwrap();
        fs::hard_link(tree.join("b large"), tree.join("h link")).unwrap();
        symlink("b large", tree.join("i link")).unwrap();
        let archive = dir.path().join("x.tar");
        gnu_tar(&tree, &archive, &["--format=pax", "--sparse", "--sort=name"]);
        let cut = dir.path().join("cut.tar");
        // Behind the first 200 KiB of it.
        let whole = fs::read(&archive).unwrap();
        let large = fs::read(tree.join("e large")).unwrap();
        let at = whole.windows(64).position(|bytes| bytes == &large[..64]).unwrap();
        fs::write(&cut, &whole[..at + 200_000]).unwrap();
        Fixture { layer: Layer::new(), tree, archive, cut, runs: 0.into(), dir }
    }

    /// A place for a spool.
    fn place(&self) -> PathBuf {
        self.layer.arm(None);
        let place = self.layer.path().join(self.runs.get().to_string());
        self.runs.set(self.runs.get() + 1);
        fs::create_dir(&place).unwrap();
        place
    }

    fn fill(&self, place: &Path, archive: &Path) -> Result<Mount, (Option<i32>, String)> {
        let args = ["--spool", place.to_str().unwrap(), "--keep-spool"];
        // What comes from a file would not be spooled.
        let mut cat = Group::start(Command::new("cat").arg(archive).stdout(Stdio::piped()));
        Mount::attempt(cat.0.stdout.take().unwrap().into(), &args, |command| {
            command.arg("-");
        })
    }

    /// From a native sender.
    fn receive(&self, place: &Path) -> Result<Mount, (Option<i32>, String)> {
        let token = self.dir.path().join("token");
        let token = token.to_str().unwrap();
        Mount::attempt_to_receive(
            &["--spool", place.to_str().unwrap(), "--keep-spool", "--token-file", token],
            |address| {
                let mut command = Command::new(RESTOREFS);
                command.args(["send", "-C", self.tree.to_str().unwrap(), ".", "--to", address, "--token-file", token]);
                Group::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
            },
        )
    }

    /// Looks at what came of it, and unmounts: whether it is complete.
    #[track_caller]
    fn look(&self, mut mount: Mount) -> bool {
        let status = mount.status();
        let complete = status["end"]["verdict"] == "complete" && status["refused"] == 0;
        let must = if complete { everything(&self.tree) } else { BTreeSet::new() };
        true_to(&self.tree, &mount.point, &must, complete);
        let output = restorefs(&["umount"], &[&mount.point]);
        assert!(output.status.success(), "{output:?}");
        let code = mount.wait_front();
        assert!(matches!(code, Some(0 | 1 | 3 | 4)) && complete == (code == Some(0)), "{code:?}: {}", mount.printed());
        assert!(!mount.printed().contains("panic"), "{}", mount.printed());
        complete
    }

    /// Whether it is complete, where nothing fails any more.
    #[track_caller]
    fn recover(&self, place: &Path) -> bool {
        let Some(spool) = spool_in(place) else { return false };
        let mount = Mount::attempt(Stdio::null(), &[], |command| {
            command.arg(&spool);
        });
        match mount {
            Ok(mount) => self.look(mount),
            Err((code, text)) => {
                assert!(
                    code == Some(1) && text.starts_with("restorefs: ") && !text.contains("panic"),
                    "{code:?}: {text}"
                );
                false
            }
        }
    }

    #[track_caller]
    fn resume(&self, place: &Path) -> Result<bool, String> {
        let Some(spool) = spool_in(place) else { return Err("there is no spool".into()) };
        let mount = Mount::attempt(Stdio::null(), &["--resume", spool.to_str().unwrap(), "--keep-spool"], |command| {
            command.arg(&self.archive);
        });
        match mount {
            Ok(mount) => {
                let status = mount.status();
                if status["end"]["verdict"] == "complete" && status["refused"] == 0 {
                    // A reader may be told of an error.
                    self.layer.disarm();
                    same_tree(&self.tree, &mount.point);
                }
                Ok(self.look(mount))
            }
            Err((code, text)) => {
                assert!(
                    code == Some(1) && text.starts_with("restorefs: ") && !text.contains("panic"),
                    "{code:?}: {text}"
                );
                Err(text)
            }
        }
    }
}

fn spool_in(place: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = place.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(found.len() <= 1, "{found:?}");
    found.pop()
}

/// What fails, and how.
fn faults(op: Op) -> &'static [Errno] {
    match op {
        Op::Open | Op::Truncate | Op::Remove => &[Errno::IO],
        Op::Write | Op::Sync | Op::Create => &[Errno::IO, Errno::NOSPC],
    }
}

#[test]
fn whatever_fails_while_a_stream_arrives() {
    needs_fuse!();
    fails_once(&Fixture::new(), |fixture, place| fixture.fill(place, &fixture.archive));
}

#[test]
fn whatever_fails_while_a_sender_sends() {
    needs_fuse!();
    fails_once(&Fixture::new(), Fixture::receive);
}

/// Fails every operation of a transfer once, as far as one without a fault goes.
fn fails_once(fixture: &Fixture, transfer: impl Fn(&Fixture, &Path) -> Result<Mount, (Option<i32>, String)>) {
    // How much can fail.
    let place = fixture.place();
    fixture.layer.arm(None);
    assert!(fixture.look(transfer(fixture, &place).unwrap()));
    let counts = Op::ALL.map(|op| fixture.layer.count(op));
    assert!(fixture.recover(&place));
    let mut runs = 0;
    for (op, count) in Op::ALL.into_iter().zip(counts) {
        for errno in faults(op) {
            for nth in 0..count {
                let place = fixture.place();
                eprintln!("{op:?} {nth} of {count}: {errno}");
                fixture.layer.arm(Some(Fault { op, nth, errno: errno.raw_os_error() }));
                let filled = transfer(fixture, &place);
                let failed = fixture.layer.count(op) > nth;
                fixture.layer.disarm();
                let mut said = false;
                let complete = match filled {
                    Ok(mount) => {
                        said = mount.printed().contains("would not outlive a power failure");
                        fixture.look(mount)
                    }
                    Err((code, text)) => {
                        assert!(failed && code == Some(1) && text.starts_with("restorefs: "), "{code:?}: {text}");
                        false
                    }
                };
                let recovered = fixture.recover(&place);
                let resumed = fixture.resume(&place);
                eprintln!("    complete {complete}, recovered {recovered}, resumed {resumed:?}");
                // Where it could not be written down what is a spool, that is said.
                assert!(recovered || !complete || said);
                runs += 1;
            }
        }
    }
    eprintln!("{counts:?} operations, {runs} faults");
}

#[test]
fn whatever_fails_while_a_spool_is_filled_further() {
    needs_fuse!();
    let fixture = Fixture::new();
    let begin = || {
        let place = fixture.place();
        let mount = fixture.fill(&place, &fixture.cut).unwrap();
        assert!(!fixture.look(mount));
        place
    };
    let place = begin();
    fixture.layer.arm(None);
    assert_eq!(fixture.resume(&place), Ok(true));
    let counts = Op::ALL.map(|op| fixture.layer.count(op));
    let mut runs = 0;
    for (op, count) in Op::ALL.into_iter().zip(counts) {
        for errno in faults(op) {
            for nth in 0..count {
                let place = begin();
                eprintln!("{op:?} {nth} of {count}: {errno}");
                fixture.layer.arm(Some(Fault { op, nth, errno: errno.raw_os_error() }));
                let first = fixture.resume(&place);
                fixture.layer.disarm();
                let recovered = fixture.recover(&place);
                let resumed = fixture.resume(&place);
                eprintln!("    {first:?}, recovered {recovered}, resumed {resumed:?}");
                assert!(recovered || first != Ok(true));
                runs += 1;
            }
        }
    }
    eprintln!("{counts:?} operations, {runs} faults");
}
