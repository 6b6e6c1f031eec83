//! `restorefs umount`.

use std::time::Duration;

use super::args::UmountArgs;
use super::ask::find_root;
use super::busy::InUse;
use super::exit::Exit;
use super::print::{fail, tell};
use super::show;
use crate::control::{Connection, Daemon, Error, How, Mounted, Request, Response, Trace, take_away};
use crate::mounts::{self, Attached, Others, Table};

/// A large spool takes a while to remove; a file that is still open takes for ever.
const CLEAN_UP: Duration = Duration::from_secs(5);

pub(super) fn run(args: &UmountArgs) -> Exit {
    let mounted = match find_root(&args.mountpoint) {
        Ok(mounted) => mounted,
        Err(message) => return fail(message),
    };
    let how = match (args.force, args.lazy) {
        (true, _) => How::ByForce,
        (false, true) => How::Lazily,
        (false, false) => How::Gently,
    };
    match unmount(&mounted, how) {
        Ok(()) => Exit::Complete,
        // Somebody else has unmounted it at the same time.
        Err(_) if mounted.is_gone() => Exit::Complete,
        Err(message) => fail(message),
    }
}

fn unmount(mounted: &Mounted, how: How) -> Result<(), String> {
    let path = show::path(&mounted.mountpoint);
    let failed = |e: mounts::Error| format!("cannot unmount '{path}': {e}");
    let force = how == How::ByForce;
    match mounted.open() {
        Err(mounts::Error::Hidden) if force => return end_hidden(mounted),
        // It is not held open while others look who has it open.
        attached => drop(attached.map_err(failed)?),
    }
    let table = Table::read().map_err(|e| format!("cannot read /proc/self/mountinfo: {e}"))?;
    if !force {
        check_below(mounted, &table)?;
    }
    let all = table.others(&mounted.device, mounted.id) != Others::Stay;
    let users = match how {
        How::Gently => InUse::settle(mounted, all),
        How::Lazily | How::ByForce => InUse::look(mounted, all),
    };
    let users = match users {
        Ok(users) if how == How::Gently && !users.is_empty() => return Err(busy(&path, &users)),
        users => users,
    };
    // Where nobody has it, nobody would get what is still to come.
    let how = match (how, &users) {
        (How::Lazily, Ok(users)) if users.is_empty() => How::Gently,
        (how, _) => how,
    };
    // From here on it cannot be taken for another, whatever becomes of its path.
    let attached = mounted.open().map_err(failed)?;
    let mut daemon = None;
    let answer = users.and_then(|users| {
        let connection = Connection::open(mounted)?;
        daemon = connection.daemon().ok();
        connection.ask(&Request::Unmount { mount: mounted.id, how }).map(|answer| (answer, users))
    });
    let unwilling = match answer {
        Ok((Response::Ready { last }, users)) => {
            if last && force { attached.abort() } else { attached.detach() }.map_err(failed)?;
            if last || mounts::of(&mounted.device).is_ok_and(|left| left.is_empty()) {
                finish(mounted, attached, daemon, how, users);
            }
            return Ok(());
        }
        Err(Error::Gone { trace, .. }) => {
            take_away(mounted, &attached, force).map_err(failed)?;
            tell_kept(mounted, trace.as_ref());
            return Ok(());
        }
        // The kernel would refuse it too.
        Err(e @ Error::Denied(_)) if !rustix::process::geteuid().is_root() => return Err(e.to_string()),
        Err(Error::Silent { .. } | Error::NoSocket(_)) if force => "was not asked",
        _ if force => "did not agree",
        Ok((Response::Busy, _)) => {
            drop(attached);
            let users = InUse::look(mounted, all).map_err(|e| e.to_string())?;
            return Err(busy(&path, &users));
        }
        Ok((Response::Receiving, _)) => return Err(receiving(&path)),
        Ok((Response::Settling, _)) => {
            return Err(format!(
                "the stream of '{path}' is over, and its spool is being synced to disk: wait ('restorefs wait {path}'), or \
                 unmount it with --force"
            ));
        }
        Ok((Response::Failed(cause), _)) => return Err(format!("cannot unmount '{path}': {cause}")),
        Ok((other, _)) => return Err(format!("cannot unmount '{path}': unexpected answer {other:?}")),
        Err(e) => return Err(e.to_string()),
    };
    take_away(mounted, &attached, true).map_err(failed)?;
    tell(format_args!("'{path}' is unmounted; its daemon {unwilling}, and may still run"));
    Ok(())
}

fn busy(path: &str, users: &InUse) -> String {
    let lost = if users.over { "" } else { " and loses what has not come yet" };
    format!(
        "cannot unmount '{path}': target is busy: {users} (--lazy detaches it now and ends it when they are done, --force \
         ends it now{lost})"
    )
}

fn receiving(path: &str) -> String {
    format!(
        "'{path}' is still receiving, and what has not come would be lost: wait ('restorefs wait {path}'), or stop it with \
         --force ('restorefs stop {path}' stops it and keeps the mount)"
    )
}

/// What a daemon that is gone left on the disk.
fn tell_kept(mounted: &Mounted, trace: Option<&Trace>) {
    let Some(spool) = trace.and_then(|trace| trace.spool.as_ref()) else { return };
    let path = show::path(&mounted.mountpoint);
    tell(format_args!(
        "its daemon was gone; what had arrived is in '{spool}' ('restorefs mount {spool} {path}' mounts it again, \
         'restorefs discard {spool}' removes it)"
    ));
}

/// The kernel would unmount with it whatever is mounted below, and lose what a restorefs there still receives.
fn check_below(mounted: &Mounted, table: &Table) -> Result<(), String> {
    let path = show::path(&mounted.mountpoint);
    let below = table.below(&mounted.device, mounted.id);
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

/// The last mount is away: waits for its daemon, which is told to end by force where it has to be. Not where somebody
/// needs it still.
fn finish(mounted: &Mounted, attached: Attached, daemon: Option<Daemon>, how: How, users: InUse) {
    if how == How::ByForce
        && let Some(daemon) = &daemon
    {
        // As root it has heard from the kernel already, and may be gone.
        let _ = daemon.end(mounted);
    }
    // What holds it open would keep the daemon.
    drop(attached);
    let path = show::path(&mounted.mountpoint);
    let (keeps, goes_on) = match how {
        How::Gently | How::Lazily => (users, "its daemon goes on for"),
        How::ByForce => (users.restoring(), "what has arrived is kept for"),
    };
    if !keeps.is_empty() {
        return tell(format_args!("'{path}' is unmounted; {goes_on} {keeps}; the spool goes when they are done"));
    }
    let Some(daemon) = daemon.filter(|daemon| !daemon.wait_gone(CLEAN_UP)) else { return };
    let (process, way_out) = match daemon.pid_of(mounted.uid) {
        Some(pid) => (format!(" (process {pid})"), format!(" ('kill {pid}' ends it)")),
        None => (String::new(), String::new()),
    };
    tell(format_args!(
        "'{path}' is unmounted; its daemon{process} is still running: it removes its spool, files in the mount are open, \
         or another mount namespace has a copy of it{way_out}"
    ));
}
