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

    /// To the second, for people: `2026-11-28 01:15:31 UTC`.
    pub fn utc(self) -> String {
        let (days, seconds) = (self.seconds.div_euclid(86_400), self.seconds.rem_euclid(86_400));
        // Years that begin in March: the day that only some have is the last one then (Hinnant, `civil_from_days`).
        let days = i128::from(days) + 719_468;
        let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = era * 400 + year + i128::from(month <= 2);
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02} UTC")
    }

    /// Nanoseconds after [`Timestamp::seconds`].
    pub const fn nanos(self) -> u32 {
        self.nanos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_date_tells_them() {
        for (seconds, told) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (-1, "1969-12-31 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_795_828_531, "2026-11-28 01:15:31 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(Timestamp::new(seconds, 0).utc(), told);
        }
        // A peer may say any number.
        Timestamp::new(i64::MAX, 0).utc();
        Timestamp::new(i64::MIN, 0).utc();
    }
}
