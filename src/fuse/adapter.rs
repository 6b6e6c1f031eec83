//! Requests in fuser's types to calls of [`Filesystem`], and back.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use super::lister::Readers;
use super::options::Options;
use super::task::Task;
use crate::entry::{Device, Timestamp};
use crate::fs::{Filesystem, Opened, Reader, Seek, Window};
use crate::index::{Attributes, Ino, Kind};

/// The kernel's unit of `st_blocks`, whatever the block size.
const BLOCK: u64 = 512;

/// What is told as the preferred size of reads, and the unit of `statfs`.
const PAGE: u32 = 4096;

/// The preferred size of reads of a directory: the C library makes its buffer as large, and the kernel asks for as
/// much at once. Large enough for a thousand names with their attributes.
const DIRECTORY: u32 = 256 << 10;

/// Of a handle: the filesystem wants to be told when it is closed. Without, the number of the inode is enough.
const KEPT: u64 = 1;

/// Of a handle: it counts as open, since a user of the mount has it, and not who lists directories ahead.
const COUNTED: u64 = 2;

pub(super) struct Adapter {
    filesystem: Arc<Filesystem<BackingId>>,
    /// Where it is told what will be read soon, and what will not be any more.
    cache: SyncSender<Task>,
    /// Where it is told which directories will be listed soon.
    listing: SyncSender<Window>,
    readers: Arc<Readers>,
    /// Whether the kernel checks permissions, for everybody: then it does ACLs too.
    checked: bool,
    /// Whether the kernel may read blobs by itself.
    passthrough: AtomicBool,
    xattrs: bool,
    /// Whether the kernel leaves opens away when the first was answered with ENOSYS; of directories too.
    no_open: bool,
    no_opendir: bool,
}

impl Adapter {
    pub(super) fn new(
        filesystem: Arc<Filesystem<BackingId>>,
        cache: SyncSender<Task>,
        listing: SyncSender<Window>,
        readers: Arc<Readers>,
        options: Options,
    ) -> Self {
        let Options { allow_other: checked, passthrough, xattrs } = options;
        let passthrough = AtomicBool::new(passthrough);
        let (no_open, no_opendir) = (false, false);
        Adapter { filesystem, cache, listing, readers, checked, passthrough, xattrs, no_open, no_opendir }
    }

    /// Says that a directory is listed: the next ones will be.
    fn listed(&self, request: &Request, ino: INodeNo, offset: u64) {
        if self.readers.is_other(request.pid())
            && let Some(window) = self.filesystem.listed(Ino(ino.0), offset)
            && self.listing.try_send(window).is_err()
        {
            self.filesystem.forgo_listing(&window);
        }
    }

    /// A handle with these properties. It counts as open from now on, where it is a user's.
    fn handle(&self, request: &Request, kept: u64, directory: bool) -> FileHandle {
        if self.readers.is_helper(request.pid()) {
            return FileHandle(kept);
        }
        self.filesystem.opens().opened(directory);
        FileHandle(kept | COUNTED)
    }

    /// Gives a blob to the kernel, where that takes it.
    fn give(&self, reply: &ReplyOpen, blob: &File) -> Option<BackingId> {
        if !self.passthrough.load(Ordering::Relaxed) {
            return None;
        }
        let given = reply.open_backing(blob);
        match given {
            Ok(id) => Some(id),
            Err(e) => {
                // It is root's alone, and not for every filesystem: that will not change.
                if !matches!(e.raw_os_error(), Some(libc::ENOMEM | libc::ENFILE)) {
                    log::info!("the kernel does not read the spool by itself: {e}");
                    self.passthrough.store(false, Ordering::Relaxed);
                }
                None
            }
        }
    }
}

fn errno(e: rustix::io::Errno) -> Errno {
    Errno::from_i32(e.raw_os_error())
}

