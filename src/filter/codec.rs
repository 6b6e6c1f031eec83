//! The decompressors, all behind one step: bytes in, bytes out, no waiting, nothing held back.

use std::io;

use liblzma::stream::Stream as Lzma;
use zstd::stream::raw::Operation;

use super::detect::Compression;

/// The most memory xz may take: its presets need up to 65 MiB, a dictionary by hand may be up to 1.5 GiB.
const XZ_MEMORY: u64 = 512 << 20;

/// zstd's own default, and what `zstd --long` makes: windows up to 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;

/// A decompressor cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{name}")]
pub struct Corrupt {
    /// How it is compressed.
    name: &'static str,
    /// What the decompressor says.
    #[source]
    cause: io::Error,
}

impl Corrupt {
    pub(super) fn new(name: &'static str, cause: impl Into<io::Error>) -> Self {
        Corrupt { name, cause: cause.into() }
    }
}

/// What one step did. Bytes may have been produced before it failed.
pub(super) struct Step {
    pub(super) consumed: usize,
    pub(super) produced: usize,
    pub(super) outcome: Result<Progress, Corrupt>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    GoesOn,
    /// The member, frame or stream is at its end, checksum and all.
    Ended,
}

pub(super) enum Codec {
    Gzip(flate2::Decompress),
    Zstd {
        decoder: Box<zstd::stream::raw::Decoder<'static>>,
        /// So many bytes it takes next: a block, or the checksum.
        wants: usize,
    },
    /// xz, lzma and lzip, by this name.
    Lzma(&'static str, liblzma::stream::Stream),
    Bzip2(bzip2::Decompress),
}

impl Codec {
    /// One for a member that begins. lz4 has another interface: none.
    pub(super) fn new(compression: Compression) -> Result<Option<Self>, Corrupt> {
        let name = compression.name();
        Ok(Some(match compression {
            Compression::Gzip => Codec::Gzip(flate2::Decompress::new_gzip(15)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::raw::Decoder::new().map_err(|e| Corrupt::new(name, e))?;
                decoder
                    .set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
                    .map_err(|e| Corrupt::new(name, e))?;
                Codec::Zstd { decoder: Box::new(decoder), wants: 1 }
            }
            Compression::Xz | Compression::Lzma | Compression::Lzip => {
                let decoder = match compression {
                    Compression::Lzma => Lzma::new_lzma_decoder(XZ_MEMORY),
                    Compression::Lzip => Lzma::new_lzip_decoder(XZ_MEMORY, 0),
                    _ => Lzma::new_stream_decoder(XZ_MEMORY, 0),
                };
                Codec::Lzma(name, decoder.map_err(|e| Corrupt::new(name, e))?)
            }
            Compression::Bzip2 => Codec::Bzip2(bzip2::Decompress::new(false)),
            Compression::Lz4 => return Ok(None),
        }))
    }

    /// Decompresses from `input` into `out`.
    pub(super) fn step(&mut self, input: &[u8], out: &mut [u8]) -> Step {
        match self {
            Codec::Gzip(d) => {
                let before = (d.total_in(), d.total_out());
                let outcome = match d.decompress(input, out, flate2::FlushDecompress::None) {
                    Ok(status) => Ok(progress(status == flate2::Status::StreamEnd)),
                    Err(e) => Err(Corrupt::new("gzip", e)),
                };
                step(before, (d.total_in(), d.total_out()), outcome)
            }
            // One that fails does not say what it has produced: so it gets no more than a block at once.
            Codec::Zstd { decoder, wants } => {
                let input = &input[..input.len().min((*wants).max(1))];
                match decoder.run_on_buffers(input, out) {
                    Ok(status) => {
                        *wants = status.remaining;
                        let moved = status.bytes_read > 0 || status.bytes_written > 0;
                        let outcome = Ok(progress(status.remaining == 0 && moved));
                        Step { consumed: status.bytes_read, produced: status.bytes_written, outcome }
                    }
                    Err(e) => {
                        let cause = if e.to_string().contains("requires too much memory") {
                            let hint =
                                "(decompress it in front: zstd -dc --long=31 FILE | restorefs mount - MOUNTPOINT)";
                            io::Error::other(format!("{e} {hint}"))
                        } else {
                            e
                        };
                        Step { consumed: 0, produced: 0, outcome: Err(Corrupt::new("zstd", cause)) }
                    }
                }
            }
            Codec::Lzma(name, d) => {
                let before = (d.total_in(), d.total_out());
                let outcome = match d.process(input, out, liblzma::stream::Action::Run) {
                    Ok(liblzma::stream::Status::MemNeeded) => {
                        let needs = format!("it needs over {} MiB of memory", XZ_MEMORY >> 20);
                        Err(Corrupt::new(name, io::Error::other(needs)))
                    }
                    Ok(status) => Ok(progress(status == liblzma::stream::Status::StreamEnd)),
                    Err(e) => Err(Corrupt::new(name, e)),
                };
                step(before, (d.total_in(), d.total_out()), outcome)
            }
            Codec::Bzip2(d) => {
                let before = (d.total_in(), d.total_out());
                let outcome = match d.decompress(input, out) {
                    Ok(status) => Ok(progress(status == bzip2::Status::StreamEnd)),
                    Err(e) => Err(Corrupt::new("bzip2", e)),
                };
                step(before, (d.total_in(), d.total_out()), outcome)
            }
        }
    }
}

fn progress(ended: bool) -> Progress {
    if ended { Progress::Ended } else { Progress::GoesOn }
}

/// From totals of bytes in and out, before and after.
fn step(before: (u64, u64), after: (u64, u64), outcome: Result<Progress, Corrupt>) -> Step {
    Step { consumed: (after.0 - before.0) as usize, produced: (after.1 - before.1) as usize, outcome }
}
