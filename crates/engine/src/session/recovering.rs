//! A task whose debts are being paid: what each event means for them, and when no further attempt is made. Pays nothing itself.

use super::advance::{ignored, stopped_before_it_began, to};
use super::debts::{is_over, is_owed, leave, pay, settle};
use super::{
    Action, AfterRecovery, Ending, Hold, Ignored, RECOVERY_ATTEMPTS_MAX, RecoveryPart, TaskEvent, TaskState, Transition,
};
use crate::failover::FailureClass;
use crate::instant::after_ms;
use crate::task_lease::TASK_LEASE_MS;
use crate::timeline::Step;
use jiff::Timestamp;

pub(super) fn while_recovering(state: &TaskState, event: &TaskEvent, now: Timestamp) -> Result<Transition, String> {
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
        | TaskEvent::LeaseGranted { .. }
        | TaskEvent::ProxyLost { .. } => {
            return Err("no proxy was given the task under this number".into());
        }
        TaskEvent::CancelRequested => {
            if matches!(then, AfterRecovery::Failover { .. } | AfterRecovery::Begin { .. }) {
                then = AfterRecovery::Close { ending: Ending::Cancelled };
            }
            hold.cancel_requested = true;
        }
        TaskEvent::ServerRestarted { waiting_goes_on } => {
            // Nobody carries this recovery any more: it begins anew under a number of its own.
            if matches!(then, AfterRecovery::Begin { .. }) {
                // Of this task, that recovery was the first to log in.
                hold.cut_at = Some(Step::Connect);
            }
            if !hold.outlives_server {
                hold.lease_until = None;
            }
            then = match then {
                goes_on @ (AfterRecovery::Failover { .. } | AfterRecovery::Begin { .. }) if *waiting_goes_on => goes_on,
                AfterRecovery::Failover { failure } => AfterRecovery::Close { ending: Ending::Failed { failure } },
                AfterRecovery::Begin { last_failure, .. } => {
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
            *attempts = counted(&hold, *attempts, now);
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
    if next == *state && actions.is_empty() {
        return Ok(ignored(state, Ignored::Duplicate));
    }
    Ok(to(next, actions))
}

/// The attempts that count after one more failed. While the lost proxy's lease holds two remain: the first that fails after its
/// end may have begun before it, the second has not.
fn counted(hold: &Hold, attempts: u32, now: Timestamp) -> u32 {
    let after_this = attempts + 1;
    // An end that is further away than a lease is long says that the clock was put back, and nothing else.
    let holds = |until: Timestamp| now < until && until <= after_ms(now, TASK_LEASE_MS);
    if hold.lease_until.is_some_and(holds) { after_this.min(RECOVERY_ATTEMPTS_MAX - 2) } else { after_this }
}
