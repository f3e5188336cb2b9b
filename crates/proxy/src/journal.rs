//! What a piece of work tells the backup server, in this process's own log too: an administrator on the proxy sees what it does, and for
//! which session. The span says whose work it is. Knows nothing of how events are sent.

use lull_proxy_wire::v1::task_event::Event;

/// One event. Lines of people's scripts are the session's alone: they may say anything.
pub fn tell(event: &Event) {
    match event {
        Event::StepStarted(started) => tracing::debug!(step = started.step, "begins"),
        Event::StepEnded(ended) => {
            let (step, outcome, took_us) = (&ended.step, &ended.outcome, ended.took_us);
            match ended.outcome.as_str() {
                "failed" | "warning" => tracing::warn!(step, outcome, took_us, "ended: {}", ended.detail),
                _ => tracing::info!(step, outcome, took_us, "ended"),
            }
        }
        Event::Thawed(thawed) => tracing::info!(window_us = thawed.window_us, "the guest is thawed"),
        Event::Finished(finished) => tracing::info!(outcome = finished.outcome, "the end"),
        _ => {}
    }
}
