//! One raw TCP sender: the first connection that may be an archive by its first bytes. One that says nothing, or too little
//! to tell, keeps nobody out. Port scans, and clients of other protocols, are refused, and the log says so.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::wait::{ReadError, wait_readable};
use crate::stop::Stop;
use crate::strangers::{Stranger, Told, gives_way};

/// So many of the first bytes of a connection always tell what it is.
pub const OPENING: usize = 512;

/// What the first bytes of a connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Too few to tell. Where they have the signature of something else: what to say of it if no more comes.
    Short(Option<String>),
    /// It may be an archive.
    Archive,
    /// It is none, and why.
    Other(String),
}

/// After a connection could not be accepted, for want of descriptors perhaps.
const PAUSE: Duration = Duration::from_millis(100);

/// How often connections are looked at that have sent too little to tell: more of it does not wake poll(2), since what is
/// there is left where it is.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

#[derive(Debug)]
pub(super) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    opening: fn(&[u8]) -> Opening,
}

/// A connection that has not shown what it is.
struct Guest {
    connection: TcpStream,
    peer: SocketAddr,
    stranger: Stranger,
}

impl Listener {
    pub(super) fn bind(address: SocketAddr, opening: fn(&[u8]) -> Opening) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Listener { listener, address, opening })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the sender.
    pub(super) fn accept(&self, stop: &Stop) -> Result<(OwnedFd, Refuser), ReadError> {
        let mut guests: Vec<Guest> = Vec::new();
        let mut told = Told::default();
        loop {
            let mut fds = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
            fds.extend(guests.iter().map(|guest| {
                let flags = if guest.stranger.spoke { PollFlags::RDHUP } else { PollFlags::IN };
                PollFd::new(&guest.connection, flags)
            }));
            let undecided = guests.iter().any(|guest| guest.stranger.spoke);
            match poll(&mut fds, undecided.then_some(&LOOK)) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(ReadError::Io(e.into())),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let look: Vec<bool> =
                guests.iter().zip(&ready[2..]).map(|(guest, &ready)| ready || guest.stranger.spoke).collect();
            if ready[0] {
                return Err(ReadError::Stopped);
            }
            if let Some(sender) = hear(&mut guests, &look, self.opening, &mut told) {
                for other in guests {
                    told.warn(format_args!(
                        "a connection from {} is refused: {} is the sender",
                        other.peer, sender.peer
                    ));
                }
                log::info!("{} is connected", sender.peer);
                // A sender whose machine is gone sends no FIN; without this it would be waited for for ever.
                rustix::net::sockopt::set_socket_keepalive(&sender.connection, true).map_err(io::Error::from)?;
                return Ok((sender.connection.into(), Refuser::begin(self.listener.try_clone()?, told)?));
            }
            if ready[1] {
                self.accept_one(&mut guests, &mut told, stop);
            }
        }
    }

    fn accept_one(&self, guests: &mut Vec<Guest>, told: &mut Told, stop: &Stop) {
        let accepted = self.listener.accept().and_then(|(connection, peer)| {
            connection.set_nonblocking(true)?;
            Ok((connection, peer))
        });
        match accepted {
            Ok((connection, peer)) => {
                let stranger = Stranger { origin: peer.ip().into(), since: Instant::now(), spoke: false };
                let strangers: Vec<_> = guests.iter().map(|guest| guest.stranger).collect();
                if let Some(at) = gives_way(&strangers, stranger.origin) {
                    let other = guests.remove(at).peer;
                    told.warn(format_args!(
                        "a connection from {other} is refused: it has sent no archive, and too many others connect"
                    ));
                }
                guests.push(Guest { connection, peer, stranger });
            }
            Err(e) => {
                let is_full = matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                let oldest = (0..guests.len()).min_by_key(|&at| (guests[at].stranger.spoke, guests[at].stranger.since));
                match oldest.filter(|_| is_full) {
                    Some(at) => told.warn(format_args!(
                        "a connection from {} is refused: others connect, and no descriptor is free",
                        guests.remove(at).peer
                    )),
                    None => cannot_accept(&e, told, stop),
                }
            }
        }
    }
}

/// The first of the connections that are worth a look that may be the sender. Those that are gone, or are something else,
/// are dropped.
fn hear(guests: &mut Vec<Guest>, look: &[bool], opening: fn(&[u8]) -> Opening, told: &mut Told) -> Option<Guest> {
    let mut at = 0;
    for &look in look {
        if !look {
            at += 1;
            continue;
        }
        match guests[at].hear(opening) {
            Heard::Sender => return Some(guests.remove(at)),
            Heard::Nothing => at += 1,
            Heard::Gone(cause) => {
                let peer = guests.remove(at).peer;
                told.warn(format_args!("a connection from {peer} sent nothing: {cause}; still listening"));
            }
            Heard::Other(cause) => {
                let peer = guests.remove(at).peer;
                told.warn(format_args!("a connection from {peer} is refused: {cause}; still listening"));
            }
        }
    }
    None
}

enum Heard {
    Nothing,
    Sender,
    /// It was closed without a byte, or failed.
    Gone(String),
    Other(String),
}

impl Guest {
    fn hear(&mut self, opening: fn(&[u8]) -> Opening) -> Heard {
        let mut head = [0; OPENING];
        let n = match self.connection.peek(&mut head) {
            Ok(0) => return Heard::Gone("it was closed".into()),
            Ok(n) => n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Heard::Nothing;
            }
            Err(e) => return Heard::Gone(e.to_string()),
        };
        self.stranger.spoke = true;
        match opening(&head[..n]) {
            Opening::Archive => Heard::Sender,
            Opening::Other(cause) => Heard::Other(cause),
            Opening::Short(cause) if self.is_over() => {
                Heard::Other(cause.unwrap_or_else(|| format!("it was closed after {n} bytes")))
            }
            Opening::Short(_) => Heard::Nothing,
        }
    }

    /// Whether it sends no more.
    fn is_over(&self) -> bool {
        let over = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&self.connection, PollFlags::RDHUP)];
        poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().intersects(over)
    }
}

fn cannot_accept(e: &io::Error, told: &mut Told, stop: &Stop) {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    // The connection may be gone again before it is accepted.
    if !matches!(e.kind(), WouldBlock | Interrupted | ConnectionAborted) {
        told.warn(format_args!("cannot accept a connection: {e}"));
        stop.wait(PAUSE);
    }
}

/// Sends further connections away until it is dropped.
#[derive(Debug)]
pub(super) struct Refuser {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Refuser {
    fn begin(listener: TcpListener, mut told: Told) -> io::Result<Self> {
        let stop = Stop::new()?;
        let word = stop.clone();
        let thread = std::thread::Builder::new().name("refuser".into()).spawn(move || {
            while wait_readable(listener.as_fd(), &word).is_ok() {
                match listener.accept() {
                    Ok((_, peer)) => {
                        told.warn(format_args!("a connection from {peer} is refused: one sender is connected already"))
                    }
                    Err(e) => cannot_accept(&e, &mut told, &word),
                }
            }
        })?;
        Ok(Refuser { stop, thread: Some(thread) })
    }
}

impl Drop for Refuser {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
