//! Starts the real binary.

use crate::fake::Fake;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// `lull` with nothing of this machine's settings, talking to the fake.
pub fn lull(fake: &Fake) -> Command {
    let mut command = bare();
    command.env("LULL_SERVER", &fake.url).env("LULL_TOKEN_FILE", &fake.token_file);
    command
}

/// `lull` with nothing of this machine's settings.
pub fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lull"));
    for name in ["LULL_SERVER", "LULL_TOKEN_FILE", "LULL_STATE_DIR", "NO_COLOR"] {
        command.env_remove(name);
    }
    command.env("TZ", "UTC").stdin(Stdio::null());
    command
}

/// What a run left.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Outcome {
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs `lull` with these arguments to its end.
pub fn run(fake: &Fake, args: &[&str]) -> Outcome {
    lull(fake).args(args).output().unwrap().into()
}

/// The one JSON document on a text's only line.
pub fn document(text: &str) -> serde_json::Value {
    assert_eq!(text.lines().count(), 1, "one document on one line: {text:?}");
    serde_json::from_str(text).unwrap()
}

/// Runs `lull` on a terminal of its own, and answers its question, which comes after the call was made so many times.
pub fn answer_on_a_terminal(fake: &Fake, arguments: &str, answer: &str, (call, times): (&str, usize)) -> Outcome {
    let mut command = Command::new("script");
    let line = format!("{} {arguments}", env!("CARGO_BIN_EXE_lull"));
    command.args(["-qec", &line, "/dev/null"]).env("LULL_SERVER", &fake.url).env("LULL_TOKEN_FILE", &fake.token_file);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    fake.script.wait_for(call, times);
    std::thread::sleep(Duration::from_millis(500));
    writeln!(keyboard, "{answer}").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    drop(keyboard);
    child.wait_with_output().unwrap().into()
}
