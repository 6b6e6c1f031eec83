//! How connections come about: the receiver listens and lets in whoever has the token, the sender connects. Nothing that
//! a peer says is looked at before the handshake is done.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::{Connection, ServerConfig};

use super::link::{Closed, Link};
use super::{Token, tls};

/// A handshake is three messages; whoever takes longer for it is not a sender.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// So many that have not shown that they have the token are heard at once; the rest is refused.
const STRANGERS: usize = 4;

/// Whoever came with a wrong token keeps their place for so long.
const PAUSE: Duration = Duration::from_secs(1);

/// After so many wrong tokens nobody is expected to have the right one.
pub const TRIES: usize = 20;

/// One that has not answered by then is tried again.
const CONNECT: Duration = Duration::from_secs(10);

/// So many that have shown it wait to be looked at, while the receiver waits for room on its disk, say; the rest is refused.
const ARRIVALS: usize = 8;

/// The stack of a thread that does a handshake.
const STACK: usize = 256 << 10;

/// What comes to a [`Listener`].
pub enum Arrival {
    /// Somebody who has the token.
    Sender(Link),
    /// Somebody who has not, or who speaks something else.
    Stranger {
        /// From where.
        peer: SocketAddr,
        /// What they did.
        why: Closed,
        /// How many came with a wrong token so far.
        wrong: usize,
    },
    /// Nobody else can come.
    Failed(io::Error),
}

/// Where senders come to.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    silence: Duration,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Listener({})", self.address)
    }
}

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

impl Listener {
    /// Listens. `silence`: after so long without a sign a sender is gone.
    pub fn bind(address: SocketAddr, token: &Token, silence: Duration) -> io::Result<Self> {
        let config = tls::receiver(token).map_err(io::Error::other)?;
        let socket = TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        Ok(Listener { socket, address, config, silence })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets in whoever has the token, until one of `stops` is readable. `poke` is called when something has come.
    pub(crate) fn serve<S: AsFd + Send + Sync + Clone + 'static>(
        self,
        stops: [S; 2],
        poke: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Receiver<Arrival>> {
        let (send, arrivals) = sync_channel(ARRIVALS);
        std::thread::Builder::new().name("gate".into()).spawn(move || self.gate(&stops, &send, &Arc::new(poke)))?;
        Ok(arrivals)
    }

    fn gate<S: AsFd + Send + Sync + Clone + 'static>(
        &self,
        stops: &[S; 2],
        send: &SyncSender<Arrival>,
        poke: &Arc<impl Fn() + Send + Sync + 'static>,
    ) {
        let strangers = Arc::new(AtomicUsize::new(0));
        let wrong = Arc::new(AtomicUsize::new(0));
        loop {
            match wait(&self.socket, PollFlags::IN, stops, None) {
                Ok(true) => {}
                Ok(false) => {
                    poke();
                    return;
                }
                Err(e) => {
                    let _ = send.send(Arrival::Failed(e));
                    poke();
                    return;
                }
            }
            let Ok((socket, peer)) = self.socket.accept() else {
                // The connection may be gone again; and what cannot be accepted now, for want of descriptors, is later.
                let _ = wait(&self.socket, PollFlags::empty(), stops, Some(Instant::now() + Duration::from_millis(10)));
                continue;
            };
            if strangers.fetch_add(1, Ordering::AcqRel) >= STRANGERS {
                strangers.fetch_sub(1, Ordering::AcqRel);
                log::warn!("a connection from {peer} is refused: {STRANGERS} others have not shown a token yet");
                continue;
            }
            let (config, silence, stops) = (self.config.clone(), self.silence, stops.clone());
            let (send, poke, own, wrong) = (send.clone(), poke.clone(), strangers.clone(), wrong.clone());
            let meet = move || {
                let arrival = match welcome(&config, socket, silence, &stops) {
                    Ok(link) => Arrival::Sender(link),
                    Err(why) => {
                        let wrong = match why {
                            Closed::Denied => wrong.fetch_add(1, Ordering::AcqRel) + 1,
                            _ => wrong.load(Ordering::Acquire),
                        };
                        Arrival::Stranger { peer, why, wrong }
                    }
                };
                let denied = matches!(arrival, Arrival::Stranger { why: Closed::Denied, .. });
                if send.try_send(arrival).is_err() {
                    log::warn!("a connection from {peer} is refused: {ARRIVALS} others wait already");
                }
                poke();
                if denied {
                    let _ = wait(&stops[0], PollFlags::empty(), &stops, Some(Instant::now() + PAUSE));
                }
                own.fetch_sub(1, Ordering::AcqRel);
            };
            let thread = std::thread::Builder::new().name("stranger".into()).stack_size(STACK);
            if let Err(e) = thread.spawn(meet) {
                strangers.fetch_sub(1, Ordering::AcqRel);
                log::warn!("cannot hear a connection from {peer}: {e}");
            }
        }
    }
}

