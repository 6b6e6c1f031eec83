//! `restorefs stop`: what Ctrl-C in front does, from any terminal.

use std::fs;

use super::{arriving, contents, says, spooled};
use crate::support::mount::{Mount, restorefs};
use crate::support::users::Home;
use crate::support::{needs_fuse, wait_until};

fn stop(mount: &Mount) -> (i32, String) {
    let output = restorefs(&["stop"], &[&mount.point]);
    (output.status.code().unwrap(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn what_arrived_stays_mounted() {
    needs_fuse!();
    let (mut mount, stdin) = arriving();
    let (code, told) = stop(&mount);
    assert_eq!(code, 4, "{told}");
    says(&told, &["incomplete: receiving was stopped", "'cut' was cut", "3 entries", "it stays mounted"]);
    assert_eq!(fs::read(mount.path("small")).unwrap(), b"s");
    assert!(mount.state("cut").starts_with("truncated "));
    // The front heard of it too.
    mount.wait_printed("incomplete: receiving was stopped");
    let (code, told) = stop(&mount);
    assert_eq!(code, 0, "{told}");
    says(&told, &["was over already: incomplete"]);
    assert_eq!(mount.unmount(), Some(4));
    drop(stdin);

    mount = spooled();
    let (code, told) = stop(&mount);
    assert_eq!(code, 0, "{told}");
    says(&told, &["was over already: complete"]);
    assert!(fs::read(mount.path("cut")).unwrap() == contents());
    mount.unmount();
}

#[test]
fn a_receiver_that_waits_for_its_sender_is_stopped() {
    needs_fuse!();
    let (mut mount, _) = Mount::listen_for_sender(&[]);
    let (code, told) = stop(&mount);
    // Nothing came, so nothing stays.
    assert_eq!(code, 1, "{told}");
    says(&told, &["nothing was received", "is unmounted"]);
    assert_eq!(mount.wait_front(), Some(1));
    wait_until("it is unmounted", || (!mount.is_mounted()).then_some(()));
}

#[test]
fn only_its_owner_and_root_may() {
    needs_fuse!();
    let home = Home::new(10);
    let told = home.script(
        r#"
        mkfifo fifo
        chown $uid fifo
        as $uid './restorefs mount -d --spool . fifo mnt'
        as 8 './restorefs stop mnt 2>&1 || echo "other: $?"'
        as $uid './restorefs status mnt | grep state'
        ./restorefs stop mnt || echo "root: $?"
        "#,
    );
    says(&told, &["belongs to another user", "other: 1\n", "state      waiting", "root: 1\n"]);
}
