//! Repositories.

use super::answer::{Answer, bad_value};
use super::body::Body;
use super::hosts::{absolute, checked_limit};
use super::names::{Place, REPOSITORY, checked, find, listed};
use crate::disk::free_bytes;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::infrastructure::RepositoryRow;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use lull_api::Problem;
use lull_api::infrastructure::{NewRepository, Repository, RepositoryChange};
use std::sync::Arc;
use uuid::Uuid;

/// All repositories.
#[utoipa::path(get, path = "/repositories", tag = "repositories", responses((status = 200, body = Vec<Repository>)))]
pub async fn list(State(server): State<Arc<Server>>) -> Answer<Json<Vec<Repository>>> {
    let mut all = Vec::new();
    for row in server.store.repositories().await? {
        all.push(shown(&server, row).await?);
    }
    Ok(Json(all))
}

/// Adds a repository.
#[utoipa::path(post, path = "/repositories", tag = "repositories", request_body = NewRepository,
    responses((status = 201, body = Repository)))]
pub async fn add(
    State(server): State<Arc<Server>>,
    Body(new): Body<NewRepository>,
) -> Answer<(StatusCode, Json<Repository>)> {
    let name = checked("name", new.name)?;
    let path = absolute("path", new.path)?;
    if let Some(problem) = problem(&path) {
        return Err(bad_value("path", format!("{problem}; create the folder first")));
    }
    let row = RepositoryRow { id: Uuid::now_v7(), name, path };
    server.store.add_repository(&row).await?;
    Ok((StatusCode::CREATED, Json(shown(&server, row).await?)))
}

/// One repository.
#[utoipa::path(get, path = "/repositories/{repository}", tag = "repositories",
    params(("repository" = String, Path, description = "name or id")), responses((status = 200, body = Repository)))]
pub async fn get(State(server): State<Arc<Server>>, Path(repository): Path<String>) -> Answer<Json<Repository>> {
    let row = named(&server, Place::Path, &repository).await?;
    Ok(Json(shown(&server, row).await?))
}

/// Changes how many backups are written into a repository at once.
#[utoipa::path(patch, path = "/repositories/{repository}", tag = "repositories",
    params(("repository" = String, Path, description = "name or id")), request_body = RepositoryChange,
    responses((status = 200, body = Repository)))]
pub async fn change(
    State(server): State<Arc<Server>>,
    Path(repository): Path<String>,
    Body(change): Body<RepositoryChange>,
) -> Answer<Json<Repository>> {
    let row = named(&server, Place::Path, &repository).await?;
    if let Some(max_tasks) = change.max_tasks {
        server.store.set_repository_limit(row.id, checked_limit(max_tasks)?).await?;
        server.wake.notify_one();
    }
    Ok(Json(shown(&server, row).await?))
}

/// Removes a repository that no job and no restore point uses; its folder stays.
#[utoipa::path(delete, path = "/repositories/{repository}", tag = "repositories",
    params(("repository" = String, Path, description = "name or id")), responses((status = 204)))]
pub async fn remove(State(server): State<Arc<Server>>, Path(repository): Path<String>) -> Answer<StatusCode> {
    let row = named(&server, Place::Path, &repository).await?;
    match server.store.remove_repository(row.id).await {
        Err(StoreError::InUse { .. }) => {
            let jobs = server.store.jobs().await?;
            let users: Vec<String> =
                jobs.into_iter().filter(|job| job.repository == row.id).map(|job| job.job.name).collect();
            let points = points(&server, row.id).await?;
            let mut uses = Vec::new();
            if !users.is_empty() {
                uses.push(format!("jobs write to it: {}", listed(&users)));
            }
            if points > 0 {
                uses.push(format!("it holds {points} restore points"));
            }
            let what = format!("repository {} is in use: {}", row.name, uses.join("; "));
            Err(Problem::new(409, "in-use", what)
                .remedy("change these jobs and delete the restore points first")
                .into())
        }
        done => Ok(done.map(|()| StatusCode::NO_CONTENT)?),
    }
}

/// The repository that a caller names.
pub async fn named(server: &Server, place: Place, wanted: &str) -> Answer<RepositoryRow> {
    find(REPOSITORY, place, wanted, server.store.repositories().await?, |r| (r.id, r.name.clone()))
}

async fn points(server: &Server, repository: Uuid) -> Answer<u32> {
    let all = server.store.restore_points(None).await?;
    let count = all.iter().filter(|point| point.repository == repository).count();
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

async fn shown(server: &Server, row: RepositoryRow) -> Answer<Repository> {
    Ok(Repository {
        id: row.id,
        restore_points: points(server, row.id).await?,
        max_tasks: server.store.task_limits().await?.repositories.get(&row.id).copied().unwrap_or_default(),
        free_bytes: free_bytes(&row.path),
        problem: problem(&row.path),
        name: row.name,
        path: row.path,
    })
}

/// Why a folder cannot be used.
pub fn problem(path: &str) -> Option<String> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => None,
        Ok(_) => Some(format!("{path} is no folder")),
        Err(error) => Some(format!("{path} cannot be looked at: {error}")),
    }
}
