//! One raw TCP sender: the first connection that says something. One that says nothing keeps nobody out, and one that is
//! closed without a byte, as by a port scan, is no sender. Whoever else connects is sent away, and the log says so.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::{ReadError, Stop, wait_readable};
use crate::strangers::{Stranger, Told, gives_way};

/// After a connection could not be accepted, for want of descriptors perhaps.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

/// A connection that has not said anything.
struct Guest {
    connection: TcpStream,
    peer: SocketAddr,
    stranger: Stranger,
}

impl Listener {
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Listener { listener, address })
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
            fds.extend(guests.iter().map(|guest| PollFd::new(&guest.connection, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(ReadError::Io(e.into())),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            if ready[0] {
                return Err(ReadError::Stopped);
            }
            if let Some(sender) = hear(&mut guests, &ready[2..], &mut told) {
                for other in guests {
                    told.warn(format_args!(
                        "a connection from {} is refused: {} was the first to send",
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
                        "a connection from {other} is refused: it sends nothing, and too many others connect"
                    ));
                }
                guests.push(Guest { connection, peer, stranger });
            }
            Err(e) => cannot_accept(&e, told, stop),
        }
    }
}

/// The first of those who are ready that has said something. Those that are gone without a word are dropped.
fn hear(guests: &mut Vec<Guest>, ready: &[bool], told: &mut Told) -> Option<Guest> {
    let mut at = 0;
    for &ready in ready {
        if !ready {
            at += 1;
            continue;
        }
        let cause = match guests[at].connection.peek(&mut [0]) {
            Ok(1..) => return Some(guests.remove(at)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                at += 1;
                continue;
            }
            Ok(0) => "it was closed".to_owned(),
            Err(e) => e.to_string(),
        };
        let peer = guests.remove(at).peer;
        told.warn(format_args!("a connection from {peer} sent nothing: {cause}; still listening"));
    }
    None
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
