//! The REST interface under `/api/v1`: who may call, what can be called. What a call does is in the modules below.
//!
//! Every path wants `Authorization: Bearer TOKEN` (file `admin-token`), the OpenAPI document too. Wherever a path takes
//! an object its name serves as well as its id; a VM whose name two hosts have is `HOST/VM`, in a path `HOST%2FVM`.
//! Every error is a [`lull_api::Problem`]. Unknown members of a body are refused. A POST without a body type ignores it.
//!
//! | method and path (below `/api/v1`) | body | answer |
//! |---|---|---|
//! | `GET /openapi.json` | | the OpenAPI document |
//! | `GET /status` | | `ServerStatus` |
//! | `GET /doctor` | | `[Finding]` |
//! | `GET /licence` | | `LicenceStatus`: the licence in force |
//! | `POST /licence` | `LicenceFile` | `LicenceStatus`; it is checked, and takes the place of the one before |
//! | `DELETE /licence` | | 204; the built-in one holds again |
//! | `GET /hosts` | | `[Host]` |
//! | `POST /hosts` | `NewHost` | 201 `Host`, its VMs looked up |
//! | `GET /hosts/{host}` | | `Host` |
//! | `PATCH /hosts/{host}` | `HostChange` | `Host`: how many backups run at once |
//! | `DELETE /hosts/{host}` | | 204 |
//! | `POST /hosts/{host}/rescan` | | `Host` |
//! | `GET /vms` | | `[Vm]` |
//! | `GET /vms/{vm}` | | `Vm` |
//! | `PATCH /vms/{vm}` | `VmChange` | `Vm` |
//! | `POST /vms/{vm}/accept-host-key` | `AcceptHostKey` | `Vm` |
//! | `GET /vms/{vm}/proxy-explain?job=JOB` | | `ProxyExplanation`; without `job` by automatic selection |
//! | `POST /vms/{vm}/test` | | 202 `Session` (kind `test`) |
//! | `POST /vms/{vm}/rehearse` | `QuiesceRequest` | 202 `Session` (kind `rehearse`) |
//! | `POST /vms/{vm}/quiesce` | `QuiesceRequest` | 202 `Session` (kind `quiesce`) |
//! | `GET /credentials` | | `[Credential]` |
//! | `POST /credentials` | `NewCredential` | 201 `Credential` |
//! | `GET /credentials/{credential}` | | `Credential` |
//! | `PATCH /credentials/{credential}` | `CredentialChange` | `Credential`; it may be tried again everywhere |
//! | `DELETE /credentials/{credential}` | | 204 |
//! | `POST /credentials/{credential}/release` | | `Credential`; it may be tried again everywhere |
//! | `GET /repositories` | | `[Repository]` |
//! | `POST /repositories` | `NewRepository` | 201 `Repository` |
//! | `GET /repositories/{repository}` | | `Repository` |
//! | `PATCH /repositories/{repository}` | `RepositoryChange` | `Repository`: how many backups are written at once |
//! | `DELETE /repositories/{repository}` | | 204 |
//! | `POST /repositories/{repository}/scan` | | `RepositoryScan`; restore points that were not known are recorded |
//! | `GET /jobs` | | `[Job]` |
//! | `POST /jobs` | `NewJob` | 201 `SavedJob` |
//! | `POST /jobs/validate` | `NewJob` | `JobValidation`; nothing is saved |
//! | `GET /jobs/{job}` | | `Job` |
//! | `PATCH /jobs/{job}` | `JobChange` | `SavedJob` |
//! | `DELETE /jobs/{job}` | | 204 |
//! | `POST /jobs/{job}/validate` | | `JobValidation` of the job as it is saved |
//! | `GET /jobs/{job}/preview` | | `JobPreview`: which proxy would serve which VM |
//! | `POST /jobs/{job}/run` | | 202 `Session` |
//! | `GET /jobs/{job}/vms` | | `[JobVm]`: the VMs in scope, each with what it has otherwise than the job |
//! | `GET /jobs/{job}/vms/{vm}/settings` | | `VmSettings`: the settings in force, and where each comes from |
//! | `PATCH /jobs/{job}/vms/{vm}/settings` | `VmSettingsChange` | `SavedVmSettings` |
//! | `DELETE /jobs/{job}/vms/{vm}/settings` | | `SavedVmSettings`: the job's settings again |
//! | `GET /sessions?job=JOB&limit=N` | | `[SessionSummary]`, newest first; 50 unless told, at most 1000 |
//! | `GET /sessions/{session}` | | `Session` |
//! | `POST /sessions/{session}/cancel` | | `Session` |
//! | `GET /sessions/{session}/events?after=N` | | stream of `SessionEvent` (server-sent events; `Last-Event-ID` serves too) |
//! | `POST /sessions/{session}/renew` | | 204; holds a `quiesce` for some seconds more, call it every second |
//! | `POST /sessions/{session}/end` | `HoldEnd` | 204; the `quiesce` command is over: thaw |
//! | `GET /restore-points?vm=VM` | | `[RestorePoint]`, newest first |
//! | `GET /restore-points/{restore_point}` | | `RestorePoint` (by id only) |
//! | `POST /restore-points/{restore_point}/verify` | | `Verification` |
//! | `DELETE /restore-points/{restore_point}` | | 204; its files too; refused while others build on it |
//! | `GET /catalog?vm=VM` | | `[CatalogTable]`: the indexed restore points of each VM |
//! | `GET /catalog/search?pattern=…` | | JSON lines of `CatalogLine`: files over all restore points |
//! | `GET /catalog/browse?vm=VM&path=PATH` | | JSON lines of `CatalogLine`: what lies in a folder |
//! | `GET /catalog/export?vm=VM` | | the history of a VM as CSV or JSON lines |
//! | `GET /proxies` | | `[Proxy]` |
//! | `PATCH /proxies/{proxy}` | `ProxyChange` | `Proxy`: enabled, draining or disabled; its task slots |
//! | `GET /proxies/load?proxy=NAME&since=TIME&bucket=hour` | | `LoadReport`: tasks and busy time of each proxy over time |
//! | `POST /proxies/tokens` | `NewJoinToken` | 201 `JoinToken`, shown this once |
//! | `POST /proxies/{proxy}/revoke` | | `Proxy`; it is cut off at once |
//! | `DELETE /proxies/{proxy}` | | 204 |
//! | `GET /managed-servers` | | `[ManagedServer]` |
//! | `POST /managed-servers` | `NewManagedServer` | JSON lines of `ManagedLine`: a proxy is installed on a machine |
//! | `POST /managed-servers/host-key` | `AskHostKey` | `ShownHostKey`; nothing secret is sent there |
//! | `POST /managed-servers/check` | `NewManagedServer` | `MachineCheck`: what stands in the way, and what would be changed |
//! | `GET /managed-servers/{server}` | | `ManagedServer` |
//! | `POST /managed-servers/{server}/check` | `ServerWork` | `MachineCheck` of a managed server's machine |
//! | `POST /managed-servers/{server}/repair` | `ServerWork` | JSON lines of `ManagedLine` |
//! | `POST /managed-servers/{server}/upgrade` | `ServerWork` | JSON lines of `ManagedLine` |
//! | `POST /managed-servers/{server}/remove` | `ServerWork` | JSON lines of `ManagedLine`: from its machine, then from here |

