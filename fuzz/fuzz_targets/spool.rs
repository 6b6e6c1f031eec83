//! What a daemon that is gone may have left: a journal and blobs, recovered, to be read and to be filled further.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

/// The spools are made in here, each gone when it has been looked at.
static SPOOLS: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join("restorefs-fuzz-spools");
    std::fs::create_dir_all(&path).expect("a directory can be made");
    path
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| restorefs::store::fuzz::any_bytes(input, &SPOOLS));
