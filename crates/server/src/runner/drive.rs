//! The conversation with a proxy about one task: the order goes down, events come up, each is written down before the next is read.
//! A call that breaks is taken up again when the proxy is back ([`Thread`]). Ends with the proxy's own end, or with the proxy
//! lost. Decides no state.

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
use jiff::{SignedDuration, Timestamp};
use lull_api::session::EventKind;
use lull_engine::failover::FailureClass;
use lull_engine::ids::ServerId;
use lull_engine::session::{Ending, Hop, Owed, ProxyReport, TaskEvent, TaskFailure, TaskState};
use lull_engine::task_lease::TASK_LEASE_MS;
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
/// A proxy has so long to say that it has an order, or has the task still.
const ACCEPT_MS_MAX: u64 = 15_000;
/// And so long to ask for its lease.
const ASK_MS_MAX: u64 = 15_000;
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

/// How a drive begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With an order.
    Order,
    /// The proxy has the task from an earlier run of the server.
    Attach,
}

/// Has the proxy work on the task, from the order to the end.
pub async fn drive(server: &Arc<Server>, task: Uuid, proxy: ServerId, epoch: u64, begin: Begin) {
    let _slot = Slot { server, proxy };
    let Some(open) = server.book.open_task(task).await else { return };
    let Some(link) = server.proxies.get(proxy) else {
        let lost = TaskEvent::ProxyLost { epoch, cause: "it is no longer in the backup infrastructure".into() };
        return record(server, task, Happening::event(lost)).await;
    };
    let end = match begin {
        Begin::Order => ordered(server, &link, Arc::unwrap_or_clone(open.row), epoch).await,
        Begin::Attach => attached(server, &link, Arc::unwrap_or_clone(open.row), epoch).await,
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
    let ended = happening.heard.is_some();
    record(server, task, happening).await;
    if ended {
        // It is recorded: the proxy need not keep it any more. Where it cannot be told, it forgets by itself.
        if let Ok(mut client) = link.client() {
            let _ = client.forget(v1::ForgetTask { task_id: task.to_string(), epoch }).await;
        }
    }
}

async fn ordered(server: &Arc<Server>, link: &ProxyLink, mut row: TaskRow, epoch: u64) -> Result<Happening, NoOrder> {
    let mut targets = order::targets(&server.store, &server.secrets, &row).await;
    if let Err(NoOrder::Task(failure)) = &targets
        && at_the_login(failure)
        && row.work.may_leave_alone()
    {
        // Written down first: a server that starts again must not try that credential either.
        row.work.left_alone = Some(failure.cause.clone());
        targets = match server.book.leave_guest_alone(row.id, &failure.cause, Timestamp::now()).await {
            Ok(()) => order::targets(&server.store, &server.secrets, &row).await,
            Err(error) => Err(error.into()),
        };
    }
    let targets = targets?;
    let (to_proxy, from_us) = mpsc::channel(WAITING_MAX);
    server.book.connect(row.id, to_proxy.clone(), targets.credential_revision).await;
    if row.work.kind == SessionKind::Test {
        return Ok(test(server, link, &row, epoch, targets, to_proxy, from_us).await);
    }
    let last_proxy = !dispatcher::another_could(server, &row, link.server.id).await?;
    let (order, sent) = order::task_order(&server.store, &server.uses, &row, epoch, targets, last_proxy).await?;
    server.book.builds_on(row.id, sent.parent, Timestamp::now()).await?;
    let mut thread = Thread::new(server, link, row, sent, Listing::default());
    Ok(thread.run(Message::Order(order), (to_proxy, from_us)).await)
}

async fn attached(server: &Arc<Server>, link: &ProxyLink, row: TaskRow, epoch: u64) -> Result<Happening, NoOrder> {
    let sent = order::was_sent(&server.store, &row, epoch).await?;
    let mut thread = Thread::new(server, link, row, sent, Listing::Resumed);
    thread.granted = true;
    Ok(match thread.back("the backup server was started anew").await {
        Ok((first, channel)) => thread.run(first, channel).await,
        Err(happening) => happening,
    })
}

/// Connects along every hop and says how far it came; nothing is frozen, so a broken call is over.
async fn test(
    server: &Arc<Server>,
    link: &ProxyLink,
    row: &TaskRow,
    epoch: u64,
    targets: Targets,
    to_proxy: mpsc::Sender<Message>,
    from_us: mpsc::Receiver<Message>,
) -> Happening {
    let sent = Sent { epoch, guest: true, hypervisor: false, pinned: targets.pinned, job_name: None, parent: None };
    let hypervisor = Some(targets.hypervisor);
    let order =
        v1::TestOrder { vm_name: row.vm_name.clone(), guest: targets.guest, hypervisor, session_id: row.session };
    let answer = match link.client() {
        Ok(mut client) => client.test_guest(order).await,
        Err(status) => Err(status),
    };
    let mut thread = Thread::new(server, link, row.clone(), sent, Listing::default());
    match answer {
        Err(status) => thread.lost(format!("it did not take the task: {}", status.message())),
        Ok(answer) => {
            thread.accepted().await;
            match thread.listen(answer.into_inner(), &to_proxy, Some(from_us)).await {
                Call::Over(happening) => *happening,
                Call::Broke(cause) => thread.lost(cause),
            }
        }
    }
}

/// Messages to the proxy: one end for who has something to say, the other for the call.
type Down = (mpsc::Sender<Message>, mpsc::Receiver<Message>);

/// How far a call came.
enum Call {
    /// The task is over.
    Over(Box<Happening>),
    /// The call is, and this is why; of the task nothing is said.
    Broke(String),
}

/// The conversation with a proxy about one dispatch: it outlives the call over which it began.
struct Thread<'a> {
    server: &'a Arc<Server>,
    link: &'a ProxyLink,
    task: TaskRow,
    sent: Sent,
    heard: Heard,
    listing: Listing,
    /// Number of the last event that was heard.
    seq: u64,
    /// It said that it has the order.
    accepted: bool,
    /// The proxy was granted a lease: it may have begun.
    granted: bool,
    /// Its first step has begun.
    begun: bool,
    /// The process that has the task.
    incarnation: String,
    cancel_since: Option<Instant>,
}

