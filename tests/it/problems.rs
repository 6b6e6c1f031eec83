//! Very many problems: the first are printed, then a count; and all of them are there for whoever asks.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tar::EntryType::{Directory, Regular};

use crate::support::disk::Disk;
use crate::support::feed::{end, member, whole};
use crate::support::mount::{Mount, RESTOREFS, restorefs};
use crate::support::needs_fuse;

const MANY: usize = 20_000;
const SHOWN: usize = 20;
const TIME: u64 = 1_000_000_000;

/// An archive with a good file, and behind it so many that have to be refused.
fn refused(dir: &Path, count: usize) -> std::path::PathBuf {
    let bad = (0..count).map(|n| member(Regular, &format!("../bad{n}"), "", TIME, b""));
    let members: Vec<Vec<u8>> = std::iter::once(whole("good", b"good")).chain(bad).chain([end()]).collect();
    let path = dir.join("x.tar");
    fs::write(&path, members.concat()).unwrap();
    path
}

fn asked(mount: &Mount, args: &[&str]) -> String {
    let output = restorefs(&[&["status"], args].concat(), &[&mount.point]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The path of a problem names which one it is.
#[track_caller]
fn is_bad(path: &str, n: usize) {
    assert!(path.ends_with(&format!("bad{n}")), "{path} is not problem {n}");
}

#[test]
fn twenty_thousand_refusals_are_twenty_lines_and_a_count() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let archive = refused(dir.path(), MANY);
    let counted = "and 19,980 more: 'restorefs status --problems ";
    for args in [&["-f"][..], &[]] {
        let mut mount = Mount::start(Stdio::null(), args, |command| {
            command.arg(&archive);
        });
        assert_eq!(mount.wait_end()["refused"], MANY as u64);
        mount.wait_printed("20,000 left out ('restorefs status --problems' names them)");
        let printed = mount.printed();
        let lines: Vec<&str> = printed.lines().filter(|line| line.contains("bad")).collect();
        assert_eq!(lines.len(), SHOWN, "{printed}");
        let point = mount.point.display();
        assert!(printed.contains(&format!("{counted}{point}'\n")), "{printed}");

        let words = asked(&mount, &[]);
        assert_eq!(words.lines().filter(|line| line.contains("bad")).count(), SHOWN, "{words}");
        assert!(words.contains(&format!("{counted}{point}'\n")), "{words}");
        if args.is_empty() {
            assert_eq!(mount.wait_front(), Some(3));
        }
        mount.unmount();
    }
}

#[test]
fn all_of_them_can_be_asked_for() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::file(&refused(dir.path(), MANY), &[]);
    mount.wait_end();
    let lines = asked(&mount, &["--problems"]);
    assert_eq!(lines.lines().count(), MANY);
    for (n, line) in lines.lines().enumerate() {
        assert!(line.starts_with("left out '") && line.contains(&format!("bad{n}': ")), "{line}");
    }
    let lines = asked(&mount, &["--problems", "--json"]);
    let one_by_one: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(one_by_one.len(), MANY);
    for (n, problem) in one_by_one.iter().enumerate() {
        assert_eq!(problem["severity"], "refused");
        is_bad(problem["path"].as_str().unwrap(), n);
    }
    let status = mount.status();
    assert_eq!(status["problems"].as_array().unwrap(), &one_by_one);
    assert_eq!(status["phase"], "over");

    // Whoever has seen enough goes, and that is no failure.
    let mut asking = Command::new(RESTOREFS)
        .args(["status", "--problems"])
        .arg(&mount.point)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::with_capacity(64, asking.stdout.take().unwrap()).read_line(&mut first).unwrap();
    is_bad(first.split('\'').nth(1).unwrap(), 0);
    let output = asking.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    mount.unmount();
}

#[test]
fn none_is_an_empty_list() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::file(&refused(dir.path(), 0), &[]);
    mount.wait_clean();
    assert_eq!(asked(&mount, &["--problems"]), "");
    assert_eq!(mount.status()["problems"], serde_json::json!([]));
    mount.unmount();
}

#[test]
fn each_is_printed_where_everything_is_asked_for() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::file(&refused(dir.path(), 100), &["--verbose"]);
    mount.wait_printed("100 left out");
    let printed = mount.printed();
    assert_eq!(printed.lines().filter(|line| line.contains("bad")).count(), 100, "{printed}");
    assert!(!printed.contains("80 more"), "{printed}");
    mount.unmount();
}

#[test]
fn a_restore_reports_all_that_it_could_not_make() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let files = (0..MANY).map(|n| member(Regular, &format!("d/f{n}"), "", TIME, b"1"));
    let members: Vec<Vec<u8>> =
        [member(Directory, "d/", "", TIME, b"")].into_iter().chain(files).chain([end()]).collect();
    let archive = dir.path().join("x.tar");
    fs::write(&archive, members.concat()).unwrap();
    let mount = Mount::file(&archive, &[]);
    mount.wait_clean();
    let dest = dir.path().join("dest");
    fs::create_dir(&dest).unwrap();
    let _disk = Disk::at(&dest.join("d"), "tmpfs", "ro");
    let restore = |args: &[&str]| {
        let output = restorefs(&[&["materialize", "--no-sync"], args].concat(), &[&mount.point, &dest]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (json, text) = restore(&["--json"]);
    let report: Value = serde_json::from_str(&json).unwrap();
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(report["left_out"].as_u64().unwrap(), problems.len() as u64);
    let named: std::collections::BTreeSet<&str> = problems.iter().map(|p| p["path"].as_str().unwrap()).collect();
    for n in 0..MANY {
        assert!(named.contains(&format!("d/f{n}")[..]), "d/f{n} is not named");
    }
    let more = problems.len() - SHOWN;
    let counted = format!("and {},{:03} more: ", more / 1000, more % 1000);
    assert!(text.contains(&format!("{counted}all are in the JSON report\n")), "{text}");
    let (json, text) = restore(&[]);
    assert_eq!(json, "");
    assert_eq!(text.lines().filter(|line| line.starts_with("restorefs: 'd")).count(), SHOWN, "{text}");
    assert!(text.contains(&format!("{counted}--json reports all\n")), "{text}");
    mount.unmount();
}
