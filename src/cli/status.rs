//! `restorefs status`.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::problems::{self, LongLine};
use super::{Exit, StatusArgs, fail, left, names, say, say_json, show, tell};
use crate::control::{self, Connection, Error, Mounted, Request, Response};
use crate::entry::{escape, printable};
use crate::monitor::Status;
use crate::spool::left_over;

const WATCH: Duration = Duration::from_secs(1);

pub(super) fn run(args: &StatusArgs) -> Exit {
    let mounts = match &args.mountpoint {
        Some(path) => match find(path) {
            Ok(mounted) => vec![mounted],
            Err(message) => return fail(message),
        },
        None => match control::list() {
            Ok(mounts) => mounts,
            Err(e) => return fail(format_args!("cannot read /proc/self/mountinfo: {e}")),
        },
    };
    if let (true, [mounted]) = (args.problems, &mounts[..]) {
        return problems::run(mounted, args.json);
    }
    let left = if args.mountpoint.is_none() { left_over() } else { Vec::new() };
    if mounts.is_empty() && left.is_empty() && !args.json {
        say("no restorefs is mounted, and no spool is left over");
    }
    let mut exit = Exit::Complete;
    for mounted in &mounts {
        loop {
            match ask(mounted, &Request::Status) {
                // In the list of all mounts, those of others have what the kernel tells everybody.
                Err(Error::Denied(_)) if args.mountpoint.is_none() => {
                    if !print_foreign(mounted, args.json) {
                        return Exit::Complete;
                    }
                }
                // It was unmounted while the others were asked.
                Err(_) if args.mountpoint.is_none() && mounted.is_gone() => {}
                Err(Error::Gone { trace, .. }) if args.mountpoint.is_none() => {
                    if !left::print_mount(mounted, trace.as_ref(), args.json) {
                        return Exit::Complete;
                    }
                }
                Err(e) => {
                    tell(e);
                    exit = Exit::Failed;
                }
                Ok(status) => {
                    match print(mounted, &status, args.json) {
                        Ok(true) => {}
                        Ok(false) => return Exit::Complete,
                        Err(e) => {
                            tell(e);
                            exit = Exit::Failed;
                            break;
                        }
                    }
                    if args.watch && status.end.is_none() {
                        std::thread::sleep(WATCH);
                        continue;
                    }
                }
            }
            break;
        }
    }
    if !left.iter().all(|left| left::print_spool(left, args.json)) {
        return Exit::Complete;
    }
    exit
}

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

/// A user, by name where there is one, and by number.
pub(super) fn owner(uid: u32) -> String {
    let name = names::of_user(uid).map_or(String::new(), |name| format!("{} ", escape(&name)));
    format!("{name}({uid})")
}

/// Another user's mount, as the kernel tells everybody of it.
fn print_foreign(mounted: &Mounted, as_json: bool) -> bool {
    if as_json {
        return say_json(&json!({
            "mountpoint": mounted.mountpoint.to_string_lossy(), "source": mounted.source, "owner": mounted.uid,
        }));
    }
    [
        show::path(&mounted.mountpoint),
        format!("  owner      {}: only they and root may ask how it stands", owner(mounted.uid)),
        format!("  source     {}", printable(&mounted.source)),
    ]
    .into_iter()
    .all(say)
}

/// False when nobody reads it any more.
fn print(mounted: &Mounted, status: &Status, as_json: bool) -> Result<bool, Error> {
    if !as_json {
        return Ok(show::status(&mounted.mountpoint, status).into_iter().all(say));
    }
    let mut object = json!(status);
    object["mountpoint"] = json!(mounted.mountpoint.to_string_lossy());
    if let Some(fields) = object.as_object_mut() {
        fields.remove("problems");
    }
    let mut line = LongLine::begin(&object, "problems");
    let ended = problems::each(mounted, |problems| line.add(problems));
    let is_read = line.end();
    ended.map(|_| is_read)
}
