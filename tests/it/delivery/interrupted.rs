//! Ctrl-C at the sender, and the same command after it.

use std::fs;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::{Pair, long_file};
use crate::support::compare::same_tree;
use crate::support::disk::Disk;
use crate::support::mount::RESTOREFS;
use crate::support::needs_fuse;
use crate::support::proxy::{Proxy, Way};
use crate::support::tree::bytes;
use crate::support::wait_until;

/// Whether the receiver waits for its sender, and says what can be done.
fn waits(pair: &Pair) -> impl Fn(&Value) -> bool {
    let stop =
        format!("the sender was interrupted; waiting for it, or 'restorefs stop {}' ", pair.mount.point.display());
    move |status| status["phase"] == "waiting" && status["paused"].as_str().is_some_and(|why| why.starts_with(&stop))
}

#[test]
fn the_same_command_goes_on_after_it() {
    needs_fuse!();
    const FILES: u64 = 24;
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut pair = Pair::new(&[], |tree| {
            for n in 0..FILES {
                fs::write(tree.join(format!("file-{n:02}")), bytes(n, 1 << 20)).unwrap();
            }
        });
        let proxy = Proxy::start(pair.address, |_| Way::default());
        // However the tests were started, nothing is ignored.
        let mut command = Command::new("env");
        command.args(["--default-signal", RESTOREFS]);
        let args = ["--no-compress", "--rate-limit", "8M"];
        let sender = pair.send_by(command, &pair.token, proxy.address, &args);
        pair.mount.wait_for(format!("file-{:02}", FILES - 1));
        wait_until("some are whole", || {
            (0..8).all(|n| pair.mount.state(format!("file-{n:02}")) == "complete").then_some(())
        });
        sender.0.signal(signal);
        let sent = sender.end();
        assert_eq!(sent.code, Some(4), "{signal:?}: {sent:#?}");
        assert!(sent.printed.contains(&format!("of {FILES} files are missing or cut")), "{signal:?}: {sent:#?}");
        assert!(sent.printed.contains("the same command goes on"), "{signal:?}: {sent:#?}");
        pair.mount.wait_status("it is waited for", waits(&pair));
        pair.mount.wait_printed("the sender was interrupted; waiting for it");
        let sent = pair.send(proxy.address, &["--no-compress"]).delivered();
        assert!(sent.report["there_already"].as_u64() >= Some(8), "{signal:?}: {sent:#?}");
        // All that was confirmed, and the beginning of a file too, is sent once.
        let most = (FILES as usize + 2) << 20;
        assert!(proxy.passed() < most, "{signal:?}: {} bytes passed", proxy.passed());
        assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
        same_tree(&pair.tree, &pair.mount.point);
        pair.mount.unmount();
    }
}

#[test]
fn a_sender_that_was_started_by_nohup_outlives_its_terminal() {
    needs_fuse!();
    let mut pair = Pair::new(&[], long_file);
    let proxy = Proxy::start(pair.address, |_| Way { hold: Some(1 << 20), ..Way::default() });
    let mut command = Command::new("env");
    command.args(["--ignore-signal=HUP", RESTOREFS]);
    let sender = pair.send_by(command, &pair.token, proxy.address, &["--no-compress"]);
    proxy.wait_held();
    sender.0.signal(Signal::HUP);
    proxy.release();
    sender.delivered();
    assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
    pair.mount.unmount();
}

#[test]
fn what_the_receiver_has_no_room_for_is_taken_when_there_is_some() {
    needs_fuse!();
    let spool = Disk::new("tmpfs", "size=8M");
    let mut pair = Pair::new(&["--spool", spool.path().to_str().unwrap()], long_file);
    let sender = pair.send(pair.address, &["--no-compress"]);
    pair.mount.wait_status("there is no room", |status| status["phase"] == "no-space");
    assert_eq!(pair.mount.status()["sender"]["connected"], true, "{:#}", pair.mount.status());
    sender.0.signal(Signal::INT);
    assert_eq!(sender.end().code, Some(4));
    let is_away = |status: &Value| status["sender"]["connected"] == false && status["phase"] == "no-space";
    pair.mount.wait_status("it is away", is_away);
    spool.remount("size=256M");
    pair.mount.wait_status("it is waited for", waits(&pair));
    assert!(pair.mount.state("a-long").starts_with("arriving "), "{}", pair.mount.state("a-long"));
    pair.send(pair.address, &[]).delivered();
    assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
    same_tree(&pair.tree, &pair.mount.point);
    drop(pair);
}

#[test]
fn a_receiver_that_is_stopped_then_is_stopped() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        long_file(tree);
        fs::write(tree.join("z"), "last").unwrap();
    });
    let sender = pair.send(pair.address, &["--no-compress", "--rate-limit", "1M"]);
    pair.mount.wait_for("z");
    wait_until("it has begun", || pair.mount.state("a-long").starts_with("arriving ").then_some(()));
    sender.0.signal(Signal::INT);
    assert_eq!(sender.end().code, Some(4));
    pair.mount.wait_status("it is waited for", waits(&pair));
    pair.mount.signal(Signal::INT);
    assert_eq!(pair.mount.wait_front(), Some(4), "{}", pair.mount.printed());
    assert_eq!(pair.mount.status()["sender"]["cut"], serde_json::json!(["a-long"]), "{:#}", pair.mount.status());
    assert_eq!(fs::read(pair.mount.path("z")).unwrap_err().raw_os_error(), Some(libc::EIO));
    pair.mount.unmount();
}
