//! Whoever can reach a port that is listened on: who of them has to give way when too many come at once, and how much
//! about them goes into the log.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// At most this many connections are open at a time before one of them has shown that it is the sender. Each takes a
/// descriptor, and a few KiB while it shakes hands.
pub const PLACES: usize = 128;

/// At most this many of them come from one address.
pub const OF_ONE_ADDRESS: usize = 32;

/// At most this many lines about strangers are logged in a [`WINDOW`].
const LINES: u32 = 20;

/// See [`LINES`].
const WINDOW: Duration = Duration::from_secs(60);

/// A connection that may or may not be the sender.
#[derive(Clone, Copy, Debug)]
pub struct Stranger {
    /// Where it comes from.
    pub origin: Origin,
    /// When it was accepted.
    pub since: Instant,
    /// Whether it has said something that a sender says.
    pub spoke: bool,
}

/// Addresses that one machine can have all of: an IPv4 address, or a /64 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Origin(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 => v4,
        })
    }
}

/// Which of `strangers` gives way to one more from `origin`; None where there is a place for it. It is one of the
/// address that has most places: of these first who has not spoken, then the oldest. So whoever opens many connections
/// closes their own, and a newcomer always gets a place.
pub fn gives_way(strangers: &[Stranger], origin: Origin) -> Option<usize> {
    let count = |origin| strangers.iter().filter(|other| other.origin == origin).count();
    let is_candidate: &dyn Fn(&Stranger) -> bool = if count(origin) >= OF_ONE_ADDRESS {
        &|stranger| stranger.origin == origin
    } else if strangers.len() >= PLACES {
        let most = strangers.iter().map(|stranger| count(stranger.origin)).max()?;
        &move |stranger| count(stranger.origin) == most
    } else {
        return None;
    };
    let candidates = strangers.iter().enumerate().filter(|(_, stranger)| is_candidate(stranger));
    candidates.min_by_key(|(_, stranger)| (stranger.spoke, stranger.since)).map(|(at, _)| at)
}

/// Logs what strangers do, up to a bound, and how often more of it happened.
#[derive(Debug)]
pub struct Told {
    began: Instant,
    lines: u32,
    unsaid: u64,
}

impl Default for Told {
    fn default() -> Self {
        Told { began: Instant::now(), lines: 0, unsaid: 0 }
    }
}

impl Told {
    /// Logs a line, or counts it.
    pub fn warn(&mut self, line: fmt::Arguments<'_>) {
        if let Some(unsaid) = self.count(Instant::now()) {
            log_unsaid(unsaid);
            log::warn!("{line}");
        }
    }

    /// How many lines were left out before this one; None where it is left out too.
    fn count(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.began) >= WINDOW {
            (self.began, self.lines) = (now, 0);
        }
        if self.lines == LINES {
            self.unsaid += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        log_unsaid(self.unsaid);
    }
}

fn log_unsaid(unsaid: u64) {
    if unsaid > 0 {
        log::warn!("{unsaid} more connections were refused, too many to name each");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(n: u8) -> Origin {
        IpAddr::from([192, 0, 2, n]).into()
    }

    /// So many of an address, one after the other.
    fn of(n: u8, count: usize, from: Instant) -> Vec<Stranger> {
        let at = |second| from + Duration::from_secs(second as u64);
        (0..count).map(|second| Stranger { origin: origin(n), since: at(second), spoke: false }).collect()
    }

    #[test]
    fn an_address_that_has_its_share_gives_way_to_itself() {
        let now = Instant::now();
        let mut strangers = of(1, 1, now);
        strangers.extend(of(2, OF_ONE_ADDRESS, now + Duration::from_secs(1)));
        assert_eq!(gives_way(&strangers, origin(1)), None);
        assert_eq!(gives_way(&strangers, origin(2)), Some(1));
        // One that has spoken stays longer than one that has not.
        strangers[1].spoke = true;
        assert_eq!(gives_way(&strangers, origin(2)), Some(2));
    }

    #[test]
    fn when_all_places_are_taken_the_oldest_of_the_address_with_most_gives_way() {
        let now = Instant::now();
        let mut strangers = of(1, 1, now);
        let late = now + Duration::from_secs(100);
        for n in 2.. {
            strangers.extend(of(n, 20, late - Duration::from_secs(n.into())));
            if strangers.len() > PLACES {
                break;
            }
        }
        strangers.truncate(PLACES);
        let victim = gives_way(&strangers, origin(1)).unwrap();
        // Neither the lonely one that is older, nor the address that has been cut short.
        let oldest = strangers.iter().filter(|stranger| stranger.origin != origin(1)).map(|stranger| stranger.since);
        let full: Vec<_> = strangers.iter().filter(|stranger| stranger.origin == strangers[victim].origin).collect();
        assert_eq!(full.len(), 20);
        assert!(strangers[victim].since >= oldest.min().unwrap() && full[0].since == strangers[victim].since);
        // Each from elsewhere: the oldest of all.
        let strangers: Vec<_> =
            (0..PLACES as u8).flat_map(|n| of(n, 1, late - Duration::from_secs(n.into()))).collect();
        assert_eq!(gives_way(&strangers, origin(200)), Some(PLACES - 1));
    }

    #[test]
    fn what_one_machine_can_have_is_one_origin() {
        let origin = |text: &str| Origin::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:2"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
    }

    #[test]
    fn a_flood_takes_few_lines_and_is_counted() {
        let mut told = Told::default();
        let now = told.began;
        for _ in 0..LINES {
            assert_eq!(told.count(now), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(told.count(now), None);
        }
        assert_eq!(told.count(now + WINDOW), Some(1000));
        assert_eq!(told.count(now + WINDOW), Some(0));
    }
}
