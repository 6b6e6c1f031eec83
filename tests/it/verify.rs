//! `restorefs materialize --verify` and `--dry-run`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use crate::support::compare::same_tree;
use crate::support::feed::{end, member, whole};
use crate::support::mount::{Mount, restorefs};
use crate::support::pack::gnu_tar;
use crate::support::tree::{self, Features};
use crate::support::{needs_fuse, shell, wait_until};

fn materialize(mount: &Mount, dest: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = restorefs(&[&["materialize", "--no-sync"], args].concat(), &[&mount.point, dest]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[test]
fn what_was_changed_behind_our_back_is_found() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let (packed, archive) = (dir.path().join("tree"), dir.path().join("x.tar"));
    fs::create_dir(&packed).unwrap();
    tree::make(&packed, Features::ALL);
    gnu_tar(&packed, &archive, &["--format=pax", "--sparse", "--xattrs", "--xattrs-include=*", "--acls"]);
    for piped in [false, true] {
        let mount = if piped {
            Mount::start(fs::File::open(&archive).unwrap().into(), &["-d"], |command| {
                command.arg("/dev/stdin");
            })
        } else {
            Mount::file(&archive, &[])
        };
        mount.wait_end();
        let dest = dir.path().join(format!("restored-{piped}"));
        let (code, text) = materialize(&mount, &dest, &["--verify"]);
        assert_eq!(code, Some(0), "{text}");
        // Without a change of size or time, each found by what only --verify looks at.
        let keep_time = |line: &str| {
            shell(
                &dest,
                &format!("f=$1; touch -r \"$f\" ../t; {line}; touch -r ../t \"$f\"").replace("$1", "sizes/4097"),
            )
        };
        keep_time("printf x | dd of=$f bs=1 seek=4000 conv=notrunc status=none");
        shell(
            &dest,
            "touch -h -r holes/middle ../t; printf x | dd of=holes/middle bs=1 seek=300000 conv=notrunc status=none; touch -r ../t holes/middle",
        );
        shell(
            &dest,
            "setfattr -x user.one attributes/plain; touch -h -d @1000000 links/relative; rm 'third name'; echo several names > 'third name'",
        );
        let (code, text) = materialize(&mount, &dest, &["--verify", "--overwrite=never"]);
        assert_eq!(code, Some(3), "{text}");
        for found in [
            "'sizes/4097': verified: its contents differ",
            "'holes/middle': verified: its contents differ",
            "'attributes/plain': verified: an extended attribute differs",
            "'links/relative': verified: its time differs",
            "'third name': verified: ",
            "5 could not be restored",
        ] {
            assert!(text.contains(found), "no \"{found}\" in: {text}");
        }
        mount.unmount();
    }
}

#[test]
fn links_and_versions_are_compared_with_the_whole_stream() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let (archive, dest) = (dir.path().join("x.tar"), dir.path().join("dest"));
    let hard = |name: &str, target: &str| member(tar::EntryType::Link, name, target, 7, b"");
    let members = [
        whole("top/one", b"contents"),
        hard("top/two", "top/one"),
        hard("top/three", "top/two"),
        whole("top/other", b"contents"),
        whole("top/replaced", b"version 1"),
        whole("top/replaced", b"version 2"),
        hard("top/becomes", "top/replaced"),
    ];
    fs::write(&archive, [members.concat(), end()].concat()).unwrap();
    let mount = Mount::file(&archive, &[]);
    // Each leaves size and time as they are.
    let faults: &[(&str, &[&str])] = &[
        ("cp -p one new; mv -f new two", &["'two': verified: it is no hard link to 'one'"]),
        ("ln -f one other", &["'other': verified: it is a hard link to 'one', which is another file"]),
        (
            "echo -n 'version 1' >new; touch -r replaced new; mv -f new replaced",
            &["'replaced': verified: its contents differ", "'becomes': verified: it is no hard link to 'replaced'"],
        ),
    ];
    for (fault, found) in faults {
        for (args, below) in [
            (&[][..], "top"),
            (&["--include=top/{one,two,other,replaced,becomes}"], "top"),
            (&["--strip-components=1"], "."),
        ] {
            let _ = fs::remove_dir_all(&dest);
            let (code, text) = materialize(&mount, &dest, &[&["--verify"], args].concat());
            assert_eq!(code, Some(0), "{text}");
            // A name elsewhere is no fault.
            shell(&dest.join(below), "ln one ../further");
            shell(&dest.join(below), fault);
            let (code, text) = materialize(&mount, &dest, &[&["--verify", "--overwrite=never"], args].concat());
            assert_eq!(code, Some(3), "{text}");
            let prefix = if below == "." { "" } else { "top/" };
            for what in *found {
                let what = what
                    .replace("'one'", &format!("'{prefix}one'"))
                    .replace("to 'replaced'", &format!("to '{prefix}replaced'"));
                assert!(text.contains(&what.replacen('\'', &format!("'{prefix}"), 1)), "no {what} in: {text}");
            }
            let _ = fs::remove_file(dir.path().join("further"));
        }
    }
    mount.unmount();
}

