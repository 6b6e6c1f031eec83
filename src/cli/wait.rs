//! `restorefs wait`.

use std::path::Path;

use super::args::WaitArgs;
use super::ask::{ask, end, find};
use super::exit::Exit;
use super::print::{fail, tell};
use super::show;
use crate::control::{Connection, Error, Mounted, Request, Response};
use crate::mount::path_below;

pub(super) fn run(args: &WaitArgs) -> Exit {
    let mounted = match find(&args.mountpoint) {
        Ok(mounted) => mounted,
        Err(message) => return fail(message),
    };
    // Waiting may take for ever; that nobody is there to wait for is told at once.
    if let Err(e) = ask(&mounted, &Request::Status) {
        return fail(e);
    }
    if args.paths.is_empty() {
        return all(&mounted);
    }
    // One after the other: they are complete together when the last is.
    args.paths.iter().map(|path| one(&mounted, path)).find(|exit| *exit != Exit::Complete).unwrap_or(Exit::Complete)
}

fn all(mounted: &Mounted) -> Exit {
    match ask(mounted, &Request::Wait { path: None }) {
        Ok(status) => end(&status),
        Err(e) => lost(mounted, e),
    }
}

fn one(mounted: &Mounted, path: &Path) -> Exit {
    let below = path_below(mounted, path);
    match Connection::open(mounted).and_then(|daemon| daemon.ask(&Request::Wait { path: Some(below) })) {
        Ok(Response::State(state)) if state == "complete" => Exit::Complete,
        Ok(Response::State(state)) => {
            tell(format_args!("'{}' is {state}: the stream is over", show::path(path)));
            Exit::Incomplete
        }
        Ok(Response::Absent) => {
            tell(format_args!("'{}' has not come, and the stream is over", show::path(path)));
            Exit::Incomplete
        }
        Ok(other) => fail(format_args!("unexpected answer {other:?}")),
        Err(e) => lost(mounted, e),
    }
}

/// What is waited for has not come when the daemon ends.
fn lost(mounted: &Mounted, cause: Error) -> Exit {
    if !matches!(cause, Error::Ended(_)) {
        return fail(cause);
    }
    tell(format_args!("{cause}, before the stream was over"));
    // It says where the spool is.
    if let Err(e @ Error::Gone { .. }) = Connection::open(mounted) {
        tell(e);
    }
    Exit::Incomplete
}
