//! No more than so many bytes in a second.

use std::time::{Duration, Instant};

/// What was not used is not saved up for longer than this.
const BURST: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Pace {
    rate: Option<u64>,
    /// When the next byte may be sent.
    next: Instant,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Pace { rate, next: Instant::now() }
    }

    /// How long nothing is to be sent.
    pub(super) fn pause(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        if let Some(rate) = self.rate {
            let earliest = Instant::now().checked_sub(BURST).unwrap_or_else(Instant::now);
            self.next = self.next.max(earliest) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        }
    }
}
