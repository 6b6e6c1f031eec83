//! What goes wrong around a mount: odd paths, stopped daemons, terminals that hang up, archives that are overwritten.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::mount::UnmountFlags;
use rustix::process::{Resource, Rlimit, Signal, kill_process, prlimit};

use crate::support::feed::{end, whole};
use crate::support::mount::{Mount, RESTOREFS, restorefs};
use crate::support::process::Group;
use crate::support::{needs_fuse, shell, wait_until};

/// An archive with a file of one byte and one that gets a blob.
fn archive(dir: &Path) -> PathBuf {
    let path = dir.join("x.tar");
    fs::write(&path, [whole("small", b"s"), whole("large", &[7; 300_000]), end()].concat()).unwrap();
    path
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A file beside the socket of a mount.
fn beside(mount: &Mount, kind: &str) -> PathBuf {
    let device = mount.point.metadata().unwrap().dev();
    format!("/run/restorefs/{}:{}.{kind}", rustix::fs::major(device), rustix::fs::minor(device)).into()
}

/// A place that something may be mounted on; not any more afterwards, and nobody waits for it.
struct Detached(PathBuf);

impl Drop for Detached {
    fn drop(&mut self) {
        let flags = UnmountFlags::DETACH | UnmountFlags::FORCE;
        let _ = rustix::mount::unmount(&self.0, flags);
    }
}

#[test]
fn mount_points_that_are_not_text() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    for (name, shown) in [(&b"a\xffb"[..], "/a\\xffb\n"), (b"a\nb \x1b[31m", "/a\\nb \\x1b[31m\n")] {
        let point = Detached(dir.path().join(OsStr::from_bytes(name)));
        fs::create_dir(&point.0).unwrap();
        let output = restorefs(&["mount"], &[&archive, &point.0]);
        assert!(output.status.success(), "{output:?}");
        let status = restorefs(&["status"], &[&point.0]);
        assert!(status.status.success(), "{status:?}");
        assert!(String::from_utf8(status.stdout).unwrap().contains(shown), "{shown:?}");
        let twice = told(&restorefs(&["mount"], &[&archive, &point.0]));
        assert!(twice.contains("is mounted there already") && !twice.contains('\x1b'), "{twice}");
        assert_eq!(fs::read(point.0.join("small")).unwrap(), b"s");
        let output = restorefs(&["umount"], &[&point.0]);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn neither_the_root_nor_its_own_spool_is_mounted_over() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    // In a namespace of its own: should it be mounted, it is gone with the shell.
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", RESTOREFS, "mount"]).arg(&archive).arg("/");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(told(&output).contains("cannot mount on '/'"), "{output:?}");

    let spool = dir.path().join("mnt/spool");
    fs::create_dir_all(&spool).unwrap();
    let output = Command::new(RESTOREFS)
        .args([OsStr::new("mount"), OsStr::new("--spool"), spool.as_os_str(), OsStr::new("-")])
        .arg(dir.path().join("mnt"))
        .stdin(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(told(&output).contains("will be mounted over it (choose another place with --spool DIR)"), "{output:?}");
    assert_eq!(spool.read_dir().unwrap().count(), 0);
}

#[test]
fn a_daemon_that_is_stopped_holds_nobody_up() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::file(&archive(dir.path()), &[]);
    kill_process(mount.daemon(), Signal::STOP).unwrap();
    let ask = |args: &[&str]| {
        let mut command = Command::new(RESTOREFS);
        command.args(args).arg(&mount.point).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let asked = [&["status"][..], &["wait"], &["umount"]].map(ask);
    for asked in asked {
        let output = asked.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let told = told(&output);
        let process = format!("(process {}) does not answer", mount.daemon().as_raw_nonzero());
        assert!(told.contains(&process) && told.contains("restorefs umount --force"), "{told}");
    }
    let output = ask(&["umount", "--force"]).wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(told(&output).contains("its daemon was not asked"), "{output:?}");
    assert!(!mount.path("small").exists());
    kill_process(mount.daemon(), Signal::CONT).unwrap();
}

#[test]
fn a_mount_without_a_socket_yet_is_waited_for() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::file(&archive(dir.path()), &[]);
    let (socket, aside) = (beside(&mount, "sock"), beside(&mount, "aside"));
    fs::rename(&socket, &aside).unwrap();
    let asked = Command::new(RESTOREFS).arg("status").arg(&mount.point).stdout(Stdio::piped()).spawn().unwrap();
    let wchan = format!("/proc/{}/wchan", asked.id());
    wait_until("it looks again and again", || fs::read_to_string(&wchan).ok().filter(|w| w.contains("nanosleep")));
    fs::rename(&aside, &socket).unwrap();
    let output = asked.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");

    // Where none comes, it is not taken for dead.
    fs::remove_file(&socket).unwrap();
    let output = restorefs(&["umount"], &[&mount.point]);
    assert_eq!(output.status.code(), Some(1));
    assert!(told(&output).contains("has no control socket"), "{output:?}");
    assert_eq!(fs::read(mount.path("small")).unwrap(), b"s");
    let output = restorefs(&["umount", "--force"], &[&mount.point]);
    assert!(output.status.success(), "{output:?}");
    assert!(!beside(&mount, "json").exists());
}

#[test]
fn a_terminal_that_hangs_up_takes_nothing_with_it() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    for foreground in [true, false] {
        let mut mount = Mount::start(Stdio::null(), if foreground { &["-f"] } else { &[] }, |command| {
            command.arg(&archive);
        });
        mount.wait_end();
        let daemon = mount.daemon();
        kill_process(daemon, Signal::HUP).unwrap();
        // Had the first killed it, its mount would still be there, dead.
        kill_process(daemon, Signal::TERM).unwrap();
        assert_eq!(mount.wait_front(), Some(0));
        wait_until("it is unmounted", || (!mount.path("small").exists()).then_some(()));
        assert_eq!(mount.point.read_dir().unwrap().count(), 0);
    }
}

