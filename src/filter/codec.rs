//! The decompressors, all behind one step: bytes in, bytes out, no waiting, nothing held back.

use zstd::stream::raw::Operation;

use super::detect::Compression;

/// The most memory xz may take: its presets need up to 65 MiB, a dictionary by hand may be up to 1.5 GiB.
const XZ_MEMORY: u64 = 512 << 20;

/// zstd's own default, and what `zstd --long` makes: windows up to 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What one step did.
pub(super) struct Step {
    pub(super) consumed: usize,
    pub(super) produced: usize,
    /// The member, frame or stream is at its end, checksum and all.
    pub(super) ended: bool,
}

pub(super) enum Codec {
    Gzip(flate2::Decompress),
    Zstd(Box<zstd::stream::raw::Decoder<'static>>),
    Xz(liblzma::stream::Stream),
    Bzip2(bzip2::Decompress),
}

impl Codec {
    /// One for a member that begins. lz4 has another interface: none.
    pub(super) fn new(compression: Compression) -> Result<Option<Self>, String> {
        Ok(Some(match compression {
            Compression::Gzip => Codec::Gzip(flate2::Decompress::new_gzip(15)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::raw::Decoder::new().map_err(|e| e.to_string())?;
                decoder
                    .set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
                    .map_err(|e| e.to_string())?;
                Codec::Zstd(Box::new(decoder))
            }
            Compression::Xz => {
                Codec::Xz(liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0).map_err(|e| e.to_string())?)
            }
            Compression::Bzip2 => Codec::Bzip2(bzip2::Decompress::new(false)),
            Compression::Lz4 => return Ok(None),
        }))
    }

    /// Decompresses from `input` into `out`.
    pub(super) fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, String> {
        match self {
            Codec::Gzip(d) => {
                let (before_in, before_out) = (d.total_in(), d.total_out());
                let status =
                    d.decompress(input, out, flate2::FlushDecompress::None).map_err(|e| format!("gzip: {e}"))?;
                Ok(Step {
                    consumed: (d.total_in() - before_in) as usize,
                    produced: (d.total_out() - before_out) as usize,
                    ended: status == flate2::Status::StreamEnd,
                })
            }
            Codec::Zstd(d) => {
                let status = d.run_on_buffers(input, out).map_err(|e| {
                    let hint = if e.to_string().contains("requires too much memory") {
                        " (decompress it in front: zstd -dc --long=31 FILE | restorefs mount - MOUNTPOINT)"
                    } else {
                        ""
                    };
                    format!("zstd: {e}{hint}")
                })?;
                Ok(Step {
                    consumed: status.bytes_read,
                    produced: status.bytes_written,
                    ended: status.remaining == 0 && (status.bytes_read > 0 || status.bytes_written > 0),
                })
            }
            Codec::Xz(d) => {
                let (before_in, before_out) = (d.total_in(), d.total_out());
                let status = d.process(input, out, liblzma::stream::Action::Run).map_err(|e| format!("xz: {e}"))?;
                if status == liblzma::stream::Status::MemNeeded {
                    return Err(format!("xz: it needs over {} MiB of memory", XZ_MEMORY >> 20));
                }
                Ok(Step {
                    consumed: (d.total_in() - before_in) as usize,
                    produced: (d.total_out() - before_out) as usize,
                    ended: status == liblzma::stream::Status::StreamEnd,
                })
            }
            Codec::Bzip2(d) => {
                let (before_in, before_out) = (d.total_in(), d.total_out());
                let status = d.decompress(input, out).map_err(|e| format!("bzip2: {e}"))?;
                Ok(Step {
                    consumed: (d.total_in() - before_in) as usize,
                    produced: (d.total_out() - before_out) as usize,
                    ended: status == bzip2::Status::StreamEnd,
                })
            }
        }
    }
}
