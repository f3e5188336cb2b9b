//! How work is shared out over the guest interaction proxies: previews of a job, the choices of a task, and the load over time.

use crate::infrastructure::ProxyExplanation;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which proxy would serve which VM if a job ran now and nothing else did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobPreview {
    /// Job's name.
    pub job: String,
    /// Its VMs, in the order in which they are worked on.
    pub vms: Vec<VmPreview>,
    /// What each proxy gets, most tasks first; those that get none too.
    pub proxies: Vec<ProxyShare>,
    /// What else a person should know: what saving the job again would say, what the preview cannot know.
    pub notes: Vec<String>,
}

/// What would become of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmPreview {
    /// VM's name.
    pub vm: String,
    /// Who serves it; nothing where nobody can.
    pub proxy: Option<String>,
    /// Tier 1 (best) to 4; nothing where no proxy is needed to reach the guest.
    pub tier: Option<u8>,
    /// How the guest is reached.
    pub channel: Option<String>,
    /// 1: it begins at once. Otherwise it waits for a slot: after so many turns, if all tasks took equally long. 0 where nobody serves it.
    pub turn: u32,
    /// One sentence.
    pub why: String,
    /// Where nobody can serve it: the reason against each server, bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<String>,
}

/// What one proxy would get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProxyShare {
    /// Name of its managed server.
    pub proxy: String,
    /// `online`, `offline`, `draining` or `disabled`.
    pub state: String,
    /// Tasks in all.
    pub tasks: u32,
    /// Tasks that begin at once.
    pub at_once: u32,
    /// Its task slots.
    pub slots: u32,
    /// Tasks in tiers 1 to 4.
    pub by_tier: Vec<u32>,
}

/// One time that a task was given to a proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProxyChoice {
    /// When.
    pub at: String,
    /// Which, and why.
    pub explanation: ProxyExplanation,
    /// When the proxy was done with it, where that is known.
    pub ended_at: Option<String>,
    /// How it was done: `success`, `warning`, `failed`, `cancelled`, `handed-on` where another proxy took over, or `not-begun`
    /// where the backup server stopped before it began.
    pub ended: Option<String>,
}

/// What the proxies did over time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoadReport {
    /// From when on.
    pub since: String,
    /// To when.
    pub until: String,
    /// Length of a bucket in seconds: an hour or a day, aligned in UTC.
    pub bucket_s: u64,
    /// Beginning of each bucket.
    pub buckets: Vec<String>,
    /// Each proxy, by name: those that are there, and those that were.
    pub proxies: Vec<ProxyLoad>,
}

/// What one proxy did over time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProxyLoad {
    /// Name of its managed server.
    pub proxy: String,
    /// All of it.
    pub total: Load,
    /// By bucket, in the order of the report's.
    pub buckets: Vec<Load>,
}

/// Work of a proxy in some time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Load {
    /// Tasks that it was given.
    pub tasks: u32,
    /// Time that it spent on tasks, in microseconds; two tasks at once count twice.
    pub busy_us: u64,
    /// Tasks in tiers 1 to 4.
    pub by_tier: [u32; 4],
    /// Tasks that another proxy had to take over.
    pub failovers: u32,
}
