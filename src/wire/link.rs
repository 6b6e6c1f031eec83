//! One authenticated connection: frames out, bodies of frames in, by a thread of its own that never waits for whoever
//! uses it. Says by itself that this side is alive, and notices when the other one is not.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustls::Connection;

use super::frame::{ALIVE, Frames};
use super::tls;

/// Nothing was sent for so long: the other side is told that we are alive.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// Nothing came for so long, though two signs of life were due: nobody has to wait for the other side any longer.
pub const OVERDUE: Duration = Duration::from_secs(2 * ALIVE_EVERY.as_secs());

/// More than so many bytes of frames do not wait to be sent: what is wanted next must not be long behind them.
const OUTBOX: usize = 512 << 10;

/// More than so many bytes wait to be sent only where the other side takes nothing: no answer is so long.
const OUTBOX_AT_MOST: usize = 256 << 20;

/// More than so many bytes do not wait to be taken; then nothing is read, nor decrypted or decompressed of what was read.
const INBOX: usize = 2 << 20;

/// So many bodies are kept to be used again.
const SPARE: usize = 4;

/// So much is read from the socket at a time.
const READ: usize = 256 << 10;

/// The kernel takes no more than this of what it cannot send yet (TCP_NOTSENT_LOWAT): the same reason.
const UNSENT: u32 = 256 << 10;

/// What is to be sent yet when a connection is closed gets so long,
const FLUSH: Duration = Duration::from_secs(10);

/// and the other side, to close it too, so long.
const LINGER: Duration = Duration::from_secs(3);

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The other side has closed it.
    #[error("the other side closed the connection")]
    Ended,
    /// It broke.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// Nothing came for too long.
    #[error("nothing came over the connection for {} s", .0.as_secs())]
    Silent(Duration),
    /// The other side has another token.
    #[error("the token is not the one of the other side")]
    Denied,
    /// The other side is a restorefs of another version.
    #[error("the other side speaks another version of the protocol: use the same restorefs on both")]
    Version,
    /// What came is no TLS, or no frame.
    #[error("what came over the connection is not what restorefs speaks: {0}")]
    Broken(String),
    /// We have closed it.
    #[error("the connection was closed")]
    Here,
}

/// An open connection.
pub struct Link {
    shared: Arc<Shared>,
    peer: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Something came, or there is room, or it is closed.
    changed: Condvar,
    wake: OwnedFd,
    begun: Instant,
    /// Milliseconds from then to when something came last.
    heard: AtomicU64,
    /// Bytes of frames that went over the wire.
    written: AtomicU64,
    /// Microseconds during which there was something to send.
    busy: AtomicU64,
}

#[derive(Default)]
struct State {
    outbox: VecDeque<Vec<u8>>,
    outbox_bytes: usize,
    inbox: VecDeque<Vec<u8>>,
    inbox_bytes: usize,
    /// Bodies that have been used.
    spare: Vec<Vec<u8>>,
    poked: bool,
    /// The other side says no more, though what it said may not be read yet.
    gone: bool,
    /// What is in the outbox is to be sent, and then it is to be closed.
    closing: Option<Instant>,
    closed: Option<Closed>,
}

