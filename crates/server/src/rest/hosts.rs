//! Hypervisor hosts.

use super::answer::{Answer, bad_value};
use super::body::Body;
use super::names::{HOST, Place, bounded, checked, find};
use crate::look;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::duties::TaskLimits;
use crate::store::infrastructure::HostRow;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use lull_api::Problem;
use lull_api::infrastructure::{Host, HostChange, NewHost};
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Whoever adds a host waits so long until a proxy says that it reaches it.
const REACHED_MS_MAX: Duration = Duration::from_secs(3);
/// Highest limit of tasks at once.
const MAX_TASKS_MAX: u32 = 100_000;
/// Longest path, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;

/// All hypervisor hosts.
#[utoipa::path(get, path = "/hosts", tag = "hosts", responses((status = 200, body = Vec<Host>)))]
pub async fn list(State(server): State<Arc<Server>>) -> Answer<Json<Vec<Host>>> {
    let vms = server.store.vms().await?;
    let count = |host: Uuid| vms.iter().filter(|vm| vm.host == host).count();
    let hosts = server.store.hosts().await?;
    let limits = server.store.task_limits().await?;
    Ok(Json(hosts.into_iter().map(|host| shown(count(host.id), host, &limits)).collect()))
}

/// Adds a hypervisor host and looks up its VMs.
#[utoipa::path(post, path = "/hosts", tag = "hosts", request_body = NewHost, responses((status = 201, body = Host)))]
pub async fn add(State(server): State<Arc<Server>>, Body(new): Body<NewHost>) -> Answer<(StatusCode, Json<Host>)> {
    let name = checked("name", new.name)?;
    let qemu_dir = absolute("qemu_dir", new.qemu_dir)?;
    let fleecing_dir = match new.fleecing_dir {
        Some(dir) => absolute("fleecing_dir", dir)?,
        None => default_fleecing_dir(&server)?,
    };
    let seen = look::ask(&server, &qemu_dir, &fleecing_dir).await.map_err(|why| {
        Problem::new(422, "host-unreachable", format!("the VMs in {qemu_dir} cannot be listed"))
            .why(why)
            .remedy("name the folder that holds the sockets VM.qmp, and let the backup server read it")
    })?;
    let host = HostRow { id: Uuid::now_v7(), name, qemu_dir, fleecing_dir, problem: None, looked_us: None };
    server.store.add_host(&host).await?;
    server.store.record_look(host.id, &seen, crate::instant::us(jiff::Timestamp::now())).await?;
    look::ask_proxies(&server).await?;
    if let Some(own) = server.proxies.backup_server() {
        // Who runs a job next finds a proxy for it; where the backup server does not reach the host, others will say so.
        let _ = tokio::time::timeout(REACHED_MS_MAX, own.reaches(host.id)).await;
    }
    Ok((StatusCode::CREATED, Json(one(&server, host.id).await?)))
}

/// One hypervisor host.
#[utoipa::path(get, path = "/hosts/{host}", tag = "hosts", params(("host" = String, Path, description = "name or id")),
    responses((status = 200, body = Host)))]
pub async fn get(State(server): State<Arc<Server>>, Path(host): Path<String>) -> Answer<Json<Host>> {
    let host = named(&server, &host).await?;
    Ok(Json(one(&server, host.id).await?))
}

/// Changes how many backups run at once on a host's VMs.
#[utoipa::path(patch, path = "/hosts/{host}", tag = "hosts", params(("host" = String, Path, description = "name or id")),
    request_body = HostChange, responses((status = 200, body = Host)))]
pub async fn change(
    State(server): State<Arc<Server>>,
    Path(host): Path<String>,
    Body(change): Body<HostChange>,
) -> Answer<Json<Host>> {
    let host = named(&server, &host).await?;
    if let Some(max_tasks) = change.max_tasks {
        server.store.set_host_limit(host.id, checked_limit(max_tasks)?).await?;
        server.wake.notify_one();
    }
    Ok(Json(one(&server, host.id).await?))
}

