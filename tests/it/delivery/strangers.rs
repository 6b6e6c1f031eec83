//! Whoever connects without the token.

use std::collections::VecDeque;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Pair, long_file};
use crate::support::compare::same_tree;
use crate::support::mount::{Mount, restorefs};
use crate::support::needs_fuse;
use crate::support::proxy::{Proxy, Way};
use crate::support::{feed, shell, wait_until};

fn small(tree: &std::path::Path) {
    fs::write(tree.join("file"), "contents").unwrap();
}

/// A token file that is none of the receiver's.
fn another_token(pair: &Pair) -> std::path::PathBuf {
    let path = pair.dir.path().join("other");
    fs::write(&path, restorefs::wire::Token::generate().unwrap().reveal()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_wrong_token_is_told_on_both_sides_and_the_right_one_is_still_taken() {
    needs_fuse!();
    let mut pair = Pair::new(&[], small);
    let other = another_token(&pair);
    let sent = pair.send_with(&other, pair.address, &[]).end();
    assert_eq!(sent.code, Some(6), "{sent:#?}");
    assert!(sent.printed.contains("another token") && sent.printed.contains("nothing was sent"), "{sent:#?}");
    pair.mount.wait_printed("has another token");
    pair.send(pair.address, &[]).delivered();
    assert_eq!(pair.mount.wait_front(), Some(0));
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn however_many_wrong_tokens_come_the_right_one_is_taken() {
    needs_fuse!();
    let mut pair = Pair::new(&[], small);
    let other = another_token(&pair);
    for _ in 0..5 {
        let senders: Vec<_> = (0..6).map(|_| pair.send_with(&other, pair.address, &[])).collect();
        for sender in senders {
            assert_eq!(sender.end().code, Some(6));
        }
    }
    pair.mount.wait_printed("such connections so far");
    pair.send(pair.address, &[]).delivered();
    assert_eq!(pair.mount.wait_front(), Some(0), "{}", pair.mount.printed());
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn what_is_no_sender_is_refused_and_learns_nothing() {
    needs_fuse!();
    let mut pair = Pair::new(&[], small);
    for said in [&b"GET / HTTP/1.0\r\n\r\n"[..], &[0; 10240], &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3], b""] {
        let mut stranger = TcpStream::connect(pair.address).unwrap();
        stranger.write_all(said).unwrap();
        // It may have been shown the door already.
        let _ = stranger.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stranger.read_to_end(&mut answer);
        // A TLS alert at most.
        assert!(answer.len() <= 7, "{answer:?}");
    }
    pair.mount.wait_printed("is no 'restorefs send'");
    pair.send(pair.address, &[]).delivered();
    assert_eq!(pair.mount.wait_front(), Some(0));
    pair.mount.unmount();
}

/// Connects from an address of this machine.
fn connect_from(from: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddr::from((from, 0)))?;
    connect(&socket, &to)?;
    Ok(socket.into())
}

#[test]
fn those_who_connect_and_say_next_to_nothing_keep_no_sender_out() {
    needs_fuse!();
    // From the address of the sender, from another one, and from more of them than one connection each has room for.
    for froms in [&[1u8][..], &[2], &[2, 3, 4, 5, 6, 7, 8, 9]] {
        let mut pair = Pair::new(&[], small);
        let stop = Arc::new(AtomicBool::new(false));
        let attackers: Vec<_> = froms
            .iter()
            .cycle()
            .take(8)
            .map(|&from| {
                let (to, stop) = (pair.address, stop.clone());
                std::thread::spawn(move || {
                    let mut held = VecDeque::new();
                    while !stop.load(Ordering::Relaxed) {
                        // When the sender is done, nobody listens any more.
                        let Ok(mut stranger) = connect_from([127, 0, 0, from], to) else { break };
                        // The beginning of a TLS record.
                        let _ = stranger.write_all(&[0x16]);
                        stranger.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                        held.push_back(stranger);
                        // When all places are taken, the next one follows as soon as one of ours was closed.
                        while held.len() >= 40 && !stop.load(Ordering::Relaxed) {
                            let mut stranger = held.pop_front().unwrap();
                            match stranger.read(&mut [0; 8]) {
                                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                                    held.push_back(stranger);
                                }
                                _ => {}
                            }
                        }
                    }
                })
            })
            .collect();
        pair.mount.wait_printed("too many others connect");
        // Before it has shown its token it is one of many, and is told to try again.
        let mut tries = 0;
        while let sent = pair.send(pair.address, &[]).end()
            && sent.code != Some(0)
        {
            tries += 1;
            assert!(tries < 20 && sent.printed.contains("too many others knock, try again"), "{sent:#?}");
        }
        stop.store(true, Ordering::Relaxed);
        for attacker in attackers {
            attacker.join().unwrap();
        }
        assert_eq!(pair.mount.wait_front(), Some(0));
        same_tree(&pair.tree, &pair.mount.point);
        // However many there were.
        let lines = pair.mount.printed().lines().count();
        assert!(lines < 100, "{lines} lines:\n{}", pair.mount.printed());
        pair.mount.unmount();
    }
}

#[test]
fn those_who_stop_in_the_middle_of_a_handshake_keep_no_sender_out() {
    needs_fuse!();
    let mut pair = Pair::new(&[], small);
    // The first thing that a sender says can be recorded by anybody on the way.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let sender = pair.send(listener.local_addr().unwrap(), &[]);
    let mut hello = vec![0; 4096];
    let n = listener.accept().unwrap().0.read(&mut hello).unwrap();
    assert_eq!(sender.end().code, Some(1));
    let strangers: Vec<_> = (0..400u32)
        .map(|n| {
            let mut stranger = connect_from([127, 0, 0, 1 + (n % 20) as u8], pair.address).unwrap();
            let _ = stranger.write_all(&hello[..n as usize % 100]);
            stranger
        })
        .collect();
    let mut answered: Vec<_> =
        (0..400u32).map(|n| connect_from([127, 0, 0, 1 + (n % 20) as u8], pair.address).unwrap()).collect();
    for stranger in &mut answered {
        let _ = stranger.write_all(&hello[..n]);
    }
    pair.mount.wait_printed("too many others connect");
    pair.send(pair.address, &[]).delivered();
    drop((strangers, answered));
    assert_eq!(pair.mount.wait_front(), Some(0));
    pair.mount.unmount();
}

#[test]
fn a_port_scan_does_not_end_a_plain_reception_and_a_silent_connection_does_not_hold_it_up() {
    needs_fuse!();
    let (mut mount, address) = Mount::listen_daemon(&[]);
    for _ in 0..3 {
        drop(TcpStream::connect(address).unwrap());
    }
    mount.wait_printed("sent nothing");
    let silent: Vec<_> = (0..200u32).map(|n| connect_from([127, 0, 0, 1 + (n % 10) as u8], address).unwrap()).collect();
    assert_eq!(mount.status()["phase"], "waiting");
    let mut sender = TcpStream::connect(address).unwrap();
    sender.write_all(&[feed::whole("file", b"contents"), feed::end()].concat()).unwrap();
    assert_eq!(mount.wait_front(), Some(0), "{}", mount.printed());
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"contents");
    drop(silent);
    mount.unmount();
}

