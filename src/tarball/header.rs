//! One header block: its dialect and its fields, as they stand.

use std::borrow::Cow;

use super::number::header_number;

/// Everything in a tar archive comes in blocks of this length.
pub const BLOCK: usize = 512;

/// Sizes end here, so that size and padding fit an `i64` (as `off_t` has to hold them).
pub(super) const MAX_SIZE: i128 = i64::MAX as i128 - BLOCK as i128;

pub(super) type Block = [u8; BLOCK];

/// Who wrote a header, as far as the layout of its fields depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Before POSIX: 100 bytes of name, nothing behind the link name counts.
    V7,
    /// POSIX 1988: a prefix of 155 bytes.
    Ustar,
    /// Jörg Schilling's: a prefix of 131 bytes, times behind it.
    Star,
    /// GNU: no prefix; times and a sparse map in its place.
    Gnu,
}

/// A block that is a header: by its checksum, or by a guess.
pub(super) struct Header<'a> {
    block: &'a Block,
    pub(super) dialect: Dialect,
}

impl<'a> Header<'a> {
    /// Reads a block; none where its checksum is neither the unsigned sum (POSIX) nor the signed one (old Sun).
    pub(super) fn parse(block: &'a Block) -> Option<Self> {
        let stored = header_number(&block[148..156])?;
        // The field of the checksum counts as blanks.
        let field: i32 = block[148..156].iter().map(|&b| i32::from(b)).sum();
        let unsigned = sum(block) - field + 8 * i32::from(b' ');
        // As a signed number each byte from 128 on is less by 256.
        let high = |bytes: &[u8]| bytes.iter().filter(|&&b| b >= 0x80).count() as i32;
        if stored != i128::from(unsigned)
            && stored != i128::from(unsigned - 256 * (high(block) - high(&block[148..156])))
        {
            return None;
        }
        Some(Self::of(block))
    }

    /// What is a header by its magic, whatever its checksum; without one the checksum decides.
    pub(super) fn guess(block: &'a Block) -> Option<Self> {
        let header = Self::of(block);
        if header.dialect == Dialect::V7 { Self::parse(block) } else { Some(header) }
    }

    fn of(block: &'a Block) -> Self {
        let dialect = match &block[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            // libarchive and Go look at these six bytes only; versions other than 00 exist.
            magic if magic.starts_with(b"ustar\0") && &block[508..] == b"tar\0" => Dialect::Star,
            magic if magic.starts_with(b"ustar") => Dialect::Ustar,
            _ => Dialect::V7,
        };
        Header { block, dialect }
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.block[156]
    }

    /// Prefix and name.
    pub(super) fn path(&self) -> Cow<'a, [u8]> {
        let prefix = match self.dialect {
            Dialect::Ustar => until_nul(&self.block[345..500]),
            Dialect::Star => until_nul(&self.block[345..476]),
            Dialect::V7 | Dialect::Gnu => &[],
        };
        let name = until_nul(&self.block[..100]);
        if prefix.is_empty() {
            return name.into();
        }
        [prefix, b"/", name].concat().into()
    }

    /// Whether the path ends in `/`.
    pub(super) fn is_named_as_directory(&self) -> bool {
        match until_nul(&self.block[..100]).last() {
            Some(&last) => last == b'/',
            // The prefix has a `/` behind it.
            None => self.path().ends_with(b"/"),
        }
    }

    pub(super) fn link(&self) -> &'a [u8] {
        until_nul(&self.block[157..257])
    }

    pub(super) fn mode(&self) -> Option<i128> {
        header_number(&self.block[100..108])
    }

    pub(super) fn uid(&self) -> Option<i128> {
        header_number(&self.block[108..116])
    }

    pub(super) fn gid(&self) -> Option<i128> {
        header_number(&self.block[116..124])
    }

    pub(super) fn size(&self) -> Option<u64> {
        header_number(&self.block[124..136]).filter(|n| (0..=MAX_SIZE).contains(n)).map(|n| n as u64)
    }

    pub(super) fn mtime(&self) -> Option<i128> {
        header_number(&self.block[136..148])
    }

    /// GNU keeps it where others have the prefix; 0 means that it is not given.
    pub(super) fn atime(&self) -> Option<i128> {
        match self.dialect {
            Dialect::Gnu => header_number(&self.block[345..357]).filter(|&t| t != 0),
            Dialect::Star => header_number(&self.block[476..488]).filter(|&t| t != 0),
            Dialect::V7 | Dialect::Ustar => None,
        }
    }

    pub(super) fn user(&self) -> &'a [u8] {
        if self.dialect == Dialect::V7 { &[] } else { until_nul(&self.block[265..297]) }
    }

    pub(super) fn group(&self) -> &'a [u8] {
        if self.dialect == Dialect::V7 { &[] } else { until_nul(&self.block[297..329]) }
    }

    pub(super) fn device_major(&self) -> Option<i128> {
        if self.dialect == Dialect::V7 { Some(0) } else { header_number(&self.block[329..337]) }
    }

    pub(super) fn device_minor(&self) -> Option<i128> {
        if self.dialect == Dialect::V7 { Some(0) } else { header_number(&self.block[337..345]) }
    }

    /// The four sparse segments of an old GNU header, 24 bytes each.
    pub(super) fn sparse(&self) -> &'a [u8] {
        &self.block[386..482]
    }

    /// Whether blocks with more sparse segments follow.
    pub(super) fn sparse_continues(&self) -> bool {
        self.block[482] != 0
    }

    /// The length of an old GNU sparse file with its holes.
    pub(super) fn real_size(&self) -> Option<u64> {
        header_number(&self.block[483..495]).filter(|n| (0..=MAX_SIZE).contains(n)).map(|n| n as u64)
    }
}

/// The sum of a block's bytes: four of them at once, as 16-bit lanes, which 64 words of 255 at most twice fill to half.
fn sum(block: &Block) -> i32 {
    const EVEN: u64 = 0x00ff_00ff_00ff_00ff;
    let (words, _) = block.as_chunks::<8>();
    let lanes = words.iter().fold(0u64, |lanes, word| {
        let word = u64::from_le_bytes(*word);
        lanes + (word & EVEN) + (word >> 8 & EVEN)
    });
    (0..4).map(|lane| (lanes >> (16 * lane) & 0xffff) as i32).sum()
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len())]
}

/// The padding behind `size` bytes of payload.
pub(super) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// Whether these bytes, fewer than a block, may be the beginning of a header: a name in printable characters, NULs up to
/// its end, and a mode in octal.
pub fn may_begin_header(bytes: &[u8]) -> bool {
    let (name, behind) = bytes.split_at(bytes.len().min(100));
    let (name, padding) = name.split_at(name.iter().position(|&b| b == 0).unwrap_or(name.len()));
    let mode = &behind[..behind.len().min(8)];
    !name.is_empty()
        && name.iter().all(|&b| b >= b' ' && b != 0x7f)
        && padding.iter().all(|&b| b == 0)
        && mode.iter().all(|b| matches!(b, b'0'..=b'7' | b' ' | 0))
}
