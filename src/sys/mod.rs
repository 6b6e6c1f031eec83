//! The system calls that rustix does not have. The only `unsafe` of the project.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Which of the two processes this is, after [`fork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The one that was there before.
    Parent,
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
        _ => Ok(Fork::Parent),
    }
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
