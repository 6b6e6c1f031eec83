//! Where bytes come from: standard input, a file, a FIFO, one TCP connection.
//!
//! A read gives what is there, waits only when nothing is, and ends when [`Stop`] is said. What the bytes
//! mean is not known here.

mod tcp;
mod wait;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags};

use crate::stop::Stop;
use tcp::Listener;
pub use tcp::{OPENING, Opening};
pub use wait::ReadError;
use wait::wait_readable;

/// What a pipe should hold: the most that an ordinary user may ask for.
const PIPE: usize = 1 << 20;

/// What to read from.
#[derive(Clone, Debug)]
pub enum Spec {
    /// Standard input.
    Stdin,
    /// A file, FIFO or device.
    Path(PathBuf),
    /// The first connection to this address that may be the sender of an archive.
    Listen {
        /// Where to listen.
        address: SocketAddr,
        /// Tells by the first bytes of a connection, at most [`OPENING`] of them.
        opening: fn(&[u8]) -> Opening,
    },
}

/// Why a source cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened.
    #[error("cannot open '{path}': {cause}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It is a directory.
    #[error("'{0}' is a directory; what is mounted is a tar archive: a file, a FIFO, or '-' for standard input")]
    Directory(PathBuf),
    /// Standard input is a terminal.
    #[error("standard input is a terminal; pipe an archive into it: tar cf - DIR | restorefs mount - MOUNTPOINT")]
    Terminal,
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        cause: io::Error,
    },
    /// Anything else.
    #[error("cannot read the source: {0}")]
    Other(#[from] io::Error),
}

/// An open source.
#[derive(Debug)]
pub struct Source {
    input: Input,
    name: String,
    /// Length, where it is a regular file.
    size: Option<u64>,
    farewell: Farewell,
}

/// Tells a TCP sender that the archive is complete, by closing our direction of the connection: a netcat that would
/// wait for ever after its own end of input then exits. Other sources need no telling.
#[derive(Clone, Debug, Default)]
pub struct Farewell(Arc<OnceLock<OwnedFd>>);

impl Farewell {
    /// Tells it. What the sender still has to send is received all the same.
    pub fn say(&self) {
        if let Some(connection) = self.0.get() {
            // A sender that is gone already need not be told.
            let _ = rustix::net::shutdown(connection, rustix::net::Shutdown::Write);
        }
    }
}

#[derive(Debug)]
enum Input {
    /// Something that can be polled.
    Stream(OwnedFd),
    /// A regular file: never waits.
    File(File),
    /// Nobody has connected yet.
    Listening(Listener),
    /// The rest is refused while this one is served.
    Connected(OwnedFd, #[allow(dead_code, reason = "refuses others until it is dropped")] tcp::Refuser),
}

impl Source {
    /// Opens it, without waiting for a writer or a sender.
    pub fn open(spec: &Spec) -> Result<Self, OpenError> {
        match spec {
            Spec::Stdin => {
                let fd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(io::Error::from)?;
                if rustix::termios::isatty(&fd) {
                    return Err(OpenError::Terminal);
                }
                Self::from_fd(fd, "standard input".into(), Path::new("-"))
            }
            Spec::Path(path) => {
                // Without O_NONBLOCK, opening a FIFO waits for its writer.
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
                let fd = rustix::fs::open(path, flags, Mode::empty())
                    .map_err(|e| OpenError::Open { path: path.clone(), cause: e.into() })?;
                Self::from_fd(fd, path.display().to_string(), path)
            }
            Spec::Listen { address, opening } => {
                let listener = Listener::bind(*address, *opening)
                    .map_err(|cause| OpenError::Listen { address: *address, cause })?;
                let name = format!("tcp {}", listener.address());
                Ok(Source { input: Input::Listening(listener), name, size: None, farewell: Farewell::default() })
            }
        }
    }

    fn from_fd(fd: OwnedFd, name: String, path: &Path) -> Result<Self, OpenError> {
        let file = File::from(fd);
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(OpenError::Directory(path.into()));
        }
        // Standard input may stand in the middle of a file; only from its beginning it is mounted in place.
        if metadata.is_file() && rustix::fs::tell(&file).is_ok_and(|at| at == 0) {
            return Ok(Source {
                input: Input::File(file),
                name,
                size: Some(metadata.len()),
                farewell: Farewell::default(),
            });
        }
        widen(&file);
        Ok(Source { input: Input::Stream(file.into()), name, size: None, farewell: Farewell::default() })
    }

    /// What it is called, for status.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its length, where that is known.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The file, where it can be read anywhere at any time.
    pub fn file(&self) -> Option<&File> {
        match &self.input {
            Input::File(file) => Some(file),
            _ => None,
        }
    }

    /// The address that is listened on.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.input {
            Input::Listening(listener) => Some(listener.address()),
            _ => None,
        }
    }

    /// What to say when the archive is complete.
    pub fn farewell(&self) -> Farewell {
        self.farewell.clone()
    }

    /// Reads what is there, at least one byte unless it is over; waits when nothing is.
    pub fn read(&mut self, buf: &mut [u8], stop: &Stop) -> Result<usize, ReadError> {
        if let Input::Listening(listener) = &self.input {
            let (connection, refuser) = listener.accept(stop)?;
            if let Ok(second) = connection.try_clone() {
                let _ = self.farewell.0.set(second);
            }
            self.input = Input::Connected(connection, refuser);
        }
        let fd: BorrowedFd<'_> = match &self.input {
            Input::File(file) => {
                if stop.is_stopped() {
                    return Err(ReadError::Stopped);
                }
                file.as_fd()
            }
            Input::Stream(fd) | Input::Connected(fd, _) => fd.as_fd(),
            Input::Listening(_) => return Ok(0),
        };
        loop {
            if !matches!(self.input, Input::File(_)) {
                wait_readable(fd, stop)?;
            }
            match rustix::io::read(fd, &mut *buf) {
                Ok(n) => return Ok(n),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(e) => return Err(ReadError::Io(e.into())),
            }
        }
    }
}

