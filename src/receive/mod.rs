//! From a native sender into the store: connections, one after the other, of whoever has the token, until everything has
//! come and is on the disk.
//!
//! A connection that is lost is no end: what came stays, readers go on waiting, and the sender goes on from there when it
//! is back. Whoever reads what has not come has the sender send that first. `sink` has what becomes of the messages.

mod answers;
mod catalogue;
mod contents;
mod cut;
mod digest;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod recovered;
mod session;
mod sink;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::entry::{clipped, escape};
use crate::index::Ino;
use crate::monitor::{Chain, MAX_CUT_NAMED, Monitor, SenderStatus, Sending, Verdict};
use crate::record;
use crate::spool;
use crate::stop::Stop;
use crate::store::Store;
use crate::store::intake;
use crate::store::recover::{Job as Recovery, Resume};
use crate::store::settle::Unsettled;
use crate::strangers::Told;
use crate::wire::{self, Batch, Current, FromReceiver, FromSender, Leave, Link, Listener};
use cut::CutFiles;
use session::{Byes, Greeting, HELLO, Newcomers, Present, say_last};
use sink::{Sink, Stopped, Unfinished};

/// It is looked so often at those who have come while another one is heard.
const SOON: Duration = Duration::from_millis(50);

/// So often it is told how it stands, where nothing else happens.
const TELL: Duration = Duration::from_secs(1);

/// Answers go into frames of about so many bytes.
const FRAME: usize = 1 << 20;

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
    /// Where it is mounted, as it is shown.
    pub mountpoint: String,
    /// The spool has a part of it already, which an earlier daemon has left.
    pub resume: Option<Resume>,
}

/// Receives until everything is there, or it is stopped; tells the monitor how it ended. After that it stays until the
/// sender knows it too, or `stop` is said.
pub fn run(job: Job) {
    let (store, monitor) = (job.store.clone(), job.monitor.clone());
    store.fill(&monitor, || receive(job));
}

fn receive(job: Job) {
    let Job { listener, store, monitor, stop, max_index, mountpoint, resume } = job;
    let sink = match resume {
        None => Ok(Sink::new(store.clone(), monitor.clone(), stop.clone(), max_index)),
        Some(resume) => {
            let same_boot = resume.about.is_of_this_boot();
            let (store, monitor, stop) = (store.clone(), monitor.clone(), stop.clone());
            Sink::recovered(Recovery { store, monitor, stop, max_index, same_boot }, resume)
        }
    };
    let sink = match sink {
        Ok(sink) => sink,
        Err(e) => {
            store.cut();
            return monitor.end(e.verdict());
        }
    };
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
        sink,
        store,
        monitor,
        stop,
        arrivals,
        current,
        wants,
        mountpoint,
        newcomers: Newcomers::default(),
        present: None,
        status: SenderStatus::default(),
        told: Told::default(),
        byes: Byes::default(),
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
    mountpoint: String,
    newcomers: Newcomers,
    /// Who came last.
    present: Option<Present>,
    status: SenderStatus,
    told: Told,
    byes: Byes,
    /// A sender with the token has been there.
    met: bool,
    /// Everything is there, and the monitor knows.
    whole: bool,
}

