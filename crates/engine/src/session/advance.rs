//! The transition function of a task. The only place where a task's next state is computed; does nothing itself.

use super::debts::{leave, settle};
use super::recovering::while_recovering;
use super::{
    Action, AfterRecovery, Ending, Hold, Hop, Ignored, Owed, ProxyReport, TaskEvent, TaskFailure, TaskState, Transition,
};
use crate::failover::{FailureClass, NextMove, next_move};
use crate::timeline::Step;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// An event that no correct caller can send in this state: a bug, not bad luck.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("a {state} task cannot take this event: {why}")]
pub struct IllegalEvent {
    /// The state's name.
    pub state: String,
    /// What is wrong with it.
    pub why: String,
}

/// The next state of a task after an event, and what must be done once that state is persisted.
///
/// A duplicate or late event returns the same state, no actions and [`Transition::ignored`].
///
/// # Errors
/// [`IllegalEvent`] where the event contradicts the state: a task that is dispatched twice, or a report of a
/// dispatch that never was.
pub fn advance(state: &TaskState, event: &TaskEvent, now: Timestamp) -> Result<Transition, IllegalEvent> {
    let illegal = |why: String| IllegalEvent { state: state.name().to_owned(), why };
    if let (Some(known), Some(epoch)) = (epoch_of(state), epoch_in(event)) {
        if epoch < known {
            return Ok(ignored(state, Ignored::StaleEpoch));
        }
        if epoch > known {
            return Err(illegal(format!("it belongs to dispatch or recovery {epoch}, and the last one was {known}")));
        }
    }
    match (state, event) {
        (TaskState::Finished { .. }, TaskEvent::Dispatch { .. }) => {
            Err(illegal("it is over and cannot be dispatched".into()))
        }
        (TaskState::Finished { .. }, _) => Ok(ignored(state, Ignored::AfterEnd)),
        (TaskState::Waiting { .. }, _) => while_waiting(state, event, now).map_err(illegal),
        (TaskState::Dispatched { hold }, _) => while_held(state, hold, None, event, now).map_err(illegal),
        (TaskState::Running { hold, step, step_since }, _) => {
            while_held(state, hold, Some((*step, *step_since)), event, now).map_err(illegal)
        }
        (TaskState::Recovering { .. }, _) => while_recovering(state, event, now).map_err(illegal),
    }
}

fn while_waiting(state: &TaskState, event: &TaskEvent, now: Timestamp) -> Result<Transition, String> {
    let TaskState::Waiting { epoch, tried, last_failure, since, paid_for } = state else {
        return Err("it is not waiting".into());
    };
    let close = |ending| {
        let still_owed = Owed::default();
        let state = TaskState::Finished { ending, at: now, still_owed, epoch: *epoch, restore_point: None };
        Ok(to(state, vec![Action::TaskClosed]))
    };
    match event {
        TaskEvent::Dispatch { proxy, partial_file, post_script, left, outlives_server } => {
            if tried.contains(proxy) {
                return Err(format!("proxy {proxy} had its turn in this task"));
            }
            let mut hold = Hold {
                proxy: *proxy,
                epoch: epoch + 1,
                since: now,
                owed: Owed::everything(partial_file.clone()),
                tried: tried.clone(),
                cancel_requested: false,
                frozen_id: None,
                thawed: None,
                restore_point: None,
                post_script: *post_script,
                paid_for: *paid_for,
                cut_at: None,
                outlives_server: *outlives_server,
                lease_until: None,
            };
            if let Some(left) = left.as_ref().filter(|left| left.is_due(state)) {
                (hold.epoch, hold.owed, hold.paid_for) = (*epoch, left.owed.clone(), Some(left.by));
                let then = AfterRecovery::Begin { since: *since, last_failure: last_failure.clone() };
                let mut actions = Vec::new();
                let next = leave(hold, then, now, &mut actions);
                return Ok(to(next, actions));
            }
            let send = Action::SendTask { proxy: *proxy, epoch: hold.epoch };
            Ok(to(TaskState::Dispatched { hold }, vec![send]))
        }
        // Why the last proxy lost it says more than that no other is left.
        TaskEvent::NoProxy { cause, remedy } => close(Ending::Failed {
            failure: last_failure.clone().unwrap_or_else(|| TaskFailure {
                step: None,
                hop: Hop::ServerToProxy,
                cause: cause.clone(),
                remedy: remedy.clone(),
                class: FailureClass::NoProxy,
            }),
        }),
        TaskEvent::CancelRequested => close(Ending::Cancelled),
        TaskEvent::ServerRestarted { waiting_goes_on: true } => Ok(to(state.clone(), vec![Action::Requeue])),
        TaskEvent::ServerRestarted { waiting_goes_on: false } => {
            close(Ending::Failed { failure: last_failure.clone().unwrap_or_else(stopped_before_it_began) })
        }
        // Of the epoch whose debts were paid before it came to wait.
        _ => Ok(ignored(state, Ignored::StaleEpoch)),
    }
}

