//! What is left when a daemon is gone: found by `restorefs status`, removed by `restorefs discard`, and by nobody else.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::feed::{end, file, whole};
use crate::support::mount::{Mount, RESTOREFS, restorefs};
use crate::support::process::{Group, is_gone};
use crate::support::users::Home;
use crate::support::{needs_fuse, shell, wait_until};

/// Everything that `restorefs status` lists: a line of JSON each. Mounts of other tests come and go meanwhile.
fn listed() -> Vec<Value> {
    let output = restorefs(&["status", "--json"], &[]);
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What is listed of a spool, if it is one without a daemon.
fn left_over(spool: &Path) -> Option<Value> {
    let is_it = |line: &Value| line["phase"] == "left-over" && line["spool"]["directory"] == spool.to_str().unwrap();
    let mut found: Vec<Value> = listed().into_iter().filter(is_it).collect();
    assert!(found.len() <= 1, "{found:#?}");
    found.pop()
}

/// Where root's spools are noted.
fn noted(spool: &Path) -> PathBuf {
    Path::new("/var/lib/restorefs/spools").join(spool.file_name().unwrap())
}

/// A mount with a small file and the half of a large one in its spool, whose daemon is killed.
fn killed() -> (Mount, PathBuf) {
    let (mut mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&[whole("small", b"s"), file("large", 1 << 20), vec![7; 512 << 10]].concat()).unwrap();
    mount.wait_for("large");
    wait_until("half of it has come", || (mount.state("large") == "arriving 524288/1048576").then_some(()));
    let spool = mount.spool();
    mount.kill();
    (mount, spool)
}

#[track_caller]
fn fails(output: &Output, needles: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for needle in needles {
        assert!(text.contains(needle), "no '{needle}' in: {text}");
    }
}

#[track_caller]
fn discards(spool: &Path) {
    let output = restorefs(&["discard"], &[spool]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains(spool.to_str().unwrap()) && told.contains(" freed\n"), "{told}");
    assert!(spool.symlink_metadata().is_err(), "{spool:?} is still there");
    assert_eq!(left_over(spool).map(|left| left.to_string()), None);
}

#[test]
fn a_killed_daemon_leaves_a_mount_and_a_spool_that_are_listed() {
    needs_fuse!();
    let (mount, spool) = killed();
    let point = mount.point.to_str().unwrap();
    let dead = listed().into_iter().find(|line| line["mountpoint"] == point).unwrap();
    assert_eq!((&dead["phase"], &dead["source"]), (&"dead".into(), &"standard input".into()));
    assert_eq!(Path::new(dead["spool"]["directory"].as_str().unwrap()).canonicalize().unwrap(), spool);
    assert_eq!(dead["commands"]["umount"], format!("restorefs umount {point}"));

    let left = left_over(&spool).unwrap();
    assert_eq!((&left["ended"], &left["source"]), (&"killed".into(), &"standard input".into()));
    assert_eq!(left["spool"]["journal"], spool.join("journal").metadata().unwrap().len());
    let blocks = shell(&spool, "find . -type f -printf '%b+'; echo 0");
    let bytes: u64 = blocks.trim().split('+').map(|blocks| blocks.parse::<u64>().unwrap() * 512).sum();
    assert!(bytes >= 512 << 10);
    assert_eq!(left["spool"]["bytes"], bytes);
    let (mounts, discard) = (left["commands"]["mount"].as_str(), left["commands"]["discard"].as_str());
    assert_eq!(mounts, Some(&format!("restorefs mount {} MOUNTPOINT", spool.display())[..]));
    assert_eq!(discard, Some(&format!("restorefs discard {}", spool.display())[..]));

    let words = String::from_utf8(restorefs(&["status"], &[]).stdout).unwrap();
    for needle in [&format!("{point}\n  state      dead")[..], mounts.unwrap(), discard.unwrap()] {
        assert!(words.contains(needle), "no '{needle}' in: {words}");
    }

    assert!(restorefs(&["umount"], &[&mount.point]).status.success());
    assert!(listed().iter().all(|line| line["mountpoint"] != point));
    assert_eq!(noted(&spool).read_link().unwrap(), spool);
    discards(&spool);
    assert!(noted(&spool).symlink_metadata().is_err());
    fails(&restorefs(&["discard"], &[&spool]), &["No such file"]);
}

#[test]
fn a_spool_is_noted_only_while_it_is_there() {
    needs_fuse!();
    let (mount, stdin) = Mount::pipe(&[]);
    let spool = mount.spool();
    assert_eq!(noted(&spool).read_link().unwrap(), spool);
    assert!(restorefs(&["umount", "--force"], &[&mount.point]).status.success());
    wait_until("the daemon is gone", || is_gone(mount.daemon()).then_some(()));
    assert!(noted(&spool).symlink_metadata().is_err());
    drop(stdin);

    // One that somebody has removed by hand is forgotten.
    let (_mount, spool) = killed();
    fs::remove_dir_all(&spool).unwrap();
    assert!(left_over(&spool).is_none());
    assert!(noted(&spool).symlink_metadata().is_err());
}

#[test]
fn a_kept_spool_says_how_its_stream_ended() {
    needs_fuse!();
    for (archive, ended) in [(whole("f", b"1"), "incomplete"), ([whole("f", b"1"), end()].concat(), "complete")] {
        let (mut mount, mut stdin) = Mount::pipe(&["--keep-spool"]);
        let spool = mount.spool();
        stdin.write_all(&archive).unwrap();
        drop(stdin);
        mount.wait_end();
        assert!(left_over(&spool).is_none());
        assert!(restorefs(&["umount"], &[&mount.point]).status.success());
        mount.wait_front();
        assert_eq!(left_over(&spool).unwrap()["ended"], ended);
        discards(&spool);
    }
}

#[test]
fn a_live_spool_is_not_left_over_and_not_discarded() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&whole("small", b"s")).unwrap();
    mount.wait_for("small");
    let spool = mount.spool();
    assert!(left_over(&spool).is_none());
    fails(&restorefs(&["discard"], &[&spool]), &["is in use", "restorefs status"]);
    stdin.write_all(&[whole("more", &[7; 300_000]), end()].concat()).unwrap();
    drop(stdin);
    mount.wait_clean();
    assert_eq!(fs::read(mount.path("more")).unwrap(), [7; 300_000]);
    fails(&restorefs(&["discard"], &[&spool]), &["is in use"]);
    mount.unmount();
}

