//! Trees that change while they are sent.

use std::fs;

use rustix::process::Signal;

use super::{Pair, long_file};
use crate::support::compare::same_tree;
use crate::support::mount::restorefs;
use crate::support::needs_fuse;
use crate::support::proxy::{Proxy, Way};
use crate::support::tree::bytes;
use crate::support::wait_until;

/// A sender that is held while it sends the first file, so that the others can be changed.
fn held(pair: &Pair) -> (Proxy, super::Sender) {
    let proxy = Proxy::start(pair.address, |n| Way { hold: (n == 0).then_some(1 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    pair.mount.wait_for("z");
    (proxy, sender)
}

#[test]
fn what_changes_vanishes_or_shrinks_is_marked_named_and_counted() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        long_file(tree);
        for name in ["grown", "shrunk", "touched", "vanished", "replaced", "z"] {
            fs::write(tree.join(name), bytes(3, 1 << 20)).unwrap();
        }
        fs::write(tree.join("small-shrunk"), "some bytes").unwrap();
    });
    let (proxy, sender) = held(&pair);
    fs::write(pair.tree.join("grown"), bytes(3, 2 << 20)).unwrap();
    fs::write(pair.tree.join("shrunk"), bytes(3, 1000)).unwrap();
    fs::write(pair.tree.join("small-shrunk"), "some").unwrap();
    fs::write(pair.tree.join("touched"), bytes(4, 1 << 20)).unwrap();
    fs::remove_file(pair.tree.join("vanished")).unwrap();
    fs::remove_file(pair.tree.join("replaced")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", pair.tree.join("replaced")).unwrap();
    proxy.release();
    let sent = sender.end();
    // Four are cut.
    assert_eq!((sent.code, &sent.report["confirmed"]["cut"]), (Some(4), &4.into()), "{sent:#?}");
    assert!(sent.printed.contains("all but 4 files that are cut"), "{sent:#?}");
    // What could not be sent is not said to be there.
    let confirmed = (48 << 20) + 3 * (1 << 20) + 1000 + 4;
    assert_eq!(sent.report["confirmed"]["bytes"], confirmed, "{sent:#?}");
    for (name, why) in [
        ("grown", "written to"),
        ("shrunk", "shorter"),
        ("small-shrunk", "shorter"),
        ("touched", "written to"),
        ("vanished", "vanished"),
        ("replaced", "something else"),
    ] {
        let line = sent.printed.lines().find(|line| line.contains(&format!("'{name}'")));
        assert!(line.is_some_and(|line| line.contains(why)), "{name}: {sent:#?}");
    }
    assert_eq!(pair.mount.wait_front(), Some(4), "{}", pair.mount.printed());
    let status = pair.mount.status();
    assert_eq!((&status["refused"], &status["end"]["verdict"]), (&6.into(), &"incomplete".into()), "{status:#}");
    let cut = ["replaced", "shrunk", "small-shrunk", "vanished"];
    assert_eq!(status["sender"]["cut"], serde_json::json!(cut), "{status:#}");
    let told = pair.mount.printed();
    assert!(
        told.contains("but 4 files are cut; 'replaced', 'shrunk', 'small-shrunk' and 'vanished' were cut"),
        "{told}"
    );
    for command in ["wait", "materialize"] {
        let dest = pair.dir.path().join("dest");
        let paths = [&*pair.mount.point, &*dest];
        let output = restorefs(&[command], if command == "wait" { &paths[..1] } else { &paths });
        assert_eq!(output.status.code(), Some(4), "{command}: {output:?}");
    }
    let eio = |name: &str| fs::read(pair.mount.path(name)).unwrap_err().raw_os_error() == Some(libc::EIO);
    assert_eq!(pair.mount.state("touched"), "changed");
    assert_eq!(fs::read(pair.mount.path("touched")).unwrap(), bytes(4, 1 << 20));
    assert_eq!(pair.mount.state("grown"), "changed");
    assert_eq!(pair.mount.state("shrunk"), format!("truncated 1000/{}", 1 << 20));
    assert_eq!(pair.mount.state("small-shrunk"), "truncated 4/10");
    assert_eq!(pair.mount.state("vanished"), format!("truncated 0/{}", 1 << 20));
    assert!(eio("shrunk") && eio("vanished") && eio("replaced"));
    assert_eq!(fs::read(pair.mount.path("z")).unwrap(), bytes(3, 1 << 20));
    pair.mount.unmount();
}

#[test]
fn a_sender_that_is_started_again_with_another_tree() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        long_file(tree);
        for name in ["a-first", "changed", "gone", "z"] {
            fs::write(tree.join(name), bytes(3, 1 << 20)).unwrap();
        }
    });
    let (proxy, sender) = held(&pair);
    // Whoever reads of the old one is not left to wait.
    let gone = pair.mount.path("gone");
    let reader = std::thread::spawn(move || fs::read(gone));
    pair.mount.wait_status("it is waited for", |status| status["sender"]["wanted"] == 1);
    sender.0.signal(Signal::KILL);
    drop(sender);
    proxy.cut();
    fs::remove_file(pair.tree.join("gone")).unwrap();
    fs::write(pair.tree.join("changed"), "something else").unwrap();
    fs::write(pair.tree.join("new"), "new").unwrap();
    wait_until("the receiver knows", || (pair.mount.status()["sender"]["connected"] == false).then_some(()));
    let sent = pair.send(pair.address, &[]).end();
    // What is gone is in the mount, and cut.
    assert_eq!(sent.code, Some(4), "{sent:#?}");
    assert_eq!(pair.mount.wait_front(), Some(4), "{}", pair.mount.printed());
    assert_eq!(reader.join().unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(fs::read(pair.mount.path("changed")).unwrap(), b"something else");
    assert_eq!(fs::read(pair.mount.path("new")).unwrap(), b"new");
    let status = pair.mount.status();
    assert_eq!(status["problems"][0]["path"], "gone", "{status:#}");
    pair.mount.unmount();
}

