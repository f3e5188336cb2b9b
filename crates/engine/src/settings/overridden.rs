//! Which settings a VM of a job has otherwise than the job, and how single ones are taken back. Knows no values.
//!
//! What belongs together is overridden together: scripts with their mode and timeout, a policy with its servers. So no VM
//! runs its own script under a mode that was chosen for another one.

use super::Overrides;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A guest processing setting, as it is overridden: whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setting {
    /// Application-aware processing.
    ApplicationAware,
    /// Pre-freeze and post-thaw script, what their failure means, and their timeout.
    Scripts,
    /// The checkpoint before the freeze, and its timeout.
    Checkpoint,
    /// The lease.
    Lease,
    /// The freeze budget.
    FreezeBudget,
    /// Mount points that are not frozen.
    Exclude,
    /// Which files go into the catalog, and from which folders.
    Indexing,
    /// Which servers may act as guest interaction proxy.
    GuestInteractionProxy,
    /// The guest credential.
    Credential,
    /// What happens to transaction logs.
    TransactionLogs,
}

impl Setting {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 10] = [
        Self::ApplicationAware,
        Self::Scripts,
        Self::Checkpoint,
        Self::Lease,
        Self::FreezeBudget,
        Self::Exclude,
        Self::Indexing,
        Self::GuestInteractionProxy,
        Self::Credential,
        Self::TransactionLogs,
    ];

    /// The name as in JSON and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::ApplicationAware => "application-aware",
            Self::Scripts => "scripts",
            Self::Checkpoint => "checkpoint",
            Self::Lease => "lease",
            Self::FreezeBudget => "freeze-budget",
            Self::Exclude => "exclude",
            Self::Indexing => "indexing",
            Self::GuestInteractionProxy => "guest-interaction-proxy",
            Self::Credential => "credential",
            Self::TransactionLogs => "transaction-logs",
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|setting| setting.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|setting| setting.name()).collect();
            format!("there is no setting \"{text}\"; there is: {}", names.join(", "))
        })
    }
}

impl Overrides {
    /// The settings that the VM has otherwise, also where the job's happens to be the same.
    pub fn overridden(&self) -> Vec<Setting> {
        Setting::ALL.into_iter().filter(|setting| self.has(*setting)).collect()
    }

    /// Whether the VM has this setting of its own.
    pub fn has(&self, setting: Setting) -> bool {
        match setting {
            Setting::ApplicationAware => self.application_aware.is_some(),
            Setting::Scripts => self.scripts.is_some(),
            Setting::Checkpoint => self.checkpoint.is_some(),
            Setting::Lease => self.lease_ms.is_some(),
            Setting::FreezeBudget => self.freeze_budget_ms.is_some(),
            Setting::Exclude => self.excluded_mount_points.is_some(),
            Setting::Indexing => self.indexing.is_some(),
            Setting::GuestInteractionProxy => self.proxies.is_some(),
            Setting::Credential => self.credential.is_some(),
            Setting::TransactionLogs => self.transaction_logs.is_some(),
        }
    }

    /// Gives the VM the job's setting again.
    pub fn take_back(&mut self, setting: Setting) {
        match setting {
            Setting::ApplicationAware => self.application_aware = None,
            Setting::Scripts => self.scripts = None,
            Setting::Checkpoint => self.checkpoint = None,
            Setting::Lease => self.lease_ms = None,
            Setting::FreezeBudget => self.freeze_budget_ms = None,
            Setting::Exclude => self.excluded_mount_points = None,
            Setting::Indexing => self.indexing = None,
            Setting::GuestInteractionProxy => self.proxies = None,
            Setting::Credential => self.credential = None,
            Setting::TransactionLogs => self.transaction_logs = None,
        }
    }
}