#[test]
fn what_is_no_archive_does_not_end_a_plain_reception() {
    needs_fuse!();
    let (mut mount, address) = Mount::listen_daemon(&[]);
    // They hold the connection open: it is closed for them.
    for words in [&b"PK\x03\x04\x14\0\0\0"[..], b"#"] {
        let mut stranger = TcpStream::connect(address).unwrap();
        stranger.write_all(&[words, &[b'#'; 512]].concat()).unwrap();
        assert!(matches!(stranger.read(&mut [0]), Ok(0) | Err(_)));
    }
    let mut browser = TcpStream::connect(address).unwrap();
    browser.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    browser.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(matches!(browser.read(&mut [0]), Ok(0) | Err(_)));
    mount.wait_printed("is not a tar archive but a ZIP archive");
    mount.wait_printed("it was closed after 18 bytes; still listening");
    let mut undecided = TcpStream::connect(address).unwrap();
    undecided.write_all(b"f").unwrap();
    assert_eq!(mount.status()["phase"], "waiting");
    let archive = [feed::whole("file", b"contents"), feed::end()].concat();
    let mut sender = TcpStream::connect(address).unwrap();
    // In pieces, the first of which do not tell.
    for piece in archive.chunks(100) {
        sender.write_all(piece).unwrap();
    }
    assert_eq!(mount.wait_front(), Some(0), "{}", mount.printed());
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"contents");
    mount.unmount();
}

