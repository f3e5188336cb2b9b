//! A machine becomes a proxy: it shows a token to the server whose authority the token names, and gets a certificate for a key that
//! never leaves it. Knows nothing of what a proxy does then.

use crate::dial::{self, DialError};
use crate::membership::{Identity, MembershipError, NewKey};
use crate::tls::{Known, to_join};
use hyper_util::rt::TokioIo;
use lull_proxy_wire::token::unhex;
pub use lull_proxy_wire::token::{JoinToken, NoToken};
use lull_proxy_wire::v1::JoinRequest;
use lull_proxy_wire::v1::enrolment_client::EnrolmentClient;
use lull_proxy_wire::{ALPN_JOIN, GENERATION};
use std::io;
use std::sync::Mutex;
use std::time::Duration;
use tonic::transport::{Endpoint, Uri};

/// The server has so long to answer.
const ANSWER_MS_MAX: u64 = 20_000;

/// Why this machine did not become a proxy.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The server was not reached, or is another.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The server said no.
    #[error("the backup server refused: {why}")]
    Refused {
        /// Its sentence.
        why: String,
    },
    /// The connection broke, or no answer came.
    #[error(
        "the backup server at {server} gave no answer: {why}; try again, the token may be used again from this machine"
    )]
    NoAnswer {
        /// Its address.
        server: String,
        /// What was seen.
        why: String,
    },
    /// No key.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// Why a text is no address of a backup server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("give HOST or HOST:PORT, as backup.example, 192.0.2.1:7421 or [2001:db8::1]:7421")]
pub struct NoAddress;

/// Whether a text is `HOST` or `HOST:PORT`, without anything being asked.
pub fn check_address(text: &str) -> Result<(), NoAddress> {
    let full = dial::with_port(text);
    let (host, port) = full.rsplit_once(':').ok_or(NoAddress)?;
    let good = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')),
    };
    if good && port.parse::<u16>().is_ok_and(|port| port > 0) { Ok(()) } else { Err(NoAddress) }
}

/// As what this machine wants to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    /// By the administrator's word: a token made for another one is refused.
    Given(String),
    /// By its own name, where the token has none.
    Machine(String),
}

/// Whether the server of this authority (SHA-256, hexadecimal) answers at `HOST[:PORT]`, as [`join`] would find it; its address with the
/// port. `Ok(None)`: the authority is none. Nothing is said to it.
pub async fn probe(server: &str, authority: &str) -> Result<Option<String>, DialError> {
    let Some(authority) = unhex(authority).and_then(|bytes| bytes.try_into().ok()) else { return Ok(None) };
    let server = dial::with_port(server);
    dial::connect(&server, to_join(Known::Fingerprint(authority), ALPN_JOIN)?).await?;
    Ok(Some(server))
}

/// Joins the server at `HOST[:PORT]`. `key`: to be used again where no answer came.
pub async fn join(server: &str, token: &JoinToken, name: &Name, key: &NewKey) -> Result<Identity, JoinError> {
    let config = to_join(Known::Fingerprint(token.authority), ALPN_JOIN).map_err(DialError::from)?;
    let server = dial::with_port(server);
    let io = dial::connect(&server, config).await?;
    let no_answer = |why: String| JoinError::NoAnswer { server: server.clone(), why };
    let once = Mutex::new(Some(TokioIo::new(io)));
    let connector = tower::service_fn(move |_: Uri| {
        let io = once.lock().ok().and_then(|mut once| once.take());
        std::future::ready(io.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection ended")))
    });
    // Never resolved: the connector has the connection.
    let channel = Endpoint::from_static("http://server.invalid").connect_with_connector(connector).await;
    let mut client = EnrolmentClient::new(channel.map_err(|error| no_answer(error.to_string()))?);
    let request = JoinRequest {
        token_id: token.id_text(),
        token_secret: token.secret_text(),
        name: match name {
            Name::Given(name) | Name::Machine(name) => name.clone(),
        },
        name_given: matches!(name, Name::Given(_)),
        certificate_request: key.request.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        generation: GENERATION,
        platform: std::env::consts::OS.into(),
    };
    let joined = match tokio::time::timeout(Duration::from_millis(ANSWER_MS_MAX), client.join(request)).await {
        Err(_) => return Err(no_answer(format!("nothing came for {} s", ANSWER_MS_MAX / 1_000))),
        Ok(Err(status)) if matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Unknown) => {
            return Err(no_answer(status.message().to_string()));
        }
        Ok(Err(status)) => return Err(JoinError::Refused { why: status.message().to_string() }),
        Ok(Ok(joined)) => joined.into_inner(),
    };
    let identity = joined.identity.unwrap_or_default();
    Ok(key.certified(&joined.server_id, &joined.name, &server, &identity.certificate, &identity.authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_with_or_without_a_port() {
        for good in ["backup.example", "backup:7000", "192.0.2.1", "2001:db8::1", "[2001:db8::1]:7000", " backup \n"] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        for wrong in [
            "",
            " ",
            ":7421",
            "http://192.0.2.1:7421",
            "https://backup",
            "a/b",
            "a b",
            "backup:",
            "backup:x",
            "backup:0",
            "[x]:1",
        ] {
            assert_eq!(check_address(wrong), Err(NoAddress), "{wrong}");
        }
    }
}
