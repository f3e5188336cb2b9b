//! The guest channel over SSH: one connection per task, reused for everything.
//!
//! Reading order: [`connect`] (address to checked host key), [`login`] (once), [`elevate`] (becoming root, pure), [`exec`]
//! (one script and its streams), [`host_key`] (pinning, pure). Needs no sftp subsystem and no second session.
//!
//! Knows nothing of the runtime component.

mod connect;
mod elevate;
mod exec;
mod host_key;
mod login;

pub use host_key::HostKeySeen;

use crate::access::{Endpoint, GuestAccess, HostKey};
use crate::channel::{ChannelError, ElevatedStream, ExecOutput, Exit, FailureKind, GuestChannel, Hop, Limits, Script};
use async_trait::async_trait;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Between the two attempts to connect.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// A connection that was asked to end is waited for so long.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// A logged-in SSH connection.
pub struct SshChannel {
    access: GuestAccess,
    endpoint: Endpoint,
    handle: russh::client::Handle<connect::Handler>,
    host_key: HostKeySeen,
    password: PasswordSent,
}

/// What is known of the elevation's password on one connection. It is sent with every script; before it was accepted once,
/// an answer that stays out may have been a refusal.
#[derive(Debug, Default)]
struct PasswordSent(AtomicU8);

impl PasswordSent {
    const UNANSWERED: u8 = 1;
    const ACCEPTED: u8 = 2;

    fn is_sent(&self) {
        let _ = self.0.compare_exchange(0, Self::UNANSWERED, Ordering::SeqCst, Ordering::SeqCst);
    }

    fn is_accepted(&self) {
        let _ = self.0.compare_exchange(Self::UNANSWERED, Self::ACCEPTED, Ordering::SeqCst, Ordering::SeqCst);
    }

    fn accepted(&self) -> bool {
        self.0.load(Ordering::SeqCst) == Self::ACCEPTED
    }

    /// Sent, and never accepted so far.
    fn unanswered(&self) -> bool {
        self.0.load(Ordering::SeqCst) == Self::UNANSWERED
    }
}

/// Connects and logs in: endpoints in their order, and once more after that. A refusal, a password whose answer stayed out
/// and a changed host key are final. The first key that is met holds for every attempt. The error is that of the last
/// endpoint, and names the others.
pub async fn connect(access: &GuestAccess) -> Result<SshChannel, ChannelError> {
    let key = login::private_key(access)?;
    let mut access = access.clone();
    let mut met: Option<HostKeySeen> = None;
    let with_key =
        |error: ChannelError, met: Option<HostKeySeen>| ChannelError { accepted_key: met.map(Box::new), ..error };
    let mut failures: Vec<ChannelError> = Vec::new();
    for attempt in 0..2 {
        if attempt > 0 {
            tokio::time::sleep(RETRY_AFTER).await;
        }
        for endpoint in access.endpoints.clone() {
            let mut error = match attempt_one(&access, &endpoint, key.clone()).await {
                Ok(channel) => return Ok(channel.first_met(met)),
                Err(error) => error,
            };
            if let Some(seen) = error.accepted_key.take() {
                access.host_keys = vec![seen.key.clone()];
                met.get_or_insert(*seen);
            }
            if error.kind != FailureKind::Unreachable {
                return Err(with_key(error, met));
            }
            failures.push(error);
        }
    }
    Err(with_key(summary(failures), met))
}

/// The host key of the first endpoint, and nothing else: nobody logs in.
pub async fn host_key_of(access: &GuestAccess) -> Result<HostKey, ChannelError> {
    let Some(endpoint) = access.endpoints.first() else { return Err(summary(Vec::new())) };
    let connection = connect::connect(access, endpoint).await?;
    let _ = connection.handle.disconnect(russh::Disconnect::ByApplication, "", "").await;
    Ok(connection.host_key.key)
}

