//! The arithmetic of the lease: when must a frozen guest be thawed?
//!
//! All times are milliseconds on the guest's `CLOCK_MONOTONIC`; nobody's clock is compared with anybody else's. Knows
//! neither clocks nor threads: `now` is an argument.

use serde::{Deserialize, Serialize};

/// Shortest and longest lease that a runtime component accepts, in milliseconds.
pub const LEASE_MS_MIN: u64 = 500;
/// See [`LEASE_MS_MIN`].
pub const LEASE_MS_MAX: u64 = 60_000;
/// Default lease: five missed renewals of one second.
pub const LEASE_MS_DEFAULT: u64 = 5_000;
/// The proxy renews this often while it waits for the snapshot.
pub const RENEW_EVERY_MS: u64 = 1_000;
/// Default budget of one freeze, from its first `FIFREEZE`.
pub const FREEZE_BUDGET_MS_DEFAULT: u64 = 30_000;
/// No freeze may last longer than this, whatever a job says (the longest hold that VSS writers know).
pub const FREEZE_BUDGET_MS_MAX: u64 = 60_000;

/// The two bounds of one freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The guest thaws when this much time passed since the last renewal, in milliseconds.
    pub lease_ms: u64,
    /// The guest thaws when this much time passed since the first `FIFREEZE`, renewed or not, in milliseconds.
    pub budget_ms: u64,
}

/// Where a lease stands at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// Holds for this much longer, in milliseconds (more than 0).
    Holds {
        /// Time until the earlier of the two bounds.
        remaining_ms: u64,
    },
    /// Not renewed in time. Final: an expired lease is never renewed.
    Expired,
    /// The freeze budget is used up. Final.
    BudgetUsed,
}

impl Default for Lease {
    fn default() -> Self {
        Lease { lease_ms: LEASE_MS_DEFAULT, budget_ms: FREEZE_BUDGET_MS_DEFAULT }
    }
}

impl Lease {
    /// Says which bound is out of range, or nothing.
    pub fn check(&self) -> Result<(), String> {
        if !(LEASE_MS_MIN..=LEASE_MS_MAX).contains(&self.lease_ms) {
            return Err(format!("lease_ms is {}, allowed are {LEASE_MS_MIN} to {LEASE_MS_MAX}", self.lease_ms));
        }
        if !(LEASE_MS_MIN..=FREEZE_BUDGET_MS_MAX).contains(&self.budget_ms) {
            return Err(format!(
                "freeze_budget_ms is {}, allowed are {LEASE_MS_MIN} to {FREEZE_BUDGET_MS_MAX}",
                self.budget_ms
            ));
        }
        Ok(())
    }

    /// The moment at which the guest must be thawed. `first_freeze_ms` is `None` before the first `FIFREEZE`: the
    /// budget does not run yet, the lease does.
    pub fn deadline_ms(&self, last_renewal_ms: u64, first_freeze_ms: Option<u64>) -> u64 {
        let lease_end = last_renewal_ms.saturating_add(self.lease_ms);
        match first_freeze_ms {
            Some(first) => lease_end.min(first.saturating_add(self.budget_ms)),
            None => lease_end,
        }
    }

    /// How the lease stands at `now_ms`.
    pub fn state(&self, now_ms: u64, last_renewal_ms: u64, first_freeze_ms: Option<u64>) -> LeaseState {
        let budget_end = first_freeze_ms.map(|first| first.saturating_add(self.budget_ms));
        if budget_end.is_some_and(|end| now_ms >= end) {
            return LeaseState::BudgetUsed;
        }
        let deadline = self.deadline_ms(last_renewal_ms, first_freeze_ms);
        if now_ms >= deadline {
            return LeaseState::Expired;
        }
        LeaseState::Holds { remaining_ms: deadline - now_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEASE: Lease = Lease { lease_ms: 5_000, budget_ms: 30_000 };

    #[test]
    fn a_lease_holds_until_its_last_millisecond() {
        assert_eq!(LEASE.state(4_999, 0, Some(0)), LeaseState::Holds { remaining_ms: 1 });
        assert_eq!(LEASE.state(5_000, 0, Some(0)), LeaseState::Expired);
    }

    #[test]
    fn renewals_never_extend_the_budget() {
        assert_eq!(LEASE.state(29_999, 29_999, Some(0)), LeaseState::Holds { remaining_ms: 1 });
        assert_eq!(LEASE.state(30_000, 29_999, Some(0)), LeaseState::BudgetUsed);
    }

    #[test]
    fn bounds_out_of_range_are_named() {
        let too_long = Lease { budget_ms: 60_001, ..LEASE };
        assert_eq!(too_long.check().unwrap_err(), "freeze_budget_ms is 60001, allowed are 500 to 60000");
        assert!(Lease { lease_ms: 0, ..LEASE }.check().is_err());
        assert!(LEASE.check().is_ok());
    }

    proptest! {
        #[test]
        fn no_freeze_outlives_either_bound(now in 0u64..200_000, renewed in 0u64..100_000, first in 0u64..100_000) {
            let holds = matches!(LEASE.state(now, renewed, Some(first)), LeaseState::Holds { .. });
            prop_assert_eq!(holds, now < renewed + LEASE.lease_ms && now < first + LEASE.budget_ms);
        }
    }
}
