//! What the adapter has done by the threads beside it.

use fuser::BackingId;

use crate::fs::{Span, Window};

/// What is to become of the kernel's copies of contents.
pub(super) enum Task {
    /// Of files that will be read soon.
    Bring(Window),
    /// Of what will not be read again.
    Forget(Span),
}

/// A blob that the kernel was given.
pub type Given = BackingId;
