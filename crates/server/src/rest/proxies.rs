//! Guest interaction proxies: list, tokens with which machines join, revoking and removing.

use super::answer::{Answer, bad_value};
use super::body::Body;
use super::names::{Place, SERVER, find, listed};
use super::proxy_duty;
use crate::instant::{rfc3339, us};
use crate::proxies::ProxyLink;
use crate::proxies::joining::{self, TOKEN_LIFE, TOKEN_LIFE_MAX, TokenFor};
use crate::server::Server;
use crate::store::StoreError;
use crate::store::infrastructure::ServerRow;
use crate::store::jobs::StoredJob;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use lull_api::Problem;
use lull_api::infrastructure::{JoinToken, NewJoinToken, Proxy};
use lull_engine::ids::ServerId;
use lull_engine::settings::ProxyPolicy;
use lull_proxy_wire::{GENERATION, fits};
use std::sync::Arc;

/// All guest interaction proxies.
#[utoipa::path(get, path = "/proxies", tag = "proxies", responses((status = 200, body = Vec<Proxy>)))]
pub async fn list(State(server): State<Arc<Server>>) -> Answer<Json<Vec<Proxy>>> {
    let links = server.proxies.all();
    let shown = |link: &Arc<ProxyLink>| shown(link, server.proxies.running(link.server.id));
    let mut proxies: Vec<Proxy> = links.iter().map(shown).collect();
    proxy_duty::overlay(&server, &mut proxies).await?;
    Ok(Json(proxies))
}

/// Makes a token with which one machine becomes a proxy. Its text is shown this once.
#[utoipa::path(post, path = "/proxies/tokens", tag = "proxies", request_body = NewJoinToken,
    responses((status = 201, body = JoinToken)))]
pub async fn make_token(
    State(server): State<Arc<Server>>,
    Body(new): Body<NewJoinToken>,
) -> Answer<(StatusCode, Json<JoinToken>)> {
    let Some(address) = server.proxy_address else {
        let what = "this backup server does not listen for proxies on other machines";
        return Err(Problem::new(409, "no-proxy-port", what).remedy("start it without --proxy-listen none").into());
    };
    let whom = match (new.again, new.name) {
        (Some(_), Some(_)) => return Err(bad_value("name", "cannot be given together with again")),
        (Some(again), None) => TokenFor::Again(joined(&server, Place::Body, &again).await?),
        (None, name) => {
            if let Some(name) = &name {
                joining::check_name(name).map_err(|status| bad_value("name", status.message().to_string()))?;
                if let Some(known) = server.store.servers().await?.iter().find(|known| known.name == *name) {
                    let what = format!("there is a managed server named {name} already");
                    let remedy = match known.is_backup_server {
                        true => "choose another name: that one is the backup server's own".to_string(),
                        false => format!(
                            "choose another name, or, where the same machine joins again: lull proxy token --again {name}"
                        ),
                    };
                    return Err(Problem::new(409, "name-taken", what).remedy(remedy).into());
                }
            }
            TokenFor::New(name)
        }
    };
    let life = match new.valid_for_s {
        None => TOKEN_LIFE,
        Some(s) => {
            let life = i64::try_from(s).map(SignedDuration::from_secs).unwrap_or(SignedDuration::MAX);
            if life.is_zero() || life > TOKEN_LIFE_MAX {
                let what = format!("must lie between 1 and {} seconds", TOKEN_LIFE_MAX.as_secs());
                return Err(bad_value("valid_for_s", what));
            }
            life
        }
    };
    let name = match &whom {
        TokenFor::New(name) => name.clone(),
        TokenFor::Again(row) => Some(row.name.clone()),
    };
    let (token, expires) = joining::make_token(&server, whom, life).await?;
    let (token, expires_at) = (token.to_string(), rfc3339(expires));
    Ok((StatusCode::CREATED, Json(JoinToken { token, expires_at, name, port: address.port() })))
}

/// Cuts a proxy off at once: its certificate does not count any more, and what it was working on goes to another.
#[utoipa::path(post, path = "/proxies/{proxy}/revoke", tag = "proxies",
    params(("proxy" = String, Path, description = "name or id")), responses((status = 200, body = Proxy)))]
