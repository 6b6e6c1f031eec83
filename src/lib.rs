//! restorefs: a FUSE filesystem that mounts a backup while it is still arriving.

#![cfg_attr(test, allow(clippy::print_stdout, clippy::print_stderr))]

pub mod cli;
pub mod control;
pub mod entry;
pub mod filter;
pub mod fs;
pub mod fuse;
pub mod index;
pub mod ingest;
pub mod monitor;
pub mod mount;
pub mod record;
pub mod source;
pub mod spool;
pub mod store;
pub mod sys;
pub mod tarball;
