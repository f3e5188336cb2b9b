//! Keeps this proxy connected to its backup server: dials, proves who it is, serves on the connection, and dials again when it
//! ends, after growing pauses of uneven length. Knows nothing of what is served.

use crate::membership::{Dismissed, Membership};
use crate::tls::{Known, as_proxy, server_name};
use lull_proxy_wire::{ALPN_PROXY, PORT};
use rand::Rng;
use rustls::ClientConfig;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// For one attempt: names, TCP, TLS.
const CONNECT_MS_MAX: u64 = 20_000;
/// The pause after the first failure; it doubles up to the longest.
const PAUSE_MS: u64 = 500;
/// The longest pause.
const PAUSE_MS_MAX: u64 = 30_000;
/// A connection that lived for so long was a good one: the pauses begin anew.
const GOOD_MS: u64 = 30_000;

/// Why the backup server was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Names or TCP.
    #[error(
        "the backup server at {server} cannot be reached: {source}; see the name, the port ({PORT} unless it was changed) and firewalls on the way"
    )]
    Connect {
        /// Its address.
        server: String,
        /// Cause.
        source: io::Error,
    },
    /// Somebody else answers.
    #[error(
        "what answers at {server} is not the backup server that is meant ({source}): see the address, or make a new token there and join again"
    )]
    NotTheServer {
        /// The address.
        server: String,
        /// Cause.
        source: io::Error,
    },
    /// No answer in time.
    #[error("the backup server at {server} did not answer within {} s", CONNECT_MS_MAX / 1_000)]
    Timeout {
        /// Its address.
        server: String,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The identity's file holds no key.
    #[error("this proxy's key or certificate cannot be used; join again: lull proxy join --replace")]
    NoIdentity,
}

/// `HOST[:PORT]` with the port.
pub fn with_port(server: &str) -> String {
    let server = server.trim();
    let bare_v6 = server.matches(':').count() > 1 && !server.starts_with('[');
    let has_port = !bare_v6 && server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match (has_port, bare_v6) {
        (true, _) => server.to_string(),
        (false, true) => format!("[{server}]:{PORT}"),
        (false, false) => format!("{server}:{PORT}"),
    }
}

/// Connects and makes sure that it is the server.
pub async fn connect(server: &str, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, DialError> {
    let connected = async {
        let failed = |source| DialError::Connect { server: server.to_string(), source };
        let tcp = TcpStream::connect(server).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let tls = TlsConnector::from(config).connect(server_name(), tcp).await;
        tls.map_err(|source| match source.get_ref().is_some_and(|e| e.is::<rustls::Error>()) {
            true => DialError::NotTheServer { server: server.to_string(), source },
            false => DialError::Connect { server: server.to_string(), source },
        })
    };
    match tokio::time::timeout(Duration::from_millis(CONNECT_MS_MAX), connected).await {
        Ok(connected) => connected,
        Err(_) => Err(DialError::Timeout { server: server.to_string() }),
    }
}

/// Stays connected until the server does without this proxy for good; `serve` answers calls on a connection until it ends.
pub async fn stay_connected<F>(membership: &Membership, mut serve: impl FnMut(TlsStream<TcpStream>) -> F) -> Dismissed
where
    F: Future<Output = Result<(), hyper::Error>>,
{
    let mut pause_ms = PAUSE_MS;
    loop {
        let identity = membership.identity();
        match dial(membership).await {
            Ok(io) => {
                let since = Instant::now();
                tracing::info!(server = identity.server, proxy = identity.name, "connected to the backup server");
                let why = serve(io).await.err().map_or_else(|| "it was closed".to_string(), |error| error.to_string());
                match membership.take_dismissal() {
                    Some(dismissed) if dismissed.for_good => return dismissed,
                    Some(Dismissed { why, .. }) => {
                        tracing::warn!(why, "the backup server turned this proxy away");
                        pause_ms = PAUSE_MS_MAX;
                    }
                    None => tracing::warn!(server = identity.server, why, "the connection to the backup server ended"),
                }
                if since.elapsed() >= Duration::from_millis(GOOD_MS) {
                    pause_ms = PAUSE_MS;
                }
            }
            Err(error) => tracing::warn!(%error, "no connection to the backup server; it is tried again"),
        }
        // Uneven, so that a hundred proxies do not come back in one moment.
        let uneven = rand::rng().random_range(pause_ms / 2..=pause_ms);
        tokio::time::sleep(Duration::from_millis(uneven)).await;
        pause_ms = (2 * pause_ms).min(PAUSE_MS_MAX);
    }
}

async fn dial(membership: &Membership) -> Result<TlsStream<TcpStream>, DialError> {
    let identity = membership.identity();
    let (certificate, key, authority) = identity.parts().ok_or(DialError::NoIdentity)?;
    let config = as_proxy(Known::Authority(authority), ALPN_PROXY, &certificate, &key)?;
    connect(&identity.server, config).await
}

#[cfg(test)]
mod tests {
    use super::with_port;

    #[test]
    fn a_server_may_be_named_without_its_port() {
        let check = |given: &str, expect: &str| assert_eq!(with_port(given), expect);
        check("backup.example", "backup.example:7421");
        check("backup.example:7000", "backup.example:7000");
        check("192.0.2.1", "192.0.2.1:7421");
        check("2001:db8::1", "[2001:db8::1]:7421");
        check("[2001:db8::1]", "[2001:db8::1]:7421");
        check(" [2001:db8::1]:7000\n", "[2001:db8::1]:7000");
    }
}
