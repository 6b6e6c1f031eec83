//! A tree on its way.
mod catalogue;
mod delivery;
mod pace;
mod plan;
mod shrink;

pub use delivery::{Delivered, Failure, Job, run as deliver};
