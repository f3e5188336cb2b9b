//! Managed servers: list and show them, make one of a machine, repair, upgrade and remove it. Work on a machine answers with JSON lines as
//! it goes on, and goes on when the caller hangs up. Logins go with the request and are handed on.

use super::answer::{Answer, Fault, bad_value};
use super::body::Body;
use super::names::{Place, SERVER, bounded, find};
use super::proxies::{self, joined, not_preferred};
use crate::managed::{self, Lines, Reached, Turn, login};
use crate::proxies::joining::check_name;
use crate::server::Server;
use crate::store::infrastructure::ServerRow;
use crate::store::json;
use crate::store::machines::MachineRow;
use axum::Json;
use axum::body::{Body as AxumBody, Bytes};
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use lull_api::Problem;
use lull_api::infrastructure::Proxy;
use lull_api::managed::{
    AskHostKey, Machine, MachineCheck, ManagedLine, ManagedServer, NewManagedServer, ServerWork, ShownHostKey,
};
use lull_engine::ids::ServerId;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use uuid::Uuid;

/// All managed servers.
#[utoipa::path(get, path = "/managed-servers", tag = "managed servers", responses((status = 200, body = Vec<ManagedServer>)))]
pub async fn list(State(server): State<Arc<Server>>) -> Answer<Json<Vec<ManagedServer>>> {
    Ok(Json(all(&server).await?))
}

/// One managed server.
#[utoipa::path(get, path = "/managed-servers/{server}", tag = "managed servers",
    params(("server" = String, Path, description = "name or id")), responses((status = 200, body = ManagedServer)))]
pub async fn get(State(server): State<Arc<Server>>, Path(name): Path<String>) -> Answer<Json<ManagedServer>> {
    Ok(Json(find(SERVER, Place::Path, &name, all(&server).await?, |known| (known.id, known.name.clone()))?))
}

/// The SSH host key that a machine shows. Nothing secret is sent to it.
#[utoipa::path(post, path = "/managed-servers/host-key", tag = "managed servers", request_body = AskHostKey,
    responses((status = 200, body = ShownHostKey)))]
pub async fn host_key(State(server): State<Arc<Server>>, Body(ask): Body<AskHostKey>) -> Answer<Json<ShownHostKey>> {
    let host = bounded("host", ask.host, 255)?;
    Ok(Json(managed::host_key(&server, &host, ask.port).await?))
}

/// Looks at a machine that may become a managed server. Nothing is changed there.
#[utoipa::path(post, path = "/managed-servers/check", tag = "managed servers", request_body = NewManagedServer,
    responses((status = 200, body = MachineCheck)))]
pub async fn check(State(server): State<Arc<Server>>, Body(new): Body<NewManagedServer>) -> Answer<Json<MachineCheck>> {
    let (_, reached) = reached(&server, new).await?;
    let _turn = managed::turn(&server, &reached.machine)?;
    Ok(Json(managed::check(&server, &reached, false).await?))
}

/// Installs a proxy on a machine and waits until it is online.
#[utoipa::path(post, path = "/managed-servers", tag = "managed servers", request_body = NewManagedServer,
    responses((status = 200, content_type = "application/x-ndjson", body = ManagedLine)))]
pub async fn add(State(server): State<Arc<Server>>, Body(new): Body<NewManagedServer>) -> Answer<Response> {
    let (name, reached) = reached(&server, new).await?;
    check_name(&name).map_err(|status| bad_value("name", status.message().to_string()))?;
    if let Some(known) = server.store.servers().await?.iter().find(|known| known.name == name) {
        let what = format!("there is a managed server named {name} already");
        let remedy = match known.is_backup_server {
            true => "choose another name: that one is the backup server's own".to_string(),
            false => {
                format!("choose another name, or, where it is the same machine: lull managed-server repair {name}")
            }
        };
        return Err(Problem::new(409, "name-taken", what).remedy(remedy).into());
    }
    let turn = managed::turn(&server, &reached.machine)?;
    let worker = server.clone();
    Ok(follow(&server, turn, |lines| async move { managed::add(&worker, name, reached, &lines).await.map(Some) }))
}

/// Looks at the machine of a managed server. Nothing is changed there.
#[utoipa::path(post, path = "/managed-servers/{server}/check", tag = "managed servers", request_body = ServerWork,
    params(("server" = String, Path, description = "name or id")), responses((status = 200, body = MachineCheck)))]
pub async fn check_known(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    Body(work): Body<ServerWork>,
) -> Answer<Json<MachineCheck>> {
    let (_, reached, _turn) = entered(&server, &name, work).await?;
    Ok(Json(managed::check(&server, &reached, true).await?))
}

