//! The state machines of a session and its tasks, as the backup server sees them. Knows no store, no proxy's address
//! and no clock: [`advance`] alone says what a task's next state is and what must then be done, and the caller persists
//! the state before it does it.
//!
//! ```text
//!              Dispatch            Report            Finished, nothing owed
//!    Waiting ───────────► Dispatched ─────► Running ──────────────────────► Finished
//!     ▲ │ │                   │                │ ProxyLost, ServerRestarted²,   ▲
//!     │ │ │ Dispatch, the     │                │ Finished with debts            │
//!     │ │ │ last task left    └───────┬────────┘                                │
//!     │ │ │ something                 ▼            debts paid or given up       │
//!     │ │ └─────────────────────► Recovering ───────────────────────────────────┤
//!     │ │      debts paid, the next   │                                         │
//!     └─┼─────────────────────────────┘                                         │
//!       │      proxy's turn             cancelled, no proxy, server restarted¹  │
//!       └───────────────────────────────────────────────────────────────────────┘
//! ```
//! Not drawn: what was never the proxy's goes from Dispatched or Running back to Waiting (`NotDelivered`). ¹ Only where nobody wants the task any
//! more. ² Only where the proxy died with the server. One that outlives it keeps what was granted to it: the task stays as it
//! is and is taken up again ([`Action::AttachTask`]); what was not granted yet waits again.
//!
//! **Debts.** What was sent to a proxy may have been done although no answer came. So at dispatch *everything* is
//! [`Owed`], and only evidence that something is over clears a debt; no report of progress does. A task is closed when
//! nothing is owed, or when paying was tried [`RECOVERY_ATTEMPTS_MAX`] times and what remains is recorded. The post-thaw
//! script is owed from the moment at which the pre-freeze script began.
//!
//! **Left behind.** What a closed task could not pay and the next one on its VM would stumble over ([`Left`]) is paid first:
//! that task recovers, waits again, and only then is sent to a proxy.
//!
//! **Lease.** A proxy may act on a task only until `lease_until`, and one that was never granted a lease never began. Until that instant
//! the lost proxy may rightly hold the guest or the hypervisor, so no debt is given up before one more attempt after it.
//!
//! **Epochs.** Each dispatch and each recovery has a number of its own, which goes with every command and comes back
//! with every report. A report of an older one is late and changes nothing.

use crate::ids::{RestorePointId, ServerId, TaskId};
use crate::timeline::Step;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

mod advance;
mod debts;
mod event;
mod failure;
mod recovering;
mod run;

pub use advance::{IllegalEvent, advance};
pub use debts::{FinalAccount, left_for_the_next, owed_after_finish};
pub use event::{Action, Ignored, ProxyReport, RecoveryPart, TaskEvent, Transition};
pub use failure::{Hop, Outcome, TaskFailure};
pub use run::{SessionEvent, SessionState, TaskCounts, advance_session, count, session_outcome};

/// How often a debt is tried to be paid before it is recorded as still owed; more often while the lost proxy's lease holds.
pub const RECOVERY_ATTEMPTS_MAX: u32 = 10;
/// The wait before a recovery is tried again doubles from 1 s up to this.
pub const RECOVERY_WAIT_MS_MAX: u64 = 60_000;

/// What may have to be undone for a task. A field that is set means *may be*, one that is not means *is not*.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Owed {
    /// Something of ours may be in the guest, or hold an application there.
    pub guest: bool,
    /// A file system of the guest may be frozen.
    pub frozen: bool,
    /// Something of ours may be in the hypervisor.
    pub hypervisor: bool,
    /// A backup file that is not a recorded restore point may lie here.
    pub partial_file: Option<String>,
    /// The pre-freeze script of this task ran, and its post-thaw script did not: the task's settings hold it.
    pub post_script: Option<TaskId>,
}

