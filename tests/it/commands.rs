//! The commands as a user types them: exit codes, messages, the ways out; for root and for an ordinary user.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::disk::Disk;
use crate::support::mount::{Mount, RESTOREFS, fifo, restorefs};
use crate::support::pack::gnu_tar;
use crate::support::{needs_fuse, run, shell, wait_until};

/// An archive of a directory with a small file, a large one and a link.
fn archive(dir: &Path) -> std::path::PathBuf {
    let (tree, out) = (dir.join("tree"), dir.join("x.tar"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("small"), b"small\n").unwrap();
    std::fs::write(tree.join("large"), vec![7; 3 << 20]).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", tree.join("link")).unwrap();
    gnu_tar(&tree, &out, &["--sort=name"]);
    out
}

/// What a command printed on standard error, when it ended with this code.
#[track_caller]
fn fails(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[track_caller]
fn contains(text: &str, needles: &[&str]) {
    for needle in needles {
        assert!(text.contains(needle), "no '{needle}' in: {text}");
    }
}

#[test]
fn wrong_usage_is_told_before_anything_is_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let point = dir.path();
    for args in [&["mount"][..], &["mount", "-", "a", "b"], &["mount", "--nonsense", "-", "x"], &["nonsense"], &[]] {
        fails(&restorefs(args, &[]), 2);
    }
    contains(&fails(&restorefs(&["mount"], &[point]), 2), &["SOURCE"]);
    contains(&fails(&restorefs(&["mount", "--listen", "0", "-"], &[point]), 2), &["mount point only"]);
    let both = restorefs(&["mount", "--listen", "0", "--plain", "--token-file", "token"], &[point]);
    contains(&fails(&both, 2), &["--token-file", "--plain"]);
    contains(&fails(&restorefs(&["mount", "--token-file", "token", "-"], &[point]), 2), &["--listen"]);
    contains(&fails(&restorefs(&["mount", "--listen", "0", "--timeout", "1"], &[point]), 2), &["seconds from 6"]);
    contains(&fails(&restorefs(&["mount", "--plain", "-"], &[point]), 2), &["--listen"]);
    contains(&fails(&restorefs(&["mount", "--listen", "0", "--plain", "-"], &[point]), 2), &["mount point only"]);
    contains(&fails(&restorefs(&["mount", "--listen", "no such host:1", "--plain"], &[point]), 2), &["no such host:1"]);
    contains(&fails(&restorefs(&["mount", "--spool-limit", "much", "-"], &[point]), 2), &["much", "500M"]);
}

#[test]
fn what_cannot_be_mounted_is_named_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    let point = dir.path().join("mnt");
    let mount = |args: &[&str], paths: &[&Path]| fails(&restorefs(&[&["mount"], args].concat(), paths), 1);
    contains(&mount(&[], &[&archive, &point]), &["mnt", "No such file"]);
    std::fs::create_dir(&point).unwrap();
    contains(&mount(&[], &[&archive, &archive]), &["x.tar", "not a directory"]);
    contains(&mount(&[], &[&dir.path().join("y.tar"), &point]), &["y.tar", "No such file"]);
    contains(&mount(&[], &[dir.path(), &point]), &["is a directory"]);
    contains(&mount(&["--spool", "/proc/nowhere"], &[&archive, &point]), &["/proc/nowhere", "not a directory"]);
    contains(&mount(&["--listen", "192.0.2.1:0", "--plain"], &[&point]), &["192.0.2.1:0", "cannot listen"]);
    contains(&fails(&restorefs(&["status"], &[dir.path()]), 1), &["is not in a restorefs mount"]);
    contains(&fails(&restorefs(&["wait"], &[dir.path()]), 1), &["is not in a restorefs mount"]);
    contains(&fails(&restorefs(&["umount"], &[dir.path()]), 1), &["is not in a restorefs mount"]);
}

#[test]
fn a_fifo_is_mounted_before_its_writer_comes() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    let fifo = fifo(dir.path());
    let mut mount = Mount::start(Stdio::null(), &[], |command| {
        command.arg(&fifo);
    });
    assert_eq!(mount.status()["phase"], "waiting");
    shell(dir.path(), &format!("cat {archive:?} > {fifo:?}"));
    assert_eq!(mount.wait_front(), Some(0));
    assert_eq!(std::fs::read(mount.path("small")).unwrap(), b"small\n");
    mount.unmount();
}

#[test]
fn detach_returns_when_the_mount_answers() {
    needs_fuse!();
    let mut mount = Mount::start(Stdio::piped(), &["-d"], |command| {
        command.arg("-");
    });
    // Its standard input is still open, and nothing has come.
    assert_eq!(mount.wait_front(), Some(0));
    assert_eq!(mount.status()["phase"], "waiting");
    drop(mount.front.stdin.take());
    // Nothing came, so nothing stays.
    wait_until("it is unmounted", || (!mount.is_mounted()).then_some(()));
}