pub async fn revoke(State(server): State<Arc<Server>>, Path(proxy): Path<String>) -> Answer<Json<Proxy>> {
    let row = joined(&server, Place::Path, &proxy).await?;
    server.store.revoke(row.id, us(Timestamp::now())).await?;
    let link = server.proxies.get(ServerId(row.id)).ok_or(StoreError::Missing { kind: "managed server" })?;
    link.revoke();
    server.wake.notify_one();
    let mut revoked = [shown(&link, server.proxies.running(row.id))];
    proxy_duty::overlay(&server, &mut revoked).await?;
    let [revoked] = revoked;
    Ok(Json(revoked))
}

/// Removes a proxy that is revoked or has no tasks; jobs that prefer it are named.
#[utoipa::path(delete, path = "/proxies/{proxy}", tag = "proxies",
    params(("proxy" = String, Path, description = "name or id")), responses((status = 204)))]
pub async fn remove(State(server): State<Arc<Server>>, Path(proxy): Path<String>) -> Answer<StatusCode> {
    let row = joined(&server, Place::Path, &proxy).await?;
    let running = server.proxies.running(row.id);
    if running > 0 {
        let what = format!("{} works on {running} task{}", row.name, if running == 1 { "" } else { "s" });
        let remedy = format!("wait for their ends, or take them away from it first: lull proxy revoke {}", row.name);
        return Err(Problem::new(409, "in-use", what).remedy(remedy).into());
    }
    not_preferred(&server, &row).await?;
    server.store.remove_server(row.id).await?;
    server.proxies.remove(row.id);
    server.wake.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses where jobs prefer it.
pub async fn not_preferred(server: &Server, row: &ServerRow) -> Answer<()> {
    let jobs = server.store.jobs().await?;
    let prefers = |policy: &ProxyPolicy| matches!(policy, ProxyPolicy::Prefer { servers, .. } if servers.contains(&ServerId(row.id)));
    let uses = |job: &&StoredJob| {
        prefers(&job.job.guest_processing.proxies)
            || job.job.vms.iter().any(|vm| prefers(&job.job.settings_for(*vm).proxies))
    };
    let names: Vec<String> = jobs.iter().filter(uses).map(|job| job.job.name.clone()).collect();
    if !names.is_empty() {
        let what = format!("jobs prefer {}: {}", row.name, listed(&names));
        return Err(Problem::new(409, "in-use", what)
            .remedy("edit these jobs first: lull job edit NAME --prefer …")
            .into());
    }
    Ok(())
}

/// A managed server whose proxy joined.
pub async fn joined(server: &Server, place: Place, wanted: &str) -> Answer<ServerRow> {
    let row = find(SERVER, place, wanted, server.store.servers().await?, |row| (row.id, row.name.clone()))?;
    if row.is_backup_server {
        let what = format!("{} is the backup server's own proxy", row.name);
        return Err(Problem::new(409, "own-proxy", what)
            .remedy("it cannot be revoked, removed or joined again")
            .into());
    }
    Ok(row)
}

fn shown(link: &ProxyLink, running_tasks: u32) -> Proxy {
    let health = link.health();
    let state = match (link.server.role_enabled, health.revoked, health.online, &health.trouble) {
        (_, true, _, _) => "revoked",
        (false, ..) => "disabled",
        (true, _, true, _) => "online",
        (true, _, false, Some(_)) if !fits(GENERATION, health.last_known.generation.max(1)) => "incompatible",
        (true, _, false, _) => "offline",
    };
    let known = health.last_known;
    Proxy {
        id: link.server.id,
        name: link.server.name.clone(),
        platform: known.platform,
        is_backup_server: link.server.is_backup_server,
        state: state.into(),
        problem: health.trouble,
        last_heard: rfc3339(health.last_heard),
        version: known.version,
        networks: known.networks,
        channels: known.channels,
        slots: known.slots,
        slots_set: None,
        running_tasks,
        licensed: true,
    }
}
