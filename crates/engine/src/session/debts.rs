//! How a task's debts are paid: which actions a recovery needs, when it is over, and what becomes of the task then.
//! Reads no events.

use super::{
    Action, AfterRecovery, Ending, Hold, Hop, Owed, RECOVERY_ATTEMPTS_MAX, RECOVERY_WAIT_MS_MAX, RecoveryPart,
    TaskFailure, TaskState,
};
use crate::failover::FailureClass;
use crate::timeline::Step;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a proxy says at its end about what it left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FinalAccount {
    /// A fresh look into the guest found nothing of ours.
    pub guest_clean: bool,
    /// A look at the hypervisor found nothing of ours that is not owed, and no partial file is left.
    pub hypervisor_clean: bool,
    /// Every freeze of this task was confirmed to be over, or none was begun.
    pub thaw_confirmed: bool,
}

/// What a task still owes when its proxy has finished, for [`super::ProxyReport::Finished`]: what the steps that were
/// begun may have left, less what the proxy's account clears. Reports arrive in order and the proxy does nothing more,
/// so here a step that was never begun counts as not done. A clean guest is no proof of a thaw: with runtime component
/// and watchdog killed, nothing of ours is left and the file system is still frozen. Whether the post-thaw script ran is
/// known from its own report alone.
pub fn owed_after_finish(state: &TaskState, account: &FinalAccount) -> Owed {
    let (hold, step) = match state {
        TaskState::Running { hold, step, .. } => (hold, *step),
        // It finished without beginning a step.
        TaskState::Dispatched { .. } | TaskState::Waiting { .. } => return Owed::default(),
        TaskState::Recovering { hold, .. } => return hold.owed.clone(),
        TaskState::Finished { still_owed, .. } => return still_owed.clone(),
    };
    let hypervisor = step >= Step::Inventory && !account.hypervisor_clean;
    hold.owed.at_most(&Owed {
        guest: step >= Step::Deploy && !account.guest_clean,
        frozen: step >= Step::Freeze && !account.thaw_confirmed,
        hypervisor,
        partial_file: hold.owed.partial_file.clone().filter(|_| hypervisor),
        post_script: hold.owed.post_script,
    })
}

/// Leaves the proxy: recovers what is owed, or settles at once where nothing is.
pub(super) fn leave(mut hold: Hold, then: AfterRecovery, now: Timestamp, actions: &mut Vec<Action>) -> TaskState {
    if hold.owed.is_empty() {
        return settle(hold, then, now, actions);
    }
    // Whoever held the task must not be heard any more, and whoever recovers must win over it in the guest.
    hold.epoch += 1;
    for part in [RecoveryPart::Guest, RecoveryPart::Hypervisor] {
        if is_owed(&hold.owed, part) {
            actions.push(pay(&hold, part, 0));
        }
    }
    TaskState::Recovering { hold, since: now, guest_attempts: 0, hypervisor_attempts: 0, then }
}

/// Whether this half of the recovery has anything to do.
pub(super) fn is_owed(owed: &Owed, part: RecoveryPart) -> bool {
    match part {
        RecoveryPart::Guest => owed.guest || owed.frozen || owed.post_script.is_some(),
        RecoveryPart::Hypervisor => owed.hypervisor || owed.partial_file.is_some(),
    }
}

/// The action that pays this half, after `attempts` failed ones.
pub(super) fn pay(hold: &Hold, part: RecoveryPart, attempts: u32) -> Action {
    let after_ms = match attempts {
        0 => 0,
        n => RECOVERY_WAIT_MS_MAX.min(1_000 << (n - 1).min(16)),
    };
    match part {
        RecoveryPart::Guest => Action::RecoverGuest { epoch: hold.epoch, last_proxy: hold.proxy, after_ms },
        RecoveryPart::Hypervisor => {
            Action::SweepHypervisor { epoch: hold.epoch, partial_file: hold.owed.partial_file.clone(), after_ms }
        }
    }
}

/// Whether every half is paid or given up.
pub(super) fn is_over(owed: &Owed, guest_attempts: u32, hypervisor_attempts: u32) -> bool {
    let open = |part, attempts| is_owed(owed, part) && attempts < RECOVERY_ATTEMPTS_MAX;
    !open(RecoveryPart::Guest, guest_attempts) && !open(RecoveryPart::Hypervisor, hypervisor_attempts)
}

/// What becomes of a task whose debts are paid or given up.
pub(super) fn settle(hold: Hold, then: AfterRecovery, now: Timestamp, actions: &mut Vec<Action>) -> TaskState {
    let ending = match then {
        AfterRecovery::Failover { failure } if hold.owed.is_empty() => {
            actions.push(Action::Requeue);
            let mut tried = hold.tried;
            tried.push(hold.proxy);
            let Hold { epoch, paid_for, .. } = hold;
            return TaskState::Waiting { since: now, epoch, tried, last_failure: Some(failure), paid_for };
        }
        AfterRecovery::Begin { since, last_failure } if hold.owed.is_empty() => {
            actions.push(Action::Requeue);
            let Hold { epoch, tried, paid_for, .. } = hold;
            return TaskState::Waiting { since, epoch, tried, last_failure, paid_for };
        }
        // Another proxy must not begin where the last one's traces could not be undone.
        AfterRecovery::Failover { failure } => Ending::Failed { failure },
        AfterRecovery::Begin { .. } => Ending::Failed { failure: not_begun(&hold.owed) },
        AfterRecovery::Close { ending } => ending,
    };
    actions.push(Action::TaskClosed);
    TaskState::Finished {
        ending: truthful(ending, &hold.owed),
        at: now,
        still_owed: hold.owed,
        epoch: hold.epoch,
        restore_point: hold.restore_point,
    }
}

/// Why a task did not begin where an earlier one's debts could not be paid.
fn not_begun(left: &Owed) -> TaskFailure {
    TaskFailure {
        step: None,
        hop: Hop::ProxyToGuest,
        cause: format!("nothing was begun, since what an earlier task left could not be undone: {left}"),
        remedy: "see above why not, help by hand where it says how, and run it again".into(),
        class: FailureClass::GuestSide,
    }
}

/// What a person is told about debts that a closed task could not pay.
pub fn left_for_the_next(still_owed: &Owed) -> String {
    format!("{still_owed}; the next task on this VM sees to it first")
}

/// A task that leaves something behind is no success.
fn truthful(ending: Ending, still_owed: &Owed) -> Ending {
    if still_owed.is_empty() {
        return ending;
    }
    let message = left_for_the_next(still_owed);
    match ending {
        Ending::Success => Ending::Warning { messages: vec![message] },
        Ending::Warning { mut messages } => {
            messages.push(message);
            Ending::Warning { messages }
        }
        Ending::Cancelled => Ending::Cancelled,
        Ending::Failed { failure } => Ending::Failed { failure },
    }
}
