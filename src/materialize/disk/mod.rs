//! Entries to the disk: each by one name in an open directory, never through a link, never half of it in the place of
//! something that was there. It is told what to make by [`plan`](super::plan), and looks at the target for it.
//!
//! [`Restore`] takes entries and fills batches; workers make them; [`Comparer`] reads back what is there.

mod arriving;
mod batch;
mod compare;
mod copy;
mod create;
mod creator;
mod early;
mod kept;
mod links;
mod metadata;
mod present;
mod restore;
mod target;
mod temporary;
mod times;

pub(super) use batch::with_workers;
pub(super) use compare::Comparer;
pub(super) use creator::Creator;
pub(super) use restore::Restore;
pub(super) use target::Target;
