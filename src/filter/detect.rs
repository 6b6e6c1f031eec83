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
pub(super) const ENOUGH: usize = 10;

type Pattern = (&'static [u8], Detected);

/// Long enough each that no member's name, with which a plain tar archive begins, is taken for one.
const PATTERNS: &[Pattern] = &[
    (b"\x1f\x8b\x08", Detected::Known(Compression::Gzip)),
    (b"\x28\xb5\x2f\xfd", Detected::Known(Compression::Zstd)),
    (b"\xfd7zXZ\0", Detected::Known(Compression::Xz)),
    (b"\x04\x22\x4d\x18", Detected::Known(Compression::Lz4)),
    (b"\x02\x21\x4c\x18", Detected::Unsupported("lz4 in its legacy format", "lz4 -dc")),
    (b"\x1f\x9d\x90", Detected::Unsupported("compress (.Z)", "zcat")),
    (b"LZIP\x01", Detected::Unsupported("lzip", "lzip -dc")),
    (b"\x89LZO\0\r\n\x1a\n", Detected::Unsupported("lzop", "lzop -dc")),
    (b"LRZI\0", Detected::Unsupported("lrzip", "lrzip -d -o -")),
    (b"\x5d\0\0", Detected::Unsupported("lzma", "xz -dc --format=lzma")),
];

pub(super) fn detect(bytes: &[u8]) -> Detected {
    let mut more = false;
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
    if more { Detected::More } else { Detected::Plain }
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
        assert_eq!(detect(&[0; 10]), Detected::Plain);
        for text in [&b"LZIP.txt"[..], b"]x", b"(x", b"LRZIx", b"\x04x"] {
            assert_eq!(detect(text), Detected::Plain, "{text:?}");
        }
    }
}
