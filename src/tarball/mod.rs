//! Tar to entries: v7, ustar, star, GNU and pax, as GNU tar, bsdtar and Python write them. And entries to pax.
//!
//! [`Decoder`] does no I/O: bytes go in as they come, in whatever pieces, and the same events come out. An
//! entry is told as soon as the last byte of its header (pax records and sparse map included) is there.
//! Nothing is ever resynchronised by searching: where the place of the next header is not certain, the
//! decoder stops. It does not know where entries go, and keeps nothing of the tree.
//!
//! Followed: POSIX.1-2024 pax; GNU tar 1.34 and 1.35 and its manual; libarchive 3.6; Go's archive/tar for
//! telling the dialects apart.

mod decoder;
mod encoder;
mod event;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod glance;
mod header;
mod key;
mod member;
mod number;
mod pax;
mod solaris;
mod sparse;
#[cfg(test)]
pub(crate) mod tests;

pub use decoder::Decoder;
pub use encoder::{END, Encoder, RECORD, Unsupported, fill};
pub use event::{End, Event, Options, Stop};
pub use header::{BLOCK, may_begin_header};
