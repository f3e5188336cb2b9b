//! The task lease: for how long a task belongs to a proxy. Both sides' arithmetic, on their own monotonic clocks; knows no wire and
//! compares no clocks.
//!
//! ```text
//!   proxy   asks n at p0 ─────────────► end = p0 + lease          nothing of the task runs after that
//!   server            grants n at s0 ─► end = s0 + lease          s0 comes after p0, so this end comes later
//! ```
//!
//! Nothing is begun before the first grant, so a task that was never granted was never begun. Before its end without a new
//! grant, [`UNDO_MS`] are left to thaw, undo and sweep.
//!
//! What the proxy holds, the guest's lock and the hypervisor's one client, it uses until the lease's end: whoever takes the task over evicts it, or
//! finds the monitor taken. What it does not hold it *enters* only under a fresh grant ([`Holder::may_enter`]): a proxy that stood still, and
//! wakes under a lease that still holds, would else begin where the next one has just been, or has just ended.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// From one ask to the end, by the clock of who asked.
pub const TASK_LEASE_MS: u64 = 300_000;
/// The proxy asks so often.
pub const ASK_EVERY_MS: u64 = 60_000;
/// So long before the end the proxy begins to undo.
pub const UNDO_MS: u64 = 60_000;
/// The first grant is waited for so long; then the task was never begun.
pub const FIRST_GRANT_MS_MAX: u64 = 30_000;
/// A guest is entered and a hypervisor connected to only under a grant that was asked for less than this ago. Whoever takes a task from a
/// proxy that may live waits at least so long after its last grant, and longer than a line needs to be known as broken.
pub const ENTER_MS_MAX: u64 = 45_000;
/// Asks without an answer that are remembered; an answer to an older one changes nothing.
const ASKS_MAX: usize = 16;

/// What the holder may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum May {
    /// Not begin: there was no grant yet.
    Wait,
    /// Work.
    Work,
    /// Only undo.
    Undo,
    /// Nothing any more.
    Nothing,
}

/// The proxy's side. All times are milliseconds of its own monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Holder {
    asked: u64,
    open: VecDeque<(u64, u64)>,
    end_ms: Option<u64>,
    /// When the youngest ask was made that was granted.
    #[serde(default)]
    fresh_ms: Option<u64>,
}

impl Holder {
    /// It asks now: the number that goes with the ask.
    pub fn ask(&mut self, now_ms: u64) -> u64 {
        self.asked += 1;
        if self.open.len() == ASKS_MAX {
            self.open.pop_front();
        }
        self.open.push_back((self.asked, now_ms));
        self.asked
    }

    /// The ask of this number was granted for `lease_ms` from when it was made. An answer to an ask that is not known changes
    /// nothing, and no answer moves the end back.
    pub fn granted(&mut self, number: u64, lease_ms: u64) {
        let Some((_, asked_ms)) = self.open.iter().find(|(open, _)| *open == number) else { return };
        let end_ms = asked_ms.saturating_add(lease_ms);
        self.fresh_ms = self.fresh_ms.max(Some(*asked_ms));
        self.end_ms = Some(self.end_ms.map_or(end_ms, |known| known.max(end_ms)));
        self.open.retain(|(open, _)| *open > number);
    }

    /// When nothing of the task may run any more; `None` before the first grant.
    pub fn end_ms(&self) -> Option<u64> {
        self.end_ms
    }

    /// What it may do at `now_ms`.
    pub fn may(&self, now_ms: u64) -> May {
        match self.end_ms {
            None => May::Wait,
            Some(end_ms) if now_ms >= end_ms => May::Nothing,
            Some(end_ms) if now_ms.saturating_add(UNDO_MS) >= end_ms => May::Undo,
            Some(_) => May::Work,
        }
    }

    /// Whether it may enter the guest or connect to the hypervisor at `now_ms`; if not although it may work, it asks and waits for the answer.
    pub fn may_enter(&self, now_ms: u64) -> bool {
        self.may(now_ms) == May::Work
            && self.fresh_ms.is_some_and(|asked_ms| now_ms < asked_ms.saturating_add(ENTER_MS_MAX))
    }
}

