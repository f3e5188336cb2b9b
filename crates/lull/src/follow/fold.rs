//! What a session looks like after an event: pure, so that a tree can grow without asking the server again.

use crate::render::units;
use lull_api::session::{EventKind, Session, SessionEvent, Step, Task};

/// Applies an event to a session.
pub fn apply(session: &mut Session, event: &SessionEvent) {
    session.last_event = session.last_event.max(event.seq);
    match &event.event {
        EventKind::SessionStarted => session.summary.state = "running".into(),
        EventKind::SessionFinished { result } => {
            session.summary.state = "finished".into();
            session.summary.result = Some(result.clone());
            session.summary.ended_at = Some(event.at.clone());
        }
        EventKind::Note { text, .. } if event.task.is_none() => session.notes.push(text.clone()),
        _ => {
            if let Some(task) = task_of(session, event) {
                apply_to_task(task, event);
            }
        }
    }
}

/// The task that an event is about; one that the session does not know yet is added.
fn task_of<'a>(session: &'a mut Session, event: &SessionEvent) -> Option<&'a mut Task> {
    let id = event.task?;
    let at = match session.tasks.iter().position(|task| task.id == id) {
        Some(at) => at,
        None => {
            session.tasks.push(Task {
                id,
                vm: event.vm.clone().unwrap_or_default(),
                state: "waiting".into(),
                result: None,
                failure: None,
                proxy: None,
                earlier_choices: vec![],
                steps: vec![],
                level: None,
                level_reasons: vec![],
                freeze_window_us: None,
                restore_point: None,
                receipt: None,
                inventory: None,
                notes: vec![],
            });
            session.tasks.len() - 1
        }
    };
    session.tasks.get_mut(at)
}

fn apply_to_task(task: &mut Task, event: &SessionEvent) {
    if task.state == "waiting" {
        task.state = "running".into();
    }
    match &event.event {
        EventKind::ProxyChosen { explanation } => {
            close_steps(task, "failed", &event.at);
            task.proxy = Some(explanation.clone());
        }
        EventKind::StepStarted { step, detail } => task.steps.push(step_at(event, step, "running", detail)),
        EventKind::StepEnded { step, state, detail, took_us } => {
            if running(task, step).is_none() {
                task.steps.push(step_at(event, step, "running", ""));
            }
            if let Some(known) = running(task, step) {
                known.state = state.clone();
                known.took_us = Some(*took_us);
                if !detail.is_empty() {
                    known.detail = detail.clone();
                }
            }
        }
        EventKind::Progress { step, done_bytes, total_bytes } => {
            if let Some(known) = running(task, step) {
                known.done_bytes = Some(*done_bytes);
                known.total_bytes = Some(*total_bytes);
            }
        }
        EventKind::Note { text, .. } => task.notes.push(text.clone()),
        EventKind::Thawed { window_us, .. } => task.freeze_window_us = Some(*window_us),
        EventKind::TaskFinished { result, level, failure } => {
            close_steps(task, if result == "cancelled" { "cancelled" } else { "failed" }, &event.at);
            task.state = "finished".into();
            task.result = Some(result.clone());
            task.level = level.clone();
            task.failure = failure.clone();
        }
        EventKind::SessionStarted
        | EventKind::Frozen { .. }
        | EventKind::HoldReady { .. }
        | EventKind::SessionFinished { .. } => {}
    }
}

/// A step whose end was never told ended with its proxy's turn, and with its task.
fn close_steps(task: &mut Task, state: &str, at: &str) {
    for step in task.steps.iter_mut().filter(|step| step.state == "running") {
        (step.state, step.took_us) = (state.into(), units::took_us(&step.started_at, at));
    }
}

fn running<'a>(task: &'a mut Task, step: &str) -> Option<&'a mut Step> {
    task.steps.iter_mut().rev().find(|known| known.step == step && known.state == "running")
}

