//! Something between two ends of TCP connections: cuts, holds, crumbles and delays what passes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// What becomes of one connection.
#[derive(Clone, Debug, Default)]
pub struct Way {
    /// After so many bytes from the one who connects it is gone, in both directions.
    pub cut: Option<usize>,
    /// After so many bytes nothing passes, in both directions, until it is [released](Proxy::release).
    pub hold: Option<usize>,
    /// So many bytes pass at a time; none: as they come.
    pub piece: Option<usize>,
    /// What passes is under way for a time, in either direction.
    pub delay: Option<Delay>,
}

/// How long each piece is under way. The order stays.
#[derive(Clone, Copy, Debug)]
pub struct Delay {
    pub least: Duration,
    /// So much more at most, by numbers that look random and are the same for the same seed.
    pub jitter: Duration,
    pub seed: u64,
}

impl Delay {
    fn times(self) -> impl Iterator<Item = Duration> {
        let next = super::sequence(self.seed);
        std::iter::repeat_with(move || self.least + self.jitter.mul_f64((next() % 1000) as f64 / 1000.0))
    }
}

/// So many pieces are under way at a time.
const UNDER_WAY: usize = 64;

/// Listens for as long as the process lives; forwards to where it was told last.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    target: Mutex<SocketAddr>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Default)]
struct Gate {
    connections: usize,
    /// Bytes that came from those who connect, over all connections.
    passed: usize,
    held: usize,
    released: bool,
    /// What the first one said, for whoever wants to say it again.
    recorded: Vec<u8>,
    /// Both ends of all connections.
    streams: Vec<TcpStream>,
}

impl Proxy {
    /// `way` says what becomes of each connection, counted from 0.
    pub fn start(target: SocketAddr, way: impl Fn(usize) -> Way + Send + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { target: Mutex::new(target), gate: Mutex::default(), changed: Condvar::new() });
        std::thread::spawn({
            let state = state.clone();
            move || {
                for (n, client) in listener.incoming().enumerate() {
                    let client = client.unwrap();
                    state.gate.lock().connections += 1;
                    let Ok(server) = TcpStream::connect(*state.target.lock()) else { continue };
                    state.gate.lock().streams.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                    let (way, back) = (way(n), (server.try_clone().unwrap(), client.try_clone().unwrap()));
                    let (there, here) = (state.clone(), state.clone());
                    let other = way.clone();
                    let (server, to_client) = (delayed(server, way.delay), delayed(back.1, way.delay));
                    std::thread::spawn(move || forward(client, server, &way, Some(n), &there));
                    std::thread::spawn(move || forward(back.0, to_client, &other, None, &here));
                }
            }
        });
        Proxy { address, state }
    }

    /// Where further connections lead.
    pub fn lead_to(&self, target: SocketAddr) {
        *self.state.target.lock() = target;
    }

    pub fn connections(&self) -> usize {
        self.state.gate.lock().connections
    }

    /// Bytes that came from those who connect.
    pub fn passed(&self) -> usize {
        self.state.gate.lock().passed
    }

    /// What the first who connected said.
    pub fn recorded(&self) -> Vec<u8> {
        self.state.gate.lock().recorded.clone()
    }

    /// Waits until a connection is held.
    pub fn wait_held(&self) {
        let mut gate = self.state.gate.lock();
        while gate.held == 0 {
            assert!(!self.state.changed.wait_for(&mut gate, super::HANGS).timed_out(), "nothing came to be held");
        }
    }

    /// Nothing is held any more, now and later.
    pub fn release(&self) {
        self.state.gate.lock().released = true;
        self.state.changed.notify_all();
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        for stream in self.state.gate.lock().streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.release();
        self.cut();
    }
}

/// Where what passes goes to: at once, or by a thread that hands on each piece when its time has come.
enum End {
    AtOnce(TcpStream),
    Later(SyncSender<(Instant, Vec<u8>)>, Box<dyn Iterator<Item = Duration> + Send>),
}

fn delayed(to: TcpStream, delay: Option<Delay>) -> End {
    let Some(delay) = delay else { return End::AtOnce(to) };
    let (send, pieces) = sync_channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    std::thread::spawn(move || {
        let mut to = to;
        for (due, piece) in pieces {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    End::Later(send, Box::new(delay.times()))
}

impl End {
    /// False: nobody takes it any more.
    fn pass(&mut self, bytes: &[u8]) -> bool {
        match self {
            End::AtOnce(to) => to.write_all(bytes).is_ok(),
            End::Later(pieces, times) => {
                let due = Instant::now() + times.next().expect("there is always another one");
                pieces.send((due, bytes.to_vec())).is_ok()
            }
        }
    }
}

/// `number`: from the one who connects; none: the way back.
fn forward(mut from: TcpStream, mut to: End, way: &Way, number: Option<usize>, state: &State) {
    let mut buf = vec![0; 64 << 10];
    let mut passed = 0;
    loop {
        let mut room = way.piece.unwrap_or(buf.len());
        if number.is_some() {
            for bound in [way.cut, way.hold.filter(|&hold| passed < hold)].into_iter().flatten() {
                room = room.min(bound - passed);
            }
        }
        if room == 0 {
            break;
        }
        let n = match from.read(&mut buf[..room]) {
            Ok(n @ 1..) => n,
            _ => break,
        };
        let mut gate = state.gate.lock();
        if number.is_some() {
            gate.passed += n;
            if number == Some(0) {
                gate.recorded.extend_from_slice(&buf[..n]);
            }
        }
        drop(gate);
        if !to.pass(&buf[..n]) {
            break;
        }
        passed += n;
        if number.is_some() && way.hold == Some(passed) {
            let mut gate = state.gate.lock();
            gate.held += 1;
            state.changed.notify_all();
            while !gate.released {
                state.changed.wait(&mut gate);
            }
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    // One that is delayed is closed behind what is under way.
    if let End::AtOnce(to) = to {
        let _ = to.shutdown(Shutdown::Both);
    }
}
