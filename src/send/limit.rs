//! No more than so many bytes a second.

use std::time::{Duration, Instant};

/// What may be sent at once after a pause: this part of a second's share. It keeps the stream even.
const SHARE: u64 = 10;

/// Counts what is sent, and tells how long to wait.
#[derive(Debug)]
pub(super) struct Limit {
    /// Bytes a second; none: as fast as it goes.
    rate: Option<u64>,
    /// What was sent up to then is paid for.
    paid_until: Instant,
}

impl Limit {
    pub(super) fn new(rate: Option<u64>, now: Instant) -> Self {
        Limit { rate: rate.filter(|&rate| rate > 0), paid_until: now }
    }

    /// The most to be sent in one piece.
    pub(super) fn piece(&self, wanted: usize) -> usize {
        self.rate.map_or(wanted, |rate| wanted.min(usize::try_from(rate / SHARE).unwrap_or(usize::MAX).max(1)))
    }

    /// How long nothing may be sent.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.paid_until.saturating_duration_since(now)
    }

    /// Takes account of `n` bytes, and returns how long to wait before they may go.
    pub(super) fn take(&mut self, n: usize, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        // A pause is not made up for.
        let wait = self.wait(now);
        self.paid_until = self.paid_until.max(now) + Duration::from_secs_f64(n as f64 / rate as f64);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_what_was_sent_before() {
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        let mut limit = Limit::new(Some(1000), begin);
        assert_eq!(limit.piece(5000), 100);
        assert_eq!(limit.take(500, begin), Duration::ZERO);
        assert_eq!(limit.take(500, begin), second / 2);
        assert_eq!(limit.take(100, begin + second * 5), Duration::ZERO);
        assert_eq!(limit.take(100, begin + second * 5), second / 10);
        let mut none = Limit::new(None, begin);
        assert_eq!((none.piece(5000), none.take(1 << 40, begin)), (5000, Duration::ZERO));
    }
}