#[test]
fn a_file_that_changed_and_is_whole_is_a_problem_and_not_cut() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        long_file(tree);
        for name in ["touched", "z"] {
            fs::write(tree.join(name), bytes(3, 1 << 20)).unwrap();
        }
    });
    let (proxy, sender) = held(&pair);
    fs::write(pair.tree.join("touched"), bytes(4, 1 << 20)).unwrap();
    proxy.release();
    let sent = sender.end();
    assert_eq!((sent.code, &sent.report["confirmed"]["cut"]), (Some(3), &0.into()), "{sent:#?}");
    assert_eq!(pair.mount.wait_front(), Some(3), "{}", pair.mount.printed());
    assert_eq!(pair.mount.status()["end"]["verdict"], "complete");
    assert_eq!(pair.mount.state("touched"), "changed");
    pair.mount.unmount();
}

#[test]
fn a_file_whose_time_was_set_back_is_sent_again() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        fs::write(tree.join("a-first"), bytes(3, 1 << 20)).unwrap();
        fs::write(tree.join("a-second"), "what it was").unwrap();
        fs::write(tree.join("m-long"), bytes(1, 48 << 20)).unwrap();
        fs::write(tree.join("z"), "last").unwrap();
    });
    let proxy = Proxy::start(pair.address, |_| Way { hold: Some(4 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    for name in ["a-first", "a-second"] {
        pair.mount.wait_for(name);
        wait_until("it has come", || (pair.mount.state(name) == "complete").then_some(()));
    }
    sender.0.signal(Signal::KILL);
    drop(sender);
    proxy.cut();
    // Size and time are as they were.
    let change = |name: &str, contents: &[u8]| {
        let path = pair.tree.join(name);
        let modified = path.metadata().unwrap().modified().unwrap();
        fs::write(&path, contents).unwrap();
        fs::File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
    };
    change("a-first", &bytes(4, 1 << 20));
    change("a-second", b"what it is.");
    let sent = pair.send(pair.address, &[]).delivered();
    assert_eq!(sent.report["there_already"], 0, "{sent:#?}");
    assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
    assert_eq!(fs::read(pair.mount.path("a-first")).unwrap(), bytes(4, 1 << 20));
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn both_names_of_a_file_get_what_a_later_sender_says_it_is() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        fs::write(tree.join("a-name"), "what it was at first").unwrap();
        fs::hard_link(tree.join("a-name"), tree.join("b-name")).unwrap();
        fs::write(tree.join("c-large"), bytes(3, 1 << 20)).unwrap();
        fs::hard_link(tree.join("c-large"), tree.join("d-large")).unwrap();
        fs::write(tree.join("m-long"), bytes(1, 48 << 20)).unwrap();
        fs::write(tree.join("z"), "last").unwrap();
    });
    let proxy = Proxy::start(pair.address, |_| Way { hold: Some(4 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    pair.mount.wait_for("z");
    for name in ["a-name", "c-large"] {
        wait_until("it has come", || (pair.mount.state(name) == "complete").then_some(()));
    }
    sender.0.signal(Signal::KILL);
    drop(sender);
    proxy.cut();
    fs::write(pair.tree.join("a-name"), "what it is").unwrap();
    fs::write(pair.tree.join("d-large"), bytes(4, 2 << 20)).unwrap();
    pair.send(pair.address, &[]).delivered();
    assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
    same_tree(&pair.tree, &pair.mount.point);
    let dest = pair.dir.path().join("dest");
    let output = restorefs(&["materialize", "--verify"], &[&pair.mount.point, &dest]);
    assert!(output.status.success(), "{output:?}");
    same_tree(&pair.tree, &dest);
    pair.mount.unmount();
}

#[test]
fn what_may_not_be_read_is_named() {
    needs_fuse!();
    let mut pair = Pair::new(&[], |tree| {
        fs::write(tree.join("open"), "open").unwrap();
        fs::write(tree.join("closed"), "closed").unwrap();
        fs::create_dir(tree.join("dir")).unwrap();
        crate::support::shell(tree, "chmod 0 closed dir");
    });
    // An ordinary user sends; the token is readable for them, and for nobody else.
    crate::support::shell(pair.dir.path(), "chown -R 65534:65534 token; chmod 755 .");
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", super::RESTOREFS]);
    command.args(["send", ".", "--json", "-C"]).arg(&pair.tree).args(["--to", &pair.address.to_string()]);
    command.arg("--token-file").arg(&pair.token).stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    let sent = super::Sender(crate::support::process::Group::start(&mut command)).end();
    assert_eq!(sent.code, Some(4), "{sent:#?}");
    assert!(sent.printed.contains("'closed'") && sent.printed.contains("'dir'"), "{sent:#?}");
    assert_eq!(pair.mount.wait_front(), Some(4), "{}", pair.mount.printed());
    assert_eq!(pair.mount.status()["sender"]["cut"], serde_json::json!(["closed"]));
    assert_eq!(fs::read(pair.mount.path("open")).unwrap(), b"open");
    pair.mount.unmount();
}
