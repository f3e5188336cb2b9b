//! The contract of a guest channel: what one guest session needs of the way into its guest, and no more.
//!
//! Everything runs elevated (root), as a `/bin/sh` script of one line; the channel sees to login, elevation and noise.
//! Knows nothing of SSH, of the runtime component, or of what the scripts do. docs/howto/add-a-guest-channel.md shows how
//! to add one; tests/channel_contract.rs holds every implementation to the same behaviour.

use crate::access::HostKey;
use crate::ssh::HostKeySeen;
use async_trait::async_trait;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// One way into one guest: one connection, used for everything that the task does there.
#[async_trait]
pub trait GuestChannel: Send + Sync {
    /// For people: `SSH root@192.0.2.7:22`.
    fn describe(&self) -> String;

    /// Runs `script` elevated with `stdin` to its end. A script that ends with another exit code than 0 is no error: the
    /// output says so. Errors are those of the way there, of the elevation, and of `limits`.
    async fn exec_elevated(&self, script: &Script, stdin: &[u8], limits: Limits) -> Result<ExecOutput, ChannelError>;

    /// Starts `script` elevated and hands back its streams. When this returns, the elevation has succeeded, every byte
    /// of noise before the script's own output is gone, and stdin is the script's. Dropping the stream ends the script's
    /// stdin and stdout.
    async fn open_elevated(&self, script: &Script) -> Result<ElevatedStream, ChannelError>;

    /// Ends the connection and waits, shortly, until it is gone. Idempotent.
    async fn close(&self);
}

/// A script of one line for `/bin/sh`, and what it is for, in words that an error can use.
#[derive(Debug, Clone)]
pub struct Script {
    /// Completes "could not …": `look for leftovers`.
    pub purpose: &'static str,
    text: String,
}

impl Script {
    /// Characters that some login shell would not pass on unchanged inside single quotes: csh knows `!` and no line
    /// breaks there, fish knows the backslash, all know the quote.
    const FORBIDDEN: [char; 4] = ['\'', '\\', '!', '\n'];

    /// A script from `text`, whose lines are joined by blanks.
    ///
    /// # Panics
    /// On text that a login shell could change: scripts are written in this crate, and their parts that come from
    /// elsewhere are checked where they are put in.
    pub fn new(purpose: &'static str, text: &str) -> Self {
        let text = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        assert!(!text.contains(Self::FORBIDDEN), "the script to {purpose} is not safe under every login shell: {text}");
        Script { purpose, text }
    }

    /// The one line.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// `text` as one word for a script, in double quotes, or nothing where it holds a character that no quoting carries through
/// every login shell.
pub fn shell_word(text: &str) -> Option<String> {
    let unsafe_char = |c: char| Script::FORBIDDEN.contains(&c) || matches!(c, '"' | '$' | '`') || c.is_control();
    (!text.contains(unsafe_char)).then(|| format!("\"{text}\""))
}

/// Bounds of one exec.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the start to the end.
    pub timeout: Duration,
    /// Stdout beyond this is an error.
    pub stdout_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { timeout: Duration::from_secs(30), stdout_bytes_max: 1 << 20 }
    }
}

/// What a script that ran to its end left.
#[derive(Debug, Clone)]
pub struct ExecOutput {
    /// How it ended.
    pub exit: Exit,
    /// Its stdout, from its own first byte on.
    pub stdout: Vec<u8>,
    /// The end of its stderr, and of the noise before it.
    pub stderr: String,
}

/// How a script ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(u32),
    /// By a signal, or by whatever the other side called it.
    Signal(String),
    /// The connection broke before the other side told.
    Lost,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
            Exit::Lost => write!(f, "the connection broke"),
        }
    }
}

/// The streams of a script that runs.
pub struct ElevatedStream {
    /// Its stdout; ends with the script or the connection.
    pub reader: Box<dyn AsyncRead + Send + Sync + Unpin>,
    /// Its stdin.
    pub writer: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// The end of its stderr so far.
    pub stderr: Tail,
}

impl fmt::Debug for ElevatedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ElevatedStream").field("stderr", &self.stderr.text()).finish_non_exhaustive()
    }
}