#[test]
fn systemd_is_told_when_the_mount_answers() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    let notify = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    let mount = Mount::start(Stdio::null(), &["-f"], |command| {
        command.env("NOTIFY_SOCKET", &notify).arg(&archive);
    });
    let mut told = [0; 100];
    let n = socket.recv(&mut told).unwrap();
    assert_eq!(&told[..n], b"READY=1\n");
    // In front it is unmounted only when it has received everything.
    mount.wait_end();
    mount.unmount();
}

#[test]
fn status_in_words_and_as_json() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = std::fs::read(archive(dir.path())).unwrap();
    let (mount, mut stdin) = Mount::pipe(&["--spool-limit", "1G"]);
    stdin.write_all(&archive[..1 << 20]).unwrap();
    // It is written by another thread than the one that counts what has come.
    let has_come = |s: &serde_json::Value| s["bytes"] == 1 << 20 && s["spool"]["bytes"].as_u64() > Some(900_000);
    let status = mount.wait_status("a megabyte has come", has_come);
    assert_eq!(status["phase"], "receiving");
    assert_eq!(status["source"], "standard input");
    assert_eq!(status["receiving"]["path"], "large");
    assert_eq!(status["receiving"]["size"], 3 << 20);
    assert_eq!(status["spool"]["limit"], 1 << 30);
    assert_eq!(status["mountpoint"], mount.point.to_str().unwrap());
    let words = restorefs(&["status"], &[&mount.point]);
    assert!(words.status.success());
    let words = String::from_utf8(words.stdout).unwrap();
    contains(&words, &["receiving", "standard input", "large (", "of 3.00 MiB", "1.00 GiB"]);
    // From anywhere in it; and all mounts of the machine.
    contains(&String::from_utf8(restorefs(&["status"], &[&mount.path("large")]).stdout).unwrap(), &["receiving"]);
    contains(&String::from_utf8(restorefs(&["status"], &[]).stdout).unwrap(), &[mount.point.to_str().unwrap()]);

    let mut watch = Command::new(RESTOREFS)
        .args(["status", "--json", "--watch"])
        .arg(&mount.point)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    stdin.write_all(&archive[1 << 20..]).unwrap();
    drop(stdin);
    mount.wait_end();
    assert!(wait_until("--watch ends with the stream", || watch.try_wait().unwrap()).success());
    let words = String::from_utf8(restorefs(&["status"], &[&mount.point]).stdout).unwrap();
    contains(&words, &["complete", "entries    4\n"]);
    // Nobody reads what it prints: that is no failure, and no panic.
    let closed = shell(dir.path(), &format!("{RESTOREFS} status {:?} 2>&1 >&- || true", mount.point));
    assert!(!closed.contains("panic"), "{closed}");
    mount.unmount();
}

#[test]
fn wait_for_a_path_for_all_and_for_what_never_comes() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = std::fs::read(archive(dir.path())).unwrap();
    let (mount, mut stdin) = Mount::pipe(&[]);
    let wait = |paths: &[&str]| {
        Command::new(RESTOREFS).arg("wait").arg(&mount.point).args(paths).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut small = wait(&["small"]);
    let mut large = wait(&["large", mount.path("link").to_str().unwrap()]);
    let mut never = wait(&["never"]);
    let mut all = wait(&[]);
    let rest = archive.len() - 4096;
    // `large` comes first, and its last bytes are among the rest.
    stdin.write_all(&archive[..1 << 20]).unwrap();
    mount.wait_status("a megabyte has come", |s| s["bytes"] == 1 << 20);
    for waiting in [&mut small, &mut large, &mut never, &mut all] {
        assert!(waiting.try_wait().unwrap().is_none());
    }
    stdin.write_all(&archive[1 << 20..rest]).unwrap();
    stdin.write_all(&archive[rest..]).unwrap();
    for mut waiting in [small, large, all] {
        assert!(wait_until("wait ends", || waiting.try_wait().unwrap()).success());
    }
    contains(&fails(&never.wait_with_output().unwrap(), 4), &["'never'", "has not come"]);
    drop(stdin);
    mount.unmount();
}

#[test]
fn umount_while_receiving_asks_for_force() {
    needs_fuse!();
    let (mut mount, stdin) = Mount::pipe(&[]);
    contains(&fails(&restorefs(&["umount"], &[&mount.point]), 1), &["still receiving", "--force", "restorefs wait"]);
    assert_eq!(mount.status()["phase"], "waiting");
    let output = restorefs(&["umount", "--force"], &[&mount.point]);
    assert!(output.status.success(), "{output:?}");
    // Not a byte has come.
    assert_eq!(mount.wait_front(), Some(1));
    assert!(mount.dir.path().join("spool").read_dir().unwrap().next().is_none());
    drop(stdin);
}

