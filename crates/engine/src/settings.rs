//! Guest processing settings of a job, their defaults and bounds, and how a VM's overrides apply.
//! Knows no job and no infrastructure; whether settings fit the VMs in scope is [`crate::validation`]'s question.
//!
//! `#[serde(default)]` lets a caller send only what differs from the default; unknown fields are refused, so that a
//! misspelt setting is not silently the default.

use crate::ids::{CredentialId, ServerId};
use crate::infrastructure::Platform;
use serde::{Deserialize, Serialize};

pub use crate::settings::bounds::SettingError;
pub use crate::settings::overridden::Setting;

mod bounds;
mod overridden;

/// Application-aware processing: whether applications are quiesced, and what their failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApplicationAware {
    /// A failure fails the task.
    #[default]
    RequireSuccess,
    /// A failure lowers the consistency level.
    Try,
    /// Applications are left alone.
    Disabled,
}

/// What a script's failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScriptMode {
    /// A failure fails the task.
    #[default]
    RequireSuccess,
    /// A failure is a warning.
    IgnoreFailures,
    /// No script runs.
    Disabled,
}

/// Pre-freeze and post-thaw scripts for one OS family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scripts {
    /// Text of the pre-freeze script, not a path. On Linux it begins with `#!`. At most 64 KiB.
    pub pre: Option<String>,
    /// Text of the post-thaw script; it runs whenever the pre-freeze script ran.
    pub post: Option<String>,
    /// What a failure means. Exit code 0 is success, anything else and a timeout are failures.
    pub mode: ScriptMode,
    /// For each of the two scripts. Default 600 000, 1 000 to 3 600 000.
    pub timeout_ms: u64,
}

impl Default for Scripts {
    fn default() -> Self {
        Self { pre: None, post: None, mode: ScriptMode::default(), timeout_ms: 600_000 }
    }
}

/// Scripts per guest OS family.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuestScripts {
    /// For Linux guests.
    pub linux: Scripts,
    /// For Windows guests.
    pub windows: Scripts,
}

impl GuestScripts {
    /// The scripts for a guest of this OS family.
    pub fn for_guest(&self, guest_os: Platform) -> &Scripts {
        match guest_os {
            Platform::Linux => &self.linux,
            Platform::Windows => &self.windows,
        }
    }
}

/// What happens when none of the preferred servers can serve a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// The backup server takes over.
    #[default]
    BackupServer,
    /// The task fails.
    None,
}

/// Which servers may act as guest interaction proxy for the job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ProxyPolicy {
    /// All of them.
    #[default]
    Automatic,
    /// Only these, ranked by the same rules.
    Prefer {
        /// The servers that were ticked.
        servers: Vec<ServerId>,
        /// What happens when none of them can serve a VM.
        #[serde(default)]
        fallback: Fallback,
    },
}

/// Whether and how long a database may write out its buffers just before the freeze, which shortens its recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Default on.
    pub enabled: bool,
    /// Default 30 000, 1 000 to 600 000.
    pub timeout_ms: u64,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { enabled: true, timeout_ms: 30_000 }
    }
}

/// Which of the guest's files go into the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Indexing {
    /// All but the usual noise (system, cache and virtual file systems).
    EverythingExceptNoise,
    /// All.
    Everything,
    /// Only below these paths.
    Only {
        /// Absolute paths in the guest.
        paths: Vec<String>,
    },
    /// None.
    Disabled,
}

/// What happens to transaction logs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TransactionLogs {
    /// Nothing.
    #[default]
    LeaveAlone,
    /// They are truncated after a successful backup.
    Truncate,
    /// They are backed up in between, through log shipping servers.
    BackUp {
        /// Minutes from one log backup to the next; 15 by default.
        every_minutes: u32,
        /// The log shipping servers; an empty list is automatic selection.
        #[serde(default)]
        servers: Vec<ServerId>,
    },
}

/// The job's default credential per OS family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuestCredentials {
    /// For Linux guests.
    pub linux: Option<CredentialId>,
    /// For Windows guests.
    pub windows: Option<CredentialId>,
}

impl GuestCredentials {
    /// The default for a guest of this OS family; for an unknown one the only default there is.
    pub fn for_guest(&self, guest_os: Option<Platform>) -> Option<CredentialId> {
        match (guest_os, self.linux, self.windows) {
            (Some(Platform::Linux), linux, _) => linux,
            (Some(Platform::Windows), _, windows) => windows,
            (None, Some(only), None) | (None, None, Some(only)) => Some(only),
            (None, _, _) => None,
        }
    }
}

