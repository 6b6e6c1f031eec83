//! A part of a file in memory, out of which bytes are copied. A file that becomes shorter meanwhile, or whose disk
//! fails, is an error of the copy, as it would be of a read; the SIGBUS that the kernel sends then ends nothing.
//! (systemd's sigbus.c does it the same way.)

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence};

/// A read-only part of a file.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

/// The bytes are not there any more, or cannot be read. A read tells why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// The addresses that a thread copies from at the moment, and whether one of them was lost.
#[derive(Clone, Copy)]
struct Copying {
    start: usize,
    end: usize,
    lost: bool,
}

const NOTHING: Copying = Copying { start: 0, end: 0, lost: false };

thread_local! {
    // Has no destructor and is constant, so that the handler finds it without an allocation.
    static COPYING: Cell<Copying> = const { Cell::new(NOTHING) };
}

/// What handled SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

// SAFETY: it owns the addresses, as a box would, and nothing but copies is made of what is there.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps `len` bytes of a regular file from `offset` on, which is a multiple of the size of a page. They may reach
    /// beyond its end.
    pub fn new(file: &File, offset: u64, len: usize) -> io::Result<Self> {
        handle_sigbus()?;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: the kernel chooses the addresses; nothing that exists is touched.
        let start = unsafe { libc::mmap(null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), offset) };
        match NonNull::new(start.cast()) {
            _ if start == libc::MAP_FAILED => Err(io::Error::last_os_error()),
            None => Err(io::Error::other("mapped at address 0")),
            Some(start) => Ok(Mapped { start, len }),
        }
    }

    /// Says that the bytes will be asked for from front to end: the kernel reads more of the disk at once.
    pub fn in_sequence(&self) {
        // SAFETY: advice about addresses that are ours; it changes nothing that is there.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, libc::MADV_SEQUENTIAL) };
    }

    /// Whether these bytes are in here.
    pub fn holds(&self, from: usize, len: usize) -> bool {
        from.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// Appends `len` bytes from `from` on. `to` is as it was where they are lost, or not in here.
    pub fn copy(&self, from: usize, len: usize, to: &mut Vec<u8>) -> Result<(), Lost> {
        if !self.holds(from, len) {
            return Err(Lost);
        }
        to.reserve(len);
        let old = to.len();
        let start = self.start.as_ptr() as usize;
        COPYING.set(Copying { start, end: start + self.len, lost: false });
        // The handler runs between two instructions of this thread: it has to find what was set, and what it sets has
        // to be seen.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: both are `len` bytes long (checked, and reserved) and apart. Other processes may write to the file at
        // the same time; each byte is then the old or the new one, and no reference to it is ever made.
        unsafe { self.start.as_ptr().add(from).copy_to_nonoverlapping(to.as_mut_ptr().add(old), len) };
        compiler_fence(Ordering::SeqCst);
        if COPYING.replace(NOTHING).lost {
            return Err(Lost);
        }
        // SAFETY: they have been reserved and written.
        unsafe { to.set_len(old + len) };
        Ok(())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the addresses are ours, and nothing refers to them.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Sets the handler, once.
fn handle_sigbus() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        // SAFETY: a sigaction of zeros is one; the handler has the signature that SA_SIGINFO asks for, and calls only
        // what may be called at any time.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            if libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before) != 0 {
                return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL));
            }
            let _ = BEFORE.set(before);
        }
        Ok(())
    });
    done.map_err(io::Error::from_raw_os_error)
}

/// Where a thread copies out of a [`Mapped`], zeros take the place of all of it, and the copy goes on. Anything else is
/// for whoever handled it before.
extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let copying = COPYING.get();
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid one, which for SIGBUS has an address.
    let at = unsafe { (*info).si_addr() } as usize;
    if (copying.start..copying.end).contains(&at) {
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the addresses are those of the mapping that this thread copies from; it stays theirs until the
        // `Mapped` is dropped.
        let zeros =
            unsafe { libc::mmap(copying.start as *mut _, copying.end - copying.start, libc::PROT_READ, flags, -1, 0) };
        if zeros != libc::MAP_FAILED {
            COPYING.set(Copying { lost: true, ..copying });
            return;
        }
    }
    // The instruction fails again, and then it is handled so.
    // SAFETY: an action that was set before, or the one of zeros, the default.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, BEFORE.get().map_or(&raw const default, std::ptr::from_ref), null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const PAGE: usize = 64 << 10;

    #[test]
    fn a_file_that_becomes_shorter_is_an_error_and_not_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 3 * PAGE]).unwrap();
        let mapped = Mapped::new(&file, 0, 4 * PAGE).unwrap();
        let mut bytes = vec![1];
        assert_eq!(mapped.copy(PAGE - 1, 2, &mut bytes), Ok(()));
        assert_eq!(bytes, [1, 7, 7]);
        // Beyond the end, and beyond what is mapped.
        assert_eq!(mapped.copy(3 * PAGE, 1, &mut bytes), Err(Lost));
        assert_eq!(mapped.copy(4 * PAGE - 1, 2, &mut bytes), Err(Lost));
        assert_eq!(mapped.copy(usize::MAX, 2, &mut bytes), Err(Lost));

        let mapped = Mapped::new(&file, PAGE as u64, 2 * PAGE).unwrap();
        let other = Mapped::new(&file, 0, PAGE).unwrap();
        file.set_len(PAGE as u64 + 5).unwrap();
        assert_eq!(mapped.copy(PAGE, 3, &mut bytes), Err(Lost));
        assert_eq!(bytes, [1, 7, 7]);
        assert_eq!(other.copy(0, 2, &mut bytes), Ok(()));
        assert_eq!(bytes, [1, 7, 7, 7, 7]);
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(Mapped::new(&File::from(std::os::fd::OwnedFd::from(reader)), 0, PAGE).is_err());
    }
}
