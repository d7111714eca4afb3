//! Points in time and lengths of time as people and documents write them: RFC 3339 in UTC, and `12h`, `1h30m`, `90s`.
//!
//! Nobody here asks what time it is: the clock is in `net`, and pure code takes a `Time` as an argument.

use ::time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::time::Duration;

/// A point in time, UTC, nanosecond resolution; written as RFC 3339.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(OffsetDateTime);

impl Time {
    /// The start of 1970.
    pub const EPOCH: Self = Self(OffsetDateTime::UNIX_EPOCH);

    /// Seconds since 1970; out-of-range values are clamped to years -9999..9999.
    pub fn from_unix(seconds: i64) -> Self {
        Self(OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(if seconds < 0 {
            ::time::PrimitiveDateTime::MIN.assume_utc()
        } else {
            ::time::PrimitiveDateTime::MAX.assume_utc()
        }))
    }

    /// Milliseconds since 1970, clamped likewise.
    pub fn from_unix_millis(millis: i64) -> Self {
        let whole = Self::from_unix(millis.div_euclid(1000));
        whole.plus(Duration::from_millis(millis.rem_euclid(1000).unsigned_abs()))
    }

    /// Whole seconds since 1970, rounded down.
    pub fn unix(self) -> i64 {
        self.0.unix_timestamp()
    }

    /// Whole seconds since 1970; zero for earlier times. The form certificates use.
    pub fn unix_u64(self) -> u64 {
        u64::try_from(self.unix()).unwrap_or(0)
    }

    /// Milliseconds since 1970, rounded down.
    pub fn unix_millis(self) -> i64 {
        i64::try_from(self.0.unix_timestamp_nanos().div_euclid(1_000_000)).unwrap_or(i64::MAX)
    }

    /// This time and that much; clamped at the far end of the calendar.
    #[must_use]
    pub fn plus(self, length: Duration) -> Self {
        let length = ::time::Duration::try_from(length).unwrap_or(::time::Duration::MAX);
        Self(self.0.saturating_add(length))
    }

    /// This time less that much.
    #[must_use]
    pub fn minus(self, length: Duration) -> Self {
        let length = ::time::Duration::try_from(length).unwrap_or(::time::Duration::MAX);
        Self(self.0.saturating_sub(length))
    }

    /// How long after `earlier` this is; zero when it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::try_from(self.0 - earlier.0).unwrap_or(Duration::ZERO)
    }

    /// Without the fraction of a second: for people, and for what they type.
    #[must_use]
    pub fn whole_seconds(self) -> Self {
        Self::from_unix(self.unix())
    }
    /// For crates that need the calendar (X.509 validity).
    pub fn to_offset(self) -> OffsetDateTime {
        self.0
    }
}

impl From<std::time::SystemTime> for Time {
    fn from(at: std::time::SystemTime) -> Self {
        Self(OffsetDateTime::from(at))
    }
}
impl From<OffsetDateTime> for Time {
    fn from(at: OffsetDateTime) -> Self {
        Self(at.to_offset(UtcOffset::UTC))
    }
}
impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.format(&Rfc3339).map_err(|_| std::fmt::Error)?)
    }
}
impl std::fmt::Debug for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}
impl std::str::FromStr for Time {
    type Err = BadTime;
    fn from_str(text: &str) -> Result<Self, BadTime> {
        OffsetDateTime::parse(text, &Rfc3339).map(Self::from).map_err(|_| BadTime(text.chars().take(40).collect()))
    }
}
impl Serialize for Time {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A text that is not an RFC 3339 time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is not a time; write it as 2026-11-22T18:00:00Z")]
pub struct BadTime(String);

/// A length of time as people write it: `30m`, `12h`, `1h30m`, `7d`, `90s`, `250ms`. A bare `0` is zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Ttl(pub Duration);

impl Ttl {
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
    pub const fn hours(hours: u64) -> Self {
        Self::from_secs(hours * 3600)
    }
}

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl std::fmt::Display for Ttl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut left = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if left == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in UNITS {
            // Days only when whole, so that `12h` and `30h` read as they were written.
            if unit == "d" && left % millis != 0 {
                continue;
            }
            if left >= millis {
                write!(f, "{}{unit}", left / millis)?;
                left %= millis;
            }
        }
        Ok(())
    }
}
impl std::str::FromStr for Ttl {
    type Err = BadTtl;
    fn from_str(text: &str) -> Result<Self, BadTtl> {
        let bad = || BadTtl(text.chars().take(40).collect());
        let mut rest = text.trim();
        if rest == "0" {
            return Ok(Self::default());
        }
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let (number, tail) = rest.split_at(digits);
            let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_len);
            let millis = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1;
            let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(millis)).ok_or_else(bad)?;
            total = total.checked_add(part).ok_or_else(bad)?;
            rest = tail;
        }
        if text.trim().is_empty() { Err(bad()) } else { Ok(Self(Duration::from_millis(total))) }
    }
}
impl Serialize for Ttl {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A text that is not a length of time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is not a length of time; write it as 90s, 30m, 12h or 7d")]
pub struct BadTtl(String);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_read_as_people_write_them() {
        let check = |text: &str, seconds: u64| {
            let ttl: Ttl = text.parse().unwrap();
            assert_eq!(ttl, Ttl::from_secs(seconds), "{text}");
        };
        check("12h", 43_200);
        check("1h30m", 5400);
        check("90s", 90);
        check("7d", 604_800);
        check("0", 0);
        for bad in ["", "h", "12", "1w", "-1h", "1 h", "99999999999999999999h", "h1"] {
            assert!(bad.parse::<Ttl>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_bad_time_names_the_text_and_the_cure() {
        let error = "yesterday".parse::<Time>().unwrap_err().to_string();
        assert_eq!(error, "\"yesterday\" is not a time; write it as 2026-11-22T18:00:00Z");
    }

    proptest! {
        #[test]
        fn lengths_survive_printing(millis in 0u64..10_000_000_000) {
            let ttl = Ttl(Duration::from_millis(millis));
            prop_assert_eq!(ttl.to_string().parse::<Ttl>().unwrap(), ttl);
        }

        #[test]
        fn times_survive_printing(millis in -1_000_000_000_000i64..9_000_000_000_000) {
            let at = Time::from_unix_millis(millis);
            prop_assert_eq!(at.to_string().parse::<Time>().unwrap(), at);
            prop_assert_eq!(at.unix_millis(), millis);
        }
    }
}
