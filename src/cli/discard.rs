//! `restorefs discard`.

use std::path::PathBuf;

use indicatif::HumanBytes;

use super::args::DiscardArgs;
use super::exit::Exit;
use super::print::{fail, say};
use super::show;
use crate::monitor::Chain;
use crate::spool::{discard, left_over};

pub(super) fn run(args: &DiscardArgs) -> Exit {
    let own = rustix::process::geteuid().as_raw();
    let spools: Vec<PathBuf> = if args.all {
        left_over().into_iter().filter(|left| left.uid == own).map(|left| left.path).collect()
    } else {
        args.spools.clone()
    };
    if spools.is_empty() {
        say("no spool is left over");
    }
    let mut exit = Exit::Complete;
    for spool in &spools {
        match discard(spool) {
            // Where nobody reads it, the others are removed all the same.
            Ok(freed) => drop(say(format_args!("'{}' is removed: {} freed", show::path(spool), HumanBytes(freed)))),
            Err(e) => exit = fail(Chain(&e)),
        }
    }
    exit
}
