//! Running one elevated script over an SSH connection: session, command, elevation, streams.
//!
//! One task per script moves its output, so that a reader that is slow or gone never stops the connection's other
//! sessions. Knows nothing of what runs.

use super::PasswordSent;
use super::connect::Handler;
use super::elevate::{self, Action, Elevator};
use crate::access::GuestAccess;
use crate::channel::{ChannelError, ElevatedStream, Exit, FailureKind, Hop, Script, Tail, nonce};
use bytes::Bytes;
use russh::client::{Handle, Msg};
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use secrecy::ExposeSecret;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;

const OPEN_LIMIT: Duration = Duration::from_secs(60);
const SESSION_TRIES_MAX: u32 = 5;
const SESSION_PAUSE: Duration = Duration::from_millis(100);
const ELEVATION_LIMIT: Duration = Duration::from_secs(60);
/// Stderr, as RFC 4254 numbers it.
const STDERR: u32 = 1;
/// Blocks of output (of up to 32 KiB) that may wait for a slow reader.
const BLOCKS_WAITING_MAX: usize = 32;

/// A script that runs as root.
pub(super) struct Running {
    pub stream: ElevatedStream,
    /// How it ends; lost with the connection.
    pub exit: oneshot::Receiver<Exit>,
    /// Ends its stdin.
    pub eof: oneshot::Sender<()>,
}

/// What every script over one connection goes by.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub handle: &'a Handle<Handler>,
    pub access: &'a GuestAccess,
    pub password: &'a PasswordSent,
}

/// Starts `script` and becomes root; see the contract in [`crate::channel::GuestChannel::open_elevated`].
pub(super) async fn start(
    Way { handle, access, password }: Way<'_>,
    guest: &str,
    script: &Script,
) -> Result<Running, ChannelError> {
    if password.unanswered() {
        return Err(elevate::unanswered(&access.user, guest));
    }
    let accepted = password.accepted();
    let channel = open_session(handle, guest, script).await?;
    let (mut output, input) = channel.split();
    let stderr = Tail::default();
    let nonce = nonce();
    let mut elevator = Elevator::new(&access.user, &access.elevation, &nonce, stderr.clone()).accepted_before(accepted);
    let command = elevator.command(&nonce, script);
    input.exec(true, command).await.map_err(|e| broken(guest, script, &e.to_string()))?;

    let elevation = become_root(&mut elevator, &mut output, &input, password, guest, script);
    let begun = match timeout(ELEVATION_LIMIT, elevation).await {
        Ok(Ok(begun)) => {
            password.is_accepted();
            begun
        }
        failed => {
            // Hang up first: whoever waits for another password gets none.
            let _ = input.close().await;
            return Err(match failed {
                Ok(Err(error)) => error,
                _ => elevator.timed_out(guest, ELEVATION_LIMIT.as_secs()),
            });
        }
    };
    let (blocks, reader) = mpsc::channel(BLOCKS_WAITING_MAX);
    let (exit_sender, exit) = oneshot::channel();
    let (eof, eof_receiver) = oneshot::channel();
    let writer = Box::new(input.make_writer());
    let tail = stderr.clone();
    tokio::spawn(async move {
        let exit = pump(output, input, begun, blocks, eof_receiver, tail).await;
        let _ = exit_sender.send(exit);
    });
    let reader = Box::new(StreamReader::new(ReceiverStream::new(reader)));
    Ok(Running { stream: ElevatedStream { reader, writer, stderr }, exit, eof })
}

/// Opens a session. A guest that allows one at a time (MaxSessions 1) frees the last one a moment after it ended.
async fn open_session(
    handle: &Handle<Handler>,
    guest: &str,
    script: &Script,
) -> Result<russh::Channel<Msg>, ChannelError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match timeout(OPEN_LIMIT, handle.channel_open_session()).await {
            Ok(Ok(channel)) => return Ok(channel),
            Ok(Err(russh::Error::ChannelOpenFailure(_))) if tries < SESSION_TRIES_MAX => {
                tokio::time::sleep(SESSION_PAUSE).await;
            }
            Ok(Err(russh::Error::ChannelOpenFailure(why))) => {
                return Err(ChannelError::new(
                    Hop::Exec,
                    FailureKind::GuestSide,
                    format!("{guest} refuses a session to {}: {why:?}", script.purpose),
                    "allow at least one session per connection (MaxSessions in the guest's sshd)",
                ));
            }
            Ok(Err(e)) => return Err(broken(guest, script, &e.to_string())),
            Err(_) => return Err(broken(guest, script, "it did not answer in time")),
        }
    }
}

