//! The word "stop", for whoever may be waiting in `poll`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Says once, to everybody who holds a clone, that receiving has to end.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    said: AtomicBool,
    event: OwnedFd,
}

impl Stop {
    /// Not said yet.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Stop(Arc::new(Inner { said: AtomicBool::new(false), event })))
    }

    /// Says it. It cannot be taken back.
    pub fn stop(&self) {
        self.0.said.store(true, Ordering::Release);
        // Can only fail when the counter is at its end, and then it is readable already.
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
    }

    /// Whether it has been said.
    pub fn is_stopped(&self) -> bool {
        self.0.said.load(Ordering::Acquire)
    }
}

impl AsFd for Stop {
    /// Readable from the moment it is said.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
