//! Jobs: saved after the engine validated them, run, removed.

use super::answer::{Answer, bad_value};
use super::body::Body;
use super::names::{JOB, Place, VmIndex, checked, find};
use super::{guest_settings, notify_settings, repositories, timing, view, vm_settings};
use crate::infrastructure::snapshot;
use crate::runner::{begin, preview};
use crate::server::Server;
use crate::store::jobs::StoredJob;
use crate::store::notifications::Notify;
use crate::store::timing::BegunBy;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use lull_api::Problem;
use lull_api::job::{Job, JobChange, JobValidation, NewJob, SavedJob};
use lull_api::proxy_tier::JobPreview;
use lull_api::session::Session;
use lull_engine::chain::POINTS_PER_CHAIN;
use lull_engine::ids::{JobId, RepositoryId, VmId};
use lull_engine::job::{self, BackupAction};
use lull_engine::retention::Retention;
use lull_engine::schedule::Retries;
use lull_engine::session::SessionState;
use lull_engine::settings::{GuestProcessing, ProxyPolicy};
use lull_engine::validation::{Infrastructure, validate_job};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Most VMs in one job.
const VMS_MAX: usize = 100_000;

/// All jobs.
#[utoipa::path(get, path = "/jobs", tag = "jobs", responses((status = 200, body = Vec<Job>)))]
pub async fn list(State(server): State<Arc<Server>>) -> Answer<Json<Vec<Job>>> {
    let mut jobs = Vec::new();
    for job in server.store.jobs().await? {
        jobs.push(shown(&server, &job).await?);
    }
    Ok(Json(jobs))
}

/// Saves a new job, if it can run.
#[utoipa::path(post, path = "/jobs", tag = "jobs", request_body = NewJob, responses((status = 201, body = SavedJob)))]
pub async fn add(State(server): State<Arc<Server>>, Body(new): Body<NewJob>) -> Answer<(StatusCode, Json<SavedJob>)> {
    let job = built(&server, new).await?;
    let warnings = valid(&server, &job).await?;
    server.store.add_job(&job, server.clock.now()).await?;
    server.clock.wake();
    Ok((StatusCode::CREATED, Json(SavedJob { job: shown(&server, &job).await?, warnings })))
}

/// What saving this job would say; nothing is saved.
#[utoipa::path(post, path = "/jobs/validate", tag = "jobs", request_body = NewJob,
    responses((status = 200, body = JobValidation)))]
pub async fn validate_new(State(server): State<Arc<Server>>, Body(new): Body<NewJob>) -> Answer<Json<JobValidation>> {
    match built(&server, new).await {
        Ok(job) => Ok(Json(findings(&server, &job).await?)),
        // What is named in the body and does not exist is a finding too.
        Err(fault) if fault.0.status == 422 => {
            let text = fault.0.why.map_or(fault.0.what.clone(), |why| format!("{}: {why}", fault.0.what));
            Ok(Json(JobValidation { errors: vec![text], warnings: Vec::new() }))
        }
        Err(fault) => Err(fault),
    }
}

/// One job.
#[utoipa::path(get, path = "/jobs/{job}", tag = "jobs", params(("job" = String, Path, description = "name or id")),
    responses((status = 200, body = Job)))]
pub async fn get(State(server): State<Arc<Server>>, Path(job): Path<String>) -> Answer<Json<Job>> {
    let job = named(&server, Place::Path, &job).await?;
    Ok(Json(shown(&server, &job).await?))
}

/// Changes a job; a session under way goes on as it began.
#[utoipa::path(patch, path = "/jobs/{job}", tag = "jobs", params(("job" = String, Path, description = "name or id")),
    request_body = JobChange, responses((status = 200, body = SavedJob)))]
pub async fn change(
    State(server): State<Arc<Server>>,
    Path(job): Path<String>,
    Body(change): Body<JobChange>,
) -> Answer<Json<SavedJob>> {
    let mut job = named(&server, Place::Path, &job).await?;
    if let Some(name) = change.name {
        job.job.name = checked("name", name)?;
    }
    if let Some(vms) = change.vms {
        job.job.vms = scope(&server, &vms).await?;
        let scope = job.job.vms.clone();
        job.job.overrides.retain(|vm, _| scope.contains(vm));
    }
    if let Some(repository) = change.repository {
        set_repository(&server, &mut job, &repository).await?;
    }
    if let Some(guest) = change.guest {
        let servers = server.store.servers().await?;
        guest_settings::apply(&mut job.job.guest_processing, &mut job.copy_limit_bytes_per_s, &guest, &servers)?;
    }
    if let (Some(full_every), BackupAction::Backup { full_every: known, .. }) = (change.full_every, &mut job.job.action)
    {
        *known = full_every;
    }
    let scheduled = job.schedule.clone();
    if let Some(given) = change.schedule {
        job.schedule = given.map(|given| timing::scheduled(job.schedule.take(), given)).transpose()?;
    }
    if let Some(given) = change.retries {
        job.retries = timing::retried(job.retries, &given);
    }
    if let Some(given) = change.retention {
        job.retention = given.map(|given| timing::retained(job.retention, &given)).unwrap_or_default();
    }
    if let Some(notify) = change.notify {
        notify_settings::apply(&server, &mut job, notify)?;
    }
    let warnings = valid(&server, &job).await?;
    let from = (job.schedule != scheduled).then(|| server.clock.now());
    server.store.update_job(&job, from).await?;
    server.clock.wake();
    Ok(Json(SavedJob { job: shown(&server, &job).await?, warnings }))
}