#[test]
fn nothing_that_is_inherited_is_held() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    archive(dir.path());
    // The sender goes on writing when receiving has been stopped, and only then.
    let script = format!(
        "mkdir mnt
         mkfifo go
         trap 'umount -l mnt 2>/dev/null || true; kill $(cat sender) 2>/dev/null || true' EXIT
         exec 9>lock
         flock 9
         {RESTOREFS} mount --spool . <(exec 9>&-; echo $BASHPID >sender; head -c 100000 x.tar; read _ <go
                                       exec cat /dev/zero) mnt 2>log &
         front=$!
         exec 9>&-
         until grep -q 'mounted on' log && [[ -e mnt/small ]]; do ((SECONDS < 100)); done
         flock lock cat mnt/small
         kill -INT $front
         wait $front || echo \" $?\"
         echo >go
         while kill -0 $(cat sender) 2>/dev/null; do ((SECONDS < 100)); done
         {RESTOREFS} umount mnt"
    );
    assert_eq!(shell(dir.path(), &script), "s 4\n");
}

#[test]
fn an_archive_that_is_changed_reads_as_an_error() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    let mount = Mount::file(&archive, &[]);
    mount.wait_clean();
    assert_eq!((mount.state("large"), mount.state("small")), ("complete".into(), "complete".into()));
    // The same size and the same headers; only what is in the files is another's.
    fs::write(&archive, [whole("small", b"S"), whole("large", &[8; 300_000]), end()].concat()).unwrap();
    for name in ["small", "large"] {
        let error = fs::read(mount.path(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}: {error}");
        assert_eq!(mount.state(name), "changed");
    }
    let problems = mount.status()["problems"].to_string();
    assert!(problems.contains("has been changed since it was mounted"), "{problems}");
    File::options().write(true).open(&archive).unwrap().set_len(1000).unwrap();
    assert_eq!(fs::read(mount.path("large")).unwrap_err().raw_os_error(), Some(libc::EIO));
    mount.unmount();
}

#[test]
fn readers_leave_descriptors_for_receiving() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    let few = Rlimit { current: Some(64), maximum: Some(64) };
    prlimit(Some(mount.daemon()), Resource::Nofile, few).unwrap();
    let mut open = Vec::new();
    for n in 0..100u8 {
        let name = format!("file{n}");
        stdin.write_all(&whole(&name, &[n; 200_000])).unwrap();
        mount.wait_for(&name);
        open.push(File::open(mount.path(&name)).unwrap());
    }
    stdin.write_all(&end()).unwrap();
    drop(stdin);
    mount.wait_clean();
    for (n, mut file) in open.into_iter().enumerate() {
        let mut contents = Vec::new();
        file.read_to_end(&mut contents).unwrap();
        assert!(contents == [n as u8; 200_000], "file{n}");
    }
    mount.unmount();
}

#[test]
fn with_too_few_descriptors_it_ends_and_says_so() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    let point = Detached(dir.path().join("mnt"));
    fs::create_dir(&point.0).unwrap();
    let outside = dir.path().metadata().unwrap().dev();
    let mut refused = 0;
    for most in 5.. {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n $0 && exec \"$@\"", &most.to_string(), RESTOREFS, "mount", "--detach"]);
        command.arg(&archive).arg(&point.0).stderr(Stdio::piped());
        let mut mount = Group::start(&mut command);
        if mount.wait().success() {
            assert_ne!(point.0.metadata().unwrap().dev(), outside, "with {most} nothing is mounted");
            break;
        }
        let mut told = String::new();
        mount.0.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        assert!(told.contains("Too many open files"), "with {most}: {told}");
        assert_eq!(point.0.metadata().unwrap().dev(), outside, "with {most} a mount stays behind");
        refused += u32::from(told.contains("does not answer"));
    }
    assert!(refused > 0, "it never came so far that it was mounted");
}
