//! One raw TCP sender. Whoever else connects is sent away, and the log says so.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;

use super::{ReadError, Stop, wait_readable};
use std::os::fd::AsFd;

#[derive(Debug)]
pub(super) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
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
        loop {
            wait_readable(self.listener.as_fd(), stop)?;
            match self.listener.accept() {
                Ok((connection, peer)) => {
                    log::info!("{peer} is connected");
                    connection.set_nonblocking(true)?;
                    // A sender whose machine is gone sends no FIN; without this it would be waited for for ever.
                    rustix::net::sockopt::set_socket_keepalive(&connection, true).map_err(io::Error::from)?;
                    return Ok((connection.into(), Refuser::begin(self.listener.try_clone()?)?));
                }
                // The connection may be gone again before it is accepted.
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// Sends further connections away until it is dropped.
#[derive(Debug)]
pub(super) struct Refuser {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Refuser {
    fn begin(listener: TcpListener) -> io::Result<Self> {
        let stop = Stop::new()?;
        let word = stop.clone();
        let thread = std::thread::Builder::new().name("refuser".into()).spawn(move || {
            while wait_readable(listener.as_fd(), &word).is_ok() {
                match listener.accept() {
                    Ok((_, peer)) => log::warn!("a connection from {peer} is refused: one sender is connected already"),
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                    Err(e) => {
                        log::warn!("further connections are not refused any more: {e}");
                        return;
                    }
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
