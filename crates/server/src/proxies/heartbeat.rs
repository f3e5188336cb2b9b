//! Asks a proxy to describe itself, again and again, and renews its certificate in time. One that did not answer for
//! [`SILENT_AFTER_MS`] is offline, and whoever waits for it is told so.

use super::line::Line;
use super::{Health, ProxyLink, client};
use crate::instant::us;
use crate::server::Server;
use crate::store::infrastructure::ServerRow;
use crate::store::proxies::LastKnown;
use crate::trust::{CERTIFICATE_LIFE, Presented, TrustError, read};
use jiff::Timestamp;
use lull_engine::infrastructure::SILENT_AFTER_MS;
use lull_proxy_wire::v1::{DescribeRequest, HostProbe, Identity, ProxyDescription, RenewRequest};
use lull_proxy_wire::{GENERATION, fits};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;

/// From one heartbeat to the next.
pub const HEARTBEAT_MS: u64 = 2_000;
/// Longest wait for one answer to a heartbeat.
pub const DESCRIBE_TIMEOUT_MS: u64 = 5_000;
/// A proxy is offline only after so many unanswered heartbeats, whatever the clock says: this process may have been
/// stopped meanwhile.
const MISSED_MIN: u32 = 2;
/// Longest wait for all of a renewal.
const RENEW_MS_MAX: u64 = 15_000;
/// A renewal that failed is tried again after so long.
const RENEW_AGAIN: Duration = Duration::from_secs(300);

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum NotRenewed {
    /// The proxy did not do its part.
    #[error("{}", .0.message())]
    Proxy(#[from] Status),
    /// The server did not.
    #[error(transparent)]
    Server(#[from] TrustError),
}

/// Asks for heartbeats until the proxy is gone from the infrastructure.
pub async fn watch(server: &Arc<Server>, link: &Arc<ProxyLink>) {
    tokio::select! {
        () = link.gone.cancelled() => {}
        () = ask_again_and_again(server, link) => {}
    }
}

async fn ask_again_and_again(server: &Arc<Server>, link: &Arc<ProxyLink>) {
    let (mut lines, mut probes) = (link.line.subscribe(), server.proxies.probes.subscribe());
    let (mut missed, mut heard) = (0, Instant::now());
    let mut renew_from = Instant::now();
    loop {
        let line = lines.borrow_and_update().clone();
        let answer = match &line {
            Some(line) => {
                let asked = probes.borrow_and_update().clone();
                describe(line, &asked, DESCRIBE_TIMEOUT_MS).await
            }
            None => Err(Status::unavailable("it is not connected")),
        };
        match answer {
            Ok(answer) => {
                (missed, heard) = (0, Instant::now());
                take_note(server, link, answer).await;
                let now = server.clock.now();
                if let Some(line) = line.filter(|line| is_half_over(line, now) && Instant::now() >= renew_from) {
                    renew_from = Instant::now() + RENEW_AGAIN;
                    match renewed_in_time(server, &link.server, &line).await {
                        Ok(presented) => link.line.send_modify(|now| is_renewed(now, &line, presented)),
                        Err(error) => {
                            tracing::warn!(proxy = %link.server.name, %error, "its certificate was not renewed, and will be");
                        }
                    }
                }
            }
            Err(status) => {
                missed += 1;
                let silent = heard.elapsed() > Duration::from_millis(SILENT_AFTER_MS);
                if link.health().online && missed >= MISSED_MIN && silent {
                    tracing::warn!(proxy = %link.server.name, why = status.message(), "the proxy is offline");
                    link.health.send_modify(|health| health.online = false);
                    server.wake.notify_one();
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(HEARTBEAT_MS)) => {}
            // A new connection is asked at once, and everybody about a new host.
            _ = lines.changed() => {}
            _ = probes.changed() => {}
        }
    }
}

/// One heartbeat.
pub async fn describe(line: &Line, probes: &[HostProbe], timeout_ms: u64) -> Result<ProxyDescription, Status> {
    let request =
        DescribeRequest { version: env!("CARGO_PKG_VERSION").into(), generation: GENERATION, hosts: probes.to_vec() };
    let mut client = client(line.channel.clone());
    let answer = tokio::time::timeout(Duration::from_millis(timeout_ms), client.describe(request)).await;
    Ok(answer.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner())
}

/// It answered: that is what is known of it from now on.
async fn take_note(server: &Arc<Server>, link: &ProxyLink, said: ProxyDescription) {
    let known = LastKnown {
        platform: said.platform,
        version: said.version,
        generation: said.generation,
        networks: said.networks,
        channels: said.channels,
        slots: said.slots,
        hosts_reached: said.hosts_reached.iter().filter_map(|id| id.parse().ok()).collect(),
    };
    // Before they were counted there was one.
    let generation = known.generation.max(1);
    let trouble = (!fits(GENERATION, generation)).then(|| {
        let (theirs, ours) = (&known.version, env!("CARGO_PKG_VERSION"));
        let older = if generation < GENERATION { "the proxy" } else { "the backup server" };
        format!(
            "it runs Lull {theirs} (protocol {generation}), the backup server {ours} (protocol {GENERATION}): upgrade {older}"
        )
    });
    let before = link.health();
    if before.last_known != known
        && !link.in_process
        && let Err(error) = server.store.set_last_known(link.server.id, &known).await
    {
        tracing::error!(proxy = %link.server.name, %error, "what it says of itself cannot be recorded");
    }
    if trouble.is_some() && before.trouble != trouble {
        tracing::warn!(proxy = %link.server.name, trouble, "the proxy gets no tasks");
    }
    let (incarnation, last_heard) = (said.incarnation, Some(Timestamp::now()));
    let mut changed = false;
    link.health.send_modify(|health| {
        // As of now: it may have been revoked since it was asked.
        let revoked = health.revoked;
        let online = trouble.is_none() && !revoked;
        changed = online != health.online || health.last_known != known;
        *health = Health { last_known: known, incarnation, last_heard, online, trouble, revoked };
    });
    if changed {
        server.wake.notify_one();
    }
}

fn is_half_over(line: &Line, now: Timestamp) -> bool {
    let half = CERTIFICATE_LIFE / 2;
    line.presented.as_ref().is_some_and(|presented| now.duration_until(presented.until) < half)
}

/// From now on the line counts as one with the new certificate, where it is still the same line.
fn is_renewed(now: &mut Option<Line>, then: &Line, presented: Presented) {
    if let Some(line) = now.as_mut().filter(|line| line.presented == then.presented) {
        line.presented = Some(presented);
    }
}

/// The same for a proxy that may fall silent meanwhile.
pub async fn renewed_in_time(server: &Arc<Server>, proxy: &ServerRow, line: &Line) -> Result<Presented, NotRenewed> {
    let silent = || Status::deadline_exceeded(format!("no answer within {} s", RENEW_MS_MAX / 1_000));
    match tokio::time::timeout(Duration::from_millis(RENEW_MS_MAX), renewed(server, proxy, line)).await {
        Ok(renewed) => renewed,
        Err(_) => Err(silent().into()),
    }
}

/// The proxy makes a new key, and gets a certificate for it. Both its keys count until it comes with the new one.
async fn renewed(server: &Arc<Server>, proxy: &ServerRow, line: &Line) -> Result<Presented, NotRenewed> {
    let mut client = client(line.channel.clone());
    let request = client.renew_identity(RenewRequest {}).await?.into_inner();
    let certificate = server.authority.certify(&request.der, proxy.id, server.clock.now())?;
    let presented = read(&certificate)?;
    server.store.next_key(proxy.id, presented.key).await.map_err(TrustError::from)?;
    let authority = server.authority.certificate().to_vec();
    client.install_identity(Identity { certificate, authority }).await?;
    server.store.has_key(proxy.id, presented.key, us(presented.until)).await.map_err(TrustError::from)?;
    tracing::info!(proxy = %proxy.name, until = %presented.until, "its certificate was renewed");
    Ok(presented)
}
