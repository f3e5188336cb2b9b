//! Runs a program of the backup server's folder `commands/` with a session's report on its standard input.
//!
//! It is named, never given as a path or a command line, and must be beyond the reach of anybody but root and the server's
//! own account. Bounded in time; whatever it started ends with it.

use crate::server::Server;
use lull_api::notify::SessionReport;
use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// The folder, below the state folder.
const FOLDER: &str = "commands";
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// So much of its output is kept, from the end.
const TAIL_BYTES_MAX: usize = 8 << 10;
/// What a program left behind may hold its output open; what is said after its end is waited for so long.
const LAST_WORDS: Duration = Duration::from_millis(500);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program of this name, if it may be run.
///
/// # Errors
/// Why not, and what to do.
pub fn checked(state_dir: &Path, name: &str) -> Result<PathBuf, String> {
    let is_name = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.');
    if !is_name || name.contains(['/', '\\', '\0']) {
        return Err(
            "name a program in the backup server's folder commands, without a path and without arguments".into()
        );
    }
    let folder = state_dir.join(FOLDER);
    trusted(&folder, |meta| meta.is_dir(), "a folder")?;
    let program = folder.join(name);
    trusted(&program, |meta| meta.is_file(), "a file of its own")?;
    let mode = program.symlink_metadata().map_err(|error| unreadable(&program, &error))?.permissions().mode();
    if mode & 0o111 == 0 {
        return Err(format!("{} is not executable: chmod u+x it", program.display()));
    }
    Ok(program)
}

fn trusted(path: &Path, is_kind: impl Fn(&std::fs::Metadata) -> bool, kind: &str) -> Result<(), String> {
    let shown = path.display();
    // Not followed: where a link leads, others may write.
    let meta = path.symlink_metadata().map_err(|error| unreadable(path, &error))?;
    if !is_kind(&meta) {
        return Err(format!("{shown} is not {kind}"));
    }
    if meta.uid() != 0 && meta.uid() != geteuid().as_raw() {
        return Err(format!("{shown} belongs to another user: chown it to root or to the server's account"));
    }
    if meta.permissions().mode() & 0o022 != 0 {
        return Err(format!("{shown} can be written to by others: chmod go-w it"));
    }
    Ok(())
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("{} is not there", path.display()),
        _ => format!("{} cannot be looked at: {error}", path.display()),
    }
}

/// Runs it: how it ended with its output, or why it counts as failed.
pub async fn run(server: &Server, name: &str, report: &SessionReport) -> Result<String, String> {
    let program = checked(&server.state_dir, name)?;
    let body = serde_json::to_vec(report).map_err(|error| error.to_string())?;
    let mut command = Command::new(&program);
    command.env_clear().env("PATH", PATH).env("LULL_JOB", &report.job).env("LULL_RESULT", &report.result);
    command.env("LULL_SESSION", report.session.to_string()).current_dir("/");
    let not_started = |error: io::Error| format!("it could not be started: {error}");
    let (said, output) = one_pipe().map_err(not_started)?;
    command.stdout(output.try_clone().map_err(not_started)?).stderr(output);
    command.stdin(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(not_started)?;
    // It holds our copies of the pipe's end.
    drop(command);
    let _group = Group(child.id());
    let limit = Duration::from_millis(server.notify.command_ms);
    let tail = Tail::default();
    let ended = tokio::time::timeout(limit, to_its_end(&mut child, &body, said, &tail)).await;
    let output = tail.shown();
    match ended {
        Err(_) => Err(format!("it did not end within {} ms and was killed{output}", limit.as_millis())),
        Ok(Err(error)) => Err(format!("it could not be waited for: {error}{output}")),
        Ok(Ok(status)) if status.success() => Ok(format!("exit code 0{output}")),
        Ok(Ok(status)) => Err(format!("it ended with {status}{output}")),
    }
}

/// Whatever it started ends with it, also where we are dropped in the middle.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // A group that is gone already is what we want.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// One for both outputs: what was said last comes last.
fn one_pipe() -> io::Result<(pipe::Receiver, io::PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    Ok((pipe::Receiver::from_owned_fd(reader.into())?, writer))
}

async fn to_its_end(child: &mut Child, body: &[u8], said: pipe::Receiver, tail: &Tail) -> io::Result<ExitStatus> {
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read it all has read enough.
            let _ = stdin.write_all(body).await;
        }
    };
    let talk = async {
        tokio::join!(feed, tail.hear(said));
    };
    tokio::pin!(talk);
    let mut all_heard = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            () = &mut talk, if !all_heard => all_heard = true,
        }
    };
    if !all_heard {
        let _ = tokio::time::timeout(LAST_WORDS, talk).await;
    }
    Ok(status)
}

/// The end of what a program said.
#[derive(Default)]
struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    async fn hear(&self, mut from: pipe::Receiver) {
        let mut block = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut block).await {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&block[..n]);
            let surplus = kept.len().saturating_sub(TAIL_BYTES_MAX);
            kept.drain(..surplus);
        }
    }

    /// As the end of a sentence; nothing where nothing was said.
    fn shown(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = |c: char| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c };
        let text: String = String::from_utf8_lossy(&kept).trim_end().chars().map(keep).collect();
        if text.is_empty() { text } else { format!("; its output:\n{text}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn only_a_program_that_nobody_else_can_change_is_run() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |name: &str, says: &str| {
            let why = checked(dir.path(), name).unwrap_err();
            assert!(why.contains(says), "{name}: {why}");
        };
        refused("tell", "commands is not there");
        let folder = dir.path().join(FOLDER);
        std::fs::create_dir(&folder).unwrap();
        mode(&folder, 0o755);
        refused("tell", "tell is not there");
        let program = folder.join("tell");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        mode(&program, 0o644);
        refused("tell", "is not executable");
        mode(&program, 0o755);
        assert_eq!(checked(dir.path(), "tell").unwrap(), program);
        mode(&program, 0o775);
        refused("tell", "can be written to by others");
        mode(&program, 0o755);
        mode(&folder, 0o777);
        refused("tell", "commands can be written to by others");
        mode(&folder, 0o755);
        std::os::unix::fs::symlink("/bin/true", folder.join("link")).unwrap();
        refused("link", "is not a file of its own");
        for name in ["", ".", "..", "../tell", "/bin/true", "tell x/y", "a\\b", ".hidden", &"x".repeat(65)] {
            refused(name, "without a path");
        }
    }
}
