//! A session as the REST interface shows it: put together from its rows and its events. Changes nothing.

use super::answer::Answer;
use super::names::listed;
use crate::hub::StepProgress;
use crate::instant::rfc3339;
use crate::runner::book;
use crate::server::Server;
use crate::store::sessions::{SessionRow, TaskRow};
use lull_api::Problem;
use lull_api::infrastructure::ProxyExplanation;
use lull_api::session::{EventKind, Session, SessionEvent, SessionSummary, Step, Task};
use lull_engine::session::{AfterRecovery, Ending, SessionState, TaskState};
use uuid::Uuid;

/// Events read at once.
const PAGE: u32 = 1_000;

/// A session with its tasks.
pub async fn session_view(server: &Server, id: i64) -> Answer<Session> {
    let row = find(server, &id.to_string()).await?;
    let tasks = server.store.tasks(id).await?;
    let mut events = Vec::new();
    loop {
        let after = events.last().map_or(0, |event: &SessionEvent| event.seq);
        let page = server.store.events(id, after, PAGE).await?;
        let last_page = page.len() < PAGE as usize;
        events.extend(page);
        if last_page {
            break;
        }
    }
    let last_event = events.last().map_or(0, |event| event.seq);
    let tasks = tasks.into_iter().map(|task| {
        let progress = server.hub.progress(task.id);
        task_view(task, &events, progress)
    });
    let notes = events.iter().filter(|event| event.task.is_none()).filter_map(|event| match &event.event {
        EventKind::Note { text, .. } => Some(text.clone()),
        _ => None,
    });
    Ok(Session { tasks: tasks.collect(), summary: summary(row), notes: notes.collect(), last_event })
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
        state: if result.is_some() { "finished" } else { "running" }.into(),
        result,
        started_at: rfc3339(row.started),
        ended_at: row.ended.map(rfc3339),
        vms: row.vms,
    }
}

fn task_view(task: TaskRow, events: &[SessionEvent], progress: Option<StepProgress>) -> Task {
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
        steps: Vec::new(),
        level: outcome.level,
        level_reasons: outcome.level_reasons,
        freeze_window_us: None,
        restore_point: restore_point(&state),
        receipt: outcome.receipt,
        inventory: outcome.inventory,
        notes: Vec::new(),
    };
    for event in events.iter().filter(|event| event.task == Some(id)) {
        add(&mut view, event);
    }
    close_steps(&mut view);
    if let Some(progress) = progress {
        let running = |step: &&mut Step| step.step == progress.step && step.state == "running";
        if let Some(step) = view.steps.iter_mut().rev().find(running) {
            (step.done_bytes, step.total_bytes) = (Some(progress.done_bytes), Some(progress.total_bytes));
        }
    }
    view
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

/// A step whose end was never told is not running any more once its proxy is lost.
fn close_steps(view: &mut Task) {
    let state = match (view.state.as_str(), view.result.as_deref()) {
        ("finished", Some("cancelled")) => "cancelled",
        ("finished", _) => "failed",
        _ => return,
    };
    for step in view.steps.iter_mut().filter(|step| step.state == "running") {
        step.state = state.into();
    }
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
