//! The text of a token: what is taken can be printed, and is the same when it is read again.
#![no_main]

use restorefs::wire::Token;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(token) = Token::parse(text) {
        assert_eq!(Token::parse(&token.reveal()), Ok(token));
    }
});
