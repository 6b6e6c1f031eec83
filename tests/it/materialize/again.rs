//! A second run: it mends what is not right, leaves alone what is, and replaces in one step.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use tar::EntryType;

use super::{archive, look, materialize};
use crate::support::compare::same_tree;
use crate::support::feed::member;
use crate::support::mount::Mount;
use crate::support::pack::gnu_tar;
use crate::support::tree::{self, Features};
use crate::support::{needs_fuse, shell};

const TIME: u64 = 1_000_000_000;

fn file(name: &str, contents: &[u8]) -> Vec<u8> {
    member(EntryType::Regular, name, "", TIME, contents)
}

fn set_time(path: &Path, seconds: u64) {
    shell(Path::new("/"), &format!("touch -h -d @{seconds} {path:?}"));
}

#[test]
fn what_is_right_is_left_alone_and_what_is_not_is_mended() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let (packed, archive) = (dir.path().join("tree"), dir.path().join("x.tar"));
    fs::create_dir(&packed).unwrap();
    tree::make(&packed, Features::ALL);
    gnu_tar(&packed, &archive, &["--format=pax", "--xattrs", "--xattrs-include=*", "--acls"]);
    let mount = Mount::file(&archive, &[]);
    let dest = dir.path().join("dest");
    materialize(&mount, &dest, &[]).with(0);
    // Directories may be told again what they are; all else may not even be touched.
    let files = |dest: &Path| {
        let mut all = look(dest);
        all.retain(|path, _| !path.symlink_metadata().unwrap().is_dir());
        all
    };
    let before = files(&dest);
    let again = materialize(&mount, &dest, &[]).with(0);
    assert_eq!((again.count("entries"), again.count("bytes")), (0, 0));
    assert_eq!(files(&dest), before);

    shell(
        &dest,
        "rm sizes/1; echo more >>sizes/513; : >sizes/4097; touch sizes/511; rm -r long; chmod 600 modes/4755
         chown 7:7 owners/file; chown -h 7:7 links/absolute; ln -sfn elsewhere links/relative; rm devices/null
         mkdir devices/null; rm devices/fifo; echo x >devices/fifo; rm 'another big'; rm links/first*; touch links
         rm sizes/0; mkfifo sizes/0; rm sizes/512; ln -s /etc/hostname sizes/512; chmod 700 modes/empty",
    );
    let mended = materialize(&mount, &dest, &[]).with(0);
    assert!(mended.count("entries") > 15);
    same_tree(&packed, &dest);
    mount.unmount();
}

#[test]
fn overwriting_as_it_was_asked() {
    needs_fuse!();
    let members: Vec<_> = ["newer", "older", "same", "other", "missing"].map(|name| file(name, b"packed")).into();
    let link = |name, first| member(EntryType::Link, name, first, TIME, b"");
    let links = [link("second", "same"), link("third", "newer"), link("fourth", "newer")].concat();
    let (_dir, mount, dest) = archive(&[members.concat(), links]);
    let outcome = |overwrite: &str| -> Vec<String> {
        shell(&dest, "rm -rf *");
        for (name, contents, time) in [
            ("newer", "disk", TIME + 1),
            ("older", "disk", TIME - 1),
            ("same", "disk's ", TIME),
            ("other", "disk's", TIME),
            ("second", "disk", TIME + 1),
        ] {
            fs::write(dest.join(name), contents).unwrap();
            set_time(&dest.join(name), time);
        }
        materialize(&mount, &dest, &["--overwrite", overwrite]).with(0);
        assert_eq!(fs::read(dest.join("missing")).unwrap(), b"packed");
        // Second names of what is kept have what was packed, and are not names of what somebody else has put there.
        let inode = |name: &str| dest.join(name).metadata().unwrap().ino();
        assert_eq!(fs::read(dest.join("third")).unwrap(), b"packed");
        assert_eq!(inode("third"), inode("fourth"));
        assert_eq!(inode("third") == inode("newer"), fs::read(dest.join("newer")).unwrap() == b"packed");
        let replaced = |name: &&&str| {
            let contents = fs::read(dest.join(name)).unwrap();
            assert!(contents == b"packed" || contents.starts_with(b"disk"));
            contents == b"packed"
        };
        if overwrite == "if-newer" {
            assert_eq!(fs::read(dest.join("second")).unwrap(), b"disk");
        }
        ["newer", "older", "same", "other", "second"].iter().filter(replaced).map(|&name| name.into()).collect()
    };
    assert_eq!(outcome("never"), [""; 0]);
    assert_eq!(outcome("if-newer"), ["older"]);
    // Of the same size and time: as far as can be told without reading it, nothing has changed.
    assert_eq!(outcome("if-changed"), ["newer", "older", "same", "second"]);
    assert_eq!(outcome("always"), ["newer", "older", "same", "other", "second"]);
    mount.unmount();
}

