//! Guest interaction proxies.

use crate::proxies::ProxyLink;
use crate::server::Server;
use axum::Json;
use axum::extract::State;
use lull_api::infrastructure::Proxy;
use std::sync::Arc;

/// All guest interaction proxies.
#[utoipa::path(get, path = "/proxies", tag = "proxies", responses((status = 200, body = Vec<Proxy>)))]
pub async fn list(State(server): State<Arc<Server>>) -> Json<Vec<Proxy>> {
    Json(server.proxies.all().map(|link| shown(link, server.proxies.running(link.server.id))).collect())
}

fn shown(link: &ProxyLink, running_tasks: u32) -> Proxy {
    let health = link.health();
    let state = match (link.server.role_enabled, health.online) {
        (false, _) => "disabled",
        (true, true) => "online",
        (true, false) => "offline",
    };
    let description = health.description.unwrap_or_default();
    Proxy {
        id: link.server.id,
        name: link.server.name.clone(),
        platform: description.platform,
        is_backup_server: link.server.is_backup_server,
        state: state.into(),
        version: description.version,
        networks: description.networks,
        channels: description.channels,
        slots: description.slots,
        running_tasks,
    }
}