pub(super) fn stopped_before_it_began() -> TaskFailure {
    TaskFailure {
        step: None,
        hop: Hop::BackupServer,
        cause: "the backup server stopped before the task began, and nothing was done".into(),
        remedy: "run it again".into(),
        class: FailureClass::ServerRestarted,
    }
}

fn while_held(
    state: &TaskState,
    hold: &Hold,
    at: Option<(Step, Timestamp)>,
    event: &TaskEvent,
    now: Timestamp,
) -> Result<Transition, String> {
    let mut hold = hold.clone();
    let mut actions = Vec::new();
    let next = match event {
        TaskEvent::Dispatch { .. } => return Err("a proxy holds it".into()),
        TaskEvent::NoProxy { .. } => return Err("a proxy holds it".into()),
        TaskEvent::PostScriptRan { .. }
        | TaskEvent::GuestRecovered { .. }
        | TaskEvent::HypervisorSwept { .. }
        | TaskEvent::RecoveryFailed { .. } => {
            return Err("no recovery was asked for".into());
        }
        TaskEvent::Report { report: ProxyReport::Finished { ending, owed }, .. } => {
            hold.owed = hold.owed.at_most(owed);
            let then = after_finished(ending, &hold, &mut actions);
            leave(hold, then, now, &mut actions)
        }
        TaskEvent::Report { report, .. } => {
            let (step, step_since) = sharpen(&mut hold, at, report, now);
            TaskState::Running { hold, step, step_since }
        }
        TaskEvent::RestorePointRecorded { restore_point, .. } => {
            hold.restore_point = Some(*restore_point);
            hold.owed.partial_file = None;
            held(hold, at)
        }
        TaskEvent::ProxyLost { cause, .. } => {
            let failure = TaskFailure {
                step: at.map(|(step, _)| step),
                hop: Hop::ServerToProxy,
                cause: cause.clone(),
                remedy: "see to it that the proxy runs and reaches the backup server".into(),
                class: FailureClass::ProxyLost,
            };
            if never_began(&hold, at) {
                hold.owed = Owed::default();
            }
            remember(&hold, &failure, &mut actions);
            let then = after_interruption(&hold, failure, true);
            leave(hold, then, now, &mut actions)
        }
        TaskEvent::LeaseGranted { until, .. } => {
            hold.lease_until = hold.lease_until.max(Some(*until));
            held(hold, at)
        }
        TaskEvent::NotDelivered { .. } if hold.lease_until.is_some() => {
            return Err("it was granted to the proxy".into());
        }
        TaskEvent::NotDelivered { .. } if at.is_some() && !never_began(&hold, at) => {
            return Err("the proxy reported on it already".into());
        }
        TaskEvent::NotDelivered { cause, .. } => {
            let failure = TaskFailure {
                step: None,
                hop: Hop::ServerToProxy,
                cause: cause.clone(),
                remedy: "see to it that the proxy runs and reaches the backup server".into(),
                class: FailureClass::ProxyUnreachable,
            };
            hold.owed = Owed::default();
            remember(&hold, &failure, &mut actions);
            let then = after_interruption(&hold, failure, true);
            leave(hold, then, now, &mut actions)
        }
        // The proxy lives and has the task. A caller that is gone does not renew, and the proxy ends the task by itself.
        TaskEvent::ServerRestarted { .. } if hold.outlives_server && hold.lease_until.is_some() => {
            actions.push(Action::AttachTask { proxy: hold.proxy, epoch: hold.epoch });
            held(hold, at)
        }
        // Nobody grants it any more under this number: the proxy will not begin, and is not to blame.
        TaskEvent::ServerRestarted { waiting_goes_on } if never_began(&hold, at) => {
            hold.owed = Owed::default();
            let then = if hold.cancel_requested {
                AfterRecovery::Close { ending: Ending::Cancelled }
            } else if *waiting_goes_on {
                AfterRecovery::Begin { since: now, last_failure: None }
            } else {
                AfterRecovery::Close { ending: Ending::Failed { failure: stopped_before_it_began() } }
            };
            settle(hold, then, now, &mut actions)
        }
        TaskEvent::ServerRestarted { .. } => {
            let failure = TaskFailure {
                step: at.map(|(step, _)| step),
                hop: Hop::BackupServer,
                cause: "the backup server stopped while the task was open".into(),
                remedy: "run it again".into(),
                class: FailureClass::ServerRestarted,
            };
            hold.cut_at = Some(at.map_or(Step::Connect, |(step, _)| step));
            // The proxy died with the server.
            hold.lease_until = None;
            let then = after_interruption(&hold, failure, false);
            leave(hold, then, now, &mut actions)
        }
        TaskEvent::CancelRequested => {
            if hold.cancel_requested {
                return Ok(ignored(state, Ignored::Duplicate));
            }
            hold.cancel_requested = true;
            actions.push(Action::CancelOnProxy { proxy: hold.proxy, epoch: hold.epoch });
            held(hold, at)
        }
    };
    if next == *state && actions.is_empty() {
        return Ok(ignored(state, Ignored::Duplicate));
    }
    Ok(to(next, actions))
}

