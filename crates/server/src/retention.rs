//! Retention: restore points that nobody asks for any more are removed, after each session of their job that went well and once an hour. Which
//! those are is decided by `engine::retention`; how one is removed, `removal` knows.
//!
//! What is in use stays for now and is come back to; so is what could not be removed. Both are told once, in the job's session. Removals that broke
//! off, also a person's, are gone on with at the same times.

use crate::clock::default_zone;
use crate::removal::{self, NotRemoved};
use crate::server::Server;
use crate::store::StoreError;
use crate::store::jobs::StoredJob;
use crate::store::restore_points::RestorePointRow;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use lull_api::session::EventKind;
use lull_engine::ids::{RestorePointId, VmId};
use lull_engine::retention::{Point, Wish, chains_to_remove, kept_by_all};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use uuid::Uuid;

/// From one look at all jobs to the next.
const ALL_MS: i64 = 3_600_000;
/// What could not be removed is come back to after this time, or as soon as a use is over.
const AGAIN_MS: u64 = 60_000;

/// Jobs whose turn it is, and what people were told.
#[derive(Default)]
pub struct RetentionQueue {
    /// The session after which each has its turn.
    jobs: Mutex<BTreeMap<Uuid, i64>>,
    wake: Notify,
    /// Why restore points stay that ought to go, by job and VM; of removals that are not done, by restore point.
    told: Mutex<BTreeMap<(Uuid, Uuid), String>>,
}

impl RetentionQueue {
    /// A session of the job went well.
    pub fn after(&self, job: Uuid, session: i64) {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(job, session);
        self.wake.notify_one();
    }

    fn taken(&self) -> BTreeMap<Uuid, i64> {
        std::mem::take(&mut *self.jobs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says whether this is new.
    fn is_news(&self, job: Uuid, vm: Uuid, trouble: Option<&str>) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match trouble {
            None => told.remove(&(job, vm)).is_some(),
            Some(trouble) => told.insert((job, vm), trouble.into()).as_deref() != Some(trouble),
        }
    }
}

/// Applies it until the server takes no more work.
pub async fn run(server: &Arc<Server>) {
    let mut looked: Option<Timestamp> = None;
    // Jobs that are come back to.
    let mut again: BTreeMap<Uuid, Option<i64>> = BTreeMap::new();
    while !server.stopping.is_cancelled() {
        let now = server.clock.now();
        let is_time = looked.is_none_or(|at| (now.duration_since(at).as_millis()).abs() >= i128::from(ALL_MS));
        let mut turns = std::mem::take(&mut again);
        turns.extend(server.retention.taken().into_iter().map(|(job, session)| (job, Some(session))));
        match turn(server, turns.clone(), is_time).await {
            Ok(left) => {
                again = left;
                looked = if is_time { Some(now) } else { looked };
            }
            Err(error) => {
                tracing::error!(%error, "retention cannot be applied");
                again = turns;
            }
        }
        let next_ms = if again.is_empty() { ALL_MS.unsigned_abs() / 60 } else { AGAIN_MS };
        tokio::select! {
            () = server.retention.wake.notified() => {}
            () = server.uses.over.notified() => {}
            () = server.clock.jumped() => {}
            () = server.stopping.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(next_ms)) => {}
        }
    }
}

/// One look at jobs whose turn it is, or at all; answers which must be come back to.
async fn turn(
    server: &Arc<Server>,
    mut turns: BTreeMap<Uuid, Option<i64>>,
    all: bool,
) -> Result<BTreeMap<Uuid, Option<i64>>, StoreError> {
    let mut again = BTreeMap::new();
    if turns.is_empty() && !all {
        return Ok(again);
    }
    for (point, error) in removal::go_on(server).await? {
        let text = format!("the removal of restore point {} of {} is not done yet: {error}", point.id, point.vm_name);
        if server.retention.is_news(point.id, point.id, Some(&text)) {
            tracing::warn!("{text}");
        }
    }
    let jobs = server.store.jobs().await?;
    for job in jobs.iter().filter(|job| !job.retention.keeps_everything()) {
        let id = job.job.id.0;
        let after = turns.remove(&id);
        if after.is_none() && !all {
            continue;
        }
        let session = after.flatten();
        let mut is_done = true;
        for vm in &job.job.vms {
            // One VM's trouble is not the others'.
            is_done &= of_vm(server, &jobs, job, *vm, session).await.unwrap_or_else(|error| {
                tracing::error!(job = job.job.name, %vm, %error, "retention cannot be applied to a VM");
                false
            });
        }
        if !is_done {
            again.insert(id, session);
        }
    }
    Ok(again)
}

