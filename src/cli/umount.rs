//! `restorefs umount`.

use std::time::Duration;

use super::status::find;
use super::{Exit, UmountArgs, fail, show, tell};
use crate::control::{Connection, Error, Request, Response, take_away};

/// A large spool takes a while to remove; a file that is still open takes for ever.
const CLEAN_UP: Duration = Duration::from_secs(5);

pub(super) fn run(args: &UmountArgs) -> Exit {
    let mounted = match find(&args.mountpoint) {
        Ok(mounted) => mounted,
        Err(message) => return fail(message),
    };
    let path = show::path(&mounted.mountpoint);
    let request = Request::Unmount { force: args.force };
    let mut daemon = None;
    let answer = Connection::open(&mounted).and_then(|connection| {
        daemon = connection.daemon().ok();
        connection.ask(&request)
    });
    match answer {
        Ok(Response::Done) => {
            if daemon.is_some_and(|daemon| !daemon.wait_gone(CLEAN_UP)) {
                tell(format_args!(
                    "'{path}' is unmounted; its daemon goes when it has cleaned up (a spool is removed), and files in it that are open are closed"
                ));
            }
            Exit::Complete
        }
        Ok(Response::Receiving) => fail(format_args!(
            "'{path}' is still receiving, and what has not come would be lost: wait ('restorefs wait {path}'), or \
             stop it with --force"
        )),
        Ok(Response::Failed(cause)) => fail(format_args!("cannot unmount '{path}': {cause}")),
        Ok(other) => fail(format_args!("unexpected answer {other:?}")),
        // Nobody is left to ask; the kernel takes it away all the same.
        Err(Error::Gone { trace, .. }) => match take_away(&mounted) {
            Ok(()) => {
                if let Some(spool) = trace.and_then(|trace| trace.spool) {
                    tell(format_args!("its daemon was gone; what had arrived is in '{spool}'"));
                }
                Exit::Complete
            }
            Err(e) => fail(format_args!("cannot unmount '{path}': {e}")),
        },
        Err(Error::Silent { .. } | Error::NoSocket(_)) if args.force => match take_away(&mounted) {
            Ok(()) => {
                tell(format_args!("'{path}' is unmounted; its daemon was not asked, and may still run"));
                Exit::Complete
            }
            Err(e) => fail(format_args!("cannot unmount '{path}': {e}")),
        },
        Err(e) => fail(e),
    }
}
