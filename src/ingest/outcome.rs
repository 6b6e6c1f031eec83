//! How a step of receiving ends: well, or with the verdict that ends all of it.

use crate::monitor::{Chain, Verdict};
use crate::spool;
use crate::store::intake;

/// How it goes on: a verdict when it does not.
pub(super) type Outcome<T = ()> = Result<T, Verdict>;

pub(super) fn incomplete(cause: impl Into<String>) -> Verdict {
    Verdict::Incomplete { cause: cause.into(), cut: None }
}

pub(super) fn no_thread(e: std::io::Error) -> Verdict {
    Verdict::Failed { cause: format!("cannot start a thread: {e}") }
}

pub(super) fn failed(e: intake::Error) -> Verdict {
    match e {
        intake::Error::Spool(spool::Error::Stopped) => {
            incomplete("receiving was stopped while there was no room in the spool")
        }
        intake::Error::Full { .. } => Verdict::Corrupt { cause: e.to_string(), cut: None },
        intake::Error::Spool(spool::Error::Write { .. }) | intake::Error::Lost => {
            Verdict::Failed { cause: Chain(&e).to_string() }
        }
    }
}
