//! COMMAND and the renewals, in one loop: whoever renews is still waiting for COMMAND. Signals reach COMMAND and end
//! the hold at once.

use super::{Events, say};
use crate::calls;
use crate::screen::Screen;
use crate::terminal;
use futures::StreamExt;
use lull_api::Client;
use lull_api::client::ClientError;
use lull_api::session::{EventKind, HoldEnd};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// From one renewal to the next.
const RENEW_EVERY: Duration = Duration::from_millis(1_000);
/// A renewal that is not answered within this time counts for nothing; the next one follows.
const RENEWAL_TIMEOUT: Duration = Duration::from_millis(2_000);
/// How often, and how far apart, the end of the hold is told to a server that does not answer. Then the lease thaws.
const END_TRIES: u32 = 5;
const END_PAUSE: Duration = Duration::from_millis(300);

/// A guest at rest that is held by this program.
pub struct Hold<'a> {
    pub client: &'a Client,
    pub screen: &'a Screen,
    pub session: i64,
}

/// How COMMAND ended, and what became of the hold until then.
#[derive(Debug)]
pub struct Ran {
    /// COMMAND's status, or why it could not be started.
    pub status: io::Result<ExitStatus>,
    /// How long COMMAND ran.
    pub took: Duration,
    /// Why the guest was not held until COMMAND's end, where that is so.
    pub let_go: Option<String>,
    /// Whether the guest was frozen without a gap, where it has already said so.
    pub no_gap: Option<bool>,
}

impl Hold<'_> {
    /// Runs COMMAND with the facts in its environment, renewing the hold until it ends.
    pub async fn run_command(
        &self,
        command: &[OsString],
        facts: BTreeMap<String, String>,
        events: &mut Events<'_>,
    ) -> Ran {
        let started = Instant::now();
        let mut ran =
            Ran { status: Err(io::ErrorKind::NotFound.into()), took: Duration::ZERO, let_go: None, no_gap: None };
        ran.status = match self.spawn(command, facts) {
            Ok(child) => self.renew_while_it_runs(child, events, &mut ran).await,
            Err(error) => Err(error),
        };
        ran.took = started.elapsed();
        ran
    }

    fn spawn(&self, command: &[OsString], facts: BTreeMap<String, String>) -> io::Result<tokio::process::Child> {
        let [program, arguments @ ..] = command else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut command = Command::new(program);
        command.args(arguments);
        // The server states facts; it does not get to set PATH or LD_PRELOAD of a program of the caller.
        command.envs(facts.into_iter().filter(|(name, value)| is_fact(name) && !value.contains('\0')));
        if self.screen.json {
            command.stdout(rustix::io::dup(rustix::stdio::stderr())?);
        }
        command.spawn()
    }

    async fn renew_while_it_runs(
        &self,
        mut child: tokio::process::Child,
        events: &mut Events<'_>,
        ran: &mut Ran,
    ) -> io::Result<ExitStatus> {
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let mut interrupts = signal(SignalKind::interrupt())?;
        let mut terminations = signal(SignalKind::terminate())?;
        let mut hangups = signal(SignalKind::hangup())?;
        let mut due = interval(RENEW_EVERY);
        // After a stop of this program the renewals that were missed are not made up for.
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewal = None;
        let mut following = true;
        loop {
            let signal = tokio::select! {
                biased;
                status = child.wait() => return status,
                _ = interrupts.recv() => (Signal::INT, "Ctrl-C"),
                _ = terminations.recv() => (Signal::TERM, "SIGTERM"),
                _ = hangups.recv() => (Signal::HUP, "SIGHUP"),
                _ = due.tick(), if renewal.is_none() && ran.let_go.is_none() => {
                    let call = timeout(RENEWAL_TIMEOUT, calls::renew_hold(self.client, self.session));
                    renewal = Some(Box::pin(call));
                    continue;
                }
                answer = answered(&mut renewal), if renewal.is_some() => {
                    renewal = None;
                    // No answer is no end: the lease decides, and the guest tells at the end whether there was a gap.
                    if let Ok(Err(ClientError::Problem(problem))) = answer {
                        self.let_go(ran, format!("the hold is over: {}", problem.what));
                    }
                    continue;
                }
                event = events.next(), if following => {
                    match event {
                        Some(Ok(event)) => {
                            say(self.screen, &event);
                            if let EventKind::Thawed { no_gap, .. } = event.event {
                                ran.no_gap = Some(no_gap);
                                self.let_go(ran, "the guest thawed".into());
                            } else if matches!(event.event, EventKind::TaskFinished { .. } | EventKind::SessionFinished { .. }) {
                                self.let_go(ran, "the session ended".into());
                                following = !matches!(event.event, EventKind::SessionFinished { .. });
                            }
                        }
                        Some(Err(_)) | None => following = false,
                    }
                    continue;
                }
            };
            if let Some(pid) = pid.filter(|_| signal.0 != Signal::INT || !terminal::is_foreground()) {
                // The child may be gone already; then its status comes with the next turn.
                let _ = kill_process(pid, signal.0);
            }
            if ran.let_go.is_none() {
                self.let_go(ran, format!("{} came before COMMAND ended", signal.1));
                let end = HoldEnd { succeeded: false, detail: format!("interrupted by {}", signal.1) };
                let _ = timeout(RENEWAL_TIMEOUT, calls::end_hold(self.client, self.session, &end)).await;
            }
        }
    }

    fn let_go(&self, ran: &mut Ran, why: String) {
        if ran.let_go.is_none() {
            self.screen.remark(&format!("warning: {why}; do not trust what COMMAND takes"));
            ran.let_go = Some(why);
        }
    }

    /// Tells the server that COMMAND is over, so that the guest thaws. If it cannot be told, the lease thaws.
    pub async fn end(&self, ran: &mut Ran) {
        let end = HoldEnd {
            succeeded: matches!(&ran.status, Ok(status) if status.success()),
            detail: match &ran.status {
                Ok(status) => describe(*status),
                Err(error) => format!("could not be started: {error}"),
            },
        };
        for attempt in 1..=END_TRIES {
            match timeout(RENEWAL_TIMEOUT, calls::end_hold(self.client, self.session, &end)).await {
                Ok(Ok(())) => return,
                // A refusal means that the hold was over before: COMMAND's last moments were not quiet.
                Ok(Err(ClientError::Problem(problem))) => {
                    return self.let_go(ran, format!("the hold was over before COMMAND ended: {}", problem.what));
                }
                _ if attempt == END_TRIES => self
                    .screen
                    .remark("warning: the server could not be told that COMMAND ended; the lease thaws the guest"),
                _ => tokio::time::sleep(END_PAUSE).await,
            }
        }
    }
}

async fn answered<F: Future + Unpin>(renewal: &mut Option<F>) -> F::Output {
    match renewal {
        Some(renewal) => renewal.await,
        None => std::future::pending().await,
    }
}

fn is_fact(name: &str) -> bool {
    name.strip_prefix("LULL_").is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    })
}

/// `exit code 3`, `killed by signal 9`.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_facts_reach_the_environment() {
        for (name, expect) in [
            ("LULL_VM", true),
            ("LULL_FREEZE_ID", true),
            ("PATH", false),
            ("LD_PRELOAD", false),
            ("LULL_", false),
            ("LULL_a", false),
            ("LULL_X=Y", false),
        ] {
            assert_eq!(is_fact(name), expect, "{name}");
        }
    }
}
