//! When a job runs by itself, and what is tried again. Knows no clock: `now` is an argument. Who asks every few seconds is the server.
//!
//! A schedule is a cron expression of five fields (minute, hour, day of month, month, day of week) in a time zone of its own: *every night at
//! two* stays two o'clock when the clocks change. Times that fall into one look (the server slept, the clock jumped) make one run, not several.

use crate::failover::FailureClass;
use crate::ids::VmId;
use crate::instant::{after_ms, before_ms};
use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// A run that begins so much later than it was due counts as missed.
pub const LATE_MS_MAX: u64 = 60_000;
/// What was seen to lies at most so far ahead of the clock, or it is not believed: see [`seen_to`].
pub const AHEAD_MS_MAX: u64 = 24 * 3_600_000;
/// Longest pause before failed tasks are tried again: a day.
pub const PAUSE_S_MAX: u32 = 86_400;
/// Most further attempts.
pub const TIMES_MAX: u32 = 20;

/// When a job runs by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Five fields: minute, hour, day of month, month, day of week.
    pub cron: String,
    /// Name of a time zone (`Europe/Berlin`), or `UTC`.
    pub time_zone: String,
    /// A run that was missed, because the server was down, is made up for once it is back.
    #[serde(default = "yes")]
    pub run_missed: bool,
}

fn yes() -> bool {
    true
}

/// What the clock says about a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Not before `next`; `None` where it never comes again.
    NotYet {
        /// The next time.
        next: Option<Timestamp>,
    },
    /// The run of `at` is due now.
    Run {
        /// When it was due; the first such time where several were missed.
        at: Timestamp,
        /// It comes late, because nobody could begin it in time.
        late: bool,
    },
    /// The run of `at` was missed, and the schedule does not make up for it.
    Skip {
        /// When it was due.
        at: Timestamp,
    },
}

impl Schedule {
    /// What is wrong with it.
    ///
    /// # Errors
    /// One sentence.
    pub fn validate(&self) -> Result<(), String> {
        self.parsed().map(drop)
    }

    /// The first time after `after`; `None` where it never comes (30 February), or where the schedule is not valid.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let (cron, zone) = self.parsed().ok()?;
        cron.find_next_occurrence(&after.to_zoned(zone), false).ok().map(|next| next.timestamp())
    }

    /// What is due at `now`, where everything up to `since` was seen to. Whoever acts on the answer has seen to everything up to `now`.
    pub fn due(&self, since: Timestamp, now: Timestamp) -> Due {
        let next = self.next_after(since);
        let Some(first) = next.filter(|first| *first <= now) else { return Due::NotYet { next } };
        // Of several, the youngest decides whether this is in time.
        let in_time = self.next_after(since.max(before_ms(now, LATE_MS_MAX))).filter(|at| *at <= now);
        match in_time {
            Some(at) => Due::Run { at, late: false },
            None if self.run_missed => Due::Run { at: first, late: true },
            None => Due::Skip { at: first },
        }
    }

    fn parsed(&self) -> Result<(Cron, TimeZone), String> {
        let fields = self.cron.split_whitespace().count();
        if fields != 5 {
            return Err(format!(
                "schedule {:?} has {fields} fields; it needs 5: minute, hour, day of month, month, day of week",
                self.cron
            ));
        }
        let zone = TimeZone::get(&self.time_zone)
            .map_err(|_| format!("there is no time zone {:?}; write it like Europe/Berlin, or UTC", self.time_zone))?;
        let cron = Cron::from_str(&self.cron).map_err(|e| format!("schedule {:?} cannot be read: {e}", self.cron))?;
        Ok((cron, zone))
    }
}

/// What counts as seen to at `now`, where the clock said `since` when it was last looked at. A clock that was set back runs nothing twice: what was
/// seen to stays so. Only one that was wrong by more than a day had seen a future that must not keep jobs from running for as long.
pub fn seen_to(since: Timestamp, now: Timestamp) -> Timestamp {
    if since > after_ms(now, AHEAD_MS_MAX) { now } else { since }
}

/// What is done about tasks that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retries {
    /// How often failed tasks are tried again; 0 for never. Default 3.
    pub times: u32,
    /// How long to wait before, in seconds. Default 600.
    pub pause_s: u32,
}

impl Default for Retries {
    fn default() -> Self {
        Self { times: 3, pause_s: 600 }
    }
}

impl Retries {
    /// What is out of bounds, one sentence each.
    pub fn validate(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.times > TIMES_MAX {
            wrong.push(format!("retries: at most {TIMES_MAX} times"));
        }
        if self.pause_s > PAUSE_S_MAX {
            wrong.push(format!("retries: a pause of at most {PAUSE_S_MAX} s"));
        }
        wrong
    }

    /// The VMs to try again, after a session that was the attempt `attempt` (0 for the first) ended at `ended` with these failures; and when.
    /// A refusal is never tried again: another attempt could lock the account.
    pub fn after(
        &self,
        attempt: u32,
        ended: Timestamp,
        failures: &[(VmId, FailureClass)],
    ) -> Option<(Vec<VmId>, Timestamp)> {
        let again: Vec<VmId> =
            failures.iter().filter(|(_, class)| may_be_tried_again(*class)).map(|(vm, _)| *vm).collect();
        (attempt < self.times && !again.is_empty()).then(|| (again, after_ms(ended, u64::from(self.pause_s) * 1_000)))
    }
}

/// Whether time may mend a failure of this class. What waits for a person, or was a person's wish, is not tried again.
fn may_be_tried_again(class: FailureClass) -> bool {
    match class {
        FailureClass::RefusedCredential
        | FailureClass::ChangedHostKey
        | FailureClass::Cancelled
        | FailureClass::Caller
        | FailureClass::Gone => false,
        FailureClass::GuestUnreachable
        | FailureClass::ProxyUnreachable
        | FailureClass::ProxyLost
        | FailureClass::NoProxy
        | FailureClass::GuestSide
        | FailureClass::Script
        | FailureClass::Application
        | FailureClass::FileSystem
        | FailureClass::Hypervisor
        | FailureClass::VmBusy
        | FailureClass::Repository
        | FailureClass::ServerRestarted
        | FailureClass::Internal => true,
    }
}
