//! Directories that are listed before somebody asks, and that nothing hangs on it: the daemon can be stopped and killed
//! meanwhile, and its mount taken away. A daemon that is stopped shows what the kernel has already.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::inotify;
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

/// The log then says which directories are listed ahead.
fn mount(archive: &NamedTempFile, in_place: bool) -> Mount {
    let mount = Mount::of(archive, in_place);
    mount.wait_clean();
    mount
}

#[test]
fn directories_are_listed_before_somebody_asks_and_links_read() {
    needs_fuse!();
    let file = archive(60, 5);
    for in_place in [true, false] {
        let mount = mount(&file, in_place);
        for d in 0..3 {
            run(&mut list(&mount, d));
        }
        mount.wait_printed("directories up to number 26 are listed ahead");
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
        mount.wait_printed("directories up to number 58 are listed ahead");
        {
            let _stopped = Stopped::new(&mount);
            assert!(Group::start(&mut list(&mount, LEFT_OUT + 10)).wait().success());
        }
        let links = run(Command::new("find").arg(&mount.point).args(["-type", "l", "-printf", "%P %l\n"]));
        let mut links: Vec<_> = String::from_utf8(links.stdout).unwrap().lines().map(str::to_owned).collect();
        links.sort();
        assert_eq!(links, (0..60).map(|d| format!("d{d:03}/link ../target-{d}")).collect::<Vec<_>>());
        let helper = helper(&mount);
        mount.unmount();
        assert!(!proc(helper).exists(), "the daemon has not waited for its helper");
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
        let mount = mount(&file, true);
        let helper = helper(&mount);
        for d in 0..3 {
            run(&mut list(&mount, d));
        }
        while !mount.printed().contains("are listed ahead") {
            let stopped = Stopped::new(&mount);
            if fs::read_to_string(proc(helper).join("wchan")).unwrap().contains("request_wait_answer") {
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
fn a_helper_that_is_stopped_keeps_nothing_up() {
    needs_fuse!();
    let (mount, helper) = caught();
    kill_process(helper, Signal::STOP).unwrap();
    kill_process(mount.daemon(), Signal::CONT).unwrap();
    mount.unmount();
    assert!(!proc(helper).exists());
}

#[test]
fn links_in_the_archive_lead_nobody_out_of_it() {
    needs_fuse!();
    let outside = tempfile::tempdir().unwrap();
    let trap = outside.path().join("q");
    fs::create_dir(&trap).unwrap();
    let directories = (0..60).flat_map(|d| feed::whole(&format!("p{d:02}/q/file"), b"x"));
    let links = (0..60).flat_map(|d| feed::link(&format!("evil/p{d:02}"), outside.path().to_str().unwrap()));
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), directories.chain(links).chain(feed::end()).collect::<Vec<_>>()).unwrap();
    let mount = mount(&file, true);
    // The root of the mount is somewhere else, and where it was there is a directory of links.
    let root = Bound::new(&mount.point, &outside.path().join("root"));
    let cover = Bound::over(&mount.path("evil"), &mount.point);
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, &trap, inotify::WatchFlags::OPEN).unwrap();
    let walk = |from: usize| {
        for d in from..from + 10 {
            run(Command::new("ls").arg(root.0.join(format!("p{d:02}/q"))));
        }
    };
    walk(0);
    mount.wait_printed("no directories are listed ahead now: Invalid cross-device link");
    let opened = rustix::io::read(&watch, &mut [0; 4096]);
    assert_eq!(opened, Err(rustix::io::Errno::AGAIN), "somebody was led out");
    drop(cover);
    walk(10);
    mount.wait_printed("are listed ahead\n");
    drop(root);
    mount.unmount();
}

/// A directory that can be seen at another place too.
struct Bound(PathBuf);

impl Bound {
    fn new(from: &Path, at: &Path) -> Bound {
        fs::create_dir(at).unwrap();
        Bound::over(from, at)
    }

    fn over(from: &Path, at: &Path) -> Bound {
        rustix::mount::mount_bind(from, at).unwrap();
        Bound(at.into())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn without_who_lists_ahead_everything_is_there() {
    needs_fuse!();
    let file = archive(60, 5);
    let mount = mount(&file, true);
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