/// Puts back what is missing or broken on the machine of a managed server: program, identity, service.
#[utoipa::path(post, path = "/managed-servers/{server}/repair", tag = "managed servers", request_body = ServerWork,
    params(("server" = String, Path, description = "name or id")),
    responses((status = 200, content_type = "application/x-ndjson", body = ManagedLine)))]
pub async fn repair(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    Body(work): Body<ServerWork>,
) -> Answer<Response> {
    let (row, reached, turn) = entered(&server, &name, work).await?;
    let worker = server.clone();
    Ok(follow(&server, turn, |lines| async move { managed::repair(&worker, row, reached, &lines).await }))
}

/// The backup server's own program takes the place of the one on the machine, once its tasks have ended.
#[utoipa::path(post, path = "/managed-servers/{server}/upgrade", tag = "managed servers", request_body = ServerWork,
    params(("server" = String, Path, description = "name or id")),
    responses((status = 200, content_type = "application/x-ndjson", body = ManagedLine)))]
pub async fn upgrade(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    Body(work): Body<ServerWork>,
) -> Answer<Response> {
    let (row, reached, turn) = entered(&server, &name, work).await?;
    let worker = server.clone();
    Ok(follow(&server, turn, |lines| async move { managed::upgrade(&worker, row, reached, &lines).await }))
}

/// Removes all of Lull from the machine, then the managed server. `DELETE /proxies/{proxy}` removes it here only.
#[utoipa::path(post, path = "/managed-servers/{server}/remove", tag = "managed servers", request_body = ServerWork,
    params(("server" = String, Path, description = "name or id")),
    responses((status = 200, content_type = "application/x-ndjson", body = ManagedLine)))]
pub async fn remove(
    State(server): State<Arc<Server>>,
    Path(name): Path<String>,
    Body(work): Body<ServerWork>,
) -> Answer<Response> {
    let (row, reached, turn) = entered(&server, &name, work).await?;
    not_preferred(&server, &row).await?;
    let worker = server.clone();
    Ok(follow(&server, turn, |lines| async move { managed::remove(&worker, row, reached, &lines).await }))
}

/// A managed server, the way to its machine, and the turn to work there.
async fn entered(server: &Arc<Server>, name: &str, work: ServerWork) -> Answer<(ServerRow, Reached, Turn)> {
    let (row, reached) = known(server, name, work).await?;
    let turn = managed::turn(server, &reached.machine)?;
    Ok((row, reached, turn))
}

/// Starts work on a machine, and answers with its lines. The work does not end with its caller.
fn follow<F>(server: &Arc<Server>, turn: Turn, work: impl FnOnce(Lines) -> F) -> Response
where
    F: Future<Output = Result<Option<ServerRow>, Problem>> + Send + 'static,
{
    let (to_caller, told) = mpsc::unbounded_channel();
    let work = work(Lines(to_caller.clone()));
    let worker = server.clone();
    server.spawn(async move {
        let end = match work.await {
            Ok(row) => done(&worker, row).await,
            Err(problem) => {
                tracing::warn!(why = problem.what, "work on a machine failed");
                ManagedLine::Failed(problem)
            }
        };
        drop(turn);
        let _ = to_caller.send(end);
    });
    let line = |line: ManagedLine| Ok::<Bytes, Infallible>(Bytes::from(json(&line) + "\n"));
    let stream = UnboundedReceiverStream::new(told).map(line);
    ([(CONTENT_TYPE, "application/x-ndjson")], AxumBody::from_stream(stream)).into_response()
}

async fn done(server: &Arc<Server>, row: Option<ServerRow>) -> ManagedLine {
    let Some(row) = row else { return ManagedLine::Done { server: None } };
    match all(server).await {
        Ok(all) => ManagedLine::Done { server: all.into_iter().find(|known| known.id == row.id).map(Box::new) },
        Err(Fault(problem)) => ManagedLine::Failed(*problem),
    }
}

/// A machine that may become a managed server: its name, and how it is reached.
async fn reached(server: &Server, new: NewManagedServer) -> Answer<(String, Reached)> {
    match new.kind.as_str() {
        "linux" => {}
        "windows" => return Err(no_windows().into()),
        other => return Err(bad_value("kind", format!("\"{}\" must be linux", super::shortened(other)))),
    }
    let host = bounded("host", new.host, 255)?;
    let server_address = managed::own_address(server, new.server_address.as_deref(), &host, new.port).await?;
    let machine = Machine {
        port: new.port,
        host_key: fingerprint(new.host_key)?,
        server_address,
        slots: new.slots,
        service: true,
        run_instead: None,
        host,
    };
    let name = new.name.unwrap_or_else(|| machine.host.clone());
    let credential = login::credential(new.login, &machine.host).map_err(|(member, what)| bad_value(member, what))?;
    Ok((name, Reached { machine, credential }))
}

