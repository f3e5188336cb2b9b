//! The pre-freeze and the post-thaw script: run by the component, output kept, the exit code decides.
//!
//! Knows what a script's failure means for the task; nothing of how a script is run.

use super::GuestSession;
use crate::failure::{self, Stop};
use crate::runtime_client::CallError;
use lull_engine::failover::FailureClass;
use lull_engine::session::Hop;
use lull_engine::settings::{GuestProcessing, ScriptMode};
use lull_engine::timeline::Step;
use lull_guest_wire::{Answer, Command, ScriptEnd, ScriptOrder, ScriptResult, ScriptStage};
use std::time::Duration;

/// A script that is ended gets some seconds from the component; so long we wait beyond its time.
const SCRIPT_GRACE: Duration = Duration::from_secs(15);
/// So much of a script's output goes into the session, in characters.
const SCRIPT_OUTPUT_CHARS_MAX: usize = 8_192;

impl GuestSession<'_> {
    /// Runs one of the two scripts. A failure is an error or a warning, as the settings say. Only the pre-freeze script can
    /// be cancelled.
    pub async fn script(&mut self, stage: ScriptStage, settings: &GuestProcessing) -> Result<String, Stop> {
        let scripts = &settings.scripts.linux;
        let (step, name, body) = match stage {
            ScriptStage::PreFreeze => (Step::PreScript, "pre-freeze script", &scripts.pre),
            ScriptStage::PostThaw => (Step::PostScript, "post-thaw script", &scripts.post),
        };
        let Some(body) = body else { return Ok("none".into()) };
        let order = ScriptOrder {
            stage,
            body: body.clone().into_bytes(),
            timeout_ms: scripts.timeout_ms,
            environment: vec![("LULL_VM".into(), self.vm_name.clone())],
        };
        let limit = Duration::from_millis(scripts.timeout_ms) + SCRIPT_GRACE;
        let cancel = self.cancel.clone();
        self.settle().await;
        let client = self.client(step)?;
        let failed = |e: &CallError| failure::of_call(step, &format!("the {name} did not run to its end"), e);
        let id = match client.send(Command::Script(order)).await {
            Ok(id) => id,
            Err(e) => return Err(self.give_up(&e, failed(&e))),
        };
        let client = self.client(step)?;
        let first = tokio::select! {
            answer = client.answer_within(id, limit) => Some(answer),
            () = cancel.cancelled(), if stage == ScriptStage::PreFreeze => None,
        };
        let (answer, cancelled) = match first {
            Some(answer) => (answer, false),
            None => {
                let sent = client.send(Command::CancelScript).await;
                let answer = match sent {
                    Ok(_) => client.answer_within(id, SCRIPT_GRACE).await,
                    Err(e) => Err(e),
                };
                (answer, true)
            }
        };
        let answer = answer.map_err(|e| self.give_up(&e, failed(&e)))?;
        let Answer::Script(result) = answer else { return Err(self.wrong(step, &answer)) };
        self.tell_output(name, &result);
        if cancelled {
            return Err(cancel.stop());
        }
        let took = format!("in {} ms", result.took_ms);
        let how = match result.end {
            ScriptEnd::Exited(0) => return Ok(format!("exit code 0 {took}")),
            ScriptEnd::Exited(code) => format!("the {name} ended with exit code {code} {took}"),
            ScriptEnd::Signalled(signal) => format!("the {name} was killed by signal {signal} {took}"),
            ScriptEnd::TimedOut => {
                format!("the {name} took longer than {} s and was killed", scripts.timeout_ms.div_ceil(1_000))
            }
            ScriptEnd::Cancelled => format!("the {name} was killed {took}"),
        };
        let last = last_line(&result.output);
        let how = if last.is_empty() { how } else { format!("{how}; its last words: {last}") };
        if scripts.mode == ScriptMode::IgnoreFailures {
            self.reporter.warning(&how);
            return Ok(how);
        }
        let remedy = "see its output in the session, and run it by hand in the guest";
        Err(failure::of(step, Hop::Script, FailureClass::Script, how, remedy).into())
    }

    fn tell_output(&self, name: &str, result: &ScriptResult) {
        if result.output.is_empty() {
            return;
        }
        let text = printable(&result.output);
        let skipped = text.chars().count().saturating_sub(SCRIPT_OUTPUT_CHARS_MAX);
        let text: String = text.chars().skip(skipped).collect();
        let dropped = match result.dropped_bytes as usize + skipped {
            0 => String::new(),
            n => format!(" (the first {n} bytes left out)"),
        };
        self.reporter.info(format!("output of the {name}{dropped}:\n{text}"));
    }
}

/// What a terminal can show: invalid and control characters become signs.
fn printable(bytes: &[u8]) -> String {
    let keep = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
    String::from_utf8_lossy(bytes).chars().map(keep).collect()
}

fn last_line(output: &[u8]) -> String {
    let text = printable(output);
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_that_is_no_text_does_no_harm() {
        assert_eq!(printable(b"ok\x1b[2J\xff\n"), "ok\u{fffd}[2J\u{fffd}\n");
        assert_eq!(last_line(b"first\nlast words\n\n"), "last words");
    }
}
