//! What is no tar archive is named, with the program that opens it, and nothing stays mounted; nor does anything where
//! nothing came. An archive that is empty is complete.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::mount::{Mount, RESTOREFS, fifo};
use crate::support::{needs_fuse, run, shell, wait_until};

/// A place to mount, and a spool.
struct Place {
    dir: TempDir,
    point: PathBuf,
}

/// How a mount ended by itself.
struct Ended {
    code: Option<i32>,
    printed: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("mnt");
        fs::create_dir(&point).unwrap();
        fs::create_dir(dir.path().join("spool")).unwrap();
        Place { dir, point }
    }

    fn command(&self, args: &[&str], source: &Path) -> Command {
        let mut command = Command::new(RESTOREFS);
        command.arg("mount").args(args).arg("--spool").arg(self.dir.path().join("spool")).arg(source).arg(&self.point);
        command.stdin(Stdio::null());
        command
    }

    /// Mounts what is no archive. It ends by itself, and nothing of it stays.
    #[track_caller]
    fn fails(&self, command: &mut Command) -> Ended {
        let output = command.output().unwrap();
        let ended = Ended { code: output.status.code(), printed: String::from_utf8_lossy(&output.stderr).into_owned() };
        self.is_clean(&ended.printed);
        ended
    }

    #[track_caller]
    fn is_clean(&self, printed: &str) {
        let dev = |path: &Path| path.metadata().unwrap().dev();
        assert_eq!(dev(&self.point), dev(self.dir.path()), "still mounted: {printed}");
        let is_empty = || self.dir.path().join("spool").read_dir().unwrap().next().is_none().then_some(());
        wait_until("the spool is gone", is_empty);
        assert!(!printed.lines().any(|line| line.trim_end() == "restorefs:"), "an empty line: {printed}");
        assert!(!printed.contains("/s)") && !printed.contains("0 entries"), "a rate, or nothing, is told: {printed}");
    }
}

