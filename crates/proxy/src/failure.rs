//! Turns what went wrong into the failure that the backup server decides on.
//!
//! Pure. Every failure names its step, its hop, its cause and a remedy. Decides nothing itself.

use crate::access::BadOrder;
use crate::channel::{ChannelError, FailureKind, Hop as ChannelHop};
use crate::runtime_client::CallError;
use lull_engine::failover::FailureClass;
use lull_engine::session::{Hop, TaskFailure};
use lull_engine::timeline::Step;
use lull_hypervisor::{ErrorClass, HypervisorError};

/// Why a task does not go on.
#[derive(Debug, Clone)]
pub enum Stop {
    /// A person (or the end of the connection) asked for it.
    Cancelled(String),
    /// Something failed.
    Failed(Box<TaskFailure>),
}

impl From<TaskFailure> for Stop {
    fn from(failure: TaskFailure) -> Self {
        Stop::Failed(Box::new(failure))
    }
}

/// A failure of the way into the guest.
pub fn of_channel(step: Step, error: &ChannelError) -> TaskFailure {
    let hop = match error.hop {
        ChannelHop::Login => Hop::Login,
        ChannelHop::Elevation => Hop::Elevation,
        ChannelHop::Deploy | ChannelHop::Runtime => Hop::Runtime,
        _ => Hop::ProxyToGuest,
    };
    // Elevation comes with the deployment, and nothing was done in the guest before it.
    let untouched = step <= Step::Deploy;
    let class = match error.kind {
        FailureKind::Refused => FailureClass::RefusedCredential,
        FailureKind::HostKey => FailureClass::ChangedHostKey,
        // Whoever holds it now sees to the guest.
        FailureKind::Evicted => FailureClass::ProxyLost,
        FailureKind::Unreachable if untouched => FailureClass::GuestUnreachable,
        // Final like a refusal, but something of ours may have come into the guest.
        FailureKind::Unknown | FailureKind::Unreachable | FailureKind::GuestSide => FailureClass::GuestSide,
    };
    TaskFailure { step: Some(step), hop, cause: error.to_string(), remedy: error.remedy.clone(), class }
}

/// A failure of the component in the guest, or of the connection to it.
pub fn of_call(step: Step, what: &str, error: &CallError) -> TaskFailure {
    let remedy = match error {
        CallError::Refused(_) => "see the reason and the guest's log",
        CallError::TimedOut { .. } => "see whether the guest is overloaded or a disk hangs",
        CallError::Lost(_) => "see whether the guest restarted, or killed the component for lack of memory",
        CallError::Protocol(_) => "report this: proxy and component do not belong together",
        CallError::Evicted => "see what became of the newer task",
    };
    let class = match error {
        CallError::Evicted => FailureClass::ProxyLost,
        _ => FailureClass::GuestSide,
    };
    TaskFailure { step: Some(step), hop: Hop::Runtime, cause: format!("{what}: {error}"), remedy: remedy.into(), class }
}

/// A failure of the hypervisor or of the repository behind it.
pub fn of_hypervisor(step: Step, error: &HypervisorError) -> TaskFailure {
    let (hop, class) = match error.class {
        ErrorClass::Busy => (Hop::Hypervisor, FailureClass::VmBusy),
        ErrorClass::Repository => (Hop::Repository, FailureClass::Repository),
        ErrorClass::Cancelled => (Hop::Hypervisor, FailureClass::Cancelled),
        ErrorClass::Gone | ErrorClass::Fleecing | ErrorClass::Refused => (Hop::Hypervisor, FailureClass::Hypervisor),
    };
    TaskFailure { step: Some(step), hop, cause: error.cause.clone(), remedy: error.remedy.clone(), class }
}

/// Any other failure, in its own words.
pub fn of(step: Step, hop: Hop, class: FailureClass, cause: impl Into<String>, remedy: &str) -> TaskFailure {
    TaskFailure { step: Some(step), hop, cause: cause.into(), remedy: remedy.into(), class }
}

/// An order that cannot be carried out.
pub fn of_order(error: &BadOrder) -> TaskFailure {
    TaskFailure {
        step: None,
        hop: Hop::ServerToProxy,
        cause: error.to_string(),
        remedy: "correct the job or the VM; if both are right, proxy and backup server are of different versions"
            .into(),
        class: FailureClass::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_stay_refusals_and_a_lost_guest_is_retried_only_while_untouched() {
        let error = |kind| ChannelError::new(ChannelHop::Login, kind, "what", "remedy");
        let class = |step, kind| of_channel(step, &error(kind)).class;
        assert_eq!(class(Step::Connect, FailureKind::Refused), FailureClass::RefusedCredential);
        assert_eq!(class(Step::Connect, FailureKind::HostKey), FailureClass::ChangedHostKey);
        assert_eq!(class(Step::Connect, FailureKind::Unreachable), FailureClass::GuestUnreachable);
        assert_eq!(class(Step::Connect, FailureKind::Unknown), FailureClass::GuestSide, "no other proxy tries it");
        assert_eq!(class(Step::Quiesce, FailureKind::Unreachable), FailureClass::GuestSide);
    }
}
