//! Open files over the control socket (SCM_RIGHTS in unix(7)): a client reads the contents of a mount by itself, with
//! no way through the kernel's FUSE.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// So many at most, at a time.
pub(super) const MAX: usize = 2;

/// Sends a line, with open files.
pub(super) fn send(socket: &UnixStream, line: &[u8], files: &[OwnedFd]) -> io::Result<()> {
    let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::Error::other("too many files to hand over"));
    }
    // The files go with the first byte; a line is never empty.
    let n = sendmsg(socket, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?;
    io::Write::write_all(&mut &*socket, &line[n..])
}

/// Receives what is there of a line, up to the size of `line`, and open files.
pub(super) fn receive(socket: &UnixStream, line: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(line)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            files.extend(rights);
        }
    }
    Ok((received.bytes, files))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_line_with_a_file() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut out, into) = io::pipe().unwrap();
        send(&a, b"line\n", &[into.into()]).unwrap();
        let mut line = [0; 100];
        let (n, files) = receive(&b, &mut line).unwrap();
        assert_eq!((&line[..n], files.len()), (&b"line\n"[..], 1));
        std::fs::File::from(files.into_iter().next().unwrap()).write_all(b"through it").unwrap();
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through it");
    }
}
