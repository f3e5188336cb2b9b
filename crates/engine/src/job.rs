//! A backup job and the tasks of one session of it. Knows no schedule's clock and no store; ids come from the caller.

use crate::ids::{CredentialId, JobId, RepositoryId, SessionId, TaskId, VmId};
use crate::infrastructure::{Credential, CredentialKind, Platform, Vm};
use crate::settings::{GuestProcessing, Overrides, resolve};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is done inside the freeze window, and after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BackupAction {
    /// The hypervisor writes a backup into a repository.
    Backup {
        /// The repository.
        repository: RepositoryId,
        /// A new full backup every so many restore points; 14 by default, 1 to 365.
        #[serde(default = "full_every_default")]
        full_every: u32,
    },
    /// A program takes the snapshot.
    Command {
        /// Its name in the backup server's folder `commands/`: no path, no command line.
        program: String,
    },
}

/// See [`BackupAction::Backup`].
fn full_every_default() -> u32 {
    crate::chain::POINTS_PER_CHAIN
}

/// VMs in scope, guest processing settings and what is done with them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The name the administrator gave it.
    pub name: String,
    /// The VMs in scope, in the order in which they are worked on.
    pub vms: Vec<VmId>,
    /// What is done inside the freeze window, and after it.
    pub action: BackupAction,
    /// Guest processing settings.
    #[serde(default)]
    pub guest_processing: GuestProcessing,
    /// What single VMs have otherwise.
    #[serde(default)]
    pub overrides: BTreeMap<VmId, Overrides>,
}

impl Job {
    /// The settings in force for one of its VMs.
    pub fn settings_for(&self, vm: VmId) -> GuestProcessing {
        resolve(&self.guest_processing, self.overrides.get(&vm))
    }
}

/// The credential for one VM of a job: the job's override for the VM, else the VM's own, else the job's default for
/// its OS family. `None` where there is none, or where it no longer exists.
pub fn credential_for<'a>(job: &Job, vm: &Vm, credentials: &'a [Credential]) -> Option<&'a Credential> {
    let id = job
        .overrides
        .get(&vm.id)
        .and_then(|over| over.credential)
        .or(vm.credential)
        .or_else(|| job.guest_processing.credentials.for_guest(vm.guest_os))?;
    credentials.iter().find(|credential| credential.id == id)
}

/// The work on one VM in one session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Its id.
    pub id: TaskId,
    /// The session.
    pub session: SessionId,
    /// The job.
    pub job: JobId,
    /// The VM.
    pub vm: VmId,
    /// The VM's name when the session began.
    pub vm_name: String,
    /// The guest's OS family, as known or as its credential says.
    pub guest_os: Option<Platform>,
    /// The guest credential.
    pub credential: Option<CredentialId>,
    /// Its kind.
    pub credential_kind: Option<CredentialKind>,
    /// The settings in force for the VM.
    pub settings: GuestProcessing,
    /// What is done inside the freeze window, and after it.
    pub action: BackupAction,
}

/// The tasks of one session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskPlan {
    /// One for each VM in scope, in the job's order; a VM listed twice is worked on once.
    pub tasks: Vec<TaskSpec>,
    /// VMs in scope that are no longer in the infrastructure. The session has to name them: they are not protected.
    pub gone: Vec<VmId>,
}

/// The tasks of a session of this job. `new_id` yields a new id for each task.
pub fn plan(
    job: &Job,
    session: SessionId,
    vms: &[Vm],
    credentials: &[Credential],
    mut new_id: impl FnMut() -> TaskId,
) -> TaskPlan {
    let known: BTreeMap<VmId, &Vm> = vms.iter().map(|vm| (vm.id, vm)).collect();
    let mut seen = std::collections::BTreeSet::new();
    let mut plan = TaskPlan { tasks: Vec::new(), gone: Vec::new() };
    for id in job.vms.iter().filter(|id| seen.insert(**id)) {
        let Some(vm) = known.get(id) else {
            plan.gone.push(*id);
            continue;
        };
        let credential = credential_for(job, vm, credentials);
        plan.tasks.push(TaskSpec {
            id: new_id(),
            session,
            job: job.id,
            vm: vm.id,
            vm_name: vm.name.clone(),
            guest_os: vm.guest_os_with(credential.map(|c| c.kind)),
            credential: credential.map(|c| c.id),
            credential_kind: credential.map(|c| c.kind),
            settings: job.settings_for(vm.id),
            action: job.action.clone(),
        });
    }
    plan
}