/// Makes a pipe hold more, so that more is moved at once, with fewer changes between its ends. What is no pipe has no
/// such size, and a system may allow less.
pub fn widen(pipe: impl AsFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_fifo_waits_for_its_writer_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        let mut source = Source::open(&Spec::Path(path.clone())).unwrap();
        let writer = std::thread::spawn(move || {
            let mut fifo = File::options().write(true).open(path).unwrap();
            fifo.write_all(b"bytes").unwrap();
        });
        let stop = Stop::new().unwrap();
        let mut got = Vec::new();
        let mut buf = [0; 3];
        loop {
            match source.read(&mut buf, &stop).unwrap() {
                0 => break,
                n => got.extend_from_slice(&buf[..n]),
            }
        }
        writer.join().unwrap();
        assert_eq!(got, b"bytes");
    }

    fn listen() -> Source {
        let opening: fn(&[u8]) -> Opening = |head| match head[0] {
            b'x' => Opening::Archive,
            b'.' => Opening::Short(None),
            _ => Opening::Other("it is something else".into()),
        };
        Source::open(&Spec::Listen { address: "127.0.0.1:0".parse().unwrap(), opening }).unwrap()
    }

    #[test]
    fn what_is_no_archive_does_not_keep_the_sender_out() {
        let mut source = listen();
        let address = source.local_address().unwrap();
        let reader = std::thread::spawn(move || {
            let mut buf = [0; 8];
            let n = source.read(&mut buf, &Stop::new().unwrap()).unwrap();
            (buf[..n].to_vec(), source)
        });
        let mut buf = [0; 8];
        let mut undecided = std::net::TcpStream::connect(address).unwrap();
        undecided.write_all(b".").unwrap();
        // Something else is refused at once, and what ends before it can be told.
        for words in [&b"GET / HTTP/1.0\r\n\r\n"[..], b"..."] {
            let mut other = std::net::TcpStream::connect(address).unwrap();
            other.write_all(words).unwrap();
            if words[0] == b'.' {
                other.shutdown(std::net::Shutdown::Write).unwrap();
            }
            assert!(matches!(io::Read::read(&mut other, &mut buf), Ok(0) | Err(_)));
        }
        let mut sender = std::net::TcpStream::connect(address).unwrap();
        sender.write_all(b"xyz").unwrap();
        let (read, source) = reader.join().unwrap();
        assert_eq!(read, b"xyz");
        assert!(matches!(io::Read::read(&mut undecided, &mut buf), Ok(0) | Err(_)));
        drop(source);
    }

    #[test]
    fn stop_ends_a_wait_and_a_second_connection_is_refused() {
        let mut source = listen();
        let address = source.local_address().unwrap();
        let stop = Stop::new().unwrap();
        let mut first = std::net::TcpStream::connect(address).unwrap();
        first.write_all(b"x").unwrap();
        let mut buf = [0; 8];
        assert_eq!(source.read(&mut buf, &stop).unwrap(), 1);
        let mut second = std::net::TcpStream::connect(address).unwrap();
        // Closed or reset, but never served.
        assert!(matches!(io::Read::read(&mut second, &mut buf), Ok(0) | Err(_)));
        let stopper = stop.clone();
        let thread = std::thread::spawn(move || stopper.stop());
        assert!(matches!(source.read(&mut buf, &stop), Err(ReadError::Stopped)));
        thread.join().unwrap();
    }

    #[test]
    fn the_first_connection_that_sends_something_is_the_sender() {
        let mut source = listen();
        let address = source.local_address().unwrap();
        let reader = std::thread::spawn(move || (source.read(&mut [0; 8], &Stop::new().unwrap()).unwrap(), source));
        let connect = || std::net::TcpStream::connect(address).unwrap();
        // Closed without a byte, reset, and open without a byte: more of these than are heard at once.
        for _ in 0..10 {
            drop(connect());
            let reset = connect();
            rustix::net::sockopt::set_socket_linger(&reset, Some(std::time::Duration::ZERO)).unwrap();
        }
        let mut silent: Vec<_> = (0..100).map(|_| connect()).collect();
        let mut sender = connect();
        silent.extend((0..10).map(|_| connect()));
        sender.write_all(b"x").unwrap();
        let (read, source) = reader.join().unwrap();
        assert_eq!(read, 1);
        let mut buf = [0; 8];
        for mut other in silent {
            assert!(matches!(io::Read::read(&mut other, &mut buf), Ok(0) | Err(_)));
        }
        drop(source);
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let error = Source::open(&Spec::Path("/nowhere/x.tar".into())).unwrap_err().to_string();
        assert!(error.contains("'/nowhere/x.tar'") && error.contains("No such file"), "{error}");
        assert!(matches!(Source::open(&Spec::Path("/".into())), Err(OpenError::Directory(_))));
    }
}
