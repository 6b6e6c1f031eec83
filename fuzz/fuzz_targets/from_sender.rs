//! What a sender that has the token says: connections of frames of messages, into the receiver's store.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

/// The spool of each receiver is made in here, and goes with it.
static SPOOL: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join("restorefs-fuzz-spool");
    std::fs::create_dir_all(&path).expect("a directory can be made");
    path
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| restorefs::receive::fuzz::any_bytes(input, &SPOOL));
