//! Versions of a file that nothing names any more give their room in the spool back, and nobody who reads misses them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::mount::{Mount, restorefs};
use crate::support::{needs_fuse, shell};

const SIZE: usize = 4 << 20;

fn version(n: u8) -> Vec<u8> {
    (0..SIZE).map(|at| n.wrapping_mul(31).wrapping_add((at / 7) as u8)).collect()
}

/// Waits until the spool takes at most so many bytes.
fn wait_spool(mount: &Mount, most: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let bytes = mount.status()["spool"]["bytes"].as_u64().unwrap();
        if bytes <= most {
            return;
        }
        assert!(Instant::now() < deadline, "{bytes} bytes stay in the spool");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn replaced_versions_give_their_room_back() {
    needs_fuse!();
    let dir = tempfile::tempdir().unwrap();
    let (mount, mut stdin) = Mount::pipe(&[]);
    let mut opened = None;
    for n in 1..=5 {
        fs::write(dir.path().join("f"), version(n)).unwrap();
        shell(dir.path(), "tar -cf v.tar f");
        let mut member = Vec::new();
        File::open(dir.path().join("v.tar")).unwrap().read_to_end(&mut member).unwrap();
        // Without the end marker, more can follow.
        member.truncate(512 + SIZE);
        stdin.write_all(&member).unwrap();
        stdin.flush().unwrap();
        let output =
            Command::new(env!("CARGO_BIN_EXE_restorefs")).arg("wait").arg(&mount.point).arg("f").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        while fs::read(mount.path("f")).unwrap() != version(n) {}
        if n == 2 {
            opened = Some(File::open(mount.path("f")).unwrap());
        }
    }
    // The last one, and the one that is open.
    wait_spool(&mount, 2 * SIZE as u64 + (1 << 20));
    let opened = opened.unwrap();
    let mut byte = [0];
    opened.read_exact_at(&mut byte, SIZE as u64 - 1).unwrap();
    assert_eq!(byte[0], version(2)[SIZE - 1]);
    drop(opened);
    stdin.write_all(&[0; 1024]).unwrap();
    drop(stdin);
    let status = mount.wait_end();
    assert_eq!(status["end"]["verdict"], "complete", "{status:#}");
    let dest = dir.path().join("dest");
    let output = restorefs(&["materialize", "--verify"], &[&mount.point, &dest]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(fs::read(dest.join("f")).unwrap() == version(5));
    let output = restorefs(&["scrub"], &[&mount.point]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(mount.unmount(), Some(0));
}
