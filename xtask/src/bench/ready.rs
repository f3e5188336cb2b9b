//! `ready`: how long it takes from a task's start until the runtime component answers in the guest, beside one OpenSSH login.
//!
//! **Start** is the session's first event: it is stored before anything else happens, so choosing the proxy and waiting for a slot
//! count. **Ready** is the end of the step `deploy`: the component was carried over, checked, started, and has said its first word.
//! *Test now* serves as the task; it takes the same way into the guest as a job. The peer is the program `ssh` with its defaults, a new connection
//! each time, running `true`. The VM is idle. In each round every side has one turn, and who begins changes.

use super::arguments::Arguments;
use super::figure::{Figure, Goal};
use super::lull_server::{Finished, ROOT_KEY, SUDO_PASSWORD};
use super::running::output;
use super::stage::{Scene, Stage};
use super::statistics::{median, quantile};
use anyhow::{Context, Result};
use jiff::Timestamp;
use lull_api::session::{EventKind, SessionEvent, Step};
use std::time::{Duration, Instant};
use tokio::process::Command;

/// Fewest rounds for which the goal counts.
const ROUNDS_MIN: usize = 15;
/// The median of root with a key over that of `ssh` may be at most this.
const RATIO_MAX: f64 = 1.5;
/// Calm between two turns.
const SETTLE: Duration = Duration::from_millis(500);

/// Who has a turn.
#[derive(Debug, Clone, Copy)]
enum Side {
    RootKey,
    SudoPassword,
    Ssh,
}

/// Runs the bench.
///
/// # Errors
/// When a task or a login fails.
pub async fn measure(arguments: &Arguments) -> Result<Vec<Figure>> {
    let rounds = arguments.pairs.unwrap_or(ROUNDS_MIN);
    let mut stage = Stage::set_up(arguments).await?;
    let (mut root, mut sudo, mut ssh) = (Vec::new(), Vec::new(), Vec::new());
    // The first round pays for what is new (host key, caches): it does not count.
    for round in 0..=rounds {
        let mut sides = [Side::RootKey, Side::SudoPassword, Side::Ssh];
        sides.rotate_left(round % 3);
        let mut took = String::new();
        for side in sides {
            let (ms, parts) = turn(&mut stage, side).await?;
            took.push_str(&format!(" {side:?} {ms:.1} ms{parts}"));
            if round > 0 {
                match side {
                    Side::RootKey => &mut root,
                    Side::SudoPassword => &mut sudo,
                    Side::Ssh => &mut ssh,
                }
                .push(ms);
            }
        }
        eprintln!("round {round} of {rounds}:{took}{}", if round == 0 { " (to warm up)" } else { "" });
    }
    Ok(vec![
        Figure::new("runtime ready, root with a key, median", "ms", median(&root))
            .beside(median(&ssh))
            .goal(Goal::RatioAtMost(RATIO_MAX), rounds >= ROUNDS_MIN),
        Figure::new("runtime ready, root with a key, p99", "ms", quantile(&root, 0.99)).beside(quantile(&ssh, 0.99)),
        Figure::new("runtime ready, sudo with a password, median", "ms", median(&sudo)).beside(median(&ssh)),
    ])
}

/// One turn: how long it took in ms, and of what that consists, for people.
async fn turn(stage: &mut Stage, side: Side) -> Result<(f64, String)> {
    let credential = match side {
        Side::RootKey => ROOT_KEY,
        Side::SudoPassword => SUDO_PASSWORD,
        Side::Ssh => {
            tokio::time::sleep(SETTLE).await;
            return Ok((login(&stage.scene).await?, String::new()));
        }
    };
    stage.server.use_credential(credential).await?;
    tokio::time::sleep(SETTLE).await;
    let finished = stage.server.test_guest().await?;
    measured(&finished).with_context(|| stage.server.last_words())
}

fn measured(finished: &Finished) -> Result<(f64, String)> {
    let task = finished.succeeded()?;
    let took = |step: &Step| Some(format!("{} {:.1}", step.step, step.took_us? as f64 / 1000.0));
    let until_ready = task.steps.iter().filter(|step| ["connect", "deploy"].contains(&step.step.as_str()));
    let parts: Vec<String> = until_ready.filter_map(took).collect();
    Ok((start_to_ready_ms(&finished.events)?, format!(" ({})", parts.join(", "))))
}

/// From the first event to the end of `deploy`, in ms.
fn start_to_ready_ms(events: &[SessionEvent]) -> Result<f64> {
    let deployed = |event: &&SessionEvent| matches!(&event.event, EventKind::StepEnded { step, state, .. } if step == "deploy" && state == "ok");
    let ready = events.iter().find(deployed).context("the session has no step deploy that ended well")?;
    let start = events.first().context("the session has no events")?;
    let at = |event: &SessionEvent| event.at.parse::<Timestamp>().with_context(|| format!("the time {:?}", event.at));
    Ok(at(ready)?.duration_since(at(start)?).as_secs_f64() * 1000.0)
}

/// One login with OpenSSH's own defaults; only what keeps it from asking is set.
async fn login(scene: &Scene) -> Result<f64> {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-i"]).arg(scene.testbed.key()).args(["-p", &scene.ssh_port()?.to_string()]);
    for option in ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"] {
        ssh.args(["-o", option]);
    }
    ssh.args(["root@127.0.0.1", "true"]);
    let began = Instant::now();
    output(&mut ssh, "a login with ssh").await?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, at: &str, event: EventKind) -> SessionEvent {
        SessionEvent { seq, at: at.to_string(), task: None, vm: None, event }
    }

    fn ended(step: &str, state: &str) -> EventKind {
        EventKind::StepEnded { step: step.into(), state: state.into(), detail: String::new(), took_us: 1 }
    }

    #[test]
    fn ready_is_the_end_of_deploy() {
        let events = [
            event(1, "2026-01-01T00:00:59.9Z", EventKind::SessionStarted),
            event(2, "2026-01-01T00:01:00.1Z", ended("connect", "ok")),
            event(3, "2026-01-01T00:01:00.400250Z", ended("deploy", "ok")),
            event(4, "2026-01-01T00:01:09Z", ended("inventory", "ok")),
        ];
        assert_eq!(start_to_ready_ms(&events).unwrap(), 500.25);
    }

    #[test]
    fn a_failed_deployment_is_never_ready() {
        let events = [
            event(1, "2026-01-01T00:00:00Z", EventKind::SessionStarted),
            event(2, "2026-01-01T00:00:01Z", ended("deploy", "failed")),
        ];
        assert!(start_to_ready_ms(&events).is_err());
        assert!(start_to_ready_ms(&[]).is_err());
    }
}
