//! `restorefs umount`.

use std::time::Duration;

use super::status::find;
use super::{Exit, UmountArgs, fail, show, tell};
use crate::control::{Connection, Error, Request, Response, take_away};
use crate::mounts;

/// A large spool takes a while to remove; a file that is still open takes for ever.
const CLEAN_UP: Duration = Duration::from_secs(5);

pub(super) fn run(args: &UmountArgs) -> Exit {
    let mounted = match find(&args.mountpoint) {
        Ok(mounted) => mounted,
        Err(message) => return fail(message),
    };
    let path = show::path(&mounted.mountpoint);
    let failed = |e: mounts::Error| fail(format_args!("cannot unmount '{path}': {e}"));
    // From here on it cannot be taken for another, whatever becomes of its path.
    let attached = match mounted.open() {
        Ok(attached) => attached,
        Err(e) => return failed(e),
    };
    let request = Request::Unmount { mount: mounted.id, force: args.force };
    let mut daemon = None;
    let answer = Connection::open(&mounted).and_then(|connection| {
        daemon = connection.daemon().ok();
        connection.ask(&request)
    });
    match answer {
        Ok(Response::Ready { last: false }) => attached.detach().map_or_else(failed, |()| Exit::Complete),
        Ok(Response::Ready { last: true }) => {
            let done = if args.force { attached.abort() } else { attached.detach() };
            if let Err(e) = done {
                return failed(e);
            }
            if args.force
                && let Some(daemon) = &daemon
            {
                // As root it has heard from the kernel already, and may be gone.
                let _ = daemon.end(&mounted);
            }
            // What holds it open would keep the daemon.
            drop(attached);
            if let Some(daemon) = daemon.filter(|daemon| !daemon.wait_gone(CLEAN_UP)) {
                let pid = daemon.pid();
                tell(format_args!(
                    "'{path}' is unmounted; its daemon (process {pid}) is still running: it removes its spool, files in \
                     the mount are open, or another mount namespace has a copy of it ('kill {pid}' ends it)"
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
        Err(Error::Gone { trace, .. }) => match take_away(&mounted, &attached) {
            Ok(()) => {
                if let Some(spool) = trace.and_then(|trace| trace.spool) {
                    tell(format_args!("its daemon was gone; what had arrived is in '{spool}'"));
                }
                Exit::Complete
            }
            Err(e) => failed(e),
        },
        Err(Error::Silent { .. } | Error::NoSocket(_)) if args.force => match take_away(&mounted, &attached) {
            Ok(()) => {
                tell(format_args!("'{path}' is unmounted; its daemon was not asked, and may still run"));
                Exit::Complete
            }
            Err(e) => failed(e),
        },
        Err(e) => fail(e),
    }
}
