//! Two senders with one token.

use std::fs;

use super::{Pair, long_file};
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
