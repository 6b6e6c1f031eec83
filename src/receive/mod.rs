//! From a native sender into the store: connections, one after the other, of whoever has the token, until everything has
//! come and is on the disk.
//!
//! A connection that is lost is no end: what came stays, readers go on waiting, and the sender goes on from there when it
//! is back. Whoever reads what has not come has the sender send that first. `sink` has what becomes of the messages.

mod catalogue;
mod contents;
mod digest;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod sink;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::entry::{clipped, escape};
use crate::index::Ino;
use crate::monitor::{Chain, MAX_CUT_NAMED, Monitor, SenderStatus, Sending, Verdict};
use crate::record;
use crate::spool;
use crate::stop::Stop;
use crate::store::intake;
use crate::store::{Store, Unsettled};
use crate::strangers::Told;
use crate::wire::{self, Batch, Current, FromReceiver, FromSender, Link, Listener, MAX_HOST};
use sink::{Sink, Stopped, Unfinished};

/// A sender says at once who it is.
const HELLO: Duration = Duration::from_secs(10);

/// So many that have come while another one is heard may say who they are,
const NEWCOMERS: usize = 2;

/// and it is looked so often whether one has.
const SOON: Duration = Duration::from_millis(50);

/// So often it is told how it stands, where nothing else happens.
const TELL: Duration = Duration::from_secs(1);

/// At most this many connections whose place is taken are told so at a time; others are closed without a word.
const BYES: usize = 4;

/// What is to be received.
pub struct Job {
    /// Where senders come to.
    pub listener: Listener,
    /// Where it goes.
    pub store: Arc<Store>,
    /// Who is told.
    pub monitor: Arc<Monitor>,
    /// What ends it early.
    pub stop: Stop,
    /// The most memory that the index may take, in bytes.
    pub max_index: u64,
}

/// Receives until everything is there, or it is stopped; tells the monitor how it ended. After that it stays until the
/// sender knows it too, or `stop` is said.
pub fn run(job: Job) {
    let (store, monitor) = (job.store.clone(), job.monitor.clone());
    store.fill(&monitor, || receive(job));
}

fn receive(job: Job) {
    let Job { listener, store, monitor, stop, max_index } = job;
    let ended = |cause: String| monitor.end(Verdict::Failed { cause });
    // The token has served then, however it ends.
    let done = match Stop::new() {
        Ok(done) => StopAtEnd(done),
        Err(e) => return ended(format!("cannot begin to receive: {e}")),
    };
    let current = Current::default();
    let poke = {
        let current = current.clone();
        move || current.poke()
    };
    let arrivals = match listener.serve([stop.clone(), done.0.clone()], poke.clone()) {
        Ok(arrivals) => arrivals,
        Err(e) => return ended(format!("cannot begin to receive: {e}")),
    };
    let wants: Arc<Mutex<Vec<Ino>>> = Arc::default();
    store.set_wanted({
        let wants = wants.clone();
        move |ino| {
            wants.lock().push(ino);
            poke();
        }
    });
    let mut receive = Receive {
        sink: Sink::new(store.clone(), monitor.clone(), stop.clone(), max_index),
        store,
        monitor,
        stop,
        arrivals,
        current,
        wants,
        newcomers: Vec::new(),
        status: SenderStatus::default(),
        told: Told::default(),
        byes: Vec::new(),
        met: false,
        whole: false,
    };
    if let Some(verdict) = receive.all() {
        receive.conclude(verdict);
    }
}

struct StopAtEnd(Stop);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        self.0.stop();
    }
}

struct Receive {
    sink: Sink,
    store: Arc<Store>,
    monitor: Arc<Monitor>,
    stop: Stop,
    arrivals: Receiver<wire::Arrival>,
    current: Current,
    wants: Arc<Mutex<Vec<Ino>>>,
    /// Connections that have come while another one is heard, and until when they have to say who they are.
    newcomers: Vec<(Link, Instant)>,
    status: SenderStatus,
    told: Told,
    /// What tells connections whose place is taken.
    byes: Vec<JoinHandle<()>>,
    /// A sender with the token has been there.
    met: bool,
    /// Everything is there, and the monitor knows.
    whole: bool,
}

/// How a connection ended, where nothing else does.
enum Next {
    /// The sender may come back.
    Again(String),
    /// Another connection has come, with this greeting.
    Other(Link, Vec<u8>),
    /// The sender knows that everything is there.
    Done,
}