#[test]
fn whoever_has_the_lock_decides() {
    needs_fuse!();
    let (_mount, spool) = killed();
    let lock = fs::File::open(spool.join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    assert!(left_over(&spool).is_none());
    fails(&restorefs(&["discard"], &[&spool]), &["is in use"]);
    assert!(spool.join("journal").exists());
    drop(lock);
    discards(&spool);
}

#[test]
fn what_is_not_a_spool_is_not_removed() {
    needs_fuse!();
    let (_mount, spool) = killed();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let link = path("link");
    symlink(&spool, &link).unwrap();
    let directory = path("restorefs-1-0123456789abcdef");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "kept").unwrap();
    let refused = |path: &Path, needles: &[&str]| fails(&restorefs(&["discard"], &[path]), needles);
    refused(&link, &["is a symbolic link"]);
    refused(&directory, &["is not a spool", "nothing is removed"]);
    refused(&directory.join("file"), &["is not a spool"]);
    refused(&path("nothing"), &["No such file"]);
    // Nor is a directory with a spool.json of something else, or with a link to one of ours.
    fs::write(directory.join("spool.json"), r#"{"format":"thread"}"#).unwrap();
    refused(&directory, &["is not a spool"]);
    fs::remove_file(directory.join("spool.json")).unwrap();
    symlink(spool.join("spool.json"), directory.join("spool.json")).unwrap();
    refused(&directory, &["is not a spool"]);
    assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "kept");
    assert!(spool.join("journal").exists());
    assert_eq!(restorefs(&["discard"], &[]).status.code(), Some(2));
    assert_eq!(restorefs(&["discard", "--all"], &[&spool]).status.code(), Some(2));

    // One that is refused keeps no other from being removed; and what links in a spool lead to stays.
    symlink(&directory, spool.join("blobs/link")).unwrap();
    let output = restorefs(&["discard"], &[&link, &spool]);
    fails(&output, &["is a symbolic link"]);
    assert!(!spool.exists() && directory.join("file").exists(), "{output:?}");
}

#[test]
fn a_discard_that_is_killed_can_be_finished() {
    needs_fuse!();
    const FILES: usize = 50_000;
    let (_mount, spool) = killed();
    let blobs = spool.join("blobs");
    for n in 1..FILES {
        fs::File::create(blobs.join(n.to_string())).unwrap();
    }
    let count = || blobs.read_dir().map_or(0, Iterator::count);
    let before = count();
    let discard = Group::start(Command::new(RESTOREFS).arg("discard").arg(&spool).stdout(Stdio::null()));
    wait_until("it has begun", || (count() < before).then_some(()));
    discard.signal(Signal::INT);
    drop(discard);
    // Where it was quicker than we were, there is nothing to be finished.
    if spool.exists() {
        discards(&spool);
    }

    // As far as it can get before only the name is left.
    let (_mount, spool) = killed();
    shell(&spool, "rm -r blobs journal lock");
    assert!(left_over(&spool).is_some());
    discards(&spool);
    let (_mount, spool) = killed();
    shell(&spool, "rm -r *");
    discards(&spool);
}

