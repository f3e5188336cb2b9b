//! Whether what COMMAND took can be trusted: pure, from how COMMAND ended and what the session says.

use super::Ending;
use super::hold::{Ran, describe};
use crate::exit::Exit;
use crate::render::text::one_line;
use crate::render::{session, units};
use crate::screen::Screen;
use crate::trouble::Result;
use serde::Serialize;
use std::io;
use std::os::unix::process::ExitStatusExt;

/// How it went. This is the document that `--json` prints.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// VM's name.
    pub vm: String,
    /// Number of the session.
    pub session: i64,
    /// The session's result, where it is known.
    pub result: Option<String>,
    /// `exit code 0`, …
    pub command: String,
    /// COMMAND's exit code (128 + N if signal N killed it), where it ran.
    pub command_exit_code: Option<u8>,
    /// How long COMMAND ran, in microseconds.
    pub command_took_us: u64,
    /// Whether the guest was at rest from before COMMAND started until after it ended.
    pub inside: bool,
    /// Why not, where that is so.
    pub why_not_inside: Option<String>,
    /// Consistency level reached.
    pub level: Option<String>,
    /// Why it is not better.
    pub level_reasons: Vec<String>,
    /// From freeze sent to thaw answered, in microseconds.
    pub freeze_window_us: Option<u64>,
    /// Why the session did not succeed.
    pub failure: Option<String>,
    /// Whether the session failed for COMMAND's own exit code, and for nothing else.
    #[serde(skip)]
    pub only_command_failed: bool,
    /// What the receipt says.
    pub receipt: Option<String>,
    /// Exit code of this program.
    pub exit_code: u8,
}

impl Verdict {
    /// Weighs what is known.
    pub fn of(vm: &str, id: i64, ran: &Ran, ending: Ending) -> Verdict {
        let result = ending.session.as_ref().and_then(|session| session.summary.result.clone());
        let task = ending.session.and_then(|session| session.tasks.into_iter().next());
        let why_not_inside = match (&ran.let_go, ending.no_gap) {
            (Some(why), _) => Some(why.clone()),
            (None, _) if result.as_deref() == Some("cancelled") => Some("the session was cancelled".into()),
            (None, Some(true)) => None,
            (None, Some(false)) => Some("the guest was not frozen all the time".into()),
            (None, None) => Some("the guest did not confirm that it was frozen until the end".into()),
        };
        let command_exit_code = ran.status.as_ref().ok().map(exit_code);
        let failed = result.as_deref() != Some("success") && result.as_deref() != Some("warning");
        let exit_code = match (&ran.status, command_exit_code) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Exit::CommandNotFound as u8,
            (Err(_), _) | (_, None) => Exit::CommandNotExecutable as u8,
            (Ok(_), _) if why_not_inside.is_some() => Exit::NotAtRest as u8,
            (Ok(_), Some(0)) if failed => Exit::QuiesceEndedBadly as u8,
            (Ok(_), Some(code)) => code,
        };
        Verdict {
            vm: vm.into(),
            session: id,
            result,
            command: match &ran.status {
                Ok(status) => describe(*status),
                Err(error) => format!("could not be started: {error}"),
            },
            command_exit_code,
            command_took_us: u64::try_from(ran.took.as_micros()).unwrap_or(u64::MAX),
            inside: ran.status.is_ok() && why_not_inside.is_none(),
            why_not_inside,
            level: task.as_ref().and_then(|task| task.level.clone()),
            level_reasons: task.as_ref().map(|task| task.level_reasons.clone()).unwrap_or_default(),
            freeze_window_us: task.as_ref().and_then(|task| task.freeze_window_us),
            failure: task.as_ref().and_then(|task| task.failure.as_ref()).map(|failure| failure.text.clone()),
            only_command_failed: command_exit_code != Some(0)
                && task.as_ref().and_then(|task| task.failure.as_ref()).is_some_and(|f| f.step == "snapshot"),
            receipt: task.as_ref().and_then(|task| task.receipt.as_ref()).map(session::receipt_text),
            exit_code,
        }
    }

    /// Tells it: to people on stderr, to programs as one document on stdout.
    pub fn tell(&self, screen: &Screen) -> Result<()> {
        if screen.json {
            return screen.json_line(self);
        }
        screen.remark(self.text().trim_end());
        Ok(())
    }

    fn text(&self) -> String {
        let took = units::duration(self.command_took_us);
        let mut text = format!("COMMAND: {} after {took}", one_line(&self.command));
        match (&self.why_not_inside, self.command_exit_code) {
            (_, None) => text.push_str("; the guest was thawed again\n"),
            (None, _) => text.push_str(", inside the quiet moment\n"),
            (Some(why), _) => {
                text.push_str(&format!(", NOT inside the quiet moment: {}; do not trust what it took\n", one_line(why)))
            }
        }
        let mut add = |name: &str, value: &str| text.push_str(&format!("{name}: {}\n", one_line(value)));
        if let Some(window_us) = self.freeze_window_us {
            add("freeze window", &units::duration(window_us));
        }
        if let Some(level) = &self.level {
            add("level", level);
        }
        for reason in &self.level_reasons {
            add("level", reason);
        }
        // That COMMAND failed was said above; to the session it is the snapshot that failed.
        if let Some(failure) = self.failure.as_ref().filter(|_| !self.only_command_failed) {
            add("failure", failure);
        }
        if let Some(receipt) = &self.receipt {
            add("receipt", receipt);
        }
        text
    }
}

/// As a shell gives it: the code, or 128 + the signal's number.
fn exit_code(status: &std::process::ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_api::session::{Session, SessionSummary};
    use std::process::ExitStatus;
    use std::time::Duration;

    fn check(raw_status: Option<i32>, let_go: Option<&str>, no_gap: Option<bool>, result: &str, expect: u8) {
        let status = raw_status.map(ExitStatus::from_raw).ok_or(io::Error::from(io::ErrorKind::NotFound));
        let ran = Ran { status, took: Duration::from_millis(250), let_go: let_go.map(str::to_string), no_gap: None };
        let summary = SessionSummary {
            id: 1,
            kind: "quiesce".into(),
            job: None,
            state: "finished".into(),
            result: Some(result.into()),
            started_at: String::new(),
            ended_at: None,
            vms: vec![],
        };
        let session = Some(Session { summary, tasks: vec![], notes: vec![], last_event: 0 });
        let verdict = Verdict::of("pg", 1, &ran, Ending { session, no_gap });
        assert_eq!(verdict.exit_code, expect, "{verdict:?}");
        assert_eq!(verdict.inside, raw_status.is_some() && expect != 124, "{verdict:?}");
    }

    #[test]
    fn the_exit_code_is_the_commands_only_if_the_guest_was_at_rest() {
        check(Some(0), None, Some(true), "success", 0);
        check(Some(0), None, Some(true), "warning", 0);
        check(Some(3 << 8), None, Some(true), "success", 3);
        check(Some(9), None, Some(true), "success", 137);
        check(Some(0), None, Some(true), "failed", 123);
        check(Some(3 << 8), None, Some(true), "failed", 3);
        check(Some(0), Some("the guest thawed"), Some(true), "success", 124);
        check(Some(3 << 8), Some("the guest thawed"), None, "failed", 124);
        check(Some(0), None, Some(false), "success", 124);
        check(Some(0), None, Some(true), "cancelled", 124);
        check(Some(0), None, None, "success", 124);
        check(None, None, Some(true), "success", 127);
    }
}