impl Receive {
    /// Connections, one after the other. None: the monitor knows how it ended.
    fn all(&mut self) -> Option<Verdict> {
        let mut next = None;
        loop {
            let (link, greeting) = match next.take() {
                Some((link, greeting)) => (link, Some(greeting)),
                None => match self.next_link() {
                    Ok(link) => (link, None),
                    Err(verdict) => return verdict,
                },
            };
            let peer = link.peer();
            self.current.set(Some(&link));
            let ended = self.connection(&link, greeting);
            self.current.set(None);
            self.status.connected = false;
            match ended {
                Ok(Next::Done) => return None,
                Ok(Next::Other(other, greeting)) => {
                    self.dismiss(link);
                    next = Some((other, greeting));
                }
                Ok(Next::Again(cause)) => {
                    if !self.whole {
                        self.told.warn(format_args!("{peer}: {cause}; it is waited for"));
                        self.status.outages += 1;
                        self.tell_status();
                        self.monitor.paused_for_sender(Some(format!("{cause}; waiting for the sender to come back")));
                    }
                }
                Err(verdict) => {
                    let reason = match &verdict {
                        Verdict::Incomplete { cause, .. } | Verdict::Corrupt { cause, .. } => cause.clone(),
                        Verdict::Failed { cause } | Verdict::NoArchive { cause } => cause.clone(),
                        Verdict::Complete => String::new(),
                    };
                    if !self.whole {
                        // Who waits here is told first.
                        self.conclude(verdict);
                    }
                    say_bye(link, &reason);
                    return None;
                }
            }
        }
    }

    /// Another connection has taken the place of this one. It is told so, but nobody waits until it hears.
    fn dismiss(&mut self, link: Link) {
        self.byes.retain(|bye| !bye.is_finished());
        if self.byes.len() >= BYES {
            return;
        }
        let reason = "another connection with the same token has taken its place";
        match std::thread::Builder::new().name("bye".into()).spawn(move || say_bye(link, reason)) {
            Ok(bye) => self.byes.push(bye),
            Err(e) => log::debug!("a connection is closed without a word: {e}"),
        }
    }

    /// Waits for somebody with the token.
    fn next_link(&mut self) -> Result<Link, Option<Verdict>> {
        loop {
            if self.stop.is_stopped() {
                return Err(self.stopped());
            }
            if !self.newcomers.is_empty() {
                return Ok(self.newcomers.remove(0).0);
            }
            match self.arrivals.recv_timeout(TELL) {
                Ok(arrival) => {
                    if let Some(link) = self.arrival(arrival)? {
                        return Ok(link);
                    }
                }
                Err(RecvTimeoutError::Timeout) if self.met && !self.whole => self.tell_status(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.stopped()),
            }
        }
    }

    fn stopped(&self) -> Option<Verdict> {
        let (files, bytes) = self.sink.missing();
        let missing = match (self.met, files) {
            (false, _) => ": no sender came".into(),
            (_, 0) => String::new(),
            _ => format!(": {}", missing(files, bytes)),
        };
        let cause = format!("receiving was stopped{missing}");
        (!self.whole).then_some(Verdict::Incomplete { cause, cut: None })
    }

    fn arrival(&mut self, arrival: wire::Arrival) -> Result<Option<Link>, Option<Verdict>> {
        match arrival {
            wire::Arrival::Sender(link) => Ok(Some(link)),
            wire::Arrival::Failed(e) => {
                let cause = format!("cannot listen any more: {e}");
                Err((!self.whole).then_some(Verdict::Failed { cause }))
            }
        }
    }

    /// One connection from its beginning to its end.
    fn connection(&mut self, link: &Link, greeting: Option<Vec<u8>>) -> Result<Next, Verdict> {
        let mut consumed = match self.hello(link, greeting)? {
            Ok(greeting) => greeting,
            Err(next) => return Ok(next),
        };
        // Who was waited for before is waited for still.
        let mut answers = self.sink.wanted_messages();
        let mut told = Instant::now();
        loop {
            let wants = std::mem::take(&mut *self.wants.lock());
            answers.extend(wants.into_iter().filter_map(|ino| self.sink.want(ino)));
            if !answers.is_empty() {
                // Where it is closed, what came before counts: it is told when all of that has been taken.
                let _ = link.send_now(frame(&answers));
                answers.clear();
            }
            if self.stop.is_stopped() {
                return Err(self.stopped().unwrap_or(Verdict::Complete));
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                self.tell_status();
            }
            while let Ok(arrival) = self.arrivals.try_recv() {
                match self.arrival(arrival) {
                    Ok(Some(other)) => {
                        self.newcomers.truncate(NEWCOMERS - 1);
                        self.newcomers.insert(0, (other, Instant::now() + HELLO));
                    }
                    Ok(None) => {}
                    Err(verdict) => return Err(verdict.unwrap_or(Verdict::Complete)),
                }
            }
            if let Some((other, greeting)) = self.newcomer() {
                return Ok(Next::Other(other, greeting));
            }
            let body = match link.receive(if self.newcomers.is_empty() { TELL } else { SOON }) {
                Ok(Some(body)) => body,
                Ok(None) => continue,
                Err(closed) => return Ok(Next::Again(closed.to_string())),
            };
            let had_catalogue = self.sink.has_catalogue();
            if let Some(next) = self.body(link, &body, &mut answers)? {
                return Ok(next);
            }
            if self.sink.has_catalogue() != had_catalogue {
                // The next body may wait for room, however long that takes.
                self.tell_status();
            }
            consumed += body.len() as u64;
            answers.push(FromReceiver::Consumed { bytes: consumed });
            link.recycle(body);
        }
    }

