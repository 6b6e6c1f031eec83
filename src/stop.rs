//! The word "stop", for whoever may be waiting in `poll`.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Says once, to everybody who holds a clone, that receiving has to end.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Inner>);

struct Inner {
    said: AtomicBool,
    event: OwnedFd,
    hook: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.said.fmt(f)
    }
}

impl Stop {
    /// Not said yet.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Stop(Arc::new(Inner { said: AtomicBool::new(false), event, hook: OnceLock::new() })))
    }

    /// Says it. It cannot be taken back.
    pub fn stop(&self) {
        self.0.said.store(true, Ordering::Release);
        // Can only fail when the counter is at its end, and then it is readable already.
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
        if let Some(hook) = self.0.hook.get() {
            hook();
        }
    }

    /// For whoever waits for something that is no descriptor: is called when it is said. Only the first call counts.
    pub fn on_stop(&self, hook: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.hook.set(Box::new(hook));
    }

    /// Waits for it to be said, so long at most. Tells whether it has been.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.is_stopped() || left.is_zero() {
                return self.is_stopped();
            }
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let _ = poll(&mut [PollFd::new(&self.0.event, PollFlags::IN)], Some(&left));
        }
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
