//! Who the sender is, and what becomes of others with the token that come while it is there: one sender at a time.
//!
//! Whoever comes takes the place of a sender that is another connection of the same process, or is not alive any more, or
//! says that it takes over. Otherwise it waits until the one that is there has shown that it is alive, and is refused.

use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::record;
use crate::wire::{Batch, FromReceiver, FromSender, Link, MAX_HOST, OVERDUE, Session};

/// A sender says at once who it is.
pub(super) const HELLO: Duration = Duration::from_secs(10);

/// So many that have come while another one is heard are looked at.
const NEWCOMERS: usize = 2;

/// At most this many connections are told at a time that they are over; others are closed without a word.
const BYES: usize = 4;

/// What a sender says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) session: Session,
    /// As it calls itself.
    pub(super) host: String,
    pub(super) pid: u32,
    take_over: bool,
    /// Its bytes.
    pub(super) length: u64,
}

impl Greeting {
    /// Of the first body of a connection. An error is what is wrong with it.
    pub(super) fn of(body: &[u8]) -> Result<Greeting, &'static str> {
        let Ok((FromSender::Hello { session, host, pid, take_over }, &[], length)) = record::decode(body) else {
            return Err("its first message is no greeting");
        };
        if length != body.len() {
            return Err("more than a greeting at once");
        }
        let host = host.chars().take(MAX_HOST).collect();
        Ok(Greeting { session, host, pid, take_over, length: length as u64 })
    }
}

/// The sender that is there.
#[derive(Clone, Debug)]
pub(super) struct Present {
    pub(super) greeting: Greeting,
    since: SystemTime,
}

impl Present {
    /// One that has come, perhaps once more.
    pub(super) fn new(greeting: Greeting, before: Option<Present>) -> Present {
        let since = before.filter(|before| before.greeting.session == greeting.session).map(|before| before.since);
        Present { greeting, since: since.unwrap_or_else(SystemTime::now) }
    }

    /// What another one is told that comes while this one is alive.
    fn refusal(&self) -> FromReceiver {
        let since = self.since.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        FromReceiver::Refused { host: self.greeting.host.clone(), pid: self.greeting.pid, since }
    }

    /// What becomes of a newcomer that said who it is at `came`, where this one was heard last at `heard`.
    fn judge(&self, newcomer: &Greeting, came: Instant, heard: Instant, is_gone: bool, now: Instant) -> Claim {
        if newcomer.take_over || newcomer.session == self.greeting.session {
            return Claim::TakesPlace;
        }
        match heard > came {
            // What it has said before counts yet. Then its connection ends by itself.
            _ if is_gone => Claim::Waits,
            true => Claim::Refused,
            false if now.saturating_duration_since(heard) >= OVERDUE => Claim::TakesPlace,
            false => Claim::Waits,
        }
    }
}

/// What becomes of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    TakesPlace,
    Refused,
    /// Whether the sender that is there is alive will be clear soon.
    Waits,
}

/// One that has come while another one is heard.
struct Newcomer {
    link: Link,
    came: Instant,
    greeting: Option<Greeting>,
}

/// Connections that have come while another one is heard. One that only shows that it has the token may be one that was
/// given up, and takes nobody's place.
#[derive(Default)]
pub(super) struct Newcomers(Vec<Newcomer>);