impl Owed {
    /// Everything, as at dispatch. A post-thaw script is owed only once its pre-freeze script began.
    pub fn everything(partial_file: Option<String>) -> Self {
        Self { guest: true, frozen: true, hypervisor: true, partial_file, post_script: None }
    }

    /// Whether nothing is owed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What remains when somebody who knows says that at most `rest` is still owed.
    pub fn at_most(&self, rest: &Self) -> Self {
        Self {
            guest: self.guest && rest.guest,
            frozen: self.frozen && rest.frozen,
            hypervisor: self.hypervisor && rest.hypervisor,
            partial_file: self.partial_file.clone().filter(|_| rest.partial_file.is_some()),
            post_script: self.post_script.filter(|_| rest.post_script.is_some()),
        }
    }
}

impl fmt::Display for Owed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.frozen {
            parts.push("the guest may still be frozen".to_owned());
        }
        if self.post_script.is_some() {
            parts.push("the post-thaw script did not run although the pre-freeze script did".to_owned());
        }
        if self.guest {
            parts.push("the guest may still hold the runtime component".to_owned());
        }
        if self.hypervisor {
            parts.push("the hypervisor may still hold jobs, nodes or filters of this task".to_owned());
        }
        if let Some(file) = &self.partial_file {
            parts.push(format!("an unfinished backup may still lie at {file}"));
        }
        if parts.is_empty() { f.write_str("nothing is left") } else { f.write_str(&parts.join(", ")) }
    }
}

/// Who holds a task, and what that may have left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The proxy.
    pub proxy: ServerId,
    /// The number of this dispatch or recovery.
    pub epoch: u64,
    /// When it was dispatched.
    pub since: Timestamp,
    /// What may have to be undone.
    pub owed: Owed,
    /// Proxies that had their turn before.
    pub tried: Vec<ServerId>,
    /// A person asked for the task to be cancelled.
    pub cancel_requested: bool,
    /// The freeze that was acknowledged and whose thaw was not confirmed yet.
    pub frozen_id: Option<u64>,
    /// The freeze whose thaw was confirmed.
    pub thawed: Option<u64>,
    /// The restore point, once it is verified and recorded. From then on no other proxy repeats the task.
    pub restore_point: Option<RestorePointId>,
    /// This task, where its settings have a post-thaw script: owed once the pre-freeze script begins.
    #[serde(default)]
    pub post_script: Option<TaskId>,
    /// The earlier task whose debts this one paid before it began.
    #[serde(default)]
    pub paid_for: Option<TaskId>,
    /// The step at which the backup server was stopped: a password that was being tried then may have been refused.
    #[serde(default)]
    pub cut_at: Option<Step>,
    /// The proxy is a process of its own: it goes on with the task when the backup server stops.
    #[serde(default)]
    pub outlives_server: bool,
    /// Until when the proxy may act on the task; `None`: it never might, so it never began. Recovering: the lost proxy's.
    #[serde(default)]
    pub lease_until: Option<Timestamp>,
}

/// What an earlier task on the VM left, as far as the next one must undo it before it begins: another freeze would fail on a
/// frozen file system, and a script that is owed would be forgotten. Folders of ours and what is in the hypervisor are
/// swept by any task on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// The task that left it.
    pub by: TaskId,
    /// What.
    pub owed: Owed,
}

impl Left {
    /// What `by`, the last task that worked in the VM's guest, left there; `None` where the next one may begin.
    pub fn of(by: TaskId, still_owed: &Owed) -> Option<Self> {
        let Owed { guest, frozen, post_script, .. } = *still_owed;
        (frozen || post_script.is_some())
            .then(|| Self { by, owed: Owed { guest, frozen, post_script, ..Owed::default() } })
    }