fn welcome(
    config: &Arc<ServerConfig>,
    socket: TcpStream,
    silence: Duration,
    stops: &[impl AsFd],
) -> Result<Link, Closed> {
    let connection = tls::accept(config).map_err(|e| Closed::Broken(e.to_string()))?;
    let connection = handshake(connection.into(), &socket, stops)?;
    Link::new(connection, socket, silence).map_err(|e| Closed::Lost(e.to_string()))
}

/// Connects to a receiver; waits at most so long as one may take to answer.
pub fn connect(host: &str, token: &Token, silence: Duration, stop: &impl AsFd) -> Result<Link, ConnectError> {
    let addresses = host.to_socket_addrs().map_err(|cause| ConnectError::Name { host: host.into(), cause })?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(socket) => {
                let failed = |cause| ConnectError::Handshake { peer: host.into(), cause };
                let connection = tls::sender(token).map_err(|e| failed(Closed::Broken(e.to_string())))?;
                let connection = handshake(connection.into(), &socket, std::slice::from_ref(stop)).map_err(failed)?;
                return Link::new(connection, socket, silence)
                    .map_err(|cause| ConnectError::Connect { peer: host.into(), cause });
            }
            Err(e) => last = e,
        }
    }
    Err(ConnectError::Connect { peer: host.into(), cause: last })
}

/// Until both sides have shown that they have the token.
fn handshake(mut connection: Connection, socket: &TcpStream, stops: &[impl AsFd]) -> Result<Connection, Closed> {
    let lost = |e: io::Error| Closed::Lost(e.to_string());
    let deadline = Instant::now() + HANDSHAKE;
    socket.set_nonblocking(true).map_err(lost)?;
    let mut socket = socket;
    while connection.is_handshaking() || connection.wants_write() {
        let flags = if connection.wants_write() { PollFlags::OUT } else { PollFlags::IN };
        match wait(socket, flags, stops, Some(deadline)) {
            Ok(true) => {}
            Ok(false) => return Err(Closed::Here),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => return Err(Closed::Silent(HANDSHAKE)),
            Err(e) => return Err(lost(e)),
        }
        let moved = if flags == PollFlags::OUT {
            connection.write_tls(&mut socket)
        } else {
            match connection.read_tls(&mut socket) {
                Ok(0) => return Err(Closed::Ended),
                other => other,
            }
        };
        match moved {
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(e) => return Err(lost(e)),
        }
        if let Err(e) = connection.process_new_packets() {
            // The other side is told why.
            let _ = connection.write_tls(&mut socket);
            return Err(if tls::is_denied(&e) { Closed::Denied } else { Closed::Broken(e.to_string()) });
        }
    }
    Ok(connection)
}

/// Waits for a socket; false when one of `stops` is readable.
fn wait(socket: &impl AsFd, flags: PollFlags, stops: &[impl AsFd], deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        let mut fds = vec![PollFd::new(socket, flags)];
        fds.extend(stops.iter().map(|stop| PollFd::new(stop, PollFlags::IN)));
        match poll(&mut fds, left.as_ref()) {
            Ok(0) if deadline.is_some() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) if fds[1..].iter().any(|stop| !stop.revents().is_empty()) => return Ok(false),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(true),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
