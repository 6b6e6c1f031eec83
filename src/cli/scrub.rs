//! `restorefs scrub`.

use indicatif::{HumanBytes, HumanCount};
use serde_json::json;

use super::args::ScrubArgs;
use super::ask::{find, unexpected};
use super::exit::Exit;
use super::print::{fail, say, say_json, tell};
use super::show;
use crate::control::{Connection, Request, Response};

pub(super) fn run(args: &ScrubArgs) -> Exit {
    let mounted = match find(&args.mountpoint) {
        Ok(mounted) => mounted,
        Err(message) => return fail(message),
    };
    let path = show::path(&mounted.mountpoint);
    let scrub = match Connection::open(&mounted).and_then(|daemon| daemon.ask(&Request::Scrub)) {
        Ok(Response::Scrubbed(scrub)) => scrub,
        Ok(other) => return fail(unexpected(&mounted, &other)),
        Err(e) => return fail(e),
    };
    if args.json {
        say_json(&json!(scrub));
    }
    let Some(scrub) = scrub else {
        if !args.json {
            say(format_args!("'{path}' is an archive mounted in place: it has no spool to check"));
        }
        return Exit::Complete;
    };
    for path in &scrub.damaged {
        tell(format_args!("damaged: '{path}'"));
    }
    if let Some(cause) = &scrub.journal {
        tell(format_args!(
            "{cause}: 'restorefs materialize' cannot go on from there; copy the rest from '{path}' with cp or rsync"
        ));
    }
    if !args.json {
        let damaged = match scrub.damaged.len() as u64 {
            0 => "none is damaged".into(),
            1 => "1 is damaged".into(),
            n => format!("{} are damaged", HumanCount(n)),
        };
        say(format_args!("{} in the spool, {}: {damaged}", show::files(scrub.files), HumanBytes(scrub.bytes)));
    }
    if scrub.damaged.is_empty() && scrub.journal.is_none() { Exit::Complete } else { Exit::Failed }
}
