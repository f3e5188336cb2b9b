//! `GET /status` and the OpenAPI document.

use super::answer::Answer;
use crate::instant::rfc3339;
use crate::server::Server;
use axum::Json;
use axum::extract::State;
use lull_api::infrastructure::ServerStatus;
use std::sync::Arc;

/// The OpenAPI document of this interface.
#[utoipa::path(get, path = "/openapi.json", tag = "server", responses((status = 200, body = Object)))]
pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(super::openapi())
}

/// Who answers.
#[utoipa::path(get, path = "/status", tag = "server", responses((status = 200, body = ServerStatus)))]
pub async fn status(State(server): State<Arc<Server>>) -> Answer<Json<ServerStatus>> {
    let tasks = server.book.open_tasks().await.len();
    Ok(Json(ServerStatus {
        version: env!("CARGO_PKG_VERSION").into(),
        started_at: rfc3339(server.started),
        state_dir: server.state_dir.display().to_string(),
        running_tasks: u32::try_from(tasks).unwrap_or(u32::MAX),
    }))
}
