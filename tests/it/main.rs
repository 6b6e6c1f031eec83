//! One binary for all integration tests: real archives from real tools, through real mounts.

// Nothing is exported from a test binary; `pub` only says what the tests use of each other.
#![allow(unreachable_pub)]
#![allow(clippy::print_stderr)]

mod acl;
mod adversity;
mod busy;
mod circles;
mod commands;
mod compression;
mod cuts;
mod damage;
mod delivery;
mod dialects;
mod differential;
mod direct;
mod faults;
mod hostile;
mod layering;
mod left;
mod listing;
mod materialize;
mod model;
mod no_archive;
mod passthrough;
mod policy;
mod power;
mod problems;
mod readers;
mod recovery;
mod send;
mod sparse;
mod stepwise;
mod story;
mod superseded;
mod support;
mod too_large;
mod trust;
mod verify;