fn step_at(event: &SessionEvent, step: &str, state: &str, detail: &str) -> Step {
    Step {
        step: step.into(),
        state: state.into(),
        detail: detail.into(),
        started_at: event.at.clone(),
        took_us: None,
        done_bytes: None,
        total_bytes: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::{Look, session::tree};
    use lull_api::session::SessionSummary;

    fn session() -> Session {
        Session {
            summary: SessionSummary {
                id: 1,
                kind: "backup".into(),
                job: Some("nightly".into()),
                scheduled_for: None,
                retry: None,
                state: "running".into(),
                result: None,
                started_at: "2026-03-01T11:59:50Z".into(),
                ended_at: None,
                vms: vec!["pg".into()],
            },
            tasks: vec![],
            notes: vec![],
            last_event: 0,
        }
    }

    fn check(events: Vec<EventKind>, expect: &str) {
        let mut session = session();
        for (n, event) in events.into_iter().enumerate() {
            let event = SessionEvent {
                seq: n as u64 + 1,
                at: "2026-03-01T11:59:59Z".into(),
                task: Some(uuid::Uuid::from_u128(7)),
                vm: Some("pg".into()),
                event,
            };
            apply(&mut session, &event);
        }
        assert_eq!(tree(&session, &Look::plain(None), false), expect);
    }

    fn started(step: &str, detail: &str) -> EventKind {
        EventKind::StepStarted { step: step.into(), detail: detail.into() }
    }

    fn ended(step: &str, state: &str, detail: &str, took_us: u64) -> EventKind {
        EventKind::StepEnded { step: step.into(), state: state.into(), detail: detail.into(), took_us }
    }

    #[test]
    fn a_tree_grows_event_by_event() {
        check(
            vec![
                started("connect", "10.0.0.5:22"),
                ended("connect", "ok", "as root", 41_000),
                ended("inventory", "skipped", "not asked for", 0),
                started("copy", ""),
                EventKind::Progress { step: "copy".into(), done_bytes: 1 << 20, total_bytes: 4 << 20 },
            ],
            "\
Session 1  backup of job nightly  running  2026-03-01 11:59:50, 10.0 s
└─ pg  running
   ├─ ✓ connect             41 ms  as root
   ├─ - inventory            0 µs  not asked for
   └─ ● copy                1.0 s  25 %, 1.0 MiB of 4.0 MiB
",
        );
    }

    #[test]
    fn a_step_that_is_tried_again_stands_there_twice() {
        check(
            vec![
                started("connect", ""),
                ended("connect", "failed", "refused", 1_000),
                started("connect", ""),
                ended("connect", "ok", "", 2_000),
                EventKind::TaskFinished { result: "success".into(), level: Some("crash".into()), failure: None },
            ],
            "\
Session 1  backup of job nightly  running  2026-03-01 11:59:50, 10.0 s
└─ pg  success
   ├─ ✗ connect            1.0 ms  refused
   ├─ ✓ connect            2.0 ms
   └─ · level                      crash
",
        );
    }

    #[test]
    fn a_step_whose_end_was_never_told_ends_with_its_task() {
        check(
            vec![
                started("connect", "10.0.0.5:22"),
                EventKind::TaskFinished { result: "cancelled".into(), level: None, failure: None },
            ],
            "\
Session 1  backup of job nightly  running  2026-03-01 11:59:50, 10.0 s
└─ pg  cancelled
   └─ ⊘ connect              0 µs  10.0.0.5:22
",
        );
    }

    #[test]
    fn progress_of_a_step_that_is_over_changes_nothing() {
        check(
            vec![
                started("copy", ""),
                ended("copy", "ok", "done", 1_000),
                EventKind::Progress { step: "copy".into(), done_bytes: 1, total_bytes: 2 },
            ],
            "\
Session 1  backup of job nightly  running  2026-03-01 11:59:50, 10.0 s
└─ pg  running
   └─ ✓ copy               1.0 ms  done
",
        );
    }
}