/// What was heard of a script until its first bytes came.
struct Begun {
    /// Its first bytes of stdout, possibly none.
    first: Vec<u8>,
    /// How it ended: OpenSSH tells as soon as it knows, and sends output that still waits after that.
    exit: Exit,
}

/// Reads until the script itself speaks.
async fn become_root(
    elevator: &mut Elevator,
    output: &mut ChannelReadHalf,
    input: &ChannelWriteHalf<Msg>,
    sent: &PasswordSent,
    guest: &str,
    script: &Script,
) -> Result<Begun, ChannelError> {
    let mut exit = Exit::Lost;
    loop {
        let action = match output.wait().await {
            Some(ChannelMsg::Data { data }) => elevator.stdout(&data),
            Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => elevator.stderr(&data),
            Some(ChannelMsg::Failure) => {
                return Err(ChannelError::new(
                    Hop::Exec,
                    FailureKind::GuestSide,
                    format!("{guest} refuses to run a command to {}", script.purpose),
                    "the account must be allowed to run commands (no ForceCommand, no sftp-only account)",
                ));
            }
            Some(ChannelMsg::ExitStatus { exit_status }) => {
                exit = Exit::Code(exit_status);
                Action::Wait
            }
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                exit = Exit::Signal(format!("{signal_name:?}"));
                Action::Wait
            }
            Some(ChannelMsg::Close) | None => return Err(elevator.ended(guest, &exit)),
            Some(_) => Action::Wait,
        };
        match action {
            Action::Wait => {}
            Action::Elevated(first) => return Ok(Begun { first, exit }),
            Action::Refused(why) => return Err(elevator.refused(guest, &why)),
            Action::SendPassword => {
                let Some(password) = elevator.password() else { continue };
                let line = format!("{}\n", password.expose_secret());
                sent.is_sent();
                let fed = input.data_bytes(line).await;
                fed.map_err(|e| elevator.broken(broken(guest, script, &e.to_string())))?;
            }
        }
    }
}

/// Moves output until the script or its reader is gone.
async fn pump(
    mut output: ChannelReadHalf,
    input: ChannelWriteHalf<Msg>,
    Begun { first, mut exit }: Begun,
    blocks: mpsc::Sender<std::io::Result<Bytes>>,
    mut eof: oneshot::Receiver<()>,
    tail: Tail,
) -> Exit {
    let mut eof_open = true;
    if !first.is_empty() {
        let _ = blocks.send(Ok(first.into())).await;
    }
    loop {
        let message = tokio::select! {
            message = output.wait() => message,
            asked = &mut eof, if eof_open => {
                eof_open = false;
                if asked.is_ok() {
                    let _ = input.eof().await;
                }
                continue;
            }
            () = blocks.closed() => {
                let _ = input.close().await;
                return exit;
            }
        };
        match message {
            Some(ChannelMsg::Data { data }) => {
                let _ = blocks.send(Ok(data)).await;
            }
            Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => tail.push(&data),
            Some(ChannelMsg::ExitStatus { exit_status }) => exit = Exit::Code(exit_status),
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => exit = Exit::Signal(format!("{signal_name:?}")),
            Some(ChannelMsg::Close) | None => return exit,
            Some(_) => {}
        }
    }
}

/// The connection is gone.
pub(super) fn broken(guest: &str, script: &Script, why: &str) -> ChannelError {
    ChannelError::new(
        Hop::Exec,
        FailureKind::Unreachable,
        format!("the connection to {guest} broke before we could {}: {why}", script.purpose),
        "see whether the guest still runs and is reachable",
    )
}
