//! Points in time: microseconds since 1970 in the store, RFC 3339 in UTC outside.

use jiff::Timestamp;

/// Microseconds since 1970.
pub fn us(at: Timestamp) -> i64 {
    at.as_microsecond()
}

/// The point in time so many microseconds after 1970.
pub fn from_us(us: i64) -> Result<Timestamp, jiff::Error> {
    Timestamp::from_microsecond(us)
}

/// RFC 3339 in UTC, to the microsecond at most.
pub fn rfc3339(at: Timestamp) -> String {
    from_us(us(at)).unwrap_or(at).to_string()
}

/// The same to the second, for what people read in a sentence.
pub fn to_the_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