/// Guest processing settings of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuestProcessing {
    /// Application-aware processing.
    pub application_aware: ApplicationAware,
    /// Pre-freeze and post-thaw scripts.
    pub scripts: GuestScripts,
    /// Which servers may act as guest interaction proxy.
    pub proxies: ProxyPolicy,
    /// Default credentials.
    pub credentials: GuestCredentials,
    /// The guest thaws by itself this long after the last renewal. Default 5 000, 2 000 to 60 000.
    pub lease_ms: u64,
    /// The guest thaws by itself this long after the first file system was frozen. Default 30 000, 1 000 to 60 000.
    pub freeze_budget_ms: u64,
    /// Writing out databases before the freeze.
    pub checkpoint: Checkpoint,
    /// Mount points whose file systems are not frozen.
    pub excluded_mount_points: Vec<String>,
    /// Which files go into the catalog. `None` is *not chosen*: see [`Self::indexing_in_effect`].
    pub indexing: Option<Indexing>,
    /// What happens to transaction logs.
    pub transaction_logs: TransactionLogs,
}

impl Default for GuestProcessing {
    fn default() -> Self {
        Self {
            application_aware: ApplicationAware::default(),
            scripts: GuestScripts::default(),
            proxies: ProxyPolicy::default(),
            credentials: GuestCredentials::default(),
            lease_ms: 5_000,
            freeze_budget_ms: 30_000,
            checkpoint: Checkpoint::default(),
            excluded_mount_points: Vec::new(),
            indexing: None,
            transaction_logs: TransactionLogs::default(),
        }
    }
}

impl GuestProcessing {
    /// Which files are listed: those that were chosen; where nothing was, everything except noise.
    pub fn indexing_in_effect(&self) -> Indexing {
        self.indexing.clone().unwrap_or(Indexing::EverythingExceptNoise)
    }

    /// Every setting that is out of bounds or that this release cannot honour; an empty list is a valid setting.
    pub fn validate(&self) -> Vec<SettingError> {
        bounds::check(self)
    }
}

/// What one VM of a job has otherwise. `None` leaves the job's setting.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// See [`GuestProcessing::application_aware`].
    pub application_aware: Option<ApplicationAware>,
    /// See [`GuestProcessing::scripts`]; replaces both OS families.
    pub scripts: Option<GuestScripts>,
    /// See [`GuestProcessing::proxies`].
    pub proxies: Option<ProxyPolicy>,
    /// The guest credential for this VM; it goes before the VM's own and the job's defaults.
    pub credential: Option<CredentialId>,
    /// See [`GuestProcessing::lease_ms`].
    pub lease_ms: Option<u64>,
    /// See [`GuestProcessing::freeze_budget_ms`].
    pub freeze_budget_ms: Option<u64>,
    /// See [`GuestProcessing::checkpoint`].
    pub checkpoint: Option<Checkpoint>,
    /// See [`GuestProcessing::excluded_mount_points`]; replaces the job's list.
    pub excluded_mount_points: Option<Vec<String>>,
    /// See [`GuestProcessing::indexing`].
    pub indexing: Option<Indexing>,
    /// See [`GuestProcessing::transaction_logs`].
    pub transaction_logs: Option<TransactionLogs>,
}

/// The settings in force for one VM: the job's, with the VM's overrides applied. The override's credential is not
/// part of them, see [`crate::job::credential_for`].
pub fn resolve(job: &GuestProcessing, overrides: Option<&Overrides>) -> GuestProcessing {
    let Some(over) = overrides else {
        return job.clone();
    };
    let over = over.clone();
    GuestProcessing {
        application_aware: over.application_aware.unwrap_or(job.application_aware),
        scripts: over.scripts.unwrap_or_else(|| job.scripts.clone()),
        proxies: over.proxies.unwrap_or_else(|| job.proxies.clone()),
        credentials: job.credentials,
        lease_ms: over.lease_ms.unwrap_or(job.lease_ms),
        freeze_budget_ms: over.freeze_budget_ms.unwrap_or(job.freeze_budget_ms),
        checkpoint: over.checkpoint.unwrap_or(job.checkpoint),
        excluded_mount_points: over.excluded_mount_points.unwrap_or_else(|| job.excluded_mount_points.clone()),
        indexing: over.indexing.or_else(|| job.indexing.clone()),
        transaction_logs: over.transaction_logs.unwrap_or_else(|| job.transaction_logs.clone()),
    }
}
