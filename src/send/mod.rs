//! A walked tree, sent.
//!
//! [`tar()`] writes it as an archive: the walk, the reading of contents and the writing each have a thread, and what is
//! between them is bounded. [`deliver`] brings it to a receiver: names first, then contents, what somebody waits for ahead
//! of all; `plan` says what is next, and [`wire`](crate::wire) how it is said.

mod catalogue;
mod delivery;
mod flight;
mod large;
mod limit;
mod plan;
mod report;
mod shrink;
mod small;
mod tar;

#[cfg(any(test, fuzzing))]
pub use delivery::fuzz;
pub use delivery::{Delivered, Failure, Job, run as deliver};
pub use report::{Note, Report, Summary};
pub use tar::{Options, tar};
