//! Sessions, their tasks and steps, and the stream of their events.

use crate::infrastructure::ProxyExplanation;
use crate::proxy_tier::ProxyChoice;
use crate::timing::RetryOf;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use uuid::Uuid;

/// One run of a job (or of `quiesce`, `rehearse`, `test`), without its tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionSummary {
    /// Number, counted up from 1.
    pub id: i64,
    /// `backup`, `quiesce`, `rehearse` or `test`.
    pub kind: String,
    /// Job's name.
    pub job: Option<String>,
    /// When the run was due that the job's schedule began; null where somebody began it, or where it is a retry.
    pub scheduled_for: Option<String>,
    /// Which further attempt at failed tasks it is.
    pub retry: Option<RetryOf>,
    /// `running` or `finished`.
    pub state: String,
    /// `success`, `warning`, `failed` or `cancelled`, once finished.
    pub result: Option<String>,
    /// When it began.
    pub started_at: String,
    /// When it ended.
    pub ended_at: Option<String>,
    /// VMs that it works on.
    pub vms: Vec<String>,
}

/// A session with its tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// The session.
    #[serde(flatten)]
    pub summary: SessionSummary,
    /// One task per VM.
    pub tasks: Vec<Task>,
    /// Warnings and remarks about the session as a whole, those that came after its end too.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Number of its newest event: a stream from here misses none.
    pub last_event: u64,
}

/// The work on one VM in one session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Id.
    pub id: Uuid,
    /// VM's name.
    pub vm: String,
    /// `waiting`, `running`, `recovering` or `finished`.
    pub state: String,
    /// `success`, `warning`, `failed` or `cancelled`, once finished.
    pub result: Option<String>,
    /// Why it did not succeed.
    pub failure: Option<Failure>,
    /// Which proxy was chosen, and why.
    pub proxy: Option<ProxyExplanation>,
    /// Where a proxy lost the task: the choices before, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_choices: Vec<ProxyChoice>,
    /// Steps in the order in which they began.
    pub steps: Vec<Step>,
    /// Consistency level reached.
    pub level: Option<String>,
    /// Why the level is not better.
    pub level_reasons: Vec<String>,
    /// From *freeze* sent to *thaw* answered, in microseconds.
    pub freeze_window_us: Option<u64>,
    /// What it left.
    pub restore_point: Option<Uuid>,
    /// Proof that nothing stayed behind.
    pub receipt: Option<Receipt>,
    /// What the guest is (operating system, file systems, applications), as the runtime component reported it.
    #[schema(value_type = Option<Object>)]
    pub inventory: Option<serde_json::Value>,
    /// Warnings and remarks.
    pub notes: Vec<String>,
}

/// One step of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// `connect`, `deploy`, `inventory`, `pre-script`, `quiesce`, `freeze`, `snapshot`, `thaw`, …
    pub step: String,
    /// `running`, `ok`, `warning`, `failed`, `skipped` or `cancelled`.
    pub state: String,
    /// One line for people.
    pub detail: String,
    /// When it began.
    pub started_at: String,
    /// How long it took, in microseconds, once over.
    pub took_us: Option<u64>,
    /// Progress, where it has one.
    pub done_bytes: Option<u64>,
    /// Whole of the progress.
    pub total_bytes: Option<u64>,
}

/// Why a task did not succeed: hop, cause and remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// Step at which it failed.
    pub step: String,
    /// Which hop or part failed.
    pub hop: String,
    /// Why.
    pub cause: String,
    /// What to do.
    pub remedy: String,
    /// All of it in one sentence.
    pub text: String,
}

/// Proof that nothing stayed behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    /// Whether the guest could be looked at.
    pub guest_checked: bool,
    /// Whether the hypervisor could be looked at.
    pub hypervisor_checked: bool,
    /// What of ours is left in the guest; empty is the promise.
    pub left_in_guest: Vec<String>,
    /// What of ours is left in the hypervisor and not owed; empty is the promise.
    pub left_in_hypervisor: Vec<String>,
    /// What rightly remains: authentication log, wtmp, sudo's timestamp.
    pub rightly_remains: Vec<String>,
}

/// One event of a session. Stored before it is sent; `seq` grows by one from 1 within a session, so that a stream that
/// reconnects with the last number it saw misses none and sees none twice. Progress is not stored: it has number 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionEvent {
    /// Number within the session.
    pub seq: u64,
    /// When.
    pub at: String,
    /// Which task, where it is about one.
    pub task: Option<Uuid>,
    /// VM's name, where it is about one.
    pub vm: Option<String>,
    /// What happened.
    pub event: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum EventKind {
    /// The session began.
    SessionStarted,
    /// A proxy was chosen for the task.
    ProxyChosen {
        /// Which, and why.
        explanation: ProxyExplanation,
    },
    /// A step began.
    StepStarted {
        /// Step's name.
        step: String,
        /// One line for people.
        detail: String,
    },
    /// A step ended.
    StepEnded {
        /// Step's name.
        step: String,
        /// `ok`, `warning`, `failed`, `skipped` or `cancelled`.
        state: String,
        /// One line for people.
        detail: String,
        /// How long it took, in microseconds.
        took_us: u64,
    },
    /// A step came further; sent at most a few times a second, with `seq` 0.
    Progress {
        /// Step's name.
        step: String,
        /// Bytes done.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// A remark.
    Note {
        /// `info` or `warning`.
        level: String,
        /// Text.
        text: String,
    },
    /// The guest is frozen.
    Frozen {
        /// File systems frozen.
        file_systems: u32,
    },
    /// The guest is thawed.
    Thawed {
        /// From *freeze* sent to *thaw* answered, in microseconds.
        window_us: u64,
        /// Whether it was frozen without a gap.
        no_gap: bool,
    },
    /// `quiesce`: the guest is at rest; the command may run. Renew until it ended.
    HoldReady {
        /// Facts for the command's environment.
        facts: BTreeMap<String, String>,
    },
    /// The task is over.
    TaskFinished {
        /// `success`, `warning`, `failed` or `cancelled`.
        result: String,
        /// Consistency level reached.
        level: Option<String>,
        /// Why it did not succeed.
        failure: Option<Failure>,
    },
    /// The session is over; last event of all.
    SessionFinished {
        /// `success`, `warning`, `failed` or `cancelled`.
        result: String,
    },
}

/// How a `quiesce` command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HoldEnd {
    /// Whether it succeeded.
    pub succeeded: bool,
    /// `exit code 0`, …
    pub detail: String,
}

/// What `quiesce` wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuiesceRequest {
    /// Guest processing settings for this hold.
    #[serde(default)]
    pub guest: crate::job::GuestSettings,
}
