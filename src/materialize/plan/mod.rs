//! What is to be made: which entries are selected, what their names mean in the end, which of them are superseded, what
//! a run would do, and what has to be there after it.
//!
//! Nothing is written here, and nothing is known of how things are made. Where it has to be known what is in the target,
//! the other side is asked, by [`Look`] and [`Compare`].

mod bindings;
mod dry_run;
mod latest;
mod select;
mod verify;

pub(super) use bindings::{Binding, Bindings, Place};
pub use dry_run::Action;
pub(super) use dry_run::{DryRun, Look};
pub(super) use latest::Latest;
pub use select::{Error as SelectError, Selection};
pub(super) use verify::{Compare, Expected, Verify};
