//! The book of open sessions and tasks. Every event of a task goes through [`Book::apply`], which alone asks the engine
//! for the next state, writes state and events down together, and only then says what is to be done.
//!
//! Acts on nothing itself: the actions it returns are the caller's to perform.

use super::history;
use crate::hub::Hub;
use crate::instant::to_the_second;
use crate::metrics::Metrics;
use crate::store::sessions::{TaskOutcome, TaskRow, TaskWork};
use crate::store::writes::Write;
use crate::store::{Store, StoreError};
use jiff::Timestamp;
use lull_api::session::{EventKind, Failure, SessionEvent as ApiEvent};
use lull_engine::failover::{Refusal, RememberedFailure};
use lull_engine::ids::{SessionId, VmId};
use lull_engine::session::{
    Action, Ending, IllegalEvent, Owed, SessionEvent, SessionState, TaskEvent, TaskFailure, TaskState, advance,
    advance_session, count, left_for_the_next,
};
use lull_proxy_wire::v1::to_task::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio::time::Instant;
use uuid::Uuid;

/// Why an event could not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The task is over, or never was.
    #[error("the task is not open")]
    NotOpen,
    /// A bug: the event contradicts the state.
    #[error(transparent)]
    Illegal(#[from] IllegalEvent),
    /// It could not be written down, so nothing changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An open task, with what is not stored.
#[derive(Debug, Clone)]
pub struct OpenTask {
    /// As stored; shared, since all open tasks are looked at often.
    pub row: Arc<TaskRow>,
    /// The way to its proxy while one works on it.
    pub to_proxy: Option<mpsc::Sender<Message>>,
    /// Revision of the credential that went out with the order.
    pub credential_revision: u32,
    /// When the caller of a `quiesce` last said that it still waits.
    pub renewed: Instant,
    /// Warnings that people were told already.
    pub warned: BTreeSet<String>,
    /// What happens to it is written one after another.
    turn: Arc<Mutex<()>>,
}

/// An open session.
#[derive(Debug, Clone)]
struct OpenSession {
    state: SessionState,
    /// Its tasks, finished ones too, since they count.
    tasks: Vec<(Uuid, TaskState)>,
}

#[derive(Default)]
struct Pages {
    tasks: BTreeMap<Uuid, OpenTask>,
    sessions: BTreeMap<i64, OpenSession>,
}

/// One happening of a task with all that is to be written with it.
#[derive(Debug, Clone, Default)]
pub struct Happening {
    /// For the state machine, in this order.
    pub events: Vec<TaskEvent>,
    /// What people are told, in this order, before anything that follows from the events.
    pub told: Vec<EventKind>,
    /// What came of the task.
    pub outcome: Option<TaskOutcome>,
    /// Further writes.
    pub writes: Vec<Write>,
    /// The guest refused the credential, or left the answer open: why. It rests from now on, however the task ended.
    pub refused: Option<String>,
    /// Nothing was sent to the guest, so that a refusal among the events is an old one.
    pub nothing_sent: bool,
    /// Number of the proxy's event of which this is the record.
    pub heard: Option<u64>,
}

impl Happening {
    /// One event without more.
    pub fn event(event: TaskEvent) -> Self {
        Happening { events: vec![event], ..Default::default() }
    }
}

/// The book. Locks are taken in this order: a task's turn, `closing`, `pages`.
pub struct Book {
    store: Store,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    /// What may end a session happens one after another, as each counts the others' tasks.
    closing: Mutex<()>,
    /// Held for a moment, never while something is written: the disk's pace is shared by all tasks.
    pages: Mutex<Pages>,
}

impl Book {
    /// An empty one.
    pub fn new(store: Store, hub: Arc<Hub>, metrics: Arc<Metrics>) -> Self {
        Book { store, hub, metrics, closing: Mutex::default(), pages: Mutex::default() }
    }

    /// Opens the page of a session that is in the store.
    pub async fn open(&self, session: i64) -> Result<(), StoreError> {
        let mut pages = self.pages.lock().await;
        let row = self.store.session(session).await?.ok_or(StoreError::Missing { kind: "session" })?;
        let tasks = self.store.tasks(session).await?;
        let states = tasks.iter().map(|task| (task.id, task.state.clone())).collect();
        pages.sessions.insert(session, OpenSession { state: row.state, tasks: states });
        for row in tasks.into_iter().filter(|task| task.state.outcome().is_none()) {
            let (renewed, warned, turn) = (Instant::now(), BTreeSet::new(), Arc::default());
            let row = Arc::new(row);
            let open = OpenTask { to_proxy: None, credential_revision: 0, renewed, warned, turn, row };
            pages.tasks.insert(open.row.id, open);
        }
        Ok(())
    }

    /// Writes down what happened, and says what is to be done now. When this returns it is on disk and published.
    pub async fn apply(&self, task: Uuid, happening: Happening, now: Timestamp) -> Result<Vec<Action>, ApplyError> {
        let (open, _turn) = self.turn(task).await.ok_or(ApplyError::NotOpen)?;
        let open = &open;
        let about = || Some((task, open.row.vm_name.clone()));
        let event = |event| Write::Event { task: about(), event };

        let mut state = open.row.state.clone();
        let mut actions = Vec::new();
        for event in &happening.events {
            let next = advance(&state, event, now)?;
            state = next.state;
            actions.extend(next.actions);
        }
        actions.extend(happening.refused.map(|cause| Action::RestCredential { cause }));
        let outcome = happening.outcome.unwrap_or_else(|| open.row.outcome.clone());
        let history = history::writes(task, &open.row.state, &state, &happening.told);
        let warned: Vec<String> = happening.told.iter().filter_map(warning).cloned().collect();
        let mut writes: Vec<Write> = happening.told.into_iter().map(event).collect();
        writes.extend(happening.writes);
        writes.extend(history);
        if outcome != open.row.outcome {
            writes.push(Write::Outcome { task, outcome: Box::new(outcome.clone()) });
        }
        writes.extend(happening.heard.map(|seq| Write::Heard { task, seq }));
        if state != open.row.state {
            writes.push(Write::State { task, state: Box::new(state.clone()) });
        }
        if happening.nothing_sent {
            actions.retain(|action| !matches!(action, Action::RestCredential { .. }));
        }
        writes.extend(actions.iter().filter_map(|action| remembered(action, open, now)));
        if let TaskState::Finished { ending, still_owed, .. } = &state
            && open.row.state.outcome().is_none()
        {
            let notes = closing_notes(ending, still_owed, &open.row.vm_name);
            let untold = notes.into_iter().filter(|text| !open.warned.contains(text));
            writes.extend(untold.map(|text| event(EventKind::Note { level: "warning".into(), text })));
            writes.push(event(finished(ending, &outcome)));
        }

        let session = open.row.session;
        // Only a task that closes can end its session.
        let closed = state.outcome().is_some();
        let _closing = if closed { Some(self.closing.lock().await) } else { None };
        let session_state = self.pages.lock().await.sessions.get(&session).filter(|_| closed).map(|page| {
            let states = page.tasks.iter().map(|(id, old)| if *id == task { &state } else { old });
            let counts = count(states);
            advance_session(&page.state, &SessionEvent::TasksChanged { counts }, now)
        });
        if let Some(SessionState::Finished { outcome, .. }) = session_state {
            writes.extend(session_state.map(Write::Session));
            let result = outcome.to_string();
            writes.push(Write::Event { task: None, event: EventKind::SessionFinished { result } });
        }
        if writes.is_empty() {
            return Ok(actions);
        }
        let published = self.store.write(session, &writes, now).await?;
        self.metrics.observe(session, &writes);

        // Written: now the book may say so too.
        let mut pages = self.pages.lock().await;
        if let Some(page) = pages.sessions.get_mut(&session) {
            for (_, known) in page.tasks.iter_mut().filter(|(id, _)| *id == task) {
                *known = state.clone();
            }
        }
        if closed {
            pages.tasks.remove(&task);
            self.hub.forget_progress(task);
        } else if let Some(open) = pages.tasks.get_mut(&task) {
            let row = Arc::make_mut(&mut open.row);
            (row.state, row.outcome) = (state, outcome);
            row.heard = happening.heard.unwrap_or(row.heard);
            open.warned.extend(warned);
        }
        if matches!(session_state, Some(SessionState::Finished { .. })) {
            pages.sessions.remove(&session);
        }
        self.hub.publish(session, &published);
        Ok(actions)
    }

    /// A backup goes on without its guest, and this is why: from now on nothing is done there.
    pub async fn leave_guest_alone(&self, task: Uuid, because: &str, now: Timestamp) -> Result<(), StoreError> {
        let Some((open, _turn)) = self.turn(task).await else { return Ok(()) };
        let mut work = open.row.work.clone();
        work.left_alone = Some(because.to_string());
        let text = format!("{because}; the restore point will be crash-consistent");
        let event = EventKind::Note { level: "warning".into(), text };
        let about = Some((task, open.row.vm_name.clone()));
        let writes = [Write::Work { task, work: Box::new(work.clone()) }, Write::Event { task: about, event }];
        let published = self.store.write(open.row.session, &writes, now).await?;
        self.has_work(task, work).await;
        self.hub.publish(open.row.session, &published);
        Ok(())
    }

    /// The order names this restore point to build on.
    pub async fn builds_on(&self, task: Uuid, parent: Option<Uuid>, now: Timestamp) -> Result<(), StoreError> {
        let Some((open, _turn)) = self.turn(task).await else { return Ok(()) };
        let mut work = open.row.work.clone();
        match &mut work.backup {
            Some(backup) if backup.parent != parent => backup.parent = parent,
            _ => return Ok(()),
        }
        self.store.write(open.row.session, &[Write::Work { task, work: Box::new(work.clone()) }], now).await?;
        self.has_work(task, work).await;
        Ok(())
    }

    /// Tells the followers of a session something that changes no state.
    pub async fn tell(&self, session: i64, event: EventKind, now: Timestamp) -> Result<(), StoreError> {
        let published = self.store.write(session, &[Write::Event { task: None, event }], now).await?;
        self.hub.publish(session, &published);
        Ok(())
    }

    /// A person cancels a session: its open tasks, to which the caller sends `CancelRequested`. `None` where it is not
    /// open.
    pub async fn cancel(&self, session: i64, now: Timestamp) -> Result<Option<Vec<Uuid>>, StoreError> {
        let _closing = self.closing.lock().await;
        let Some(state) = self.pages.lock().await.sessions.get(&session).map(|page| page.state) else {
            return Ok(None);
        };
        let next = advance_session(&state, &SessionEvent::CancelRequested, now);
        if next != state {
            self.store.write(session, &[Write::Session(next)], now).await?;
        }
        let mut pages = self.pages.lock().await;
        pages.sessions.entry(session).and_modify(|page| page.state = next);
        let of_session = pages.tasks.values().filter(|task| task.row.session == session);
        Ok(Some(of_session.map(|task| task.row.id).collect()))
    }

    /// Closes a session that has no open task, as one may find it when its last task could not begin.
    pub async fn close_if_done(&self, session: i64, now: Timestamp) -> Result<(), StoreError> {
        let _closing = self.closing.lock().await;
        let next = self.pages.lock().await.sessions.get(&session).map(|page| {
            let counts = count(page.tasks.iter().map(|(_, state)| state));
            advance_session(&page.state, &SessionEvent::TasksChanged { counts }, now)
        });
        let Some(next) = next else { return Ok(()) };
        let SessionState::Finished { outcome, .. } = next else { return Ok(()) };
        let event = EventKind::SessionFinished { result: outcome.to_string() };
        let writes = [Write::Session(next), Write::Event { task: None, event }];
        let published = self.store.write(session, &writes, now).await?;
        self.pages.lock().await.sessions.remove(&session);
        self.hub.publish(session, &published);
        Ok(())
    }

    /// Every open task, oldest session first.
    pub async fn open_tasks(&self) -> Vec<OpenTask> {
        let pages = self.pages.lock().await;
        let mut tasks: Vec<OpenTask> = pages.tasks.values().cloned().collect();
        tasks.sort_by_key(|task| (task.row.session, task.row.id));
        tasks
    }

    /// An open task as it is when its turn has come, which lasts until the guard is dropped.
    async fn turn(&self, task: Uuid) -> Option<(OpenTask, OwnedMutexGuard<()>)> {
        let turn = self.open_task(task).await?.turn.lock_owned().await;
        Some((self.open_task(task).await?, turn))
    }

    async fn has_work(&self, task: Uuid, work: TaskWork) {
        if let Some(open) = self.pages.lock().await.tasks.get_mut(&task) {
            Arc::make_mut(&mut open.row).work = work;
        }
    }

    /// One open task.
    pub async fn open_task(&self, task: Uuid) -> Option<OpenTask> {
        self.pages.lock().await.tasks.get(&task).cloned()
    }

    /// A proxy works on the task now.
    pub async fn connect(&self, task: Uuid, to_proxy: mpsc::Sender<Message>, credential_revision: u32) {
        if let Some(open) = self.pages.lock().await.tasks.get_mut(&task) {
            open.to_proxy = Some(to_proxy);
            open.credential_revision = credential_revision;
        }
    }

    /// A recovery sends this revision of the credential.
    pub async fn sends_credential(&self, task: Uuid, revision: u32) {
        if let Some(open) = self.pages.lock().await.tasks.get_mut(&task) {
            open.credential_revision = revision;
        }
    }

    /// Its proxy does not listen any more.
    pub async fn disconnect(&self, task: Uuid) {
        if let Some(open) = self.pages.lock().await.tasks.get_mut(&task) {
            open.to_proxy = None;
        }
    }

    /// The caller of a `quiesce` still waits.
    pub async fn renewed(&self, task: Uuid) {
        if let Some(open) = self.pages.lock().await.tasks.get_mut(&task) {
            open.renewed = Instant::now();
        }
    }
}

/// What an action asks to remember; it is written together with the state that asks for it.
fn remembered(action: &Action, open: &OpenTask, now: Timestamp) -> Option<Write> {
    let vm = open.row.vm;
    match action {
        Action::RememberFailure { proxy, class, cause } => Some(Write::ProxyFailed(Box::new(RememberedFailure {
            vm: VmId(vm),
            server: *proxy,
            at: to_the_second(now),
            class: *class,
            cause: cause.clone(),
        }))),
        Action::ForgiveProxy { proxy } => Some(Write::ProxyForgiven { vm, server: proxy.0 }),
        Action::RestCredential { cause } => Some(Write::Refused(Box::new(Refusal {
            credential: open.row.work.credential?,
            revision: open.credential_revision,
            vm: VmId(vm),
            vm_name: open.row.vm_name.clone(),
            session: (open.row.work.kind != crate::store::sessions::SessionKind::Test)
                .then_some(SessionId(open.row.session)),
            at: to_the_second(now),
            cause: cause.clone(),
        }))),
        _ => None,
    }
}

/// What a person is told when a task closes: its warnings, and what could not be undone with the command for it.
fn closing_notes(ending: &Ending, still_owed: &Owed, vm: &str) -> Vec<String> {
    let mut notes = match ending {
        Ending::Warning { messages } => messages.clone(),
        Ending::Success | Ending::Cancelled | Ending::Failed { .. } => Vec::new(),
    };
    if still_owed.frozen {
        notes.push(thaw_by_hand(vm));
    }
    if !still_owed.is_empty() && !matches!(ending, Ending::Warning { .. }) {
        notes.push(left_for_the_next(still_owed));
    }
    notes
}

/// What an operator can do about a guest that may be frozen and cannot be reached.
pub fn thaw_by_hand(vm: &str) -> String {
    format!(
        "{vm} could not be reached to make sure that it is thawed; where it hangs, run on its console as root: \
         for m in $(findmnt -rn -o TARGET -t ext4,xfs,btrfs); do fsfreeze --unfreeze \"$m\"; done"
    )
}

fn warning(event: &EventKind) -> Option<&String> {
    match event {
        EventKind::Note { level, text } if level == "warning" => Some(text),
        _ => None,
    }
}

fn finished(ending: &Ending, outcome: &TaskOutcome) -> EventKind {
    let failure = match ending {
        Ending::Failed { failure } => Some(shown(failure)),
        Ending::Success | Ending::Warning { .. } | Ending::Cancelled => None,
    };
    EventKind::TaskFinished { result: ending.outcome().to_string(), level: outcome.level.clone(), failure }
}

/// A failure as the REST interface shows it.
pub fn shown(failure: &TaskFailure) -> Failure {
    Failure {
        step: failure.step.map(|step| step.name().to_string()).unwrap_or_default(),
        hop: serde_json::to_value(failure.hop).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default(),
        cause: failure.cause.clone(),
        remedy: failure.remedy.clone(),
        text: failure.to_string(),
    }
}

/// An event that is sent but not stored.
pub fn unstored(task: Uuid, vm: &str, event: EventKind, now: Timestamp) -> ApiEvent {
    ApiEvent { seq: 0, at: crate::instant::rfc3339(now), task: Some(task), vm: Some(vm.to_string()), event }
}
