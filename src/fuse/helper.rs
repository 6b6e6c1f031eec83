//! The process that lists directories through a mount of ours, on behalf of its daemon.
//!
//! A daemon must not wait for its own mount: a thread of it that did could not be stopped, frozen or made an end of
//! (the kernel waits for every thread before it dumps core, or closes the device that would end the wait). Another process
//! waits as any reader does, and ends with the daemon. It lists through a copy of the mount that is attached nowhere,
//! and that it has only for one window: the mount point is not busy, and what is unmounted ends when the window does.
//! Only root may make such a copy.
//!
//! Links are never followed: whatever the archive names, nothing outside of it is looked at.
//!
//! One packet is one message; the answer to each but the last of a window is an errno, 0 where all is well.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::index::Ino;
use crate::sys::{Fork, fork, leave_descriptors};

/// So much of a directory is asked for at once: a thousand entries with their attributes.
const BUFFER: usize = 256 << 10;

/// No packet is longer: the longest path that the kernel takes, and what is before it.
const PACKET: usize = 4096 + 16;

/// Begins a window: the device number of the mount, whether links are to be read too, the mount point.
const BEGIN: u8 = b'b';

/// A directory, by its path below the root.
const LIST: u8 = b'l';

/// Ends a window.
const END: u8 = b'e';

/// The process, to whoever has it list.
#[derive(Debug)]
pub struct Helper {
    socket: OwnedFd,
    pid: u32,
    /// Itself, also where its number is somebody else's by now.
    process: OwnedFd,
}

/// Why something is not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unlisted {
    /// The process does not answer, and never will.
    #[error("who lists them is gone")]
    Gone,
    /// It could not.
    #[error("{0}")]
    Failed(Errno),
}

impl Helper {
    /// Starts it. Only while this process has one thread; what is open stays open here only.
    pub fn start() -> io::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(Errno::PERM.into());
        }
        let (ours, its) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        match fork()? {
            Fork::Parent { child } => {
                let pid = Pid::from_raw(child.cast_signed()).ok_or(Errno::SRCH)?;
                // Without this the process ends, since nobody has the other end of its socket.
                let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
                Ok(Helper { socket: ours, pid: child, process })
            }
            // Nothing that this process has was made for it, so nothing is put away.
            Fork::Child => std::process::exit(i32::from(become_helper(&its).and_then(|()| serve()).is_err())),
        }
    }

    /// Its number, as the kernel tells it with requests.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Begins a window on what is mounted there and has this device number.
    pub(super) fn begin(&self, mountpoint: &Path, device: (u32, u32), links: bool) -> Result<(), Unlisted> {
        let (major, minor) = (device.0.to_le_bytes(), device.1.to_le_bytes());
        self.ask(&[&[BEGIN], &major[..], &minor, &[links.into()], mountpoint.as_os_str().as_bytes()].concat())
    }

    /// Lists a directory.
    pub(super) fn list(&self, path: &Path) -> Result<(), Unlisted> {
        self.ask(&[&[LIST], path.as_os_str().as_bytes()].concat())
    }

    /// Ends a window.
    pub(super) fn end(&self) -> Result<(), Unlisted> {
        send(&self.socket, &[END]).map_err(|_| Unlisted::Gone)
    }

    fn ask(&self, packet: &[u8]) -> Result<(), Unlisted> {
        if packet.len() > PACKET {
            return Err(Unlisted::Failed(Errno::NAMETOOLONG));
        }
        send(&self.socket, packet).map_err(|_| Unlisted::Gone)?;
        let mut answer = [0; 4];
        match receive(&self.socket, &mut answer) {
            Ok(4) => match i32::from_le_bytes(answer) {
                0 => Ok(()),
                errno => Err(Unlisted::Failed(Errno::from_raw_os_error(errno))),
            },
            _ => Err(Unlisted::Gone),
        }
    }

    /// Ends it, whatever it does: the copy of the mount that it may have keeps nothing up any more. Whoever waits for an
    /// answer is let go.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.process, Signal::KILL);
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// The same, and waits for it: where nobody else waits for orphans, it would stay behind as one.
    pub(super) fn reap(&self) {
        self.kill();
        let _ = rustix::process::waitid(WaitId::PidFd(self.process.as_fd()), WaitIdOptions::EXITED);
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.reap();
    }
}

fn send(socket: impl AsFd, packet: &[u8]) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| rustix::net::send(&socket, packet, SendFlags::NOSIGNAL)).map(drop)
}

fn receive(socket: impl AsFd, packet: &mut [u8]) -> Result<usize, Errno> {
    let (length, _) = rustix::io::retry_on_intr(|| rustix::net::recv(&socket, &mut *packet, RecvFlags::empty()))?;
    Ok(length)
}

/// Lets go of everything but the socket, which is standard input from now on: the source, the terminal, locks of scripts.
fn become_helper(socket: &OwnedFd) -> io::Result<()> {
    rustix::thread::set_name(c"restorefs-list")?;
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    rustix::stdio::dup2_stdin(socket)?;
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    leave_descriptors()
}

/// Does what it is told, until nobody can tell any more.
fn serve() -> io::Result<()> {
    let socket = rustix::stdio::stdin();
    let mut packet = [0; PACKET];
    let mut buffer = Box::new_uninit_slice(BUFFER);
    let mut window = None;
    loop {
        let length = receive(socket, &mut packet)?;
        let answer = match &packet[..length] {
            [] => return Ok(()),
            [BEGIN, a, b, c, d, e, f, g, h, links, mountpoint @ ..] => {
                let device = (u32::from_le_bytes([*a, *b, *c, *d]), u32::from_le_bytes([*e, *f, *g, *h]));
                copy_of_mount(Path::new(OsStr::from_bytes(mountpoint)), device)
                    .map(|mount| window = Some((mount, *links != 0)))
            }
            [LIST, path @ ..] => match &window {
                Some((mount, links)) => list(mount, Path::new(OsStr::from_bytes(path)), *links, &mut buffer),
                None => Err(Errno::INVAL),
            },
            _ => {
                window = None;
                continue;
            }
        };
        send(socket, &answer.err().map_or(0, Errno::raw_os_error).to_le_bytes())?;
    }
}

/// A copy of the mount, if that is the one with this device number, and not only of a directory in it.
fn copy_of_mount(mountpoint: &Path, device: (u32, u32)) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(CWD, mountpoint, flags)?;
    let found = rustix::fs::statx(&mount, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
    let is_it = (found.stx_dev_major, found.stx_dev_minor) == device && found.stx_ino == Ino::ROOT.0;
    if is_it { Ok(mount) } else { Err(Errno::XDEV) }
}

/// Lists a directory, and reads the links in it. The kernel keeps what it is told.
fn list(mount: &OwnedFd, path: &Path, links: bool, buffer: &mut [MaybeUninit<u8>]) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let directory = rustix::fs::openat2(mount, path, flags, Mode::empty(), below)?;
    // All of a target is kept, however little is asked for.
    let mut target = [MaybeUninit::uninit(); 64];
    let mut entries = RawDir::new(&directory, buffer);
    while let Some(entry) = entries.next().transpose()? {
        if links && entry.file_type() == FileType::Symlink {
            rustix::fs::readlinkat_raw(&directory, entry.file_name(), &mut target)?;
        }
    }
    Ok(())
}
