//! One call to a proxy: the order goes down, events come up, each is written down before the next is read. Ends with
//! the proxy's own end, or with the proxy lost. Decides no state.

use super::actions::record;
use super::book::{Happening, unstored};
use super::dispatcher;
use super::listing::Listing;
use super::order::{self, NoOrder, Targets};
use super::report::{self, Heard, Sent};
use crate::hub::StepProgress;
use crate::proxies::ProxyLink;
use crate::server::Server;
use crate::store::sessions::{SessionKind, TaskRow};
use jiff::Timestamp;
use lull_api::session::EventKind;
use lull_engine::failover::FailureClass;
use lull_engine::ids::ServerId;
use lull_engine::session::{Ending, Hop, Owed, ProxyReport, TaskEvent, TaskFailure, TaskState};
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;
use lull_proxy_wire::v1::to_task::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use uuid::Uuid;

/// A proxy that was told to cancel has so long to undo everything before it counts as lost.
const CANCEL_GRACE_MS: u64 = 120_000;
/// How often a hold's caller and a cancelled proxy are looked after.
const LOOK_MS: u64 = 250;
/// The proxy itself ends a hold whose caller is silent for the lease; the server does where the proxy did not.
const HOLD_GRACE_MS: u64 = 2_000;
/// Messages to a proxy that may wait.
const WAITING_MAX: usize = 64;

/// Gives the slot back, however the call ends.
struct Slot<'a> {
    server: &'a Arc<Server>,
    proxy: ServerId,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.server.proxies.count_running(self.proxy, -1);
        self.server.wake.notify_one();
    }
}

/// Has the proxy work on the task, from the order to the end.
pub async fn drive(server: &Arc<Server>, task: Uuid, proxy: ServerId, epoch: u64) {
    let _slot = Slot { server, proxy };
    let Some(open) = server.book.open_task(task).await else { return };
    let lost = |cause: String| Happening::event(TaskEvent::ProxyLost { epoch, cause });
    let Some(link) = server.proxies.get(proxy) else {
        return record(server, task, lost("it is no longer in the backup infrastructure".into())).await;
    };
    let mut row = open.row;
    let mut targets = order::targets(&server.store, &server.secrets, &row).await;
    if let Err(NoOrder::Task(failure)) = &targets
        && at_the_login(failure)
        && row.work.may_leave_alone()
    {
        // Written down first: a server that starts again must not try that credential either.
        row.work.left_alone = Some(failure.cause.clone());
        targets = match server.book.leave_guest_alone(task, &failure.cause, Timestamp::now()).await {
            Ok(()) => order::targets(&server.store, &server.secrets, &row).await,
            Err(error) => Err(error.into()),
        };
    }
    let end = match targets {
        Ok(targets) => call(server, link, &row, epoch, targets).await,
        Err(no_order) => Err(no_order),
    };
    let happening = match end {
        Ok(happening) => happening,
        Err(NoOrder::Task(failure)) => not_sent(epoch, Ending::Failed { failure: *failure }),
        Err(NoOrder::Store(error)) => {
            let failure = TaskFailure {
                step: None,
                hop: Hop::BackupServer,
                cause: format!("the order could not be put together: {error}"),
                remedy: "see the backup server's log".into(),
                class: FailureClass::Internal,
            };
            not_sent(epoch, Ending::Failed { failure })
        }
    };
    server.book.disconnect(task).await;
    record(server, task, happening).await;
    // Its listing, if there is one, has a restore point now, or will never have one.
    server.catalog.wake.notify_one();
}

/// Whether it is the credential that stands in the way: it rests, or is gone.
fn at_the_login(failure: &TaskFailure) -> bool {
    failure.hop == Hop::Login && matches!(failure.class, FailureClass::RefusedCredential | FailureClass::Gone)
}

/// The task ends here and nothing went to the guest.
fn not_sent(epoch: u64, ending: Ending) -> Happening {
    let report = ProxyReport::Finished { ending, owed: Owed::default() };
    Happening { nothing_sent: true, ..Happening::event(TaskEvent::Report { epoch, report }) }
}

/// Calls the proxy and answers with what closes the call.
async fn call(
    server: &Arc<Server>,
    link: &ProxyLink,
    task: &TaskRow,
    epoch: u64,
    targets: Targets,
) -> Result<Happening, NoOrder> {
    let (to_proxy, from_us) = mpsc::channel(WAITING_MAX);
    server.book.connect(task.id, to_proxy.clone(), targets.credential_revision).await;
    let lost = |cause: String| Happening::event(TaskEvent::ProxyLost { epoch, cause });
    let mut client = link.client();
    let (sent, answer, cancelled) = if task.work.kind == SessionKind::Test {
        let sent = Sent { epoch, guest: true, hypervisor: false, pinned: targets.pinned, job_name: None, parent: None };
        let hypervisor = Some(targets.hypervisor);
        let order = v1::TestOrder { vm_name: task.vm_name.clone(), guest: targets.guest, hypervisor };
        (sent, client.test_guest(order).await, Some(from_us))
    } else {
        let last_proxy = !dispatcher::another_could(server, task, link.server.id).await?;
        let (order, sent) = order::task_order(&server.store, &server.uses, task, epoch, targets, last_proxy).await?;
        // The channel is empty, so there is room.
        let _ = to_proxy.try_send(Message::Order(order));
        let down = ReceiverStream::new(from_us).map(|message| v1::ToTask { message: Some(message) });
        let answer = tokio::select! {
            answer = client.run_task(down) => answer,
            () = link.offline() => return Ok(lost("it did not take the task and its heartbeat stopped".into())),
        };
        (sent, answer, None)
    };
    let stream = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Ok(lost(format!("it did not take the task: {}", status.message()))),
    };
    record(server, task.id, Happening::event(TaskEvent::Report { epoch, report: ProxyReport::Accepted })).await;
    Ok(listen(server, link, task, sent, stream, to_proxy, cancelled).await)
}

