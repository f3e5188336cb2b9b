//! A QMP client over a Unix socket.
//!
//! Every command carries an id, answers are matched by it, events arrive between answers and go to whoever subscribed.
//! A lost connection, an answer that never comes, a refused command and a socket that somebody else holds are four
//! different errors, because they need four different remedies. Lines are bounded.
//!
//! Knows nothing of backups, and never reconnects by itself.

mod message;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use message::{Incoming, command_line, parse};
pub use message::{QemuVersion, QmpEvent};

/// How long things may take and how large they may be.
#[derive(Debug, Clone, Copy)]
pub struct QmpLimits {
    /// Time for the greeting after the socket accepted, in ms; past it the socket counts as held by somebody else.
    pub greeting_ms: u64,
    /// Time for an ordinary command's answer, in ms.
    pub command_ms: u64,
    /// Longest line accepted, in bytes. (`query-named-block-nodes` of a VM with many disks takes some 100 KB.)
    pub line_bytes_max: usize,
}

impl Default for QmpLimits {
    fn default() -> Self {
        QmpLimits { greeting_ms: 5_000, command_ms: 30_000, line_bytes_max: 16 << 20 }
    }
}

/// Why a command has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// The socket does not exist or nobody listens: no such VM, or it is off.
    #[error("the QMP socket {} cannot be reached ({cause})", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        cause: String,
    },
    /// The socket accepts but QEMU does not greet: it serves one client at a time, and that is somebody else.
    #[error("the QMP socket {} accepted but gave no greeting within {waited_ms} ms: somebody else is connected to it, or the VM's process hangs", path.display())]
    Busy {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        waited_ms: u64,
    },
    /// The connection broke; whether the command was executed is unknown.
    #[error("the QMP connection was lost during {command} ({cause})")]
    Gone {
        /// The command without an answer.
        command: String,
        /// How it broke.
        cause: String,
    },
    /// QEMU answered with an error; the command did nothing.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class, for instance `GenericError`, `DeviceNotFound`, `CommandNotFound`.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// No answer in time; the command may still be executed later.
    #[error("QEMU did not answer {command} within {waited_ms} ms")]
    Timeout {
        /// The command.
        command: String,
        /// How long we waited.
        waited_ms: u64,
    },
    /// The peer does not speak QMP (any more); the connection was closed.
    #[error("the peer broke the QMP protocol during {command}: {cause}")]
    Protocol {
        /// The command without an answer.
        command: String,
        /// What it sent.
        cause: String,
    },
}

