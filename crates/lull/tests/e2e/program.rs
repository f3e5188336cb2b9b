//! Starts programs: the `lull` under test, and the testbed's scripts. Knows nothing of what they do.

use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

/// What a run left.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(self.stdout.trim()).unwrap_or_else(|e| panic!("{e}: no such document: {self:?}"))
    }

    /// Everything that was said, on one line.
    pub fn words(&self) -> String {
        format!("{} {}", self.stdout, self.stderr).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub fn ok(self) -> Outcome {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Outcome {
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A file of the testbed.
pub fn testbed(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testbed").join(name)
}

/// Runs a command of the testbed's, which must succeed; what it printed.
pub fn run(command: &mut Command) -> String {
    let output: Outcome = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}")).into();
    assert_eq!(output.code, 0, "{command:?}: {} {}", output.stdout, output.stderr);
    output.stdout.trim().to_string()
}

/// `lull` with nothing of this machine's settings.
pub fn lull() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lull"));
    for name in ["LULL_SERVER", "LULL_TOKEN_FILE", "LULL_STATE_DIR", "LULL_LISTEN", "LULL_LOG"] {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1");
    command
}

/// Sends a signal to a child that was not waited for, so its id is still its own.
pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap_or_else(|e| panic!("{signal:?}: {e}"));
}

/// Asks `what` again and again until it answers.
pub fn wait_for<T>(seconds: u64, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < until, "{what}: not within {seconds} s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits for a child to end; kills it where it does not.
pub fn wait_for_end(mut child: Child, seconds: u64) -> Outcome {
    let until = Instant::now() + Duration::from_secs(seconds);
    while child.try_wait().expect("a child can be waited for").is_none() {
        if Instant::now() >= until {
            let _ = child.kill();
            let outcome: Outcome = child.wait_with_output().expect("a killed child ends").into();
            panic!("did not end within {seconds} s: {outcome:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().expect("its output can be read").into()
}
