//! `restorefs stop`.

use super::args::StopArgs;
use super::ask::{ask, find_root};
use super::exit::Exit;
use super::print::{fail, say};
use super::show;
use crate::control::Request;

pub(super) fn run(args: &StopArgs) -> Exit {
    let mounted = match find_root(&args.mountpoint) {
        Ok(mounted) => mounted,
        Err(message) => return fail(message),
    };
    let path = show::path(&mounted.mountpoint);
    match ask(&mounted, &Request::Status) {
        Ok(before) if before.end.is_some() => {
            say(format_args!("the stream of '{path}' was over already: {}", show::summary(&before)));
            return Exit::Complete;
        }
        Ok(_) => {}
        Err(e) => return fail(e),
    }
    match ask(&mounted, &Request::Stop) {
        Ok(status) => {
            say(show::summary(&status));
            say(if status.is_nothing() {
                format!("'{path}' is unmounted")
            } else {
                format!("it stays mounted on '{path}' ('restorefs umount {path}')")
            });
            Exit::of(&status)
        }
        Err(e) => fail(e),
    }
}
