//! The tree to disk, with all that belongs to it, also while it is still arriving.
//!
//! ```text
//!  replay ───► stream ───► plan ───► disk
//!  entries     as they     what to   made, by
//!              come        make      several threads
//! ```
//!
//! The entries of a mount are [replayed](crate::replay) into an index of our own, so that names mean here what they mean
//! in the mount (`plan`), and made on disk by several threads, each by one name in an open directory (`disk`). Symbolic
//! links are made at once, with their real target: safety comes from never walking through one.
//!
//! Entries are made in batches: first everything that stands for itself, in any order, then the hard links. What
//! takes the place of something waits until that has been made. Directories get their metadata at the end.

mod disk;
mod error;
mod options;
mod plan;
mod problems;
mod report;
mod run;
mod stream;

pub use error::{Error, Failure};
pub use options::{Options, Overwrite};
pub use plan::{Action, SelectError, Selection};
pub use problems::Problem;
pub use report::{Report, Stage, Summary};
pub use run::run;
pub use stream::{More, Origin, Progress};
