//! What to tell the person who saves a job: errors that refuse it, warnings that do not. Names things by their names.
//! Judges what is lasting: a server that is offline just now is no finding, one without the role is.

use crate::ids::{CredentialId, ServerId, VmId};
use crate::infrastructure::{Credential, ManagedServer, Vm};
use crate::job::{BackupAction, Job, credential_for};
use crate::licence::Licence;
use crate::selection::{Rejection, SelectionRules};
use crate::settings::SettingError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

mod scope;

/// The part of the infrastructure that a job is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Infrastructure<'a> {
    /// Every managed server.
    pub servers: &'a [ManagedServer],
    /// Every VM.
    pub vms: &'a [Vm],
    /// Every guest credential.
    pub credentials: &'a [Credential],
    /// The licence in force.
    pub licence: Licence,
    /// The infrastructure's rules.
    pub rules: SelectionRules,
}

/// Why a job cannot be saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum JobError {
    /// No name.
    #[error("the job has no name: give it one")]
    NoName,
    /// Nothing in scope.
    #[error("the job has no VMs in scope: add at least one")]
    NoVms,
    /// VMs in scope or with overrides that do not exist.
    #[error("VMs that are not in the infrastructure: {}", list(.vms))]
    UnknownVms {
        /// Their ids.
        vms: Vec<VmId>,
    },
    /// Overrides for a VM outside the scope.
    #[error("overrides for {}, which the job does not contain: add it to the scope or remove the overrides", list(.vms))]
    OverridesOutsideScope {
        /// The VMs' names.
        vms: Vec<String>,
    },
    /// Credentials that do not exist.
    #[error("credentials that do not exist: {}", list(.credentials))]
    UnknownCredentials {
        /// Their ids.
        credentials: Vec<CredentialId>,
    },
    /// The default rule of proxy selection, with nobody to fulfil it.
    #[error(
        "no Windows server has the role guest interaction proxy, and a Linux proxy cannot access the Windows guests \
         of {}: add a Microsoft Windows server to the backup infrastructure", list(.vms)
    )]
    NoWindowsServer {
        /// The VMs' names.
        vms: Vec<String>,
    },
    /// Preferred servers that were removed from the infrastructure.
    #[error("preferred servers that are no longer in the backup infrastructure: {}: take them off the list or add them again", list(.servers))]
    PreferredServersGone {
        /// Their ids.
        servers: Vec<ServerId>,
    },
    /// *Prefer* without a server.
    #[error("the job prefers certain servers, but none is on the list: tick one or choose automatic selection")]
    NoPreferredServers,
    /// None of the preferred servers can serve this VM, and nobody may stand in.
    #[error("none of the preferred servers can serve {}, and the backup server may not take over: tick another server or allow the fallback", list(.vms))]
    NobodyCanServe {
        /// The VMs' names.
        vms: Vec<String>,
    },
    /// *Choose* is disabled.
    #[error("servers cannot be chosen: {because}")]
    LicenceForbidsChoice {
        /// See [`Licence::choose_disabled_because`].
        because: String,
    },
    /// A setting out of bounds, or one this release cannot honour.
    #[error("{}{error}", .vm.as_ref().map(|vm| format!("override for {vm}: ")).unwrap_or_default())]
    Setting {
        /// The VM whose override it is, or `None` for the job.
        vm: Option<String>,
        /// What is wrong.
        error: SettingError,
    },
    /// A command that is not a plain file name.
    #[error("command \"{program}\": name a program in the backup server's folder commands, without a path")]
    CommandIsNoName {
        /// What was given.
        program: String,
    },
    /// A full backup never, or too rarely.
    #[error("full_every is {value}: it must lie between 1 and 365")]
    FullEvery {
        /// What was given.
        value: u32,
    },
}

/// What should be looked at, though the job can be saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum JobWarning {
    /// A preferred server that cannot serve any VM in scope.
    #[error("preferred server {server} cannot serve any VM in scope: for {vm}, {reason}")]
    PreferredServerUnable {
        /// The server's name.
        server: String,
        /// The first VM's name, as an example.
        vm: String,
        /// The reason for that VM.
        reason: Rejection,
    },
    /// A preferred server of which nothing is known.
    #[error("preferred server {server} has not connected yet: whether it can serve the VMs in scope is not known")]
    PreferredServerNeverConnected {
        /// The server's name.
        server: String,
    },
    /// VMs that fall back to the backup server every time.
    #[error("none of the preferred servers can serve {}: the backup server will take over", list(.vms))]
    BackupServerTakesOver {
        /// The VMs' names.
        vms: Vec<String>,
    },
    /// VMs that no server can serve as things are.
    #[error("no server can serve {vm}: {reason}")]
    NobodyServes {
        /// The VM's name.
        vm: String,
        /// The reason against the server that comes nearest.
        reason: String,
    },
    /// A VM listed twice.
    #[error("{vm} is listed more than once and is worked on once")]
    ListedTwice {
        /// The VM's name.
        vm: String,
    },
}

