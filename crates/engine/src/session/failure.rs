//! How a task ended, and a failure in one sentence: hop, cause, remedy. Decides nothing.

use crate::failover::FailureClass;
use crate::timeline::Step;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a task or a session ended, best first; a session is as good as its worst task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Everything that was asked for.
    Success,
    /// A restore point, with something to look at.
    Warning,
    /// A person cancelled it.
    Cancelled,
    /// No restore point that meets the settings.
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "success",
            Self::Warning => "warning",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        })
    }
}

/// Between whom, or where, something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    /// Inside the backup server.
    BackupServer,
    /// From the backup server to the proxy.
    ServerToProxy,
    /// From the proxy to the guest.
    ProxyToGuest,
    /// Logging in to the guest.
    Login,
    /// Becoming root or administrator in the guest.
    Elevation,
    /// The runtime component in the guest.
    Runtime,
    /// A pre-freeze or post-thaw script in the guest.
    Script,
    /// An application in the guest.
    Application,
    /// A file system of the guest.
    FileSystem,
    /// From the proxy to the hypervisor.
    Hypervisor,
    /// From the hypervisor to the repository.
    Repository,
    /// The caller of a hold, and the command that it runs meanwhile.
    Caller,
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BackupServer => "on the backup server",
            Self::ServerToProxy => "between backup server and proxy",
            Self::ProxyToGuest => "between proxy and guest",
            Self::Login => "at the guest's login",
            Self::Elevation => "at the elevation in the guest",
            Self::Runtime => "at the runtime component in the guest",
            Self::Script => "at a script in the guest",
            Self::Application => "at an application in the guest",
            Self::FileSystem => "at a file system of the guest",
            Self::Hypervisor => "at the hypervisor",
            Self::Repository => "at the repository",
            Self::Caller => "at the caller of the hold",
        })
    }
}

/// Why a task failed. `Display` is one sentence that names hop, cause and remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFailure {
    /// The step at which it failed; `None` before the first.
    pub step: Option<Step>,
    /// Where.
    pub hop: Hop,
    /// What went wrong, in words and with its facts: which account, which address, which file.
    pub cause: String,
    /// What a person can do about it.
    pub remedy: String,
    /// What kind of failure, for what may follow.
    pub class: FailureClass,
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "failed {} (step {step})", self.hop)?,
            None => write!(f, "failed {}", self.hop)?,
        }
        let cause = clause(&self.cause);
        let remedy = clause(&self.remedy);
        if !cause.is_empty() {
            write!(f, ": {cause}")?;
        }
        if !remedy.is_empty() {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for TaskFailure {}

/// Text from elsewhere as a part of a sentence: one line, no full stop at its end, and no control characters, since
/// causes quote what guests say and end on terminals.
fn clause(text: &str) -> String {
    let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line: Vec<&str> = printable.split_whitespace().collect();
    line.join(" ").trim_end_matches(['.', ';']).to_owned()
}