#[test]
fn users_see_and_discard_their_own() {
    needs_fuse!();
    let home = Home::new(10);
    fs::write(home.path.join("x.tar"), [whole("small", b"s"), end()].concat()).unwrap();
    home.give();
    let told = home.script(
        r#"
        mkdir -p /var/lib/restorefs
        mount -t tmpfs -o mode=755 own /var/lib/restorefs
        mount -t tmpfs -o mode=1777 own /var/tmp
        export XDG_STATE_HOME=$PWD/state
        leave() {
            as $1 "cat x.tar | ./restorefs mount -d --keep-spool $2 - mnt; ./restorefs wait mnt; ./restorefs umount mnt"
        }
        chmod o+rx . mnt
        chmod o+r x.tar
        mkdir elsewhere
        chown $uid:$uid elsewhere
        leave $uid ''
        leave $uid "--spool elsewhere"
        leave 0 ''
        echo "== user"
        as $uid './restorefs status' | grep -E "^/var/tmp|^$PWD|journal" | sed "s,$PWD,HOME,"
        echo "== noted"
        ls state/restorefs/spools | wc -l
        ls /var/lib/restorefs/spools | wc -l
        echo "== root"
        ./restorefs status | grep -E '^/var/tmp|owner' | sed "s,$PWD,HOME,"
        echo "== hostile"
        as $uid 'ln -s elsewhere/restorefs-* /var/tmp/restorefs-1-0000000000000001
                 mkdir /var/tmp/restorefs-1-000000000000000{2,3,4}
                 mkfifo /var/tmp/restorefs-1-0000000000000002/spool.json
                 ln -s /dev/zero /var/tmp/restorefs-1-0000000000000003/spool.json
                 head -c 1M /dev/zero >/var/tmp/restorefs-1-0000000000000004/spool.json
                 ln -s /proc/self/cwd/elsewhere state/restorefs/spools/link'
        timeout 60 ./restorefs status | grep -c '(journal '
        as $uid 'timeout 60 ./restorefs status' | grep -c '(journal '
        echo "== others"
        theirs=$(find /var/tmp -mindepth 1 -maxdepth 1 -name 'restorefs-*' -user 0)
        as $uid "./restorefs discard $theirs" || echo "exit $?"
        echo "== all of root"
        ./restorefs discard --all | sed 's/.*: //'
        ls -d $theirs 2>/dev/null || echo "gone: root's"
        as $uid './restorefs status' | grep -c '(journal '
        echo "== all"
        as $uid './restorefs discard --all' | wc -l
        as $uid './restorefs discard --all; ./restorefs status' | grep -E '^no spool|journal'
        ls -A elsewhere
        ls state/restorefs/spools
        echo "== not noted"
        as $uid 'XDG_STATE_HOME=/proc/nowhere ./restorefs mount -d --spool elsewhere <(cat x.tar) mnt; ./restorefs wait mnt; ./restorefs umount mnt'
        "#,
    );
    let parts: Vec<&str> = told.split("== ").skip(1).collect();
    assert_eq!(parts.len(), 8, "{told}");
    let has = |part: &str, what: &str| part.matches(what).count();
    assert_eq!(
        (has(parts[0], "/var/tmp/"), has(parts[0], "HOME/elsewhere/"), has(parts[0], "owner")),
        (1, 1, 0),
        "{told}"
    );
    assert_eq!(has(parts[0], "(journal "), 2, "{told}");
    assert_eq!(parts[1], "noted\n2\n1\n", "{told}");
    // Root sees what lies in the usual place, whoever made it.
    assert_eq!((has(parts[2], "/var/tmp/"), has(parts[2], "owner      uucp (10)")), (2, 1), "{told}");
    assert_eq!(parts[3], "hostile\n2\n2\n", "{told}");
    assert!(parts[4].contains("belongs to user 0") && parts[4].ends_with("exit 1\n"), "{told}");
    assert!(has(parts[5], " freed\n") == 1 && parts[5].contains("gone: root's\n2\n"), "{told}");
    assert_eq!(parts[6], "all\n2\nno spool is left over\nlink\n", "{told}");
    assert_eq!(parts[7].trim(), "not noted", "{told}");
}