/// Whether a proxy that does nothing without a lease never had one. A report that it has the order says no more than that.
fn never_began(hold: &Hold, at: Option<(Step, Timestamp)>) -> bool {
    hold.outlives_server && hold.lease_until.is_none() && at.is_none_or(|(step, _)| step == Step::Connect)
}

fn held(hold: Hold, at: Option<(Step, Timestamp)>) -> TaskState {
    match at {
        None => TaskState::Dispatched { hold },
        Some((step, step_since)) => TaskState::Running { hold, step, step_since },
    }
}

/// What a report short of the end says: the step, and debts that are over.
fn sharpen(hold: &mut Hold, at: Option<(Step, Timestamp)>, report: &ProxyReport, now: Timestamp) -> (Step, Timestamp) {
    let mut at = at.unwrap_or((Step::Connect, now));
    match report {
        // Steps only move on, so a late report moves nothing back.
        ProxyReport::StepStarted { step } if *step > at.0 => {
            at = (*step, now);
            if *step == Step::PreScript {
                hold.owed.post_script = hold.post_script;
            }
        }
        ProxyReport::StepEnded { step: Step::PostScript } => hold.owed.post_script = None,
        ProxyReport::Frozen { freeze_id } if hold.thawed != Some(*freeze_id) => {
            hold.owed.frozen = true;
            hold.frozen_id = Some(*freeze_id);
        }
        // A thaw of another freeze than the one that is known says nothing about that one.
        ProxyReport::Thawed { freeze_id } if hold.frozen_id.is_none_or(|id| id == *freeze_id) => {
            hold.owed.frozen = false;
            hold.frozen_id = None;
            hold.thawed = Some(*freeze_id);
        }
        ProxyReport::FileStarted { path } if hold.restore_point.is_none() => {
            hold.owed.partial_file = Some(path.clone());
        }
        ProxyReport::Swept => hold.owed.hypervisor = false,
        ProxyReport::ReceiptClean => hold.owed.guest = false,
        ProxyReport::GuestUntouched => (hold.owed.guest, hold.owed.frozen) = (false, false),
        _ => {}
    }
    at
}

