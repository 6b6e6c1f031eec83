//! What can be asked of a running mount, and how it is found.
//!
//! Each daemon listens on a Unix socket that is named by the device number of its mount, in a directory of its
//! user. One request and its answer go over one connection, a line of JSON each; whoever asks for the contents may ask on,
//! and counts as a user of the mount until the connection is closed. Only the daemon's own user and root are answered.

mod client;
mod handover;
mod message;
mod place;
mod server;

pub use crate::mount::{Client, Doing, How};
pub use crate::mounts::{Mounted, find, find_root, list};
pub use client::{Connection, Daemon, Error, take_away};
pub use message::{Request, Response, Scrub, Trace, Users};
pub use server::Server;