impl Link {
    /// Takes over a connection whose handshake is done. `silence`: after so long without a sign the other side is gone.
    pub(super) fn new(mut connection: Connection, socket: TcpStream, silence: Duration) -> io::Result<Self> {
        let peer = socket.peer_addr()?;
        // A frame is encrypted as a whole; the outbox has the limit.
        connection.set_buffer_limit(None);
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let _ = crate::sys::set_unsent_limit(socket.as_fd(), UNSENT);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            begun: Instant::now(),
            heard: AtomicU64::new(0),
            written: AtomicU64::new(0),
            busy: AtomicU64::new(0),
        });
        let now = Instant::now();
        let pump = Pump {
            shared: shared.clone(),
            connection,
            socket,
            frames: Frames::default(),
            buf: vec![0; READ],
            encrypted: 0..0,
            ended: None,
            silence,
            heard: now,
            said: now,
            busy_since: None,
        };
        let thread = std::thread::Builder::new().name("link".into()).spawn(move || pump.run())?;
        Ok(Link { shared, peer, thread: Some(thread) })
    }

    /// When something came last. Where nothing is read, since what came before has not been taken, that is now.
    pub fn heard(&self) -> Instant {
        self.shared.begun + Duration::from_millis(self.shared.heard.load(Ordering::Relaxed))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Sends a frame, without waiting: for what is short, or where there [is room](Link::has_room).
    pub fn send_now(&self, frame: Vec<u8>) -> Result<(), Closed> {
        self.shared.put(&mut self.shared.state.lock(), frame)
    }

    /// Whether a frame could be sent without waiting.
    pub fn has_room(&self) -> bool {
        self.shared.state.lock().outbox_bytes <= OUTBOX
    }

    /// The next body that came, for which it waits so long. None where none came, or somebody has [`Poker::poke`]d. What
    /// came before the connection was closed is given first.
    pub fn receive(&self, patience: Duration) -> Result<Option<Vec<u8>>, Closed> {
        self.receive_until(patience, false)
    }

    /// The same, and None too as soon as there is room for a frame.
    pub fn receive_or_room(&self, patience: Duration) -> Result<Option<Vec<u8>>, Closed> {
        self.receive_until(patience, true)
    }

    fn receive_until(&self, patience: Duration, or_room: bool) -> Result<Option<Vec<u8>>, Closed> {
        let deadline = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        loop {
            if let Some(body) = state.inbox.pop_front() {
                let was_full = state.inbox_bytes > INBOX;
                state.inbox_bytes -= body.len();
                if was_full && state.inbox_bytes <= INBOX {
                    self.shared.wake();
                }
                return Ok(Some(body));
            }
            if let Some(closed) = &state.closed {
                return Err(closed.clone());
            }
            let room = or_room && state.outbox_bytes <= OUTBOX;
            if std::mem::take(&mut state.poked) || room || patience.is_zero() {
                return Ok(None);
            }
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
                return Ok(None);
            }
        }
    }

    /// Gives back a body that has been used: the memory of large ones is dear.
    pub fn recycle(&self, body: Vec<u8>) {
        let mut state = self.shared.state.lock();
        if state.spare.len() < SPARE {
            state.spare.push(body);
        }
    }

    /// Whether the other side is gone, as in [`Poker::is_gone`].
    pub fn is_gone(&self) -> bool {
        self.shared.is_gone()
    }

    /// For whoever has something for the one that waits in [`Link::receive`].
    pub fn poker(&self) -> Poker {
        Poker(self.shared.clone())
    }

    /// Bytes that went over the wire, and the seconds during which there was something to send.
    pub fn sent(&self) -> (u64, f64) {
        (self.shared.written.load(Ordering::Relaxed), self.shared.busy.load(Ordering::Relaxed) as f64 / 1e6)
    }

    /// Sends what is to be sent, and closes.
    pub fn close(mut self) {
        self.shared.state.lock().closing.get_or_insert_with(|| Instant::now() + FLUSH);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.close(Closed::Here);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Interrupts whoever waits for a connection.
#[derive(Clone)]
pub struct Poker(Arc<Shared>);

impl Poker {
    /// Makes [`Link::receive`] return.
    pub fn poke(&self) {
        self.0.state.lock().poked = true;
        self.0.changed.notify_all();
    }

    /// Whether the other side is gone. What it said before may still have to be taken.
    pub fn is_gone(&self) -> bool {
        self.0.is_gone()
    }

    /// As [`Link::send_now`].
    pub fn send_now(&self, frame: Vec<u8>) -> Result<(), Closed> {
        self.0.put(&mut self.0.state.lock(), frame)
    }
}

/// The connection that is open now, if one is, for whoever has something for the one that waits for it.
#[derive(Clone, Default)]
pub struct Current(Arc<Mutex<Option<Poker>>>);

impl Current {
    /// It is this one now, or none.
    pub fn set(&self, link: Option<&Link>) {
        *self.0.lock() = link.map(Link::poker);
    }

    /// As [`Poker::poke`].
    pub fn poke(&self) {
        if let Some(poker) = &*self.0.lock() {
            poker.poke();
        }
    }
}

impl Shared {
    fn put(&self, state: &mut State, frame: Vec<u8>) -> Result<(), Closed> {
        if let Some(closed) = &state.closed {
            return Err(closed.clone());
        }
        state.outbox_bytes += frame.len();
        if state.outbox_bytes > OUTBOX_AT_MOST {
            let why = Closed::Lost("the other side does not take what it is told".into());
            state.closed = Some(why.clone());
            state.outbox.clear();
            self.changed.notify_all();
            self.wake();
            return Err(why);
        }
        state.outbox.push_back(frame);
        self.wake();
        Ok(())
    }

    fn is_gone(&self) -> bool {
        let state = self.state.lock();
        state.gone || state.closed.is_some()
    }

    fn wake(&self) {
        // Can only fail when the counter is at its end, and then it is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn close(&self, why: Closed) {
        self.state.lock().closed.get_or_insert(why);
        self.changed.notify_all();
        self.wake();
    }
}

/// The thread of a connection.
struct Pump {
    shared: Arc<Shared>,
    connection: Connection,
    socket: TcpStream,
    frames: Frames,
    buf: Vec<u8>,
    /// What of `buf` is not decrypted: there was no room for more.
    encrypted: Range<usize>,
    /// How it ends, when what came before has been handed over.
    ended: Option<Closed>,
    silence: Duration,
    /// When something came, or nothing was asked for.
    heard: Instant,
    /// When something was sent.
    said: Instant,
    busy_since: Option<Instant>,
}

impl Pump {
    fn run(mut self) {
        let why = match self.pump() {
            Ok(never) => match never {},
            Err(why) => why,
        };
        self.connection.send_close_notify();
        let _ = self.write();
        if why == Closed::Here {
            self.linger();
        }
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        self.shared.close(why);
    }

    /// A connection that is closed while something comes is reset, and the other side may not see what was said last. So
    /// what comes is read until the other side has closed too.
    fn linger(&mut self) {
        if self.shared.state.lock().closing.is_none() || self.socket.shutdown(std::net::Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + LINGER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left)) {
                Ok(0) => return,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            match self.socket.read(&mut self.buf) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => return,
            }
        }
    }

    fn pump(&mut self) -> Result<std::convert::Infallible, Closed> {
        // What came with the handshake.
        let mut all_taken = self.take()?;
        let mut gone = false;
        loop {
            let (reading, deadline) = self.fill()?;
            if reading && !all_taken {
                all_taken = self.take()?;
                continue;
            }
            let now = Instant::now();
            if !reading {
                self.is_heard(now);
            }
            let mut until = self.heard + self.silence;
            // What waits to be sent says as much.
            if !self.connection.wants_write() {
                until = until.min(self.said + ALIVE_EVERY);
            }
            if let Some(deadline) = deadline {
                until = until.min(deadline);
            }
            let mut interest = PollFlags::empty();
            interest.set(PollFlags::IN, reading);
            interest.set(PollFlags::RDHUP, reading || !gone);
            interest.set(PollFlags::OUT, self.connection.wants_write());
            let wait = until.saturating_duration_since(now);
            let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
            let mut fds = [
                PollFd::from_borrowed_fd(self.socket.as_fd(), interest),
                PollFd::from_borrowed_fd(self.shared.wake.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, Some(&wait)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(Closed::Lost(io::Error::from(e).to_string())),
            }
            let (events, woken) = (fds[0].revents(), !fds[1].revents().is_empty());
            if woken {
                let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
            }
            if events.contains(PollFlags::OUT) {
                self.write()?;
            }
            if !reading && events.contains(PollFlags::RDHUP) {
                // Told again and again otherwise, until there is room for what came before.
                gone = true;
                self.shared.state.lock().gone = true;
            }
            if reading && events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP) {
                all_taken = self.read()?;
            } else if events.intersects(PollFlags::HUP | PollFlags::ERR) {
                return Err(Closed::Lost("it was reset".into()));
            }
            let now = Instant::now();
            if now >= self.heard + self.silence {
                return Err(Closed::Silent(self.silence));
            }
            if now >= self.said + ALIVE_EVERY && !self.connection.wants_write() {
                self.encrypt(&ALIVE)?;
            }
        }
    }

    /// Encrypts what is to be sent as long as the one before is gone. Tells whether something may be read, and when
    /// closing has to be done.
    fn fill(&mut self) -> Result<(bool, Option<Instant>), Closed> {
        loop {
            let mut state = self.shared.state.lock();
            if let Some(closed) = &state.closed {
                return Err(closed.clone());
            }
            let reading = state.inbox_bytes <= INBOX;
            let closing = state.closing;
            let frame = if self.connection.wants_write() { None } else { state.outbox.pop_front() };
            let Some(frame) = frame else {
                let done = closing.is_some() && state.outbox.is_empty() && !self.connection.wants_write();
                if done || closing.is_some_and(|deadline| Instant::now() >= deadline) {
                    return Err(Closed::Here);
                }
                if state.outbox.is_empty()
                    && !self.connection.wants_write()
                    && let Some(since) = self.busy_since.take()
                {
                    self.count_busy(since);
                }
                return Ok((reading, closing));
            };
            let was_full = state.outbox_bytes > OUTBOX;
            state.outbox_bytes -= frame.len();
            if was_full && state.outbox_bytes <= OUTBOX {
                self.shared.changed.notify_all();
            }
            drop(state);
            let since = self.busy_since.replace(Instant::now());
            if let Some(since) = since {
                self.count_busy(since);
            }
            self.encrypt(&frame)?;
            self.shared.written.fetch_add(frame.len() as u64, Ordering::Relaxed);
            self.write()?;
        }
    }

    fn is_heard(&mut self, now: Instant) {
        self.heard = now;
        let since = now.saturating_duration_since(self.shared.begun).as_millis();
        self.shared.heard.store(since as u64, Ordering::Relaxed);
    }

    fn count_busy(&self, since: Instant) {
        self.shared.busy.fetch_add(since.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    fn encrypt(&mut self, frame: &[u8]) -> Result<(), Closed> {
        self.said = Instant::now();
        self.connection.writer().write_all(frame).map_err(lost)
    }

    fn write(&mut self) -> Result<(), Closed> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut self.socket) {
                Ok(_) => self.said = Instant::now(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    // What the other side had to say before it closed counts for more.
                    self.read()?;
                    return Err(lost(e));
                }
            }
        }
        Ok(())
    }

    /// Reads what has come. Tells whether all of it is handed over.
    fn read(&mut self) -> Result<bool, Closed> {
        while self.take()? {
            let n = match self.socket.read(&mut self.buf) {
                Ok(0) => return Err(Closed::Ended),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(lost(e)),
            };
            self.is_heard(Instant::now());
            self.encrypted = 0..n;
            if n < READ {
                return self.take();
            }
        }
        Ok(false)
    }

    /// Decrypts what was read and hands it over, as long as there is room. Tells whether that was all.
    fn take(&mut self) -> Result<bool, Closed> {
        while self.take_plaintext()? {
            if let Some(ended) = self.ended.take() {
                return Err(ended);
            }
            if self.encrypted.is_empty() {
                return Ok(true);
            }
            let mut bytes = &self.buf[self.encrypted.clone()];
            let taken = self.connection.read_tls(&mut bytes).map_err(lost)?;
            self.encrypted.start += taken;
            self.ended = match self.connection.process_new_packets() {
                Ok(state) => state.peer_has_closed().then_some(Closed::Ended),
                Err(e) if tls::is_denied(&e) => Some(Closed::Denied),
                Err(e) => Some(Closed::Broken(e.to_string())),
            };
        }
        Ok(false)
    }

    /// Hands over what is decrypted and whole, as long as there is room. Tells whether that was all.
    fn take_plaintext(&mut self) -> Result<bool, Closed> {
        let mut reader = self.connection.reader();
        loop {
            let mut bytes = match io::BufRead::fill_buf(&mut reader) {
                Ok([]) => return Ok(true),
                Ok(bytes) => bytes,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(lost(e)),
            };
            let there = bytes.len();
            let mut room = true;
            while room && !bytes.is_empty() {
                let body = self.frames.next_body(&mut bytes).map_err(|e| Closed::Broken(e.to_string()))?;
                let Some(body) = body.filter(|body| !body.is_empty()) else { continue };
                let mut state = self.shared.state.lock();
                state.inbox_bytes += body.len();
                state.inbox.push_back(body);
                room = state.inbox_bytes <= INBOX;
                if let Some(spare) = state.spare.pop() {
                    self.frames.recycle(spare);
                }
                self.shared.changed.notify_all();
            }
            let taken = there - bytes.len();
            io::BufRead::consume(&mut reader, taken);
            if !room {
                return Ok(false);
            }
        }
    }
}

fn lost(e: io::Error) -> Closed {
    Closed::Lost(e.to_string())
}

#[cfg(test)]
mod tests;
