//! Restore points: listed, verified, deleted with their files.

use super::answer::Answer;
use super::body::Params;
use super::names::{Place, find_vm, listed};
use crate::instant::{from_us, rfc3339};
use crate::server::Server;
use crate::store::restore_points::{DAMAGED, RestorePointRow, SOUND};
use crate::store::sessions::BackupPlan;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use lull_api::Problem;
use lull_api::infrastructure::{RestorePoint, Verification};
use lull_engine::chain::{ChainPoint, dependents};
use lull_engine::ids::RestorePointId;
use serde::Deserialize;
use std::io::ErrorKind;
use std::path::Path as FilePath;
use std::sync::Arc;
use uuid::Uuid;

/// Which restore points.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Name or id of a VM; also one that is no longer in the infrastructure.
    vm: Option<String>,
}

/// Restore points, newest first.
#[utoipa::path(get, path = "/restore-points", tag = "restore points", params(Which),
    responses((status = 200, body = Vec<RestorePoint>)))]
pub async fn list(State(server): State<Arc<Server>>, Params(which): Params<Which>) -> Answer<Json<Vec<RestorePoint>>> {
    let mut points = server.store.restore_points(None).await?;
    if let Some(wanted) = which.vm {
        match find_vm(Place::Body, &wanted, &server.store.vms().await?) {
            Ok(vm) => points.retain(|point| point.vm == vm.id),
            // Restore points outlive their VMs.
            Err(fault) if fault.0.code == "unknown-vm" && points.iter().any(|point| point.vm_name == wanted) => {
                points.retain(|point| point.vm_name == wanted);
            }
            Err(fault) => return Err(fault),
        }
    }
    let repositories = server.store.repositories().await?;
    let name = |id: Uuid| repositories.iter().find(|r| r.id == id).map(|r| r.name.clone()).unwrap_or_default();
    Ok(Json(points.into_iter().map(|point| shown(name(point.repository), point)).collect()))
}

/// One restore point.
#[utoipa::path(get, path = "/restore-points/{restore_point}", tag = "restore points",
    params(("restore_point" = String, Path, description = "id")), responses((status = 200, body = RestorePoint)))]
pub async fn get(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Answer<Json<RestorePoint>> {
    let point = find(&server, &id).await?;
    let repositories = server.store.repositories().await?;
    let name = repositories.into_iter().find(|r| r.id == point.repository).map(|r| r.name);
    Ok(Json(shown(name.unwrap_or_default(), point)))
}

/// Checks every file of a restore point and of those that it builds on.
#[utoipa::path(post, path = "/restore-points/{restore_point}/verify", tag = "restore points",
    params(("restore_point" = String, Path, description = "id")), responses((status = 200, body = Verification)))]
pub async fn verify(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Answer<Json<Verification>> {
    let point = find(&server, &id).await?;
    let verification = match lull_hypervisor::verify(FilePath::new(&point.directory)).await {
        Ok(report) => {
            let own = &report.metadata.restore_point;
            let line = |file: &lull_hypervisor::verify::VerifiedFile| {
                let whose = match &file.restore_point {
                    point if point == own => String::new(),
                    point => format!("restore point {point}, "),
                };
                format!("{whose}{}: {}", file.file, file.fault.as_deref().unwrap_or("sound"))
            };
            let mut findings: Vec<String> = report.files.iter().map(line).collect();
            findings.extend(report.broken_links.iter().cloned());
            let named = |disk: &str| report.metadata.disks.iter().any(|file| file.file == disk);
            let missing: Vec<&String> = point.disks.iter().filter(|disk| !named(disk)).collect();
            findings.extend(missing.iter().map(|disk| format!("{disk}: not named in the restore point's own list")));
            Verification { ok: report.is_sound() && missing.is_empty(), findings }
        }
        Err(error) => Verification { ok: false, findings: vec![error.to_string()] },
    };
    let verdict = if verification.ok { SOUND } else { DAMAGED };
    server.store.set_verified(point.id, &format!("{}{verdict}", rfc3339(Timestamp::now()))).await?;
    Ok(Json(verification))
}

/// Deletes a restore point with its files, unless others build on it.
#[utoipa::path(delete, path = "/restore-points/{restore_point}", tag = "restore points",
    params(("restore_point" = String, Path, description = "id")), responses((status = 204)))]
