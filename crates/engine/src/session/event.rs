//! What happens to a task, what must be done about it, and the transition that carries both. Decides nothing.

use super::{Ending, Left, Owed, TaskState};
use crate::failover::FailureClass;
use crate::ids::{RestorePointId, ServerId, TaskId};
use crate::timeline::Step;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a proxy reports about a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum ProxyReport {
    /// It has the task.
    Accepted,
    /// A step begins.
    StepStarted {
        /// Which.
        step: Step,
    },
    /// A step ended; whether well is told by what follows. The post-thaw script is then no longer owed, however it ended: it
    /// is not run twice.
    StepEnded {
        /// Which.
        step: Step,
    },
    /// The guest acknowledged a freeze.
    Frozen {
        /// Which.
        freeze_id: u64,
    },
    /// The guest confirmed the thaw of that freeze.
    Thawed {
        /// Which.
        freeze_id: u64,
    },
    /// The hypervisor creates the backup file.
    FileStarted {
        /// Where.
        path: String,
    },
    /// Nothing of ours is left in the hypervisor.
    Swept,
    /// A fresh look into the guest found nothing of ours.
    ReceiptClean,
    /// Nothing was done in the guest beyond logging in, and nothing will be.
    GuestUntouched,
    /// It is done with the task.
    Finished {
        /// How the task ended.
        ending: Ending,
        /// What it could not undo. A guest that was never reached is not owed anything.
        owed: Owed,
    },
}

/// Which half of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveryPart {
    /// Thawing and sweeping the guest, and its post-thaw script.
    Guest,
    /// Sweeping the hypervisor and removing the partial file.
    Hypervisor,
}

/// What happened to a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum TaskEvent {
    /// The dispatcher gives it to a proxy.
    Dispatch {
        /// Which.
        proxy: ServerId,
        /// Where the backup will be written, if one will.
        partial_file: Option<String>,
        /// This task, where its settings have a post-thaw script.
        post_script: Option<TaskId>,
        /// What the last task that worked in this guest left there.
        left: Option<Left>,
        /// The proxy is a process of its own: it goes on with the task when the backup server stops.
        #[serde(default)]
        outlives_server: bool,
    },
    /// The backup server lets the proxy have the task until then; written down before the proxy hears of it.
    LeaseGranted {
        /// The dispatch it belongs to.
        epoch: u64,
        /// The end of the lease by the backup server's clock; the proxy's own lies before it.
        until: Timestamp,
    },
    /// No server can serve it.
    NoProxy {
        /// Why, in words and bounded; a whole sentence.
        cause: String,
        /// What to do about it.
        remedy: String,
    },
    /// The task never was the proxy's, for sure: no connection in all attempts, the proxy declined it, or no lease was
    /// granted before it was gone.
    NotDelivered {
        /// The dispatch it belongs to.
        epoch: u64,
        /// What was seen, in words.
        cause: String,
    },
    /// A proxy reports.
    Report {
        /// The dispatch it belongs to.
        epoch: u64,
        /// What it says.
        report: ProxyReport,
    },
    /// The restore point is verified and recorded in the store.
    RestorePointRecorded {
        /// The dispatch it belongs to.
        epoch: u64,
        /// Its id.
        restore_point: RestorePointId,
    },
    /// The proxy died or went silent.
    ProxyLost {
        /// The dispatch it belongs to.
        epoch: u64,
        /// What was seen, in words.
        cause: String,
    },
    /// A person cancels the task.
    CancelRequested,
    /// The backup server starts again and finds the task open.
    ServerRestarted {
        /// Somebody still wants the task where it waits for a proxy. Not so where its caller went with the server: a hold,
        /// a test.
        #[serde(default)]
        waiting_goes_on: bool,
    },
    /// The post-thaw script that was owed ran to its end, well or not.
    PostScriptRan {
        /// The recovery it belongs to.
        epoch: u64,
    },
    /// The guest was thawed and swept, the post-thaw script that was owed ran, and a fresh look found nothing.
    GuestRecovered {
        /// The recovery it belongs to.
        epoch: u64,
    },
    /// The hypervisor was swept, and the partial file is gone.
    HypervisorSwept {
        /// The recovery it belongs to.
        epoch: u64,
    },
    /// A half of the recovery failed.
    RecoveryFailed {
        /// The recovery it belongs to.
        epoch: u64,
        /// Which half.
        part: RecoveryPart,
        /// What kind of failure: after a refused credential there is no further attempt.
        class: FailureClass,
        /// Why, in words.
        cause: String,
    },
}

/// What must be done once the new state is persisted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Action {
    /// Send the task to the proxy.
    SendTask {
        /// To whom.
        proxy: ServerId,
        /// The number of this dispatch.
        epoch: u64,
    },
    /// Take the task up again with the proxy that has it, once that is heard of, and tell it of a cancellation that was
    /// asked for. Where the proxy never had the task, answer with [`TaskEvent::NotDelivered`]; where it has lost it or stays away, with
    /// [`TaskEvent::ProxyLost`].
    AttachTask {
        /// Which proxy.
        proxy: ServerId,
        /// The number of its dispatch.
        epoch: u64,
    },
    /// Tell the proxy to cancel it.
    CancelOnProxy {
        /// Whom.
        proxy: ServerId,
        /// The number of its dispatch.
        epoch: u64,
    },
    /// See to it that the guest is thawed and swept and that an owed post-thaw script runs; answer with
    /// [`TaskEvent::GuestRecovered`] or [`TaskEvent::RecoveryFailed`].
    RecoverGuest {
        /// The number of this recovery; a component of an older one is evicted.
        epoch: u64,
        /// Who held the task.
        last_proxy: ServerId,
        /// Wait so long before it.
        after_ms: u64,
    },
    /// Sweep the hypervisor and remove the partial file; answer with [`TaskEvent::HypervisorSwept`] or
    /// [`TaskEvent::RecoveryFailed`].
    SweepHypervisor {
        /// The number of this recovery.
        epoch: u64,
        /// The file to remove once no job writes to it.
        partial_file: Option<String>,
        /// Wait so long before it.
        after_ms: u64,
    },
    /// Remember that this proxy failed with this VM.
    RememberFailure {
        /// Which.
        proxy: ServerId,
        /// What kind of failure.
        class: FailureClass,
        /// The cause in words.
        cause: String,
    },
    /// Forget that this proxy failed with this VM.
    ForgiveProxy {
        /// Which.
        proxy: ServerId,
    },
    /// Record the refusal, so that the credential rests.
    RestCredential {
        /// Which account, and whether at login or at elevation.
        cause: String,
    },
    /// The task waits again: run the dispatcher.
    Requeue,
    /// The task is over: count it in its session.
    TaskClosed,
}

/// Why an event changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ignored {
    /// It was known already.
    Duplicate,
    /// It belongs to an older dispatch or recovery.
    StaleEpoch,
    /// The task is over.
    AfterEnd,
}

/// The next state, and what must be done once it is persisted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// The next state.
    pub state: TaskState,
    /// In this order.
    pub actions: Vec<Action>,
    /// Set where the event changed nothing.
    pub ignored: Option<Ignored>,
}
