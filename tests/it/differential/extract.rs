//! One archive, extracted by GNU tar, by bsdtar and by us: from a file, and through a pipe.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, unshare};
use restorefs::cli::Exit;
use restorefs::entry::Timestamp;
use restorefs::materialize::{self, Options, Origin, Overwrite, Progress, Report, Selection};
use restorefs::replay::Contents;
use restorefs::tarball;
use rustix::fs::Mode;
use rustix::process::umask;

use super::compare::{Tree, walk};
use crate::hostile::{From, receive};
use crate::support::mount::Mount;

/// What became of an archive.
#[derive(Debug)]
pub struct Extracted {
    pub tree: Tree,
    /// Zero where all is well.
    pub exit: u8,
    /// What was said about it.
    pub said: String,
}

/// Gives this thread, and those that it starts, a umask of their own.
pub fn own_umask() {
    unshare(CloneFlags::CLONE_FS).unwrap();
}

pub fn gnu_tar(archive: &Path, to: &Path) -> Extracted {
    let args = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"];
    tool(Command::new("timeout").args(["60", "tar", "-x", "-p"]).args(args), archive, to)
}

pub fn bsdtar(archive: &Path, to: &Path) -> Extracted {
    let args = ["--xattrs", "--acls", "--no-fflags", "--numeric-owner"];
    tool(Command::new("timeout").args(["60", "bsdtar", "-x", "-p"]).args(args), archive, to)
}

fn tool(command: &mut Command, archive: &Path, to: &Path) -> Extracted {
    umask(Mode::from_raw_mode(0o022));
    std::fs::create_dir(to).unwrap();
    let output = command.arg("-f").arg(archive).arg("-C").arg(to).env("LC_ALL", "C.UTF-8").output().unwrap();
    let exit = output.status.code().unwrap_or(255) as u8;
    assert_ne!(exit, 124, "{command:?} hangs");
    Extracted { tree: walk(to), exit, said: String::from_utf8_lossy(&output.stderr).into_owned() }
}

/// Receives the archive into a store, and restores it from there.
pub fn restorefs(bytes: &[u8], from: From, to: &Path) -> Extracted {
    umask(Mode::from_raw_mode(0o022));
    std::fs::create_dir(to).unwrap();
    let received = receive(bytes, from);
    let store = &received.store;
    let (contents, journal) = match store.spool() {
        Some(spool) => {
            let (journal, blobs) = spool.reopen().unwrap();
            (Contents::spool(journal, blobs, 0).unwrap(), spool.position())
        }
        None => (Contents::archive(store.archive().unwrap().try_clone().unwrap().into()).unwrap(), 0),
    };
    let spooled = store.spool().map_or(0, |spool| spool.bytes());
    let replaced = store.index().has_replaced();
    let more = move |_, _| Ok(Progress { journal, over: true, replaced, changed: false, spooled, broken_off: false });
    let options = Options {
        target: to.into(),
        selection: Selection::new(&[], &[], &[], None).unwrap(),
        overwrite: Overwrite::IfChanged,
        strip: 0,
        by_name: false,
        sync: false,
        follow: true,
        dry_run: None,
        verify: true,
        tar: tarball::Options::default(),
    };
    // As the command does it.
    umask(Mode::empty());
    let report = Arc::new(Report::default());
    // As of a mount that was made just now, by the reckoning of `compare`.
    let made = Timestamp::new(1_600_000_000, 0);
    let origin = Origin { contents, concatenated: false, made, more: Box::new(more) };
    let ended = materialize::run(&options, origin, &report);
    let summary = report.summary();
    let restored = match &ended {
        Err(_) => Exit::Failed,
        Ok(()) if summary.left_out == 0 && summary.attributes.is_empty() => Exit::Complete,
        Ok(()) => Exit::Problems,
    };
    let exit = restored.worse(Exit::of(&received.status)) as u8;
    let said = format!("{:?} {ended:?} {summary:?} {:?}", received.status.end, received.status.problems);
    Extracted { tree: walk(to), exit, said }
}

/// What a real mount shows, from a file and through a pipe.
pub fn mounted(archive: &Path, bytes: &[u8]) -> Vec<Extracted> {
    let look = |mount: Mount| {
        let status = mount.wait_end();
        let tree = walk(&mount.point);
        let exit = mount.unmount().unwrap() as u8;
        Extracted { tree, exit, said: status.to_string() }
    };
    let in_place = look(Mount::file(archive, &[]));
    let (mount, mut stdin) = Mount::pipe(&[]);
    // It stops reading where it cannot go on.
    let _ = stdin.write_all(bytes);
    drop(stdin);
    vec![in_place, look(mount)]
}
