//! Arithmetic on instants in milliseconds that saturates instead of failing. Reads no clock.

use jiff::{SignedDuration, Timestamp};

/// Milliseconds from `since` to `now`; 0 when the clock went backwards.
pub fn elapsed_ms(since: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(since).as_millis()).unwrap_or(0)
}

/// The instant `ms` milliseconds after `at`, at most the last one a [`Timestamp`] can hold.
pub fn after_ms(at: Timestamp, ms: u64) -> Timestamp {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    at.checked_add(SignedDuration::from_millis(ms)).unwrap_or(Timestamp::MAX)
}

/// The instant `ms` milliseconds before `at`, at least the first one a [`Timestamp`] can hold.
pub fn before_ms(at: Timestamp, ms: u64) -> Timestamp {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    at.checked_sub(SignedDuration::from_millis(ms)).unwrap_or(Timestamp::MIN)
}
