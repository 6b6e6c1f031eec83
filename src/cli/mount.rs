//! `restorefs mount`: checks what was asked, then parts into front and daemon.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use super::args::MountArgs;
use super::exit::Exit;
use super::print::{fail, say, tell};
use super::{daemon, foreground, front, names, show, token};
use crate::monitor::Chain;
use crate::mount::{Feed, Options, check_mountpoint, opening};
use crate::source::{Source, Spec};
use crate::spool::left::{Left, is_spool};
use crate::sys::{Fork, Inherited, fork, map_large_memory};
use crate::wire::{Listener, Token};
use crate::{control, tarball};

/// From this size on memory is mapped: the index is a few large tables that grow, and the daemon lives long.
const LARGE_MEMORY: usize = 1 << 20;

pub(super) fn run(args: MountArgs) -> Exit {
    map_large_memory(LARGE_MEMORY);
    let inherited = Inherited::find();
    let (from, mountpoint) = match from(&args) {
        Ok(from) => from,
        Err(message) => {
            tell(message);
            tell("see 'restorefs mount --help'");
            return Exit::Usage;
        }
    };
    let (foreground, detach, verbose) = (args.foreground, args.detach, args.verbose);
    let restore = args.materialize.clone();
    let token_file = args.token_file.clone();
    let (options, token) = match options(args, &from, &mountpoint) {
        Ok(options) => options,
        Err(message) => return fail(message),
    };
    // A mount lives long. The pipe of a SOURCE as '<(command)' is open a second time by now, and only the daemon may
    // hold it; a script's locks are not for us to keep.
    if let Ok(inherited) = inherited {
        inherited.close();
    }
    if let Some(address) = options.feed.local_address()
        && !(say(format_args!("listening on {address}"))
            && token.is_none_or(|token| invite(&token, address, token_file.as_deref())))
    {
        return fail("nobody reads the address that is listened on");
    }
    if foreground {
        return foreground::run(options, verbose, restore);
    }
    let (front, back) = match std::os::unix::net::UnixStream::pair() {
        Ok(pair) => pair,
        Err(e) => return fail(format_args!("cannot begin: {e}")),
    };
    match fork() {
        Err(e) => fail(format_args!("cannot start the daemon: {e}")),
        Ok(Fork::Child) => {
            drop(front);
            daemon::run(options, back, verbose)
        }
        Ok(Fork::Parent { .. }) => {
            let restore = restore.map(|dest| (options.mountpoint.clone(), dest));
            // The daemon alone holds the source: when it lets go, whoever writes has to see that.
            drop((options, back));
            if let Err(e) = daemon::stdin_to_null() {
                tell(format_args!("cannot let go of standard input: {e}"));
            }
            front::run(front, detach, verbose, restore)
        }
    }
}

/// Where entries come from, by the command line.
enum From {
    Archive(Spec),
    /// `restorefs send`.
    Sender(SocketAddr),
    /// A spool whose daemon is gone.
    Spool(PathBuf),
}

/// What is to be typed on the other machine.
fn invite(token: &Token, address: SocketAddr, token_file: Option<&Path>) -> bool {
    let addresses = addresses(address);
    let how = match token_file {
        Some(path) => format!("restorefs send PATH… --token-file FILE   (a copy of '{}') --to", show::path(path)),
        None => format!("{}={} restorefs send PATH… --to", token::VARIABLE, token.reveal()),
    };
    say("on the machine that has the files:") && addresses.iter().all(|address| say(format_args!("  {how} {address}")))
}

/// Where this machine can be reached, for whoever listens on `address`.
fn addresses(address: SocketAddr) -> Vec<SocketAddr> {
    if !address.ip().is_unspecified() {
        return vec![address];
    }
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return vec![address] };
    let mut found: Vec<SocketAddr> = Vec::new();
    for storage in interfaces.filter_map(|interface| interface.address) {
        let ip = if let Some(v4) = storage.as_sockaddr_in() {
            IpAddr::V4(v4.ip())
        } else if let Some(v6) = storage.as_sockaddr_in6().filter(|_| address.is_ipv6()) {
            IpAddr::V6(v6.ip())
        } else {
            continue;
        };
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if !ip.is_loopback() && !link_local {
            found.push(SocketAddr::new(ip, address.port()));
        }
    }
    if found.is_empty() { vec![address] } else { found }
}

