//! ACLs and capabilities as their own tools see them, and what they let ordinary users do.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::support::compare::same_tree;
use crate::support::mount::{Mount, restorefs};
use crate::support::pack::gnu_tar;
use crate::support::tree::{self, Features};
use crate::support::{needs_fuse, shell};

const EVERYTHING: &[&str] = &["--format=pax", "--xattrs", "--xattrs-include=*", "--acls"];

/// A directory with a tree in `tree`, and its archive.
fn packed(make: impl FnOnce(&Path)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    make(&tree);
    gnu_tar(&tree, &dir.path().join("x.tar"), EVERYTHING);
    dir
}

/// Mounts the archive; other users can get as far as the mount point.
fn mounted(dir: &TempDir, args: &[&str]) -> Mount {
    let mount = Mount::file(&dir.path().join("x.tar"), args);
    fs::set_permissions(mount.dir.path(), Permissions::from_mode(0o755)).unwrap();
    mount.wait_clean();
    mount
}

/// Runs a command as this user, in no other groups.
fn as_user(id: u32, command: &[&str], path: &Path) -> Output {
    let (uid, gid) = (format!("--reuid={id}"), format!("--regid={id}"));
    let mut setpriv = Command::new("setpriv");
    setpriv.args([&uid, &gid, "--clear-groups"]).args(command).arg(path).env("LC_ALL", "C");
    setpriv.output().unwrap()
}

#[track_caller]
fn denied(output: &Output) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("Permission denied"), "{output:?}");
}

#[track_caller]
fn granted(output: &Output, contents: &str) {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), contents);
}

#[test]
fn getfacl_and_getcap_see_what_was_packed() {
    needs_fuse!();
    let dir = packed(|tree| tree::make(tree, Features::ALL));
    let ask = |at: &Path| shell(at, "getfacl -Rnp . 2>&1; PATH=$PATH:/usr/sbin:/sbin getcap -r . 2>&1");
    let told = ask(&dir.path().join("tree"));
    assert!(told.contains("user:1234:rw-") && told.contains("default:user:1234:r-x"), "{told}");
    assert!(told.contains("cap_setuid"), "{told}");
    for args in [&[][..], &["--allow-other"]] {
        let mount = mounted(&dir, args);
        assert_eq!(ask(&mount.point), told, "{args:?}");
        mount.unmount();
    }
}

#[test]
fn without_extended_attributes_none_are_seen_but_they_are_restored_and_acls_hold() {
    needs_fuse!();
    let dir = packed(|tree| tree::make(tree, Features::ALL));
    let tree = dir.path().join("tree");
    let mount = mounted(&dir, &["--no-xattrs"]);
    let told = shell(&mount.point, "(getfattr -Rhdm - .; getfacl -Rnp .) 2>&1 || true");
    assert!(told.matches("not supported").count() > 10 && !told.contains("user:1234"), "{told}");
    let copy =
        format!("cp -a '{}'/. copied && rsync -aHni --checksum --numeric-ids tree/ copied/", mount.point.display());
    assert_eq!(shell(dir.path(), &copy), "");
    let restored = dir.path().join("restored");
    let output = restorefs(&["materialize"], &[&mount.point, &restored]);
    assert!(output.status.success(), "{output:?}");
    same_tree(&tree, &restored);
    mount.unmount();
    // Where the kernel checks permissions, it goes by the ACLs.
    let mount = mounted(&dir, &["--no-xattrs", "--allow-other"]);
    let told = shell(&mount.point, "(getfattr -d .; getfacl -Rnp .) 2>&1 || true");
    assert!(told.contains("not supported") && told.contains("user:1234"), "{told}");
    mount.unmount();
}

#[test]
fn others_look_in_as_far_as_modes_and_acls_allow() {
    needs_fuse!();
    let dir = packed(|tree| {
        for (name, mode) in [("open", 0o644), ("own", 0o600), ("listed", 0o600), ("masked", 0o600), ("shut out", 0o644)]
        {
            fs::write(tree.join(name), name).unwrap();
            fs::set_permissions(tree.join(name), Permissions::from_mode(mode)).unwrap();
        }
        for (name, mode) in [("closed", 0o700), ("passage", 0o711)] {
            fs::create_dir(tree.join(name)).unwrap();
            fs::write(tree.join(name).join("in"), "inside").unwrap();
            fs::set_permissions(tree.join(name), Permissions::from_mode(mode)).unwrap();
        }
        shell(tree, "chown 1234:1234 own; setfacl -m u:1234:r listed; setfacl -m u:1234:r,m::- masked");
        shell(tree, "setfacl -m u:1234:- 'shut out'; setfacl -m g:4321:rx closed; chmod 755 .");
    });
    let mount = mounted(&dir, &["--allow-other"]);
    let cat = |user: u32, name: &str| as_user(user, &["cat"], &mount.path(name));
    for user in [1234, 65534] {
        granted(&cat(user, "open"), "open");
        granted(&cat(user, "passage/in"), "inside");
        denied(&as_user(user, &["ls"], &mount.path("passage")));
        denied(&cat(user, "closed/in"));
        denied(&cat(user, "masked"));
    }
    granted(&cat(1234, "own"), "own");
    denied(&cat(65534, "own"));
    granted(&cat(1234, "listed"), "listed");
    denied(&cat(65534, "listed"));
    denied(&cat(1234, "shut out"));
    granted(&cat(65534, "shut out"), "shut out");
    granted(&cat(4321, "closed/in"), "inside");
    granted(&as_user(4321, &["ls"], &mount.path("closed")), "in\n");
    mount.unmount();
}

#[test]
fn nobody_else_looks_in_unless_asked_to() {
    needs_fuse!();
    let dir = packed(|tree| {
        fs::write(tree.join("open"), "open").unwrap();
        shell(tree, "chmod 755 .; chmod 644 open; ln -s open link");
    });
    let mount = mounted(&dir, &[]);
    denied(&as_user(65534, &["ls"], &mount.point));
    for command in [&["cat"][..], &["stat"], &["getfattr", "-h", "-n", "user.restorefs.state"]] {
        denied(&as_user(65534, command, &mount.path("open")));
    }
    denied(&as_user(65534, &["stat"], &mount.path("link")));
    assert_eq!(fs::read(mount.path("open")).unwrap(), b"open");
    mount.unmount();
}
