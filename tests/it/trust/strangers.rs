//! Other users of the machine: what they are told, and what they cannot take away.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use super::home;
use crate::support::feed::{end, whole};
use crate::support::mount::Mount;
use crate::support::needs_fuse;

#[test]
fn status_shows_what_others_have_mounted() {
    needs_fuse!();
    let home = home(7);
    let told = home.script(
        r#"
        point=$PWD/mnt
        as $uid './restorefs mount -d x.tar mnt'
        mkdir ../theirs
        chown 8:8 ../theirs
        as 8 "./restorefs mount -d x.tar ../theirs"
        at_end='umount -l ../theirs 2>/dev/null || true'
        mine() { awk -v point="$1" '/^\// { shown = $0 == point } shown'; }
        echo == all
        as 8 './restorefs status' >all && echo "exit $?"
        mine $point <all
        mine $(realpath ../theirs) <all | head -2
        echo == json
        as 8 './restorefs status --json' | grep -F "\"$point\""
        echo == named
        as 8 './restorefs status mnt' || echo "exit $?"
        echo == root
        ./restorefs status | mine $point | head -2
        as $uid './restorefs umount mnt'
        as 8 './restorefs umount ../theirs'
        rm -rf /tmp/restorefs-8
        "#,
    );
    let parts: Vec<&str> = told.split("== ").skip(1).collect();
    let point = home.path.join("mnt");
    let point = point.display();
    let foreign = format!("all\nexit 0\n{point}\n  owner      lp (7): only they and root may ask how it stands\n");
    assert!(parts[0].starts_with(&foreign), "{told}");
    assert!(parts[0].contains("\n  source     x.tar\n") && parts[0].ends_with("  state      complete\n"), "{told}");
    let json: serde_json::Value = serde_json::from_str(parts[1].strip_prefix("json\n").unwrap()).unwrap();
    assert_eq!((&json["owner"], &json["source"]), (&7.into(), &"x.tar".into()));
    assert!(parts[2].contains("belongs to another user") && parts[2].ends_with("exit 1\n"), "{told}");
    assert!(parts[3].contains("  state      complete\n"), "{told}");
}

#[test]
fn whoever_was_in_tmp_first_takes_nothing_away() {
    needs_fuse!();
    let home = home(9);
    // The user 10 takes the name of the directory in which the user 9 would have its socket, in every way that there is,
    // and makes others that look like theirs.
    let told = home.script(
        r#"
        as 10 'mkdir -m 777 /tmp/restorefs-9-0000000000000000; mkdir -m 700 /tmp/restorefs-9-zzz'
        at_end='rm -rf /tmp/restorefs-9-* /tmp/of-10'
        try() {
            echo "== $1"
            rm -rf /tmp/restorefs-9
            as 10 "$1"
            as $uid './restorefs mount -d --spool . <(cat x.tar) mnt; ./restorefs wait mnt; ./restorefs status mnt'
            ./restorefs status mnt
            as $uid './restorefs umount mnt; ls -d restorefs-* 2>/dev/null || echo clean'
            [[ ! -d /tmp/restorefs-9 ]] || ls -A /tmp/restorefs-9
        }
        try true
        rm -rf /tmp/restorefs-9
        try 'mkdir -m 777 /tmp/restorefs-9'
        try 'mkdir -m 700 /tmp/restorefs-9'
        try 'touch /tmp/restorefs-9'
        try 'mkfifo -m 666 /tmp/restorefs-9'
        try 'mkdir -pm 777 /tmp/of-10; ln -s of-10 /tmp/restorefs-9'
        ls -A /tmp/restorefs-9-z* /tmp/restorefs-9-0000000000000000
        ls -d /tmp/restorefs-9-* | wc -l
        "#,
    );
    let parts: Vec<&str> = told.split("== ").skip(1).collect();
    assert_eq!(parts.len(), 6, "{told}");
    for part in &parts {
        assert_eq!(part.matches("  state      complete\n").count(), 2, "{told}");
        assert!(part.contains("clean\n") && !part.contains("restorefs: "), "{told}");
    }
    // One directory is enough for all of them.
    assert!(told.ends_with("\n3\n"), "{told}");
}

