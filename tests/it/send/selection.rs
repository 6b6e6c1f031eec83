//! What is sent, under which names, and where to.

use std::fs;
use std::process::{Command, Stdio};

use super::{command, ended, send};
use crate::support::mount::RESTOREFS;
use crate::support::{needs_fuse, run, shell};

#[test]
fn names_as_tar_has_them() {
    let dir = tempfile::tempdir().unwrap();
    shell(dir.path(), "mkdir -p a/b c; touch a/b/f c/g; ln -s a l");
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for args in [
        &["a", "c/g"][..],
        &["."],
        &["./a/"],
        &["a/b/../../c"],
        &["l"],
        &["-C", "a", "b", "../c"],
        &["-C", "a", "."],
        &[&path("a")],
        &[&path("a/b/f")],
    ] {
        let ours = send(dir.path(), args).with(0).names();
        let mut tar = Command::new("tar");
        tar.current_dir(dir.path()).args(["--sort=name", "-cf", "-"]).args(args).stderr(Stdio::null());
        let theirs = ended(run(&mut tar)).names();
        // A name is the same with and without "./" in front of it.
        let plain = |names: Vec<String>| {
            let names = names.into_iter().map(|name| name.strip_prefix("./").unwrap_or(&name).to_owned());
            names.collect::<Vec<_>>()
        };
        assert_eq!(plain(ours), plain(theirs), "{args:?}");
    }
    // GNU tar takes the slash away.
    assert_eq!(send(dir.path(), &["l/"]).with(0).names(), ["l/", "l/b/", "l/b/f"]);
    send(dir.path(), &["a/../c"]).with(0).says(&["names are sent without 'a/../' in front"]);
    send(dir.path(), &[&path("a")]).with(0).says(&["names are sent without the '/' in front"]);
}

#[test]
fn excludes_are_those_of_tar() {
    let dir = tempfile::tempdir().unwrap();
    shell(dir.path(), "mkdir -p t/src t/target/debug 't/a b'; touch t/src/{x.o,x.c} t/target/debug/x 't/a b/x' t/x.o");
    fs::write(dir.path().join("patterns"), "target\n\na b/x\n").unwrap();
    let ended = send(dir.path(), &["t", "--exclude", "*.o", "--exclude-from", "patterns"]).with(0);
    assert_eq!(ended.names(), ["t/", "t/a b/", "t/src/", "t/src/x.c"]);
    assert_eq!(send(dir.path(), &["t", "--exclude", "/t/src"]).with(0).names().len(), 7);
    send(dir.path(), &["t", "--exclude", "["]).with(1).says(&["'[' is no pattern"]);
    send(dir.path(), &["t", "--exclude-from", "none"]).with(1).says(&["cannot read patterns from 'none'"]);
}

#[test]
fn caches_keep_their_tag() {
    let dir = tempfile::tempdir().unwrap();
    shell(
        dir.path(),
        "mkdir -p t/cache/sub t/fake; touch t/cache/x t/fake/x; echo nothing >t/fake/CACHEDIR.TAG
         echo 'Signature: 8a477f597d28d172789f06886806bc55' >t/cache/CACHEDIR.TAG",
    );
    let names = send(dir.path(), &["t", "--exclude-caches"]).with(0).names();
    assert_eq!(names, ["t/", "t/cache/", "t/cache/CACHEDIR.TAG", "t/fake/", "t/fake/CACHEDIR.TAG", "t/fake/x"]);
}

#[test]
fn one_file_system_is_left_at_the_mount_point() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    shell(dir.path(), "mkdir -p t/m t/z; touch t/z/f");
    let sent = |args: &str| {
        // The mount is gone with the namespace.
        let line =
            format!("mount -t tmpfs none t/m; touch t/m/inside; '{RESTOREFS}' send t {args} - 2>/dev/null | tar tf -");
        let output = run(Command::new("unshare").args(["-m", "bash", "-euc", &line]).current_dir(dir.path()));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(sent("--one-file-system"), ["t/", "t/m/", "t/z/", "t/z/f"]);
    assert_eq!(sent(""), ["t/", "t/m/", "t/m/inside", "t/z/", "t/z/f"]);
}

#[test]
fn the_archive_is_not_in_itself() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "a").unwrap();
    let out = fs::File::create(dir.path().join("x.tar")).unwrap();
    let output = command(dir.path(), &["."]).stdout(out).output().unwrap();
    let ended = ended(output).with(0).says(&["'x.tar': it is the archive itself, and left out"]);
    let archive = fs::read(dir.path().join("x.tar")).unwrap();
    assert_eq!(super::Ended { archive, ..ended }.names(), ["./", "a"]);
}

#[test]
fn the_command_line_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "a").unwrap();
    let plain = |args: &[&str]| {
        let mut command = Command::new(RESTOREFS);
        ended(command.arg("send").args(args).current_dir(dir.path()).stdin(Stdio::null()).output().unwrap())
    };
    plain(&["a"]).with(2).says(&["'-' at the end"]);
    plain(&["-"]).with(2).says(&["say what is to be sent"]);
    plain(&["none", "-"]).with(1).says(&["cannot send 'none': No such file"]);
    plain(&["-C", "none", "a", "-"]).with(1).says(&["cannot change to 'none'"]);
    // `script` gives it a terminal.
    let line = format!("'{RESTOREFS}' send a -; echo code=$?");
    let output = run(Command::new("script").args(["-qec", &line, "/dev/null"]).current_dir(dir.path()));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("nothing for a terminal") && told.contains("code=2"), "{told}");
}