/// Removes a job; its sessions and restore points stay.
#[utoipa::path(delete, path = "/jobs/{job}", tag = "jobs", params(("job" = String, Path, description = "name or id")),
    responses((status = 204)))]
pub async fn remove(State(server): State<Arc<Server>>, Path(job): Path<String>) -> Answer<StatusCode> {
    let job = named(&server, Place::Path, &job).await?;
    for open in server.book.open_tasks().await {
        if open.row.work.job == job.job.id {
            let what = format!("job {} is running: session {}", job.job.name, open.row.session);
            return Err(Problem::new(409, "in-use", what).remedy("wait for that session, or cancel it").into());
        }
    }
    server.store.remove_job(job.job.id.0).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What saving the job again as it is would say.
#[utoipa::path(post, path = "/jobs/{job}/validate", tag = "jobs",
    params(("job" = String, Path, description = "name or id")), responses((status = 200, body = JobValidation)))]
pub async fn validate(State(server): State<Arc<Server>>, Path(job): Path<String>) -> Answer<Json<JobValidation>> {
    let job = named(&server, Place::Path, &job).await?;
    Ok(Json(findings(&server, &job).await?))
}

/// Which proxy would serve which VM if the job ran now and nothing else did.
#[utoipa::path(get, path = "/jobs/{job}/preview", tag = "jobs",
    params(("job" = String, Path, description = "name or id")), responses((status = 200, body = JobPreview)))]
pub async fn preview(State(server): State<Arc<Server>>, Path(job): Path<String>) -> Answer<Json<JobPreview>> {
    let job = named(&server, Place::Path, &job).await?;
    let JobValidation { errors, warnings } = findings(&server, &job).await?;
    let errors = errors.into_iter().map(|error| format!("the job could not be saved as it is: {error}"));
    let infrastructure = snapshot(&server).await?;
    let hosts = server.store.hosts().await?.into_iter().map(|host| (host.id, host.name));
    let repositories = server.store.repositories().await?.into_iter().map(|known| (known.id, known.name));
    let names: BTreeMap<Uuid, String> = hosts.chain(repositories).collect();
    let name = |id: Uuid| names.get(&id).cloned().unwrap_or_else(|| id.to_string());
    Ok(Json(preview::preview(&job.job, &infrastructure, errors.chain(warnings).collect(), name)))
}

/// Begins a session of the job.
#[utoipa::path(post, path = "/jobs/{job}/run", tag = "jobs", params(("job" = String, Path, description = "name or id")),
    responses((status = 202, body = Session)))]
pub async fn run(State(server): State<Arc<Server>>, Path(job): Path<String>) -> Answer<(StatusCode, Json<Session>)> {
    let job = named(&server, Place::Path, &job).await?;
    super::sessions::takes_work(&server)?;
    let session = begin::run_job(&server, &job, BegunBy::Caller, None, None).await?;
    Ok((StatusCode::ACCEPTED, Json(view::session_view(&server, session).await?)))
}

/// The job that a caller names.
pub async fn named(server: &Server, place: Place, wanted: &str) -> Answer<StoredJob> {
    find(JOB, place, wanted, server.store.jobs().await?, |job| (job.job.id.0, job.job.name.clone()))
}

async fn built(server: &Server, new: NewJob) -> Answer<StoredJob> {
    let repository = repositories::named(server, Place::Body, &new.repository).await?;
    let mut job = StoredJob {
        job: lull_engine::job::Job {
            id: JobId::generate(),
            name: checked("name", new.name)?,
            vms: scope(server, &new.vms).await?,
            action: BackupAction::Backup {
                repository: RepositoryId(repository.id),
                full_every: new.full_every.unwrap_or(POINTS_PER_CHAIN),
            },
            guest_processing: GuestProcessing::default(),
            overrides: BTreeMap::new(),
        },
        repository: repository.id,
        copy_limit_bytes_per_s: 0,
        schedule: new.schedule.map(|given| timing::scheduled(None, given)).transpose()?,
        retries: timing::retried(Retries::default(), &new.retries.unwrap_or_default()),
        retention: timing::retained(Retention::default(), &new.retention.unwrap_or_default()),
        notify: Notify::default(),
    };
    let servers = server.store.servers().await?;
    guest_settings::apply(&mut job.job.guest_processing, &mut job.copy_limit_bytes_per_s, &new.guest, &servers)?;
    notify_settings::apply(server, &mut job, new.notify)?;
    Ok(job)
}

