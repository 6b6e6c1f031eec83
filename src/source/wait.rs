//! Waiting for bytes, or for the word to stop.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, poll};

use crate::stop::Stop;

/// Why nothing more comes.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// [`Stop`] was said.
    #[error("receiving was stopped")]
    Stopped,
    /// The source failed, or the connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Waits until there is something to read (or the end is reached), unless `stop` is said.
pub(super) fn wait_readable(fd: BorrowedFd<'_>, stop: &Stop) -> Result<(), ReadError> {
    loop {
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) if !fds[1].revents().is_empty() => return Err(ReadError::Stopped),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(ReadError::Io(e.into())),
        }
    }
}
