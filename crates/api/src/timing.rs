//! When a job runs by itself, what is tried again and how long restore points are kept, as the REST interface shows it.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// When a job runs by itself. Absent members mean *default* where the job had no schedule, and *unchanged* where it had one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleSettings {
    /// Cron expression of five fields: minute, hour, day of month, month, day of week; `0 2 * * *` is every night at two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<String>,
    /// Name of the time zone that the expression is read in, as in `Europe/Berlin`; default: the backup server's own, or `UTC` where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Whether a run that was missed, because the backup server was down, is made up for; default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_missed: Option<bool>,
}

/// What is done about tasks that failed in a session that the schedule began. Absent members mean *default* in a new job and *unchanged* in a change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetrySettings {
    /// How often they are tried again; 0 for never, default 3. A refused credential is never tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// The pause before, in seconds; default 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_s: Option<u32>,
}

/// How long restore points are kept: each as long as any rule asks for it. Without any rule they are kept for good. Absent members mean *no such
/// rule* in a new job and *unchanged* in a change; 0 takes a rule away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSettings {
    /// The newest so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<u32>,
    /// Everything younger than so many days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
    /// The newest of each of the last so many weeks that have one; weeks begin on Monday.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// The newest of each of the last so many months that have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly: Option<u32>,
}

/// A run of a schedule that did not begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SkippedRun {
    /// When it was due.
    pub due_at: String,
    /// Why it did not begin.
    pub because: String,
}

/// Which further attempt at failed tasks a session is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RetryOf {
    /// Counted from 1.
    pub attempt: u32,
    /// Of how many.
    pub times: u32,
    /// Number of the session that the schedule began.
    pub session: i64,
}

/// A member that is `null` is told from one that is absent: `Some(None)` from `None`.
pub(crate) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(value).map(Some)
}
