//! The system calls that rustix does not have. The only `unsafe` of the project.
#![allow(unsafe_code)]

mod mapped;

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

pub use mapped::{Lost, Mapped};
use rustix::process::Pid;

/// Which of the two processes this is, after [`fork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The one that was there before.
    Parent {
        /// The number of the new one.
        child: u32,
    },
    /// The new one.
    Child,
}

/// Makes a copy of this process. Fails where other threads run: the copy would have the locks that they hold,
/// and nobody to release them.
pub fn fork() -> io::Result<Fork> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("{threads} threads are running")));
    }
    // SAFETY: there is one thread, so no lock is held by a thread that the child lacks, and the child may do
    // whatever the parent could.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent { child: child.unsigned_abs() }),
    }
}

/// `listxattrat(2)` of Linux 6.13, of a name in an open directory, without following it. None where the kernel does not
/// have it. The names go to `names`, each with its NUL; returns how many bytes these are.
pub fn listxattrat(dir: BorrowedFd<'_>, name: &CStr, names: &mut [u8]) -> Option<io::Result<usize>> {
    const SYS_LISTXATTRAT: libc::c_long = 465;
    // Some count from elsewhere.
    if !cfg!(any(
        all(target_arch = "x86_64", target_pointer_width = "64"),
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv64",
        target_arch = "powerpc64",
        target_arch = "s390x",
        target_arch = "loongarch64"
    )) {
        return None;
    }
    // SAFETY: the kernel writes to `names` only, and no more than its length; the other pointer is to a string with its
    // NUL. The types are those that the kernel has: int, const char *, unsigned int, char *, size_t.
    let n = unsafe {
        libc::syscall(
            SYS_LISTXATTRAT,
            dir.as_raw_fd(),
            name.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW as libc::c_uint,
            names.as_mut_ptr(),
            names.len(),
        )
    };
    match usize::try_from(n) {
        Ok(n) => Some(Ok(n)),
        Err(_) => match io::Error::last_os_error() {
            // A seccomp filter that does not know of it forbids it.
            e if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => None,
            e => Some(Err(e)),
        },
    }
}

/// Gives memory of this many bytes and more a mapping of its own each time (M_MMAP_THRESHOLD in mallopt(3)): what grows is
/// moved without being copied, and what it leaves goes back to the kernel. By itself glibc raises the limit to 32 MiB.
/// Allocators that have no such limit do as they do.
pub fn map_large_memory(bytes: usize) {
    #[cfg(target_env = "gnu")]
    if let Ok(bytes) = bytes.try_into() {
        // SAFETY: it sets a number in the allocator, which takes its own lock for that.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

/// Closes every descriptor but the three standard ones, whatever they are. To be called in a process that has one thread
/// and uses nothing that was opened before. Linux 5.9.
pub fn leave_descriptors() -> io::Result<()> {
    let (first, last, flags) = (libc::STDERR_FILENO as libc::c_uint + 1, libc::c_uint::MAX, 0 as libc::c_uint);
    // SAFETY: nothing that owns one of them is used, or dropped, from now on: the caller sees to that. The types are those
    // that the kernel has: three times unsigned int.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Descriptors beyond the three standard ones that this process was started with.
#[derive(Debug)]
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Finds them. To be called before anything is opened: what is open is taken to be nobody's here.
    pub fn find() -> io::Result<Self> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fd")? {
            found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
        // The directory itself was among them, and is closed by now.
        let is_open = |fd: &RawFd| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok();
        Ok(Inherited(found.into_iter().filter(|fd| *fd > libc::STDERR_FILENO).filter(is_open).collect()))
    }

    /// Closes them: whoever holds the other end of a pipe, or waits for a lock, must not wait for us.
    pub fn close(self) {
        for fd in self.0 {
            // SAFETY: it was open before this program opened anything, so nothing in it owns it.
            unsafe { libc::close(fd) };
        }
    }
}

/// Who is at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process. None where that is in a PID namespace that cannot be seen from here.
    pub pid: Option<Pid>,
    /// The user that it runs as.
    pub uid: u32,
}

/// SO_PEERCRED in unix(7). rustix takes the process number to be never 0, and the kernel does give 0.
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<Peer> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes a ucred to `found`, no more than `length` bytes, and how many these were to `length`. Both
    // are valid until the call returns, and any bytes make a ucred.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    if length as usize != size_of::<libc::ucred>() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Peer { pid: Pid::from_raw(found.pid), uid: found.uid })
}

/// Lets the kernel take no more than `bytes` of what it cannot send yet (TCP_NOTSENT_LOWAT in tcp(7)): what is given to it
/// later is then not long behind.
pub fn set_unsent_limit(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    // SAFETY: the option takes an int, which is read from where it lies, with its length beside it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const bytes).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
