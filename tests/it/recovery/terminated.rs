//! SIGTERM keeps the spool, as a shutdown of the machine needs it.

use std::fs;
use std::io::Write;

use rustix::process::{Signal, kill_process};

use super::{discard, recover, same_beginning};
use crate::support::feed::{end, file, whole};
use crate::support::mount::Mount;
use crate::support::needs_fuse;
use crate::support::process::is_gone;
use crate::support::tree::bytes;
use crate::support::wait_until;

fn terminate(mount: &mut Mount) {
    kill_process(mount.daemon(), Signal::TERM).unwrap();
    mount.wait_front();
    wait_until("the daemon is gone", || is_gone(mount.daemon()).then_some(()));
    assert!(!mount.is_mounted());
}

#[test]
fn while_something_arrives() {
    needs_fuse!();
    const SIZE: usize = 2 << 20;
    let (mut mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&[whole("small", b"s"), file("cut", SIZE), bytes(1, SIZE / 2)].concat()).unwrap();
    mount.wait_for("cut");
    let half = format!("arriving {}/{SIZE}", SIZE / 2);
    wait_until("half of it has come", || (mount.state("cut") == half).then_some(()));
    let spool = mount.spool();
    terminate(&mut mount);
    let recovered = recover(&spool);
    recovered.ends(4, &["the last entry is 'cut'"]);
    assert_eq!(fs::read(recovered.mount.path("small")).unwrap(), b"s");
    // It was ended in order: nothing of what had come is missing.
    assert_eq!(same_beginning(&recovered.mount, "cut", &bytes(1, SIZE)), SIZE as u64 / 2);
    recovered.unmount(&spool);
    discard(&spool);
}

#[test]
fn after_the_end() {
    needs_fuse!();
    let (mut mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&[whole("small", b"s"), whole("large", &bytes(1, 300_000)), end()].concat()).unwrap();
    drop(stdin);
    mount.wait_clean();
    let spool = mount.spool();
    terminate(&mut mount);
    let recovered = recover(&spool);
    recovered.ends(0, &["complete"]);
    assert_eq!(fs::read(recovered.mount.path("small")).unwrap(), b"s");
    assert!(fs::read(recovered.mount.path("large")).unwrap() == bytes(1, 300_000));
    recovered.unmount(&spool);
    discard(&spool);
}