/// The server's side: when the holder's end has surely passed. Milliseconds of the server's own monotonic clock, or any other that does not run back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Grants {
    end_ms: Option<u64>,
}

impl Grants {
    /// It grants now, for so long.
    pub fn grant(&mut self, now_ms: u64, lease_ms: u64) {
        let end_ms = now_ms.saturating_add(lease_ms);
        self.end_ms = Some(self.end_ms.map_or(end_ms, |known| known.max(end_ms)));
    }

    /// Whether anything was granted: if not, nothing was begun.
    pub fn any(&self) -> bool {
        self.end_ms.is_some()
    }

    /// Whether the holder may still work at `now_ms`.
    pub fn holds(&self, now_ms: u64) -> bool {
        self.end_ms.is_some_and(|end_ms| now_ms < end_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_begun_before_the_first_grant_and_the_end_is_undone_in_time() {
        let mut holder = Holder::default();
        let first = holder.ask(1_000);
        assert_eq!(holder.may(1_000), May::Wait);
        holder.granted(first, TASK_LEASE_MS);
        assert_eq!(holder.may(1_500), May::Work);
        assert_eq!(holder.may(1_000 + TASK_LEASE_MS - UNDO_MS), May::Undo);
        assert_eq!(holder.may(1_000 + TASK_LEASE_MS), May::Nothing);
    }

    #[test]
    fn what_is_not_held_yet_is_entered_only_under_a_fresh_grant() {
        let mut holder = Holder::default();
        let first = holder.ask(1_000);
        assert!(!holder.may_enter(1_000));
        holder.granted(first, TASK_LEASE_MS);
        assert!(holder.may_enter(1_000 + ENTER_MS_MAX - 1));
        // It stood still: it may go on with what it holds, and enters nothing.
        let woken_ms = 1_000 + ENTER_MS_MAX;
        assert_eq!((holder.may(woken_ms), holder.may_enter(woken_ms)), (May::Work, false));
        let again = holder.ask(woken_ms);
        holder.granted(again, TASK_LEASE_MS);
        assert!(holder.may_enter(woken_ms + 1));
    }

    proptest! {
        /// However long asks and grants are under way, in whatever order they come and whatever is lost: while the holder may do
        /// anything, the server believes that it may.
        #[test]
        fn the_holders_end_never_lies_after_the_servers(
            skew_ms in 0u64..1_000_000,
            messages in prop::collection::vec((0u64..100_000, 0u64..400_000, 0u64..400_000, any::<bool>()), 1..20),
            look_ms in 0u64..3_000_000,
        ) {
            // True time in ms; the proxy's clock is ahead by `skew_ms`.
            let (mut holder, mut grants) = (Holder::default(), Grants::default());
            let mut now_ms = 0;
            let mut arrivals = Vec::new();
            let mut last_granted_ms = None;
            for (pause_ms, up_ms, down_ms, lost) in messages {
                now_ms += pause_ms;
                let number = holder.ask(now_ms + skew_ms);
                let granted_ms = now_ms + up_ms;
                if granted_ms <= look_ms {
                    grants.grant(granted_ms, TASK_LEASE_MS);
                    last_granted_ms = last_granted_ms.max(Some(granted_ms));
                    if !lost && granted_ms + down_ms <= look_ms {
                        arrivals.push((granted_ms + down_ms, number));
                    }
                }
            }
            arrivals.sort_unstable();
            for (_, number) in arrivals {
                holder.granted(number, TASK_LEASE_MS);
            }
            if matches!(holder.may(look_ms + skew_ms), May::Work | May::Undo) {
                prop_assert!(grants.holds(look_ms));
            }
            // Who enters was granted the task less than that ago, by the server's count too.
            if holder.may_enter(look_ms + skew_ms) {
                prop_assert!(last_granted_ms.is_some_and(|ms| look_ms < ms + ENTER_MS_MAX));
            }
        }
    }
}
