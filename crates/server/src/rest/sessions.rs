//! Sessions: listed, shown, cancelled; and the caller's side of a `quiesce`.

use super::answer::{Answer, bad_value};
use super::body::{Body, Params};
use super::names::{JOB, Place, find};
use super::view::{self, session_view, summary};
use crate::runner::begin::{self, NoHold};
use crate::server::Server;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use lull_api::Problem;
use lull_api::session::{HoldEnd, Session, SessionSummary};
use serde::Deserialize;
use std::sync::Arc;

/// Sessions listed unless told otherwise.
const LISTED: u32 = 50;
/// Most sessions listed at once.
const LISTED_MAX: u32 = 1_000;
/// Longest text of how a command ended, in bytes.
const DETAIL_BYTES_MAX: usize = 4096;

/// Which sessions.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Name or id of a job.
    job: Option<String>,
    /// At most so many; 50 unless told, at most 1000.
    limit: Option<u32>,
}

/// The newest sessions, newest first.
#[utoipa::path(get, path = "/sessions", tag = "sessions", params(Which),
    responses((status = 200, body = Vec<SessionSummary>)))]
pub async fn list(
    State(server): State<Arc<Server>>,
    Params(which): Params<Which>,
) -> Answer<Json<Vec<SessionSummary>>> {
    let limit = which.limit.unwrap_or(LISTED);
    if limit == 0 || limit > LISTED_MAX {
        return Err(bad_value("limit", format!("must lie between 1 and {LISTED_MAX}")));
    }
    let job = match which.job {
        None => None,
        Some(wanted) => {
            let jobs = server.store.jobs().await?;
            Some(find(JOB, Place::Body, &wanted, jobs, |job| (job.job.id.0, job.job.name.clone()))?.job.id.0)
        }
    };
    Ok(Json(server.store.sessions(job, limit).await?.into_iter().map(summary).collect()))
}

/// One session with its tasks.
#[utoipa::path(get, path = "/sessions/{session}", tag = "sessions",
    params(("session" = String, Path, description = "number")), responses((status = 200, body = Session)))]
pub async fn get(State(server): State<Arc<Server>>, Path(session): Path<String>) -> Answer<Json<Session>> {
    let row = view::find(&server, &session).await?;
    Ok(Json(session_view(&server, row.id).await?))
}

/// Cancels a session: its guests are brought back to where they were.
#[utoipa::path(post, path = "/sessions/{session}/cancel", tag = "sessions",
    params(("session" = String, Path, description = "number")), responses((status = 200, body = Session)))]
pub async fn cancel(State(server): State<Arc<Server>>, Path(session): Path<String>) -> Answer<Json<Session>> {
    let row = view::find(&server, &session).await?;
    if !begin::cancel(&server, row.id).await? {
        return Err(Problem::new(409, "finished", format!("session {} is over already", row.id)).into());
    }
    Ok(Json(session_view(&server, row.id).await?))
}

/// The caller of a `quiesce` still waits for its snapshot: the guest stays at rest for some seconds more.
#[utoipa::path(post, path = "/sessions/{session}/renew", tag = "sessions",
    params(("session" = String, Path, description = "number")), responses((status = 204)))]
pub async fn renew(State(server): State<Arc<Server>>, Path(session): Path<String>) -> Answer<StatusCode> {
    let row = view::find(&server, &session).await?;
    held(row.id, begin::renew(&server, row.id).await)
}

/// The caller of a `quiesce` is done: the guest is thawed.
#[utoipa::path(post, path = "/sessions/{session}/end", tag = "sessions",
    params(("session" = String, Path, description = "number")), request_body = HoldEnd, responses((status = 204)))]
pub async fn end(
    State(server): State<Arc<Server>>,
    Path(session): Path<String>,
    Body(end): Body<HoldEnd>,
) -> Answer<StatusCode> {
    let row = view::find(&server, &session).await?;
    if end.detail.len() > DETAIL_BYTES_MAX {
        return Err(bad_value("detail", format!("at most {DETAIL_BYTES_MAX} bytes")));
    }
    held(row.id, begin::end(&server, row.id, end).await)
}

fn held(session: i64, done: Result<(), NoHold>) -> Answer<StatusCode> {
    match done {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(NoHold::NotOpen) => {
            let what = format!("session {session} holds no guest: it is over, or it is no quiesce");
            Err(Problem::new(409, "no-hold", what).into())
        }
        Err(NoHold::NotReached) => {
            let what = format!("no proxy holds the guest of session {session} at the moment");
            Err(Problem::new(409, "no-hold", what).remedy("wait for the event hold-ready").into())
        }
    }
}

/// Whether new work may begin.
pub fn takes_work(server: &Server) -> Answer<()> {
    if server.stopping.is_cancelled() {
        let problem = Problem::new(503, "stopping", "the backup server is stopping and takes no new work");
        return Err(problem.remedy("start it again, then repeat the command").into());
    }
    Ok(())
}
