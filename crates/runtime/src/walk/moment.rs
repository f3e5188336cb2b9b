//! A moment by both of the guest's clocks, and what follows when one of them was set meanwhile.
//!
//! ctime is written by the wall clock, which a person or a time server may set back between the freeze and the walk; the
//! monotonic clock tells. Knows nothing of files.

use rustix::time::{ClockId, clock_gettime};

/// Smaller steps back are how clocks are slewed.
const SLEW_US: i64 = 1_000_000;

/// One moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The clock that ctime is written by, in microseconds since 1970.
    pub wall_us: i64,
    /// Microseconds since some other moment, never set.
    pub monotonic_us: i64,
}

impl Moment {
    /// This one. Allocates nothing.
    pub fn now() -> Moment {
        let us = |clock| {
            let time = clock_gettime(clock);
            time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_nsec / 1_000)
        };
        Moment { wall_us: us(ClockId::RealtimeCoarse), monotonic_us: us(ClockId::Monotonic) }
    }

    /// Microseconds from `earlier` until this moment.
    pub fn since_us(self, earlier: Moment) -> i64 {
        self.monotonic_us.saturating_sub(earlier.monotonic_us)
    }

    /// This moment is when a freeze was complete: everything with a later ctime was changed after it. Where the clock was set back
    /// until `now`, what was changed since has an earlier one, so more is marked rather than less.
    pub fn flag_after_us(self, now: Moment) -> i64 {
        // The clock of ctime moves in ticks: a change right after the thaw may fall into the tick of the freeze.
        self.wall_us.saturating_add(now.drift_us(self).min(0)).saturating_sub(1)
    }

    /// By how much the wall clock was set back between `earlier` and this moment, if it was.
    pub fn clock_was_set_back_us(self, earlier: Moment) -> Option<i64> {
        let drift_us = self.drift_us(earlier);
        (drift_us < -SLEW_US).then(|| drift_us.saturating_neg())
    }

    /// How much further the wall clock went than time.
    fn drift_us(self, earlier: Moment) -> i64 {
        self.wall_us.saturating_sub(earlier.wall_us).saturating_sub(self.since_us(earlier))
    }
}

/// Tells by its ctime whether an entry was changed after a freeze.
#[derive(Debug, Clone, Copy)]
pub struct ChangedAfter {
    after_us: i64,
    frozen: Option<Moment>,
}

impl ChangedAfter {
    /// After this time by the guest's clock, whatever the clock did.
    pub fn time(after_us: i64) -> ChangedAfter {
        ChangedAfter { after_us, frozen: None }
    }

    /// After this freeze; the walk begins at `began`.
    pub fn freeze(frozen: Moment, began: Moment) -> ChangedAfter {
        ChangedAfter { after_us: frozen.flag_after_us(began), frozen: Some(frozen) }
    }

    /// Whether it was, or may have been.
    pub fn holds(self, ctime_us: i64) -> bool {
        ctime_us > self.after_us && self.holds_at(ctime_us, Moment::now)
    }

    /// A ctime that lies ahead was written before the clock was set back. If that was before the freeze, so was the change.
    fn holds_at(self, ctime_us: i64, now: impl FnOnce() -> Moment) -> bool {
        self.frozen.is_none_or(|frozen| {
            let now = now();
            ctime_us <= now.wall_us.saturating_add(SLEW_US) || now.clock_was_set_back_us(frozen).is_some()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROZEN: Moment = Moment { wall_us: 5_000_000_000, monotonic_us: 70 };

    #[test]
    fn what_changed_in_the_tick_of_the_freeze_counts_as_after_it() {
        let now = Moment { wall_us: FROZEN.wall_us + 90_000_000, monotonic_us: 70 + 90_000_000 };
        assert_eq!(FROZEN.flag_after_us(now), FROZEN.wall_us - 1);
        assert_eq!(now.clock_was_set_back_us(FROZEN), None);
    }

    #[test]
    fn a_clock_that_was_set_back_after_the_freeze_hides_no_change() {
        // An hour back, a minute after the freeze: a file changed since has at least this ctime.
        let now = Moment { wall_us: FROZEN.wall_us + 60_000_000 - 3_600_000_000, monotonic_us: 70 + 60_000_000 };
        assert!(FROZEN.flag_after_us(now) < FROZEN.wall_us - 3_600_000_000 + 1);
        assert_eq!(now.clock_was_set_back_us(FROZEN), Some(3_600_000_000));
    }

    #[test]
    fn what_was_written_before_the_clock_was_set_back_before_the_freeze_is_not_marked() {
        let minute = |wall_us| Moment { wall_us: FROZEN.wall_us + wall_us, monotonic_us: 70 + 60_000_000 };
        let (as_it_went, set_back) = (minute(60_000_000), minute(60_000_000 - 3_600_000_000));
        let changed = ChangedAfter::freeze(FROZEN, FROZEN);
        let a_year_ahead = FROZEN.wall_us + 31_536_000_000_000;
        assert!(!changed.holds_at(a_year_ahead, || as_it_went));
        assert!(changed.holds_at(FROZEN.wall_us + 59_000_000, || as_it_went));
        // Set back since the freeze: nobody knows by which clock it was written.
        assert!(changed.holds_at(a_year_ahead, || set_back));
        assert!(ChangedAfter::time(0).holds(a_year_ahead));
        assert!(!changed.holds(FROZEN.wall_us - 1));
    }

    #[test]
    fn a_clock_that_was_set_forward_marks_as_before() {
        let now = Moment { wall_us: FROZEN.wall_us + 3_600_000_000, monotonic_us: 80 };
        assert_eq!(FROZEN.flag_after_us(now), FROZEN.wall_us - 1);
    }
}
