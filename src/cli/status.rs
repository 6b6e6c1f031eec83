//! `restorefs status`.

use std::time::Duration;

use serde_json::json;

use super::args::StatusArgs;
use super::ask::{ask, find};
use super::exit::Exit;
use super::names::owner;
use super::print::{fail, say, say_json, tell};
use super::problems::{self, LongLine};
use super::{left, show};
use crate::control::{self, Error, Mounted, Request};
use crate::entry::printable;
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
