//! What single VMs of a job have otherwise than the job.

use crate::job::GuestSettings;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A VM in a job's scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobVm {
    /// VM's name.
    pub vm: String,
    /// Settings that it has otherwise than the job, by name: see [`VmSettings::from`].
    pub overrides: Vec<String>,
}

/// The settings in force for one VM of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmSettings {
    /// Job's name.
    pub job: String,
    /// VM's name.
    pub vm: String,
    /// Settings with the values that hold. The limit of the copy is the job's alone and absent.
    pub guest: GuestSettings,
    /// Name of the guest credential; null where there is none.
    pub credential: Option<String>,
    /// Where each setting comes from: `job`, or `override` where this VM has it otherwise. The credential may also be
    /// the VM's own in every job: `vm`. Settings: `application-aware`, `scripts` (with mode and timeout), `checkpoint`
    /// (with timeout), `lease`, `freeze-budget`, `exclude`, `indexing` (with paths), `guest-interaction-proxy` (with
    /// servers and fallback), `credential`.
    pub from: BTreeMap<String, String>,
}

/// Changes to what one VM of a job has otherwise. First what is to be cleared, then what is given; the rest stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VmSettingsChange {
    /// Settings that this VM gets; absent members stay. One member of a setting that has several (a script) overrides the
    /// whole setting, with its other members as they hold now.
    pub guest: GuestSettings,
    /// Name of the guest credential for this VM in this job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// Settings that shall be the job's again, by name: see [`VmSettings::from`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clear: Vec<String>,
}

/// The settings as they were saved, with what the validation of the job had to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SavedVmSettings {
    /// The settings.
    pub settings: VmSettings,
    /// Things worth knowing that do not prevent the job from running.
    pub warnings: Vec<String>,
}