impl<'a> Thread<'a> {
    fn new(server: &'a Arc<Server>, link: &'a ProxyLink, task: TaskRow, sent: Sent, listing: Listing) -> Self {
        let incarnation = link.health().incarnation;
        let (heard, cancel_since) = (Heard::default(), None);
        Thread {
            server,
            link,
            task,
            sent,
            heard,
            listing,
            seq: 0,
            accepted: false,
            granted: false,
            begun: false,
            incarnation,
            cancel_since,
        }
    }

    fn lost(&self, cause: String) -> Happening {
        let epoch = self.sent.epoch;
        let text = format!("{} has lost the task: {cause}", self.link.server.name);
        let told = vec![EventKind::Note { level: "warning".into(), text }];
        // What was never granted was never begun: a proxy of its own keeps to that. The embedded one ends with this process, and no
        // lease is counted for it; who began without a grant may have done anything.
        let may_have_begun = self.granted || self.begun || (self.accepted && self.link.in_process);
        let lost = Happening::event(match may_have_begun || self.task.work.kind == SessionKind::Test {
            true => TaskEvent::ProxyLost { epoch, cause },
            false => TaskEvent::NotDelivered { epoch, cause },
        });
        Happening { told, ..lost }
    }

    async fn accepted(&mut self) {
        self.accepted = true;
        let report = ProxyReport::Accepted;
        let accepted = TaskEvent::Report { epoch: self.sent.epoch, report };
        record(self.server, self.task.id, Happening::event(accepted)).await;
    }

    /// Calls the proxy, and again whenever the call breaks and the proxy comes back; answers with what closes the task's dispatch.
    async fn run(&mut self, mut first: Message, mut down: Down) -> Happening {
        loop {
            let attaching = matches!(first, Message::Attach(_));
            let cause = match self.call(first, down.1).await {
                Ok(stream) => {
                    if !attaching {
                        self.accepted().await;
                    }
                    match self.listen(stream, &down.0, None).await {
                        Call::Over(happening) => return *happening,
                        Call::Broke(cause) => cause,
                    }
                }
                Err(status) if attaching && !is_of_the_line(&status) => {
                    return self.lost(format!("it does not have the task any more: {}", status.message()));
                }
                Err(status) => format!("it did not take the task: {}", status.message()),
            };
            self.server.book.disconnect(self.task.id).await;
            if !self.granted {
                return self.lost(cause);
            }
            (first, down) = match self.back(&cause).await {
                Ok(again) => again,
                Err(happening) => return happening,
            };
        }
    }

