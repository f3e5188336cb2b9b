//! VMs, their guests' settings, and sessions on one VM.

use super::answer::{Answer, bad_value};
use super::body::{Body, Params};
use super::names::{CREDENTIAL, JOB, Place, bounded, find, find_vm};
use super::{guest_settings, view};
use crate::addresses::{self, From, is_name};
use crate::infrastructure::{platform_name, snapshot};
use crate::look;
use crate::resolver::Resolver;
use crate::runner::{begin, explain, order};
use crate::server::Server;
use crate::store::StoreError;
use crate::store::infrastructure::VmRow;
use crate::store::sessions::SessionKind;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use lull_api::Problem;
use lull_api::infrastructure::{AcceptHostKey, KnownAddress, ProxyExplanation, Vm, VmChange};
use lull_api::session::{QuiesceRequest, Session};
use lull_engine::ids::VmId;
use lull_engine::infrastructure::Platform;
use lull_engine::selection::{Request, select};
use lull_engine::settings::{ApplicationAware, GuestProcessing, ProxyPolicy};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use uuid::Uuid;

/// Most addresses of one VM.
const ADDRESSES_MAX: usize = 64;

/// All VMs.
#[utoipa::path(get, path = "/vms", tag = "VMs", responses((status = 200, body = Vec<Vm>)))]
pub async fn list(State(server): State<Arc<Server>>) -> Answer<Json<Vec<Vm>>> {
    look::freshen(&server).await?;
    let names = Names::read(&server).await?;
    let vms = server.store.vms().await?;
    Ok(Json(vms.iter().map(|row| names.shown(row.clone())).collect()))
}

/// One VM.
#[utoipa::path(get, path = "/vms/{vm}", tag = "VMs",
    params(("vm" = String, Path, description = "name, HOST/NAME or id")), responses((status = 200, body = Vm)))]
pub async fn get(State(server): State<Arc<Server>>, Path(vm): Path<String>) -> Answer<Json<Vm>> {
    look::freshen(&server).await?;
    let row = named(&server, &vm).await?;
    Ok(Json(Names::read(&server).await?.shown(row)))
}

/// Changes what is known of a VM's guest.
#[utoipa::path(patch, path = "/vms/{vm}", tag = "VMs",
    params(("vm" = String, Path, description = "name, HOST/NAME or id")), request_body = VmChange,
    responses((status = 200, body = Vm)))]
pub async fn change(
    State(server): State<Arc<Server>>,
    Path(vm): Path<String>,
    Body(change): Body<VmChange>,
) -> Answer<Json<Vm>> {
    let mut row = named(&server, &vm).await?;
    if let Some(addresses) = change.addresses {
        row.addresses = checked_addresses(addresses)?;
    }
    if let Some(connect) = change.connect {
        row.connect = checked_endpoint(connect)?;
    }
    match change.credential.as_deref() {
        None => {}
        Some("") => row.credential = None,
        Some(name) => {
            let credentials = server.store.credentials().await?;
            let found = find(CREDENTIAL, Place::Body, name, credentials, |c| (c.id, c.name.clone()))?;
            row.credential = Some(found.id);
        }
    }
    match change.guest_os.as_deref() {
        None => {}
        Some("") => row.guest_os = None,
        Some("linux") => row.guest_os = Some(Platform::Linux),
        Some("windows") => row.guest_os = Some(Platform::Windows),
        Some(_) => return Err(bad_value("guest_os", "must be linux, windows or empty")),
    }
    server.store.update_vm(&row).await?;
    Ok(Json(Names::read(&server).await?.shown(row)))
}

/// A person accepts the host key that the guest showed in place of the pinned one.
#[utoipa::path(post, path = "/vms/{vm}/accept-host-key", tag = "VMs",
    params(("vm" = String, Path, description = "name, HOST/NAME or id")), request_body = AcceptHostKey,
    responses((status = 200, body = Vm)))]