/// How a connection ended, where nothing else does.
enum Next {
    /// The sender may come back.
    Again(String),
    /// The sender has ended, and may be started again.
    Left(String),
    /// Another connection has come, with this greeting.
    Other(Link, Greeting),
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
                    Ok(next) => next,
                    Err(verdict) => return verdict,
                },
            };
            let peer = link.peer();
            self.current.set(Some(&link));
            let ended = self.connection(&link, greeting);
            self.current.set(None);
            self.status.connected = false;
            match ended {
                Ok(Next::Done) => {
                    self.newcomers.dismiss("another sender has delivered everything", &mut self.byes);
                    return None;
                }
                Ok(Next::Other(other, greeting)) => {
                    self.dismiss(link, &greeting);
                    next = Some((other, greeting));
                }
                Ok(Next::Left(cause)) => {
                    if !self.whole {
                        self.wait_for_sender(peer, &format!("{cause}; waiting for it"));
                    }
                }
                Ok(Next::Again(cause)) => {
                    if !self.whole {
                        self.status.outages += 1;
                        self.wait_for_sender(peer, &format!("{cause}; waiting for the sender to come back"));
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
                    self.newcomers.dismiss(&reason, &mut self.byes);
                    say_last(link, &FromReceiver::Bye { reason });
                    return None;
                }
            }
        }
    }

    /// No sender is there, and one may come: it is told what can be done.
    fn wait_for_sender(&mut self, peer: std::net::SocketAddr, cause: &str) {
        let cause = format!("{cause}, or 'restorefs stop {}' ends the reception", self.mountpoint);
        self.told.warn(format_args!("{peer}: {cause}"));
        self.tell_status();
        self.monitor.paused_for_sender(Some(cause));
    }

    /// Another connection has taken the place of this one.
    fn dismiss(&mut self, link: Link, other: &Greeting) {
        let is_same = self.present.as_ref().is_none_or(|present| present.greeting.session == other.session);
        let message = match is_same {
            true => FromReceiver::Bye { reason: "another connection of it has taken its place".into() },
            false => FromReceiver::TakenOver { host: other.host.clone(), pid: other.pid },
        };
        if !is_same {
            let (host, peer) = (escape(other.host.as_bytes()), link.peer());
            self.told.warn(format_args!("host {host}, PID {} takes over from {peer}", other.pid));
        }
        self.byes.say(link, message);
    }

    /// Waits for somebody with the token.
    fn next_link(&mut self) -> Result<(Link, Option<Greeting>), Option<Verdict>> {
        loop {
            if self.stop.is_stopped() {
                return Err(self.stopped());
            }
            if let Some(next) = self.newcomers.take() {
                return Ok(next);
            }
            match self.arrivals.recv_timeout(TELL) {
                Ok(arrival) => {
                    if let Some(link) = self.arrival(arrival)? {
                        return Ok((link, None));
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
    fn connection(&mut self, link: &Link, greeting: Option<Greeting>) -> Result<Next, Verdict> {
        let present = match self.hello(link, greeting)? {
            Ok(present) => present,
            Err(next) => return Ok(next),
        };
        let mut consumed = present.greeting.length;
        // Who was waited for before is waited for still.
        let mut answers = self.sink.wanted_messages();
        let mut told = Instant::now();
        loop {
            let wants = std::mem::take(&mut *self.wants.lock());
            answers.extend(wants.into_iter().filter_map(|ino| self.sink.want(ino)));
            if !answers.is_empty() {
                // Where it is closed, what came before counts: it is told when all of that has been taken.
                frames(&answers).into_iter().for_each(|frame| drop(link.send_now(frame)));
                answers.clear();
            }
            while self.sink.is_answering() && link.has_room() {
                frames(&self.sink.next_answers()).into_iter().for_each(|frame| drop(link.send_now(frame)));
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
                    Ok(Some(other)) => self.newcomers.add(other),
                    Ok(None) => {}
                    Err(verdict) => return Err(verdict.unwrap_or(Verdict::Complete)),
                }
            }
            if let Some((other, greeting)) = self.newcomers.look(&present, link, &mut self.byes) {
                return Ok(Next::Other(other, greeting));
            }
            let patience = if self.newcomers.is_empty() { TELL } else { SOON };
            let received = match self.sink.is_answering() {
                true => link.receive_or_room(patience),
                false => link.receive(patience),
            };
            let body = match received {
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

    /// Who is there, and how far they are.
    fn hello(&mut self, link: &Link, greeting: Option<Greeting>) -> Result<Result<Present, Next>, Verdict> {
        let deadline = Instant::now() + HELLO;
        let greeting = loop {
            if let Some(greeting) = greeting {
                break greeting;
            }
            match link.receive(deadline.saturating_duration_since(Instant::now())) {
                Ok(Some(body)) => break Greeting::of(&body).map_err(corrupt)?,
                Ok(None) if self.stop.is_stopped() => return Err(self.stopped().unwrap_or(Verdict::Complete)),
                Ok(None) if Instant::now() >= deadline => {
                    return Ok(Err(Next::Again("the sender did not say who it is".into())));
                }
                Ok(None) => {}
                Err(closed) => return Ok(Err(Next::Again(closed.to_string()))),
            }
        };
        let present = Present::new(greeting, self.present.take());
        self.present = Some(present.clone());
        let Greeting { session, host, pid, .. } = &present.greeting;
        let catalogue = self.sink.begin(*session);
        if !self.met {
            self.met = true;
            self.monitor.add_source_bytes(0);
        }
        self.monitor.paused_for_sender(None);
        self.status.host = escape(host.as_bytes());
        self.status.pid = *pid;
        self.status.address = link.peer().to_string();
        self.status.connected = true;
        if self.status.outages > 0 {
            self.told.warn(format_args!("the sender is back, from {}", link.peer()));
        }
        self.tell_status();
        match link.send_now(frame(&[FromReceiver::Welcome { catalogue }])) {
            Ok(()) => Ok(Ok(present)),
            Err(closed) => Ok(Err(Next::Again(closed.to_string()))),
        }
    }

    fn body(&mut self, link: &Link, body: &[u8], answers: &mut Vec<FromReceiver>) -> Result<Option<Next>, Verdict> {
        match record::decode::<FromSender>(body) {
            Ok((FromSender::Done, &[], length)) if length == body.len() => self.done(answers).map(|()| None),
            Ok((FromSender::Bye(Leave::Done), ..)) if self.whole => Ok(Some(Next::Done)),
            Ok((FromSender::Bye(Leave::Done), ..)) => Err(corrupt("it says that it is done, and is not")),
            Ok((FromSender::Bye(Leave::Interrupted), ..)) => Ok(Some(Next::Left("the sender was interrupted".into()))),
            Ok((FromSender::Bye(Leave::Failed { reason }), ..)) => {
                Ok(Some(Next::Left(format!("the sender ended: {}", escape(clipped(reason.as_bytes()))))))
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
        if let (0, Some(spool)) = (self.sink.cut_files.count, self.store.spool()) {
            spool.finished();
        }
        let CutFiles { count, named } = self.sink.cut_files.clone();
        (self.status.cut_files, self.status.cut) = (count, named);
        self.tell_status();
        self.monitor.end(self.sink.cut_files.verdict());
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

/// The same in as many frames as that takes.
fn frames(messages: &[FromReceiver]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut batch = Batch::default();
    for message in messages {
        batch.push(message);
        if batch.len() >= FRAME {
            frames.push(std::mem::take(&mut batch).finish());
        }
    }
    if !batch.is_empty() {
        frames.push(batch.finish());
    }
    frames
}
