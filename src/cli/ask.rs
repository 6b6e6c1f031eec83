//! A mount, found by a path of the command line, and asked how it stands.

use std::path::Path;

use super::exit::Exit;
use super::print::tell;
use super::show;
use crate::control::{self, Connection, Error, Mounted, Request, Response};
use crate::monitor::Status;

/// The mount that a path of the command line means.
pub(super) fn find(path: &Path) -> Result<Mounted, String> {
    match control::find(path) {
        Ok(Some(mounted)) => Ok(mounted),
        Ok(None) => {
            Err(format!("'{}' is not in a restorefs mount ('restorefs status' names them all)", show::path(path)))
        }
        Err(e) => Err(format!("cannot read /proc/self/mountinfo: {e}")),
    }
}

/// The mount that a path of the command line is the root of.
pub(super) fn find_root(path: &Path) -> Result<Mounted, String> {
    match control::find_root(path) {
        Ok(Some((mounted, true))) => Ok(mounted),
        Ok(Some((mounted, false))) => Err(format!(
            "'{}' is not a mount point; it is inside the mount at '{}'",
            show::path(path),
            show::path(&mounted.mountpoint)
        )),
        Ok(None) => find(path),
        Err(e) => Err(format!("cannot read /proc/self/mountinfo: {e}")),
    }
}

/// How a mount stands: now, or when what is requested has come about.
pub(super) fn ask(mounted: &Mounted, request: &Request) -> Result<Status, Error> {
    match Connection::open(mounted)?.ask(request)? {
        Response::Status(status) => Ok(*status),
        other => Err(unexpected(mounted, &other)),
    }
}

/// The exit code that a stream's end comes to; what is not complete is told.
pub(super) fn end(status: &Status) -> Exit {
    let exit = Exit::of(status);
    if exit != Exit::Complete {
        tell(show::summary(status));
    }
    exit
}

/// An answer that does not fit the request: a daemon of another version, perhaps.
pub(super) fn unexpected(mounted: &Mounted, response: &Response) -> Error {
    other(mounted, std::io::Error::other(format!("unexpected answer {response:?}")))
}

/// What went wrong with what was answered.
pub(super) fn other(mounted: &Mounted, cause: std::io::Error) -> Error {
    Error::Other { mountpoint: mounted.mountpoint.clone(), cause }
}