    /// Whether a task in this state must pay it before it is sent to a proxy.
    pub fn is_due(&self, state: &TaskState) -> bool {
        matches!(state, TaskState::Waiting { paid_for, .. } if *paid_for != Some(self.by))
    }
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Ending {
    /// Everything that was asked for.
    Success,
    /// A restore point, with something to look at.
    Warning {
        /// What, one sentence each.
        messages: Vec<String>,
    },
    /// A person cancelled it.
    Cancelled,
    /// No restore point that meets the settings.
    Failed {
        /// Why.
        failure: TaskFailure,
    },
}

impl Ending {
    /// The outcome without its details.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Success => Outcome::Success,
            Self::Warning { .. } => Outcome::Warning,
            Self::Cancelled => Outcome::Cancelled,
            Self::Failed { .. } => Outcome::Failed,
        }
    }
}

/// What becomes of a task once its debts are paid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum AfterRecovery {
    /// The next-best proxy takes it.
    Failover {
        /// Why the last one lost it.
        failure: TaskFailure,
    },
    /// It begins: what was undone is an earlier task's.
    Begin {
        /// Since when it waits for a slot.
        since: Timestamp,
        /// Why the last proxy lost it, where one had it.
        last_failure: Option<TaskFailure>,
    },
    /// It is closed.
    Close {
        /// With this.
        ending: Ending,
    },
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum TaskState {
    /// No proxy has it; nothing is owed.
    Waiting {
        /// Since when it waits for a slot; spilling into the next tier counts from here.
        since: Timestamp,
        /// The number of its last dispatch or recovery; 0 before the first.
        epoch: u64,
        /// Proxies that had their turn.
        tried: Vec<ServerId>,
        /// Why the last of them lost it.
        last_failure: Option<TaskFailure>,
        /// The earlier task whose debts this one paid.
        #[serde(default)]
        paid_for: Option<TaskId>,
    },
    /// It was given to a proxy that has not answered yet.
    Dispatched {
        /// Who holds it.
        hold: Hold,
    },
    /// The proxy works on it.
    Running {
        /// Who holds it.
        hold: Hold,
        /// The step that was begun last.
        step: Step,
        /// When it was begun.
        step_since: Timestamp,
    },
    /// What it may have left is being undone.
    Recovering {
        /// Who held it; the epoch is the recovery's.
        hold: Hold,
        /// When the recovery began.
        since: Timestamp,
        /// Failed attempts at the guest; while the lost proxy's lease holds they count only so far that two remain.
        guest_attempts: u32,
        /// Failed attempts at the hypervisor; likewise.
        hypervisor_attempts: u32,
        /// What becomes of the task then.
        then: AfterRecovery,
    },
    /// It is over.
    Finished {
        /// How it ended.
        ending: Ending,
        /// When.
        at: Timestamp,
        /// What could not be undone; the next task on this VM sees to it: see [`Left`].
        still_owed: Owed,
        /// The number of its last dispatch or recovery; 0 where nothing was ever begun.
        #[serde(default)]
        epoch: u64,
        /// The restore point it left.
        restore_point: Option<RestorePointId>,
    },
}

impl TaskState {
    /// A task that waits from `now` on.
    pub fn new(now: Timestamp) -> Self {
        Self::Waiting { since: now, epoch: 0, tried: Vec::new(), last_failure: None, paid_for: None }
    }

    /// The state's name as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::Dispatched { .. } => "dispatched",
            Self::Running { .. } => "running",
            Self::Recovering { .. } => "recovering",
            Self::Finished { .. } => "finished",
        }
    }

    /// What may have to be undone. Waiting tasks owe nothing.
    pub fn owed(&self) -> Owed {
        match self {
            Self::Waiting { .. } => Owed::default(),
            Self::Dispatched { hold } | Self::Running { hold, .. } | Self::Recovering { hold, .. } => hold.owed.clone(),
            Self::Finished { still_owed, .. } => still_owed.clone(),
        }
    }

    /// The outcome of a finished task.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Finished { ending, .. } => Some(ending.outcome()),
            _ => None,
        }
    }
}