/// What is checked of one kind of input: how it is made, the exit code, and what the message says of it.
type Kind = (&'static str, i32, &'static [&'static str]);

const TAR: &str = "echo contents >a; tar -cf x.tar a; ";

/// By real tools.
const KINDS: &[Kind] = &[
    ("bsdtar --format=zip -cf x a", 1, &["a ZIP archive", "unzip FILE", "bsdtar -cf - @FILE | restorefs"]),
    ("bsdtar --format=7zip -cf x a", 1, &["a 7-Zip archive", "7z x FILE"]),
    ("bsdtar --format=ar -cf x a", 1, &["an ar archive", "ar x FILE"]),
    ("bsdtar --format=cpio -cf x a", 1, &["a cpio archive", "cpio -id"]),
    ("bsdtar --format=newc -cf x a", 1, &["a cpio archive", "cpio -id"]),
    ("bsdtar --format=bin -cf x a", 1, &["a cpio archive", "cpio -id"]),
    ("bsdtar --format=xar -cf x a", 1, &["a xar archive"]),
    (
        "gzip -c a >x",
        1,
        &["compressed with gzip, and what is inside is not a tar archive", "'contents'", "gzip -dc FILE"],
    ),
    ("bsdtar --format=zip -cf - a | xz -c >x", 1, &["compressed with xz", "a ZIP archive", "unzip"]),
    ("gzip -c x.tar | gzip -c | xz -c >x", 1, &["compressed with xz and gzip", "compressed once more", "| gzip -dc |"]),
    ("echo This is no archive. >x", 1, &["text that begins with 'This is no archive.'"]),
    ("for i in {1..100}; do echo This is no archive.; done >x", 1, &["text that begins with 'This is no archive.'"]),
    ("printf '<!DOCTYPE html>\\n<title>404</title>\\n' >x", 1, &["HyperText Markup Language"]),
    ("(echo Last login: Monday; cat x.tar) >x", 1, &["text that begins with 'Last login: Monday'"]),
    ("head -c 600 /dev/zero | tr '\\0' '\\377' >x", 1, &["unknown kind (it begins with ff ff ff ff ff ff ff ff)"]),
    (": >x", 1, &["nothing was received", "before its first byte"]),
    ("printf 'sudo: no' >x", 1, &["not even one header was received", "it begins with 'sudo: no'"]),
    ("gzip -c /dev/null >x", 1, &["nothing was received"]),
    ("head -c 300 x.tar >x", 1, &["not even one header was received", "inside a header"]),
    ("truncate -s 4M x && mkfs.ext4 -q x", 5, &["begins with zeros", "ext4 filesystem", "mount -o loop,ro FILE DIR"]),
    ("bsdtar --format=iso9660 -cf x a", 5, &["begins with zeros", "an ISO 9660 image", "bsdtar -cf - @FILE"]),
    ("(head -c 10240 /dev/zero; echo contents) >x", 5, &["begins with zeros", "text that begins with 'contents'"]),
    ("(head -c 512 /dev/zero; head -c 512 /dev/urandom) >x", 5, &["begins with zeros"]),
    ("truncate -s 65M x", 1, &["only zeros"]),
    ("(printf X; tail -c +2 x.tar) >x", 5, &["a tar archive whose first header is damaged"]),
];

/// By their first bytes: not everybody has these tools.
const SIGNATURES: &[(&[u8], &[&str])] = &[
    (b"Rar!\x1a\x07\x01\x00", &["a RAR archive", "unrar x FILE"]),
    (b"!<arch>\ndebian-binary   1700000000  0     0     100644  4         `\n", &["dpkg-deb --fsys-tarfile FILE |"]),
    (b"\xed\xab\xee\xdb\x03\0\0\0", &["an RPM package", "rpm2cpio"]),
    (b"hsqs\x01\0\0\0", &["a squashfs filesystem", "unsquashfs"]),
    (b"XFSB\0\0\x10\0", &["an XFS filesystem"]),
    (b"LUKS\xba\xbe\0\x02", &["an encrypted disk (LUKS)"]),
    (b"Salted__\x01\x02\x03\x04\x05\x06\x07\x08", &["encrypted with openssl", "openssl enc -d"]),
    (b"age-encryption.org/v1\n-> X25519 ", &["encrypted with age", "age -d FILE | restorefs mount"]),
    (b"\x8c\x0d\x04\x09\x03\x0a\x3e\x1f\xd2", &["encrypted with gpg", "gpg -d FILE | restorefs mount"]),
    (b"-----BEGIN PGP MESSAGE-----\n\n", &["encrypted with gpg"]),
    (b"\x1f\x9d\x90\x01\x02\x03", &["compress (.Z)", "gzip -dc FILE | restorefs mount"]),
    (b"\x89LZO\0\r\n\x1a\n\x10", &["lzop", "lzop -dc FILE | restorefs mount"]),
    (b"LRZI\0\x06\0\0\0\0", &["lrzip", "lrzip -d -o - FILE | restorefs mount"]),
    (b"BZ3v1\0\0\x10\0\x10\0\0\0", &["bzip3", "bzip3 -dc FILE | restorefs mount"]),
    (b"\x02\x21\x4c\x18\x05\0\0\0", &["lz4 in its legacy format", "lz4 -dc FILE | restorefs mount"]),
    (b"btrfs-stream\0\x01\0\0\0", &["'btrfs send'", "btrfs receive"]),
    (b"%PDF-1.7\n\x80", &["Portable Document Format"]),
];

#[test]
fn what_it_is_and_what_opens_it_is_told_in_place_and_through_a_pipe() {
    needs_fuse!();
    let place = Place::new();
    let check = |dir: &Path, what: &str, code: i32, needles: &[&str]| {
        let file = dir.join("x");
        for in_place in [true, false] {
            let source = if in_place { &file } else { Path::new("-") };
            let mut command = place.command(&[], source);
            if !in_place {
                // A pipe: redirected it would be a file.
                let mut cat = Command::new("cat").arg(&file).stdout(Stdio::piped()).spawn().unwrap();
                command.stdin(cat.stdout.take().unwrap());
                std::thread::spawn(move || cat.wait());
            }
            let ended = place.fails(&mut command);
            assert_eq!(ended.code, Some(code), "{what}: {}", ended.printed);
            let name = if in_place { format!("'{}'", file.display()) } else { "standard input".into() };
            for needle in needles.iter().copied().chain([&*name]) {
                assert!(ended.printed.contains(needle), "{what}: no '{needle}' in: {}", ended.printed);
            }
        }
    };
    for (line, code, needles) in KINDS {
        let dir = tempfile::tempdir().unwrap();
        shell(dir.path(), &format!("export PATH=$PATH:/usr/sbin:/sbin; {TAR}{line}"));
        check(dir.path(), line, *code, needles);
    }
    let dir = tempfile::tempdir().unwrap();
    for (bytes, needles) in SIGNATURES {
        for len in [bytes.len(), 2000] {
            let mut bytes = bytes.to_vec();
            bytes.resize(len, 0xa5);
            fs::write(dir.path().join("x"), &bytes).unwrap();
            check(dir.path(), needles[0], 1, needles);
        }
    }
}

#[test]
fn what_the_message_advises_works() {
    needs_fuse!();
    for format in ["zip", "7zip", "cpio", "newc", "ar", "iso9660"] {
        let place = Place::new();
        let dir = place.dir.path();
        shell(dir, &format!("echo contents >a; bsdtar --format={format} -cf x a"));
        let ended = place.fails(&mut place.command(&[], &dir.join("x")));
        let (_, advice) = ended.printed.split_once("or mount it with: ").unwrap();
        let advice = advice.trim_end().trim_end_matches(')').replace("@FILE", "@x");
        let advice = advice.replace("restorefs mount - MOUNTPOINT", &format!("{RESTOREFS} mount --spool spool - mnt"));
        let found = shell(dir, &format!("trap '{RESTOREFS} umount mnt' EXIT; {advice} 2>/dev/null; cat mnt/[aA]*"));
        assert_eq!(found, "contents\n", "{format}: {advice}");
    }
}

#[test]
fn however_it_is_mounted_nothing_stays() {
    needs_fuse!();
    let place = Place::new();
    let (text, dest) = (place.dir.path().join("text"), place.dir.path().join("dest"));
    fs::write(&text, "This is no archive.\n").unwrap();
    for args in [&["-d"][..], &["-f"], &["--materialize", dest.to_str().unwrap()]] {
        let ended = place.fails(&mut place.command(args, &text));
        assert_eq!(ended.code, Some(1), "{args:?}: {}", ended.printed);
        assert!(ended.printed.contains("text that begins with"), "{args:?}: {}", ended.printed);
        assert!(!ended.printed.contains("mounted on"), "{args:?}: {}", ended.printed);
        assert_eq!(ended.printed.lines().count(), 1, "{args:?}: {}", ended.printed);
        let ended = place.fails(place.command(&[args, &["--concatenated"]].concat(), &text).stdin(Stdio::null()));
        assert_eq!(ended.code, Some(1), "{args:?}: {}", ended.printed);
    }
    assert!(!dest.exists());
    // The ssh that failed has sent nothing.
    for args in [&[][..], &["-f"], &["--materialize", dest.to_str().unwrap()]] {
        let mut nothing = Command::new("false").stdout(Stdio::piped()).spawn().unwrap();
        let ended = place.fails(place.command(args, Path::new("-")).stdin(nothing.stdout.take().unwrap()));
        nothing.wait().unwrap();
        assert_eq!(ended.code, Some(1), "{args:?}: {}", ended.printed);
        assert!(ended.printed.contains("nothing was received from standard input"), "{args:?}: {}", ended.printed);
    }
    assert!(!dest.exists());
}

#[test]
fn zeros_without_end_are_no_archive() {
    needs_fuse!();
    let place = Place::new();
    let ended = place.fails(&mut place.command(&[], Path::new("/dev/zero")));
    assert_eq!(ended.code, Some(1), "{}", ended.printed);
    assert!(ended.printed.contains("'/dev/zero': it is not a tar archive but only zeros"), "{}", ended.printed);
}

#[test]
fn systemd_is_not_told_of_a_mount_that_is_none() {
    needs_fuse!();
    let place = Place::new();
    let (text, notify) = (place.dir.path().join("text"), place.dir.path().join("notify"));
    fs::write(&text, "This is no archive.\n").unwrap();
    let socket = UnixDatagram::bind(&notify).unwrap();
    let ended = place.fails(place.command(&["-f"], &text).env("NOTIFY_SOCKET", &notify));
    assert_eq!(ended.code, Some(1), "{}", ended.printed);
    socket.set_nonblocking(true).unwrap();
    let mut told = [0; 1000];
    while let Ok(n) = socket.recv(&mut told) {
        let told = String::from_utf8_lossy(&told[..n]);
        assert!(!told.contains("READY"), "{told}");
    }
}

#[test]
fn ctrl_c_before_the_first_byte_leaves_nothing() {
    needs_fuse!();
    for args in [&[][..], &["-f"]] {
        let dir = tempfile::tempdir().unwrap();
        let fifo = fifo(dir.path());
        let mut mount = Mount::start(Stdio::null(), args, |command| {
            command.arg(&fifo);
        });
        mount.wait_printed("mounted on");
        mount.signal(Signal::INT);
        assert_eq!(mount.wait_front(), Some(1), "{args:?}: {}", mount.printed());
        assert!(!mount.is_mounted(), "{args:?}");
        mount.wait_printed("is unmounted");
        mount.wait_printed("receiving was stopped");
        assert!(!mount.printed().contains("stays mounted"), "{args:?}: {}", mount.printed());
    }
    // The same while a native sender is waited for.
    let (mut mount, _) = Mount::listen_for_sender(&[]);
    mount.wait_printed("mounted on");
    mount.signal(Signal::INT);
    assert_eq!(mount.wait_front(), Some(1), "{}", mount.printed());
    assert!(!mount.is_mounted());
}

#[test]
fn whoever_waits_for_nothing_is_told() {
    needs_fuse!();
    let (mut mount, stdin) = Mount::pipe(&[]);
    let wait = Command::new(RESTOREFS).arg("wait").arg(&mount.point).stderr(Stdio::piped()).spawn().unwrap();
    // Whether it has asked by then or not, there is no archive for it.
    drop(stdin);
    assert_eq!(mount.wait_front(), Some(1));
    let output = wait.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// `tar -cf - -T /dev/null`, and the same inside a compressor.
#[test]
fn an_empty_archive_is_complete_and_stays() {
    needs_fuse!();
    for line in ["tar -cf x -T /dev/null", "tar -cf - -T /dev/null | gzip -c >x", "head -c 1024 /dev/zero >x"] {
        let dir = tempfile::tempdir().unwrap();
        shell(dir.path(), line);
        assert_eq!(shell(dir.path(), "tar -tf x"), "", "{line}");
        let dest = dir.path().join("dest");
        for args in [&[][..], &["-d"], &["--materialize", dest.to_str().unwrap()]] {
            for in_place in [true, false] {
                let stdin =
                    if in_place { Stdio::null() } else { Stdio::from(File::open(dir.path().join("x")).unwrap()) };
                let mut mount = Mount::start(stdin, args, |command| {
                    command.arg(if in_place { dir.path().join("x") } else { "-".into() });
                });
                assert_eq!(mount.wait_front(), Some(0), "{line} {args:?}: {}", mount.printed());
                assert!(!mount.printed().contains("/s"), "{}", mount.printed());
                mount.wait_clean();
                assert_eq!(mount.point.read_dir().unwrap().count(), 0);
                mount.unmount();
            }
        }
        assert!(dest.is_dir());
    }
}

#[test]
fn an_empty_archive_is_whole_when_its_sender_waits_for_us() {
    needs_fuse!();
    // As netcat does, it goes when we have closed our direction.
    let (mount, address) = Mount::listen(&[]);
    let mut sender = TcpStream::connect(address).unwrap();
    sender.write_all(&[0; 10_240]).unwrap();
    assert_eq!(sender.read(&mut [0]).unwrap(), 0);
    drop(sender);
    mount.wait_clean();
    assert_eq!(mount.unmount(), Some(0));
    // Whoever holds it open, and is stopped, has sent an archive all the same.
    let (mount, mut stdin) = Mount::pipe(&[]);
    stdin.write_all(&[0; 10_240]).unwrap();
    mount.wait_status("the zeros have come", |status| status["bytes"] == 10_240);
    mount.signal(Signal::INT);
    mount.wait_clean();
    drop(stdin);
    assert_eq!(mount.unmount(), Some(0));
}

/// GNU tar and bsdtar list nothing of it, and exit with 0.
#[test]
fn behind_an_empty_archive_another_one_is_left_out_unless_asked_for() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    shell(dir.path(), &format!("{TAR}tar -cf empty -T /dev/null; cat empty x.tar >x; rm a"));
    assert_eq!(shell(dir.path(), "tar -tf x; bsdtar -tf x; tar -tif x"), "a\n");
    let mount = Mount::file(&dir.path().join("x"), &[]);
    let status = mount.wait_end();
    assert_eq!((&status["end"]["verdict"], &status["warnings"]), (&"complete".into(), &1.into()), "{status:#}");
    mount.wait_printed("--concatenated");
    assert_eq!(mount.point.read_dir().unwrap().count(), 0);
    assert_eq!(mount.unmount(), Some(0));
    let mount = Mount::file(&dir.path().join("x"), &["--concatenated"]);
    mount.wait_clean();
    assert_eq!(fs::read(mount.path("a")).unwrap(), b"contents\n");
    assert_eq!(mount.unmount(), Some(0));
}

#[test]
fn a_member_with_the_name_of_a_signature_is_a_member() {
    needs_fuse!();
    let names = [
        "LZIP",
        "LRZI",
        "BZh9",
        "BZ3v1x",
        "Salted__",
        "]",
        "PK",
        "Rar!",
        "P",
        "070701",
        "BZh91AY&SY",
        "\x1f\u{9d}",
        "P*M\x18",
        "\x02!L\x18",
        "\x04\"M\x18",
    ];
    for name in names {
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("bash").current_dir(&dir).args(["-ec", "echo 1 >\"$1\"; tar -cf x.tar \"$1\"", "-", name]));
        let archive = fs::read(dir.path().join("x.tar")).unwrap();
        let (mount, mut stdin) = Mount::pipe(&[]);
        stdin.write_all(&archive).unwrap();
        mount.wait_clean();
        assert_eq!(fs::read(mount.path(name)).unwrap(), b"1\n", "{name}");
        drop(stdin);
        assert_eq!(mount.unmount(), Some(0));
    }
}
