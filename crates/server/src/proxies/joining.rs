//! How a machine becomes a proxy: a token is made for an administrator to carry there, and whoever comes with it gets a certificate.
//! Knows nothing of how a proxy is called afterwards.

use super::heartbeat;
use crate::instant::us;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::infrastructure::ServerRow;
use crate::store::proxies::TokenRow;
use crate::trust::{TrustError, read, sha256};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::{SignedDuration, Timestamp};
use lull_proxy_wire::token::JoinToken;
use lull_proxy_wire::v1::enrolment_server::{Enrolment, EnrolmentServer};
use lull_proxy_wire::v1::{Identity, JoinRequest, Joined};
use lull_proxy_wire::{GENERATION, fits};
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tower::ServiceExt;
use uuid::Uuid;

/// A token is good for so long unless told.
pub const TOKEN_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// It may be told to be good for at most so long.
pub const TOKEN_LIFE_MAX: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Old tokens are remembered for so long, so that who comes with one is told what became of it.
const TOKEN_REMEMBERED: SignedDuration = SignedDuration::from_hours(30 * 24);
/// A joining machine has so long for all it has to say.
const JOIN_MS_MAX: u64 = 30_000;
/// Longest message of a machine that nobody knows yet.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// What stands for something else in a path of the REST interface.
const RESERVED: &[&str] = &["load", "tokens"];
/// Longest name of a managed server, in bytes.
pub const NAME_BYTES_MAX: usize = 100;

/// For whom a token is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenFor {
    /// A new managed server, which may say its name itself.
    New(Option<String>),
    /// One that joins again.
    Again(ServerRow),
}

/// Makes a token; its text form is not kept.
pub async fn make_token(
    server: &Server,
    whom: TokenFor,
    life: SignedDuration,
) -> Result<(JoinToken, Timestamp), StoreError> {
    let now = server.clock.now();
    server.store.forget_tokens(us(now.saturating_sub(TOKEN_REMEMBERED).unwrap_or(now))).await?;
    let (mut id, mut secret) = ([0; 8], [0; 16]);
    let drawn = OsRng.try_fill_bytes(&mut id).and_then(|()| OsRng.try_fill_bytes(&mut secret));
    // Without randomness the machine could not have come so far: TLS and the store's key need it too.
    drawn.map_err(|e| StoreError::Database {
        doing: "drawing a token",
        source: sqlx::Error::Io(std::io::Error::other(e.to_string())),
    })?;
    let token = JoinToken { id, secret, authority: server.authority.fingerprint() };
    let expires = now.saturating_add(life).unwrap_or(now);
    let (name, again) = match whom {
        TokenFor::New(name) => (name, None),
        TokenFor::Again(row) => (Some(row.name), Some(row.id)),
    };
    let row = TokenRow {
        id: token.id_text(),
        secret: sha256(token.secret_text().as_bytes()),
        name,
        server: again,
        expires_us: us(expires),
        used_us: None,
        used_key: None,
        used_by: None,
    };
    server.store.add_token(&row).await?;
    Ok((token, expires))
}

/// Answers one machine that wants to join.
pub async fn answer<IO>(server: &Arc<Server>, io: IO, from: SocketAddr)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service =
        EnrolmentServer::new(Desk { server: server.clone(), from }).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let service = service.map_request(|request: hyper::Request<hyper::body::Incoming>| request.map(Body::new));
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(4)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
    match tokio::time::timeout(Duration::from_millis(JOIN_MS_MAX), serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%from, %error, "a joining connection broke"),
        Err(_) => tracing::info!(%from, "a machine that wanted to join took too long"),
    }
}

struct Desk {
    server: Arc<Server>,
    from: SocketAddr,
}

#[tonic::async_trait]
impl Enrolment for Desk {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Joined>, Status> {
        match join(&self.server, request.into_inner()).await {
            Ok(joined) => {
                tracing::info!(proxy = joined.name, from = %self.from, "a machine has joined");
                Ok(Response::new(joined))
            }
            Err(status) => {
                tracing::warn!(from = %self.from, why = status.message(), "a machine was not let join");
                Err(status)
            }
        }
    }
}

const NEW_TOKEN: &str = "make a new one on the backup server: lull proxy token";

