//! To a receiver: the catalogue first, contents behind it, what somebody waits for ahead of all, until the receiver says
//! that everything is there, is right, and is on its disk. A connection that is lost is made again.
//!
//! What is sent, and when, is decided by [`Plan`](super::plan); here it goes over connections.

#[cfg(any(test, fuzzing))]
pub mod fuzz;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::catalogue::{self, Catalogue};
use super::flight::Flight;
use super::limit::Limit;
use super::plan::{Odd, Plan};
use super::shrink::Shrink;
use crate::entry::{Timestamp, clipped, escape};
use crate::monitor::Monitor;
use crate::record;
use crate::stop::Stop;
use crate::tree::{self, Walk};
use crate::wire::{
    self, Batch, Closed, ConnectError, Current, FromReceiver, FromSender, Leave, Link, Session, Token, Totals, connect,
};

/// It is looked so often whether there is something to do, where nobody says so.
const LOOK: Duration = Duration::from_millis(500);

/// Between two tries to connect again: at first, and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// What is said of somebody's interrupt.
const STOPPED: &str = "sending was stopped; the same command goes on from what the receiver has";

/// What is to be delivered, and how.
pub struct Job {
    /// What is sent.
    pub walk: Walk,
    /// The same once more: for a receiver that has less than it had, since it was started again from what its disk has.
    pub again: Box<dyn FnMut() -> Result<Walk, tree::Error> + Send>,
    /// Where to: `HOST:PORT`.
    pub to: String,
    /// What the receiver has too.
    pub token: Token,
    /// The name of this machine.
    pub host: String,
    /// The number of this process.
    pub pid: u32,
    /// Whether it takes the place of another sender that is alive.
    pub take_over: bool,
    /// After so long without a sign the connection is lost.
    pub silence: Duration,
    /// So long it is tried to connect again.
    pub retry: Duration,
    /// Bytes in a second at most.
    pub rate: Option<u64>,
    /// Whether what gets smaller by it is compressed where the network is slower than that.
    pub compress: bool,
    /// Who is told.
    pub monitor: Arc<Monitor>,
    /// What ends it early.
    pub stop: Stop,
}

/// Everything is at the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// What it has confirmed.
    pub totals: Totals,
    /// Bytes of contents that it has: less than were announced where files vanished or became shorter.
    pub bytes: u64,
    /// Entries and attributes that it has left out.
    pub refused: u64,
    /// Files of its tree that are cut: by what became of them here, or there.
    pub cut: u64,
    /// Files that were there from an earlier try, and are not read again.
    pub there_already: u64,
    /// How often the connection was lost.
    pub outages: u64,
}

