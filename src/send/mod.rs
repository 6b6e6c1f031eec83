//! A walked tree, sent.
//!
//! [`tar`] writes it as an archive: the walk, the reading of contents and the writing each have a thread, and what is
//! between them is bounded.

mod limit;
mod report;
mod tar;

pub use report::{Note, Report, Summary};
pub use tar::{Options, tar};
