//! One binary for all integration tests: real archives from real tools, through real mounts.

// Nothing is exported from a test binary; `pub` only says what the tests use of each other.
#![allow(unreachable_pub)]
#![allow(clippy::print_stderr)]

mod dialects;
mod readers;
mod story;
mod support;
