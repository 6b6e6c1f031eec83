//! The system calls that rustix does not have. The only `unsafe` of the project.
#![allow(unsafe_code)]

use std::io;

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
