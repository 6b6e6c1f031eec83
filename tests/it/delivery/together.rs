//! Two senders with one token.

use std::fs;

use restorefs::stop::Stop;
use restorefs::wire::{Token, connect};

use super::{Pair, long_file};
use crate::support::HANGS;
use crate::support::compare::same_tree;
use crate::support::needs_fuse;
use crate::support::proxy::{Proxy, Way};

#[test]
fn the_later_takes_the_place_of_the_earlier() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        long_file(tree);
        fs::write(tree.join("z"), "last").unwrap();
    });
    let proxy = Proxy::start(pair.address, |_| Way { hold: Some(1 << 20), ..Way::default() });
    let first = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    pair.send(pair.address, &[]).delivered();
    proxy.release();
    let first = first.end();
    assert_eq!(first.code, Some(4), "{first:#?}");
    assert!(first.printed.contains("taken its place"), "{first:#?}");
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
