//! How a sender connects, and the handshake of both sides: nothing that a peer says is looked at before it is done. `gate`
//! has the receiver's side.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::Connection;

use super::link::{Closed, Link};
use super::{Token, tls};

/// A handshake is three messages; whoever takes longer for all of it is not a sender.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);

/// One that has not answered by then is tried again.
const CONNECT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("cannot find '{host}': {cause}")]
    Name {
        /// It.
        host: String,
        /// Why.
        cause: io::Error,
    },
    /// Nobody answers there.
    #[error("cannot connect to {peer}: {cause}")]
    Connect {
        /// Where.
        peer: String,
        /// Why.
        cause: io::Error,
    },
    /// They answer otherwise than a receiver does.
    #[error(
        "{peer} is no 'restorefs mount --listen' that waits for a sender: {cause} (with --plain it waits for an archive: \
         'restorefs send PATH… - | nc'; where too many others knock, try again)"
    )]
    Handshake {
        /// Where.
        peer: String,
        /// What went wrong.
        cause: Closed,
    },
}

/// Connects to a receiver; waits at most so long as one may take to answer.
pub fn connect(host: &str, token: &Token, silence: Duration, stop: &impl AsFd) -> Result<Link, ConnectError> {
    let addresses = host.to_socket_addrs().map_err(|cause| ConnectError::Name { host: host.into(), cause })?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        let failed = |cause| ConnectError::Handshake { peer: host.into(), cause };
        // Before it is connected: a receiver with many strangers at its door keeps those who speak at once.
        let connection = tls::sender(token).map_err(|e| failed(Closed::Broken(e.to_string())))?;
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(socket) => {
                let connection = handshake(connection.into(), &socket, stop).map_err(failed)?;
                return Link::new(connection, socket, silence)
                    .map_err(|cause| ConnectError::Connect { peer: host.into(), cause });
            }
            Err(e) => last = e,
        }
    }
    Err(ConnectError::Connect { peer: host.into(), cause: last })
}

/// Until both sides have shown that they have the token.
fn handshake(mut connection: Connection, socket: &TcpStream, stop: &impl AsFd) -> Result<Connection, Closed> {
    let deadline = Instant::now() + HANDSHAKE;
    socket.set_nonblocking(true).map_err(lost)?;
    while !advance(&mut connection, socket)? {
        match wait(socket, interest(&connection), stop, deadline) {
            Ok(true) => {}
            Ok(false) => return Err(Closed::Here),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(Closed::Silent(HANDSHAKE)),
            Err(e) => return Err(lost(e)),
        }
    }
    Ok(connection)
}

/// What a handshake waits for.
pub(super) fn interest(connection: &Connection) -> PollFlags {
    if connection.wants_write() { PollFlags::OUT } else { PollFlags::IN }
}

/// Does of a handshake what can be done without waiting: at most one read. Tells whether it is done.
pub(super) fn advance(connection: &mut Connection, mut socket: &TcpStream) -> Result<bool, Closed> {
    let mut has_read = false;
    loop {
        let moved = if connection.wants_write() {
            connection.write_tls(&mut socket)
        } else if !connection.is_handshaking() {
            return Ok(true);
        } else if std::mem::replace(&mut has_read, true) {
            return Ok(false);
        } else {
            match connection.read_tls(&mut socket) {
                Ok(0) => return Err(Closed::Ended),
                other => other,
            }
        };
        match moved {
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return Ok(false),
            Err(e) => return Err(lost(e)),
        }
        if let Err(e) = connection.process_new_packets() {
            // The other side is told why.
            let _ = connection.write_tls(&mut socket);
            return Err(match e {
                e if tls::is_denied(&e) => Closed::Denied,
                e if tls::is_other_version(&e) => Closed::Version,
                e => Closed::Broken(e.to_string()),
            });
        }
    }
}

pub(super) fn lost(e: io::Error) -> Closed {
    Closed::Lost(e.to_string())
}

/// Waits for a socket; false when `stop` is readable.
fn wait(socket: &impl AsFd, flags: PollFlags, stop: &impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::new(socket, flags), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) if !fds[1].revents().is_empty() => return Ok(false),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