/// Why not everything is at the receiver.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There was no connection at all.
    #[error("{0}")]
    Connect(ConnectError),
    /// Another sender with the same token is alive.
    #[error(
        "host {}, PID {pid} is sending since {}; --take-over takes its place",
        escape(clipped(.host.as_bytes())), .since.utc()
    )]
    Refused {
        /// Its machine, as it calls itself.
        host: String,
        /// Its number there.
        pid: u32,
        /// When it came, by the clock of the receiver.
        since: Timestamp,
    },
    /// Another sender with the same token has taken the place of this one.
    #[error("host {}, PID {pid} took over", escape(clipped(.host.as_bytes())))]
    TakenOver {
        /// Its machine, as it calls itself.
        host: String,
        /// Its number there.
        pid: u32,
    },
    /// What is sent cannot be looked at once more.
    #[error(transparent)]
    Tree(#[from] tree::Error),
    /// The receiver has another token.
    #[error("the receiver at {0} has another token: nothing was sent")]
    Denied(String),
    /// It ended early.
    #[error("{cause}; {missing}")]
    Incomplete {
        /// Why.
        cause: String,
        /// What is missing.
        missing: String,
    },
    /// The receiver says what none does that keeps to the protocol.
    #[error("the receiver does not keep to the protocol: {0}")]
    Protocol(String),
    /// Our own fault.
    #[error("{0}")]
    Other(#[from] std::io::Error),
}

/// How a connection ended.
enum End {
    Delivered {
        totals: Totals,
        refused: u64,
        cut: u64,
    },
    Lost(String),
    Denied,
    /// The receiver has ended.
    Bye(String),
    /// It has another sender.
    Other(Failure),
    Stopped,
    Protocol(String),
    /// The receiver has less than it had.
    Anew,
    /// We cannot go on.
    Failed(String),
}

/// Delivers. Returns when the receiver has confirmed everything.
pub fn run(job: Job) -> Result<Delivered, Failure> {
    let Job { walk, mut again, to, token, host, pid, take_over, silence, retry, rate, compress, monitor, stop } = job;
    let current = Current::default();
    let poke = {
        let current = current.clone();
        move || current.poke()
    };
    stop.on_stop(poke.clone());
    let mut link = Some(first(&to, &token, silence, &stop)?);
    let mut delivery = Delivery {
        plan: Plan::new(walk.opener(), monitor.clone()),
        catalogue: catalogue::begin(walk, monitor.clone(), poke.clone())?,
        session: wire::random()?,
        host,
        pid,
        take_over,
        limit: Limit::new(rate, Instant::now()),
        flight: Flight::new(Instant::now()),
        shrink: Shrink::new(compress),
        monitor,
        stop,
    };
    let mut outages = 0;
    let mut lost_at = None;
    let mut pause = BACK_OFF.0;
    let mut reached = 0;
    loop {
        let end = match link.take().map_or_else(|| connect(&to, &token, silence, &delivery.stop), Ok) {
            Ok(link) => {
                current.set(Some(&link));
                let begun = Instant::now();
                let end = delivery.connection(&link);
                current.set(None);
                // A receiver is there that takes something, or says for longer than it may be silent that it has no room.
                let progress = delivery.plan.progress();
                if progress > reached || begun.elapsed() > 2 * silence {
                    (lost_at, pause) = (None, BACK_OFF.0);
                }
                reached = reached.max(progress);
                if !matches!(end, End::Lost(_) | End::Denied) {
                    link.close();
                }
                end
            }
            Err(ConnectError::Handshake { cause: Closed::Denied, .. }) => End::Denied,
            Err(_) if delivery.stop.is_stopped() => End::Stopped,
            Err(e) => End::Lost(e.to_string()),
        };
        let incomplete = |cause: String| Failure::Incomplete { cause, missing: delivery.plan.missing() };
        let lost = match end {
            End::Delivered { totals, refused, cut } => {
                let there_already = delivery.plan.there_already();
                let bytes = totals.bytes.saturating_sub(delivery.plan.short_bytes());
                return Ok(Delivered { totals, bytes, refused, cut, there_already, outages });
            }
            End::Denied if outages > 0 => {
                return Err(incomplete(format!("the receiver at {to} has another token now")));
            }
            End::Denied => return Err(Failure::Denied(to)),
            End::Other(failure) => return Err(failure),
            End::Bye(reason) => {
                return Err(incomplete(format!("the receiver ended: {}", escape(clipped(reason.as_bytes())))));
            }
            End::Stopped => return Err(incomplete(STOPPED.into())),
            End::Protocol(what) => return Err(Failure::Protocol(what)),
            End::Failed(what) => return Err(Failure::Other(std::io::Error::other(what))),
            End::Anew => {
                delivery.begin_anew(again()?, poke.clone())?;
                reached = 0;
                format!("the receiver at {to} has less than it had: everything is announced to it anew")
            }
            End::Lost(cause) => cause,
        };
        let incomplete = |cause: String| Failure::Incomplete { cause, missing: delivery.plan.missing() };
        let since = *lost_at.get_or_insert_with(|| {
            outages += 1;
            log::warn!("{lost}: trying again, for {} s", retry.as_secs());
            Instant::now()
        });
        if since.elapsed() + pause > retry {
            return Err(incomplete(format!("{lost}, and the receiver was not there again for {retry:.0?}")));
        }
        delivery.monitor.paused_for_sender(Some(format!("{lost}; trying again, for {} s at most", retry.as_secs())));
        if delivery.stop.wait(pause) {
            return Err(incomplete(STOPPED.into()));
        }
        pause = (pause * 2).min(BACK_OFF.1);
    }
}

/// A receiver that is not there at the beginning will not come: that is told at once.
fn first(to: &str, token: &Token, silence: Duration, stop: &Stop) -> Result<Link, Failure> {
    connect(to, token, silence, stop).map_err(|e| match e {
        ConnectError::Handshake { cause: Closed::Denied, .. } => Failure::Denied(to.into()),
        e => Failure::Connect(e),
    })
}

struct Delivery {
    plan: Plan,
    catalogue: Catalogue,
    session: Session,
    host: String,
    pid: u32,
    /// As long as no receiver has taken it in: later it does not take the place of whoever has taken its own.
    take_over: bool,
    limit: Limit,
    flight: Flight,
    shrink: Shrink,
    monitor: Arc<Monitor>,
    stop: Stop,
}

impl Delivery {
    /// Everything is said once more, as another session.
    fn begin_anew(&mut self, walk: Walk, poke: impl Fn() + Send + 'static) -> Result<(), Failure> {
        self.catalogue.end();
        self.monitor.begin_anew();
        self.session = wire::random()?;
        self.plan = Plan::new(walk.opener(), self.monitor.clone());
        self.catalogue = catalogue::begin(walk, self.monitor.clone(), poke)?;
        Ok(())
    }

    /// One connection from its beginning to its end.
    fn connection(&mut self, link: &Link) -> End {
        self.plan.disconnected();
        self.shrink.begin(link);
        self.flight = Flight::new(Instant::now());
        let mut hello = Batch::default();
        let Delivery { session, pid, take_over, .. } = *self;
        hello.push(&FromSender::Hello { session, host: self.host.clone(), pid, take_over });
        self.flight.sent(hello.len() as u64, Instant::now());
        if let Err(closed) = link.send_now(hello.finish()) {
            return lost(closed);
        }
        loop {
            match self.turn(link) {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(closed) => return lost(closed),
            }
        }
    }

    /// Hears what has come, then sends one frame.
    fn turn(&mut self, link: &Link) -> Result<Option<End>, Closed> {
        if self.stop.is_stopped() {
            self.say_bye(link, Leave::Interrupted);
            return Ok(Some(End::Stopped));
        }
        let mut news = false;
        while !self.plan.is_far_ahead()
            && let Some(piece) = self.catalogue.next()
        {
            if let Some(failed) = piece.failed {
                self.say_bye(link, Leave::Failed { reason: failed.clone() });
                return Ok(Some(End::Failed(failed)));
            }
            self.plan.announce(piece);
            news = true;
        }
        let pause = self.limit.wait(Instant::now());
        let ready = pause.is_zero() && self.flight.has_room() && self.plan.has_something();
        let can_send = ready && link.has_room();
        let body = if can_send || news {
            link.receive(Duration::ZERO)?
        } else if ready {
            link.receive_or_room(LOOK)?
        } else {
            link.receive(if pause.is_zero() { LOOK } else { pause.min(LOOK) })?
        };
        if let Some(body) = body {
            let end = self.hear(&body);
            match &end {
                Some(End::Delivered { .. }) => self.say_bye(link, Leave::Done),
                Some(End::Protocol(what)) => self.say_bye(link, Leave::Failed { reason: what.clone() }),
                _ => {}
            }
            return Ok(end);
        }
        if !can_send {
            return Ok(None);
        }
        let next = match self.plan.next() {
            Ok(next) => next,
            Err(failed) => {
                self.say_bye(link, Leave::Failed { reason: failed.clone() });
                return Ok(Some(End::Failed(failed)));
            }
        };
        if let Some(batch) = next {
            self.flight.sent(batch.len() as u64, Instant::now());
            let frame = self.shrink.frame(batch, link);
            self.limit.take(frame.len(), Instant::now());
            // Where it is closed, what the receiver said before counts, and is heard first.
            let _ = link.send_now(frame);
        }
        Ok(None)
    }

    fn say_bye(&self, link: &Link, leave: Leave) {
        let mut batch = Batch::default();
        batch.push(&FromSender::Bye(leave));
        // It is told where it can be: that the connection is closed already changes nothing of what is told.
        let _ = link.send_now(batch.finish());
    }

    /// Messages of the receiver. None: it goes on.
    fn hear(&mut self, mut body: &[u8]) -> Option<End> {
        while !body.is_empty() {
            let Ok((message, &[], length)) = record::decode::<FromReceiver>(body) else {
                return Some(End::Protocol("a message that cannot be read".into()));
            };
            body = &body[length..];
            match message {
                FromReceiver::Commit { totals, refused, cut } => {
                    if !self.plan.is_confirmed(&totals) {
                        return Some(End::Protocol("it confirms something else than was sent".into()));
                    }
                    return Some(End::Delivered { totals, refused, cut });
                }
                FromReceiver::Bye { reason } => return Some(End::Bye(reason)),
                FromReceiver::Refused { host, pid, since } => {
                    let since = Timestamp::new(since.try_into().unwrap_or(i64::MAX), 0);
                    return Some(End::Other(Failure::Refused { host, pid, since }));
                }
                FromReceiver::TakenOver { host, pid } => {
                    return Some(End::Other(Failure::TakenOver { host, pid }));
                }
                FromReceiver::Consumed { bytes } => {
                    if !self.flight.taken(bytes, Instant::now()) {
                        return Some(End::Protocol("it has taken what was not sent".into()));
                    }
                }
                FromReceiver::Waiting { reason } => {
                    let reason =
                        reason.map(|reason| format!("the receiver waits: {}", escape(clipped(reason.as_bytes()))));
                    self.monitor.paused_for_sender(reason);
                }
                message => {
                    if matches!(message, FromReceiver::Welcome { .. }) {
                        self.monitor.paused_for_sender(None);
                        self.take_over = false;
                    }
                    match self.plan.hear(message) {
                        Ok(()) => {}
                        Err(Odd::Protocol(what)) => return Some(End::Protocol(what.into())),
                        Err(Odd::Anew) => return Some(End::Anew),
                    }
                }
            }
        }
        None
    }
}

fn lost(closed: Closed) -> End {
    match closed {
        Closed::Denied => End::Denied,
        closed => End::Lost(closed.to_string()),
    }
}