    /// A connection that has come meanwhile, and has said who it is. One that only shows that it has the token may be one
    /// that was given up, and takes nobody's place.
    fn newcomer(&mut self) -> Option<(Link, Vec<u8>)> {
        let is_greeting = |body: &[u8]| matches!(record::decode(body), Ok((FromSender::Hello { .. }, ..)));
        let mut n = 0;
        while n < self.newcomers.len() {
            let (link, deadline) = &self.newcomers[n];
            match link.receive(Duration::ZERO) {
                Ok(Some(body)) if is_greeting(&body) => return Some((self.newcomers.remove(n).0, body)),
                Ok(None) if Instant::now() < *deadline => n += 1,
                _ => drop(self.newcomers.remove(n)),
            }
        }
        None
    }

    /// Who is there, and how far they are. How long their greeting was.
    fn hello(&mut self, link: &Link, greeting: Option<Vec<u8>>) -> Result<Result<u64, Next>, Verdict> {
        let deadline = Instant::now() + HELLO;
        let body = loop {
            if let Some(greeting) = greeting {
                break greeting;
            }
            match link.receive(deadline.saturating_duration_since(Instant::now())) {
                Ok(Some(body)) => break body,
                Ok(None) if self.stop.is_stopped() => return Err(self.stopped().unwrap_or(Verdict::Complete)),
                Ok(None) if Instant::now() >= deadline => {
                    return Ok(Err(Next::Again("the sender did not say who it is".into())));
                }
                Ok(None) => {}
                Err(closed) => return Ok(Err(Next::Again(closed.to_string()))),
            }
        };
        let Ok((FromSender::Hello { session, mut host }, &[], length)) = record::decode::<FromSender>(&body) else {
            return Err(corrupt("its first message is no greeting"));
        };
        if length != body.len() {
            return Err(corrupt("more than a greeting at once"));
        }
        host = host.chars().take(MAX_HOST).collect();
        let catalogue = self.sink.begin(session);
        if !self.met {
            self.met = true;
            self.monitor.add_source_bytes(0);
        }
        self.monitor.paused_for_sender(None);
        self.status.host = escape(host.as_bytes());
        self.status.address = link.peer().to_string();
        self.status.connected = true;
        if self.status.outages > 0 {
            self.told.warn(format_args!("the sender is back, from {}", link.peer()));
        }
        self.tell_status();
        match link.send_now(frame(&[FromReceiver::Welcome { catalogue }])) {
            Ok(()) => Ok(Ok(length as u64)),
            Err(closed) => Ok(Err(Next::Again(closed.to_string()))),
        }
    }

    fn body(&mut self, link: &Link, body: &[u8], answers: &mut Vec<FromReceiver>) -> Result<Option<Next>, Verdict> {
        match record::decode::<FromSender>(body) {
            Ok((FromSender::Done, &[], length)) if length == body.len() => self.done(answers).map(|()| None),
            Ok((FromSender::Bye { reason: None }, ..)) if self.whole => Ok(Some(Next::Done)),
            Ok((FromSender::Bye { reason }, ..)) => {
                let (files, bytes) = self.sink.missing();
                let reason =
                    reason.map_or_else(|| "without a reason".into(), |reason| escape(clipped(reason.as_bytes())));
                let cause = format!("the sender ended: {reason}; {}", missing(files, bytes));
                Err(Verdict::Incomplete { cause, cut: None })
            }
            _ if self.whole => {
                // A sender that did not hear that all is there says the end of its catalogue again.
                self.take(link, body, answers).map(|()| None)
            }
            _ => {
                self.monitor.add_source_bytes(body.len() as u64);
                self.take(link, body, answers).map(|()| None)
            }
        }
    }