/// The machine of a managed server, with what is otherwise now.
async fn known(server: &Server, name: &str, work: ServerWork) -> Answer<(ServerRow, Reached)> {
    let row = joined(server, Place::Path, name).await?;
    let before = server.store.machines().await?.remove(&row.id);
    if before.as_ref().is_some_and(|row| row.kind == "windows") {
        return Err(no_windows().into());
    }
    let before = before.and_then(|row| row.machine);
    let Some(host) = work.host.or_else(|| before.as_ref().map(|machine| machine.host.clone())) else {
        let what = format!("{name} joined by hand: nobody said how its machine is reached");
        return Err(Problem::new(409, "no-machine", what)
            .remedy("give its address: --host HOST --host-key SHA256:…")
            .into());
    };
    let host = bounded("host", host, 255)?;
    let port = work.port.or_else(|| before.as_ref().map(|machine| machine.port)).unwrap_or(22);
    // A key was accepted for one machine, not for whatever is named now.
    let same = before.as_ref().filter(|machine| machine.host == host && machine.port == port);
    let Some(host_key) = work.host_key.or_else(|| same.map(|machine| machine.host_key.clone())) else {
        return Err(bad_value("host_key", "no host key of this machine was accepted yet"));
    };
    let given = work.server_address.or_else(|| before.as_ref().map(|machine| machine.server_address.clone()));
    let machine = Machine {
        host_key: fingerprint(host_key)?,
        server_address: managed::own_address(server, given.as_deref(), &host, port).await?,
        slots: work.slots.or_else(|| before.as_ref().map(|machine| machine.slots)).unwrap_or(0),
        service: before.as_ref().is_none_or(|machine| machine.service),
        run_instead: before.and_then(|machine| machine.run_instead),
        host,
        port,
    };
    let credential = login::credential(work.login, &machine.host).map_err(|(member, what)| bad_value(member, what))?;
    Ok((row, Reached { machine, credential }))
}

fn fingerprint(text: String) -> Answer<String> {
    match text.strip_prefix("SHA256:") {
        Some(hash)
            if hash.len() == 43 && hash.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/')) =>
        {
            Ok(text)
        }
        _ => Err(bad_value("host_key", "must be SHA256: and 43 characters, as ssh-keygen -l prints it")),
    }
}

fn no_windows() -> Problem {
    Problem::new(409, "no-windows-yet", "Windows servers cannot be added yet: that comes with the support of Windows")
        .remedy("add a Linux server")
}

async fn all(server: &Arc<Server>) -> Answer<Vec<ManagedServer>> {
    let Json(proxies) = proxies::list(State(server.clone())).await?;
    let mut proxies: BTreeMap<Uuid, Proxy> = proxies.into_iter().map(|proxy| (proxy.id, proxy)).collect();
    let mut machines = server.store.machines().await?;
    let hosts: BTreeMap<Uuid, String> =
        server.store.hosts().await?.into_iter().map(|host| (host.id, host.name)).collect();
    let shown = |row: ServerRow| {
        let proxy = proxies.remove(&row.id);
        let MachineRow { kind, machine } =
            machines.remove(&row.id).unwrap_or(MachineRow { kind: "linux".into(), machine: None });
        let reached = server.proxies.get(ServerId(row.id)).map(|link| link.health().last_known.hosts_reached);
        let version = proxy.as_ref().map(|proxy| proxy.version.clone()).unwrap_or_default();
        ManagedServer {
            id: row.id,
            name: row.name,
            is_backup_server: row.is_backup_server,
            state: proxy.as_ref().map_or("offline".into(), |proxy| proxy.state.clone()),
            licensed: proxy.as_ref().is_none_or(|proxy| proxy.licensed),
            problem: proxy.as_ref().and_then(|proxy| proxy.problem.clone()),
            upgrade: !version.is_empty() && version != env!("CARGO_PKG_VERSION"),
            version,
            networks: proxy.as_ref().map(|proxy| proxy.networks.clone()).unwrap_or_default(),
            channels: proxy.as_ref().map(|proxy| proxy.channels.clone()).unwrap_or_default(),
            slots: proxy.as_ref().map_or(0, |proxy| proxy.slots),
            hosts: reached.unwrap_or_default().iter().filter_map(|id| hosts.get(id).cloned()).collect(),
            kind,
            machine,
        }
    };
    Ok(server.store.servers().await?.into_iter().map(shown).collect())
}
