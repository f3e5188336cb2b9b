//! Retries: what failed in a session that the clock began is tried again, as often and after such a pause as the job says. Decided once when
//! the session is over, and written down then; so it survives the server. What a person backed up meanwhile is not.

use super::running;
use crate::instant::to_the_second;
use crate::runner::begin;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::jobs::StoredJob;
use crate::store::sessions::{BeginError, SessionRow, TaskRow};
use crate::store::timing::{BegunBy, Retry};
use jiff::Timestamp;
use lull_api::session::EventKind;
use lull_engine::failover::FailureClass;
use lull_engine::ids::VmId;
use lull_engine::session::{Ending, Outcome, SessionState, TaskState};
use std::sync::Arc;
use uuid::Uuid;

/// Decides what follows from sessions that are over.
pub async fn settle(server: &Arc<Server>) -> Result<(), StoreError> {
    for id in server.store.unsettled_sessions().await? {
        // A session that cannot be read is not the others' trouble.
        if let Err(error) = settle_one(server, id).await {
            tracing::error!(session = id, %error, "what follows from a session cannot be decided");
        }
    }
    Ok(())
}

async fn settle_one(server: &Arc<Server>, id: i64) -> Result<(), StoreError> {
    let Some(session) = server.store.session(id).await? else { return Ok(()) };
    let Some(job) = session.job else { return Ok(()) };
    let tasks = server.store.tasks(id).await?;
    let told = if session.by == BegunBy::Caller {
        let done: Vec<VmId> = tasks.iter().filter(|task| went_well(task)).map(|task| VmId(task.vm)).collect();
        let dropped = server.store.settle_by_hand(id, job, &done).await?;
        dropped
            .map(|retry| format!("not tried again at {}, since it went well now: {}", retry.due, names(&tasks, &retry)))
    } else {
        let stored = server.store.jobs().await?.into_iter().find(|stored| stored.job.id.0 == job);
        let superseded = server.store.clock_began_later(job, id).await?;
        let retry = stored.filter(|_| !superseded).and_then(|job| decided(&job, &session, &tasks, server.clock.now()));
        server.store.settle(id, retry.as_ref().map(|retry| (job, retry))).await?;
        let text = |retry: Retry| {
            let Retry { due, attempt, times, .. } = &retry;
            format!("tried again at {due}: {} (retry {attempt} of {times})", names(&tasks, &retry))
        };
        retry.map(text)
    };
    if matches!(session.state, SessionState::Finished { outcome: Outcome::Success | Outcome::Warning, .. }) {
        server.retention.after(job, id);
    }
    let Some(text) = told else { return Ok(()) };
    tracing::info!(session = id, "{text}");
    server.book.tell(id, EventKind::Note { level: "info".into(), text }, Timestamp::now()).await
}

fn went_well(task: &TaskRow) -> bool {
    matches!(task.state, TaskState::Finished { ending: Ending::Success | Ending::Warning { .. }, .. })
}

fn names(tasks: &[TaskRow], retry: &Retry) -> String {
    let of_retry = tasks.iter().filter(|task| retry.vms.contains(&VmId(task.vm)));
    of_retry.map(|task| task.vm_name.as_str()).collect::<Vec<_>>().join(", ")
}

fn decided(job: &StoredJob, session: &SessionRow, tasks: &[TaskRow], now: Timestamp) -> Option<Retry> {
    let (attempt, of) = match session.by {
        BegunBy::Caller => return None,
        BegunBy::Schedule { .. } => (0, session.id),
        BegunBy::Retry { attempt, of, .. } => (attempt, of),
    };
    job.schedule.as_ref()?;
    let failures: Vec<(VmId, FailureClass)> = tasks.iter().filter_map(|task| failed(session, task)).collect();
    let (vms, due) = job.retries.after(attempt, now, &failures)?;
    Some(Retry { due: to_the_second(due), attempt: attempt + 1, times: job.retries.times, of, vms })
}

fn failed(session: &SessionRow, task: &TaskRow) -> Option<(VmId, FailureClass)> {
    match &task.state {
        TaskState::Finished { ending: Ending::Cancelled, .. } if session.cut_short => {
            Some((VmId(task.vm), FailureClass::ServerRestarted))
        }
        TaskState::Finished { ending: Ending::Failed { failure }, .. } => Some((VmId(task.vm), failure.class)),
        _ => None,
    }
}

/// Begins the retries that are due; answers when the next one is.
pub async fn begin_due(server: &Arc<Server>, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
    let retries = server.store.retries().await?;
    if retries.is_empty() {
        return Ok(None);
    }
    let jobs = server.store.jobs().await?;
    let mut next = None;
    for (id, retry) in retries {
        if server.stopping.is_cancelled() {
            return Ok(None);
        }
        if retry.due > now {
            next = next.into_iter().chain([retry.due]).min();
            continue;
        }
        let job = jobs.iter().find(|job| job.job.id.0 == id);
        if let Err(error) = begin(server, id, job, &retry).await {
            tracing::error!(job = %id, %error, "what failed cannot be tried again yet");
        }
    }
    Ok(next)
}

async fn begin(server: &Arc<Server>, id: Uuid, job: Option<&StoredJob>, retry: &Retry) -> Result<(), StoreError> {
    // The job may have changed since.
    let wanted = job.filter(|job| job.schedule.is_some() && retry.attempt <= job.retries.times);
    let vms =
        |job: &StoredJob| -> Vec<VmId> { job.job.vms.iter().filter(|vm| retry.vms.contains(vm)).copied().collect() };
    let Some((job, vms)) = wanted.map(|job| (job, vms(job))).filter(|(_, vms)| !vms.is_empty()) else {
        return server.store.drop_retry(id).await;
    };
    // The job's own next run, or a person's, is not disturbed: whoever ends it wakes the clock.
    if running(server, id).await.is_some() {
        return Ok(());
    }
    let by = BegunBy::Retry { attempt: retry.attempt, times: retry.times, of: retry.of };
    match begin::run_job(server, job, by, Some(&vms), None).await {
        Ok(session) => {
            tracing::info!(
                job = job.job.name,
                session,
                attempt = retry.attempt,
                of = retry.of,
                "failed tasks are tried again"
            );
            Ok(())
        }
        Err(BeginError::Store(error)) => Err(error),
        // Somebody was faster: the next look finds it running.
        Err(BeginError::Running { .. }) => Ok(()),
        // Refusals are for callers; the clock has none.
        Err(BeginError::Busy { .. }) => Ok(()),
    }
}
