//! Which of the connections to a plain port is the sender: decided by the first bytes of each.

use crate::filter::{self, recognise};
use crate::source::Opening;
use crate::tarball::{BLOCK, Decoder, Options};

/// Whether a connection that begins with these bytes may be the sender of an archive. What is wrong with it later is reported as
/// for any stream.
pub fn opening(head: &[u8]) -> Opening {
    if filter::is_compressed(head) {
        return Opening::Archive;
    }
    let no_tar = recognise(head, "", &[]);
    if head.len() < BLOCK {
        // The name of a first member may look like a signature.
        return Opening::Short(no_tar.is_certain.then_some(no_tar.cause));
    }
    match Decoder::new(Options::default()).step(&mut &head[..BLOCK]) {
        Err(_) if !no_tar.damaged => Opening::Other(no_tar.cause),
        _ => Opening::Archive,
    }
}