fn system_time(t: Timestamp) -> SystemTime {
    let nanos = Duration::new(0, t.nanos());
    let whole = Duration::from_secs(t.seconds().unsigned_abs());
    let seconds = if t.seconds() < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    seconds.and_then(|s| s.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// The kernel's `new_encode_dev`: 12 bits of major, 20 of minor.
fn encode_device(device: Device) -> u32 {
    let (major, minor) = (device.major & 0xfff, device.minor & 0xf_ffff);
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn file_attr(a: &Attributes) -> FileAttr {
    let mtime = system_time(a.mtime);
    FileAttr {
        ino: INodeNo(a.ino.0),
        size: a.size,
        blocks: a.stored.div_ceil(BLOCK),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(a.kind),
        perm: a.mode,
        nlink: a.nlink,
        uid: a.uid,
        gid: a.gid,
        rdev: a.device.map_or(0, encode_device),
        blksize: if a.kind == Kind::Directory { DIRECTORY } else { PAGE },
        flags: 0,
    }
}

/// Inode numbers are never reused.
const GENERATION: Generation = Generation(0);

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_MAX_PAGES;
        if self.checked {
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        let capabilities = config.capabilities();
        let passthrough = self.passthrough.get_mut();
        *passthrough &= self.filesystem.is_open_needed() && capabilities.contains(InitFlags::FUSE_PASSTHROUGH);
        if *passthrough {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
            // The spool must not be stacked itself; then this mount can still be the lower layer of an overlay.
            let _ = config.set_max_stack_depth(1);
        }
        self.no_open = capabilities.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = capabilities.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        let _ = config.add_capabilities(wanted & capabilities);
        // The kernel lets so many asynchronous reads wait before it holds back all others.
        let _ = config.set_max_background(u16::MAX);
        let _ = config.set_congestion_threshold(u16::MAX);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        // What changes from here on is not remembered for longer than this.
        let ttl = self.filesystem.ttl();
        match self.filesystem.lookup(Ino(parent.0), name) {
            Ok(a) => reply.entry(&ttl, &file_attr(&a), GENERATION),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let ttl = self.filesystem.ttl();
        match self.filesystem.attributes(Ino(ino.0)) {
            Ok(a) => reply.attr(&ttl, &file_attr(&a)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.readers.read_link(request.pid());
        match self.filesystem.read_link(Ino(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.no_open && !self.filesystem.is_open_needed() {
            self.filesystem.opens().untold(false);
            return reply.error(Errno::ENOSYS);
        }
        // Contents never change: what is in the page cache stays right.
        let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        match self.filesystem.open(Ino(ino.0), |blob| self.give(&reply, blob)) {
            Ok(Opened::Free) => reply.opened(self.handle(request, 0, false), flags),
            Ok(Opened::Kept) => reply.opened(self.handle(request, KEPT, false), flags),
            Ok(Opened::Given(blob)) => {
                reply.opened_passthrough(self.handle(request, KEPT, false), FopenFlags::FOPEN_NOFLUSH, &blob);
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let reply = Box::new(move |answer: Result<&[u8], rustix::io::Errno>| match answer {
            Ok(bytes) => reply.data(bytes),
            Err(e) => reply.error(errno(e)),
        });
        // The flags are the file's, also where the kernel fills its cache through it: for a mapping, or behind a short
        // direct read. It names the owner of locks only where it reads past its cache (fuse_direct_io).
        let direct = flags.0 & libc::O_DIRECT != 0 && owner.is_some();
        let reader = Reader { task: request.pid(), direct };
        if direct {
            return self.filesystem.read(Ino(ino.0), offset, size as usize, reader, reply);
        }
        // Said first, so that nobody brings what is being read; and the reader cannot be far beyond it before it is answered.
        let window = self.filesystem.ahead(Ino(ino.0), offset);
        let span = self.filesystem.behind(Ino(ino.0), offset, size as usize);
        self.filesystem.read(Ino(ino.0), offset, size as usize, reader, reply);
        if let Some(window) = window
            && self.cache.try_send(Task::Bring(window)).is_err()
        {
            self.filesystem.forgo(&window);
        }
        if let Some(span) = span
            && self.cache.try_send(Task::Forget(span)).is_err()
        {
            self.filesystem.remembered(&span);
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // The kernel does not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if fh.0 & KEPT != 0 {
            self.filesystem.close(Ino(ino.0));
        }
        if fh.0 & COUNTED != 0 {
            self.filesystem.opens().closed(false);
        }
        reply.ok();
    }

    fn opendir(&self, request: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if !self.filesystem.is_over() {
            reply.opened(self.handle(request, 0, true), FopenFlags::empty());
        } else if self.no_opendir {
            // From now on the kernel opens directories without asking, with the flags below.
            self.filesystem.opens().untold(true);
            reply.error(Errno::ENOSYS);
        } else {
            let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
            reply.opened(self.handle(request, 0, true), flags);
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        if fh.0 & COUNTED != 0 {
            self.filesystem.opens().closed(true);
        }
        reply.ok();
    }

    fn readdir(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.listed(request, ino, offset);
        let listed = self.filesystem.list(Ino(ino.0), offset, |entry| {
            let a = &entry.attributes;
            reply.add(INodeNo(a.ino.0), entry.cookie, file_type(a.kind), entry.name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.listed(request, ino, offset);
        let ttl = self.filesystem.ttl();
        let listed = self.filesystem.list(Ino(ino.0), offset, |entry| {
            let attr = file_attr(&entry.attributes);
            reply.add(attr.ino, entry.cookie, entry.name, &ttl, &attr, GENERATION)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let (bytes, inodes) = self.filesystem.totals();
        reply.statfs(bytes.div_ceil(u64::from(PAGE)), 0, 0, inodes, 0, PAGE, 255, PAGE);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // The kernel does not ask again. Where it checks permissions, it needs the ACLs.
        if !self.xattrs && !self.checked {
            return reply.error(Errno::ENOSYS);
        }
        answer_xattr(self.filesystem.xattr(Ino(ino.0), name), size, reply);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if !self.xattrs {
            return reply.error(Errno::ENOSYS);
        }
        answer_xattr(self.filesystem.xattr_names(Ino(ino.0)), size, reply);
    }

    fn lseek(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let seek = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        match u64::try_from(offset)
            .map_err(|_| rustix::io::Errno::NXIO)
            .and_then(|at| self.filesystem.seek(Ino(ino.0), at, seek))
        {
            Ok(at) => reply.offset(at as i64),
            Err(e) => reply.error(errno(e)),
        }
    }
}

fn answer_xattr(value: Result<Vec<u8>, rustix::io::Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_as_the_kernel_has_them() {
        assert_eq!(encode_device(Device { major: 1, minor: 3 }), 0x103);
        assert_eq!(encode_device(Device { major: 0xabc, minor: 0xf_1234 }), 0xf12a_bc34);
    }

    #[test]
    fn times_before_1970_and_far_away() {
        let back = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).map_err(|e| e.duration());
        assert_eq!(back(system_time(Timestamp::new(-1, 750_000_000))), Err(Duration::from_millis(250)));
        assert_eq!(back(system_time(Timestamp::new(5, 1))), Ok(Duration::new(5, 1)));
        system_time(Timestamp::new(i64::MAX, 999_999_999));
        system_time(Timestamp::new(i64::MIN, 0));
    }
}
