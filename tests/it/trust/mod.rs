//! Root restores, asks and unmounts what another user has mounted: that user gains nothing by it, whatever they do to
//! their spool, their daemon and their mount point. `docs/trust.md` says who trusts whom.

mod others;
mod place;
mod spools;
mod strangers;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::support::feed::{end, whole};
use crate::support::needs_fuse;
use crate::support::users::Home;

/// What root keeps to itself.
static SECRET: [u8; 300_000] = [b'!'; 300_000];

/// A home with an archive in it, of a small file and of one that has a blob; beside it what root keeps to itself.
fn home(uid: u32) -> Home {
    let home = Home::new(uid);
    let archive = [whole("small", b"packed"), whole("large", &[7; 300_000]), end()].concat();
    fs::write(home.path.join("x.tar"), archive).unwrap();
    home.give();
    home
}

fn keep_secret(above: &Path) {
    fs::create_dir(above.join("secret")).unwrap();
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(above.join("secret/0")).unwrap();
    file.write_all(&SECRET).unwrap();
}

/// Restores in various ways have left nothing of the secret.
fn holds_no_secret(dir: &Path) {
    let found = crate::support::shell(dir, "grep -rlF '!!!!!!!!' --exclude-dir=secret . || true");
    assert_eq!(found, "");
}

#[test]
fn a_blob_that_is_not_what_the_daemon_wrote_is_not_read() {
    needs_fuse!();
    let home = home(2);
    let above = home.path.parent().unwrap();
    keep_secret(above);
    let told = home.script(
        r#"
        as $uid './restorefs mount -d --spool . <(cat x.tar) mnt; ./restorefs wait mnt'
        blob=$(echo restorefs-*/blobs/0)
        as $uid "cp $blob copy"
        try() {
            echo "== $1"
            as $uid "rm -rf $blob"
            case $1 in
                symlink) as $uid "ln -s $PWD/../secret/0 $blob" ;;
                'own symlink') as $uid "ln -s $PWD/copy $blob" ;;
                'magic link') as $uid "ln -s /proc/self/exe $blob" ;;
                fifo) as $uid "mkfifo $blob" ;;
                directory) as $uid "mkdir $blob" ;;
                socket) as $uid "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"$blob\")'" ;;
                # As it is where fs.protected_hardlinks is off.
                'hard link') ln ../secret/0 $blob ;;
                'mounted over') as $uid "cp copy $blob"; mount --bind ../secret/0 $blob ;;
                short) as $uid "head -c 1000 copy >$blob" ;;
                whole) as $uid "cp copy $blob" ;;
            esac
            mkdir "../dest $1"
            timeout 60 ./restorefs materialize --no-sync mnt "../dest $1" || echo "exit $?"
            timeout 60 ./restorefs materialize --no-sync --verify mnt "../dest $1" >/dev/null || true
            ls "../dest $1"
            umount $blob 2>/dev/null || true
        }
        for what in symlink 'own symlink' 'magic link' fifo directory socket 'hard link' 'mounted over' short whole; do
            try "$what"
        done
        as $uid './restorefs umount mnt'
        "#,
    );
    let parts: Vec<&str> = told.split("== ").skip(1).collect();
    for (part, (what, reason)) in parts.iter().zip([
        ("symlink", "is not a regular file"),
        ("own symlink", "is not a regular file"),
        ("magic link", "is not a regular file"),
        ("fifo", "is not a regular file"),
        ("directory", "is not a regular file"),
        ("socket", "is not a regular file"),
        ("hard link", "belongs to user 0, not to user 2 who runs the daemon"),
        ("mounted over", "something is mounted over the blob"),
        ("short", "the spool has been cut"),
    ]) {
        assert!(part.starts_with(what), "{told}");
        assert!(part.contains("'large'") && part.contains(reason), "{what}: {part}");
        assert!(part.contains("exit 3\n") && part.ends_with("\nsmall\n"), "{what}: {part}");
    }
    assert!(parts[9].ends_with("\nlarge\nsmall\n") && !parts[9].contains("exit"), "{}", parts[9]);
    holds_no_secret(above);
}

#[test]
fn a_daemon_that_lies_is_not_believed() {
    needs_fuse!();
    let home = home(3);
    let above = home.path.parent().unwrap();
    keep_secret(above);
    fs::write(home.path.join("daemon.py"), include_str!("daemon.py")).unwrap();
    home.give();
    let told = home.script(
        r#"
        as $uid './restorefs mount -d --spool . <(cat x.tar) mnt; ./restorefs wait mnt'
        exec 3< <(as $uid "exec python3 daemon.py /tmp/restorefs-$uid")
        at_end="kill $!"
        read -u3
        for mode in none longer back 'many files' 'fifo as journal' 'fifo as archive' 'file as blobs' 'blobs of root' \
                    'no files' dribble endless silent deep; do
            echo "$mode" >mode
            echo "== $mode"
            mkdir "../dest $mode"
            timeout 60 ./restorefs materialize --no-sync mnt "../dest $mode" || echo "exit $?"
            ls "../dest $mode"
        done
        echo == escapes
        echo escapes >mode
        ./restorefs status mnt
        echo == silent
        echo silent >mode
        timeout 60 ./restorefs status mnt || echo "exit $?"
        timeout 60 ./restorefs status || echo "exit $?"
        timeout 60 ./restorefs umount mnt || echo "exit $?"
        timeout 60 ./restorefs umount --force mnt
        "#,
    );
    let parts: Vec<&str> = told.split("== ").skip(1).collect();
    for (part, (mode, needles)) in parts.iter().zip([
        ("none", &["\nlarge\nsmall\n"][..]),
        ("longer", &["the journal is shorter than its daemon says", "exit 1"]),
        ("back", &["the daemon says that its journal has become shorter", "exit 1"]),
        ("many files", &["it hands over too many files", "exit 1"]),
        ("fifo as journal", &["the journal is not a regular file", "exit 1"]),
        ("fifo as archive", &["the archive is not a regular file", "exit 1"]),
        ("file as blobs", &["the blobs are not in a directory", "exit 1"]),
        ("blobs of root", &["the directory of the blobs belongs to user 0, not to user 3", "exit 1"]),
        ("no files", &["unexpected answer", "exit 1"]),
        ("dribble", &["does not answer", "exit 1"]),
        ("endless", &["its answer is too long", "exit 1"]),
        ("silent", &["does not answer", "exit 1"]),
        ("deep", &["recursion limit exceeded", "exit 1"]),
        ("escapes", &["source     \\x1b[2J\\x1b]0;owned\\x07\\xe2\\x80\\xae\\n  state  forged\n"]),
        ("silent", &["does not answer", "exit 1"]),
    ]) {
        assert!(part.starts_with(mode), "{told}");
        for needle in needles {
            assert!(part.contains(needle), "no '{needle}' in: {part}");
        }
    }
    assert!(!told.contains(['\x1b', '\x07', '\u{202e}']), "{told:?}");
    holds_no_secret(above);
}