pub async fn accept_host_key(
    State(server): State<Arc<Server>>,
    Path(vm): Path<String>,
    Body(accept): Body<AcceptHostKey>,
) -> Answer<Json<Vm>> {
    let row = named(&server, &vm).await?;
    let fingerprint = bounded("fingerprint", accept.fingerprint, 256)?;
    let (pinned, refused) = server.store.host_keys(row.id).await?;
    let accepted = pinned.as_ref().is_some_and(|key| key.fingerprint == fingerprint);
    match refused {
        Some(key) if key.fingerprint == fingerprint => server.store.accept_host_key(row.id).await?,
        // Accepting twice is no error.
        _ if accepted => {}
        Some(key) => {
            let what = format!("the guest of {} did not show {fingerprint} last", row.name);
            let problem = Problem::new(409, "other-host-key", what)
                .why(format!("it showed {}", key.fingerprint))
                .remedy("compare that one with the guest's own: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub");
            return Err(problem.into());
        }
        None => {
            let what = format!("no host key of {} waits to be accepted", row.name);
            let problem = Problem::new(409, "no-host-key", what)
                .remedy(format!("contact the guest once, and see what it shows: lull vm test {}", row.name));
            return Err(problem.into());
        }
    }
    Ok(Json(Names::read(&server).await?.shown(row)))
}

/// Of which job the policy counts.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ExplainFor {
    /// Name or id of a job; without it, automatic selection.
    job: Option<String>,
}

/// Which proxy would serve a VM now, and why.
#[utoipa::path(get, path = "/vms/{vm}/proxy-explain", tag = "VMs",
    params(("vm" = String, Path, description = "name, HOST/NAME or id"), ExplainFor),
    responses((status = 200, body = ProxyExplanation)))]
pub async fn proxy_explain(
    State(server): State<Arc<Server>>,
    Path(vm): Path<String>,
    Params(wanted): Params<ExplainFor>,
) -> Answer<Json<ProxyExplanation>> {
    let row = named(&server, &vm).await?;
    let infrastructure = snapshot(&server).await?;
    let gone = StoreError::Missing { kind: "VM" };
    let vm = infrastructure.vms.iter().find(|vm| vm.id.0 == row.id).ok_or(gone)?;
    let at_hypervisor = wanted.job.is_some();
    let (policy, credential, in_guest) = match wanted.job {
        None => (ProxyPolicy::Automatic, vm.credential, true),
        Some(job) => {
            let jobs = server.store.jobs().await?;
            let job = find(JOB, Place::Body, &job, jobs, |job| (job.job.id.0, job.job.name.clone()))?.job;
            let credential = lull_engine::job::credential_for(&job, vm, &infrastructure.credentials);
            let settings = job.settings_for(VmId(row.id));
            let in_guest = settings.application_aware != ApplicationAware::Disabled;
            (settings.proxies, credential.map(|c| c.id), in_guest)
        }
    };
    let credential = infrastructure.credentials.iter().find(|c| Some(c.id) == credential).map(|c| c.kind);
    let request = Request {
        vm,
        credential,
        policy: &policy,
        // A job's task makes a backup; without one it is the guest alone that is asked about.
        at_hypervisor,
        licence: infrastructure.licence,
        rules: infrastructure.rules,
        servers: &infrastructure.servers,
        failures: &infrastructure.failures,
        tried: &[],
        now: infrastructure.now,
    };
    if !in_guest {
        return Ok(Json(explain::all_without_guest(&request, explain::DISABLED)));
    }
    Ok(Json(explain::explanation(&select(&request), &infrastructure.servers)))
}

/// Connects to the guest along every hop and says how far it came; nothing is frozen.
#[utoipa::path(post, path = "/vms/{vm}/test", tag = "VMs",
    params(("vm" = String, Path, description = "name, HOST/NAME or id")), responses((status = 202, body = Session)))]
pub async fn test(State(server): State<Arc<Server>>, Path(vm): Path<String>) -> Answer<(StatusCode, Json<Session>)> {
    start(&server, SessionKind::Test, &vm, GuestProcessing::default()).await
}

/// The whole quiesce and thaw without a snapshot, with measured times.
#[utoipa::path(post, path = "/vms/{vm}/rehearse", tag = "VMs",
    params(("vm" = String, Path, description = "name, HOST/NAME or id")), request_body = QuiesceRequest,
    responses((status = 202, body = Session)))]
pub async fn rehearse(
    State(server): State<Arc<Server>>,
    Path(vm): Path<String>,
    Body(request): Body<QuiesceRequest>,
) -> Answer<(StatusCode, Json<Session>)> {
    let settings = settings(&server, &request).await?;
    start(&server, SessionKind::Rehearse, &vm, settings).await
}

/// Brings a guest to rest and keeps it there while the caller renews.
#[utoipa::path(post, path = "/vms/{vm}/quiesce", tag = "VMs",
    params(("vm" = String, Path, description = "name, HOST/NAME or id")), request_body = QuiesceRequest,
    responses((status = 202, body = Session)))]
