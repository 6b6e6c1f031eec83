//! A layer under the spool: a filesystem in memory, served by this process. It keeps apart what has not been flushed, so it
//! can lose power; and it fails the n-th operation of a kind on demand.
//!
//! A loop device over a file in it is a disk that loses power.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use super::random::Random;
use super::run;

/// A disk writes all of a block, or nothing.
const BLOCK: usize = 4096;

const TTL: Duration = Duration::from_secs(1);

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write,
    /// Of a file or a directory. What a failed one should have flushed is lost.
    Sync,
    /// Of a file or a directory.
    Create,
    Open,
    /// By unlink, rmdir or rename.
    Remove,
    Truncate,
}

impl Op {
    pub const ALL: [Op; 6] = [Op::Write, Op::Sync, Op::Create, Op::Open, Op::Remove, Op::Truncate];
}

/// One operation that fails.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub op: Op,
    /// Which one, from 0 on.
    pub nth: u64,
    pub errno: i32,
}

type Block = Arc<[u8; BLOCK]>;

#[derive(Default)]
struct Contents {
    size: u64,
    now: HashMap<u64, Block>,
    flushed: HashMap<u64, Block>,
    /// Blocks in order of their writes.
    unflushed: Vec<(u64, Block)>,
}

impl Contents {
    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let end = self.size.min(at + len as u64);
        let mut out = Vec::with_capacity(len);
        while at + (out.len() as u64) < end {
            let at = at + out.len() as u64;
            let within = (at % BLOCK as u64) as usize;
            let take = (BLOCK - within).min((end - at) as usize);
            match self.now.get(&(at / BLOCK as u64)) {
                Some(block) => out.extend_from_slice(&block[within..within + take]),
                None => out.resize(out.len() + take, 0),
            }
        }
        out
    }

    fn write(&mut self, mut at: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let (number, within) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let (piece, rest) = data.split_at(data.len().min(BLOCK - within));
            let mut block = self.now.get(&number).map_or([0; BLOCK], |block| **block);
            block[within..within + piece.len()].copy_from_slice(piece);
            let block = Arc::new(block);
            self.unflushed.push((number, block.clone()));
            self.now.insert(number, block);
            at += piece.len() as u64;
            data = rest;
        }
        self.size = self.size.max(at);
    }

    fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.size = size.next_multiple_of(BLOCK as u64);
            let tail = self.size - size;
            if tail > 0 && self.now.contains_key(&(size / BLOCK as u64)) {
                self.write(size, &vec![0; tail as usize]);
            }
            let kept = size.div_ceil(BLOCK as u64);
            self.now.retain(|number, _| *number < kept);
            self.flushed.retain(|number, _| *number < kept);
            self.unflushed.retain(|(number, _)| *number < kept);
        }
        self.size = size;
    }

    fn flush(&mut self) {
        self.flushed.extend(self.unflushed.drain(..));
    }

    fn lose(&mut self) {
        self.unflushed.clear();
        self.now = self.flushed.clone();
    }
}

enum Node {
    Directory(BTreeMap<OsString, u64>),
    File(Contents),
}

struct State {
    /// By inode number, which is one more.
    nodes: Vec<Node>,
    fault: Option<Fault>,
    counts: [u64; 6],
}

impl State {
    /// Counts an operation. The error with which it is to fail, if so.
    fn fails(&mut self, op: Op) -> Option<Errno> {
        let count = &mut self.counts[op as usize];
        *count += 1;
        let fault = self.fault.filter(|fault| fault.op == op && fault.nth + 1 == *count)?;
        Some(Errno::from_i32(fault.errno))
    }

    fn directory(&mut self, ino: INodeNo) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match self.nodes.get_mut(ino.0 as usize - 1) {
            Some(Node::Directory(names)) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn file(&mut self, ino: INodeNo) -> Result<&mut Contents, Errno> {
        match self.nodes.get_mut(ino.0 as usize - 1) {
            Some(Node::File(contents)) => Ok(contents),
            _ => Err(Errno::EINVAL),
        }
    }

    fn add(&mut self, parent: INodeNo, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        let ino = self.nodes.len() as u64 + 1;
        self.directory(parent)?.insert(name.to_owned(), ino);
        self.nodes.push(node);
        Ok(self.attributes(INodeNo(ino)))
    }

    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, size, blocks) = match &self.nodes[ino.0 as usize - 1] {
            Node::Directory(_) => (FileType::Directory, 0o700, 0, 0),
            Node::File(file) => (FileType::RegularFile, 0o600, file.size, file.now.len() as u64 * 8),
        };
        let time = UNIX_EPOCH;
        let (nlink, uid, gid, rdev, flags, blksize) = (1, 0, 0, 0, 0, BLOCK as u32);
        FileAttr {
            ino,
            size,
            blocks,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            flags,
            blksize,
        }
    }
}

