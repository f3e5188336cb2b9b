//! The state machine of a session: the run of one job over its tasks. Knows no single task, only their counts.
//!
//! ```text
//!   Running ──CancelRequested──► Cancelling
//!      │                              │
//!      └──── no open task left ───────┴────► Finished(worst outcome)
//! ```

use super::{Outcome, TaskState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How many tasks of a session are where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskCounts {
    /// Waiting for a slot.
    pub waiting: u32,
    /// Given to a proxy.
    pub dispatched: u32,
    /// Being worked on.
    pub running: u32,
    /// Being recovered.
    pub recovering: u32,
    /// Ended in success.
    pub success: u32,
    /// Ended with a warning.
    pub warning: u32,
    /// Cancelled.
    pub cancelled: u32,
    /// Failed.
    pub failed: u32,
}

impl TaskCounts {
    /// Tasks that are not over.
    pub fn open(&self) -> u32 {
        self.waiting + self.dispatched + self.running + self.recovering
    }
}

/// Counts tasks by where they stand.
pub fn count<'a>(tasks: impl IntoIterator<Item = &'a TaskState>) -> TaskCounts {
    let mut counts = TaskCounts::default();
    for task in tasks {
        let counter = match (task, task.outcome()) {
            (_, Some(Outcome::Success)) => &mut counts.success,
            (_, Some(Outcome::Warning)) => &mut counts.warning,
            (_, Some(Outcome::Cancelled)) => &mut counts.cancelled,
            (_, Some(Outcome::Failed)) => &mut counts.failed,
            (TaskState::Dispatched { .. }, None) => &mut counts.dispatched,
            (TaskState::Running { .. }, None) => &mut counts.running,
            (TaskState::Recovering { .. }, None) => &mut counts.recovering,
            (TaskState::Waiting { .. } | TaskState::Finished { .. }, None) => &mut counts.waiting,
        };
        *counter += 1;
    }
    counts
}

/// The worst outcome of the tasks that are over. A session without a single task protected nothing: it failed.
pub fn session_outcome(counts: &TaskCounts) -> Outcome {
    let worst = [
        (counts.failed, Outcome::Failed),
        (counts.cancelled, Outcome::Cancelled),
        (counts.warning, Outcome::Warning),
        (counts.success, Outcome::Success),
    ];
    worst.into_iter().find(|(tasks, _)| *tasks > 0).map_or(Outcome::Failed, |(_, outcome)| outcome)
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum SessionState {
    /// Tasks are worked on.
    Running {
        /// When it began.
        since: Timestamp,
    },
    /// A person cancelled it, and its tasks come to their ends.
    Cancelling {
        /// When it began.
        since: Timestamp,
    },
    /// Every task is over.
    Finished {
        /// When it began.
        since: Timestamp,
        /// When it ended.
        at: Timestamp,
        /// The worst outcome of its tasks.
        outcome: Outcome,
    },
}

/// What happened to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum SessionEvent {
    /// The tasks stand like this now. Counts with no open task end the session.
    TasksChanged {
        /// The counts of all its tasks.
        counts: TaskCounts,
    },
    /// A person cancels the session; the caller sends `CancelRequested` to each open task.
    CancelRequested,
}

/// The next state of a session. A finished one stays as it is, so a late or repeated event is harmless.
pub fn advance_session(state: &SessionState, event: &SessionEvent, now: Timestamp) -> SessionState {
    match (*state, *event) {
        (finished @ SessionState::Finished { .. }, _) => finished,
        (
            SessionState::Running { since } | SessionState::Cancelling { since },
            SessionEvent::TasksChanged { counts },
        ) if counts.open() == 0 => SessionState::Finished { since, at: now, outcome: session_outcome(&counts) },
        (SessionState::Running { since } | SessionState::Cancelling { since }, SessionEvent::CancelRequested) => {
            SessionState::Cancelling { since }
        }
        (unchanged, SessionEvent::TasksChanged { .. }) => unchanged,
    }
}