/// A command and its arguments (`Value::Null`: none).
pub type Command = (&'static str, Value);

type Answer = Result<Value, QmpError>;

/// How a connection ended, kept for commands that come after.
#[derive(Debug, Clone)]
enum Ended {
    Gone(String),
    Protocol(String),
}

impl Ended {
    fn error(&self, command: &str) -> QmpError {
        let command = command.to_owned();
        match self.clone() {
            Ended::Gone(cause) => QmpError::Gone { command, cause },
            Ended::Protocol(cause) => QmpError::Protocol { command, cause },
        }
    }
}

#[derive(Default)]
struct State {
    pending: HashMap<u64, (&'static str, oneshot::Sender<Answer>)>,
    ended: Option<Ended>,
}

struct Shared {
    state: Mutex<State>,
    stopped_seen: AtomicBool,
    events: broadcast::Sender<QmpEvent>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the map usable: entries are inserted and removed whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, ended: Ended) {
        let mut state = self.state();
        for (_, (command, answer)) in state.pending.drain() {
            let _ = answer.send(Err(ended.error(command)));
        }
        state.ended.get_or_insert(ended);
    }

    fn take_in(&self, incoming: Incoming) -> Result<(), String> {
        let (id, answer) = match incoming {
            Incoming::Event(event) => {
                match event.name.as_str() {
                    "STOP" => self.stopped_seen.store(true, Ordering::Release),
                    "RESUME" => self.stopped_seen.store(false, Ordering::Release),
                    _ => {}
                }
                // No subscriber is fine: events are read for their own sake only while a copy runs.
                let _ = self.events.send(event);
                return Ok(());
            }
            Incoming::Greeting(_) => return Err("a second greeting".into()),
            Incoming::Return { id, value } => (id, Ok(value)),
            Incoming::Error { id: None, class, desc } => return Err(format!("{class}: {desc}")),
            Incoming::Error { id: Some(id), class, desc } => (id, Err((class, desc))),
        };
        // An unknown id is the late answer to a command whose caller gave up.
        if let Some((command, sender)) = self.state().pending.remove(&id) {
            let answer = answer.map_err(|(class, desc)| QmpError::Refused { command: command.to_owned(), class, desc });
            let _ = sender.send(answer);
        }
        Ok(())
    }
}

/// A connection to one VM's QMP socket. Dropping it closes the connection.
pub struct QmpClient {
    shared: Arc<Shared>,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    reader: JoinHandle<()>,
    next_id: AtomicU64,
    limits: QmpLimits,
    version: QemuVersion,
}

impl QmpClient {
    /// Connects, waits for the greeting and leaves capabilities mode.
    ///
    /// # Errors
    /// [`QmpError::Unreachable`], [`QmpError::Busy`], or whatever ends the negotiation.
    pub async fn connect(path: &Path, limits: QmpLimits) -> Result<QmpClient, QmpError> {
        let unreachable =
            |e: std::io::Error| QmpError::Unreachable { path: path.to_owned(), cause: e.kind().to_string() };
        let busy = || QmpError::Busy { path: path.to_owned(), waited_ms: limits.greeting_ms };
        let greeting_time = Duration::from_millis(limits.greeting_ms);
        // A full backlog makes even connect() wait: also a sign that somebody else is served.
        let stream =
            timeout(greeting_time, UnixStream::connect(path)).await.map_err(|_| busy())?.map_err(unreachable)?;
        let (read, write) = stream.into_split();
        let mut lines = Lines { reader: BufReader::new(read), line: Vec::new(), line_bytes_max: limits.line_bytes_max };
        let greeted = timeout(greeting_time, greeting(&mut lines)).await.map_err(|_| busy())?;
        let version = greeted.map_err(|ended| ended.error("greeting"))?;
        let (events, _) = broadcast::channel(1024);
        let shared = Arc::new(Shared { state: Mutex::default(), stopped_seen: AtomicBool::new(false), events });
        let reader = tokio::spawn(read_all(lines, shared.clone()));
        let client = QmpClient {
            shared,
            writer: tokio::sync::Mutex::new(write),
            reader,
            // The answer to an earlier client's command may still reach us; it must match none of ours.
            next_id: AtomicU64::new(u64::from(rand::random::<u32>()) << 20),
            limits,
            version,
        };
        client.execute("qmp_capabilities", Value::Null).await?;
        Ok(client)
    }

    /// The version QEMU greeted with.
    pub fn version(&self) -> QemuVersion {
        self.version
    }

    /// All events from now on.
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.shared.events.subscribe()
    }

    /// Whether the last STOP or RESUME event on this connection was a STOP.
    pub fn stopped_seen(&self) -> bool {
        self.shared.stopped_seen.load(Ordering::Acquire)
    }

    /// Whether the connection has ended.
    pub fn is_gone(&self) -> bool {
        self.shared.state().ended.is_some()
    }

    /// Closes the connection, so that QEMU serves the next client. Commands under way end as [`QmpError::Gone`].
    pub async fn close(&self) {
        self.shared.end(Ended::Gone("closed by this program".into()));
        // Already broken is as good as closed.
        let _ = self.writer.lock().await.shutdown().await;
    }

    /// Executes one command within the ordinary time limit.
    ///
    /// # Errors
    /// [`QmpError::Refused`] if QEMU said no; [`QmpError::Timeout`], [`QmpError::Gone`] or [`QmpError::Protocol`] if it is
    /// unknown whether it was executed.
    pub async fn execute(&self, command: &'static str, arguments: Value) -> Answer {
        let mut answers = self.pipeline(&[(command, arguments)], self.limits.command_ms).await;
        // One command, one answer: pipeline returns as many answers as it was given commands.
        answers.pop().unwrap_or_else(|| Err(Ended::Gone("no answer".into()).error(command)))
    }

    /// Sends all commands in one write and then awaits all answers, in the commands' order. QEMU executes them in order, each
    /// whatever became of the one before.
    pub async fn pipeline(&self, commands: &[Command], within_ms: u64) -> Vec<Answer> {
        let mut bytes = Vec::new();
        let mut waiting = Vec::with_capacity(commands.len());
        for (command, arguments) in commands {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            bytes.extend_from_slice(&command_line(id, command, arguments));
            let (sender, receiver) = oneshot::channel();
            let mut state = self.shared.state();
            if let Some(ended) = &state.ended {
                // The receiver is ours and alive.
                let _ = sender.send(Err(ended.error(command)));
            } else {
                state.pending.insert(id, (command, sender));
            }
            waiting.push((*command, Registered { id, shared: &self.shared }, receiver));
        }
        let deadline = tokio::time::Instant::now() + Duration::from_millis(within_ms);
        let written =
            tokio::time::timeout_at(deadline, async { self.writer.lock().await.write_all(&bytes).await }).await;
        if let Ok(Err(error)) = written {
            self.shared.end(Ended::Gone(error.kind().to_string()));
        }
        let mut answers = Vec::with_capacity(commands.len());
        for (command, _registered, receiver) in waiting {
            answers.push(match tokio::time::timeout_at(deadline, receiver).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(Ended::Gone("the client was closed".into()).error(command)),
                Err(_) => Err(QmpError::Timeout { command: command.to_owned(), waited_ms: within_ms }),
            });
        }
        answers
    }
}

