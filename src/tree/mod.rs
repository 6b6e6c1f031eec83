//! A live directory as entries.
//!
//! [`Walk`] goes through what is to be sent, in the order of names, each directory before what is in it, and makes an
//! [`Entry`](crate::entry::Entry) of everything. It opens nothing but directories and files with holes: contents are opened later, by an
//! [`Opener`], in any order and by any thread, from the [`Origin`] that came with the entry.
//!
//! Others may change the tree meanwhile. What is named by a component is never followed through a link; what has
//! vanished, or cannot be read, is a [`Step::Problem`]; and [`Contents`] can tell whether they are still what was
//! announced. What is known to be a FIFO or a device is never opened.
//!
//! Extended attributes, and contents, are reached through `/proc/self/fd`, which has to be mounted.

mod attributes;
mod directories;
mod holes;
mod listing;
mod names;
mod origin;
mod step;
#[cfg(test)]
mod tests;
mod walk;

pub use origin::{Contents, OpenError, Opener, Origin};
pub use step::{Error, Options, Step};
pub use walk::Walk;
