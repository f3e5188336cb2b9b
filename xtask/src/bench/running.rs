//! Processes that end with us: each in a process group of its own, which is ended when the value is dropped.
//!
//! Ctrl-C on a terminal then reaches this program alone, which ends the others in their order. Knows nothing of what runs.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

/// Lines of a failed command's words that are repeated.
const TAIL_LINES: usize = 12;
/// How long a script may take to end when asked to.
const SCRIPT_GRACE: Duration = Duration::from_secs(5);

/// A process of ours, and its group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    grace: Duration,
}

impl Running {
    /// Starts `command`. Dropping the value asks its group to end (SIGTERM), waits at most `grace`, and insists.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(command: &mut Command, what: &str, grace: Duration) -> Result<Running> {
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {what} ({:?})", command.as_std().get_program()))?;
        Ok(Running { child, what: what.to_string(), grace })
    }

    /// Fails when the process has ended, with the last lines of its `log`.
    ///
    /// # Errors
    /// When it has ended, or nobody can tell.
    pub fn still_runs(&mut self, log: &Path) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("looking after {}", self.what))? {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status}): {}", self.what, tail_of_file(log)),
        }
    }

    /// Its process, while it was not waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Until it ends.
    ///
    /// # Errors
    /// When nobody can tell how it ended.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        self.child.wait().await.with_context(|| format!("waiting for {}", self.what))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A process that was waited for has no id any more; its group is left alone, as the number may be used again.
        let Some(group) = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) else { return };
        let _ = kill_process_group(group, Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < self.grace {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Runs a script to its end and returns what it printed on standard output.
///
/// # Errors
/// When it cannot be started, or ends with another exit code than 0: with the last lines of what it said.
pub async fn output(command: &mut Command, what: &str) -> Result<String> {
    let (status, out, err) = captured(command, what).await?;
    if !status.success() {
        bail!("{what}: {status}: {}", tail(&format!("{err}{out}")));
    }
    Ok(out)
}

/// Runs a script to its end: how it ended, its standard output, its standard error.
///
/// # Errors
/// When it cannot be started or read from.
pub async fn captured(command: &mut Command, what: &str) -> Result<(ExitStatus, String, String)> {
    let mut running = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()), what, SCRIPT_GRACE)?;
    let (out, err) = (running.child.stdout.take(), running.child.stderr.take());
    let (out, err) = tokio::join!(read(out), read(err));
    let status = running.wait().await?;
    Ok((
        status,
        out.with_context(|| format!("reading what {what} prints"))?,
        err.with_context(|| format!("reading what {what} says"))?,
    ))
}

async fn read(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a file, or why it cannot be read.
pub fn tail_of_file(file: &Path) -> String {
    match std::fs::read(file) {
        Ok(bytes) => tail(&String::from_utf8_lossy(&bytes)),
        Err(error) => format!("({} cannot be read: {error})", file.display()),
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failed_script_is_reported_with_its_last_words() {
        let error =
            output(Command::new("sh").args(["-c", "seq 100; echo why >&2; exit 3"]), "the script").await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("the script: exit status: 3: "), "{text}");
        assert!(text.ends_with("\n100") && !text.contains("\n50\n"), "{text}");
    }

    #[tokio::test]
    async fn what_a_script_started_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! >{0}.new; mv {0}.new {0}; wait", file.display());
        let running =
            Running::start(Command::new("sh").args(["-c", &script]), "the script", Duration::from_secs(5)).unwrap();
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let sleeper = std::fs::read_to_string(&file).unwrap();
        drop(running);
        let stat = format!("/proc/{}/stat", sleeper.trim());
        for _ in 0..500 {
            let state = std::fs::read_to_string(&stat).unwrap_or_default();
            // A zombie that waits for init to collect it has ended, too. On a busy machine that takes a moment.
            if state.is_empty() || state.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the sleeper lives on");
    }
}
