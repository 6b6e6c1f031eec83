//! `restorefs umount`.

use std::time::Duration;

use super::status::find;
use super::{Exit, UmountArgs, fail, show, tell};
use crate::control::{Connection, Daemon, Error, Mounted, Request, Response, take_away};
use crate::mounts::{self, Attached, Table};

/// A large spool takes a while to remove; a file that is still open takes for ever.
const CLEAN_UP: Duration = Duration::from_secs(5);

pub(super) fn run(args: &UmountArgs) -> Exit {
    let mounted = match find(&args.mountpoint) {
        Ok(mounted) => mounted,
        Err(message) => return fail(message),
    };
    match unmount(&mounted, args.force) {
        Ok(()) => Exit::Complete,
        // Somebody else has unmounted it at the same time.
        Err(_) if mounted.is_gone() => Exit::Complete,
        Err(message) => fail(message),
    }
}

fn unmount(mounted: &Mounted, force: bool) -> Result<(), String> {
    let path = show::path(&mounted.mountpoint);
    let failed = |e: mounts::Error| format!("cannot unmount '{path}': {e}");
    // From here on it cannot be taken for another, whatever becomes of its path.
    let attached = match mounted.open() {
        Err(mounts::Error::Hidden) if force => return end_hidden(mounted),
        attached => attached.map_err(failed)?,
    };
    if !force {
        check_below(mounted)?;
    }
    let mut daemon = None;
    let answer = Connection::open(mounted).and_then(|connection| {
        daemon = connection.daemon().ok();
        connection.ask(&Request::Unmount { mount: mounted.id, force })
    });
    let unwilling = match answer {
        Ok(Response::Ready { last }) => {
            if last && force { attached.abort() } else { attached.detach() }.map_err(failed)?;
            if last || mounts::of(&mounted.device).is_ok_and(|left| left.is_empty()) {
                finish(mounted, attached, daemon, force);
            }
            return Ok(());
        }
        Err(Error::Gone { trace, .. }) => {
            take_away(mounted, &attached, force).map_err(failed)?;
            if let Some(spool) = trace.and_then(|trace| trace.spool) {
                tell(format_args!("its daemon was gone; what had arrived is in '{spool}'"));
            }
            return Ok(());
        }
        // The kernel would refuse it too.
        Err(e @ Error::Denied(_)) if !rustix::process::geteuid().is_root() => return Err(e.to_string()),
        Err(Error::Silent { .. } | Error::NoSocket(_)) if force => "was not asked",
        _ if force => "did not agree",
        Ok(Response::Receiving) => {
            return Err(format!(
                "'{path}' is still receiving, and what has not come would be lost: wait ('restorefs wait {path}'), or \
                 stop it with --force"
            ));
        }
        Ok(Response::Settling) => {
            return Err(format!(
                "the stream of '{path}' is over, and its spool is being synced to disk: wait ('restorefs wait {path}'), or \
                 unmount it with --force"
            ));
        }
        Ok(Response::Failed(cause)) => return Err(format!("cannot unmount '{path}': {cause}")),
        Ok(other) => return Err(format!("cannot unmount '{path}': unexpected answer {other:?}")),
        Err(e) => return Err(e.to_string()),
    };
    take_away(mounted, &attached, true).map_err(failed)?;
    tell(format_args!("'{path}' is unmounted; its daemon {unwilling}, and may still run"));
    Ok(())
}

/// The kernel would unmount with it whatever is mounted below, and lose what a restorefs there still receives.
fn check_below(mounted: &Mounted) -> Result<(), String> {
    let path = show::path(&mounted.mountpoint);
    let below =
        Table::read().map_err(|e| format!("cannot read /proc/self/mountinfo: {e}"))?.below(&mounted.device, mounted.id);
    let Some((first, more)) = below.split_first() else { return Ok(()) };
    let first = show::path(first);
    let (mounts, it) = match more.len() {
        0 => (format!("'{first}' is"), "it"),
        n => (format!("'{first}' and {n} more are"), "them"),
    };
    Err(format!(
        "cannot unmount '{path}': {mounts} mounted below it (unmount {it} first, or everything at once with --force)"
    ))
}

/// What covers a mount is not for us to unmount, but daemon and spool need not stay with it.
fn end_hidden(mounted: &Mounted) -> Result<(), String> {
    let path = show::path(&mounted.mountpoint);
    let connection = Connection::open(mounted);
    // Where it is not, its device number may be another's by now.
    if mounted.is_gone() {
        return Ok(());
    }
    let done = match connection.and_then(|connection| connection.ask(&Request::End)) {
        Err(e @ Error::Denied(_)) => return Err(e.to_string()),
        Ok(Response::Done) | Err(Error::Gone { .. }) => Ok(()),
        _ => mounts::abort(&mounted.device),
    };
    let ended = done.map_or_else(|e| format!("its daemon cannot be ended: {e}"), |()| "its daemon is ended".into());
    Err(format!(
        "cannot unmount '{path}': {}; {ended} ('restorefs umount {path}' takes the rest away when that is unmounted)",
        mounts::Error::Hidden
    ))
}

/// The last mount is away: waits for its daemon, which is told to end by force where it has to be.
fn finish(mounted: &Mounted, attached: Attached, daemon: Option<Daemon>, force: bool) {
    if force && let Some(daemon) = &daemon {
        // As root it has heard from the kernel already, and may be gone.
        let _ = daemon.end(mounted);
    }
    // What holds it open would keep the daemon.
    drop(attached);
    let Some(daemon) = daemon.filter(|daemon| !daemon.wait_gone(CLEAN_UP)) else { return };
    let (process, way_out) = match daemon.pid_of(mounted.uid) {
        Some(pid) => (format!(" (process {pid})"), format!(" ('kill {pid}' ends it)")),
        None => (String::new(), String::new()),
    };
    let path = show::path(&mounted.mountpoint);
    tell(format_args!(
        "'{path}' is unmounted; its daemon{process} is still running: it removes its spool, files in the mount are open, \
         or another mount namespace has a copy of it{way_out}"
    ));
}