#[test]
fn a_dry_run_tells_what_would_be_done_and_does_nothing() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let (packed, archive, dest) = (dir.path().join("tree"), dir.path().join("x.tar"), dir.path().join("dest"));
    fs::create_dir(&packed).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(packed.join(name), name).unwrap();
    }
    fs::hard_link(packed.join("a"), packed.join("d")).unwrap();
    gnu_tar(&packed, &archive, &["--sort=name"]);
    let mount = Mount::file(&archive, &[]);
    let (code, text) = materialize(&mount, &dest, &["--dry-run"]);
    assert_eq!((code, &*text), (Some(0), "make     a\nmake     b\nmake     c\nmake     d\n"));
    assert!(!dest.exists());
    assert_eq!(materialize(&mount, &dest, &["--exclude=d"]).0, Some(0));
    fs::write(dest.join("b"), "other").unwrap();
    let before = shell(&dest, "stat -c '%n %i %z' *");
    let (code, text) = materialize(&mount, &dest, &["--dry-run"]);
    assert_eq!((code, &*text), (Some(0), "right    a\nreplace  b\nright    c\nmake     d\n"));
    let (_, text) = materialize(&mount, &dest, &["--dry-run", "--overwrite=never", "--include=b"]);
    assert_eq!(text, "keep     b\n");
    assert_eq!(shell(&dest, "stat -c '%n %i %z' *"), before);
    assert_eq!(
        dest.metadata().unwrap().permissions().mode() & 0o777,
        packed.metadata().unwrap().permissions().mode() & 0o777
    );
    mount.unmount();
}

#[test]
fn one_command_mounts_and_restores() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let (packed, archive) = (dir.path().join("tree"), dir.path().join("x.tar"));
    fs::create_dir(&packed).unwrap();
    tree::make(&packed, Features::ALL);
    std::os::unix::fs::symlink("/etc/hostname", packed.join("0 link")).unwrap();
    gnu_tar(&packed, &archive, &["--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "--sort=name"]);
    let bytes = fs::read(&archive).unwrap();
    for (how, cut, code) in [(&[][..], bytes.len(), 0), (&["-f"], bytes.len(), 0), (&[], bytes.len() / 2, 4)] {
        let dest = dir.path().join(format!("dest-{cut}-{}", how.len()));
        let args = [how, &["--materialize", dest.to_str().unwrap()]].concat();
        let mut mount = Mount::start(Stdio::piped(), &args, |command| {
            command.arg("-");
        });
        let mut stdin = mount.front.stdin.take().unwrap();
        stdin.write_all(&bytes[..cut / 2]).unwrap();
        // What has come is there while the rest is still coming.
        wait_until("the first link is restored", || fs::read_link(dest.join("0 link")).ok());
        stdin.write_all(&bytes[cut / 2..cut]).unwrap();
        drop(stdin);
        mount.wait_printed("restored ");
        if how.is_empty() {
            assert_eq!(mount.wait_front(), Some(code));
        }
        if code == 0 {
            same_tree(&packed, &dest);
        } else {
            let cut = mount.status()["end"]["cut"].as_str().unwrap().to_owned();
            assert!(dest.join(&cut).symlink_metadata().is_err(), "{cut} is not whole");
        }
        assert_eq!(mount.unmount(), Some(code));
    }
}

#[test]
fn owners_by_name_also_of_second_names() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let (packed, archive, dest) = (dir.path().join("tree"), dir.path().join("x.tar"), dir.path().join("dest"));
    fs::create_dir(&packed).unwrap();
    fs::write(packed.join("first"), "x").unwrap();
    fs::hard_link(packed.join("first"), packed.join("second")).unwrap();
    // The number is another machine's; the name is known here too.
    gnu_tar(&packed, &archive, &["--sort=name", "--owner=daemon:4242", "--group=daemon:4242"]);
    let mount = Mount::file(&archive, &[]);
    let (code, text) = materialize(&mount, &dest, &["--map-owner", "--verify", "--include=second"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(shell(&dest, "stat -c %U:%G *"), "daemon:daemon\n");
    mount.unmount();
}
