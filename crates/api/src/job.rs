//! Jobs and their settings, as the REST interface shows them.

use crate::notify::{Notify, NotifySettings};
use crate::timing::{RetentionSettings, RetrySettings, ScheduleSettings, SkippedRun, present};
use crate::vm_settings::JobVm;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A backup job to save.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// Unique name.
    pub name: String,
    /// VMs in scope, by name or `HOST/VM`.
    pub vms: Vec<String>,
    /// Repository's name.
    pub repository: String,
    /// Guest processing settings; absent members take their defaults.
    #[serde(default)]
    pub guest: GuestSettings,
    /// When it runs by itself; absent or null: only when somebody runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleSettings>,
    /// What is done about tasks that failed in a scheduled session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<RetrySettings>,
    /// How long its restore points are kept; without any rule for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionSettings>,
    /// A new full backup every so many restore points; 14 unless told, 1 to 365.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_every: Option<u32>,
    /// Whom to tell when a session ends.
    #[serde(default, skip_serializing_if = "NotifySettings::is_empty")]
    pub notify: NotifySettings,
}

/// Changes to a job: absent members stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobChange {
    /// New name.
    #[serde(default)]
    pub name: Option<String>,
    /// All VMs in scope.
    #[serde(default)]
    pub vms: Option<Vec<String>>,
    /// Repository's name.
    #[serde(default)]
    pub repository: Option<String>,
    /// Settings to change; absent members stay as they are.
    #[serde(default)]
    pub guest: Option<GuestSettings>,
    /// When it runs by itself; null: only when somebody runs it. Runs that were due before the change are not made up for.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ScheduleSettings>)]
    pub schedule: Option<Option<ScheduleSettings>>,
    /// What is done about tasks that failed in a scheduled session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<RetrySettings>,
    /// How long its restore points are kept; null takes every rule away, so that they are kept for good.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<RetentionSettings>)]
    pub retention: Option<Option<RetentionSettings>>,
    /// A new full backup every so many restore points; 1 to 365.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_every: Option<u32>,
    /// Whom to tell when a session ends; absent members stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<NotifySettings>,
}

/// Guest processing settings. Absent members mean *default* in a new job and *unchanged* in a change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GuestSettings {
    /// Application-aware processing: `require-success` (default), `try` (falls back to a lower level) or `disabled`
    /// (no guest processing: crash-consistent).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_aware: Option<String>,
    /// Pre-freeze script: its text (with a `#!` line); an empty string removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_freeze_script: Option<String>,
    /// Post-thaw script; runs whenever the pre-freeze script ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub post_thaw_script: Option<String>,
    /// `require-success` (default), `ignore-failures` or `disabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scripts: Option<String>,
    /// Longest run of a script, in seconds; default 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script_timeout_s: Option<u64>,
    /// `CHECKPOINT` before the freeze; default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<bool>,
    /// Longest checkpoint, in seconds; default 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_timeout_s: Option<u64>,
    /// Thaw when not renewed for so long, in milliseconds; default 5000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// Longest freeze, in milliseconds; default 30000, at most 60000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_budget_ms: Option<u64>,
    /// Mount points that are not frozen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_mount_points: Option<Vec<String>>,
    /// Which of the guest's files go into the catalog: `everything-except-noise` (default), `everything`, `only` or
    /// `disabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub indexing: Option<String>,
    /// With `only`: absolute paths of the folders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index_paths: Option<Vec<String>>,
    /// `automatic` (default) or `prefer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_interaction_proxy: Option<String>,
    /// With `prefer`: names of the managed servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preferred_servers: Option<Vec<String>>,
    /// With `prefer`: `backup-server` (default) or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Limit of the copy, in bytes per second; 0 for none (default).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_limit_bytes_per_s: Option<u64>,
}

/// A backup job, every setting with the value that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Id.
    pub id: Uuid,
    /// Unique name.
    pub name: String,
    /// VMs in scope.
    pub vms: Vec<String>,
    /// Repository's name.
    pub repository: String,
    /// Settings.
    pub guest: GuestSettings,
    /// When it runs by itself; null: only when somebody runs it.
    pub schedule: Option<ScheduleSettings>,
    /// When it runs next by itself.
    pub next_run: Option<String>,
    /// The last run of its schedule that did not begin.
    pub last_skipped: Option<SkippedRun>,
    /// What is done about tasks that failed in a scheduled session.
    pub retries: RetrySettings,
    /// How long its restore points are kept; without any rule for good.
    pub retention: RetentionSettings,
    /// A new full backup every so many restore points.
    pub full_every: u32,
    /// Who is told when a session ends.
    #[serde(default)]
    pub notify: Notify,
    /// VMs that have settings otherwise than the job.
    #[serde(default)]
    pub overrides: Vec<JobVm>,
    /// Its last session's number.
    pub last_session: Option<i64>,
    /// That session's result, or `running`.
    pub last_result: Option<String>,
}

/// A saved job with what its validation had to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SavedJob {
    /// The job.
    pub job: Job,
    /// Things worth knowing that do not prevent it from running.
    pub warnings: Vec<String>,
}

/// What the validation of a job has to say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobValidation {
    /// What prevents the job from being saved.
    pub errors: Vec<String>,
    /// Things worth knowing that do not.
    pub warnings: Vec<String>,
}