fn from(args: &MountArgs) -> Result<(From, PathBuf), String> {
    match (&args.listen, &args.paths[..]) {
        (Some(address), [mountpoint]) if args.plain => {
            Ok((From::Archive(Spec::Listen { address: listen(address)?, opening }), mountpoint.clone()))
        }
        (Some(address), [mountpoint]) => Ok((From::Sender(listen(address)?), mountpoint.clone())),
        (Some(_), _) => Err("with --listen, name the mount point only".into()),
        (None, [source, mountpoint]) if source == Path::new("-") => {
            Ok((From::Archive(Spec::Stdin), mountpoint.clone()))
        }
        (None, [source, mountpoint]) if is_spool(source) => Ok((From::Spool(source.clone()), mountpoint.clone())),
        (None, [source, mountpoint]) => Ok((From::Archive(Spec::Path(source.clone())), mountpoint.clone())),
        (None, [mountpoint]) => {
            Err(format!("what shall be mounted on '{}'? Name a SOURCE before it", show::path(mountpoint)))
        }
        (None, _) => Err("name a SOURCE and a MOUNTPOINT".into()),
    }
}

/// `9000`, `:9000`, `192.0.2.1:9000`, `[::]:9000`, `name:9000`. Without an address: this machine only.
fn listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    let wrong = |e: &dyn std::fmt::Display| format!("'{text}' is no address to listen on: {e} (as 192.0.2.1:9000)");
    text.to_socket_addrs().map_err(|e| wrong(&e))?.next().ok_or_else(|| wrong(&"it has no address"))
}

fn options(args: MountArgs, from: &From, mountpoint: &Path) -> Result<(Options, Option<Token>), String> {
    // Everything that can be wrong is told before anything is mounted, and before a sender can connect.
    let mountpoint = check_mountpoint(mountpoint).map_err(|e| match control::find(mountpoint) {
        Ok(Some(dead)) => format!(
            "{e}: a restorefs was mounted there, and its daemon is gone; take it away with 'restorefs umount {}'",
            show::path(&dead.mountpoint)
        ),
        _ => e.to_string(),
    })?;
    if let Ok(Some(there)) = control::find(&mountpoint)
        && there.mountpoint == mountpoint
    {
        return Err(format!(
            "cannot mount on '{0}': '{1}' is mounted there already (restorefs umount {0})",
            show::path(&mountpoint),
            there.source
        ));
    }
    let spool_directory = std::path::absolute(&args.spool).map_err(|e| e.to_string())?;
    if !spool_directory.is_dir() {
        return Err(format!("cannot make a spool in '{}': it is not a directory", show::path(&args.spool)));
    }
    let (feed, token) = match from {
        From::Archive(spec) => (Feed::Archive(Source::open(spec).map_err(|e| e.to_string())?), None),
        From::Sender(address) => {
            let token = token::of_receiver(args.token_file.as_deref())?;
            let listener = Listener::bind(*address, &token, args.timeout.into())
                .map_err(|e| format!("cannot listen on {address}: {e}"))?;
            (Feed::Sender(listener), Some(token))
        }
        From::Spool(path) => {
            let left = Left::open(path, false).map_err(|e| Chain(&e).to_string())?;
            (Feed::Spool(Box::new(left)), None)
        }
    };
    let resume = match args.resume {
        Some(path) => Some(Box::new(Left::open(&path, true).map_err(|e| Chain(&e).to_string())?)),
        None => None,
    };
    let options = Options {
        feed,
        mountpoint,
        spool_directory,
        spool_limit: args.spool_limit,
        keep_spool: args.keep_spool,
        allow_other: args.allow_other,
        passthrough: !args.no_passthrough,
        xattrs: !args.no_xattrs,
        max_index: args.max_index,
        helper: None,
        resume,
        tar: tarball::Options {
            concatenated: args.concatenated,
            resolve_user: names::user,
            resolve_group: names::group,
        },
    };
    Ok((options, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, address) in
            [("9000", "127.0.0.1:9000"), (":0", "127.0.0.1:0"), ("0.0.0.0:1", "0.0.0.0:1"), ("[::1]:7", "[::1]:7")]
        {
            assert_eq!(listen(text), Ok(address.parse().unwrap()), "{text}");
        }
        for wrong in ["", "70000", "1.2.3.4", "[::1]"] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
    }
}
