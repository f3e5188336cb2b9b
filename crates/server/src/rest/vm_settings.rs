//! What single VMs of a job have otherwise than the job: shown, changed, taken back. Saved only where the job as a whole
//! could be saved; which settings there are and which are in force is the engine's answer.

use super::answer::{Answer, bad_value};
use super::body::Body;
use super::names::{CREDENTIAL, Place, VmIndex, find};
use super::{guest_settings, jobs};
use crate::infrastructure::snapshot;
use crate::server::Server;
use crate::store::jobs::StoredJob;
use axum::Json;
use axum::extract::{Path, State};
use lull_api::Problem;
use lull_api::job::GuestSettings;
use lull_api::vm_settings::{JobVm, SavedVmSettings, VmSettings, VmSettingsChange};
use lull_engine::ids::{CredentialId, VmId};
use lull_engine::job::credential_for;
use lull_engine::settings::{GuestProcessing, Overrides, Setting};
use std::sync::Arc;

/// The VMs of a job, each with the settings that it has otherwise.
#[utoipa::path(get, path = "/jobs/{job}/vms", tag = "jobs",
    params(("job" = String, Path, description = "name or id")), responses((status = 200, body = Vec<JobVm>)))]
pub async fn list(State(server): State<Arc<Server>>, Path(job): Path<String>) -> Answer<Json<Vec<JobVm>>> {
    let job = jobs::named(&server, Place::Path, &job).await?;
    let vms = server.store.vms().await?;
    let index = VmIndex::new(&vms);
    Ok(Json(job.job.vms.iter().map(|vm| in_scope(&job, *vm, &index)).collect()))
}

/// The settings in force for one VM of a job.
#[utoipa::path(get, path = "/jobs/{job}/vms/{vm}/settings", tag = "jobs",
    params(("job" = String, Path, description = "name or id"), ("vm" = String, Path, description = "name, HOST/NAME or id")),
    responses((status = 200, body = VmSettings)))]
pub async fn get(
    State(server): State<Arc<Server>>,
    Path((job, vm)): Path<(String, String)>,
) -> Answer<Json<VmSettings>> {
    let (job, vm) = named(&server, &job, &vm).await?;
    Ok(Json(shown(&server, &job, vm).await?))
}

/// Changes what one VM of a job has otherwise; a session under way goes on as it began.
#[utoipa::path(patch, path = "/jobs/{job}/vms/{vm}/settings", tag = "jobs",
    params(("job" = String, Path, description = "name or id"), ("vm" = String, Path, description = "name, HOST/NAME or id")),
    request_body = VmSettingsChange, responses((status = 200, body = SavedVmSettings)))]
pub async fn change(
    State(server): State<Arc<Server>>,
    Path((job, vm)): Path<(String, String)>,
    Body(change): Body<VmSettingsChange>,
) -> Answer<Json<SavedVmSettings>> {
    let (mut job, vm) = named(&server, &job, &vm).await?;
    let mut over = job.job.overrides.remove(&vm).unwrap_or_default();
    for name in &change.clear {
        over.take_back(name.parse().map_err(|error: String| bad_value("clear", super::shortened(&error)))?);
    }
    if change.guest.copy_limit_bytes_per_s.is_some() {
        return Err(bad_value("guest.copy_limit_bytes_per_s", "the limit of the copy is the job's, not a VM's"));
    }
    let mut settings = lull_engine::settings::resolve(&job.job.guest_processing, Some(&over));
    guest_settings::apply(&mut settings, &mut 0, &change.guest, &server.store.servers().await?)?;
    override_what_is_given(&mut over, settings, &change.guest);
    if let Some(name) = &change.credential {
        let credentials = server.store.credentials().await?;
        let credential = find(CREDENTIAL, Place::Body, name, credentials, |c| (c.id, c.name.clone()))?;
        over.credential = Some(CredentialId(credential.id));
    }
    save(&server, job, vm, over).await
}

/// Gives one VM of a job all the job's settings again.
#[utoipa::path(delete, path = "/jobs/{job}/vms/{vm}/settings", tag = "jobs",
    params(("job" = String, Path, description = "name or id"), ("vm" = String, Path, description = "name, HOST/NAME or id")),
    responses((status = 200, body = SavedVmSettings)))]
pub async fn clear(
    State(server): State<Arc<Server>>,
    Path((job, vm)): Path<(String, String)>,
) -> Answer<Json<SavedVmSettings>> {
    let (job, vm) = named(&server, &job, &vm).await?;
    save(&server, job, vm, Overrides::default()).await
}