struct Server(Arc<Mutex<State>>);

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = self.0.lock();
        match state.directory(parent).map(|names| names.get(name).copied()) {
            Ok(Some(ino)) => reply.entry(&TTL, &state.attributes(INodeNo(ino)), Generation(0)),
            Ok(None) => reply.error(Errno::ENOENT),
            Err(e) => reply.error(e),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.0.lock().attributes(ino));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.0.lock();
        if let Some(size) = size {
            if let Some(e) = state.fails(Op::Truncate) {
                return reply.error(e);
            }
            match state.file(ino) {
                Ok(file) => file.truncate(size),
                Err(e) => return reply.error(e),
            }
        }
        reply.attr(&TTL, &state.attributes(ino));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let mut state = self.0.lock();
        let made = match state.fails(Op::Create) {
            Some(e) => Err(e),
            None => state.add(parent, name, Node::Directory(BTreeMap::new())),
        };
        match made {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let mut state = self.0.lock();
        let made = match state.fails(Op::Create) {
            Some(e) => Err(e),
            None => state.add(parent, name, Node::File(Contents::default())),
        };
        match made {
            Ok(attributes) => reply.created(&TTL, &attributes, Generation(0), FileHandle(0), FopenFlags::empty()),
            Err(e) => reply.error(e),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.lock().fails(Op::Open) {
            Some(e) => reply.error(e),
            None => reply.opened(FileHandle(0), FopenFlags::empty()),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut state = self.0.lock();
        match state.fails(Op::Remove).map_or_else(|| state.directory(parent), Err) {
            Ok(names) => {
                names.remove(name);
                reply.ok();
            }
            Err(e) => reply.error(e),
        }
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let child = self.0.lock().directory(parent).ok().and_then(|names| names.get(name).copied());
        match child.map(|ino| self.0.lock().directory(INodeNo(ino)).map(|names| names.is_empty())) {
            Some(Ok(true)) => self.unlink(request, parent, name, reply),
            Some(Ok(false)) => reply.error(Errno::ENOTEMPTY),
            Some(Err(e)) => reply.error(e),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.0.lock();
        if let Some(e) = state.fails(Op::Remove) {
            return reply.error(e);
        }
        let Some(ino) = state.directory(parent).ok().and_then(|names| names.remove(name)) else {
            return reply.error(Errno::ENOENT);
        };
        match state.directory(to) {
            Ok(names) => {
                names.insert(new.to_owned(), ino);
                reply.ok();
            }
            Err(e) => reply.error(e),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        at: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.lock().file(ino) {
            Ok(file) => reply.data(&file.read(at, len as usize)),
            Err(e) => reply.error(e),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.0.lock();
        let fails = state.fails(Op::Write);
        match (state.file(ino), fails) {
            (Ok(file), None) => {
                file.write(at, data);
                reply.written(data.len() as u32);
            }
            // A part of it may be there.
            (Ok(file), Some(e)) => {
                file.write(at, &data[..data.len() / 2]);
                reply.error(e);
            }
            (Err(e), _) => reply.error(e),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.0.lock();
        let fails = state.fails(Op::Sync);
        match (state.file(ino), fails) {
            (Ok(file), None) => {
                file.flush();
                reply.ok();
            }
            (Ok(file), Some(e)) => {
                file.lose();
                reply.error(e);
            }
            (Err(e), _) => reply.error(e),
        }
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.0.lock().fails(Op::Sync) {
            Some(e) => reply.error(e),
            None => reply.ok(),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut state = self.0.lock();
        let names = match state.directory(ino) {
            Ok(names) => names.clone(),
            Err(e) => return reply.error(e),
        };
        for (n, (name, ino)) in (1..).zip(names).skip(offset as usize) {
            let ino = INodeNo(ino);
            if reply.add(ino, n, state.attributes(ino).kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 20, 1 << 20, 1 << 20, 1 << 20, 1 << 20, BLOCK as u32, 255, BLOCK as u32);
    }
}

/// It is mounted as long as this lives.
pub struct Layer {
    point: PathBuf,
    state: Arc<Mutex<State>>,
    _session: BackgroundSession,
    _dir: TempDir,
}

impl Layer {
    pub fn new() -> Layer {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().canonicalize().unwrap().join("layer");
        std::fs::create_dir(&point).unwrap();
        let nodes = vec![Node::Directory(BTreeMap::new())];
        let state = Arc::new(Mutex::new(State { nodes, fault: None, counts: [0; 6] }));
        let session = fuser::spawn_mount(Server(state.clone()), &point, &Config::default()).unwrap();
        Layer { point, state, _session: session, _dir: dir }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Counts operations from now on, and fails one of them.
    pub fn arm(&self, fault: Option<Fault>) {
        let mut state = self.state.lock();
        state.fault = fault;
        state.counts = [0; 6];
    }

    /// Fails nothing any more.
    pub fn disarm(&self) {
        self.state.lock().fault = None;
    }

    /// How many operations of a kind have been counted.
    pub fn count(&self, op: Op) -> u64 {
        self.state.lock().counts[op as usize]
    }

    /// What the file `name` would be after a power failure at this moment, in a new file `out`: what was flushed, and of
    /// every 100 blocks that were not, about `percent`.
    pub fn lose_power(&self, name: &str, random: &mut Random, percent: usize, out: &Path) {
        let (size, mut blocks, unflushed) = {
            let mut state = self.state.lock();
            let ino = INodeNo(state.directory(INodeNo(1)).unwrap()[OsStr::new(name)]);
            let file = state.file(ino).unwrap();
            (file.size, file.flushed.clone(), file.unflushed.clone())
        };
        blocks.extend(unflushed.into_iter().filter(|_| random.chance(percent)));
        let out = File::create(out).unwrap();
        out.set_len(size).unwrap();
        for (number, block) in blocks {
            out.write_all_at(&*block, number * BLOCK as u64).unwrap();
        }
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let _ = unmount(&self.point, UnmountFlags::DETACH);
    }
}

/// A loop device over a file.
pub struct Loop(pub PathBuf);

impl Loop {
    /// With blocks that are written as a whole. Direct or not: by the page cache of what the file lies on.
    pub fn new(file: &Path, direct: bool) -> Loop {
        let direct = format!("--direct-io={}", if direct { "on" } else { "off" });
        let output = run(Command::new("losetup").args(["-f", "--show", "-b", "4096", &direct]).arg(file));
        Loop(String::from_utf8(output.stdout).unwrap().trim().into())
    }

    /// Why there can be none, if so.
    pub fn unavailable() -> Option<String> {
        let output = Command::new("losetup").arg("-f").output();
        match output {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(e) => Some(e.to_string()),
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}
