//! What an administrator says about guest interaction proxies: enabled, draining or disabled, and how many tasks at once.

use super::answer::{Answer, bad_value};
use super::body::Body;
use super::names::{Place, SERVER, find};
use super::proxies;
use crate::infrastructure::snapshot;
use crate::runner::preview::state;
use crate::server::Server;
use crate::store::StoreError;
use axum::Json;
use axum::extract::{Path, State};
use lull_api::infrastructure::{Proxy, ProxyChange};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Most task slots of one proxy.
const SLOTS_MAX: u32 = 1_024;

/// Changes what a guest interaction proxy may do.
#[utoipa::path(patch, path = "/proxies/{proxy}", tag = "proxies",
    params(("proxy" = String, Path, description = "name or id of its managed server")), request_body = ProxyChange,
    responses((status = 200, body = Proxy)))]
pub async fn change(
    State(server): State<Arc<Server>>,
    Path(proxy): Path<String>,
    Body(change): Body<ProxyChange>,
) -> Answer<Json<Proxy>> {
    let row = find(SERVER, Place::Path, &proxy, server.store.servers().await?, |row| (row.id, row.name.clone()))?;
    let mut said = server.store.server_duties().await?.remove(&row.id).unwrap_or_default();
    if let Some(state) = change.state {
        said.duty = state.parse().map_err(|why: String| bad_value("state", super::shortened(&why)))?;
    }
    match change.slots {
        None => {}
        Some(0) => said.slots = None,
        Some(slots) if slots <= SLOTS_MAX => said.slots = Some(slots),
        Some(_) => return Err(bad_value("slots", format!("at most {SLOTS_MAX}; 0 for as many as the proxy says"))),
    }
    server.store.set_server_duty(row.id, said).await?;
    server.wake.notify_one();
    let Json(all) = proxies::list(State(server)).await?;
    let shown = all.into_iter().find(|proxy| proxy.id == row.id);
    Ok(Json(shown.ok_or(StoreError::Missing { kind: "managed server" })?))
}

/// What is known of the proxies beyond what they say of themselves: their state as the rules see it, slots, licence.
pub async fn overlay(server: &Server, proxies: &mut [Proxy]) -> Answer<()> {
    let duties = server.store.server_duties().await?;
    let known = snapshot(server).await?;
    let servers: BTreeMap<Uuid, _> = known.servers.iter().map(|server| (server.id.0, server)).collect();
    for proxy in proxies {
        proxy.slots_set = duties.get(&proxy.id).and_then(|said| said.slots);
        proxy.licensed = proxy.is_backup_server || known.licence.admits_proxies();
        if let Some(seen) = servers.get(&proxy.id) {
            proxy.slots = seen.slots;
            // Who was turned away is no matter of an administrator's word; whoever is so only since the first look is shown so with the next.
            let (before, now) = (proxy.state.as_str(), state(seen));
            if ![before, now].iter().any(|state| matches!(*state, "revoked" | "incompatible")) {
                proxy.state = now.into();
            }
        }
    }
    Ok(())
}
