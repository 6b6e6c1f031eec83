//! Something between two ends of TCP connections: cuts, holds and crumbles what passes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

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
}

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
                    std::thread::spawn(move || forward(client, server, &way, Some(n), &there));
                    std::thread::spawn(move || forward(back.0, back.1, &other, None, &here));
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

/// `number`: from the one who connects; none: the way back.
fn forward(mut from: TcpStream, mut to: TcpStream, way: &Way, number: Option<usize>, state: &State) {
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
        if to.write_all(&buf[..n]).is_err() {
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
    let _ = to.shutdown(Shutdown::Both);
}
