//! A session as the REST interface shows it: put together from its rows and its events. Changes nothing.

use super::answer::Answer;
use super::names::listed;
use crate::hub::StepProgress;
use crate::instant::{rfc3339, us};
use crate::runner::book;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::dispatches::DispatchRow;
use crate::store::sessions::{SessionRow, TaskRow, WholeSession};
use crate::store::timing::BegunBy;
use jiff::Timestamp;
use lull_api::Problem;
use lull_api::infrastructure::ProxyExplanation;
use lull_api::proxy_tier::ProxyChoice;
use lull_api::session::{EventKind, Session, SessionEvent, SessionSummary, Step, Task};
use lull_api::timing::RetryOf;
use lull_engine::session::{AfterRecovery, Ending, SessionState, TaskState};
use std::collections::BTreeMap;
use uuid::Uuid;

/// A session with its tasks.
pub async fn session_view(server: &Server, id: i64) -> Answer<Session> {
    let whole = server.store.whole_session(id).await?;
    let WholeSession { row, tasks, events } = whole.ok_or(StoreError::Missing { kind: "session" })?;
    let last_event = row.last_event;
    let dispatches = by_task(server.store.dispatches_of(id).await?, |dispatch| Some(dispatch.task));
    let events = by_task(events, |event| event.task);
    let tasks = tasks.into_iter().map(|task| {
        let (progress, id) = (server.hub.progress(task.id), Some(task.id));
        let events = events.get(&id).map_or(&[][..], Vec::as_slice);
        let dispatches = dispatches.get(&id).map_or(&[][..], Vec::as_slice);
        task_view(task, events, dispatches, progress)
    });
    let of_session = events.get(&None).into_iter().flatten();
    let notes = of_session.filter_map(|event| match &event.event {
        EventKind::Note { text, .. } => Some(text.clone()),
        _ => None,
    });
    Ok(Session { tasks: tasks.collect(), notes: notes.collect(), summary: summary(row), last_event })
}

fn by_task<T>(all: Vec<T>, task: impl Fn(&T) -> Option<Uuid>) -> BTreeMap<Option<Uuid>, Vec<T>> {
    let mut by_task: BTreeMap<_, Vec<T>> = BTreeMap::new();
    for one in all {
        by_task.entry(task(&one)).or_default().push(one);
    }
    by_task
}

/// The session that a path names.
pub async fn find(server: &Server, wanted: &str) -> Answer<SessionRow> {
    let row = match wanted.parse::<i64>() {
        Ok(id) => server.store.session(id).await?,
        Err(_) => None,
    };
    if let Some(row) = row {
        return Ok(row);
    }
    let what = format!("there is no session \"{}\"", super::shortened(wanted));
    let newest = server.store.sessions(None, 10).await?;
    let problem = Problem::new(404, "unknown-session", what);
    if newest.is_empty() {
        return Err(problem.why("no session has run yet").remedy("run a job: lull job run NAME").into());
    }
    let numbers: Vec<String> = newest.iter().map(|session| session.id.to_string()).collect();
    Err(problem.why(format!("the newest are: {}", listed(&numbers))).remedy("use one of these numbers").into())
}

/// A session without its tasks.
pub fn summary(row: SessionRow) -> SessionSummary {
    let result = match row.state {
        SessionState::Finished { outcome, .. } => Some(outcome.to_string()),
        SessionState::Running { .. } | SessionState::Cancelling { .. } => None,
    };
    SessionSummary {
        id: row.id,
        kind: row.kind.to_string(),
        job: row.job_name,
        scheduled_for: match row.by {
            BegunBy::Schedule { due } => Some(rfc3339(due)),
            BegunBy::Caller | BegunBy::Retry { .. } => None,
        },
        retry: match row.by {
            BegunBy::Retry { attempt, times, of } => Some(RetryOf { attempt, times, session: of }),
            BegunBy::Caller | BegunBy::Schedule { .. } => None,
        },
        state: if result.is_some() { "finished" } else { "running" }.into(),
        result,
        started_at: rfc3339(row.started),
        ended_at: row.ended.map(rfc3339),
        vms: row.vms,
    }
}