use crate::server::Server;
use axum::Router;
use axum::extract::Request;
use axum::middleware;
use lull_api::Problem;
use std::sync::Arc;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{OpenApi as _, PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

mod answer;
mod auth;
mod body;
mod catalog;
mod credentials;
mod doctor;
mod events;
mod guest_settings;
mod hosts;
mod jobs;
mod licence;
mod managed_servers;
mod names;
mod notify_settings;
mod proxies;
mod proxy_duty;
mod proxy_load;
mod repositories;
mod restore_points;
mod scan;
mod sessions;
mod status;
mod timing;
mod view;
mod vm_settings;
mod vms;

pub use view::session_view;

const BASE: &str = "/api/v1";

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "Lull",
    description = "The guest-processing tier of VM backup: hosts, VMs, credentials, jobs, sessions, restore points. \
                   Every call wants the bearer token of the file admin-token in the server's state folder."
))]
struct Document;

/// Everything that can be called, with authentication around all of it.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let (api, _) = endpoints().split_for_parts();
    let api = api.fallback(nothing_here).method_not_allowed_fallback(no_such_method);
    Router::new()
        .merge(api)
        .layer(middleware::from_fn_with_state(server.clone(), auth::require_token))
        .with_state(server)
}

/// The OpenAPI document, as `GET /openapi.json` gives it.
pub fn openapi() -> OpenApi {
    let mut document = endpoints().into_openapi();
    let components = document.components.get_or_insert_default();
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    components.security_schemes.insert("bearer".into(), bearer.into());
    components.schemas.insert(Problem::name().into_owned(), Problem::schema());
    document.security = Some(vec![SecurityRequirement::new("bearer", Vec::<String>::new())]);
    // Every operation can answer with a problem.
    let schema = RefOr::Ref(Ref::from_schema_name(Problem::name()));
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let problem = ResponseBuilder::new().description("what failed").content("application/json", content).build();
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            operation.responses.responses.insert("default".into(), problem.clone().into());
        }
    }
    document
}