#[test]
fn what_others_call_theirs_is_replaced_and_not_changed() {
    needs_fuse!();
    let (dir, mount, dest) = archive(&[file("changed", b"packed"), file("mode only", b"packed")]);
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for name in ["changed", "mode only"] {
        fs::write(outside.join(name), b"theirs").unwrap();
        fs::set_permissions(outside.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        set_time(&outside.join(name), TIME + u64::from(name == "changed"));
        fs::hard_link(outside.join(name), dest.join(name)).unwrap();
    }
    let modes = || ["changed", "mode only"].map(|name| outside.join(name).metadata().unwrap().mode() & 0o7777);
    materialize(&mount, &dest, &[]).with(0);
    assert_eq!(modes(), [0o600; 2]);
    assert_eq!(fs::read(outside.join("changed")).unwrap(), b"theirs");
    for name in ["changed", "mode only"] {
        assert_eq!(fs::read(dest.join(name)).unwrap(), b"packed");
        assert_eq!(dest.join(name).metadata().unwrap().mode() & 0o7777, 0o644);
    }
    mount.unmount();
}

#[test]
fn a_name_is_never_missing_and_an_open_file_stays_what_it_was() {
    needs_fuse!();
    let large = tree::bytes(1, 3 << 20);
    let (_dir, mount, dest) = archive(&[
        file("file", b"packed"),
        file("large", &large),
        member(EntryType::Symlink, "link", "target", TIME, b""),
        member(EntryType::Link, "second", "file", TIME, b""),
    ]);
    fs::write(dest.join("file"), "old").unwrap();
    fs::write(dest.join("large"), "old").unwrap();
    symlink("old", dest.join("link")).unwrap();
    fs::write(dest.join("second"), "old").unwrap();
    let mut open = fs::File::open(dest.join("file")).unwrap();
    let over = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut seen = 0_u64;
            while !over.load(Ordering::Relaxed) || seen == 0 {
                for name in ["file", "second"] {
                    let contents = fs::read(dest.join(name)).unwrap();
                    assert!(contents == b"old" || contents == b"packed", "{name}: {contents:?}");
                }
                let size = dest.join("large").metadata().unwrap().len();
                assert!(size == 3 || size == large.len() as u64, "{size}");
                let target = fs::read_link(dest.join("link")).unwrap();
                assert!(target == Path::new("old") || target == Path::new("target"), "{target:?}");
                seen += 1;
            }
            seen
        });
        for _ in 0..10 {
            materialize(&mount, &dest, &["--overwrite", "always"]).with(0);
        }
        over.store(true, Ordering::Relaxed);
        looker.join().unwrap()
    });
    assert!(seen > 0);
    let mut contents = String::new();
    open.read_to_string(&mut contents).unwrap();
    assert_eq!(contents, "old");
    assert_eq!(fs::read(dest.join("large")).unwrap(), large);
    assert_eq!(fs::read_dir(&dest).unwrap().count(), 4);
    mount.unmount();
}