/// The VMs that have something otherwise, as a job shows them.
pub fn overridden(job: &StoredJob, index: &VmIndex<'_>) -> Vec<JobVm> {
    job.job.overrides.keys().map(|vm| in_scope(job, *vm, index)).collect()
}

fn in_scope(job: &StoredJob, vm: VmId, index: &VmIndex<'_>) -> JobVm {
    let over = job.job.overrides.get(&vm).map(Overrides::overridden).unwrap_or_default();
    JobVm {
        vm: index.shortest_name(vm.0).unwrap_or_else(|| vm.to_string()),
        overrides: over.iter().map(Setting::to_string).collect(),
    }
}

/// A setting of which one member was given is this VM's from now on, whole.
fn override_what_is_given(over: &mut Overrides, settings: GuestProcessing, given: &GuestSettings) {
    if given.application_aware.is_some() {
        over.application_aware = Some(settings.application_aware);
    }
    let of_scripts = [&given.pre_freeze_script, &given.post_thaw_script, &given.scripts];
    if of_scripts.iter().any(|member| member.is_some()) || given.script_timeout_s.is_some() {
        over.scripts = Some(settings.scripts);
    }
    if given.checkpoint.is_some() || given.checkpoint_timeout_s.is_some() {
        over.checkpoint = Some(settings.checkpoint);
    }
    if given.lease_ms.is_some() {
        over.lease_ms = Some(settings.lease_ms);
    }
    if given.freeze_budget_ms.is_some() {
        over.freeze_budget_ms = Some(settings.freeze_budget_ms);
    }
    if given.exclude_mount_points.is_some() {
        over.excluded_mount_points = Some(settings.excluded_mount_points);
    }
    if given.indexing.is_some() || given.index_paths.is_some() {
        over.indexing = settings.indexing;
    }
    if given.guest_interaction_proxy.is_some() || given.preferred_servers.is_some() || given.fallback.is_some() {
        over.proxies = Some(settings.proxies);
    }
}

async fn save(server: &Server, mut job: StoredJob, vm: VmId, over: Overrides) -> Answer<Json<SavedVmSettings>> {
    job.job.overrides.remove(&vm);
    if over != Overrides::default() {
        job.job.overrides.insert(vm, over);
    }
    let warnings = jobs::valid(server, &job).await?;
    server.store.update_job(&job, None).await?;
    Ok(Json(SavedVmSettings { settings: shown(server, &job, vm).await?, warnings }))
}

/// The job and its VM that a path names.
async fn named(server: &Server, job: &str, vm: &str) -> Answer<(StoredJob, VmId)> {
    let job = jobs::named(server, Place::Path, job).await?;
    let vms = server.store.vms().await?;
    let vm = VmIndex::new(&vms).find(Place::Path, vm)?;
    if job.job.vms.contains(&VmId(vm.id)) {
        return Ok((job, VmId(vm.id)));
    }
    let what = format!("VM {} is not in the scope of job {}", vm.name, job.job.name);
    let remedy = format!("see the VMs in scope: lull job show {}", job.job.name);
    Err(Problem::new(404, "vm-not-in-job", what).remedy(remedy).into())
}

async fn shown(server: &Server, job: &StoredJob, vm: VmId) -> Answer<VmSettings> {
    let vms = server.store.vms().await?;
    let known = snapshot(server).await?;
    let over = job.job.overrides.get(&vm);
    let infrastructure = known.vms.iter().find(|known| known.id == vm);
    let credential = infrastructure.and_then(|vm| credential_for(&job.job, vm, &known.credentials));
    let from = |setting: Setting| match setting {
        _ if over.is_some_and(|over| over.has(setting)) => "override",
        Setting::Credential if infrastructure.is_some_and(|vm| vm.credential.is_some()) => "vm",
        _ => "job",
    };
    let guest = guest_settings::shown(&job.job.settings_for(vm), 0, &server.store.servers().await?);
    // Not among the settings that can be given yet.
    let settings = Setting::ALL.into_iter().filter(|setting| *setting != Setting::TransactionLogs);
    Ok(VmSettings {
        job: job.job.name.clone(),
        vm: VmIndex::new(&vms).shortest_name(vm.0).unwrap_or_else(|| vm.to_string()),
        guest: GuestSettings { copy_limit_bytes_per_s: None, ..guest },
        credential: credential.map(|credential| credential.name.clone()),
        from: settings.map(|setting| (setting.to_string(), from(setting).to_string())).collect(),
    })
}
