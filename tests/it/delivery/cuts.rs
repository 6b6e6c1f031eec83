//! Connections that are cut, crumbled, held, delayed: every run ends with the identical tree.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::{Pair, long_file};
use crate::support::compare::same_tree;
use crate::support::mount::{Mount, RESTOREFS};
use crate::support::needs_fuse;
use crate::support::proxy::{Delay, Proxy, Way};
use crate::support::tree::{Features, bytes, make};
use crate::support::{sequence, wait_until};

#[test]
fn a_connection_that_is_cut_again_and_again() {
    needs_fuse!();
    for seed in 1..=4 {
        let mut pair = Pair::new(&[], |tree| {
            make(tree, Features::ALL);
            fs::write(tree.join("large"), bytes(seed, 20 << 20)).unwrap();
        });
        // Early cuts in handshake and catalogue, later ones in contents; behind the last one all of it passes.
        let next = sequence(seed);
        let cuts: Vec<usize> = (0..8).map(|n| (next() % (20_000 << n)) as usize).collect();
        let count = cuts.len();
        let proxy = Proxy::start(pair.address, move |n| Way { cut: cuts.get(n).copied(), ..Way::default() });
        // A connection must come about before it is tried again: the first cut is behind the handshake.
        let sent = wait_first(&pair, &proxy);
        assert!(sent.report["outages"].as_u64().unwrap() >= 1, "{sent:#?}");
        assert!(proxy.connections() > count, "{} connections", proxy.connections());
        assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
        same_tree(&pair.tree, &pair.mount.point);
        pair.mount.unmount();
    }
}

/// Sends, again where not even the first connection came about: that is an error of its own.
fn wait_first(pair: &Pair, proxy: &Proxy) -> super::Sent {
    loop {
        let sent = pair.send(proxy.address, &[]).end();
        match sent.code {
            Some(0) => return sent,
            Some(1) => assert!(sent.printed.contains("connection"), "{sent:#?}"),
            _ => panic!("{sent:#?}"),
        }
    }
}

