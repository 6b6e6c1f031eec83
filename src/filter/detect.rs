//! How a stream is compressed, told by its first bytes.

/// A form of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The .xz file format 1.1.
    Xz,
    /// Julian Seward's.
    Bzip2,
    /// LZ4 frame format 1.6.
    Lz4,
    /// The .lzma file format, which has no signature.
    Lzma,
    /// The lzip file format, versions 0 and 1.
    Lzip,
}

impl Compression {
    /// As users know it.
    pub fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Xz => "xz",
            Compression::Bzip2 => "bzip2",
            Compression::Lz4 => "lz4",
            Compression::Lzma => "lzma",
            Compression::Lzip => "lzip",
        }
    }

    /// The command that decompresses a file, or its standard input, to its standard output.
    pub(super) fn program(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip -dc",
            Compression::Zstd => "zstd -dc",
            Compression::Xz => "xz -dc",
            Compression::Bzip2 => "bzip2 -dc",
            Compression::Lz4 => "lz4 -dc",
            Compression::Lzma => "xz -dc --format=lzma",
            Compression::Lzip => "lzip -dc",
        }
    }
}

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detected {
    /// More bytes are needed to tell.
    More,
    /// None of the below: taken as it is.
    Plain,
    Known(Compression),
    /// A frame to be passed over (zstd and lz4 have the same): so many bytes.
    Skippable(u64),
    /// Compressed in a way that is not supported; the program that can decompress it.
    Unsupported(&'static str, &'static str),
}

/// A number of bytes that is always enough to tell.
pub(super) const ENOUGH: usize = LZMA_HEADER;

/// Properties, dictionary size, uncompressed size, and the first byte of the range coder.
const LZMA_HEADER: usize = 14;

