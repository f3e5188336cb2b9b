//! Who is told when a session of a job ends, and what they are told.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Whom to tell. Absent members mean *nobody* in a new job and *unchanged* in a change; an empty string removes.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NotifySettings {
    /// Address to which the summary of each session is posted: `https://…`, or `http://…` on the backup server itself.
    /// Kept as a secret: of it scheme and host are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Secret under which the body is signed: header `X-Lull-Signature: sha256=` and HMAC-SHA256 of the body in
    /// hexadecimal. Never shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// `always` (default) or `problems`: only after sessions that did not end in success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// Name of a program in the backup server's folder `commands/`, which gets the summary on its standard input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

impl NotifySettings {
    /// Whether nothing is given.
    pub fn is_empty(&self) -> bool {
        *self == NotifySettings::default()
    }
}

impl std::fmt::Debug for NotifySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let NotifySettings { on, command, .. } = self;
        f.debug_struct("NotifySettings").field("on", on).field("command", command).finish_non_exhaustive()
    }
}

/// Who is told, as a job shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Notify {
    /// Scheme and host of the address to which summaries are posted. The rest of it is secret.
    pub url: Option<String>,
    /// Whether the body is signed.
    pub has_secret: bool,
    /// `always` or `problems`.
    pub on: String,
    /// Program in the backup server's folder `commands/`.
    pub command: Option<String>,
}

/// What is posted and what a program gets on its standard input: how a session of a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionReport {
    /// Version of this document: 1. Members are only ever added.
    pub format: u32,
    /// Number of the session.
    pub session: i64,
    /// Job's name.
    pub job: String,
    /// `success`, `warning`, `failed` or `cancelled`.
    pub result: String,
    /// When it began.
    pub started_at: String,
    /// When it ended.
    pub ended_at: Option<String>,
    /// One for each VM.
    pub vms: Vec<VmReport>,
}

/// How the work on one VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmReport {
    /// VM's name.
    pub vm: String,
    /// `success`, `warning`, `failed` or `cancelled`.
    pub result: String,
    /// Consistency level reached.
    pub level: Option<String>,
    /// Why it is not better.
    pub level_reasons: Vec<String>,
    /// Why it did not succeed, in one sentence.
    pub failure: Option<String>,
    /// What it left.
    pub restore_point: Option<Uuid>,
    /// `full` or `incremental`.
    pub kind: Option<String>,
    /// Size of the restore point on disk.
    pub bytes: Option<u64>,
    /// From *freeze* sent to *thaw* answered, in microseconds.
    pub freeze_window_us: Option<u64>,
    /// When its first step began.
    pub started_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
}
