//! Any bytes as an archive, in any pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| restorefs::tarball::fuzz::any_bytes(input));
