//! Directories that are listed before somebody asks, and that nothing hangs on it: the daemon can be stopped and killed
//! meanwhile, and its mount taken away. A daemon that is stopped shows what the kernel has already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};
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
fn sleep_of(task: &Path) -> (String, u64) {
    let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
    let times = || {
        let status = read("status");
        let times = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        times.map_or(0, |n| n.trim().parse().unwrap())
    };
    let mut before = times();
    loop {
        let (place, now) = (read("wchan"), times());
        if now == before {
            return (place, now);
        }
        before = now;
    }
}

/// Waits until the lister has nothing to do.
fn idle(lister: &Path) -> u64 {
    wait_until("the lister is idle", || Some(sleep_of(lister)).filter(|(place, _)| place.contains("futex"))).1
}

#[test]
fn directories_are_listed_before_somebody_asks_and_links_read() {
    needs_fuse!();
    let file = archive(60, 5);
    for in_place in [true, false] {
        let mount = Mount::of(&file, in_place);
        mount.wait_clean();
        let lister = lister(&mount);
        let before = idle(&lister);
        for d in 0..3 {
            run(&mut list(&mount, d));
        }
        let before = wait_until("directories are listed ahead", || Some(idle(&lister)).filter(|&now| now > before));
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
        wait_until("the one that was left out has asked for more", || (idle(&lister) > before).then_some(()));
        {
            let _stopped = Stopped::new(&mount);
            assert!(Group::start(&mut list(&mount, LEFT_OUT + 10)).wait().success());
        }
        let links = run(Command::new("find").arg(&mount.point).args(["-type", "l", "-printf", "%P %l\n"]));
        let mut links: Vec<_> = String::from_utf8(links.stdout).unwrap().lines().map(str::to_owned).collect();
        links.sort();
        assert_eq!(links, (0..60).map(|d| format!("d{d:03}/link ../target-{d}")).collect::<Vec<_>>());
        mount.unmount();
    }
}

/// The process that lists for the daemon.
fn helper(mount: &Mount) -> Pid {
    let daemon = mount.daemon().as_raw_nonzero().to_string();
    let is_it = |stat: &str| {
        let (before, after) = stat.rsplit_once(") ").unwrap();
        before.ends_with("(restorefs-list") && after.split(' ').nth(1) == Some(&daemon)
    };
    // It has its name a little later than its number.
    wait_until("there is a helper", || {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut numbers = processes.filter_map(|name| name.parse().ok());
        let found =
            numbers.find(|n: &i32| fs::read_to_string(format!("/proc/{n}/stat")).is_ok_and(|stat| is_it(&stat)));
        found.and_then(Pid::from_raw)
    })
}

fn proc(pid: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()))
}

/// A mount whose daemon is stopped while its helper waits for it, and that nobody else uses; and the helper.
fn caught() -> (Mount, Pid) {
    let file = archive(30, 1000);
    loop {
        let mount = Mount::file(file.path(), &[]);
        mount.wait_clean();
        let (lister, helper) = (lister(&mount), helper(&mount));
        let before = idle(&lister);
        for d in 0..3 {
            run(&mut list(&mount, d));
        }
        while {
            let (place, times) = sleep_of(&lister);
            times == before || !place.contains("futex")
        } {
            let stopped = Stopped::new(&mount);
            if sleep_of(&proc(helper)).0.contains("request_wait_answer") {
                std::mem::forget(stopped);
                return (mount, helper);
            }
        }
        mount.unmount();
        wait_until("the helper is gone", || is_gone(helper).then_some(()));
    }
}

#[test]
fn a_daemon_never_waits_for_itself() {
    needs_fuse!();
    let (mount, _) = caught();
    // A thread that waited could be neither stopped nor frozen, and would keep a core dump from its end.
    wait_until("every thread is stopped", || {
        let tasks = fs::read_dir(proc(mount.daemon()).join("task")).unwrap();
        let states = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("stat")).unwrap());
        states.collect::<Vec<_>>().iter().all(|stat| stat.rsplit_once(") ").unwrap().1.starts_with('T')).then_some(())
    });
}

#[test]
fn whoever_lists_ahead_ends_with_the_daemon() {
    needs_fuse!();
    for signal in [Signal::KILL, Signal::ABORT] {
        let (mut mount, helper) = caught();
        kill_process(mount.daemon(), signal).unwrap();
        kill_process(mount.daemon(), Signal::CONT).unwrap();
        // Its parent hears of it when the last of its threads has ended.
        assert_eq!(mount.wait_front(), None);
        wait_until("the helper is gone", || is_gone(helper).then_some(()));
    }
}

#[test]
fn a_mount_is_not_busy_while_it_is_listed_ahead() {
    needs_fuse!();
    let (mount, helper) = caught();
    rustix::mount::unmount(&mount.point, UnmountFlags::empty()).unwrap();
    kill_process(mount.daemon(), Signal::CONT).unwrap();
    wait_until("the daemon is gone", || is_gone(mount.daemon()).then_some(()));
    wait_until("the helper is gone", || is_gone(helper).then_some(()));
}

#[test]
fn without_who_lists_ahead_everything_is_there() {
    needs_fuse!();
    let file = archive(60, 5);
    let mount = Mount::file(file.path(), &["-v"]);
    mount.wait_clean();
    let helper = helper(&mount);
    kill_process(helper, Signal::KILL).unwrap();
    wait_until("it is gone", || is_gone(helper).then_some(()));
    for d in 0..60 {
        let listed = run(Command::new("ls").arg(mount.path(format!("d{d:03}"))));
        assert_eq!(listed.stdout, b"0\n1\n2\n3\n4\nlink\n");
    }
    mount.wait_printed("directories are not listed ahead any more");
    mount.unmount();
}
