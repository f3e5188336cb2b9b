//! Schedules: runs that are due begin, unless the job still runs; what does not begin is written down with its reason.

use super::running;
use crate::instant::to_the_second;
use crate::runner::begin;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::jobs::StoredJob;
use crate::store::sessions::BeginError;
use crate::store::timing::{BegunBy, JobClock, SkippedRun};
use jiff::Timestamp;
use lull_api::session::EventKind;
use lull_engine::schedule::{Due, Schedule, seen_to};
use std::sync::Arc;

/// Sees to every job's schedule; answers when the next run is due.
pub async fn see_to(server: &Arc<Server>, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
    let clocks = server.store.job_clocks().await?;
    let mut next = None;
    for job in server.store.jobs().await? {
        if server.stopping.is_cancelled() {
            return Ok(None);
        }
        let Some(schedule) = &job.schedule else { continue };
        // One job's trouble is not the others': it is seen to again at the next look.
        match of_job(server, &job, schedule, clocks.get(&job.job.id.0), now).await {
            Ok(due) => next = next.into_iter().chain(due).min(),
            Err(error) => tracing::error!(job = job.job.name, %error, "the schedule of a job cannot be seen to"),
        }
    }
    Ok(next)
}

async fn of_job(
    server: &Arc<Server>,
    job: &StoredJob,
    schedule: &Schedule,
    clock: Option<&JobClock>,
    now: Timestamp,
) -> Result<Option<Timestamp>, StoreError> {
    let id = job.job.id.0;
    let Some(clock) = clock else {
        server.store.see_to(id, now, None).await?;
        return Ok(schedule.next_after(now));
    };
    let since = seen_to(clock.seen, now);
    if since != clock.seen {
        tracing::warn!(job = job.job.name, seen = %clock.seen, "the clock was set back far: the schedule begins anew");
        server.store.see_to(id, since, None).await?;
    }
    match schedule.due(since, now) {
        Due::NotYet { next } => return Ok(next),
        Due::Skip { at } => {
            let because = "the backup server was not running then, and the schedule does not make up for missed runs";
            skip(server, job, at, because.into(), now).await?;
        }
        Due::Run { at, late } => match running(server, id).await {
            Some(session) => {
                skip(server, job, at, format!("the job was still running: session {session}"), now).await?;
                let text = format!(
                    "the run of {}, which was due at {}, was skipped: this session was still running",
                    job.job.name,
                    local(schedule, at)
                );
                let told = EventKind::Note { level: "warning".into(), text };
                server.book.tell(session, told, Timestamp::now()).await?;
            }
            None => begin(server, job, schedule, at, late).await?,
        },
    }
    Ok(schedule.next_after(now))
}

async fn skip(
    server: &Arc<Server>,
    job: &StoredJob,
    due: Timestamp,
    because: String,
    now: Timestamp,
) -> Result<(), StoreError> {
    tracing::warn!(job = job.job.name, %due, because, "a run was skipped");
    server.store.see_to(job.job.id.0, now, Some(&SkippedRun { due: to_the_second(due), because })).await
}

async fn begin(
    server: &Arc<Server>,
    job: &StoredJob,
    schedule: &Schedule,
    due: Timestamp,
    late: bool,
) -> Result<(), StoreError> {
    let text = format!("this run was due at {}, when the backup server was not running", local(schedule, due));
    let note = late.then(|| EventKind::Note { level: "info".into(), text });
    let by = BegunBy::Schedule { due: to_the_second(due) };
    match begin::run_job(server, job, by, None, note).await {
        Ok(session) => {
            tracing::info!(job = job.job.name, session, %due, late, "a scheduled run begins");
            Ok(())
        }
        Err(BeginError::Store(error)) => Err(error),
        // Somebody was faster: the next look finds it running.
        Err(BeginError::Running { .. }) => Ok(()),
        // Refusals are for callers; the clock has none.
        Err(BeginError::Busy { .. }) => Ok(()),
    }
}

/// The time as the schedule's people read it.
fn local(schedule: &Schedule, at: Timestamp) -> String {
    match at.in_tz(&schedule.time_zone) {
        Ok(at) => format!("{} ({})", at.strftime("%Y-%m-%d %H:%M"), schedule.time_zone),
        Err(_) => to_the_second(at).to_string(),
    }
}