pub async fn quiesce(
    State(server): State<Arc<Server>>,
    Path(vm): Path<String>,
    Body(request): Body<QuiesceRequest>,
) -> Answer<(StatusCode, Json<Session>)> {
    let settings = settings(&server, &request).await?;
    start(&server, SessionKind::Quiesce, &vm, settings).await
}

async fn settings(server: &Server, request: &QuiesceRequest) -> Answer<GuestProcessing> {
    let mut settings = GuestProcessing::default();
    let servers = server.store.servers().await?;
    if request.guest.copy_limit_bytes_per_s.is_some() {
        return Err(bad_value("guest.copy_limit_bytes_per_s", "nothing is copied here"));
    }
    guest_settings::apply(&mut settings, &mut 0, &request.guest, &servers)?;
    if settings.application_aware == ApplicationAware::Disabled {
        return Err(bad_value(
            "guest.application_aware",
            "disabled leaves nothing to do here: use require-success or try",
        ));
    }
    match settings.validate().first() {
        Some(error) => Err(bad_value("guest", error.to_string())),
        None => Ok(settings),
    }
}

async fn start(
    server: &Arc<Server>,
    kind: SessionKind,
    vm: &str,
    settings: GuestProcessing,
) -> Answer<(StatusCode, Json<Session>)> {
    let row = named(server, vm).await?;
    super::sessions::takes_work(server)?;
    let session = begin::on_vm(server, kind, row.id, settings).await?;
    Ok((StatusCode::ACCEPTED, Json(view::session_view(server, session).await?)))
}

/// The VM that a path names.
pub async fn named(server: &Server, wanted: &str) -> Answer<VmRow> {
    find_vm(Place::Path, wanted, &server.store.vms().await?)
}

/// What is shown of a VM and stands in other tables, or is known of its names.
struct Names {
    resolver: Resolver,
    credentials: BTreeMap<Uuid, String>,
    pinned: BTreeMap<Uuid, String>,
    refused: BTreeMap<Uuid, String>,
}

impl Names {
    async fn read(server: &Server) -> Answer<Self> {
        let credentials = server.store.credentials().await?;
        server.resolver.freshen(addresses::names(server.store.vms().await?.iter())).await;
        Ok(Names {
            resolver: server.resolver.clone(),
            credentials: credentials.into_iter().map(|row| (row.id, row.name)).collect(),
            pinned: server.store.fingerprints(true).await?,
            refused: server.store.fingerprints(false).await?,
        })
    }

    fn shown(&self, row: VmRow) -> Vm {
        let known = addresses::known(&row, &self.resolver);
        let from = |from: &From| match from {
            From::Hand => "by hand".to_string(),
            From::Name(name) => format!("DNS {name}"),
            From::GuestAgent => "guest agent".to_string(),
        };
        let shown =
            known.addresses.iter().map(|(address, who)| KnownAddress { address: address.to_string(), from: from(who) });
        Vm {
            known_addresses: shown.collect(),
            address_problem: (!known.problems.is_empty()).then(|| known.problems.join("; ")),
            id: row.id,
            name: row.name,
            host: row.host_name,
            guest_os: row.guest_os.map(|os| platform_name(os).to_string()),
            addresses: row.addresses,
            connect: row.connect,
            credential: row.credential.and_then(|id| self.credentials.get(&id).cloned()),
            host_key: self.pinned.get(&row.id).cloned(),
            refused_host_key: self.refused.get(&row.id).cloned(),
            state: row.state,
            disks: row.disks,
        }
    }
}

fn checked_addresses(addresses: Vec<String>) -> Answer<Vec<String>> {
    if addresses.len() > ADDRESSES_MAX {
        return Err(bad_value("addresses", format!("at most {ADDRESSES_MAX}")));
    }
    let address = |text: &String| match text.parse::<IpAddr>() {
        Ok(address) => Ok(address.to_string()),
        Err(_) if is_name(text) => Ok(text.trim_end_matches('.').to_ascii_lowercase()),
        Err(_) => {
            let shown = super::shortened(text);
            Err(bad_value("addresses", format!("\"{shown}\" is neither an IPv4 or IPv6 address nor a DNS name")))
        }
    };
    addresses.iter().filter(|text| !text.is_empty()).map(address).collect()
}

fn checked_endpoint(connect: String) -> Answer<Option<String>> {
    if connect.is_empty() {
        return Ok(None);
    }
    let connect = bounded("connect", connect, 300)?;
    match order::split_endpoint(&connect) {
        Some(_) => Ok(Some(connect)),
        None => Err(bad_value("connect", "must look like HOST:PORT, an IPv6 address in brackets")),
    }
}