pub async fn remove(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Answer<StatusCode> {
    let point = find(&server, &id).await?;
    may_go(&server, &point).await?;
    let repositories = server.store.repositories().await?;
    let folder = repositories.iter().find(|r| r.id == point.repository).map(|r| r.path.clone()).unwrap_or_default();
    let deleted = {
        let point = point.clone();
        tokio::task::spawn_blocking(move || delete_files(&folder, &point)).await
    };
    let outcome = deleted.unwrap_or_else(|error| Err(error.to_string()));
    outcome.map_err(|why| {
        Problem::new(409, "not-deleted", format!("restore point {} was not deleted", point.id))
            .why(why)
            .remedy("put that right, then delete it again")
    })?;
    server.store.remove_restore_point(point.id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whether nothing builds on a restore point, and nothing is about to.
async fn may_go(server: &Server, point: &RestorePointRow) -> Answer<()> {
    let others = server.store.restore_points(Some(point.vm)).await?;
    let chain: Vec<ChainPoint> = others.iter().map(RestorePointRow::chain_point).collect();
    let lost = dependents(RestorePointId(point.id), &chain);
    if !lost.is_empty() {
        let lost: Vec<String> = lost.iter().map(RestorePointId::to_string).collect();
        let what = format!("restore point {} was not deleted: others build on it", point.id);
        return Err(Problem::new(409, "in-use", what)
            .why(format!("without it these could not be restored: {}", listed(&lost)))
            .remedy("delete those first, the newest before the others, or keep it")
            .into());
    }
    // An order names its parent before there is a child that the database knows.
    let open = server.book.open_tasks().await;
    let backup = |backup: &BackupPlan| backup.repository.0 == point.repository;
    let making = open.iter().find(|t| t.row.vm == point.vm && t.row.work.backup.as_ref().is_some_and(backup));
    making.map_or(Ok(()), |task| {
        let what = format!("restore point {} was not deleted: a backup may be building on it", point.id);
        Err(Problem::new(409, "in-use", what)
            .why(format!("session {} is backing {} up to the same repository", task.row.session, point.vm_name))
            .remedy("delete it when that session is over")
            .into())
    })
}

/// Deletes what belongs to the restore point, and nothing else: a folder with anything else in it stays.
fn delete_files(repository: &str, point: &RestorePointRow) -> Result<(), String> {
    let directory = FilePath::new(&point.directory);
    let below = directory.strip_prefix(repository).is_ok_and(|rest| rest.components().count() > 0);
    if !below || point.directory.contains("/../") {
        return Err(format!("{} does not lie in the repository's folder {repository}", point.directory));
    }
    // A repository that is not mounted must not look like files that are gone.
    if let Some(problem) = super::repositories::problem(repository) {
        return Err(problem);
    }
    let failed = |what: &FilePath, error: std::io::Error| format!("{}: {error}", what.display());
    // The list of its files goes last, so that a deletion that broke off can be repeated.
    let metadata = lull_hypervisor::metadata::FILE_NAME.to_string();
    for file in point.disks.iter().chain([&metadata]) {
        if file.contains('/') {
            return Err(format!("{file} is no file name"));
        }
        let file = directory.join(file);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&file, error)),
            _ => {}
        }
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(directory, error)),
        _ => Ok(()),
    }
}

async fn find(server: &Server, wanted: &str) -> Answer<RestorePointRow> {
    let points = server.store.restore_points(None).await?;
    let id = wanted.parse::<Uuid>().ok();
    if let Some(point) = points.iter().find(|point| Some(point.id) == id) {
        return Ok(point.clone());
    }
    let what = format!("there is no restore point \"{}\"", super::shortened(wanted));
    let problem = Problem::new(404, "unknown-restore-point", what);
    if points.is_empty() {
        return Err(problem.why("there is no restore point yet").remedy("run a job: lull job run NAME").into());
    }
    let newest: Vec<String> = points.iter().map(|point| format!("{} ({})", point.id, point.vm_name)).collect();
    Err(problem.why(format!("the newest are: {}", listed(&newest))).remedy("use one of these ids").into())
}

fn shown(repository: String, point: RestorePointRow) -> RestorePoint {
    RestorePoint {
        id: point.id,
        vm: point.vm_name,
        job: point.job_name,
        session: point.session,
        repository,
        created_at: from_us(point.created_us).map(rfc3339).unwrap_or_default(),
        kind: point.kind,
        parent: point.parent,
        full_because: point.full_because,
        level: point.level,
        level_reasons: point.level_reasons,
        directory: point.directory,
        disks: point.disks,
        bytes: point.bytes,
        verified: point.verified,
    }
}
