//! Frames: a batch of messages each, compressed or not. Without I/O.
//!
//! ```text
//! [length u32][length when decompressed u32, or 0][body]      little endian
//! ```
//!
//! The body, decompressed, is one message after the other, in the frames of [`record`]. A frame without a body says only
//! that its sender is alive.

use crate::record;

/// Bytes before the body.
pub(super) const HEADER: usize = 8;

/// No body is longer, compressed or not: one record that is as long as a record may be, and some more.
pub const MAX_BODY: usize = record::MAX_PAYLOAD + (1 << 20);

/// Says that its sender is alive.
pub(super) const ALIVE: [u8; HEADER] = [0; HEADER];

/// The level of zstd that costs less than most networks.
const LEVEL: i32 = 1;

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It says it is longer than any.
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    /// It cannot be decompressed to what it says.
    #[error("a frame that cannot be decompressed")]
    Damaged,
}

/// A frame that is being filled with messages.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
}

impl Default for Batch {
    fn default() -> Self {
        Batch { bytes: vec![0; HEADER] }
    }
}

impl Batch {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.bytes.len() - HEADER
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The messages in it.
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER..]
    }

    /// Adds a message.
    pub fn push<T: serde::Serialize>(&mut self, message: &T) {
        record::encode(message, &[], &mut self.bytes);
    }

    /// Adds messages as they are encoded.
    pub fn push_encoded(&mut self, records: &[u8]) {
        self.bytes.extend_from_slice(records);
    }

    /// Where messages are encoded: by [`record::begin`] and [`record::end`], or [`record::encode`].
    pub fn records(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The frame, as it is to be sent.
    pub fn finish(mut self) -> Vec<u8> {
        let length = (self.len() as u32).to_le_bytes();
        self.bytes[..4].copy_from_slice(&length);
        self.bytes
    }

    /// The frame, compressed; None when that does not make it shorter.
    pub fn compress(&self) -> Option<Vec<u8>> {
        let body = self.body();
        let mut out = vec![0; HEADER + zstd::zstd_safe::compress_bound(body.len())];
        let n = zstd::bulk::compress_to_buffer(body, &mut out[HEADER..], LEVEL).ok()?;
        if n >= body.len() {
            return None;
        }
        out.truncate(HEADER + n);
        out[..4].copy_from_slice(&(n as u32).to_le_bytes());
        out[4..HEADER].copy_from_slice(&(body.len() as u32).to_le_bytes());
        Some(out)
    }
}

/// Bytes as they come, to bodies of frames. Takes no more memory than has come, but for what a frame says that it is
/// decompressed.
#[derive(Debug, Default)]
pub struct Frames {
    header: [u8; HEADER],
    /// What of the header is there.
    headed: usize,
    body: Vec<u8>,
}

/// Of a body that has only begun, so much is got at once.
const AT_ONCE: usize = 1 << 20;

impl Frames {
    /// Takes what belongs to the next frame from the front of `input`. Its body, where it is there as a whole; an empty one
    /// says that the peer is alive.
    pub fn next_body(&mut self, input: &mut &[u8]) -> Result<Option<Vec<u8>>, FrameError> {
        if self.headed < HEADER {
            let (taken, rest) = input.split_at(input.len().min(HEADER - self.headed));
            self.header[self.headed..self.headed + taken.len()].copy_from_slice(taken);
            self.headed += taken.len();
            *input = rest;
            if self.headed < HEADER {
                return Ok(None);
            }
        }
        let header = &self.header;
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let raw = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if length.max(raw) > MAX_BODY {
            return Err(FrameError::TooLong(length.max(raw)));
        }
        if self.body.capacity() == 0 {
            self.body.reserve_exact(length.min(AT_ONCE));
        }
        let (taken, rest) = input.split_at(input.len().min(length - self.body.len()));
        self.body.extend_from_slice(taken);
        *input = rest;
        if self.body.len() < length {
            return Ok(None);
        }
        self.headed = 0;
        let body = std::mem::take(&mut self.body);
        if raw == 0 {
            return Ok(Some(body));
        }
        let body = zstd::bulk::decompress(&body, raw).map_err(|_| FrameError::Damaged)?;
        if body.len() == raw { Ok(Some(body)) } else { Err(FrameError::Damaged) }
    }

    /// A body that has been used: the next one is put into it.
    pub fn recycle(&mut self, mut body: Vec<u8>) {
        if self.body.capacity() == 0 && body.capacity() <= AT_ONCE {
            body.clear();
            self.body = body;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_split_gives_the_same_bodies() {
        let mut stream = Vec::new();
        let mut plain = Batch::default();
        plain.push_encoded(b"plain");
        let mut long = Batch::default();
        long.push_encoded(&[7; 10_000]);
        let compressed = long.compress().unwrap();
        assert!(compressed.len() < 200);
        stream.extend(plain.finish());
        stream.extend(ALIVE);
        stream.extend(compressed);
        for piece in [1, 2, 3, 7, 8, 9, 1000] {
            let mut frames = Frames::default();
            let mut bodies = Vec::new();
            for mut bytes in stream.chunks(piece) {
                while !bytes.is_empty() {
                    bodies.extend(frames.next_body(&mut bytes).unwrap());
                }
            }
            assert_eq!(bodies, [b"plain".to_vec(), Vec::new(), vec![7; 10_000]]);
        }
    }

    #[test]
    fn lies_are_told() {
        let mut frames = Frames::default();
        assert_eq!(frames.next_body(&mut &[0xff; HEADER][..]), Err(FrameError::TooLong(u32::MAX as usize)));
        let mut batch = Batch::default();
        batch.push_encoded(&[7; 1000]);
        for raw in [1u32, 999, 1001] {
            let mut bytes = batch.compress().unwrap();
            bytes[4..8].copy_from_slice(&raw.to_le_bytes());
            let mut frames = Frames::default();
            assert_eq!(frames.next_body(&mut &bytes[..]), Err(FrameError::Damaged), "{raw}");
        }
        assert!(Batch::default().is_empty());
    }
}
