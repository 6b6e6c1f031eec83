//! How much may be on its way: enough to keep network and receiver busy, and no more, since what somebody waits for comes
//! behind it. Neither side's kernel knows: what lies in its buffers is what the receiver's disk has not taken.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So much may always be on its way.
const LEAST: u64 = 256 << 10;

/// What is on its way is taken within so long, beyond what the way itself takes.
const BEHIND: Duration = Duration::from_millis(25);

/// Over this long it is measured how much is taken; the best of so many counts.
const WINDOW: Duration = Duration::from_millis(100);
const WINDOWS: usize = 10;

/// For so long the shortest time that the way took counts. Then it is measured again, with little on its way.
const SHORTEST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Flight {
    sent: u64,
    taken: u64,
    /// When what was sent, and up to which byte.
    marks: VecDeque<(u64, Instant)>,
    shortest: Option<(Duration, Instant)>,
    /// The way is measured: since when there is little on it, when that is so.
    measuring: Option<Option<Instant>>,
    window: (u64, Instant),
    /// Bytes a second.
    rates: VecDeque<f64>,
}

impl Flight {
    pub(super) fn new(now: Instant) -> Self {
        Flight {
            sent: 0,
            taken: 0,
            marks: VecDeque::new(),
            shortest: None,
            measuring: None,
            window: (0, now),
            rates: VecDeque::new(),
        }
    }

    /// Whether more may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.sent - self.taken <= self.most()
    }

    fn most(&self) -> u64 {
        if self.measuring.is_some() {
            return LEAST;
        }
        let rate = self.rates.iter().copied().fold(0.0, f64::max);
        let way = self.shortest.map_or(Duration::ZERO, |(way, _)| way);
        // Twice the way, so that it can be found out that more could be taken.
        LEAST.max((rate * (2 * way + BEHIND).as_secs_f64()) as u64)
    }

    pub(super) fn sent(&mut self, bytes: u64, now: Instant) {
        self.sent += bytes;
        self.marks.push_back((self.sent, now));
    }

    /// The receiver has taken so many bytes in all. False where that cannot be.
    pub(super) fn taken(&mut self, bytes: u64, now: Instant) -> bool {
        if bytes > self.sent || bytes < self.taken {
            return false;
        }
        self.taken = bytes;
        while let Some(&(upto, at)) = self.marks.front()
            && upto <= bytes
        {
            self.marks.pop_front();
            let way = now - at;
            let measured = self.measuring.flatten().is_some_and(|since| at >= since);
            if measured {
                self.measuring = None;
            }
            if measured || self.shortest.is_none_or(|(shortest, _)| way <= shortest) {
                self.shortest = Some((way, now));
            }
        }
        match &mut self.measuring {
            None if self.shortest.is_some_and(|(_, since)| now - since > SHORTEST) => self.measuring = Some(None),
            Some(since @ None) if self.sent - self.taken <= LEAST => *since = Some(now),
            _ => {}
        }
        let (before, since) = self.window;
        let over = now - since;
        if over >= WINDOW {
            if self.rates.len() == WINDOWS {
                self.rates.pop_front();
            }
            self.rates.push_back((bytes - before) as f64 / over.as_secs_f64());
            self.window = (bytes, now);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A receiver that takes `rate` bytes a second, `way` after they were sent. Tells what was on its way in the end.
    fn run(rate: f64, way: Duration) -> u64 {
        let mut now = Instant::now();
        let mut flight = Flight::new(now);
        let mut queue: VecDeque<(u64, Instant)> = VecDeque::new();
        let mut free_at = now;
        for _ in 0..200_000 {
            while flight.has_room() {
                flight.sent(64 << 10, now);
                free_at = free_at.max(now + way) + Duration::from_secs_f64((64 << 10) as f64 / rate);
                queue.push_back((flight.sent, free_at));
            }
            let (bytes, at) = queue.pop_front().unwrap();
            now = at;
            assert!(flight.taken(bytes, now));
        }
        flight.most()
    }

    #[test]
    fn fills_the_way_and_little_more() {
        for (rate, way) in [(500e6, 0), (100e6, 1), (10e6, 0), (100e6, 100), (1e6, 300)] {
            let way = Duration::from_millis(way);
            let most = run(rate, way) as f64;
            assert!(most >= rate * way.as_secs_f64(), "{rate} {way:?}: {most}");
            assert!(most <= 4.0 * LEAST as f64 + rate * (2.5 * way.as_secs_f64() + 0.04), "{rate} {way:?}: {most}");
        }
    }

    #[test]
    fn what_cannot_be_is_told() {
        let now = Instant::now();
        let mut flight = Flight::new(now);
        flight.sent(10, now);
        assert!(!flight.taken(11, now));
        assert!(flight.taken(10, now));
        assert!(!flight.taken(9, now));
    }
}