/// The last bytes of a text stream; cheap to clone, all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    /// So much is kept, in bytes.
    pub const BYTES_MAX: usize = 4096;

    /// Appends, dropping from the front.
    pub fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        tail.extend_from_slice(bytes);
        let surplus = tail.len().saturating_sub(Self::BYTES_MAX);
        tail.drain(..surplus);
    }

    /// What is kept, as text on one line: control characters become blanks.
    pub fn text(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let text = String::from_utf8_lossy(&tail).replace(|c: char| c.is_control(), " ");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Where on the way into a guest something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hop {
    /// The name of the guest.
    Name,
    /// The network between.
    Route,
    /// The port on the guest.
    Port,
    /// The handshake of the channel's protocol.
    Handshake,
    /// The guest's proof of who it is.
    HostKey,
    /// The login.
    Login,
    /// Becoming root.
    Elevation,
    /// Running something.
    Exec,
    /// Putting the runtime component there.
    Deploy,
    /// Talking to the runtime component.
    Runtime,
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hop::Name => "name",
            Hop::Route => "route",
            Hop::Port => "port",
            Hop::Handshake => "handshake",
            Hop::HostKey => "host key",
            Hop::Login => "login",
            Hop::Elevation => "elevation",
            Hop::Exec => "exec",
            Hop::Deploy => "deployment",
            Hop::Runtime => "runtime component",
        })
    }
}

/// What a failure means for what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// This credential is refused by this guest: final, no retry, no other proxy.
    Refused,
    /// A secret was sent, and the guest's answer never came: no retry either, since it may have been a refusal. The guest may
    /// as well have let us in.
    Unknown,
    /// The guest is not who it was: final until a person accepts it.
    HostKey,
    /// Not reached: again, or from another proxy.
    Unreachable,
    /// Reached, but something in the guest is in the way.
    GuestSide,
    /// A newer task holds the guest: nothing more may be done there.
    Evicted,
}

impl FailureKind {
    /// Whether this credential must not be sent to this guest again: another attempt could lock the account.
    pub fn ends_attempts(self) -> bool {
        matches!(self, FailureKind::Refused | FailureKind::Unknown)
    }
}

/// Why a guest could not be reached or used: the hop, the cause, the remedy.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{hop}: {what}")]
pub struct ChannelError {
    /// Where.
    pub hop: Hop,
    /// What follows from it.
    pub kind: FailureKind,
    /// One sentence: what failed, on what, why.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// The host key that was shown and refused: a person may accept it later.
    pub refused_key: Option<Box<HostKey>>,
    /// The host key that was accepted before this went wrong: a first contact pins it, whatever became of the login.
    pub accepted_key: Option<Box<HostKeySeen>>,
}

impl ChannelError {
    /// All of it.
    pub fn new(hop: Hop, kind: FailureKind, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        ChannelError { hop, kind, what: what.into(), remedy: remedy.into(), refused_key: None, accepted_key: None }
    }
}

/// A random word of 16 hexadecimal digits: for sentinels and directory names.
pub fn nonce() -> String {
    format!("{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_one_line_that_no_login_shell_changes() {
        assert_eq!(Script::new("test", "a=1;\n   echo $a").text(), "a=1; echo $a");
    }

    #[test]
    #[should_panic(expected = "not safe under every login shell")]
    fn a_quote_in_a_script_is_caught() {
        Script::new("test", "echo it's");
    }

    #[test]
    fn only_what_every_shell_carries_becomes_a_word() {
        assert_eq!(shell_word("/srv/data 1").as_deref(), Some("\"/srv/data 1\""));
        for bad in ["a\"b", "$(x)", "`x`", "a'b", "a!b", "a\\b", "a\nb"] {
            assert_eq!(shell_word(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_tail_keeps_the_end() {
        let tail = Tail::default();
        tail.push(&vec![b'a'; 5000]);
        tail.push(b"\r\nlast line\n");
        assert!(tail.text().ends_with("a last line"));
        assert!(tail.text().len() <= Tail::BYTES_MAX);
    }
}
