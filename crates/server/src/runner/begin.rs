//! Begins sessions and takes requests for running ones. Who works on their tasks is the dispatcher's business.

use super::actions::record;
use super::book::Happening;
use crate::infrastructure::snapshot;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::infrastructure::RepositoryRow;
use crate::store::jobs::StoredJob;
use crate::store::sessions::{BackupPlan, BeginError, NewSession, NewTask, SessionKind, TaskWork};
use crate::store::timing::BegunBy;
use crate::store::writes::Write;
use jiff::Timestamp;
use lull_api::session::{EventKind, HoldEnd};
use lull_engine::ids::{JobId, RestorePointId, SessionId, TaskId, VmId};
use lull_engine::job::{BackupAction, Job, plan};
use lull_engine::session::TaskEvent;
use lull_engine::settings::GuestProcessing;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::to_task::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Why a hold did not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoHold {
    /// The session is over, or is no `quiesce`.
    NotOpen,
    /// No proxy works on it yet, or it does not listen any more.
    NotReached,
}

/// Begins a run of a backup job. `only`: these of its VMs; `note`: what people are told first.
pub async fn run_job(
    server: &Arc<Server>,
    job: &StoredJob,
    by: BegunBy,
    only: Option<&[VmId]>,
    note: Option<EventKind>,
) -> Result<i64, BeginError> {
    let repositories = server.store.repositories().await?;
    let repository = repositories.iter().find(|r| r.id == job.repository);
    let repository = repository.ok_or(StoreError::Missing { kind: "repository" })?;
    let mut scope = job.job.clone();
    scope.vms.retain(|vm| only.is_none_or(|only| only.contains(vm)));
    begin(server, SessionKind::Backup, &scope, Some((job, repository)), by, note).await
}

/// Begins a session of another kind on one VM.
pub async fn on_vm(
    server: &Arc<Server>,
    kind: SessionKind,
    vm: Uuid,
    settings: GuestProcessing,
) -> Result<i64, BeginError> {
    let job = Job {
        id: JobId::generate(),
        name: kind.to_string(),
        vms: vec![VmId(vm)],
        action: BackupAction::Command { program: kind.to_string() },
        guest_processing: settings,
        overrides: BTreeMap::new(),
    };
    begin(server, kind, &job, None, BegunBy::Caller, None).await
}

async fn begin(
    server: &Arc<Server>,
    kind: SessionKind,
    job: &Job,
    stored: Option<(&StoredJob, &RepositoryRow)>,
    by: BegunBy,
    note: Option<EventKind>,
) -> Result<i64, BeginError> {
    let infrastructure = snapshot(server).await?;
    // The number is not known yet; the engine's specification of a task is not what is stored.
    let plan = plan(job, SessionId(1), &infrastructure.vms, &infrastructure.credentials, TaskId::generate);
    let tasks = plan.tasks.into_iter().map(|spec| NewTask {
        id: spec.id.0,
        vm: spec.vm.0,
        vm_name: spec.vm_name,
        work: TaskWork {
            kind,
            job: spec.job,
            guest_os: spec.guest_os,
            credential: spec.credential,
            credential_kind: spec.credential_kind,
            settings: spec.settings,
            backup: stored.map(|(job, repository)| BackupPlan {
                parent: None,
                repository: lull_engine::ids::RepositoryId(repository.id),
                repository_dir: repository.path.clone(),
                restore_point: RestorePointId::generate(),
                copy_limit_bytes_per_s: job.copy_limit_bytes_per_s,
                full_every: job.full_every(),
            }),
            left_alone: None,
        },
    });
    let named = stored.map(|(job, _)| (job.job.id.0, job.job.name.as_str()));
    let now = Timestamp::now();
    let new = NewSession { kind, job: named, by, seen: server.clock.now(), tasks: tasks.collect() };
    let begun = server.store.begin_session(new, now).await?;
    let mut writes = vec![Write::Event { task: None, event: EventKind::SessionStarted }];
    writes.extend(note.map(|event| Write::Event { task: None, event }));
    if !plan.gone.is_empty() {
        let gone: Vec<String> = plan.gone.iter().map(VmId::to_string).collect();
        let text = format!("no longer in the infrastructure, and not protected: {}", gone.join(", "));
        writes.push(Write::Event { task: None, event: EventKind::Note { level: "warning".into(), text } });
    }
    server.store.write(begun.session, &writes, now).await?;
    server.book.open(begun.session).await?;
    for (task, other) in begun.busy {
        let cause = format!("{} is in session {other}", task.vm_name);
        let remedy = format!("run it again when that session is over: lull session show {other}");
        record(server, task.id, Happening::event(TaskEvent::NoProxy { cause, remedy })).await;
    }
    server.book.close_if_done(begun.session, now).await?;
    server.clock.wake();
    server.wake.notify_one();
    server.notify_wake.notify_one();
    Ok(begun.session)
}

/// Cancels a session; `false` where it is not open.
pub async fn cancel(server: &Arc<Server>, session: i64) -> Result<bool, StoreError> {
    let Some(tasks) = server.book.cancel(session, Timestamp::now()).await? else { return Ok(false) };
    for task in tasks {
        record(server, task, Happening::event(TaskEvent::CancelRequested)).await;
    }
    Ok(true)
}

/// The caller of a hold still waits.
pub async fn renew(server: &Arc<Server>, session: i64) -> Result<(), NoHold> {
    to_hold(server, session, Message::Renew(v1::HoldRenewal {})).await
}

/// The caller of a hold is done.
pub async fn end(server: &Arc<Server>, session: i64, end: HoldEnd) -> Result<(), NoHold> {
    let HoldEnd { succeeded, detail } = end;
    to_hold(server, session, Message::End(v1::HoldEnd { succeeded, detail })).await
}

async fn to_hold(server: &Arc<Server>, session: i64, message: Message) -> Result<(), NoHold> {
    let tasks = server.book.open_tasks().await;
    let task = tasks.into_iter().find(|task| task.row.session == session && task.row.work.kind == SessionKind::Quiesce);
    let task = task.ok_or(NoHold::NotOpen)?;
    server.book.renewed(task.row.id).await;
    let to_proxy = task.to_proxy.ok_or(NoHold::NotReached)?;
    to_proxy.try_send(message).map_err(|_| NoHold::NotReached)
}
