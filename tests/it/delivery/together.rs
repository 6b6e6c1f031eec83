//! Two senders with one token.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use restorefs::stop::Stop;
use restorefs::wire::{Token, connect};

use super::{Pair, Sender, long_file};
use crate::support::HANGS;
use crate::support::compare::same_tree;
use crate::support::mount::RESTOREFS;
use crate::support::needs_fuse;
use crate::support::proxy::{Proxy, Way};

fn long_tree(tree: &Path) {
    long_file(tree);
    fs::write(tree.join("z"), "last").unwrap();
}

/// The first sender is there, and takes its time.
fn slow(pair: &Pair, to: SocketAddr) -> Sender {
    let sender = pair.send(to, &["--no-compress", "--rate-limit", "1M"]);
    pair.mount.wait_for("z");
    sender
}

#[test]
fn a_second_sender_is_refused_while_the_first_is_alive_unless_it_takes_over() {
    needs_fuse!();
    let mut pair = Pair::new(&[], long_tree);
    // What it is called reaches the other sender, and cannot write to its terminal.
    let mut command = Command::new("unshare");
    command.args(["--uts", "sh", "-c", r#"printf 'a\033[2Jhost' >/proc/sys/kernel/hostname && exec "$0" "$@""#]);
    command.arg(RESTOREFS);
    let first = pair.send_by(command, &pair.token, pair.address, &["--no-compress", "--rate-limit", "1M"]);
    pair.mount.wait_for("z");
    let refused = pair.send(pair.address, &[]).end();
    assert_eq!(refused.code, Some(1), "{refused:#?}");
    let told = format!(r"host a\x1b[2Jhost, PID {} is sending since 20", first.0.pid().as_raw_nonzero());
    assert!(refused.printed.contains(&told), "{refused:#?}");
    assert!(refused.printed.contains(" UTC; --take-over takes its place"), "{refused:#?}");
    assert_eq!(pair.mount.status()["sender"]["pid"], first.0.pid().as_raw_nonzero().get());
    let second = pair.send(pair.address, &["--take-over"]);
    let pid = second.0.pid().as_raw_nonzero();
    second.delivered();
    let first = first.end();
    assert_eq!(first.code, Some(1), "{first:#?}");
    let line = first.printed.lines().find(|line| line.contains("took over")).unwrap_or_else(|| panic!("{first:#?}"));
    assert!(line.ends_with(&format!(", PID {pid} took over")), "{line}");
    assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn one_that_is_not_heard_any_more_blocks_nobody() {
    needs_fuse!();
    // Its connection stays open for much longer than this takes.
    let mut pair = Pair::new(&["--timeout", "600"], long_tree);
    let proxy = Proxy::start(pair.address, |_| Way { hold: Some(1 << 20), ..Way::default() });
    let first = pair.send(proxy.address, &["--no-compress", "--timeout", "600"]);
    proxy.wait_held();
    pair.send(pair.address, &[]).delivered();
    let first = first.end();
    assert_eq!(first.code, Some(1), "{first:#?}");
    assert!(first.printed.contains("took over"), "{first:#?}");
    assert_eq!(pair.mount.wait_front(), Some(0));
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn one_that_comes_back_to_find_another_there_is_refused() {
    needs_fuse!();
    let mut pair = Pair::new(&[], long_tree);
    let proxy = Proxy::start(pair.address, |_| Way::default());
    // It may take over: that counts for where it began, not for where it comes back to.
    let first = pair.send(proxy.address, &["--no-compress", "--rate-limit", "1M", "--take-over"]);
    pair.mount.wait_for("z");
    // Nobody listens there.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    proxy.lead_to(nowhere);
    proxy.cut();
    pair.mount.wait_status("it is away", |status| status["sender"]["connected"] == false);
    let second = slow(&pair, pair.address);
    pair.mount.wait_status("the second is there", |status| {
        status["sender"]["pid"] == second.0.pid().as_raw_nonzero().get() && status["sender"]["connected"] == true
    });
    proxy.lead_to(pair.address);
    let first = first.end();
    assert_eq!(first.code, Some(1), "{first:#?}");
    assert!(first.printed.contains("is sending since"), "{first:#?}");
    pair.send(pair.address, &["--take-over"]).delivered();
    assert_eq!(second.end().code, Some(1));
    assert_eq!(pair.mount.wait_front(), Some(0));
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn one_that_does_not_say_who_it_is_takes_nobodys_place() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        long_file(tree);
        fs::write(tree.join("z"), "last").unwrap();
    });
    let proxy = Proxy::start(pair.address, |_| Way { hold: Some(1 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    let token = Token::parse(&fs::read_to_string(&pair.token).unwrap()).unwrap();
    let stop = Stop::new().unwrap();
    let silent = connect(&pair.address.to_string(), &token, HANGS, &stop).ok().unwrap();
    proxy.release();
    sender.delivered();
    assert_eq!(pair.mount.wait_front(), Some(0));
    same_tree(&pair.tree, &pair.mount.point);
    drop(silent);
    pair.mount.unmount();
}