#[test]
fn a_second_mount_on_the_same_place_is_refused() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    let mount = Mount::file(&archive, &[]);
    contains(
        &fails(&restorefs(&["mount"], &[&archive, &mount.point]), 1),
        &["mounted there already", "restorefs umount"],
    );
    mount.unmount();
}

#[test]
fn a_second_sender_is_refused_and_the_log_says_so() {
    needs_fuse!();
    let (mount, address) = Mount::listen(&[]);
    let mut first = std::net::TcpStream::connect(address).unwrap();
    Write::write_all(&mut first, &crate::support::feed::file("f", 5)).unwrap();
    mount.wait_for("f");
    let mut second = std::net::TcpStream::connect(address).unwrap();
    assert!(matches!(std::io::Read::read(&mut second, &mut [0]), Ok(0) | Err(_)));
    mount.wait_printed("is refused: one sender is connected already");
}

#[test]
fn ipv6() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    let (mount, address) = Mount::listen_on("[::1]:0", &[]);
    assert!(address.is_ipv6() && address.port() != 0);
    shell(dir.path(), &format!("nc -N ::1 {} < {archive:?}", address.port()));
    assert_eq!(mount.wait_end()["end"]["verdict"], "complete");
    mount.unmount();
}

#[test]
fn a_full_spool_waits_for_room_and_what_is_there_can_be_read() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = archive(dir.path());
    // A disk of its own: two megabytes, where three are to come.
    let disk = Disk::new("tmpfs", "size=2M");
    for limit in [&[][..], &["--spool-limit", "1M"]] {
        let args = [&["--spool", disk.path().to_str().unwrap(), "-d"], limit].concat();
        let own = tempfile::tempdir().unwrap();
        let fifo = fifo(own.path());
        let mount = Mount::start(Stdio::null(), &args, |command| {
            command.arg(&fifo);
        });
        let mut writer = Command::new("cp").arg(&archive).arg(&fifo).spawn().unwrap();
        let status = mount.wait_status("the spool is full", |s| s["phase"] == "no-space");
        let reason = status["paused"].as_str().unwrap();
        assert!(reason.contains(if limit.is_empty() { "No space" } else { "--spool-limit" }), "{reason}");
        assert!(mount.state("large").starts_with("arriving "), "{}", mount.state("large"));
        let mut page = [0; 4096];
        std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::open(mount.path("large")).unwrap(), &mut page, 0)
            .unwrap();
        assert_eq!(page, [7; 4096]);
        if limit.is_empty() {
            // Room comes, and it goes on.
            disk.remount("size=20M");
            assert_eq!(mount.wait_end()["end"]["verdict"], "complete");
            assert_eq!(std::fs::read(mount.path("large")).unwrap(), vec![7; 3 << 20]);
        }
        let output = restorefs(&["umount", "--force"], &[&mount.point]);
        assert!(output.status.success(), "{output:?}");
        let _ = writer.kill();
        let _ = writer.wait();
    }
}

#[test]
fn an_ordinary_user_with_fusermount3() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    archive(dir.path());
    // Theirs, and the binary where they can run it.
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::copy(RESTOREFS, home.join("restorefs")).unwrap();
    shell(dir.path(), "chmod 755 . && mv x.tar home && mkdir home/mnt && chown -R 65534:65534 home");
    // In a mount namespace of its own, where /dev/fuse is as udev makes it: for everybody.
    let script = r#"
        mknod -m 666 fuse c 10 229
        mount --bind fuse /dev/fuse
        trap 'umount -l mnt 2>/dev/null || true' EXIT
        unset XDG_RUNTIME_DIR
        as() { setpriv --reuid "$1" --regid "$1" --clear-groups bash -euc "$2"; }
        as 65534 'cat x.tar | ./restorefs mount -d --spool . - mnt; ./restorefs wait mnt; ./restorefs status mnt
                  tar xOf x.tar --wildcards "*large" | cmp - mnt/large; cat mnt/small; readlink mnt/link; getfattr --only-values -n user.restorefs.state mnt/large'
        echo
        ./restorefs status mnt | sed 's/^/root: /'
        as 65533 './restorefs status mnt 2>&1 || echo "denied with $?"'
        as 65534 './restorefs umount mnt; ls -d restorefs-* 2>/dev/null || echo clean'
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash", "-euc", script]).current_dir(&home);
    let told = String::from_utf8(run(&mut command).stdout).unwrap();
    contains(&told, &["  state      complete", "small\n/etc/passwd\ncomplete\n", "root:   state      complete"]);
    contains(&told, &["belongs to another user", "denied with 1", "clean"]);
}