#[test]
fn archives_of_every_dialect_are_taken() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    shell(dir.path(), "echo contents >file; touch 070701 PK");
    let gnu = ["v7", "oldgnu", "gnu", "ustar", "pax"].map(|format| format!("tar --format={format} -cf -"));
    let bsd = ["v7", "ustar", "pax"].map(|format| format!("bsdtar --format={format} -cf -"));
    let label = ["tar -V label -cf -".to_owned()];
    for packer in gnu.iter().chain(&bsd).chain(&label) {
        let (mut mount, address) = Mount::listen_daemon(&[]);
        // Their names look like signatures.
        shell(dir.path(), &format!("{packer} 070701 PK file | nc -N 127.0.0.1 {}", address.port()));
        assert_eq!(mount.wait_front(), Some(0), "{packer}: {}", mount.printed());
        assert_eq!(fs::read(mount.path("file")).unwrap(), b"contents\n");
        mount.unmount();
    }
}

#[test]
fn a_short_compressed_archive_is_taken_though_its_sender_stays() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    shell(dir.path(), "echo contents >file; tar -cf - file | zstd -q -o x");
    let archive = fs::read(dir.path().join("x")).unwrap();
    assert!(archive.len() < 512);
    let (mut mount, address) = Mount::listen_daemon(&[]);
    let mut sender = TcpStream::connect(address).unwrap();
    sender.write_all(&archive).unwrap();
    assert_eq!(sender.read(&mut [0]).unwrap(), 0);
    drop(sender);
    assert_eq!(mount.wait_front(), Some(0), "{}", mount.printed());
    assert_eq!(fs::read(mount.path("file")).unwrap(), b"contents\n");
    mount.unmount();
}

#[test]
fn a_recorded_session_cannot_be_played_again() {
    needs_fuse!();
    let mut pair = Pair::new(&[], long_file);
    let proxy = Proxy::start(pair.address, |n| Way { hold: (n == 0).then_some(2 << 20), ..Way::default() });
    let sender = pair.send(proxy.address, &["--no-compress"]);
    proxy.wait_held();
    let recorded = proxy.recorded();
    let arrived = pair.mount.state("a-long");
    let mut again = TcpStream::connect(pair.address).unwrap();
    let _ = again.write_all(&recorded);
    let mut answer = Vec::new();
    let _ = again.read_to_end(&mut answer);
    pair.mount.wait_printed("is no 'restorefs send'");
    assert_eq!(pair.mount.state("a-long"), arrived);
    proxy.release();
    sender.delivered();
    assert_eq!(pair.mount.wait_front(), Some(0));
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

#[test]
fn bytes_that_are_changed_on_the_way_end_the_connection_and_nothing_else() {
    needs_fuse!();
    let mut pair = Pair::new(&[], long_file);
    let target = pair.address;
    // The first connection is led through somebody who changes one byte of it.
    let proxy = Proxy::start(meddler(target, 1 << 20), |_| Way::default());
    let sender = pair.send(proxy.address, &["--no-compress"]);
    wait_until("it was noticed", || (pair.mount.status()["sender"]["outages"] == 1).then_some(()));
    proxy.lead_to(target);
    sender.delivered();
    assert_eq!(pair.mount.wait_front(), Some(0));
    same_tree(&pair.tree, &pair.mount.point);
    pair.mount.unmount();
}

/// Forwards one connection after the other, and changes one byte of each.
fn meddler(target: SocketAddr, at: usize) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(target).unwrap());
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || {
                let (mut passed, mut buf) = (0, [0; 65536]);
                while let Ok(n @ 1..) = client.read(&mut buf) {
                    if (passed..passed + n).contains(&at) {
                        buf[at - passed] ^= 1;
                    }
                    passed += n;
                    if server.write_all(&buf[..n]).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
                let _ = server.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    address
}

#[test]
fn tokens_are_taken_from_where_nobody_else_sees_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("file"), "x").unwrap();
    let send = |args: &[&str]| {
        let output = std::process::Command::new(super::RESTOREFS)
            .args(["send", "file", "--to", "127.0.0.1:1"])
            .args(args)
            .current_dir(dir.path())
            .env_remove("RESTOREFS_TOKEN")
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    // A token that is right, but for whom it is.
    let token = "rfs1-0000-0000-0000-0000-0000-0000-0000-0000";
    shell(dir.path(), &format!("echo {token} >slip; chmod 600 slip; echo {token} >open; chmod 644 open"));
    assert!(send(&["--token-file", "slip"]).1.contains("typing error"));
    assert!(send(&["--token-file", "open"]).1.contains("chmod 600"));
    assert!(send(&["--token-file", "nowhere"]).1.contains("No such file"));
    let output = restorefs(&["send", "--to", "nowhere"], &[&path("file")]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // As a path by mistake, and with a typing error: it is not repeated, whatever it was to be sent to.
    for rest in [&["--to", "127.0.0.1:1"][..], &["-"], &[]] {
        let output = restorefs(&[&["send", token][..], rest].concat(), &[]);
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && told.contains("command line") && !told.contains("rfs1-0"), "{told}");
    }
}