async fn attempt_one(
    access: &GuestAccess,
    endpoint: &Endpoint,
    key: Option<std::sync::Arc<russh::keys::PrivateKey>>,
) -> Result<SshChannel, ChannelError> {
    let mut connection = connect::connect(access, endpoint).await?;
    let result = login::login(&mut connection, access, key, &endpoint.to_string()).await;
    let connect::Connection { handle, host_key, .. } = connection;
    result.map_err(|error| ChannelError { accepted_key: Some(Box::new(host_key.clone())), ..error })?;
    let (access, endpoint) = (access.clone(), endpoint.clone());
    Ok(SshChannel { access, endpoint, handle, host_key, password: PasswordSent::default() })
}

/// One error for several: the one that came furthest, with the others' words.
fn summary(mut failures: Vec<ChannelError>) -> ChannelError {
    let furthest = (0..failures.len()).max_by_key(|&i| (failures[i].hop, i));
    let Some(mut error) = furthest.map(|i| failures.remove(i)) else {
        return ChannelError::new(Hop::Name, FailureKind::Unreachable, "the guest has no address", "set one");
    };
    let mut others: Vec<String> = failures.into_iter().map(|f| f.what).filter(|what| *what != error.what).collect();
    others.sort();
    others.dedup();
    if !others.is_empty() {
        error.what = format!("{}; before: {}", error.what, others.join("; "));
    }
    error
}

impl SshChannel {
    /// The host key that was accepted.
    pub fn host_key(&self) -> &HostKeySeen {
        &self.host_key
    }

    /// A first contact stays one although it took a second attempt to log in.
    fn first_met(mut self, met: Option<HostKeySeen>) -> Self {
        self.host_key.first_contact |= met.is_some_and(|met| met.first_contact);
        self
    }

    fn way(&self) -> exec::Way<'_> {
        exec::Way { handle: &self.handle, access: &self.access, password: &self.password }
    }

    fn guest(&self) -> String {
        self.endpoint.to_string()
    }
}

#[async_trait]
impl GuestChannel for SshChannel {
    fn describe(&self) -> String {
        format!("SSH {}@{}", self.access.user, self.endpoint)
    }

    async fn exec_elevated(&self, script: &Script, stdin: &[u8], limits: Limits) -> Result<ExecOutput, ChannelError> {
        let guest = self.guest();
        let whole = async {
            let exec::Running { mut stream, exit, eof } = exec::start(self.way(), &guest, script).await?;
            let feed = async {
                // A script may end without reading its stdin: its exit code says whether that was right.
                let _ = stream.writer.write_all(stdin).await;
                let _ = stream.writer.flush().await;
                let _ = eof.send(());
            };
            let mut stdout = Vec::new();
            let mut limited = (&mut stream.reader).take(limits.stdout_bytes_max as u64 + 1);
            let (read, ()) = tokio::join!(limited.read_to_end(&mut stdout), feed);
            read.map_err(|e| exec::broken(&guest, script, &e.to_string()))?;
            if stdout.len() > limits.stdout_bytes_max {
                return Err(ChannelError::new(
                    Hop::Exec,
                    FailureKind::GuestSide,
                    format!(
                        "{guest} wrote more than {} bytes when asked to {}",
                        limits.stdout_bytes_max, script.purpose
                    ),
                    "log in by hand and see what it writes",
                ));
            }
            match exit.await.unwrap_or(Exit::Lost) {
                Exit::Lost => Err(exec::broken(&guest, script, "it ended without an exit code")),
                exit => Ok(ExecOutput { exit, stdout, stderr: stream.stderr.text() }),
            }
        };
        match tokio::time::timeout(limits.timeout, whole).await {
            Ok(result) => result,
            Err(_) if self.password.unanswered() => Err(elevate::unanswered(&self.access.user, &guest)),
            Err(_) => Err(ChannelError::new(
                Hop::Exec,
                FailureKind::GuestSide,
                format!("{guest} did not {} within {} s", script.purpose, limits.timeout.as_secs()),
                "see whether the guest is overloaded or its disk hangs",
            )),
        }
    }

    async fn open_elevated(&self, script: &Script) -> Result<ElevatedStream, ChannelError> {
        Ok(exec::start(self.way(), &self.guest(), script).await?.stream)
    }

    async fn close(&self) {
        let _ = self.handle.disconnect(russh::Disconnect::ByApplication, "", "").await;
        let gone = async {
            while !self.handle.is_closed() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_LIMIT, gone).await;
    }
}
