//! The licence: shown, installed, removed.

use super::answer::{Answer, Fault};
use super::body::Body;
use crate::licence::LicenceError;
use crate::server::Server;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use lull_api::Problem;
use lull_api::licence::{LicenceFile, LicenceStatus};
use std::sync::Arc;

/// The licence in force.
#[utoipa::path(get, path = "/licence", tag = "licence", responses((status = 200, body = LicenceStatus)))]
pub async fn get(State(server): State<Arc<Server>>) -> Json<LicenceStatus> {
    Json(server.licence.status(server.clock.now()))
}

/// Installs a licence in place of the one before, if it is genuine and holds today.
#[utoipa::path(post, path = "/licence", tag = "licence", request_body = LicenceFile,
    responses((status = 200, body = LicenceStatus)))]
pub async fn install(State(server): State<Arc<Server>>, Body(file): Body<LicenceFile>) -> Answer<Json<LicenceStatus>> {
    let now = server.clock.now();
    server.licence.install(&server.store, &file, now).await?.map_err(refused)?;
    // Who may serve whom is another question now.
    server.wake.notify_one();
    Ok(Json(server.licence.status(now)))
}

/// Removes the installed licence: the built-in one holds again.
#[utoipa::path(delete, path = "/licence", tag = "licence", responses((status = 204)))]
pub async fn remove(State(server): State<Arc<Server>>) -> Answer<StatusCode> {
    if !server.licence.remove(&server.store).await? {
        return Err(Problem::new(409, "no-licence", "no licence is installed: the built-in one holds").into());
    }
    server.wake.notify_one();
    Ok(StatusCode::NO_CONTENT)
}

fn refused(error: LicenceError) -> Fault {
    let (code, remedy) = match &error {
        LicenceError::Damaged { .. } => ("licence-damaged", "get the file again from where it came, unchanged"),
        LicenceError::Format { .. } => ("licence-format", "run the version of Lull that it was issued for"),
        LicenceError::UnknownIssuer { .. } => (
            "licence-unknown-issuer",
            "where you trust that issuer, put its public key into the server's state folder: licence-issuers/NAME.pub",
        ),
        LicenceError::Signature => ("licence-signature", "get the file again from where it came, unchanged"),
        LicenceError::NotYet { .. } => {
            ("licence-not-yet-valid", "install it on that day; the one in force stays until then")
        }
        LicenceError::Expired { .. } => ("licence-expired", "get a new one; the one in force stays"),
    };
    Problem::new(422, code, error.to_string()).remedy(remedy).into()
}
