//! What a receiver that has the token says, to a sender of the small tree that the seeds are made for.
#![no_main]

#[path = "../tree.rs"]
mod tree;

use std::path::PathBuf;
use std::sync::LazyLock;

static TREE: LazyLock<PathBuf> = LazyLock::new(|| tree::make().expect("a tree can be made"));

libfuzzer_sys::fuzz_target!(|input: &[u8]| restorefs::send::fuzz::any_bytes(input, &TREE));
