//! Scanning a repository: restore points that the database does not know are recorded from what lies beside their disks, so that a
//! lost database loses no backup.
//!
//! [`plan`] is pure. Only what can be restored as far as a scan tells is recorded, and only for VMs of the infrastructure; everything else is named
//! with the reason. Nothing in the repository is changed.

use super::answer::Answer;
use super::names::Place;
use super::repositories;
use crate::instant::us;
use crate::server::Server;
use crate::store::infrastructure::VmRow;
use crate::store::restore_points::RestorePointRow;
use crate::store::sessions::short_id;
use axum::Json;
use axum::extract::{Path, State};
use lull_api::Problem;
use lull_api::infrastructure::{RepositoryScan, ScanFinding};
use lull_hypervisor::{RestorePointMetadata, ScanReport};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path as FilePath;
use std::sync::Arc;
use uuid::Uuid;

/// Reads what lies in a repository and records the restore points that are not known.
#[utoipa::path(post, path = "/repositories/{repository}/scan", tag = "repositories",
    params(("repository" = String, Path, description = "name or id")), responses((status = 200, body = RepositoryScan)))]
pub async fn scan(State(server): State<Arc<Server>>, Path(repository): Path<String>) -> Answer<Json<RepositoryScan>> {
    let repository = repositories::named(&server, Place::Path, &repository).await?;
    let folder = repository.path.clone();
    let before: BTreeSet<Uuid> = server.store.restore_points(None).await?.iter().map(|point| point.id).collect();
    let scanned = tokio::task::spawn_blocking(move || lull_hypervisor::scan(FilePath::new(&folder))).await;
    let report = scanned.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(|error| {
        let what = format!("repository {} cannot be read", repository.name);
        Problem::new(409, "not-readable", what)
            .why(format!("{}: {error}", repository.path))
            .remedy("see that the folder is there and mounted, then scan again")
    })?;
    let open = server.book.open_tasks().await;
    let being_made = open.iter().filter_map(|task| task.row.work.backup.as_ref()).map(|b| b.restore_point.0).collect();
    let known = server.store.restore_points(None).await?;
    let mut plan = plan(&report, repository.id, &known, &server.store.vms().await?, &being_made);
    // What was known when the scan began and is not any more was removed meanwhile, with the files that the scan saw.
    plan.record.retain(|point| !before.contains(&point.id));
    server.store.record_found(&plan.record).await?;
    let finding = |path: &FilePath, why: &str| ScanFinding { path: path.display().to_string(), why: why.to_string() };
    Ok(Json(RepositoryScan {
        recorded: plan.record.iter().map(|point| point.id).collect(),
        known: plan.known,
        left_out: plan.left_out,
        missing: plan.missing,
        strangers: report.strangers.iter().map(|stranger| finding(&stranger.path, &stranger.why)).collect(),
        more_strangers: report.more_strangers as u64,
        cut_short: report.cut_short,
    }))
}

/// What comes of a scan.
#[derive(Debug, Default)]
struct Plan {
    record: Vec<RestorePointRow>,
    known: u32,
    left_out: Vec<ScanFinding>,
    missing: Vec<ScanFinding>,
}