    async fn call(
        &self,
        first: Message,
        rest: mpsc::Receiver<Message>,
    ) -> Result<Streaming<v1::TaskEvent>, tonic::Status> {
        let wire = |message| v1::ToTask { message: Some(message) };
        let down = tokio_stream::once(first).chain(ReceiverStream::new(rest)).map(wire);
        let mut client = self.link.client()?;
        let accepted = tokio::time::timeout(Duration::from_millis(ACCEPT_MS_MAX), client.run_task(down));
        tokio::select! {
            answer = accepted => match answer {
                Ok(answer) => answer.map(|answer| answer.into_inner()),
                Err(_) => Err(tonic::Status::unavailable(format!("no answer within {} s", ACCEPT_MS_MAX / 1_000))),
            },
            () = self.link.offline() => Err(tonic::Status::unavailable("its heartbeat stopped")),
        }
    }

    /// Waits for the proxy's return, for a while; then how to take the thread up again.
    async fn back(&mut self, cause: &str) -> Result<(Message, Down), Happening> {
        let within_ms = self.server.pace.return_within_ms;
        if self.link.health().revoked {
            return Err(self.lost(format!("it was revoked: {cause}")));
        }
        if !self.link.in_process {
            let text = format!(
                "{}: {cause}; its return is waited for, {} s at most",
                self.link.server.name,
                within_ms / 1_000
            );
            self.tell("info", text).await;
        }
        let returned = tokio::select! {
            returned = tokio::time::timeout(Duration::from_millis(within_ms), self.link.answers_again()) => returned,
            () = self.link.revoked() => return Err(self.lost(format!("it was revoked: {cause}"))),
        };
        let Ok(incarnation) = returned else {
            return Err(self.lost(cause.to_string()));
        };
        if !self.incarnation.is_empty() && incarnation != self.incarnation {
            return Err(self.lost(format!("{cause}; it was started anew and has lost the task")));
        }
        self.incarnation = incarnation;
        let frames_kept = self.listing.kept(self.server, &self.task).await;
        let attach =
            v1::Attach { task_id: self.task.id.to_string(), epoch: self.sent.epoch, after_seq: self.seq, frames_kept };
        let (to_proxy, from_us) = mpsc::channel(WAITING_MAX);
        let revision = self.server.book.open_task(self.task.id).await.map_or(0, |open| open.credential_revision);
        self.server.book.connect(self.task.id, to_proxy.clone(), revision).await;
        Ok((Message::Attach(attach), (to_proxy, from_us)))
    }

    async fn tell(&self, level: &str, text: String) {
        let told = vec![EventKind::Note { level: level.into(), text }];
        record(self.server, self.task.id, Happening { told, ..Default::default() }).await;
    }

    /// Hears the proxy out. `cancelled` is given for a call that takes no messages: it is cancelled by ending it.
    async fn listen(
        &mut self,
        mut stream: Streaming<v1::TaskEvent>,
        to_proxy: &mpsc::Sender<Message>,
        mut cancelled: Option<mpsc::Receiver<Message>>,
    ) -> Call {
        let (server, link) = (self.server, self.link);
        let mut look = tokio::time::interval(Duration::from_millis(LOOK_MS));
        let begun = Instant::now();
        // The task may have been cancelled before there was anybody to tell.
        if cancel_requested(server, self.task.id).await {
            let _ = to_proxy.try_send(cancel("the task was cancelled"));
        }
        loop {
            let message = tokio::select! {
                message = stream.message() => message,
                () = link.offline() => return Call::Broke("its heartbeat stopped while it had the task".into()),
                Some(Message::Cancel(_)) = next(&mut cancelled) => {
                    return Call::Over(Box::new(not_sent(self.sent.epoch, Ending::Cancelled)));
                }
                _ = look.tick() => {
                    let test = self.task.work.kind == SessionKind::Test;
                    if !self.granted && !test && begun.elapsed() > Duration::from_millis(ASK_MS_MAX) {
                        return Call::Broke(format!("it did not ask for the task's lease within {} s", ASK_MS_MAX / 1_000));
                    }
                    if let Some(cause) = self.look_after(to_proxy).await {
                        return Call::Over(Box::new(self.lost(cause)));
                    }
                    continue;
                }
            };
            match message {
                Err(status) => return Call::Broke(format!("the connection broke: {}", status.message())),
                Ok(None) => return Call::Broke("it ended the call without saying how the task ended".into()),
                Ok(Some(v1::TaskEvent { event: None, .. })) => {}
                Ok(Some(v1::TaskEvent { seq, event: Some(event), .. })) => {
                    if let Some(over) = self.hear(seq, event, to_proxy).await {
                        return Call::Over(Box::new(over));
                    }
                }
            }
        }
    }

