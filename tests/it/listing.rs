//! Directories that are listed before somebody asks, and that nothing hangs on it: a daemon that lists through its own
//! mount can be killed, and its mount taken away. A daemon that is stopped shows what the kernel has already.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;
use rustix::process::{Signal, kill_process};
use tempfile::NamedTempFile;

use crate::support::mount::{Mount, Stopped};
use crate::support::process::{Group, is_gone};
use crate::support::{feed, needs_fuse, run, wait_until};

/// Where reading ahead begins behind the third directory, and which one it leaves out to hear of the reader again.
const BROUGHT: std::ops::Range<usize> = 10..18;
const LEFT_OUT: usize = 18;

/// Directories with some files and a symbolic link in each.
fn archive(directories: usize, files: usize) -> NamedTempFile {
    let mut archive = Vec::new();
    for d in 0..directories {
        archive.extend(feed::link(&format!("d{d:03}/link"), &format!("../target-{d}")));
        for n in 0..files {
            archive.extend(feed::whole(&format!("d{d:03}/{n}"), b"x"));
        }
    }
    archive.extend(feed::end());
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), &archive).unwrap();
    file
}

fn list(mount: &Mount, d: usize) -> Command {
    // What `ls -l` and `find` ask for besides, the kernel does not remember.
    let mut command = Command::new("sh");
    command.args(["-c", "cd \"$0\" && echo * && readlink link"]).arg(mount.path(format!("d{d:03}")));
    command.stdout(Stdio::null());
    command
}

/// The folder in /proc of the thread that lists ahead.
fn lister(mount: &Mount) -> PathBuf {
    let tasks = format!("/proc/{}/task", mount.daemon().as_raw_nonzero());
    wait_until("there is a thread that lists ahead", || {
        let mut tasks = fs::read_dir(&tasks).unwrap().map(|task| task.unwrap().path());
        tasks.find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "lister\n"))
    })
}

/// Where a task sleeps, and how often it has gone to sleep.
fn sleep_of(task: &std::path::Path) -> (String, u64) {
    let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
    let switches = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:").map(str::to_owned));
        line.map_or(0, |n| n.trim().parse().unwrap())
    };
    (read("wchan"), switches(read("status")))
}

/// Waits until the lister has nothing to do.
fn idle(lister: &std::path::Path) -> u64 {
    wait_until("the lister is idle", || Some(sleep_of(lister)).filter(|(place, _)| place.contains("futex"))).1
}

#[test]
fn directories_are_listed_before_somebody_asks_and_links_read() {
    needs_fuse!();
    let file = archive(60, 5);
    for in_place in [true, false] {
        let mount = if in_place {
            Mount::file(file.path(), &[])
        } else {
            Mount::start(Stdio::from(file.reopen().unwrap()), &["-f"], |command| {
                command.arg("-");
            })
        };
        mount.wait_clean();
        let lister = lister(&mount);
        let before = idle(&lister);
        for d in 0..3 {
            run(&mut list(&mount, d));
        }
        wait_until("directories are listed ahead", || (idle(&lister) > before).then_some(()));
        let mut asks = {
            let _stopped = Stopped::new(&mount);
            for d in BROUGHT {
                assert!(Group::start(&mut list(&mount, d)).wait().success(), "directory {d}");
            }
            let asks = Group::start(&mut list(&mount, LEFT_OUT));
            asks.wait_parked();
            asks
        };
        assert!(asks.wait().success());
        // The one that was left out has asked for more.
        wait_until("the next directories are listed ahead", || {
            idle(&lister);
            let _stopped = Stopped::new(&mount);
            let mut listed = Group::start(&mut list(&mount, LEFT_OUT + 10));
            wait_until("it is listed, or waits", || {
                let waits = sleep_of(&PathBuf::from(format!("/proc/{}", listed.pid().as_raw_nonzero())));
                (listed.has_ended() || waits.0.contains("request_wait_answer")).then_some(())
            });
            listed.has_ended().then_some(())
        });
        let links = run(Command::new("find").arg(&mount.point).args(["-type", "l", "-printf", "%P %l\n"]));
        let mut links: Vec<_> = String::from_utf8(links.stdout).unwrap().lines().map(str::to_owned).collect();
        links.sort();
        assert_eq!(links, (0..60).map(|d| format!("d{d:03}/link ../target-{d}")).collect::<Vec<_>>());
        mount.unmount();
    }
}

/// A mount whose daemon is stopped while it waits for itself, and that nobody else uses.
fn caught() -> Mount {
    let file = archive(30, 1000);
    loop {
        let mount = Mount::file(file.path(), &[]);
        mount.wait_clean();
        let lister = lister(&mount);
        let before = idle(&lister);
        for d in 0..3 {
            run(&mut list(&mount, d));
        }
        while sleep_of(&lister).1 == before || !sleep_of(&lister).0.contains("futex") {
            let stopped = Stopped::new(&mount);
            if sleep_of(&lister).0.contains("request_wait_answer") {
                std::mem::forget(stopped);
                return mount;
            }
        }
        mount.unmount();
    }
}

#[test]
fn a_daemon_that_is_killed_while_it_lists_ahead_is_gone() {
    needs_fuse!();
    let mut mount = caught();
    kill_process(mount.daemon(), Signal::KILL).unwrap();
    // Its parent hears of it when the last of its threads has ended.
    assert_eq!(mount.wait_front(), None);
}

#[test]
fn a_mount_is_not_busy_while_its_daemon_lists_ahead() {
    needs_fuse!();
    let mount = caught();
    rustix::mount::unmount(&mount.point, UnmountFlags::empty()).unwrap();
    kill_process(mount.daemon(), Signal::CONT).unwrap();
    wait_until("the daemon is gone", || is_gone(mount.daemon()).then_some(()));
}
