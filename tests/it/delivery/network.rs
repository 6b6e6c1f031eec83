//! Two machines, as far as one can be two: a cable that is pulled, and a sender that comes back from elsewhere.

use std::fs;
use std::process::{Command, Stdio};

use super::{Pair, Sender, long_file};
use crate::support::compare::same_tree;
use crate::support::disk::Disk;
use crate::support::mount::RESTOREFS;
use crate::support::needs_fuse;
use crate::support::network::{Network, RECEIVER};
use crate::support::process::Group;
use crate::support::tree::{Features, bytes, make};

#[test]
fn a_sender_that_comes_back_with_another_address() {
    needs_fuse!();
    let Some(network) = Network::new() else { return };
    network.address_of_sender("10.11.12.2");
    // It is full in the midst of the first file: until it grows, the cable is pulled in time.
    let spool = Disk::new("tmpfs", "size=8M");
    let args = ["--timeout", "6", "--spool", spool.path().to_str().unwrap()];
    let mut pair = Pair::new_on(&network.receiver, &format!("{RECEIVER}:0"), &args, |tree| {
        long_file(tree);
        make(tree, Features::ALL);
    });
    let mut command = Network::command(&network.sender, RESTOREFS);
    command.args(["send", ".", "--json", "--no-compress", "--timeout", "6", "-C"]).arg(&pair.tree);
    command.args(["--to", &pair.address.to_string(), "--token-file"]).arg(&pair.token);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let sender = Sender(Group::start(&mut command));
    pair.mount.wait_status("there is no room", |status| status["phase"] == "no-space");
    network.ip(&network.sender, "link set cable down");
    spool.remount("size=256M");
    pair.mount.wait_status("the receiver has noticed", |status| status["sender"]["outages"] == 1);
    // Who reads what has not come waits through the outage.
    let copy = pair.dir.path().join("copy");
    let mut reader = Command::new("cat");
    reader.arg(pair.mount.path("a-long")).stdout(fs::File::create(&copy).unwrap());
    let mut reader = Group::start(&mut reader);
    reader.wait_parked();
    network.address_of_sender("10.11.12.3");
    network.ip(&network.sender, "link set cable up");
    assert!(reader.wait().success());
    assert!(fs::read(&copy).unwrap() == bytes(1, 48 << 20));
    let status = pair.mount.status();
    let from = status["sender"]["address"].as_str().unwrap();
    assert!(from.starts_with("10.11.12.3:"), "{from}");
    let sent = sender.delivered();
    assert_eq!(sent.report["outages"], 1, "{sent:#?}");
    assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}