    /// One event; answers with what closes the dispatch where it was the last.
    async fn hear(&mut self, seq: u64, event: Event, to_proxy: &mpsc::Sender<Message>) -> Option<Happening> {
        let (server, now) = (self.server, Timestamp::now());
        // What is only of the moment has none.
        self.seq = self.seq.max(seq);
        match event {
            Event::Finished(end) => {
                // Where it stands by all that was reported.
                let open = server.book.open_task(self.task.id).await;
                let (state, work) = open.map_or_else(
                    || (self.task.state.clone(), self.task.work.clone()),
                    |open| (open.row.state.clone(), open.row.work.clone()),
                );
                self.task.work = work;
                let over = report::finished(&self.task, &state, &self.sent, &self.heard, end);
                return Some(Happening { heard: Some(seq), ..over });
            }
            Event::LeaseAsked(asked) => self.grant(asked.number, to_proxy).await,
            Event::Progress(progress) => tell_progress(server, &self.task, progress, now),
            Event::IndexFrame(frame) => self.listing.frame(server, &self.task, frame, to_proxy).await,
            Event::IndexEnded(end) => self.listing.end(server, &self.task, end).await,
            event => {
                let begins = matches!(event, Event::StepStarted(_)) && !std::mem::replace(&mut self.begun, true);
                let was_ready = self.heard.hold_ready;
                let happening = report::happening(&self.task, &self.sent, &mut self.heard, event, server.clock.now());
                // What an earlier run of the server recorded is only called to mind.
                if seq > self.task.heard {
                    record(server, self.task.id, Happening { heard: Some(seq), ..happening }).await;
                }
                if begins {
                    // The next order may go out.
                    server.wake.notify_one();
                }
                if self.heard.hold_ready && !was_ready {
                    server.book.renewed(self.task.id).await;
                }
            }
        }
        None
    }

    /// The proxy may have the task for a while longer; that is written down before it hears so.
    async fn grant(&mut self, number: u64, to_proxy: &mpsc::Sender<Message>) {
        let lease = SignedDuration::from_millis(i64::try_from(TASK_LEASE_MS).unwrap_or(i64::MAX));
        let until = Timestamp::now().saturating_add(lease).unwrap_or(Timestamp::MAX);
        let granted = TaskEvent::LeaseGranted { epoch: self.sent.epoch, until };
        record(self.server, self.task.id, Happening::event(granted)).await;
        let still = self.server.book.open_task(self.task.id).await;
        let is_its = |state: &TaskState| match state {
            TaskState::Dispatched { hold } | TaskState::Running { hold, .. } => hold.epoch == self.sent.epoch,
            TaskState::Waiting { .. } | TaskState::Recovering { .. } | TaskState::Finished { .. } => false,
        };
        // A task that was taken away meanwhile is not granted.
        if still.is_some_and(|open| is_its(&open.row.state)) {
            self.granted = true;
            let granted = v1::LeaseGranted { number, lease_ms: TASK_LEASE_MS };
            // Where it does not get there, the proxy asks again.
            let _ = to_proxy.try_send(Message::LeaseGranted(granted));
        }
    }

    /// Thaws a hold whose caller went silent, and gives up a proxy that does not cancel: then says why.
    async fn look_after(&mut self, to_proxy: &mpsc::Sender<Message>) -> Option<String> {
        let open = self.server.book.open_task(self.task.id).await?;
        if let Some(since) = self.cancel_since {
            return (since.elapsed() > Duration::from_millis(CANCEL_GRACE_MS))
                .then(|| format!("it was told to cancel and did not within {} s", CANCEL_GRACE_MS / 1_000));
        }
        let lease = Duration::from_millis(self.task.work.settings.lease_ms + HOLD_GRACE_MS);
        if self.heard.hold_ready && open.renewed.elapsed() > lease {
            let text = format!("the caller did not renew its hold for {} s: the guest is thawed", lease.as_secs());
            self.tell("warning", text).await;
            let _ = to_proxy.try_send(cancel("the caller of the hold went silent"));
            self.cancel_since = Some(Instant::now());
        } else if is_cancelled(&open.row.state) {
            self.cancel_since = Some(Instant::now());
        }
        None
    }
}

/// Whether the call failed on its way, so that the proxy itself said nothing.
fn is_of_the_line(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled | tonic::Code::DeadlineExceeded
    )
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

async fn next(messages: &mut Option<mpsc::Receiver<Message>>) -> Option<Message> {
    match messages {
        Some(messages) => messages.recv().await,
        None => std::future::pending().await,
    }
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
