//! Which proxy had a task, from when to when, read off the task's states. Pure; acts on nothing.

use crate::store::dispatches::{FAILED, NOT_BEGUN};
use crate::store::writes::Write;
use lull_api::session::EventKind;
use lull_engine::session::{AfterRecovery, Hold, TaskState};
use uuid::Uuid;

/// What is to be kept of the step from one state to the next. `told` holds the choice, where one was made.
pub fn writes(task: Uuid, before: &TaskState, after: &TaskState, told: &[EventKind]) -> Vec<Write> {
    let (was, is) = (held(before), held(after));
    if was.map(|hold| hold.epoch) == is.map(|hold| hold.epoch) {
        return Vec::new();
    }
    let ended = was.map(|hold| Write::DispatchEnded { task, epoch: hold.epoch, end: end(hold, after) });
    let begun = is.map(|hold| {
        let choice = told.iter().find_map(|event| match event {
            EventKind::ProxyChosen { explanation } => Some(explanation),
            _ => None,
        });
        let name = choice.and_then(|choice| choice.chosen.clone()).unwrap_or_else(|| hold.proxy.to_string());
        let (server, tier) = (hold.proxy.0, choice.and_then(|choice| choice.tier));
        Write::Dispatched { task, epoch: hold.epoch, server, name, tier }
    });
    // Only now is it known that there was somebody to take it over.
    let failed = matches!(before, TaskState::Waiting { last_failure: Some(_), .. });
    let handed_on = is.filter(|_| failed).map(|_| Write::HandedOn { task });
    ended.into_iter().chain(handed_on).chain(begun).collect()
}

/// Who works on the task; a recovery is nobody's.
fn held(state: &TaskState) -> Option<&Hold> {
    match state {
        TaskState::Dispatched { hold } | TaskState::Running { hold, .. } => Some(hold),
        TaskState::Waiting { .. } | TaskState::Recovering { .. } | TaskState::Finished { .. } => None,
    }
}

/// How the proxy was done with it. Whether another one takes over is not known yet.
fn end(was: &Hold, after: &TaskState) -> String {
    match after {
        TaskState::Finished { ending, .. } | TaskState::Recovering { then: AfterRecovery::Close { ending }, .. } => {
            ending.outcome().to_string()
        }
        TaskState::Waiting { tried, .. } if !tried.contains(&was.proxy) => NOT_BEGUN.to_string(),
        TaskState::Recovering { then: AfterRecovery::Begin { .. }, .. } => NOT_BEGUN.to_string(),
        TaskState::Waiting { .. }
        | TaskState::Dispatched { .. }
        | TaskState::Running { .. }
        | TaskState::Recovering { then: AfterRecovery::Failover { .. }, .. } => FAILED.to_string(),
    }
}
