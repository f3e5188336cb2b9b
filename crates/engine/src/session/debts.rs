//! How a task's debts are paid: which actions a recovery needs, when it is over, and what becomes of the task then.
//! Reads no events.

use super::{
    Action, AfterRecovery, Ending, Hold, Owed, RECOVERY_ATTEMPTS_MAX, RECOVERY_WAIT_MS_MAX, RecoveryPart, TaskState,
};
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
}

/// What a task still owes when its proxy has finished, for [`super::ProxyReport::Finished`]: what the steps that were
/// begun may have left, less what the proxy's account clears. Reports arrive in order and the proxy does nothing more,
/// so here a step that was never begun counts as not done. A clean guest is no proof of a thaw: with runtime component
/// and watchdog killed, nothing of ours is left and the file system is still frozen.
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
        frozen: step >= Step::Freeze,
        hypervisor,
        partial_file: hold.owed.partial_file.clone().filter(|_| hypervisor),
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
        RecoveryPart::Guest => owed.guest || owed.frozen,
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
            return TaskState::Waiting { since: now, epoch: hold.epoch, tried, last_failure: Some(failure) };
        }
        // Another proxy must not begin where the last one's traces could not be undone.
        AfterRecovery::Failover { failure } => Ending::Failed { failure },
        AfterRecovery::Close { ending } => ending,
    };
    actions.push(Action::TaskClosed);
    TaskState::Finished {
        ending: truthful(ending, &hold.owed),
        at: now,
        still_owed: hold.owed,
        restore_point: hold.restore_point,
    }
}

/// A task that leaves something behind is no success.
fn truthful(ending: Ending, still_owed: &Owed) -> Ending {
    if still_owed.is_empty() {
        return ending;
    }
    let message = format!("{still_owed}; the next task on this VM sweeps it");
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
