//! A point in time: signed seconds since 1970 and nanoseconds, as `struct timespec` has it.

use serde::{Deserialize, Serialize};

/// Seconds (may be negative) and `0..1_000_000_000` nanoseconds after them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Fields")]
pub struct Timestamp {
    seconds: i64,
    nanos: u32,
}

/// Those of a [`Timestamp`] from elsewhere, where the nanoseconds may be any number.
#[derive(Deserialize)]
struct Fields {
    seconds: i64,
    nanos: u32,
}

impl From<Fields> for Timestamp {
    fn from(Fields { seconds, nanos }: Fields) -> Self {
        Timestamp::new(seconds, nanos)
    }
}

impl Timestamp {
    /// `nanos` counts forward from `seconds`, also before 1970: −0.25 s is `(-1, 750_000_000)`.
    /// Nanoseconds of a second or more are cut to the last one of that second.
    pub const fn new(seconds: i64, nanos: u32) -> Self {
        let nanos = if nanos > 999_999_999 { 999_999_999 } else { nanos };
        Timestamp { seconds, nanos }
    }

    /// Whole seconds, rounded towards the past.
    pub const fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds after [`Timestamp::seconds`].
    pub const fn nanos(self) -> u32 {
        self.nanos
    }
}
