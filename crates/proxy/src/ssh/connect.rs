//! From an address to an SSH connection whose host key was checked: name, route, port, handshake, host key.
//!
//! Each hop has its own time limit and its own error. Knows nothing of logins.

use super::host_key::{self, HostKeySeen};
use crate::access::{Endpoint, GuestAccess, HostKey};
use crate::channel::{ChannelError, FailureKind, Hop};
use russh::client::{DisconnectReason, Handle};
use russh::keys::PublicKeyOrCertificate;
use russh::{Preferred, SshId, cipher, kex};
use std::borrow::Cow;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

const NAME_LIMIT: Duration = Duration::from_secs(5);
const TCP_LIMIT: Duration = Duration::from_secs(10);
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);

/// An SSH connection that nobody has logged in to yet.
pub(super) struct Connection {
    pub handle: Handle<Handler>,
    pub host_key: HostKeySeen,
    pub seen: Arc<Mutex<Seen>>,
}

/// What the connection's own task saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    host_key: Option<Result<HostKeySeen, ChannelError>>,
    /// The guest's own words at the end.
    pub goodbye: Option<String>,
}

/// Locks what was seen; a poisoned lock still holds facts.
pub(super) fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub(super) struct Handler {
    vm_name: String,
    guest: String,
    pinned: Vec<HostKey>,
    seen: Arc<Mutex<Seen>>,
}

impl russh::client::Handler for Handler {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        // Certificates are not asked for, so a plain key is all that a guest can show.
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else { return Ok(false) };
        let verdict = host_key::check(&self.vm_name, &self.guest, &self.pinned, host_key::describe(key));
        let accepted = verdict.is_ok();
        lock(&self.seen).host_key = Some(verdict);
        Ok(accepted)
    }

    async fn disconnected(&mut self, reason: DisconnectReason<russh::Error>) -> Result<(), russh::Error> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                lock(&self.seen).goodbye = Some(info.message);
                Ok(())
            }
            DisconnectReason::Error(e) => Err(e),
        }
    }
}

/// Connects to `endpoint` as far as the accepted host key.
pub(super) async fn connect(access: &GuestAccess, endpoint: &Endpoint) -> Result<Connection, ChannelError> {
    let socket = tcp(endpoint).await?;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let handler = Handler {
        vm_name: access.vm_name.clone(),
        guest: endpoint.to_string(),
        pinned: access.host_keys.clone(),
        seen: seen.clone(),
    };
    let connecting = russh::client::connect_stream(Arc::new(config(&access.host_keys)), socket, handler);
    let result = timeout(HANDSHAKE_LIMIT, connecting).await;
    let verdict = lock(&seen).host_key.take();
    let host_key = match verdict {
        Some(Err(refused)) => return Err(refused),
        Some(Ok(host_key)) => Some(host_key),
        None => None,
    };
    match (result, host_key) {
        (Ok(Ok(handle)), Some(host_key)) => Ok(Connection { handle, host_key, seen }),
        (Ok(Ok(_)), None) => Err(handshake(endpoint, FailureKind::GuestSide, "it showed no host key")),
        (Ok(Err(e @ russh::Error::NoCommonAlgo { .. })), _) => {
            Err(handshake(endpoint, FailureKind::GuestSide, &e.to_string()))
        }
        (Ok(Err(e)), _) => {
            let goodbye = lock(&seen).goodbye.take().unwrap_or_else(|| e.to_string());
            Err(handshake(endpoint, FailureKind::Unreachable, &goodbye))
        }
        (Err(_), _) => Err(handshake(
            endpoint,
            FailureKind::Unreachable,
            &format!("the port is open, but nothing spoke SSH within {} s", HANDSHAKE_LIMIT.as_secs()),
        )),
    }
}

fn handshake(endpoint: &Endpoint, kind: FailureKind, why: &str) -> ChannelError {
    ChannelError::new(
        Hop::Handshake,
        kind,
        format!("no SSH connection to {endpoint}: {why}"),
        "see whether sshd listens there, and whether it limits connections (MaxStartups, TCP wrappers)",
    )
}

async fn tcp(endpoint: &Endpoint) -> Result<TcpStream, ChannelError> {
    let unreachable = |hop, what: String, remedy: &str| ChannelError::new(hop, FailureKind::Unreachable, what, remedy);
    let looked_up = timeout(NAME_LIMIT, tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port))).await;
    let addresses: Vec<_> = match looked_up {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(e)) => {
            let remedy = "correct the name, or set an IP address with `lull vm set VM --address IP`";
            return Err(unreachable(Hop::Name, format!("the name {} has no address: {e}", endpoint.host), remedy));
        }
        Err(_) => {
            let what = format!("the name {} was not looked up within {} s", endpoint.host, NAME_LIMIT.as_secs());
            return Err(unreachable(Hop::Name, what, "see whether the proxy's name servers answer"));
        }
    };
    let mut last = None;
    for address in addresses {
        match timeout(TCP_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => {
                // Every message of ours is small and waited for.
                let _ = socket.set_nodelay(true);
                return Ok(socket);
            }
            Ok(Err(e)) if e.kind() == ErrorKind::ConnectionRefused => {
                let what = format!("{endpoint} refuses the connection: nothing listens on port {}", endpoint.port);
                last = Some(unreachable(Hop::Port, what, "start sshd in the guest, or correct the port"));
            }
            Ok(Err(e)) => {
                let remedy = "see whether the VM runs and has a network, and whether its address is right";
                last = Some(unreachable(Hop::Route, format!("no way to {endpoint}: {e}"), remedy));
            }
            Err(_) => {
                let what = format!("{endpoint} did not answer within {} s", TCP_LIMIT.as_secs());
                let remedy = "see whether the VM runs, and whether a firewall drops the port between proxy and guest";
                last = Some(unreachable(Hop::Route, what, remedy));
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        unreachable(Hop::Name, format!("the name {} has no address", endpoint.host), "correct the name")
    }))
}

/// What we speak. AES-GCM first: it is the fastest on machines with AES instructions. X25519 alone first: a login into
/// an emulated or busy guest costs mostly its key exchange.
fn config(pinned: &[HostKey]) -> russh::client::Config {
    const KEX: &[kex::Name] = &[
        kex::CURVE25519,
        kex::CURVE25519_PRE_RFC_8731,
        kex::MLKEM768X25519_SHA256,
        kex::ECDH_SHA2_NISTP256,
        kex::DH_GEX_SHA256,
        kex::DH_G16_SHA512,
        kex::DH_G14_SHA256,
        kex::EXTENSION_SUPPORT_AS_CLIENT,
        kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
    ];
    const CIPHERS: &[cipher::Name] = &[
        cipher::AES_256_GCM,
        cipher::AES_128_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_256_CTR,
        cipher::AES_128_CTR,
    ];
    russh::client::Config {
        client_id: SshId::Standard(Cow::Borrowed(concat!("SSH-2.0-Lull_", env!("CARGO_PKG_VERSION")))),
        preferred: Preferred {
            kex: Cow::Borrowed(KEX),
            key: Cow::Owned(host_key::algorithms(pinned)),
            cipher: Cow::Borrowed(CIPHERS),
            ..Preferred::DEFAULT
        },
        // A guest that is gone without a word is noticed after a minute. Not earlier: a session that waits for a slow logind
        // answers nothing meanwhile. What must be quick has limits of its own.
        keepalive_interval: Some(Duration::from_secs(5)),
        keepalive_max: 11,
        nodelay: true,
        ..Default::default()
    }
}