async fn set_repository(server: &Server, job: &mut StoredJob, wanted: &str) -> Answer<()> {
    let repository = repositories::named(server, Place::Body, wanted).await?;
    job.repository = repository.id;
    if let BackupAction::Backup { repository: known, .. } = &mut job.job.action {
        *known = RepositoryId(repository.id);
    }
    Ok(())
}

async fn scope(server: &Server, names: &[String]) -> Answer<Vec<VmId>> {
    if names.len() > VMS_MAX {
        return Err(bad_value("vms", format!("at most {VMS_MAX}")));
    }
    let vms = server.store.vms().await?;
    let index = VmIndex::new(&vms);
    names.iter().map(|name| index.find(Place::Body, name).map(|vm| VmId(vm.id))).collect()
}

/// The warnings, where there are no errors.
pub(super) async fn valid(server: &Server, job: &StoredJob) -> Answer<Vec<String>> {
    let JobValidation { errors, warnings } = findings(server, job).await?;
    if errors.is_empty() {
        return Ok(warnings);
    }
    let what = format!("job {} cannot be saved: {}", job.job.name, errors.join("; "));
    let problem = Problem::new(422, "invalid-job", what);
    if server.licence.in_force().admits_proxies() {
        return Err(problem.into());
    }
    let stored = server.store.jobs().await?.into_iter().find(|stored| stored.job.id == job.job.id);
    Err(match without_proxies(&job.job, stored.as_ref().map(|stored| &stored.job)) {
        Some(remedy) => problem.remedy(remedy).into(),
        None => problem.into(),
    })
}

/// What to do about a job that prefers servers under a licence without proxies: take back what is stored, or do not ask for it.
fn without_proxies(job: &job::Job, stored: Option<&job::Job>) -> Option<String> {
    let prefers = |policy: &ProxyPolicy| matches!(policy, ProxyPolicy::Prefer { .. });
    let of_job = |job: &job::Job| prefers(&job.guest_processing.proxies);
    let of_vms = |job: &job::Job| job.overrides.values().any(|over| over.proxies.as_ref().is_some_and(prefers));
    match stored {
        _ if !of_job(job) && !of_vms(job) => None,
        Some(stored) if of_job(job) && of_job(stored) => {
            Some(format!("lull job edit {} --guest-interaction-proxy automatic", stored.name))
        }
        Some(stored) if of_vms(job) && of_vms(stored) => Some(format!(
            "lull job vm-settings {} VM --clear guest-interaction-proxy, for each VM that prefers servers",
            stored.name
        )),
        _ => Some("leave --prefer out: the backup server does all guest interaction".into()),
    }
}

async fn findings(server: &Server, job: &StoredJob) -> Answer<JobValidation> {
    let known = snapshot(server).await?;
    let findings = validate_job(
        &job.job,
        &Infrastructure {
            servers: &known.servers,
            vms: &known.vms,
            credentials: &known.credentials,
            licence: known.licence,
            rules: known.rules,
        },
    );
    let errors = findings.errors.iter().map(ToString::to_string);
    Ok(JobValidation {
        errors: errors.chain(timing::errors(job, server.clock.now())).collect(),
        warnings: findings.warnings.iter().map(ToString::to_string).collect(),
    })
}

async fn shown(server: &Server, job: &StoredJob) -> Answer<Job> {
    let vms = server.store.vms().await?;
    let index = VmIndex::new(&vms);
    let vm_name = |id: &VmId| index.shortest_name(id.0).unwrap_or_else(|| id.to_string());
    let servers = server.store.servers().await?;
    let repositories = server.store.repositories().await?;
    let repository = repositories.into_iter().find(|r| r.id == job.repository);
    let last = server.store.sessions(Some(job.job.id.0), 1).await?.into_iter().next();
    let last_result = last.as_ref().map(|session| match session.state {
        SessionState::Finished { outcome, .. } => outcome.to_string(),
        SessionState::Running { .. } | SessionState::Cancelling { .. } => "running".to_string(),
    });
    let clock = server.store.job_clocks().await?.remove(&job.job.id.0);
    Ok(Job {
        id: job.job.id.0,
        name: job.job.name.clone(),
        vms: job.job.vms.iter().map(vm_name).collect(),
        repository: repository.map_or_else(|| job.repository.to_string(), |r| r.name),
        notify: notify_settings::shown(&job.notify),
        overrides: vm_settings::overridden(job, &index),
        guest: guest_settings::shown(&job.job.guest_processing, job.copy_limit_bytes_per_s, &servers),
        schedule: job.schedule.as_ref().map(timing::schedule_shown),
        next_run: timing::next_run(job, clock.as_ref(), server.clock.now()),
        last_skipped: clock.and_then(|clock| clock.skipped).map(timing::skipped_shown),
        retries: timing::retries_shown(job.retries),
        retention: timing::retention_shown(job.retention),
        full_every: job.full_every(),
        last_session: last.map(|session| session.id),
        last_result,
    })
}