async fn join(server: &Arc<Server>, asked: JoinRequest) -> Result<Joined, Status> {
    let now = server.clock.now();
    let unknown = || Status::unauthenticated(format!("this token is not known here; {NEW_TOKEN}"));
    let row = server.store.token(&asked.token_id).await.map_err(internal)?.ok_or_else(unknown)?;
    if !bool::from(sha256(asked.token_secret.as_bytes()).ct_eq(&row.secret)) {
        return Err(unknown());
    }
    if us(now) > row.expires_us {
        let at = Timestamp::from_microsecond(row.expires_us).unwrap_or(now);
        return Err(Status::unauthenticated(format!("the token expired at {at}; {NEW_TOKEN}")));
    }
    if !fits(GENERATION, asked.generation) {
        let (theirs, ours) = (&asked.version, env!("CARGO_PKG_VERSION"));
        return Err(Status::failed_precondition(format!(
            "this machine runs Lull {theirs} (protocol {}), the backup server {ours} (protocol {GENERATION}): install the \
             backup server's version",
            asked.generation
        )));
    }
    let known = server.store.servers().await.map_err(internal)?;
    if let Some(name) = row.name.as_ref().filter(|name| asked.name_given && **name != asked.name) {
        return Err(Status::invalid_argument(format!(
            "this token was made for the name {name}, not for {}: join without --name, or make a token for that name on the backup \
             server: lull proxy token --name NAME",
            asked.name
        )));
    }
    let tokens_name = row.name.is_some();
    let name = row.name.clone().unwrap_or(asked.name);
    let again = row.server.or(row
        .used_by
        .is_some()
        .then(|| known.iter().find(|s| Some(&s.name) == row.used_by.as_ref()).map(|s| s.id))
        .flatten());
    let managed = match again {
        Some(id) => known.into_iter().find(|known| known.id == id).ok_or_else(|| {
            Status::not_found(format!("the managed server of this token was removed meanwhile; {NEW_TOKEN}"))
        })?,
        None => {
            check_name(&name)?;
            if known.iter().any(|known| known.name == name) {
                return Err(taken(&name, tokens_name));
            }
            ServerRow { id: Uuid::now_v7(), name, is_backup_server: false, role_enabled: true }
        }
    };
    let certificate = server.authority.certify(&asked.certificate_request, managed.id, now);
    let certificate = certificate.map_err(|error| match error {
        TrustError::Unreadable { .. } => Status::invalid_argument(error.to_string()),
        error => internal(error),
    })?;
    let presented = read(&certificate).map_err(internal)?;
    if let (Some(used_us), Some(key)) = (row.used_us, row.used_key)
        && key != presented.key
    {
        let at = Timestamp::from_microsecond(used_us).unwrap_or(now);
        let by = row.used_by.unwrap_or_default();
        return Err(Status::unauthenticated(format!(
            "the token was used already, at {at}, and is now the proxy {by}; {NEW_TOKEN}. If that was not you: lull proxy revoke {by}"
        )));
    }
    match server.store.join(&row.id, &managed, presented.key, us(presented.until), us(now)).await {
        Ok(true) => {}
        Ok(false) => {
            return Err(Status::unauthenticated(format!(
                "the token was used by another machine just now; {NEW_TOKEN}"
            )));
        }
        Err(StoreError::Taken { .. }) => return Err(taken(&managed.name, tokens_name)),
        Err(error) => return Err(internal(error)),
    }
    begin(server, managed.clone());
    let authority = server.authority.certificate().to_vec();
    let identity = Some(Identity { certificate, authority });
    Ok(Joined { server_id: managed.id.to_string(), name: managed.name, identity })
}

/// From now on the proxy is waited for.
fn begin(server: &Arc<Server>, managed: ServerRow) {
    let link = server.proxies.add(managed, Timestamp::now());
    let watched = server.clone();
    server.spawn(async move { heartbeat::watch(&watched, &link).await });
}

/// A proxy that joined before is waited for.
pub fn await_known(server: &Arc<Server>) {
    for link in server.proxies.all() {
        let watched = server.clone();
        server.spawn(async move { heartbeat::watch(&watched, &link).await });
    }
}

/// A name of a managed server: printable, without blanks around it, not too long.
pub fn check_name(name: &str) -> Result<(), Status> {
    let good = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.trim() == name
        && !name.chars().any(|c| c.is_control() || c == '/' || c == ',')
        && !RESERVED.contains(&name);
    let what = "a managed server's name has 1 to 100 bytes, no slash, comma or control character and no blank around it, and \
                is not load or tokens: choose another with --name";
    if good { Ok(()) } else { Err(Status::invalid_argument(what)) }
}

/// `tokens_name`: the token names it, and whoever joins cannot choose another.
fn taken(name: &str, tokens_name: bool) -> Status {
    let another = if tokens_name {
        "make a token with another name on the backup server (lull proxy token --name OTHER)"
    } else {
        "give this one another name (--name)"
    };
    Status::already_exists(format!(
        "there is a managed server named {name} already: {another}, or, if it is the same machine, make the token with: lull proxy \
         token --again {name}"
    ))
}

fn internal(error: impl std::error::Error) -> Status {
    tracing::error!(%error, "a machine could not join");
    Status::internal("the backup server could not do its part; see its log")
}