#[test]
fn what_a_dead_daemon_left_makes_nobody_wait() {
    needs_fuse!();
    let home = home(13);
    let told = home.script(
        r#"
        as $uid './restorefs mount -d --spool . <(cat x.tar) mnt; ./restorefs wait mnt'
        pid=$(pidof -x $PWD/restorefs)
        kill -KILL $pid
        while kill -0 $pid 2>/dev/null; do sleep 0.01; done
        trace=$(ls /tmp/restorefs-$uid/*.json)
        ask() {
            timeout 60 ./restorefs status mnt || echo "exit $?"
        }
        echo == escapes
        as $uid "sed -i 's/\"spool\":\"/&\\\\u001b[2J/' $trace"
        ask
        echo == fifo
        as $uid "rm $trace; mkfifo $trace"
        ask
        echo == link
        as $uid "rm $trace; ln -s /dev/zero $trace"
        ask
        timeout 60 ./restorefs umount --force mnt
        ls /tmp/restorefs-$uid
        "#,
    );
    assert!(!told.contains('\x1b'), "{told:?}");
    let parts: Vec<&str> = told.split("== ").skip(1).collect();
    assert!(parts[0].contains("what had arrived is in '\\x1b[2J/"), "{told}");
    assert!(parts[0].contains("is gone;") && parts[0].ends_with("exit 1\n"), "{told}");
    for part in &parts[1..] {
        assert!(part.contains("has no control socket") && part.contains("exit 1\n"), "{told}");
    }
    assert!(parts[2].ends_with("was not asked, and may still run\n"), "{told}");
}

#[test]
fn nobody_else_is_answered_even_where_they_can_connect() {
    needs_fuse!();
    let home = home(34);
    // The user lets everybody at their socket.
    let told = home.script(
        r#"
        as $uid "./restorefs mount -d x.tar mnt; chmod 755 /tmp/restorefs-$uid; chmod 666 /tmp/restorefs-$uid/*.sock"
        ask() {
            python3 - /tmp/restorefs-$uid/*.sock <<'END'
import socket, sys
with socket.socket(socket.AF_UNIX) as daemon:
    daemon.connect(sys.argv[1])
    try:
        daemon.sendall(b'"status"\n')
        print(len(daemon.recv(1 << 16)) > 0)
    except OSError:
        print(False)
END
        }
        export uid
        export -f ask
        as $uid ask
        as 8 ask
        ask
        as $uid './restorefs umount mnt'
        "#,
    );
    assert_eq!(told, "True\nFalse\nTrue\n");
}

#[test]
fn requests_that_make_no_sense_hold_nobody_up() {
    needs_fuse!();
    let (mount, mut stdin) = Mount::pipe(&[]);
    let device = mount.point.metadata().unwrap().dev();
    let socket = format!("/run/restorefs/{}:{}.sock", rustix::fs::major(device), rustix::fs::minor(device));
    let connect = || UnixStream::connect(&socket).unwrap();
    // Some say nothing at all.
    let silent: Vec<_> = (0..20).map(|_| connect()).collect();
    for (request, answer) in [
        (&b"nonsense\n"[..], "the request cannot be read"),
        (b"{\"unmount\":{\"mount\":18446744073709551616,\"force\":true}}\n", "the request cannot be read"),
        (&[b'['; 100_000], "the request cannot be read"),
        (b"{\"wait\":{\"path\":[46,46,47,46,46,47,101,116,99]}}\n", ""),
    ] {
        let mut client = connect();
        client.write_all(request).unwrap();
        let mut told = String::new();
        if answer.is_empty() {
            // It waits for what never comes.
            drop(client);
            continue;
        }
        client.shutdown(std::net::Shutdown::Write).unwrap();
        client.read_to_string(&mut told).unwrap();
        assert!(told.contains(answer), "{told}");
    }
    // A line that does not end is not kept beyond a bound.
    let mut client = connect();
    let _ = client.write_all(&vec![b' '; 4 << 20]);
    let mut told = String::new();
    let _ = client.read_to_string(&mut told);
    stdin.write_all(&[whole("small", b"s"), end()].concat()).unwrap();
    drop(stdin);
    mount.wait_clean();
    drop(silent);
    mount.unmount();
}