impl Newcomers {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, link: Link) {
        self.0.truncate(NEWCOMERS - 1);
        self.0.insert(0, Newcomer { link, came: Instant::now(), greeting: None });
    }

    /// All of them are told that nobody is waited for any more.
    pub(super) fn dismiss(&mut self, reason: &str, byes: &mut Byes) {
        for Newcomer { link, .. } in self.0.drain(..) {
            byes.say(link, FromReceiver::Bye { reason: reason.into() });
        }
    }

    /// One of them, for whoever has no sender any more: one that has said who it is, if there is one.
    pub(super) fn take(&mut self) -> Option<(Link, Option<Greeting>)> {
        let n = self.0.iter().position(|newcomer| newcomer.greeting.is_some()).unwrap_or(0);
        let Newcomer { link, greeting, .. } = (n < self.0.len()).then(|| self.0.remove(n))?;
        Some((link, greeting))
    }

    /// The one that takes the place of the sender that is there, if there is one. Others are refused, or wait.
    pub(super) fn look(&mut self, present: &Present, link: &Link, byes: &mut Byes) -> Option<(Link, Greeting)> {
        let mut n = 0;
        while n < self.0.len() {
            let newcomer = &mut self.0[n];
            if newcomer.greeting.is_none() {
                let said = newcomer.link.receive(Duration::ZERO).map(|body| body.map(|body| Greeting::of(&body)));
                match said {
                    Ok(Some(Ok(greeting))) => {
                        (newcomer.greeting, newcomer.came) = (Some(greeting), Instant::now());
                    }
                    Ok(None) if newcomer.came.elapsed() < HELLO => {}
                    _ => {
                        self.0.remove(n);
                        continue;
                    }
                }
            }
            let came = newcomer.came;
            let claim = newcomer.greeting.as_ref().map_or(Claim::Waits, |greeting| {
                present.judge(greeting, came, link.heard(), link.is_gone(), Instant::now())
            });
            match claim {
                Claim::Waits if newcomer.link.is_gone() => drop(self.0.remove(n)),
                Claim::Waits => n += 1,
                Claim::Refused => {
                    let newcomer = self.0.remove(n);
                    log::warn!("{} is refused: another sender is there", newcomer.link.peer());
                    byes.say(newcomer.link, present.refusal());
                }
                Claim::TakesPlace => {
                    let Newcomer { link, greeting, .. } = self.0.remove(n);
                    return Some((link, greeting?));
                }
            }
        }
        None
    }
}

/// What tells connections that they are over.
#[derive(Default)]
pub(super) struct Byes(Vec<JoinHandle<()>>);

impl Byes {
    /// Nobody waits until it is heard.
    pub(super) fn say(&mut self, link: Link, message: FromReceiver) {
        self.0.retain(|bye| !bye.is_finished());
        if self.0.len() >= BYES {
            return;
        }
        match std::thread::Builder::new().name("bye".into()).spawn(move || say_last(link, &message)) {
            Ok(bye) => self.0.push(bye),
            Err(e) => log::debug!("a connection is closed without a word: {e}"),
        }
    }
}

/// Says something to a connection, and closes it.
pub(super) fn say_last(link: Link, message: &FromReceiver) {
    let mut batch = Batch::default();
    batch.push(message);
    let _ = link.send_now(batch.finish());
    link.close();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(session: u8, take_over: bool) -> Greeting {
        Greeting { session: [session; 16], host: "host".into(), pid: 1, take_over, length: 1 }
    }

    #[test]
    fn one_sender_at_a_time() {
        let present = Present::new(greeting(1, false), None);
        let came = Instant::now();
        let (before, after) = (came.checked_sub(Duration::from_secs(1)).unwrap(), came + Duration::from_secs(1));
        let overdue = before + OVERDUE;
        for (what, newcomer, heard, is_gone, now, claim) in [
            ("it has not been heard since", greeting(2, false), before, false, came, Claim::Waits),
            ("it has been heard since", greeting(2, false), after, false, after, Claim::Refused),
            ("it is not heard any more", greeting(2, false), before, false, overdue, Claim::TakesPlace),
            ("it is gone", greeting(2, false), after, true, after, Claim::Waits),
            ("it comes again", greeting(1, false), after, false, after, Claim::TakesPlace),
            ("it is taken over", greeting(2, true), after, false, after, Claim::TakesPlace),
        ] {
            assert_eq!(present.judge(&newcomer, came, heard, is_gone, now), claim, "{what}");
        }
    }

    #[test]
    fn a_sender_that_comes_again_is_there_since_it_came_first() {
        let first = Present { since: SystemTime::UNIX_EPOCH, ..Present::new(greeting(1, false), None) };
        assert_eq!(Present::new(greeting(1, true), Some(first.clone())).since, SystemTime::UNIX_EPOCH);
        assert_ne!(Present::new(greeting(2, false), Some(first)).since, SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn a_greeting_stands_alone() {
        let hello = FromSender::Hello { session: [1; 16], host: "x".repeat(1000), pid: 7, take_over: true };
        let mut body = Vec::new();
        record::encode(&hello, &[], &mut body);
        let greeting = Greeting::of(&body).unwrap();
        assert_eq!((greeting.host.len(), greeting.pid, greeting.take_over), (MAX_HOST, 7, true));
        record::encode(&FromSender::Done, &[], &mut body);
        assert_eq!(Greeting::of(&body), Err("more than a greeting at once"));
        assert!(Greeting::of(b"").is_err());
    }
}
