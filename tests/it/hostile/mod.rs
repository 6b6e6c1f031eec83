//! Archives that nobody packs by accident, given to all that receives: the outcome that is documented for each, no
//! panic, no hang, no memory without end.

mod bombs;
mod faults;
mod fuzz;
mod peers;
mod table;
mod wild;

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use restorefs::cli::Exit;
use restorefs::entry::{Timestamp, escape};
use restorefs::index::{Index, Ino, Kind};
use restorefs::ingest::{self, Job};
use restorefs::monitor::{Monitor, Status};
use restorefs::source::{Source, Spec};
use restorefs::spool::{self, Spool};
use restorefs::stop::Stop;
use restorefs::store::{Read, Store};
use restorefs::tarball;
use tempfile::TempDir;

const BLOCK: usize = 512;
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// A header of a ustar member; `edit` changes it before its checksum is made.
fn header(name: &[u8], typeflag: u8, size: u64, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"07346545000");
    block[156] = typeflag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    edit(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

/// Bytes, filled up to a block.
fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.resize(bytes.len().next_multiple_of(BLOCK), 0);
    out
}

fn member(name: &str, typeflag: u8, contents: &[u8]) -> Vec<u8> {
    [header(name.as_bytes(), typeflag, contents.len() as u64, |_| {}), padded(contents)].concat()
}

fn file(name: &str, contents: &[u8]) -> Vec<u8> {
    member(name, b'0', contents)
}

fn dir(name: &str) -> Vec<u8> {
    member(name, b'5', b"")
}

/// A hard link (`1`) or a symbolic one (`2`).
fn link(name: &str, typeflag: u8, target: &str) -> Vec<u8> {
    header(name.as_bytes(), typeflag, 0, |b| b[157..157 + target.len()].copy_from_slice(target.as_bytes()))
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (rest + 1..).find(|len| *len == rest + len.to_string().len()).unwrap();
    [len.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

/// An extended header (`x`) or a global one (`g`).
fn pax(typeflag: u8, records: &[(&str, &[u8])]) -> Vec<u8> {
    let records: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
    member("pax", typeflag, &records)
}

/// How the bytes come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    File,
    Pipe,
}

pub const BOTH: [From; 2] = [From::File, From::Pipe];

/// What has been received.
pub struct Received {
    pub store: Arc<Store>,
    pub status: Status,
    _dir: TempDir,
}

/// In memory where that can be: many spools come and go.
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

pub fn receive(bytes: &[u8], from: From) -> Received {
    receive_with(bytes, from, |_| {})
}

fn receive_with(bytes: &[u8], from: From, tweak: impl FnOnce(&mut Job)) -> Received {
    let dir = scratch();
    std::thread::scope(|scope| {
        let source = match from {
            From::File => {
                let path = dir.path().join("x.tar");
                fs::write(&path, bytes).unwrap();
                Source::open(&Spec::Path(path)).unwrap()
            }
            From::Pipe => {
                let (read, mut write) = std::io::pipe().unwrap();
                let source = Source::open(&Spec::Path(format!("/proc/self/fd/{}", read.as_raw_fd()).into())).unwrap();
                // Whoever stops before the end closes the pipe.
                scope.spawn(move || write.write_all(bytes).is_ok());
                source
            }
        };
        let monitor = Monitor::new();
        let store = Arc::new(Store::new(Index::new(0, 0, Timestamp::default())));
        if ingest::needs_spool(&source) {
            let config = spool::Config {
                directory: dir.path().into(),
                limit: None,
                keep: false,
                source: String::new(),
                ..spool::Config::default()
            };
            store.set_spool(Spool::create(&config, monitor.clone()).unwrap());
        } else {
            store.set_archive(Arc::new(source.file().unwrap().try_clone().unwrap())).unwrap();
        }
        let stop = Stop::new().unwrap();
        let mut job = Job {
            source,
            store: store.clone(),
            monitor: monitor.clone(),
            stop: stop.clone(),
            options: tarball::Options::default(),
            max_index: u64::MAX,
            resume: None,
        };
        tweak(&mut job);
        ingest::run(job);
        // What reads ahead must not wait for a writer that waits for it.
        stop.stop();
        Received { store, status: monitor.status(), _dir: dir }
    })
}

impl Received {
    pub fn exit(&self) -> u8 {
        Exit::of(&self.status) as u8
    }

    /// Everything, a line each, sorted: `d/`, `f 12`, `l -> target`, with `*2` where it has two names.
    fn tree(&self) -> Vec<String> {
        let index = self.store.index();
        let mut lines = Vec::new();
        let mut todo = vec![(String::new(), Ino::ROOT)];
        while let Some((path, ino)) = todo.pop() {
            for (_, name, child) in index.list(ino, 0) {
                let a = index.attributes(child).unwrap();
                let path = format!("{path}{}", escape(name));
                let mut line = match a.kind {
                    Kind::Directory => format!("{path}/"),
                    Kind::File => format!("{path} {}", a.size),
                    Kind::Symlink => format!("{path} -> {}", escape(index.target(child).unwrap())),
                    kind => format!("{path} {kind:?} {:?}", a.device.map(|d| (d.major, d.minor))),
                };
                if a.kind == Kind::Directory {
                    todo.push((line.clone(), child));
                } else if a.nlink != 1 {
                    line.push_str(&format!(" *{}", a.nlink));
                }
                lines.push(line);
            }
        }
        lines.sort();
        lines
    }

    fn ino(&self, path: &str) -> Ino {
        self.store.index().resolve(path.as_bytes()).unwrap_or_else(|| panic!("{path} is not there"))
    }

    /// All of a file, or none where it is not all there. Never waits, since the stream is over.
    fn contents(&self, path: &str) -> Option<Vec<u8>> {
        let ino = self.ino(path);
        let size = self.store.index().attributes(ino).unwrap().size;
        self.read(ino, 0, size as usize)
    }

    fn read(&self, ino: Ino, offset: u64, len: usize) -> Option<Vec<u8>> {
        let mut buf = Vec::new();
        match self.store.read(ino, offset, len, &mut buf).unwrap() {
            Read::Bytes(n) => Some(buf[..n].to_vec()),
            Read::Lost => None,
            Read::NotYet { .. } => panic!("it waits, and the stream is over"),
        }
    }
}
