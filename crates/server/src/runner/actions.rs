//! Carries out what the state machine asks for, once it is written down.

use super::book::{ApplyError, Happening};
use super::drive::{self, Begin};
use super::recovery;
use crate::server::Server;
use crate::store::StoreError;
use futures::future::BoxFuture;
use jiff::Timestamp;
use lull_engine::failover::FailureClass;
use lull_engine::ids::ServerId;
use lull_engine::session::{Action, Ending, Hop, Owed, ProxyReport, TaskEvent, TaskFailure};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::to_task::Message;
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument;
use uuid::Uuid;

/// Pause before a failed write is tried again.
const WRITE_AGAIN_MS: u64 = 1_000;

/// Writes down what happened to a task and does what follows. A database that cannot be written to (a full disk) is
/// waited for: nothing is done that is not written down.
pub async fn record(server: &Arc<Server>, task: Uuid, mut happening: Happening) {
    loop {
        let now = Timestamp::now();
        let epoch = epoch_of(&happening);
        match server.book.apply(task, happening.clone(), now).await {
            Ok(actions) => return perform(server, task, actions).await,
            Err(ApplyError::NotOpen) => return,
            Err(ApplyError::Illegal(error)) => {
                tracing::error!(%task, %error, "an event does not fit the task's state");
                return;
            }
            Err(ApplyError::Store(error @ StoreError::Database { .. })) => {
                tracing::error!(%task, error = &error as &dyn std::error::Error, "waiting until lull.db can be written");
                tokio::time::sleep(Duration::from_millis(WRITE_AGAIN_MS)).await;
            }
            Err(ApplyError::Store(error)) => {
                tracing::error!(%task, %error, "what a proxy reported cannot be stored");
                let Some(epoch) = epoch else { return };
                // It said nothing about what it left that could be kept.
                let open = server.book.open_task(task).await;
                let owed = open.map(|open| open.row.state.owed()).unwrap_or_default();
                happening = cannot_be_stored(epoch, owed, &error);
            }
        }
    }
}

/// Does what follows from a state that is written down.
pub async fn perform(server: &Arc<Server>, task: Uuid, actions: Vec<Action>) {
    for action in actions {
        match action {
            Action::SendTask { proxy, epoch } => {
                server.proxies.count_running(proxy, 1);
                server.spawn(driven(server.clone(), task, proxy, epoch, Begin::Order));
            }
            Action::AttachTask { proxy, epoch } => {
                server.proxies.count_running(proxy, 1);
                server.spawn(driven(server.clone(), task, proxy, epoch, Begin::Attach));
            }
            Action::CancelOnProxy { .. } => {
                let to_proxy = server.book.open_task(task).await.and_then(|open| open.to_proxy);
                if let Some(to_proxy) = to_proxy {
                    let reason = "the task was cancelled".to_string();
                    // A call that is over needs no cancellation.
                    let _ = to_proxy.try_send(Message::Cancel(v1::Cancel { reason }));
                }
            }
            Action::RecoverGuest { epoch, last_proxy, after_ms } => {
                server.spawn(guest_recovered(server.clone(), task, epoch, last_proxy, after_ms));
            }
            Action::SweepHypervisor { epoch, after_ms, .. } => {
                server.spawn(hypervisor_swept(server.clone(), task, epoch, after_ms));
            }
            Action::Requeue => server.wake.notify_one(),
            Action::TaskClosed => {
                server.wake.notify_one();
                server.clock.wake();
                // Its listing, if there is one, is as whole as it will be.
                server.catalog.wake.notify_one();
                // It may have been the session's last.
                server.notify_wake.notify_one();
            }
            // Written together with the state.
            Action::RememberFailure { .. } | Action::ForgiveProxy { .. } | Action::RestCredential { .. } => {}
        }
    }
}

// These three record what happens, which performs what follows, which starts them: boxed, since a future cannot hold
// itself.

fn driven(server: Arc<Server>, task: Uuid, proxy: ServerId, epoch: u64, begin: Begin) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let span = span(&server, task).await;
        drive::drive(&server, task, proxy, epoch, begin).instrument(span).await;
    })
}

fn guest_recovered(
    server: Arc<Server>,
    task: Uuid,
    epoch: u64,
    last_proxy: ServerId,
    after_ms: u64,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let span = span(&server, task).await;
        recovery::recover_guest(&server, task, epoch, last_proxy, after_ms).instrument(span).await;
    })
}

fn hypervisor_swept(server: Arc<Server>, task: Uuid, epoch: u64, after_ms: u64) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let span = span(&server, task).await;
        recovery::sweep_hypervisor(&server, task, epoch, after_ms).instrument(span).await;
    })
}

/// Whatever is logged about the work on a task names its session, itself and its VM.
async fn span(server: &Server, task: Uuid) -> tracing::Span {
    let open = server.book.open_task(task).await;
    let (session, vm) = open.map(|open| (open.row.session, open.row.vm_name.clone())).unzip();
    tracing::info_span!("task", session, %task, vm)
}

fn epoch_of(happening: &Happening) -> Option<u64> {
    happening.events.iter().find_map(|event| match event {
        TaskEvent::Report { epoch, .. }
        | TaskEvent::LeaseGranted { epoch, .. }
        | TaskEvent::RestorePointRecorded { epoch, .. } => Some(*epoch),
        _ => None,
    })
}

fn cannot_be_stored(epoch: u64, owed: Owed, error: &StoreError) -> Happening {
    let failure = TaskFailure {
        step: None,
        hop: Hop::BackupServer,
        cause: format!("the result could not be recorded: {error}"),
        remedy: "run the job again, and report this".into(),
        class: FailureClass::Internal,
    };
    let report = ProxyReport::Finished { ending: Ending::Failed { failure }, owed };
    Happening::event(TaskEvent::Report { epoch, report })
}