    fn take(&mut self, link: &Link, body: &[u8], answers: &mut Vec<FromReceiver>) -> Result<(), Verdict> {
        let (poker, monitor) = (link.poker(), self.monitor.clone());
        let told = Arc::new(AtomicBool::new(false));
        let waiting = told.clone();
        let away = SenderStatus { connected: false, ..self.status.clone() };
        let is_away = AtomicBool::new(false);
        let waits = move || {
            if !waiting.swap(true, Ordering::Relaxed) {
                let reason = monitor.status().paused;
                let _ = poker.send_now(frame(&[FromReceiver::Waiting { reason }]));
            }
            if poker.is_gone() && !is_away.swap(true, Ordering::Relaxed) {
                monitor.sender(away.clone());
            }
        };
        let taken = self.sink.body(body, waits, answers);
        if told.load(Ordering::Relaxed) {
            answers.push(FromReceiver::Waiting { reason: None });
        }
        match taken {
            Ok(()) => Ok(()),
            Err(Stopped::Violation(what)) => Err(corrupt(&what.to_string())),
            Err(Stopped::Intake(intake::Error::Spool(spool::Error::Stopped))) => {
                Err(self.stopped().unwrap_or(Verdict::Complete))
            }
            Err(Stopped::Intake(e @ intake::Error::Full { .. })) => {
                Err(Verdict::Corrupt { cause: e.to_string(), cut: None })
            }
            Err(Stopped::Intake(e)) => Err(Verdict::Failed { cause: Chain(&e).to_string() }),
        }
    }

    /// The sender has sent everything.
    fn done(&mut self, answers: &mut Vec<FromReceiver>) -> Result<(), Verdict> {
        if !self.sink.is_whole() {
            return Err(corrupt("it says that it is done, and is not"));
        }
        if self.whole {
            answers.push(self.sink.commit_message());
            return Ok(());
        }
        let commit = self.sink.finish().map_err(|e| match e {
            Unfinished::Intake(intake::Error::Spool(spool::Error::Stopped)) => {
                self.stopped().unwrap_or(Verdict::Complete)
            }
            e => Verdict::Failed { cause: Chain(&e).to_string() },
        })?;
        self.whole = true;
        self.tell_status();
        self.monitor.end(Verdict::Complete);
        answers.push(commit);
        Ok(())
    }

    fn tell_status(&mut self) {
        let totals = self.sink.totals();
        let (missing_files, missing_bytes) = self.sink.missing();
        self.status.wanted = self.sink.wanted(&self.wants.lock());
        self.status.files = totals.files;
        (self.status.missing_files, self.status.missing_bytes) = (missing_files, missing_bytes);
        self.status.sending = match (self.sink.has_catalogue(), self.status.wanted) {
            (false, _) => Sending::Catalogue,
            (true, 0) => Sending::InOrder,
            _ => Sending::Wanted,
        };
        self.monitor.sender(self.status.clone());
    }

    /// Names the files of which a part has come: there may be several, since what somebody waits for is sent ahead.
    fn name_cut(&mut self, verdict: &mut Verdict) {
        let parts = self.sink.parts.values().filter(|part| part.received() > 0);
        let mut paths: Vec<&[u8]> = parts.map(|part| &part.path[..]).collect();
        paths.sort_unstable();
        self.status.cut_files = paths.len() as u64;
        self.status.cut = paths.iter().take(MAX_CUT_NAMED).map(|path| escape(path)).collect();
        if let Verdict::Incomplete { cut, .. } | Verdict::Corrupt { cut, .. } = verdict {
            *cut = self.status.cut.first().cloned();
        }
    }

    fn conclude(&mut self, mut verdict: Verdict) {
        self.name_cut(&mut verdict);
        self.sink.cut();
        self.tell_status();
        if matches!(verdict, Verdict::Incomplete { .. } | Verdict::Corrupt { .. }) {
            self.monitor.settling();
            match self.store.settle(&self.monitor) {
                Ok(()) | Err(Unsettled::Abandoned) => {}
                Err(e) => verdict = verdict.and_failed(Chain(&e).to_string()),
            }
        }
        self.monitor.end(verdict);
    }
}

fn say_bye(link: Link, reason: &str) {
    let _ = link.send_now(frame(&[FromReceiver::Bye { reason: reason.into() }]));
    link.close();
}

fn corrupt(what: &str) -> Verdict {
    Verdict::Corrupt { cause: format!("the sender does not keep to the protocol: {what}"), cut: None }
}

fn missing(files: u64, bytes: u64) -> String {
    let files = if files == 1 { "1 file is".into() } else { format!("{files} files are") };
    format!("{files} missing or cut, {bytes} bytes of contents")
}

fn frame(messages: &[FromReceiver]) -> Vec<u8> {
    let mut batch = Batch::default();
    for message in messages {
        batch.push(message);
    }
    batch.finish()
}