/// A limit of tasks at once; 0 is none.
pub fn checked_limit(max_tasks: u32) -> Answer<u32> {
    if max_tasks > MAX_TASKS_MAX {
        return Err(bad_value("max_tasks", format!("at most {MAX_TASKS_MAX}; 0 for no limit")));
    }
    Ok(max_tasks)
}

/// Removes a hypervisor host with its VMs; their restore points stay.
#[utoipa::path(delete, path = "/hosts/{host}", tag = "hosts",
    params(("host" = String, Path, description = "name or id")), responses((status = 204)))]
pub async fn remove(State(server): State<Arc<Server>>, Path(host): Path<String>) -> Answer<StatusCode> {
    let host = named(&server, &host).await?;
    let vms = server.store.vms().await?;
    for open in server.book.open_tasks().await {
        if vms.iter().any(|vm| vm.host == host.id && vm.id == open.row.vm) {
            let what = format!("VM {} of this host is in session {}", open.row.vm_name, open.row.session);
            return Err(Problem::new(409, "in-use", what).remedy("wait for that session, or cancel it").into());
        }
    }
    match server.store.remove_host(host.id).await {
        Err(StoreError::InUse { .. }) => {
            let jobs = server.store.jobs().await?;
            let uses =
                |job: &&crate::store::jobs::StoredJob| job.job.vms.iter().any(|id| vms.iter().any(|vm| vm.id == id.0));
            let names: Vec<String> = jobs.iter().filter(uses).map(|job| job.job.name.clone()).collect();
            let what = format!("jobs have VMs of this host in scope: {}", super::names::listed(&names));
            Err(Problem::new(409, "in-use", what).remedy("take the VMs out of these jobs, or remove the jobs").into())
        }
        done => {
            done?;
            look::ask_proxies(&server).await?;
            Ok(StatusCode::NO_CONTENT)
        }
    }
}

/// Looks up a host's VMs anew.
#[utoipa::path(post, path = "/hosts/{host}/rescan", tag = "hosts",
    params(("host" = String, Path, description = "name or id")), responses((status = 200, body = Host)))]
pub async fn rescan(State(server): State<Arc<Server>>, Path(host): Path<String>) -> Answer<Json<Host>> {
    let host = named(&server, &host).await?;
    look::look(&server, &host).await?;
    Ok(Json(one(&server, host.id).await?))
}

async fn named(server: &Server, wanted: &str) -> Answer<HostRow> {
    find(HOST, Place::Path, wanted, server.store.hosts().await?, |host| (host.id, host.name.clone()))
}

async fn one(server: &Server, id: Uuid) -> Answer<Host> {
    let vms = server.store.vms().await?.iter().filter(|vm| vm.host == id).count();
    let host = server.store.hosts().await?.into_iter().find(|host| host.id == id);
    let limits = server.store.task_limits().await?;
    Ok(host.map(|host| shown(vms, host, &limits)).ok_or(StoreError::Missing { kind: "host" })?)
}

fn shown(vms: usize, host: HostRow, limits: &TaskLimits) -> Host {
    Host {
        max_tasks: limits.hosts.get(&host.id).copied().unwrap_or_default(),
        id: host.id,
        name: host.name,
        kind: "qemu".into(),
        qemu_dir: host.qemu_dir,
        fleecing_dir: host.fleecing_dir,
        vms: u32::try_from(vms).unwrap_or(u32::MAX),
        problem: host.problem,
    }
}

/// A folder that is named by its whole path.
pub fn absolute(member: &str, path: String) -> Answer<String> {
    let path = bounded(member, path, PATH_BYTES_MAX)?;
    let parts = std::path::Path::new(&path).components();
    if !path.starts_with('/') || parts.into_iter().any(|part| part == std::path::Component::ParentDir) {
        return Err(bad_value(member, format!("must be an absolute path without \"..\", not {path}")));
    }
    Ok(match path.trim_end_matches('/') {
        "" => "/".to_string(),
        trimmed => trimmed.to_string(),
    })
}

fn default_fleecing_dir(server: &Server) -> Answer<String> {
    let dir = server.state_dir.join("fleecing");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|error| {
        let what = format!("the folder for fleecing images {} cannot be created", dir.display());
        Problem::new(500, "internal", what).why(error.to_string())
    })?;
    Ok(dir.display().to_string())
}
