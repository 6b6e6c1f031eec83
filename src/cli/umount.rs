//! `restorefs umount`.

use super::status::find;
use super::{Exit, UmountArgs, fail, show};
use crate::control::{Connection, Error, Request, Response, forget};
use crate::mount::detach;

pub(super) fn run(args: &UmountArgs) -> Exit {
    let mounted = match find(&args.mountpoint) {
        Ok(mounted) => mounted,
        Err(message) => return fail(message),
    };
    let path = show::path(&mounted.mountpoint);
    let request = Request::Unmount { force: args.force };
    match Connection::open(&mounted).and_then(|daemon| daemon.ask(&request)) {
        Ok(Response::Done) => Exit::Complete,
        Ok(Response::Receiving) => fail(format_args!(
            "'{path}' is still receiving, and what has not come would be lost: wait ('restorefs wait {path}'), or \
             stop it with --force"
        )),
        Ok(Response::Failed(cause)) => fail(format_args!("cannot unmount '{path}': {cause}")),
        Ok(other) => fail(format_args!("unexpected answer {other:?}")),
        // Nobody is left to ask; the kernel takes it away all the same.
        Err(Error::Gone { trace, .. }) => match detach(&mounted.mountpoint) {
            Ok(()) => {
                if let Some(spool) = trace.and_then(|trace| trace.spool) {
                    super::tell(format_args!("its daemon was gone; what had arrived is in '{spool}'"));
                }
                forget(&mounted);
                Exit::Complete
            }
            Err(e) => fail(format_args!("cannot unmount '{path}': {e}")),
        },
        Err(e) => fail(e),
    }
}
