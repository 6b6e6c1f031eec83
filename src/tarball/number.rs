//! Numbers in headers: octal, GNU base-256, and the decimal ones of pax; read and written.

use crate::entry::Timestamp;

/// What a header field holds: `None` where it is no number.
///
/// Octal may be led by blanks and ended by blank or NUL; an empty field is 0 (GNU tar, libarchive). With the
/// highest bit set it is a big-endian two's complement number (GNU base-256, star).
pub(super) fn header_number(field: &[u8]) -> Option<i128> {
    match field.first()? {
        0x80 | 0xff => base256(field),
        _ => octal(field).map(i128::from),
    }
}

/// Writes a header field: octal with a NUL behind it, where that has room; else base-256.
pub(super) fn write_number(field: &mut [u8], n: u64) {
    let digits = field.len() - 1;
    if n >> (3 * digits).min(63) == 0 {
        let mut n = n;
        for digit in field[..digits].iter_mut().rev() {
            *digit = b'0' + (n & 7) as u8;
            n >>= 3;
        }
        field[digits] = 0;
    } else {
        for (byte, i) in field.iter_mut().rev().zip(0..) {
            *byte = if i < 8 { (n >> (8 * i)) as u8 } else { 0 };
        }
        field[0] |= 0x80;
    }
}

/// A pax time, as [`time`] reads it.
pub(super) fn write_time(time: Timestamp) -> String {
    let (seconds, nanos) = (i128::from(time.seconds()), i128::from(time.nanos()));
    let all = seconds * 1_000_000_000 + nanos;
    let sign = if all < 0 { "-" } else { "" };
    let (whole, fraction) = (all.abs() / 1_000_000_000, all.abs() % 1_000_000_000);
    if fraction == 0 {
        return format!("{sign}{whole}");
    }
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').to_owned()
}

fn octal(field: &[u8]) -> Option<u64> {
    // No field has more than 12 bytes, of three bits each.
    debug_assert!(field.len() <= 21);
    let begin = field.iter().position(|&b| b != b' ').unwrap_or(field.len());
    let mut n = 0;
    for &b in &field[begin..] {
        match b {
            b'0'..=b'7' => n = n << 3 | u64::from(b - b'0'),
            0 | b' ' => break,
            _ => return None,
        }
    }
    Some(n)
}

fn base256(field: &[u8]) -> Option<i128> {
    let negative = field[0] == 0xff;
    let mut n: i128 = if negative { -1 } else { 0 };
    for &b in &field[1..] {
        // Fields are at most 12 bytes, so 88 bits.
        n = (n << 8) | i128::from(b);
    }
    Some(n)
}

/// A decimal number without sign, as pax has for sizes and counts.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    text.iter().try_fold(0u64, |n, b| n.checked_mul(10)?.checked_add(u64::from(b - b'0')))
}

/// A decimal number that may be negative, as pax has for owners of foreign systems. One that is larger than any
/// owner's stays so.
pub(super) fn signed_decimal(text: &[u8]) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits.iter().fold(0i128, |n, b| n.saturating_mul(10).saturating_add(i128::from(b - b'0')));
    Some(sign * n)
}

/// A pax time: seconds with a fraction, negative before 1970. Digits after the ninth are dropped downwards,
/// seconds that no `i64` holds are clamped.
pub(super) fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    if whole.is_empty() && fraction.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let mut seconds = whole.iter().fold(0i64, |n, b| n.saturating_mul(10).saturating_add(i64::from(b - b'0')));
    let mut nanos = 0;
    for i in 0..9 {
        nanos = nanos * 10 + fraction.get(i).map_or(0, |b| u32::from(b - b'0'));
    }
    if negative {
        seconds = -seconds;
        let more = fraction.get(9..).unwrap_or_default().iter().any(|&b| b != b'0');
        nanos += u32::from(more);
        if nanos > 0 {
            seconds = seconds.saturating_sub(1);
            nanos = 1_000_000_000 - nanos;
        }
    }
    Some(Timestamp::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields() {
        assert_eq!(header_number(b"0000644\0"), Some(0o644));
        assert_eq!(header_number(b"   644 \0"), Some(0o644));
        assert_eq!(header_number(b"77777777777"), Some(0o77777777777));
        assert_eq!(header_number(b"\0\0\0\0"), Some(0));
        assert_eq!(header_number(b"        "), Some(0));
        assert_eq!(header_number(b"0000008\0"), None);
        assert_eq!(header_number(b"-000001\0"), None);
        assert_eq!(header_number(b"12x4567\0"), None);
        assert_eq!(header_number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(1 << 33));
        assert_eq!(header_number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(header_number(b"\x81\0\0\0"), None);
    }

    #[test]
    fn written_as_they_are_read() {
        for n in [0, 1, 0o7777777, 0o10000000, u64::from(u32::MAX), 0o77777777777, 0o100000000000, i64::MAX as u64] {
            let mut field = [0xaa; 12];
            write_number(&mut field, n);
            assert_eq!(header_number(&field), Some(n.into()), "{n}");
            assert_eq!(field[0] & 0x80 != 0, n > 0o77777777777);
            let mut field = [0xaa; 8];
            write_number(&mut field, n & 0xffff_ffff);
            assert_eq!(header_number(&field), Some((n & 0xffff_ffff).into()));
        }
        for (seconds, nanos) in [(0, 0), (1, 500_000_000), (-1, 750_000_000), (-1, 0), (-2, 1), (i64::MAX, 999_999_999)]
        {
            let text = write_time(Timestamp::new(seconds, nanos));
            assert_eq!(time(text.as_bytes()), Some(Timestamp::new(seconds, nanos)), "{text}");
        }
        assert_eq!(write_time(Timestamp::new(-1, 750_000_000)), "-0.25");
    }

    #[test]
    fn pax_numbers() {
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(decimal(b"18446744073709551616"), None);
        assert_eq!(decimal(b"+5"), None);
        assert_eq!(decimal(b""), None);
        assert_eq!(signed_decimal(b"-2"), Some(-2));
        assert_eq!(signed_decimal(&[b'9'; 100]), Some(i128::MAX));
        assert_eq!(signed_decimal(b"--2"), None);
        assert_eq!(signed_decimal(b"-"), None);
    }

    #[test]
    fn times() {
        let t = |s: &str| time(s.as_bytes()).map(|t| (t.seconds(), t.nanos()));
        assert_eq!(t("1700000000.5"), Some((1_700_000_000, 500_000_000)));
        assert_eq!(t("-0.25"), Some((-1, 750_000_000)));
        assert_eq!(t("-1"), Some((-1, 0)));
        assert_eq!(t("0.0000000019"), Some((0, 1)));
        assert_eq!(t("-0.0000000011"), Some((-1, 999_999_998)));
        assert_eq!(t("99999999999999999999999"), Some((i64::MAX, 0)));
        assert_eq!(t("1e5"), None);
        assert_eq!(t("."), None);
        assert_eq!(t(""), None);
    }
}