/// What follows a proxy's own account of how the task ended.
fn after_finished(ending: &Ending, hold: &Hold, actions: &mut Vec<Action>) -> AfterRecovery {
    let close = |ending: &Ending| AfterRecovery::Close { ending: ending.clone() };
    let Ending::Failed { failure } = ending else {
        if !matches!(ending, Ending::Cancelled) {
            actions.push(Action::ForgiveProxy { proxy: hold.proxy });
        } else if hold.restore_point.is_some() {
            let messages = vec!["the restore point is recorded, and its task was cancelled after that".into()];
            return close(&Ending::Warning { messages });
        }
        return close(ending);
    };
    if failure.class == FailureClass::RefusedCredential {
        actions.push(Action::RestCredential { cause: failure.cause.clone() });
    }
    // The proxy made all attempts that were its own to make.
    let of_the_proxy = next_move(failure.class, u32::MAX) == NextMove::NextProxy;
    if of_the_proxy {
        remember(hold, failure, actions);
    }
    if of_the_proxy || hold.restore_point.is_some() {
        return after_interruption(hold, failure.clone(), true);
    }
    close(ending)
}

fn remember(hold: &Hold, failure: &TaskFailure, actions: &mut Vec<Action>) {
    actions.push(Action::RememberFailure { proxy: hold.proxy, class: failure.class, cause: failure.cause.clone() });
}

/// What follows when a task was taken from its proxy: what is recorded stays, what was cancelled stays so, and
/// otherwise the next proxy takes it where one may.
fn after_interruption(hold: &Hold, failure: TaskFailure, may_fail_over: bool) -> AfterRecovery {
    let ending = if hold.restore_point.is_some() {
        Ending::Warning {
            messages: vec![format!("the restore point is recorded, but its task was interrupted: {failure}")],
        }
    } else if hold.cancel_requested {
        Ending::Cancelled
    } else if may_fail_over {
        return AfterRecovery::Failover { failure };
    } else {
        Ending::Failed { failure }
    };
    AfterRecovery::Close { ending }
}

fn epoch_of(state: &TaskState) -> Option<u64> {
    match state {
        TaskState::Waiting { epoch, .. } => Some(*epoch),
        TaskState::Dispatched { hold } | TaskState::Running { hold, .. } | TaskState::Recovering { hold, .. } => {
            Some(hold.epoch)
        }
        TaskState::Finished { .. } => None,
    }
}

fn epoch_in(event: &TaskEvent) -> Option<u64> {
    match event {
        TaskEvent::NotDelivered { epoch, .. }
        | TaskEvent::Report { epoch, .. }
        | TaskEvent::RestorePointRecorded { epoch, .. }
        | TaskEvent::ProxyLost { epoch, .. }
        | TaskEvent::LeaseGranted { epoch, .. }
        | TaskEvent::PostScriptRan { epoch }
        | TaskEvent::GuestRecovered { epoch }
        | TaskEvent::HypervisorSwept { epoch }
        | TaskEvent::RecoveryFailed { epoch, .. } => Some(*epoch),
        TaskEvent::Dispatch { .. }
        | TaskEvent::NoProxy { .. }
        | TaskEvent::CancelRequested
        | TaskEvent::ServerRestarted { .. } => None,
    }
}

pub(super) fn to(state: TaskState, actions: Vec<Action>) -> Transition {
    Transition { state, actions, ignored: None }
}

pub(super) fn ignored(state: &TaskState, why: Ignored) -> Transition {
    Transition { state: state.clone(), actions: Vec::new(), ignored: Some(why) }
}
