//! What went wrong in a hypervisor, at which step, whose fault it is and what to do.
//!
//! Every error names step, VM, cause and remedy; its [`ErrorClass`] says whether a retry can help. Decides nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::qmp::QmpError;

/// The step of a backup at which an error happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Reaching the VM's control socket.
    Connect,
    /// Reading what the VM is and does.
    Facts,
    /// Everything that is done before the freeze window.
    Prepare,
    /// Inside the freeze window.
    Snapshot,
    /// Copying to the repository.
    Copy,
    /// Making the restore point durable.
    Finish,
    /// Removing what is ours.
    Sweep,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Connect => "connecting to the hypervisor",
            Step::Facts => "reading the VM's state",
            Step::Prepare => "preparing the snapshot",
            Step::Snapshot => "taking the snapshot",
            Step::Copy => "copying to the repository",
            Step::Finish => "finishing the restore point",
            Step::Sweep => "sweeping the hypervisor",
        })
    }
}

/// Whose fault it is, and with that whether a retry can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// The VM is doing something else, or somebody else is connected. Retry later.
    Busy,
    /// The connection to the hypervisor was lost or never there. Sweep once it is back.
    Gone,
    /// The repository is full, slow, gone or damaged.
    Repository,
    /// The fleecing image is full or too slow; the snapshot broke, the VM runs on.
    Fleecing,
    /// The hypervisor refused a command, or the order makes no sense.
    Refused,
    /// The caller cancelled.
    Cancelled,
}

/// One failure, fit to be shown to an administrator.
#[derive(Debug, thiserror::Error)]
#[error("{step} failed for VM {vm}: {cause}; {remedy}")]
pub struct HypervisorError {
    /// Where.
    pub step: Step,
    /// The VM.
    pub vm: String,
    /// Whose fault.
    pub class: ErrorClass,
    /// Why, in one sentence without a full stop.
    pub cause: String,
    /// What to do, in one sentence without a full stop.
    pub remedy: String,
}

impl HypervisorError {
    pub(crate) fn new(
        step: Step,
        vm: &str,
        class: ErrorClass,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        HypervisorError { step, vm: vm.to_owned(), class, cause: cause.into(), remedy: remedy.into() }
    }

    /// Wraps a QMP error: class and remedy follow from its kind.
    pub(crate) fn qmp(step: Step, vm: &str, error: &QmpError) -> Self {
        let (class, remedy) = match error {
            QmpError::Busy { .. } => (
                ErrorClass::Busy,
                "close the other connection to this socket, or give the VM a second QMP socket for Lull",
            ),
            QmpError::Unreachable { .. } => (ErrorClass::Gone, "start the VM or correct the hypervisor host's folder"),
            QmpError::Gone { .. } => (
                ErrorClass::Gone,
                "see whether the VM still runs; what is left of the task is swept when the socket answers again",
            ),
            QmpError::Timeout { .. } => {
                (ErrorClass::Gone, "see whether the VM's process hangs, for instance on its storage")
            }
            QmpError::Protocol { .. } => {
                (ErrorClass::Gone, "see that the socket is a QMP socket and not the guest agent's")
            }
            QmpError::Refused { .. } => (ErrorClass::Refused, "see the QEMU error; the VM was left as it was"),
        };
        HypervisorError::new(step, vm, class, error.to_string(), remedy)
    }
}