/// The findings about a job.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Findings {
    /// They refuse the job.
    pub errors: Vec<JobError>,
    /// They do not.
    pub warnings: Vec<JobWarning>,
}

impl Findings {
    /// Whether the job can be saved.
    pub fn can_be_saved(&self) -> bool {
        self.errors.is_empty()
    }
}

/// Checks a job as it is being saved.
pub fn validate_job(job: &Job, infrastructure: &Infrastructure) -> Findings {
    let mut findings = Findings::default();
    check_action(job, &mut findings);
    check_settings(job, infrastructure, &mut findings);
    check_references(job, infrastructure, &mut findings);
    scope::check(job, infrastructure, &mut findings);
    findings
}

fn check_action(job: &Job, findings: &mut Findings) {
    if job.name.trim().is_empty() {
        findings.errors.push(JobError::NoName);
    }
    if job.vms.is_empty() {
        findings.errors.push(JobError::NoVms);
    }
    match &job.action {
        BackupAction::Command { program } => {
            let is_name =
                !program.is_empty() && program != "." && program != ".." && !program.contains(['/', '\\', '\0']);
            if !is_name {
                findings.errors.push(JobError::CommandIsNoName { program: program.clone() });
            }
        }
        BackupAction::Backup { full_every, .. } => {
            if !(1..=365).contains(full_every) {
                findings.errors.push(JobError::FullEvery { value: *full_every });
            }
        }
    }
}

fn check_settings(job: &Job, infrastructure: &Infrastructure, findings: &mut Findings) {
    let of_job = job.guest_processing.validate();
    for id in job.overrides.keys() {
        let vm = name_of(*id, infrastructure);
        // What is wrong with the job's own settings is said once, not for each override as well.
        let own = job.settings_for(*id).validate().into_iter().filter(|error| !of_job.contains(error));
        findings.errors.extend(own.map(|error| JobError::Setting { vm: Some(vm.clone()), error }));
    }
    let of_job = of_job.into_iter().map(|error| JobError::Setting { vm: None, error });
    findings.errors.splice(0..0, of_job);
}

fn check_references(job: &Job, infrastructure: &Infrastructure, findings: &mut Findings) {
    let known: BTreeSet<VmId> = infrastructure.vms.iter().map(|vm| vm.id).collect();
    let mut unknown: Vec<VmId> =
        job.vms.iter().chain(job.overrides.keys()).filter(|id| !known.contains(id)).copied().collect();
    unknown.sort();
    unknown.dedup();
    let outside: Vec<String> = job
        .overrides
        .keys()
        .filter(|id| !job.vms.contains(id) && !unknown.contains(id))
        .map(|id| name_of(*id, infrastructure))
        .collect();
    if !unknown.is_empty() {
        findings.errors.push(JobError::UnknownVms { vms: unknown });
    }
    if !outside.is_empty() {
        findings.errors.push(JobError::OverridesOutsideScope { vms: outside });
    }

    let defaults = job.guest_processing.credentials;
    let mut credentials: Vec<CredentialId> = [defaults.linux, defaults.windows]
        .into_iter()
        .chain(job.overrides.values().map(|over| over.credential))
        .flatten()
        .filter(|id| !infrastructure.credentials.iter().any(|known| known.id == *id))
        .collect();
    credentials.sort();
    credentials.dedup();
    if !credentials.is_empty() {
        findings.errors.push(JobError::UnknownCredentials { credentials });
    }
}

fn name_of(vm: VmId, infrastructure: &Infrastructure) -> String {
    infrastructure.vms.iter().find(|known| known.id == vm).map_or_else(|| vm.to_string(), |known| known.name.clone())
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    items.join(", ")
}

/// The kind of the credential that a VM of the job gets.
fn credential_kind(
    job: &Job,
    vm: &Vm,
    infrastructure: &Infrastructure,
) -> Option<crate::infrastructure::CredentialKind> {
    credential_for(job, vm, infrastructure.credentials).map(|credential| credential.kind)
}
