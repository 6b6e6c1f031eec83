//! What the archive does not say, and what it says for another system.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use tar::EntryType::{Directory, Regular};

use super::{archive, materialize};
use crate::support::feed::{end, member};
use crate::support::mount::Mount;
use crate::support::{needs_fuse, run};

const TIME: u64 = 1_000_000_000;

fn time(path: &Path) -> (i64, i64) {
    let m = path.metadata().unwrap();
    (m.mtime(), m.mtime_nsec())
}

#[test]
fn implied_directories_have_the_time_of_the_mount() {
    needs_fuse!();
    let members = [
        member(Regular, "a/b/c", "", TIME, b"1"),
        member(Regular, "a/d/e", "", TIME + 1, b"2"),
        member(Regular, "later/f", "", TIME, b"3"),
        member(Directory, "later/", "", TIME + 2, b""),
    ];
    for in_place in [true, false] {
        let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        let before = now();
        let (dir, mount) = if in_place {
            let (dir, mount, _) = archive(&members);
            (dir, mount)
        } else {
            let (mount, mut stdin) = Mount::pipe(&[]);
            stdin.write_all(&[members.concat(), end()].concat()).unwrap();
            (tempfile::tempdir().unwrap(), mount)
        };
        mount.wait_end();
        let made = time(&mount.point);
        // GNU tar and bsdtar leave the time at which they make such a directory, too.
        assert!((before..=now()).contains(&made.0), "{made:?}");
        let (new, old) = (dir.path().join("new"), dir.path().join("old"));
        fs::create_dir_all(old.join("a")).unwrap();
        for dest in [&new, &old] {
            materialize(&mount, dest, &["--verify"]).with(0);
            for path in ["a", "a/b", "a/d"] {
                assert_eq!(time(&mount.path(path)), made, "{path}");
                // A directory that was there is not ours.
                if dest == &new || path != "a" {
                    assert_eq!(time(&dest.join(path)), made, "{path} in {dest:?}");
                }
            }
            // A header that comes later counts.
            assert_eq!(
                (time(&mount.path("later")), time(&dest.join("later"))),
                ((1_000_000_002, 0), (1_000_000_002, 0))
            );
        }
        assert_eq!(time(&new), made);
        mount.unmount();
    }
}

#[test]
fn attributes_of_macos_are_named_once_and_are_no_problem() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("x.tar");
    // As bsdtar on macOS writes them: each twice.
    let script = "import sys, tarfile\n\
        with tarfile.open(sys.argv[1], 'w', format=tarfile.PAX_FORMAT) as a:\n    \
            for name in 'one', 'two':\n        \
                t = tarfile.TarInfo(name)\n        \
                t.pax_headers = {'LIBARCHIVE.xattr.com.apple.quarantine': 'MDA4MQ', \
                    'SCHILY.xattr.com.apple.quarantine': '0081', 'SCHILY.xattr.com.apple.provenance': 'x', \
                    'SCHILY.xattr.user.own': '1'}\n        \
                a.addfile(t)\n    \
            t.name, t.type, t.linkname = 'second', tarfile.LNKTYPE, 'one'\n    \
            a.addfile(t)\n";
    run(Command::new("python3").args(["-c", script]).arg(&tar));
    let mount = Mount::file(&tar, &[]);
    let dest = dir.path().join("dest");
    // In another run everything is right already, and it is named again.
    for _ in 0..2 {
        let ended = materialize(&mount, &dest, &["--verify"]).with(0).says(&["com.apple.*", "left out"]);
        assert_eq!(ended.text.matches("com.apple").count(), 1, "{}", ended.text);
        assert_eq!(ended.json["attributes"].as_array().unwrap().len(), 0, "{}", ended.text);
        ended.names(&[]);
        let mut value = [0; 9];
        assert_eq!(rustix::fs::getxattr(dest.join("one"), "user.own", &mut value), Ok(1));
    }
    mount.unmount();
}