/// Hears the proxy out. `cancelled` is given for a call that takes no messages: it is cancelled by ending it.
async fn listen(
    server: &Arc<Server>,
    link: &ProxyLink,
    task: &TaskRow,
    sent: Sent,
    mut stream: Streaming<v1::TaskEvent>,
    to_proxy: mpsc::Sender<Message>,
    mut cancelled: Option<mpsc::Receiver<Message>>,
) -> Happening {
    let lost = |cause: String| Happening::event(TaskEvent::ProxyLost { epoch: sent.epoch, cause });
    let mut heard = Heard::default();
    let mut listing = Listing::default();
    let mut cancel_since = None;
    let mut look = tokio::time::interval(Duration::from_millis(LOOK_MS));
    // The task may have been cancelled before there was anybody to tell.
    if cancel_requested(server, task.id).await {
        let _ = to_proxy.try_send(cancel("the task was cancelled"));
    }
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            () = link.offline() => return lost("its heartbeat stopped while it had the task".into()),
            Some(Message::Cancel(_)) = next(&mut cancelled) => return not_sent(sent.epoch, Ending::Cancelled),
            _ = look.tick() => {
                if let Some(cause) = look_after(server, task, &heard, &to_proxy, &mut cancel_since).await {
                    return lost(cause);
                }
                continue;
            }
        };
        let now = Timestamp::now();
        match message.map(|message| message.map(|message| message.event)) {
            Err(status) => return lost(format!("the connection broke: {}", status.message())),
            Ok(None) => return lost("it ended the call without saying how the task ended".into()),
            Ok(Some(None)) => {}
            Ok(Some(Some(Event::Finished(end)))) => {
                // Where it stands by all that was reported.
                let open = server.book.open_task(task.id).await;
                let state = open.map_or_else(|| task.state.clone(), |open| open.row.state);
                return report::finished(task, &state, &sent, &heard, end);
            }
            Ok(Some(Some(Event::Progress(progress)))) => tell_progress(server, task, progress, now),
            Ok(Some(Some(Event::IndexFrame(frame)))) => listing.frame(server, task, &frame.compressed, &to_proxy).await,
            Ok(Some(Some(Event::IndexEnded(end)))) => listing.end(server, task, end).await,
            Ok(Some(Some(event))) => {
                let was_ready = heard.hold_ready;
                let happening = report::happening(task, &sent, &mut heard, event, server.clock.now());
                record(server, task.id, happening).await;
                if heard.hold_ready && !was_ready {
                    server.book.renewed(task.id).await;
                }
            }
        }
    }
}

async fn next(messages: &mut Option<mpsc::Receiver<Message>>) -> Option<Message> {
    match messages {
        Some(messages) => messages.recv().await,
        None => std::future::pending().await,
    }
}

/// Thaws a hold whose caller went silent, and gives up a proxy that does not cancel: then says why.
async fn look_after(
    server: &Arc<Server>,
    task: &TaskRow,
    heard: &Heard,
    to_proxy: &mpsc::Sender<Message>,
    cancel_since: &mut Option<Instant>,
) -> Option<String> {
    let open = server.book.open_task(task.id).await?;
    if let Some(since) = cancel_since {
        return (since.elapsed() > Duration::from_millis(CANCEL_GRACE_MS))
            .then(|| format!("it was told to cancel and did not within {} s", CANCEL_GRACE_MS / 1_000));
    }
    let lease = Duration::from_millis(task.work.settings.lease_ms + HOLD_GRACE_MS);
    if heard.hold_ready && open.renewed.elapsed() > lease {
        let text = format!("the caller did not renew its hold for {} s: the guest is thawed", lease.as_secs());
        let told = vec![EventKind::Note { level: "warning".into(), text }];
        record(server, task.id, Happening { told, ..Default::default() }).await;
        let _ = to_proxy.try_send(cancel("the caller of the hold went silent"));
        *cancel_since = Some(Instant::now());
    } else if is_cancelled(&open.row.state) {
        *cancel_since = Some(Instant::now());
    }
    None
}

async fn cancel_requested(server: &Arc<Server>, task: Uuid) -> bool {
    server.book.open_task(task).await.is_some_and(|open| is_cancelled(&open.row.state))
}

fn is_cancelled(state: &TaskState) -> bool {
    match state {
        TaskState::Dispatched { hold } | TaskState::Running { hold, .. } => hold.cancel_requested,
        TaskState::Waiting { .. } | TaskState::Recovering { .. } | TaskState::Finished { .. } => false,
    }
}

fn cancel(reason: &str) -> Message {
    Message::Cancel(v1::Cancel { reason: reason.to_string() })
}

fn tell_progress(server: &Arc<Server>, task: &TaskRow, progress: v1::Progress, now: Timestamp) {
    let v1::Progress { step, done_bytes, total_bytes } = progress;
    server.hub.set_progress(task.id, StepProgress { step: step.clone(), done_bytes, total_bytes });
    let event = EventKind::Progress { step, done_bytes, total_bytes };
    server.hub.publish(task.session, &[unstored(task.id, &task.vm_name, event, now)]);
}
