//! Late binding: which waiting tasks get which free slots now. Knows no task's state and no clock; the same input gives
//! the same plan, whatever the order of its lists.
//!
//! *Fair*: the next slot goes to the job with the fewest running tasks, then to the one whose task waits longest.
//! *Local first*: a task waits for a free slot in its best tier; after each [`SPILL_AFTER_MS`] the next tier may take it
//! too, so that one slow local proxy does not starve a site. Servers that failed with the VM lately are tiers of their
//! own, after all others.
//!
//! *Limits*: at each hypervisor host and into each repository only so many tasks run at once ([`Limits`]), so that snapshots do not
//! pile up. A task that a limit holds up waits and does not spill, since another server would not help it; it is in nobody's way.
//!
//! Made for a hundred thousand VMs among a thousand proxies: feasibility is computed once for each kind of task
//! ([`Kind`]), networks are looked up by prefix, and no reason is put into words here. Ask [`crate::selection::select`]
//! for the words.

use crate::failover::FailureMemory;
use crate::ids::{HostId, JobId, RepositoryId, ServerId, TaskId};
use crate::infrastructure::{CredentialKind, ManagedServer, Vm};
use crate::licence::Licence;
use crate::selection::{SelectionRules, Tier};
use crate::settings::ProxyPolicy;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

mod fleet;
mod limits;
mod plan;

pub use limits::Limits;
pub use plan::dispatch;

/// A task that found no slot for so long may go to the next tier.
pub const SPILL_AFTER_MS: u64 = 60_000;

/// A task that waits for a proxy.
#[derive(Debug, Clone, Copy)]
pub struct WaitingTask<'a> {
    /// Its id.
    pub task: TaskId,
    /// Its job.
    pub job: JobId,
    /// Its VM.
    pub vm: &'a Vm,
    /// The kind of the credential that will be used, if there is one.
    pub credential: Option<CredentialKind>,
    /// The job's policy for this VM.
    pub policy: &'a ProxyPolicy,
    /// It works in the guest. A backup that does not needs no way there: the backup server makes it, and whoever else reaches the
    /// hypervisor and may only a minute later, or where it cannot ([`crate::selection::feasible_without_guest`]).
    pub in_guest: bool,
    /// It works at the VM's hypervisor too: see [`crate::selection::Request::at_hypervisor`]. Such tasks count against the host's limit.
    pub at_hypervisor: bool,
    /// The repository that it writes to, if it does; it counts against that one's limit.
    pub repository: Option<RepositoryId>,
    /// Servers that had their turn in this task.
    pub tried: &'a [ServerId],
    /// Since when it waits.
    pub waiting_since: Timestamp,
    /// When a limit held it up for the last time ([`StillWaiting::because`]): it has waited for a slot since then only.
    pub held_up_at: Option<Timestamp>,
}

/// What the infrastructure looks like now.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// Every managed server, with its present load.
    pub servers: &'a [ManagedServer],
    /// The licence in force.
    pub licence: Licence,
    /// The infrastructure's rules.
    pub rules: SelectionRules,
    /// Remembered failures.
    pub failures: &'a FailureMemory,
    /// Tasks that run now, by job.
    pub running_per_job: &'a BTreeMap<JobId, u32>,
    /// How many tasks may run at once at one host and into one repository.
    pub limits: &'a Limits,
    /// Tasks that run now and work at the hypervisor, by host.
    pub running_per_host: &'a BTreeMap<HostId, u32>,
    /// Tasks that run now and write to a repository, by repository.
    pub running_per_repository: &'a BTreeMap<RepositoryId, u32>,
    /// [`SPILL_AFTER_MS`], or what the administrator set.
    pub spill_after_ms: u64,
}

/// A task and the server that gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The task.
    pub task: TaskId,
    /// The server.
    pub server: ServerId,
    /// How near the server is to the VM; `None` where that does not matter, since nothing is done in the guest.
    pub tier: Option<Tier>,
    /// It failed with this VM lately.
    pub recently_failed: bool,
}

/// What a task waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Because {
    /// A slot on a server of the tiers that are open to it.
    Slots,
    /// Another task at this hypervisor host to end.
    HostLimit {
        /// Which host.
        host: HostId,
        /// So many may run there at once.
        tasks_max: u32,
    },
    /// Another task into this repository to end.
    RepositoryLimit {
        /// Which repository.
        repository: RepositoryId,
        /// So many may run at once.
        tasks_max: u32,
    },
}

/// A task that goes on waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StillWaiting {
    /// The task.
    pub task: TaskId,
    /// How many further tiers may take it already.
    pub spilled: u32,
    /// When the next tier may take it.
    pub next_tier_at: Timestamp,
    /// What it waits for.
    pub because: Because,
}

/// What to do with the queue now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// In the order in which they are to be dispatched.
    pub assignments: Vec<Assignment>,
    /// Tasks that some server could serve, but whose tiers are full, or that a limit holds up.
    pub waiting: Vec<StillWaiting>,
    /// Tasks that no server can serve; [`crate::selection::select`] says why.
    pub unservable: Vec<TaskId>,
}
