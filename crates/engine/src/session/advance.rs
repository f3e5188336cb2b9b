//! The transition function of a task. The only place where a task's next state is computed; does nothing itself.

use super::debts::{is_over, is_owed, leave, pay, settle};
use super::{
    Action, AfterRecovery, Ending, Hold, Hop, Ignored, Owed, ProxyReport, RECOVERY_ATTEMPTS_MAX, RecoveryPart,
    TaskEvent, TaskFailure, TaskState, Transition,
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
        TaskEvent::Dispatch { proxy, partial_file, post_script, left } => {
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
        TaskEvent::NoProxy { cause } => close(Ending::Failed {
            failure: last_failure.clone().unwrap_or_else(|| TaskFailure {
                step: None,
                hop: Hop::ServerToProxy,
                cause: format!("no guest interaction proxy can serve the VM: {cause}"),
                remedy: "see the reason against each server and remove one of them".into(),
                class: FailureClass::NoProxy,
            }),
        }),
        TaskEvent::CancelRequested => close(Ending::Cancelled),
        TaskEvent::ServerRestarted => {
            close(Ending::Failed { failure: last_failure.clone().unwrap_or_else(stopped_before_it_began) })
        }
        // Of the epoch whose debts were paid before it came to wait.
        _ => Ok(ignored(state, Ignored::StaleEpoch)),
    }
}

fn stopped_before_it_began() -> TaskFailure {
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
            remember(&hold, &failure, &mut actions);
            let then = after_interruption(&hold, failure, true);
            leave(hold, then, now, &mut actions)
        }
        TaskEvent::NotDelivered { .. } if at.is_some() => return Err("the proxy reported on it already".into()),
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
        TaskEvent::ServerRestarted => {
            let failure = TaskFailure {
                step: at.map(|(step, _)| step),
                hop: Hop::BackupServer,
                cause: "the backup server stopped while the task was open".into(),
                remedy: "run it again".into(),
                class: FailureClass::ServerRestarted,
            };
            hold.cut_at = Some(at.map_or(Step::Connect, |(step, _)| step));
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

fn while_recovering(state: &TaskState, event: &TaskEvent, now: Timestamp) -> Result<Transition, String> {
    let TaskState::Recovering { hold, since, guest_attempts, hypervisor_attempts, then } = state else {
        return Err("it is not recovering".into());
    };
    let (mut hold, mut then) = (hold.clone(), then.clone());
    let (mut guest_attempts, mut hypervisor_attempts) = (*guest_attempts, *hypervisor_attempts);
    let mut actions = Vec::new();
    match event {
        TaskEvent::Dispatch { .. } | TaskEvent::NoProxy { .. } => {
            return Err("its debts are not paid yet".into());
        }
        TaskEvent::Report { .. }
        | TaskEvent::RestorePointRecorded { .. }
        | TaskEvent::NotDelivered { .. }
        | TaskEvent::ProxyLost { .. } => {
            return Err("no proxy was given the task under this number".into());
        }
        TaskEvent::CancelRequested => {
            if matches!(then, AfterRecovery::Failover { .. } | AfterRecovery::Begin { .. }) {
                then = AfterRecovery::Close { ending: Ending::Cancelled };
            }
            hold.cancel_requested = true;
        }
        TaskEvent::ServerRestarted => {
            // Nobody carries this recovery any more: it begins anew under a number of its own, and the session does
            // not dispatch again.
            then = match then {
                AfterRecovery::Failover { failure } => AfterRecovery::Close { ending: Ending::Failed { failure } },
                AfterRecovery::Begin { last_failure, .. } => {
                    // Of this task, that recovery was the first to log in.
                    hold.cut_at = Some(Step::Connect);
                    let failure = last_failure.unwrap_or_else(stopped_before_it_began);
                    AfterRecovery::Close { ending: Ending::Failed { failure } }
                }
                close @ AfterRecovery::Close { .. } => close,
            };
            let next = leave(hold, then, now, &mut actions);
            return Ok(to(next, actions));
        }
        TaskEvent::PostScriptRan { .. } => {
            // The component that ran it is in the guest until a look says otherwise.
            hold.owed.guest |= hold.owed.post_script.is_some();
            hold.owed.post_script = None;
        }
        TaskEvent::GuestRecovered { .. } => {
            hold.owed.guest = false;
            hold.owed.frozen = false;
            hold.owed.post_script = None;
        }
        TaskEvent::HypervisorSwept { .. } => {
            hold.owed.hypervisor = false;
            hold.owed.partial_file = None;
        }
        TaskEvent::RecoveryFailed { part, class, cause, .. } => {
            let attempts = match part {
                RecoveryPart::Guest => &mut guest_attempts,
                RecoveryPart::Hypervisor => &mut hypervisor_attempts,
            };
            if !is_owed(&hold.owed, *part) || *attempts >= RECOVERY_ATTEMPTS_MAX {
                return Ok(ignored(state, Ignored::Duplicate));
            }
            *attempts += 1;
            if *class == FailureClass::RefusedCredential {
                // Another attempt could lock the account: what is owed stays so, until a task with a better one sweeps it.
                *attempts = RECOVERY_ATTEMPTS_MAX;
                actions.push(Action::RestCredential { cause: cause.clone() });
            }
            if *attempts < RECOVERY_ATTEMPTS_MAX {
                actions.push(pay(&hold, *part, *attempts));
            }
        }
    }
    let next = if is_over(&hold.owed, guest_attempts, hypervisor_attempts) {
        settle(hold, then, now, &mut actions)
    } else {
        TaskState::Recovering { hold, since: *since, guest_attempts, hypervisor_attempts, then }
    };
    if next == *state {
        return Ok(ignored(state, Ignored::Duplicate));
    }
    Ok(to(next, actions))
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
        | TaskEvent::PostScriptRan { epoch }
        | TaskEvent::GuestRecovered { epoch }
        | TaskEvent::HypervisorSwept { epoch }
        | TaskEvent::RecoveryFailed { epoch, .. } => Some(*epoch),
        TaskEvent::Dispatch { .. }
        | TaskEvent::NoProxy { .. }
        | TaskEvent::CancelRequested
        | TaskEvent::ServerRestarted => None,
    }
}

fn to(state: TaskState, actions: Vec<Action>) -> Transition {
    Transition { state, actions, ignored: None }
}

fn ignored(state: &TaskState, why: Ignored) -> Transition {
    Transition { state: state.clone(), actions: Vec::new(), ignored: Some(why) }
}
