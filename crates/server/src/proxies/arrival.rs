//! A proxy has dialled and shown a certificate of the authority's: is it still one of ours, and the only one with this identity?
//! Who is turned away is told why. Knows nothing of sockets.

use super::heartbeat::{DESCRIBE_TIMEOUT_MS, describe, renewed_in_time};
use super::line::Line;
use super::{ProxyLink, client};
use crate::server::Server;
use crate::store::StoreError;
use crate::trust::{Presented, RENEWABLE_AFTER};
use jiff::Timestamp;
use lull_engine::ids::ServerId;
use lull_proxy_wire::v1;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// A proxy that is turned away has so long to hear why.
const DISMISS_MS_MAX: u64 = 5_000;

/// Why a proxy is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// For people, with what to do.
    pub why: String,
    /// Coming again changes nothing.
    pub for_good: bool,
}

/// Admits it, or tells it why not. Returns once that is done; the line goes on.
pub async fn admit<IO>(server: &Arc<Server>, io: IO, presented: Presented, from: SocketAddr)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let id = presented.server;
    let mut line = match Line::over(io, presented).await {
        Ok(line) => line,
        Err(error) => return tracing::info!(%from, %error, "a proxy's connection broke before its first word"),
    };
    let refused = match known(server, &mut line).await {
        Ok(Ok(link)) => match only(&link, &line).await {
            Ok(()) => {
                tracing::info!(proxy = %link.server.name, %from, "a proxy is connected");
                // The heartbeat begins at once.
                if let Some(old) = link.line.send_replace(Some(line)) {
                    old.cut.cancel();
                }
                // Who was revoked or removed since it was looked up found no line to cut.
                if link.health().revoked {
                    link.cut();
                }
                return;
            }
            Err(refused) => refused,
        },
        Ok(Err(refused)) => refused,
        Err(error) => {
            tracing::error!(%from, %error, "whether a proxy is one of ours cannot be read");
            return line.cut.cancel();
        }
    };
    tracing::warn!(proxy = %id, %from, why = refused.why, "a proxy was turned away");
    if let Some(link) = server.proxies.get(ServerId(id)) {
        link.health.send_modify(|health| health.trouble = Some(refused.why.clone()));
    }
    let dismissal = v1::Dismissal { why: refused.why, for_good: refused.for_good };
    let mut client = client(line.channel.clone());
    let told = tokio::time::timeout(Duration::from_millis(DISMISS_MS_MAX), client.dismiss(dismissal)).await;
    if !matches!(told, Ok(Ok(_))) {
        tracing::info!(%from, "it could not be told");
    }
    line.cut.cancel();
}

/// Its key counts, and its certificate is young enough or was renewed just now.
async fn known(server: &Arc<Server>, line: &mut Line) -> Result<Result<Arc<ProxyLink>, Refused>, StoreError> {
    let refuse = |why: String| Ok(Err(Refused { why, for_good: true }));
    let Some(presented) = line.presented.clone() else { return refuse("it showed no certificate".into()) };
    let again = "make a token on the backup server (`lull proxy token`) and join again (`lull proxy join`)";
    let rows = server.store.joined().await?;
    let Some(row) = rows.into_iter().find(|row| row.server.id == presented.server) else {
        return refuse(format!("this proxy is not in the backup infrastructure any more; {again}"));
    };
    if row.revoked_us.is_some() {
        return refuse(format!("this proxy was revoked; {again}"));
    }
    if !row.keys.contains(&presented.key) {
        return refuse(format!(
            "another machine has renewed this proxy's identity since, or it joined again; see whether {} was copied; {again}",
            row.server.name
        ));
    }
    let now = server.clock.now();
    if now > presented.until.saturating_add(RENEWABLE_AFTER).unwrap_or(Timestamp::MAX) {
        let until = presented.until;
        return refuse(format!("its certificate ran out at {until}, too long ago to be renewed; {again}"));
    }
    server.store.has_key(presented.server, presented.key, crate::instant::us(presented.until)).await?;
    let Some(link) = server.proxies.get(ServerId(presented.server)) else {
        return Ok(Err(Refused { why: "it has just been removed".into(), for_good: false }));
    };
    if now > presented.until {
        match renewed_in_time(server, &link.server, line).await {
            Ok(presented) => line.presented = Some(presented),
            Err(error) => {
                let why = format!("its certificate ran out at {} and could not be renewed: {error}", presented.until);
                return Ok(Err(Refused { why, for_good: false }));
            }
        }
    }
    Ok(Ok(link))
}

/// No other process with this identity is there and answers: a copied machine would make both useless.
async fn only(link: &ProxyLink, line: &Line) -> Result<(), Refused> {
    let health = link.health();
    let old = link.line.borrow().clone();
    let (Some(old), true) = (old, health.online) else { return Ok(()) };
    let newcomer = describe(line, &[], DESCRIBE_TIMEOUT_MS).await.map_err(|status| Refused {
        why: format!("it did not say who it is: {}", status.message()),
        for_good: false,
    })?;
    if newcomer.incarnation == health.incarnation {
        return Ok(());
    }
    match describe(&old, &[], DESCRIBE_TIMEOUT_MS).await {
        Ok(other) if other.incarnation == health.incarnation => Err(Refused {
            why: format!(
                "another process with the identity of {} is connected; where this machine is a copy of that one, remove the \
                 folder proxy in its state folder and join under a name of its own",
                link.server.name
            ),
            for_good: false,
        }),
        _ => Ok(()),
    }
}