impl Drop for QmpClient {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Forgets a command whose caller gave up, however it did.
struct Registered<'a> {
    id: u64,
    shared: &'a Shared,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.shared.state().pending.remove(&self.id);
    }
}

/// The version in the greeting. QEMU sends whoever is connected what it had yet to say to the client before, and that can
/// come first: answers with an id and events are passed over.
async fn greeting<R: AsyncRead + Unpin>(lines: &mut Lines<R>) -> Result<QemuVersion, Ended> {
    loop {
        match parse(lines.next().await?).map_err(Ended::Protocol)? {
            Incoming::Greeting(version) => return Ok(version),
            Incoming::Event(_) | Incoming::Return { .. } | Incoming::Error { id: Some(_), .. } => {}
            Incoming::Error { id: None, class, desc } => return Err(Ended::Protocol(format!("{class}: {desc}"))),
        }
    }
}

async fn read_all<R: AsyncRead + Unpin>(mut lines: Lines<R>, shared: Arc<Shared>) {
    let ended = loop {
        match lines.next().await {
            Ok(line) if line.iter().all(u8::is_ascii_whitespace) => {}
            Ok(line) => {
                if let Err(cause) = parse(line).and_then(|incoming| shared.take_in(incoming)) {
                    break Ended::Protocol(cause);
                }
            }
            Err(ended) => break ended,
        }
    };
    shared.end(ended);
}

/// Lines of bounded length.
struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    line_bytes_max: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    async fn next(&mut self) -> Result<&[u8], Ended> {
        self.line.clear();
        loop {
            let chunk = self.reader.fill_buf().await.map_err(|e| Ended::Gone(e.kind().to_string()))?;
            if chunk.is_empty() {
                return Err(Ended::Gone("the peer closed it".into()));
            }
            let (taken, whole) = match chunk.iter().position(|b| *b == b'\n') {
                Some(at) => (at + 1, true),
                None => (chunk.len(), false),
            };
            if self.line.len() + taken > self.line_bytes_max {
                return Err(Ended::Protocol(format!("a line longer than {} bytes", self.line_bytes_max)));
            }
            self.line.extend_from_slice(&chunk[..taken]);
            self.reader.consume(taken);
            if whole {
                return Ok(&self.line);
            }
        }
    }
}

#[cfg(test)]
mod tests;