type Pattern = (&'static [u8], Detected);

/// A plain tar archive begins with the name of its first member, which may be any of these: see [`is_tar_header`].
const PATTERNS: &[Pattern] = &[
    (b"\x1f\x8b\x08", Detected::Known(Compression::Gzip)),
    (b"\x28\xb5\x2f\xfd", Detected::Known(Compression::Zstd)),
    (b"\xfd7zXZ\0", Detected::Known(Compression::Xz)),
    (b"\x04\x22\x4d\x18", Detected::Known(Compression::Lz4)),
    (b"\x02\x21\x4c\x18", Detected::Unsupported("lz4 in its legacy format", "lz4 -dc")),
    (b"\x1f\x9d", Detected::Unsupported("compress (.Z)", "gzip -dc")),
    (b"\x89LZO\0\r\n\x1a\n", Detected::Unsupported("lzop", "lzop -dc")),
];

pub(super) fn detect(bytes: &[u8]) -> Detected {
    let mut more = false;
    if bytes.first_chunk().is_some_and(is_tar_header) {
        return Detected::Plain;
    }
    for (magic, detected) in PATTERNS {
        if bytes.starts_with(magic) {
            return *detected;
        }
        more |= magic.starts_with(bytes);
    }
    // "BZh", the block size, then the magic of a block or of the end.
    for magic in [b"BZh?\x31\x41\x59\x26\x53\x59", b"BZh?\x17\x72\x45\x38\x50\x90"] {
        let same =
            bytes.iter().zip(magic).all(|(&b, &m)| if m == b'?' { b.is_ascii_digit() && b != b'0' } else { b == m });
        if same && bytes.len() >= magic.len() {
            return Detected::Known(Compression::Bzip2);
        }
        more |= same;
    }
    if matches!(bytes, [0x50..=0x5f, rest @ ..] if b"\x2a\x4d\x18".starts_with(&rest[..rest.len().min(3)])) {
        return match bytes.get(4..8) {
            Some(len) => Detected::Skippable(8 + u64::from(u32::from_le_bytes([len[0], len[1], len[2], len[3]]))),
            None => Detected::More,
        };
    }
    for known in [lzip(bytes), lrzip(bytes), bzip3(bytes), lzma(bytes)] {
        match known {
            Detected::Plain => {}
            Detected::More => more = true,
            known => return known,
        }
    }
    if more { Detected::More } else { Detected::Plain }
}

/// Whether a block has the checksum of a tar header, by unsigned or signed bytes. No compressed data does by chance.
fn is_tar_header(block: &[u8; 512]) -> bool {
    let digits: Vec<u8> = block[148..156].iter().copied().filter(|b| !matches!(b, b' ' | 0)).collect();
    let Some(told) = std::str::from_utf8(&digits).ok().and_then(|text| i64::from_str_radix(text, 8).ok()) else {
        return false;
    };
    let sum = |value: fn(u8) -> i64| {
        let bytes = block.iter().enumerate();
        bytes.map(|(at, &b)| value(if (148..156).contains(&at) { b' ' } else { b })).sum::<i64>()
    };
    told > 256 && (told == sum(i64::from) || told == sum(|b| i64::from(b.cast_signed())))
}

/// Its version, and the dictionary size: an archive may begin with a member of the name `LZIP`.
fn lzip(bytes: &[u8]) -> Detected {
    match bytes {
        [b'L', b'Z', b'I', b'P', 0 | 1, size, ..] if matches!(size & 0x1f, 12..=29) => {
            Detected::Known(Compression::Lzip)
        }
        [b'L', b'Z', b'I', b'P', 0 | 1] => Detected::More,
        _ if b"LZIP".starts_with(bytes) => Detected::More,
        _ => Detected::Plain,
    }
}

/// With its minor version, which is never 0: a member may have the name `LRZI`.
fn lrzip(bytes: &[u8]) -> Detected {
    match bytes {
        [b'L', b'R', b'Z', b'I', 0, 1..=0xff, ..] => Detected::Unsupported("lrzip", "lrzip -d -o -"),
        _ if b"LRZI\0".starts_with(bytes) => Detected::More,
        _ => Detected::Plain,
    }
}

/// With its block size, from 65 KiB to 511 MiB.
fn bzip3(bytes: &[u8]) -> Detected {
    match bytes {
        [b'B', b'Z', b'3', b'v', b'1', size @ ..] => match size.first_chunk() {
            Some(size) if (65 << 10..=511 << 20).contains(&u32::from_le_bytes(*size)) => {
                Detected::Unsupported("bzip3", "bzip3 -dc")
            }
            Some(_) => Detected::Plain,
            None => Detected::More,
        },
        _ if b"BZ3v1".starts_with(bytes) => Detected::More,
        _ => Detected::Plain,
    }
}

/// As xz and libarchive do where there is no signature: every field has to be one that encoders write. No header of tar
/// is: behind a NUL, which ends the name there, the dictionary size has bits of it.
fn lzma(bytes: &[u8]) -> Detected {
    let Some(&properties) = bytes.first() else { return Detected::More };
    let (lc, lp) = (properties % 9, properties / 9 % 5);
    if properties >= 9 * 5 * 5 || lc + lp > 4 || bytes.get(1).is_some_and(|&b| !matches!(b, 0 | 0xff)) {
        return Detected::Plain;
    }
    let Some(header) = bytes.first_chunk::<LZMA_HEADER>() else { return Detected::More };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
    let (dictionary, size) = (number(&header[1..5]), number(&header[5..13]));
    // 2^n, or 2^n + 2^(n-1).
    let usual =
        dictionary == u64::from(u32::MAX) || dictionary >= 4096 && (dictionary >> dictionary.trailing_zeros()) | 2 == 3;
    if usual && (size == u64::MAX || size < 1 << 38) && header[13] == 0 {
        Detected::Known(Compression::Lzma)
    } else {
        Detected::Plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_apart() {
        assert_eq!(detect(b""), Detected::More);
        assert_eq!(detect(b"\x1f\x8b"), Detected::More);
        assert_eq!(detect(b"\x1f\x8b\x08\0"), Detected::Known(Compression::Gzip));
        assert_eq!(detect(b"BZh91AY&"), Detected::More);
        assert_eq!(detect(b"BZh91AY&SY"), Detected::Known(Compression::Bzip2));
        assert_eq!(detect(b"BZh9.txt"), Detected::Plain);
        assert_eq!(detect(b"Python/"), Detected::Plain);
        assert_eq!(detect(b"P"), Detected::More);
        assert_eq!(detect(b"\x5a\x2a\x4d\x18\x04\0\0\0"), Detected::Skippable(12));
        assert_eq!(detect(b"usr/"), Detected::Plain);
        assert_eq!(detect(&[0; ENOUGH]), Detected::Plain);
        assert_eq!(detect(b"LZIP\x01\x0c"), Detected::Known(Compression::Lzip));
        assert_eq!(detect(b"LZIP\x01"), Detected::More);
        assert!(matches!(detect(b"LRZI\0\x06"), Detected::Unsupported("lrzip", _)));
        for text in [&b"LZIP.txt"[..], b"LZIP\0\0", b"]x", b"(x", b"LRZIx", b"LRZI\0\0", b"\x04x"] {
            assert_eq!(detect(text), Detected::Plain, "{text:?}");
        }
    }

    #[test]
    fn lzma_is_told_by_every_field_of_its_header() {
        let header = |properties: u8, dictionary: u32, size: u64, first: u8| {
            [&[properties][..], &dictionary.to_le_bytes(), &size.to_le_bytes(), &[first]].concat()
        };
        let lzma = Detected::Known(Compression::Lzma);
        for known in [
            header(0x5d, 1 << 23, u64::MAX, 0),
            header(0x5d, 3 << 20, 10_240, 0),
            header(0x5e, u32::MAX, 0, 0),
            header(0, 4096, u64::MAX, 0),
        ] {
            assert_eq!(detect(&known), lzma, "{known:02x?}");
            assert_eq!(detect(&known[..13]), Detected::More, "{known:02x?}");
        }
        for other in [
            header(0xe1, 1 << 23, u64::MAX, 0),
            header(0x5d, 5 << 20, u64::MAX, 0),
            header(0x5d, 1 << 23, 1 << 38, 0),
            header(0x5d, 1 << 23, u64::MAX, 1),
            header(0x5d, 0, 0, 0),
        ] {
            assert_eq!(detect(&other), Detected::Plain, "{other:02x?}");
        }
        // A name of one or two characters, and NULs.
        for first in 0..=u8::MAX {
            for second in 0..=u8::MAX {
                let mut name = [0; LZMA_HEADER];
                (name[0], name[1]) = (first, second);
                assert_ne!(detect(&name), lzma, "{name:02x?}");
            }
        }
    }
}