#[test]
fn a_token_file_that_somebody_else_can_change_is_refused() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let token = restorefs::wire::Token::generate().unwrap().reveal();
    shell(
        dir.path(),
        &format!(
            "umask 077; mkdir private theirs group sticky; for d in . *; do test ! -d $d || echo {token} >$d/token; done
             echo {token} >alien; chown 1234 alien; ln -s alien link-to-alien; ln -s token link
             chown 1234 theirs; chmod 775 group; chmod 1777 sticky; mkfifo -m 600 fifo"
        ),
    );
    // Where a token is taken, what fails next is the connection.
    let taken = "cannot connect";
    for (file, told) in [
        ("token", taken),
        ("link", taken),
        ("private/token", taken),
        ("sticky/token", taken),
        ("alien", "belongs to user 1234"),
        ("link-to-alien", "belongs to user 1234"),
        ("theirs/token", "its directory"),
        ("group/token", "others may write to its directory"),
        ("fifo", "not a regular file"),
        ("private", "not a regular file"),
    ] {
        let args = ["send", "--to", "127.0.0.1:1", "--token-file", path(file).to_str().unwrap()].map(str::to_owned);
        let output = restorefs(&args.each_ref().map(|arg| &**arg), &[&path("token")]);
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && printed.contains(told), "{file}: {printed}");
        assert!(printed.contains(file) || told == taken, "{file}: {printed}");
    }
    // The receiver makes none where it would not be safe.
    let mnt = path("mnt");
    fs::create_dir(&mnt).unwrap();
    for file in ["theirs/new", "group/new", "alien", "fifo"] {
        let args =
            ["mount", "--listen", "127.0.0.1:0", "--token-file", path(file).to_str().unwrap()].map(str::to_owned);
        let output = restorefs(&args.each_ref().map(|arg| &**arg), &[&mnt]);
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && printed.contains("token file"), "{file}: {printed}");
    }
    assert!(!path("theirs/new").exists() && !path("group/new").exists());
}

/// Types a line at each question. Tells the exit status, whether the terminal shows again what is typed, and what it
/// has shown.
const TERMINAL: &str = r#"
import fcntl, os, sys, termios
lines, command = sys.argv[1].encode().decode("unicode_escape").encode().splitlines(keepends=True), sys.argv[2:]
# The terminal stays as restorefs left it as long as somebody has it open.
master, keeper = os.openpty()
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(keeper, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2):
        os.dup2(keeper, fd)
    os.environ.pop("RESTOREFS_TOKEN", None)
    os.execv(command[0], command)
shown = b""
for n, line in enumerate(lines, 1):
    while shown.count(b"token: ") < n:
        shown += os.read(master, 1000)
    os.write(master, line)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
os.set_blocking(master, False)
try:
    shown += os.read(master, 10000)
except BlockingIOError:
    pass
print(status, bool(termios.tcgetattr(keeper)[3] & termios.ECHO), shown)
"#;

#[test]
fn a_token_that_is_asked_for_is_not_shown_and_control_c_leaves_the_terminal_as_it_was() {
    let ask = |typed: &str| {
        let output = std::process::Command::new("python3")
            .args(["-c", TERMINAL, typed, super::RESTOREFS, "send", "/etc/hostname", "--to", "127.0.0.1:1"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let ended = ask("rfs1-\\x03");
    assert!(ended.starts_with("-2 True"), "{ended}");
    let wrong = ask("rfs1-0\\nrfs1-x\\x15\\x7f\\nrfs1-0000\\r");
    assert!(wrong.starts_with("1 True"), "{wrong}");
    assert_eq!((wrong.matches("32 digits").count(), wrong.matches("begins with").count()), (2, 1), "{wrong}");
    assert!(!wrong.contains("rfs1-0"), "{wrong}");
}