/// Removes what nobody asks for of one VM; answers whether nothing has to be come back to.
async fn of_vm(
    server: &Arc<Server>,
    jobs: &[StoredJob],
    job: &StoredJob,
    vm: VmId,
    session: Option<i64>,
) -> Result<bool, StoreError> {
    let points = server.store.restore_points(Some(vm.0)).await?;
    let now = server.clock.now();
    let mut gone = expired(&points, jobs, vm, now);
    if !gone.is_empty() {
        // Removing takes its time: what somebody wished for meanwhile counts.
        gone = expired(&points, &server.store.jobs().await?, vm, now);
    }
    let (mut removed, mut trouble) = (Vec::new(), None);
    for chain in gone {
        for id in chain {
            let Some(point) = points.iter().find(|point| point.id == id.0) else { continue };
            if server.stopping.is_cancelled() {
                return Ok(false);
            }
            match removal::remove(server, point).await {
                Ok(()) => removed.push(point),
                // One that a person removed at the same time is gone as it ought to be.
                Err(NotRemoved::Store(StoreError::Missing { .. })) => {}
                Err(NotRemoved::Store(error)) => return Err(error),
                Err(NotRemoved::Unfinished { why }) => {
                    trouble = Some(format!(
                        "restore point {id} of {} has expired, and is not removed completely: {why}",
                        point.vm_name
                    ));
                    break;
                }
                Err(error @ (NotRemoved::InUse { .. } | NotRemoved::Failed { .. })) => {
                    trouble = Some(format!(
                        "restore point {} of {} has expired and stays for now: {error}",
                        id, point.vm_name
                    ));
                    // What is left of the chain needs the others less than they need it.
                    break;
                }
            }
        }
    }
    if !removed.is_empty() {
        tell(server, job, session, "info", sentence(&removed)).await?;
    }
    let is_news = server.retention.is_news(job.job.id.0, vm.0, trouble.as_deref());
    let is_done = trouble.is_none();
    if let (Some(trouble), true) = (trouble, is_news) {
        tell(server, job, session, "warning", trouble).await?;
    }
    Ok(is_done)
}

/// Chains of which no job asks for any point, in the order of removal. Points of jobs that are gone, and of VMs that a job no longer contains, stay.
fn expired(points: &[RestorePointRow], jobs: &[StoredJob], vm: VmId, now: Timestamp) -> Vec<Vec<RestorePointId>> {
    let judges: Vec<&StoredJob> = jobs.iter().filter(|job| job.job.vms.contains(&vm)).collect();
    let wishes: Vec<Wish> = judges.iter().map(|job| Wish { retention: job.retention, zone: zone_of(job) }).collect();
    let maker = |id: RestorePointId| {
        let point = points.iter().find(|point| point.id == id.0)?;
        judges.iter().position(|job| made(job, point))
    };
    // One that is being removed keeps no place, and goes by itself.
    let known: Vec<Point> = points.iter().filter(|point| !point.removing).filter_map(point_of).collect();
    let kept = kept_by_all(&known, maker, &wishes, now);
    chains_to_remove(&known, &kept)
}

/// A restore point that a scan found names its job only: one of that name has inherited it.
fn made(job: &StoredJob, point: &RestorePointRow) -> bool {
    match point.job {
        Some(id) => id == job.job.id.0,
        None => point.job_name.as_deref() == Some(&job.job.name),
    }
}

fn point_of(row: &RestorePointRow) -> Option<Point> {
    let chain = row.chain_point();
    let taken_at = crate::instant::from_us(row.created_us).ok()?;
    Some(Point { id: chain.id, taken_at, parent: chain.parent, damaged: chain.damaged })
}

/// Weeks and months begin where the job's schedule lives.
fn zone_of(job: &StoredJob) -> TimeZone {
    let name = job.schedule.as_ref().map_or_else(default_zone, |schedule| schedule.time_zone.clone());
    TimeZone::get(&name).unwrap_or(TimeZone::UTC)
}

fn sentence(removed: &[&RestorePointRow]) -> String {
    let vm = removed.first().map_or("", |point| point.vm_name.as_str());
    let ids: Vec<String> = removed.iter().map(|point| point.id.to_string()).collect();
    let what = if ids.len() == 1 { "restore point" } else { "restore points" };
    format!("retention: removed {} expired {what} of {vm}: {}", ids.len(), ids.join(", "))
}

/// Tells it in the session, or in the job's newest one.
async fn tell(
    server: &Arc<Server>,
    job: &StoredJob,
    session: Option<i64>,
    level: &str,
    text: String,
) -> Result<(), StoreError> {
    match level {
        "warning" => tracing::warn!(job = job.job.name, "{text}"),
        _ => tracing::info!(job = job.job.name, "{text}"),
    }
    let newest = server.store.sessions(Some(job.job.id.0), 1).await?.first().map(|session| session.id);
    let Some(session) = session.or(newest) else { return Ok(()) };
    server.book.tell(session, EventKind::Note { level: level.into(), text }, Timestamp::now()).await
}
