//! Where senders come to. Whoever has the token is let in; of others no more are heard at once than cost little, and none
//! of them can take the place of a sender: see [`gives_way`].

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::{Connection, ServerConfig};

use super::connect::{HANDSHAKE, advance, interest, lost};
use super::link::{Closed, Link};
use super::{Token, tls};
use crate::strangers::{Stranger, Told, gives_way};

/// At most this many that have shown the token wait to be looked at, while the receiver waits for room on its disk, say;
/// others are refused.
const ARRIVALS: usize = 8;

/// At most this many are accepted before those are heard again who have a place already.
const AT_ONCE: usize = 16;

/// After a connection could not be accepted, for want of descriptors perhaps.
const PAUSE: Duration = Duration::from_millis(10);

/// What comes to a [`Listener`].
pub enum Arrival {
    /// Somebody who has the token.
    Sender(Link),
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
    pub(crate) fn serve<S: AsFd + Send + 'static>(
        self,
        stops: [S; 2],
        poke: impl Fn() + Send + 'static,
    ) -> io::Result<Receiver<Arrival>> {
        let (arrivals, receiver) = sync_channel(ARRIVALS);
        let mut gate = Gate { listener: self, guests: Vec::new(), wrong: 0, told: Told::default(), arrivals, poke };
        std::thread::Builder::new().name("gate".into()).spawn(move || {
            if let Err(e) = gate.serve(&stops) {
                gate.tell(Arrival::Failed(e));
            }
            (gate.poke)();
        })?;
        Ok(receiver)
    }
}

/// Somebody whose handshake is not done.
struct Guest {
    socket: TcpStream,
    peer: SocketAddr,
    connection: Connection,
    stranger: Stranger,
}

impl Guest {
    fn deadline(&self) -> Instant {
        self.stranger.since + HANDSHAKE
    }
}

struct Gate<P> {
    listener: Listener,
    guests: Vec<Guest>,
    /// How many came with a wrong token. They end nothing: nobody guesses 128 bits, and any stranger could.
    wrong: u64,
    told: Told,
    arrivals: SyncSender<Arrival>,
    poke: P,
}

/// Who has something to say.
struct Ready {
    newcomers: bool,
    guests: Vec<bool>,
}

impl<P: Fn()> Gate<P> {
    fn serve(&mut self, stops: &[impl AsFd; 2]) -> io::Result<()> {
        while let Some(ready) = self.wait(stops)? {
            // First, so that nobody who speaks gives way to a newcomer unheard.
            self.hear(&ready.guests);
            if ready.newcomers && !self.accept() {
                let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE.subsec_nanos().into() };
                let _ = poll(&mut stops.each_ref().map(|stop| PollFd::new(stop, PollFlags::IN)), Some(&pause));
            }
        }
        Ok(())
    }

    /// Waits until something is to be done. None when one of `stops` is readable.
    fn wait(&self, stops: &[impl AsFd; 2]) -> io::Result<Option<Ready>> {
        loop {
            let deadline = self.guests.iter().map(Guest::deadline).min();
            let left = deadline.map(|deadline| {
                let left = deadline.saturating_duration_since(Instant::now());
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
            });
            let mut fds: Vec<_> = stops.iter().map(|stop| PollFd::new(stop, PollFlags::IN)).collect();
            fds.push(PollFd::new(&self.listener.socket, PollFlags::IN));
            fds.extend(self.guests.iter().map(|guest| PollFd::new(&guest.socket, interest(&guest.connection))));
            match poll(&mut fds, left.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
            if ready.by_ref().take(stops.len()).any(|stopped| stopped) {
                return Ok(None);
            }
            let newcomers = ready.next().unwrap_or_default();
            return Ok(Some(Ready { newcomers, guests: ready.collect() }));
        }
    }

    /// Goes on with the handshakes of those who are ready, and ends those that take too long.
    fn hear(&mut self, ready: &[bool]) {
        let now = Instant::now();
        let mut at = 0;
        for &ready in ready {
            let guest = &mut self.guests[at];
            let advanced = match ready {
                true => advance(&mut guest.connection, &guest.socket),
                false => Ok(false),
            };
            // What it said made an answer, so it was right as far as it goes.
            guest.stranger.spoke |= guest.connection.alpn_protocol().is_some();
            match advanced {
                Ok(true) => {
                    let guest = self.guests.remove(at);
                    self.welcome(guest);
                }
                Ok(false) if now < guest.deadline() => at += 1,
                Ok(false) => self.refuse(at, &Closed::Silent(HANDSHAKE)),
                Err(why) => self.refuse(at, &why),
            }
        }
    }

    /// Gives places to those who have come. False where that is to be tried again later.
    fn accept(&mut self) -> bool {
        for _ in 0..AT_ONCE {
            match self.listener.socket.accept() {
                Ok((socket, peer)) => self.place(socket, peer),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
                Err(e) => {
                    self.told.warn(format_args!("cannot accept a connection: {e}"));
                    return false;
                }
            }
        }
        true
    }

    fn place(&mut self, socket: TcpStream, peer: SocketAddr) {
        let stranger = Stranger { origin: peer.ip().into(), since: Instant::now(), spoke: false };
        let strangers: Vec<_> = self.guests.iter().map(|guest| guest.stranger).collect();
        if let Some(at) = gives_way(&strangers, stranger.origin) {
            let guest = self.guests.remove(at);
            self.told
                .warn(format_args!("{} is refused: too many others connect, and it has shown no token", guest.peer));
        }
        let connection = socket.set_nonblocking(true).map_err(lost).and_then(|()| {
            let connection = tls::accept(&self.listener.config).map_err(|e| Closed::Broken(e.to_string()))?;
            Ok(Connection::from(connection))
        });
        match connection {
            Ok(connection) => {
                self.guests.push(Guest { socket, peer, connection, stranger });
                let last = self.guests.len() - 1;
                // It may have said something already.
                let mut ready = vec![false; last];
                ready.push(true);
                self.hear(&ready);
            }
            Err(e) => self.told.warn(format_args!("cannot hear a connection from {peer}: {e}")),
        }
    }

    fn welcome(&mut self, guest: Guest) {
        let Guest { socket, peer, connection, .. } = guest;
        match Link::new(connection, socket, self.listener.silence) {
            Ok(link) => self.tell(Arrival::Sender(link)),
            Err(e) => self.told.warn(format_args!("cannot hear a connection from {peer}: {e}")),
        }
    }

    fn refuse(&mut self, at: usize, why: &Closed) {
        let peer = self.guests.remove(at).peer;
        if *why != Closed::Denied {
            let hint = "for 'tar | nc', listen with --plain";
            return self.told.warn(format_args!("{peer} is no 'restorefs send', and is refused: {why} ({hint})"));
        }
        self.wrong += 1;
        let wrong = self.wrong;
        let so_far = if wrong > 1 { format!(" ({wrong} such connections so far)") } else { String::new() };
        self.told.warn(format_args!("{peer} has another token, and is refused{so_far}; still listening"));
    }

    fn tell(&mut self, arrival: Arrival) {
        if self.arrivals.try_send(arrival).is_err() {
            self.told.warn(format_args!("a connection with the token is refused: {ARRIVALS} others wait already"));
        }
        (self.poke)();
    }
}