fn task_view(
    task: TaskRow,
    events: &[SessionEvent],
    dispatches: &[DispatchRow],
    progress: Option<StepProgress>,
) -> Task {
    let TaskRow { id, vm_name: vm, state, outcome, .. } = task;
    let mut view = Task {
        id,
        vm,
        state: match &state {
            TaskState::Waiting { .. } => "waiting",
            TaskState::Dispatched { .. } | TaskState::Running { .. } => "running",
            TaskState::Recovering { .. } => "recovering",
            TaskState::Finished { .. } => "finished",
        }
        .into(),
        result: state.outcome().map(|outcome| outcome.to_string()),
        failure: failure(&state).map(book::shown),
        proxy: None,
        earlier_choices: Vec::new(),
        steps: Vec::new(),
        level: outcome.level,
        level_reasons: outcome.level_reasons,
        freeze_window_us: None,
        restore_point: restore_point(&state),
        receipt: outcome.receipt,
        inventory: outcome.inventory,
        notes: Vec::new(),
    };
    let mut chosen_at = "";
    for event in events {
        if let EventKind::ProxyChosen { .. } = &event.event {
            let before = view.proxy.take();
            view.earlier_choices.extend(before.map(|choice| earlier(choice, chosen_at, dispatches)));
            close_steps(&mut view, "failed", &event.at);
            chosen_at = &event.at;
        }
        add(&mut view, event);
    }
    if let TaskState::Finished { at, .. } = &state {
        let ended = if view.result.as_deref() == Some("cancelled") { "cancelled" } else { "failed" };
        close_steps(&mut view, ended, &rfc3339(*at));
    }
    if let Some(progress) = progress {
        let running = |step: &&mut Step| step.step == progress.step && step.state == "running";
        if let Some(step) = view.steps.iter_mut().rev().find(running) {
            (step.done_bytes, step.total_bytes) = (Some(progress.done_bytes), Some(progress.total_bytes));
        }
    }
    view
}

/// A choice that another one followed; how it ended stands where it was counted, in the row of the same instant.
fn earlier(explanation: ProxyExplanation, at: &str, dispatches: &[DispatchRow]) -> ProxyChoice {
    let counted = dispatches.iter().find(|dispatch| rfc3339(dispatch.begun) == at);
    ProxyChoice {
        at: at.to_string(),
        explanation,
        ended_at: counted.and_then(|dispatch| dispatch.ended).map(rfc3339),
        ended: counted.and_then(|dispatch| dispatch.end.clone()),
    }
}

/// What one event adds to a task.
fn add(view: &mut Task, event: &SessionEvent) {
    match &event.event {
        EventKind::ProxyChosen { explanation } => view.proxy = Some(ProxyExplanation::clone(explanation)),
        EventKind::StepStarted { step, detail } => view.steps.push(Step {
            step: step.clone(),
            state: "running".into(),
            detail: detail.clone(),
            started_at: event.at.clone(),
            took_us: None,
            done_bytes: None,
            total_bytes: None,
        }),
        EventKind::StepEnded { step, state, detail, took_us } => {
            let running = |known: &&mut Step| known.step == *step && known.state == "running";
            if let Some(known) = view.steps.iter_mut().rev().find(running) {
                (known.state, known.took_us) = (state.clone(), Some(*took_us));
                if !detail.is_empty() {
                    known.detail = detail.clone();
                }
            } else {
                // A step that is skipped never started.
                view.steps.push(Step {
                    step: step.clone(),
                    state: state.clone(),
                    detail: detail.clone(),
                    started_at: event.at.clone(),
                    took_us: Some(*took_us),
                    done_bytes: None,
                    total_bytes: None,
                });
            }
        }
        EventKind::Note { text, .. } => view.notes.push(text.clone()),
        EventKind::Thawed { window_us, .. } if *window_us > 0 => view.freeze_window_us = Some(*window_us),
        EventKind::Thawed { .. }
        | EventKind::Frozen { .. }
        | EventKind::SessionStarted
        | EventKind::Progress { .. }
        | EventKind::HoldReady { .. }
        | EventKind::TaskFinished { .. }
        | EventKind::SessionFinished { .. } => {}
    }
}

/// A step whose end was never told ended with its proxy's turn, and with its task.
fn close_steps(view: &mut Task, state: &str, at: &str) {
    for step in view.steps.iter_mut().filter(|step| step.state == "running") {
        (step.state, step.took_us) = (state.into(), between_us(&step.started_at, at));
    }
}

fn between_us(start: &str, end: &str) -> Option<u64> {
    let (start, end) = (start.parse::<Timestamp>().ok()?, end.parse::<Timestamp>().ok()?);
    u64::try_from(us(end) - us(start)).ok()
}

fn failure(state: &TaskState) -> Option<&lull_engine::session::TaskFailure> {
    let ending = match state {
        TaskState::Recovering { then: AfterRecovery::Failover { failure }, .. } => return Some(failure),
        TaskState::Recovering { then: AfterRecovery::Close { ending }, .. } | TaskState::Finished { ending, .. } => {
            ending
        }
        TaskState::Waiting { last_failure, .. }
        | TaskState::Recovering { then: AfterRecovery::Begin { last_failure, .. }, .. } => {
            return last_failure.as_ref();
        }
        TaskState::Dispatched { .. } | TaskState::Running { .. } => return None,
    };
    match ending {
        Ending::Failed { failure } => Some(failure),
        Ending::Success | Ending::Warning { .. } | Ending::Cancelled => None,
    }
}

fn restore_point(state: &TaskState) -> Option<Uuid> {
    match state {
        TaskState::Finished { restore_point, .. } => restore_point.map(|id| id.0),
        TaskState::Dispatched { hold } | TaskState::Running { hold, .. } | TaskState::Recovering { hold, .. } => {
            hold.restore_point.map(|id| id.0)
        }
        TaskState::Waiting { .. } => None,
    }
}
