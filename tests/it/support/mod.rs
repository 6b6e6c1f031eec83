//! What the tests share: mounts that are always taken away again, trees with everything in them, archives of every
//! kind, and whole-tree comparison.

pub mod compare;
pub mod disk;
pub mod feed;
pub mod layer;
pub mod members;
pub mod mount;
pub mod network;
pub mod pack;
pub mod process;
pub mod proxy;
pub mod random;
pub mod remains;
pub mod small;
pub mod tree;
pub mod users;

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A test that waits longer than this for something hangs. It says nothing of how fast anything is.
pub const HANGS: Duration = Duration::from_secs(180);

/// Ends a test where mounts cannot be made: loudly, and as a failure where `RESTOREFS_REQUIRE_FUSE=1` asks for it.
macro_rules! needs_fuse {
    () => {
        if !crate::support::can_mount() {
            return;
        }
    };
}
pub(crate) use needs_fuse;

pub fn can_mount() -> bool {
    let there = std::path::Path::new("/dev/fuse").exists() && rustix::process::geteuid().is_root();
    if !there {
        assert!(
            std::env::var_os("RESTOREFS_REQUIRE_FUSE").is_none_or(|v| v != "1"),
            "RESTOREFS_REQUIRE_FUSE=1, but there is no /dev/fuse here, or we are not root"
        );
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        eprintln!("SKIPPED {name}: it needs root and /dev/fuse");
    }
    there
}

/// Numbers that look random, the same in each run.
pub fn sequence(seed: u64) -> impl Fn() -> u64 {
    let state = AtomicU64::new(seed);
    move || {
        let n = state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let n = (n ^ (n >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        n ^ (n >> 29)
    }
}

/// Looks again and again until `look` finds what it looks for.
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < HANGS, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a command that has to succeed, and returns what it printed.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| {
        panic!("{:?} cannot be run ({e}): scripts/test installs what the tests need", command.get_program())
    });
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a line of shell in a directory.
pub fn shell(dir: &std::path::Path, line: &str) -> String {
    let output = run(Command::new("bash").args(["-euo", "pipefail", "-c", line]).current_dir(dir));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
