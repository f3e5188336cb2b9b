//! One line per event of a session, for logs and pipes.

use super::text::{one_line, printable};
use super::{Look, proxy, session, units};
use lull_api::session::{EventKind, SessionEvent};

/// `12:00:00.123  pg-demo  freeze: ok, 2.1 ms, 2 file systems`. `None` for progress: it would flood a log.
pub fn line(event: &SessionEvent, look: &Look) -> Option<String> {
    let what = describe(&event.event, look)?;
    let vm = event.vm.as_deref().map(|vm| format!("{}  ", one_line(vm))).unwrap_or_default();
    Some(format!("{}  {vm}{what}", units::clock(&event.at, look)))
}

fn describe(kind: &EventKind, look: &Look) -> Option<String> {
    Some(match kind {
        EventKind::SessionStarted => "session started".to_string(),
        EventKind::ProxyChosen { explanation } => format!("proxy: {}", proxy::summary(explanation)),
        EventKind::StepStarted { step, detail } => format!("{} …{}", one_line(step), after(" ", detail)),
        EventKind::StepEnded { step, state, detail, took_us } => format!(
            "{}: {}, {}{}",
            one_line(step),
            look.paint_state(state),
            units::duration(*took_us),
            after(", ", detail)
        ),
        EventKind::Progress { .. } => return None,
        EventKind::Note { level, text } => format!("{}: {}", look.paint_state(level), printable(text)),
        EventKind::Frozen { file_systems: 1 } => "frozen: 1 file system".to_string(),
        EventKind::Frozen { file_systems } => format!("frozen: {file_systems} file systems"),
        EventKind::Thawed { window_us, no_gap: true } => {
            format!("thawed: frozen without a gap for {}", units::duration(*window_us))
        }
        EventKind::Thawed { window_us, no_gap: false } => {
            format!("thawed after {}, but it was not frozen all the time", units::duration(*window_us))
        }
        EventKind::HoldReady { .. } => "at rest: the command may run".to_string(),
        EventKind::TaskFinished { result, level, failure } => {
            let level = level.as_deref().map(|level| format!(", level {}", one_line(level))).unwrap_or_default();
            let failure = failure.as_ref().map(|failure| after(": ", &failure.text)).unwrap_or_default();
            format!("task {}{level}{failure}", look.paint_state(result))
        }
        EventKind::SessionFinished { result } => format!("session {}", look.paint_state(result)),
    })
}

fn after(separator: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{separator}{}", one_line(text)) }
}

/// How a task ended, in a few lines: for those who saw its steps go by.
pub fn task_summary(task: &lull_api::session::Task, look: &Look) -> String {
    let mut text = session::task_head(task, look);
    if let Some(level) = &task.level {
        text.push_str(&format!("  level {}", look.paint_state(level)));
    }
    if let Some(window_us) = task.freeze_window_us {
        text.push_str(&format!("  freeze window {}", units::duration(window_us)));
    }
    text.push('\n');
    let mut add = |name: &str, value: &str| text.push_str(&format!("  {name}: {}\n", one_line(value)));
    for reason in &task.level_reasons {
        add("level", reason);
    }
    if let Some(failure) = &task.failure {
        add("failure", &failure.text);
        if !failure.text.contains(&failure.remedy) {
            add("do", &failure.remedy);
        }
    }
    if let Some(id) = task.restore_point {
        add("restore point", &id.to_string());
    }
    if let Some(receipt) = &task.receipt {
        add("receipt", &session::receipt_text(receipt));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(event: EventKind, expect: Option<&str>) {
        let event =
            SessionEvent { seq: 1, at: "2026-03-01T11:59:58.25Z".into(), task: None, vm: Some("pg".into()), event };
        assert_eq!(line(&event, &Look::plain(None)).as_deref(), expect);
    }

    #[test]
    fn every_event_is_one_line() {
        check(EventKind::SessionStarted, Some("11:59:58.250  pg  session started"));
        check(
            EventKind::StepStarted { step: "freeze".into(), detail: String::new() },
            Some("11:59:58.250  pg  freeze …"),
        );
        check(
            EventKind::StepEnded {
                step: "freeze".into(),
                state: "ok".into(),
                detail: "2 file\nsystems".into(),
                took_us: 2_100,
            },
            Some("11:59:58.250  pg  freeze: ok, 2.1 ms, 2 file systems"),
        );
        check(EventKind::Progress { step: "copy".into(), done_bytes: 1, total_bytes: 2 }, None);
        check(
            EventKind::Thawed { window_us: 3_400, no_gap: true },
            Some("11:59:58.250  pg  thawed: frozen without a gap for 3.4 ms"),
        );
        check(
            EventKind::Thawed { window_us: 5_000_000, no_gap: false },
            Some("11:59:58.250  pg  thawed after 5.0 s, but it was not frozen all the time"),
        );
        check(
            EventKind::TaskFinished { result: "success".into(), level: Some("application".into()), failure: None },
            Some("11:59:58.250  pg  task success, level application"),
        );
    }
}