fn endpoints() -> OpenApiRouter<Arc<Server>> {
    let api = OpenApiRouter::new()
        .routes(routes!(status::document))
        .routes(routes!(status::status))
        .routes(routes!(doctor::doctor))
        .routes(routes!(licence::get, licence::install, licence::remove))
        .routes(routes!(hosts::list, hosts::add))
        .routes(routes!(hosts::get, hosts::change, hosts::remove))
        .routes(routes!(hosts::rescan))
        .routes(routes!(vms::list))
        .routes(routes!(vms::get, vms::change))
        .routes(routes!(vms::accept_host_key))
        .routes(routes!(vms::proxy_explain))
        .routes(routes!(vms::test))
        .routes(routes!(vms::rehearse))
        .routes(routes!(vms::quiesce))
        .routes(routes!(credentials::list, credentials::add))
        .routes(routes!(credentials::get, credentials::change, credentials::remove))
        .routes(routes!(credentials::release))
        .routes(routes!(repositories::list, repositories::add))
        .routes(routes!(repositories::get, repositories::change, repositories::remove))
        .routes(routes!(scan::scan))
        .routes(routes!(jobs::list, jobs::add))
        .routes(routes!(jobs::validate_new))
        .routes(routes!(jobs::get, jobs::change, jobs::remove))
        .routes(routes!(jobs::validate))
        .routes(routes!(jobs::preview))
        .routes(routes!(jobs::run))
        .routes(routes!(vm_settings::list))
        .routes(routes!(vm_settings::get, vm_settings::change, vm_settings::clear))
        .routes(routes!(sessions::list))
        .routes(routes!(sessions::get))
        .routes(routes!(sessions::cancel))
        .routes(routes!(events::events))
        .routes(routes!(sessions::renew))
        .routes(routes!(sessions::end))
        .routes(routes!(restore_points::list))
        .routes(routes!(restore_points::get, restore_points::remove))
        .routes(routes!(restore_points::verify))
        .routes(routes!(catalog::tables))
        .routes(routes!(catalog::search))
        .routes(routes!(catalog::browse))
        .routes(routes!(catalog::export))
        .routes(routes!(proxies::list))
        .routes(routes!(proxy_duty::change))
        .routes(routes!(proxy_load::load))
        .routes(routes!(proxies::make_token))
        .routes(routes!(proxies::revoke))
        .routes(routes!(proxies::remove))
        .routes(routes!(managed_servers::list, managed_servers::add))
        .routes(routes!(managed_servers::host_key))
        .routes(routes!(managed_servers::check))
        .routes(routes!(managed_servers::get))
        .routes(routes!(managed_servers::check_known))
        .routes(routes!(managed_servers::repair))
        .routes(routes!(managed_servers::upgrade))
        .routes(routes!(managed_servers::remove));
    OpenApiRouter::with_openapi(Document::openapi()).nest(BASE, api)
}

async fn nothing_here(request: Request) -> answer::Fault {
    let what = format!("there is nothing at {}", shortened(request.uri().path()));
    Problem::new(404, "unknown-path", what).remedy(format!("see {BASE}/openapi.json for what there is")).into()
}

async fn no_such_method(request: Request) -> answer::Fault {
    let what = format!("{} does not take {}", shortened(request.uri().path()), request.method());
    Problem::new(405, "unknown-method", what).remedy(format!("see {BASE}/openapi.json for what it takes")).into()
}

/// Text of a caller's in a message: at most 100 characters.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}
