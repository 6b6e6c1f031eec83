//! What a read is answered.

use std::io;

use rustix::io::Errno;

/// The answer to a read: bytes, fewer than asked for only at the end of the file.
pub type Reply = Box<dyn FnOnce(Result<&[u8], Errno>) + Send>;

/// What whoever reads is told of an error of ours.
pub(super) fn errno(e: io::Error) -> Errno {
    log::error!("cannot read contents: {e}");
    // Whatever became of the spool or of the archive, for whoever reads the file is there.
    match Errno::from_io_error(&e) {
        Some(errno @ (Errno::NFILE | Errno::MFILE | Errno::NOMEM)) => errno,
        _ => Errno::IO,
    }
}
