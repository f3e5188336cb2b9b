//! Restore points: listed, verified, deleted with their files.

use super::answer::{Answer, Fault};
use super::body::Params;
use super::names::{Place, find_vm, listed};
use crate::instant::{from_us, rfc3339};
use crate::removal::{self, NotRemoved, Reading};
use crate::server::Server;
use crate::store::restore_points::RestorePointRow;
use crate::verification::judge;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use lull_api::Problem;
use lull_api::infrastructure::{RestorePoint, Verdict, Verification};
use serde::Deserialize;
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
    if point.removing {
        let what = format!("restore point {} cannot be verified: it is being removed", point.id);
        return Err(Problem::new(409, "in-use", what).remedy("see what is left: lull restore-point list").into());
    }
    let _held = held(&server, &point).await?;
    let report = lull_hypervisor::verify(FilePath::new(&point.directory)).await;
    let found = judge(&report, &point, &server.store.restore_points(Some(point.vm)).await?);
    let now = Timestamp::now();
    let outcomes: Vec<_> = found.outcomes.into_iter().map(|(id, outcome)| (id, outcome.text(now))).collect();
    server.store.set_verified(&outcomes).await?;
    let remedy = |what: String| format!("{what}; put that right, then verify again");
    Ok(Json(Verification {
        ok: found.verdict == Verdict::Sound,
        verdict: found.verdict,
        not_checked: found.not_checked.into_iter().map(remedy).collect(),
        findings: found.findings,
    }))
}

/// Deletes a restore point with its files, unless others build on it.
#[utoipa::path(delete, path = "/restore-points/{restore_point}", tag = "restore points",
    params(("restore_point" = String, Path, description = "id")), responses((status = 204)))]
pub async fn remove(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Answer<StatusCode> {
    let point = find(&server, &id).await?;
    let (gone, whole) = (point.clone(), server.clone());
    // Goes on when the caller hangs up: half a deletion is a row whose files are gone.
    let removed = tokio::spawn(async move { removal::remove(&whole, &gone).await }).await;
    let removed = removed.unwrap_or_else(|error| Err(NotRemoved::Failed { why: error.to_string() }));
    removed.map_err(|error| not_removed(&point, error))?;
    Ok(StatusCode::NO_CONTENT)
}

fn not_removed(point: &RestorePointRow, error: NotRemoved) -> Fault {
    let what = format!("restore point {} was not deleted", point.id);
    match error {
        NotRemoved::Store(error) => error.into(),
        NotRemoved::InUse { what: because, why, remedy } => {
            Problem::new(409, "in-use", format!("{what}: {because}")).why(why).remedy(remedy).into()
        }
        NotRemoved::Failed { why } => {
            Problem::new(409, "not-deleted", what).why(why).remedy("put that right, then delete it again").into()
        }
        NotRemoved::Unfinished { why } => {
            let what = format!("restore point {} was not deleted completely", point.id);
            let remedy =
                "put that right; the deletion is gone on with by itself within an hour, or when you delete it again";
            Problem::new(409, "not-deleted", what).why(why).remedy(remedy).into()
        }
    }
}

/// A restore point with all that it builds on, which nobody removes while the answer lives.
async fn held(server: &Server, point: &RestorePointRow) -> Answer<Reading> {
    let points = server.store.restore_points(Some(point.vm)).await?;
    let mut chain = vec![point.id];
    let mut at = point.parent;
    // Each is held once, also if the rows formed a ring.
    while let Some(id) = at.filter(|id| !chain.contains(id)) {
        chain.push(id);
        at = points.iter().find(|point| point.id == id).and_then(|point| point.parent);
    }
    server.uses.read(chain).map_err(|removed| {
        let what = format!("restore point {} cannot be verified: {removed} is being removed", point.id);
        Problem::new(409, "in-use", what).remedy("see what is left: lull restore-point list").into()
    })
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
        removing: point.removing,
    }
}
