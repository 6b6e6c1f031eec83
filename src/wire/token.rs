//! The one-time token: all that sender and receiver have to know of each other.
//!
//! 128 random bits, written as `rfs1-` and eight groups of four digits of Crockford's base 32 (no I, L, O, U; case and
//! dashes do not count). The last 32 bits are a checksum, so that a slip is told before anything is connected.

use std::fmt;

use data_encoding::{Encoding, Specification};

const PREFIX: &str = "rfs1-";
const SECRET: usize = 16;
const CHECKSUM: usize = 4;
const DIGITS: usize = (SECRET + CHECKSUM) * 8 / 5;
/// Digits between two dashes.
const GROUP: usize = 4;

/// A secret of 128 bits. Shown only where it is asked for by [`Token::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; SECRET]);

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It begins otherwise.
    #[error("a token begins with '{PREFIX}'")]
    Prefix,
    /// It has too many or too few digits.
    #[error("a token has {DIGITS} digits behind '{PREFIX}', not {0}")]
    Length(usize),
    /// Some character is none of its digits.
    #[error("a token has only digits and letters, without U")]
    Digit,
    /// The checksum is wrong.
    #[error("the token has a typing error: its check digits do not fit")]
    Checksum,
}

impl Token {
    /// A new one, from the kernel's random numbers.
    pub fn generate() -> std::io::Result<Self> {
        super::random().map(Token)
    }

    /// Reads one as it was printed. Space around it does not count.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim().to_ascii_lowercase();
        let digits = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?.replace('-', "");
        let length = digits.chars().count();
        if length != DIGITS {
            return Err(TokenError::Length(length));
        }
        let bytes = base32().decode(digits.as_bytes()).map_err(|_| TokenError::Digit)?;
        let (secret, check) = bytes.split_first_chunk().ok_or(TokenError::Length(length))?;
        let token = Token(*secret);
        if check == token.checksum() { Ok(token) } else { Err(TokenError::Checksum) }
    }

    /// As it is to be typed.
    pub fn reveal(&self) -> String {
        let mut bytes = self.0.to_vec();
        bytes.extend(self.checksum());
        let digits = base32().encode(&bytes);
        let groups: Vec<&str> = (0..digits.len()).step_by(GROUP).map(|at| &digits[at..at + GROUP]).collect();
        format!("{PREFIX}{}", groups.join("-"))
    }

    /// A key for one purpose; nothing can be told from it of the token, or of the keys for others.
    pub(super) fn derive(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }

    fn checksum(&self) -> [u8; CHECKSUM] {
        let hash = self.derive("restorefs 2026-11 token checksum");
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

fn base32() -> Encoding {
    let mut specification = Specification::new();
    specification.symbols.push_str("0123456789abcdefghjkmnpqrstvwxyz");
    specification.translate.from.push_str("oil");
    specification.translate.to.push_str("011");
    specification.encoding().expect("the alphabet is sound")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_typed() {
        let token = Token::generate().unwrap();
        let text = token.reveal();
        assert_eq!(text.len(), PREFIX.len() + 8 * 5 - 1);
        assert_eq!(Token::parse(&text), Ok(token.clone()));
        assert_eq!(Token::parse(&format!("  {} \n", text.to_uppercase())), Ok(token.clone()));
        assert_eq!(Token::parse(&text.replacen("rfs1-", "RFS1", 1).replace('-', "")), Err(TokenError::Prefix));
        let joined = format!("{PREFIX}{}", text[PREFIX.len()..].replace('-', "").replace('0', "O").replace('1', "l"));
        assert_eq!(Token::parse(&joined), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&text[5..9]));
    }

    #[test]
    fn every_slip_is_told() {
        let text = Token(*b"sixteen bytes ok").reveal();
        for (at, c) in text.char_indices().skip(PREFIX.len()).filter(|(_, c)| *c != '-') {
            let mut slip = text.clone();
            slip.replace_range(at..at + 1, if c == 'a' { "b" } else { "a" });
            assert_eq!(Token::parse(&slip), Err(TokenError::Checksum), "{slip}");
        }
        assert_eq!(Token::parse(&text[..text.len() - 1]), Err(TokenError::Length(31)));
        assert_eq!(Token::parse(&text[..text.len() - 10]), Err(TokenError::Length(24)));
        assert_eq!(Token::parse(&format!("{text}-7777-7777")), Err(TokenError::Length(40)));
        assert_eq!(Token::parse(&text.replacen(&text[5..6], "u", 1)), Err(TokenError::Digit));
        assert_eq!(Token::parse("hello"), Err(TokenError::Prefix));
    }
}