/// What to record, and what not and why. `known`: everything in the database; `being_made`: restore points of open tasks.
fn plan(
    report: &ScanReport,
    repository: Uuid,
    known: &[RestorePointRow],
    vms: &[VmRow],
    being_made: &BTreeSet<Uuid>,
) -> Plan {
    let mut plan = Plan::default();
    // Ids by folder: a parent is named by its folder.
    let mut ids: BTreeMap<&FilePath, Uuid> = BTreeMap::new();
    for scanned in &report.points {
        let dir = scanned.point.dir.as_path();
        let here = known.iter().find(|row| row.repository == repository && FilePath::new(&row.directory) == dir);
        if let Some(id) = here.map(|row| row.id).or_else(|| id_of(&scanned.point.metadata)) {
            ids.insert(dir, id);
        }
    }
    for scanned in &report.points {
        let (dir, metadata) = (scanned.point.dir.as_path(), &scanned.point.metadata);
        let row = ids.get(dir).and_then(|id| known.iter().find(|row| row.id == *id));
        if row.is_some_and(|row| row.repository == repository && FilePath::new(&row.directory) == dir) {
            plan.known += 1;
            if let Some(broken) = scanned.broken.as_ref().filter(|_| row.is_some_and(|row| !row.removing)) {
                plan.missing.push(finding(dir, broken.to_string()));
            }
            continue;
        }
        let verdict = match (ids.get(dir), &scanned.broken) {
            (_, Some(broken)) => Err(broken.to_string()),
            (None, None) => {
                Err(format!("\"{}\" is not the id of a restore point of a backup server", metadata.restore_point))
            }
            (Some(id), None) if being_made.contains(id) => Err("a task is making it".to_string()),
            (Some(id), None) => match row {
                Some(row) => Err(format!("restore point {id} is known to lie in {}", row.directory)),
                None => vm_of(metadata, vms).map(|vm| (*id, vm)),
            },
        };
        match verdict {
            Ok((id, vm)) => {
                let parent =
                    metadata.parent.as_deref().and_then(|parent| ids.get(dir.with_file_name(parent).as_path()));
                plan.record.push(row_of(id, vm, repository, parent.copied(), dir, metadata));
            }
            Err(why) => plan.left_out.push(finding(dir, why)),
        }
    }
    if !report.cut_short {
        let found: BTreeSet<&FilePath> = report.points.iter().map(|scanned| scanned.point.dir.as_path()).collect();
        let gone = known.iter().filter(|row| row.repository == repository && !row.removing);
        let gone = gone.filter(|row| !found.contains(FilePath::new(&row.directory)));
        let say = |row: &RestorePointRow| {
            let what = format!("restore point {} of {} is not there any more, or unreadable", row.id, row.vm_name);
            finding(FilePath::new(&row.directory), what)
        };
        plan.missing.extend(gone.map(say));
    }
    plan
}

fn finding(dir: &FilePath, why: String) -> ScanFinding {
    ScanFinding { path: dir.display().to_string(), why }
}

/// The id that the server knew it by. An old description has only its short one: the same, with nothing before it.
fn id_of(metadata: &RestorePointMetadata) -> Option<Uuid> {
    let short = metadata.restore_point.as_str();
    let full = metadata.origin.as_ref().and_then(|origin| origin.restore_point_id.parse::<Uuid>().ok());
    let full = full.filter(|id| short_id(*id) == short);
    full.or_else(|| {
        let low = u64::from_str_radix(short, 16).ok()?;
        Some(Uuid::from_u64_pair(0, low)).filter(|id| short_id(*id) == short)
    })
}

/// The VM it is of: the one with its id, else the only one with its name at its host.
fn vm_of<'a>(metadata: &RestorePointMetadata, vms: &'a [VmRow]) -> Result<&'a VmRow, String> {
    let id = metadata.origin.as_ref().and_then(|origin| origin.vm_id.parse::<Uuid>().ok());
    if let Some(vm) = vms.iter().find(|vm| Some(vm.id) == id) {
        return Ok(vm);
    }
    let named: Vec<&VmRow> = vms.iter().filter(|vm| vm.name == metadata.vm).collect();
    match named.as_slice() {
        [vm] => Ok(vm),
        [] => Err(format!("VM {} is not in the infrastructure: add its host, then scan again", metadata.vm)),
        _ => Err(format!("{} hosts have a VM {}, and nothing says which it is of", named.len(), metadata.vm)),
    }
}

fn row_of(
    id: Uuid,
    vm: &VmRow,
    repository: Uuid,
    parent: Option<Uuid>,
    dir: &FilePath,
    metadata: &RestorePointMetadata,
) -> RestorePointRow {
    let origin = metadata.origin.as_ref();
    // Sessions are counted by each database for itself: another one's number would name the wrong session here.
    let same_database = origin.is_some_and(|origin| origin.vm_id == vm.id.to_string());
    RestorePointRow {
        id,
        vm: vm.id,
        vm_name: vm.name.clone(),
        job: None,
        job_name: origin.and_then(|origin| origin.job.clone()),
        session: origin.filter(|_| same_database).map_or(0, |origin| origin.session),
        task: metadata.task.parse().unwrap_or_default(),
        repository,
        created_us: us(metadata.created),
        kind: metadata.kind.to_string(),
        parent,
        full_because: metadata.full_because.clone(),
        level: metadata.level.clone().unwrap_or_else(|| "none".to_string()),
        level_reasons: match &metadata.level {
            Some(_) => metadata.level_reasons.clone(),
            None => vec!["found in the repository, which says nothing of its level".to_string()],
        },
        directory: dir.display().to_string(),
        disks: metadata.disks.iter().map(|disk| disk.file.clone()).collect(),
        bytes: metadata.disks.iter().fold(0, |sum, disk| disk.file_bytes.saturating_add(sum)),
        bitmap: metadata.bitmap.clone(),
        verified: None,
        removing: false,
    }
}