#[test]
fn one_byte_at_a_time() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        fs::create_dir(tree.join("dir")).unwrap();
        for n in 0..20 {
            fs::write(tree.join(format!("dir/{n}")), bytes(n, 100 * n as usize)).unwrap();
        }
    });
    let proxy = Proxy::start(pair.address, |_| Way { piece: Some(1), ..Way::default() });
    pair.send(proxy.address, &[]).delivered();
    assert_eq!(pair.mount.wait_front(), Some(0));
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn a_long_way_on_which_the_connection_is_cut_too() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        make(tree, Features::ALL);
        fs::write(tree.join("large"), bytes(3, 6 << 20)).unwrap();
    });
    let delay = Delay { least: Duration::from_millis(20), jitter: Duration::from_millis(30), seed: 7 };
    let proxy = Proxy::start(pair.address, move |n| Way {
        cut: (n < 2).then_some(2 << 20),
        piece: Some(16 << 10),
        delay: Some(Delay { seed: delay.seed + n as u64, ..delay }),
        ..Way::default()
    });
    let sent = pair.send(proxy.address, &["--no-compress"]).delivered();
    assert!(sent.report["outages"].as_u64().unwrap() >= 1, "{sent:#?}");
    assert_eq!(proxy.connections(), 3);
    assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn one_that_stalls_is_given_up_and_made_again() {
    needs_fuse!();
    let mut pair = Pair::new(&["--timeout", "6"], long_file);
    let proxy = Proxy::start(pair.address, |n| Way { hold: (n == 0).then_some(1 << 20), ..Way::default() });
    let sent = pair.send(proxy.address, &["--timeout", "6"]).delivered();
    assert_eq!(sent.report["outages"], 1);
    assert_eq!(pair.mount.wait_front(), Some(0));
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn readers_wait_through_an_outage_and_what_was_sent_is_not_sent_again() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        long_file(tree);
        fs::write(tree.join("z"), bytes(9, 300_000)).unwrap();
    });
    let all = (48 << 20) + 300_000;
    let proxy = Proxy::start(pair.address, move |n| match n {
        0 => Way { cut: Some(all / 2), ..Way::default() },
        1 => Way { hold: Some(1000), ..Way::default() },
        _ => Way::default(),
    });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    // The second connection is there, and says nothing.
    proxy.wait_held();
    let long = pair.mount.path("a-long");
    let reader = std::thread::spawn(move || fs::read(long).unwrap());
    assert!(pair.mount.state("a-long").starts_with("arriving "));
    proxy.release();
    sender.delivered();
    assert_eq!(reader.join().unwrap(), bytes(1, 48 << 20));
    // What was on its way when it was cut is sent twice, and no more: buffers of two kernels and two programs.
    assert!(proxy.passed() < all + (20 << 20), "{} bytes passed for {all}", proxy.passed());
    assert_eq!(pair.mount.wait_front(), Some(0));
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn a_sender_that_is_started_again_sends_the_rest() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        for n in 0..40 {
            fs::write(tree.join(format!("file-{n:02}")), bytes(n, 1 << 20)).unwrap();
        }
        make(tree, Features::ALL);
    });
    let proxy = Proxy::start(pair.address, |n| Way { hold: (n == 0).then_some(30 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    wait_until("some are whole", || {
        (0..10).all(|n| pair.mount.state(format!("file-{n:02}")) == "complete").then_some(())
    });
    sender.0.signal(Signal::KILL);
    drop(sender);
    proxy.cut();
    let sent = pair.send(pair.address, &["--no-compress"]).delivered();
    assert!(sent.report["there_already"].as_u64().unwrap() >= 10, "{sent:#?}");
    assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
    same_tree(&pair.tree, &pair.mount.point);
    let dest = pair.dir.path().join("dest");
    let output = crate::support::mount::restorefs(&["materialize"], &[&pair.mount.point, &dest]);
    assert!(output.status.success(), "{output:?}");
    same_tree(&pair.tree, &dest);
    pair.mount.unmount();
}

#[test]
fn a_receiver_that_has_less_than_it_had_is_sent_everything_anew() {
    needs_fuse!();
    let pair = Pair::new(&[], |tree| {
        long_file(tree);
        fs::write(tree.join("z"), "last").unwrap();
    });
    let token = ["--token-file", pair.token.to_str().unwrap()];
    let (mut other, address) = Mount::listen_for_sender(&token);
    let proxy = Proxy::start(pair.address, |n| Way { hold: (n == 0).then_some(1 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    pair.mount.wait_for("z");
    proxy.lead_to(address);
    proxy.cut();
    let sent = sender.delivered();
    assert!(sent.printed.contains("less than it had"), "{sent:#?}");
    // What was counted for the first one does not count.
    assert_eq!((&sent.report["entries"], &sent.report["bytes"]), (&3.into(), &((48 << 20) + 4).into()), "{sent:#?}");
    assert_eq!(other.wait_front(), Some(0), "{}", other.printed());
    same_tree(&pair.tree, &other.point);
    other.unmount();
    // The first one still waits, and is detached as it is.
}

#[test]
fn many_that_are_read_at_once_need_few_descriptors_of_the_sender() {
    needs_fuse!();
    const FILES: u64 = 100;
    let name = |n: u64| format!("file-{n}");
    let mut pair = Pair::new(&[], |tree| {
        long_file(tree);
        (0..FILES).for_each(|n| fs::write(tree.join(name(n)), bytes(n, 600 << 10)).unwrap());
    });
    let proxy = Proxy::start(pair.address, |n| Way { hold: (n == 0).then_some(1 << 20), ..Way::default() });
    let mut limited = Command::new("prlimit");
    limited.args(["--nofile=48", RESTOREFS]);
    let sender = pair.send_by(limited, &pair.token, proxy.address, &["--no-compress"]);
    proxy.wait_held();
    pair.mount.wait_for(name(FILES - 1));
    let readers: Vec<_> = (0..FILES)
        .map(|n| {
            let path = pair.mount.path(name(n));
            std::thread::spawn(move || fs::read(path))
        })
        .collect();
    pair.mount.wait_status("they are waited for", |status| status["sender"]["wanted"].as_u64() >= Some(FILES));
    proxy.release();
    // Most of them have begun then, and have to be gone on with.
    wait_until("some of it has passed", || (proxy.passed() > 20 << 20).then_some(()));
    proxy.cut();
    for (n, reader) in (0..).zip(readers) {
        assert!(reader.join().unwrap().unwrap() == bytes(n, 600 << 10), "{n}");
    }
    sender.delivered();
    assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}
