//! Whether the servers fit the VMs in scope. Knows no settings but the proxy policy.

use super::{Findings, Infrastructure, JobError, JobWarning, credential_kind};
use crate::failover::FailureMemory;
use crate::ids::{ServerId, VmId};
use crate::infrastructure::{ManagedServer, Platform, ServerState, Vm};
use crate::job::Job;
use crate::selection::{Rejection, Request, WindowsGuestsFrom, choose, feasible, feasible_as_fallback};
use crate::settings::{Fallback, ProxyPolicy};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// One VM in scope with the policy that holds for it.
struct InScope<'a> {
    vm: &'a Vm,
    policy: ProxyPolicy,
    credential: Option<crate::infrastructure::CredentialKind>,
}

pub(super) fn check(job: &Job, infrastructure: &Infrastructure, findings: &mut Findings) {
    let scope = in_scope(job, infrastructure, findings);
    // Whoever is offline, draining or full now may be back when the job runs. What is lasting counts: a person or another release
    // would have to come first. Of who never connected nothing is known.
    let servers: Vec<ManagedServer> = infrastructure
        .servers
        .iter()
        .cloned()
        .map(|server| ManagedServer {
            state: match server.state {
                ServerState::Online | ServerState::Offline { .. } | ServerState::Draining => ServerState::Online,
                lasting @ (ServerState::Disabled
                | ServerState::Revoked
                | ServerState::Incompatible { .. }
                | ServerState::NeverConnected) => lasting,
            },
            ..server
        })
        .collect();
    let without_windows_server = windows_guests(&scope, &servers, infrastructure, findings);
    policies(job, &servers, infrastructure, findings);

    let memory = FailureMemory::default();
    let mut nobody = Vec::new();
    let mut backup_server = Vec::new();
    for entry in scope.iter().filter(|entry| !without_windows_server.contains(&entry.vm.id)) {
        let request = request(entry, &servers, infrastructure, &memory);
        let own = servers.iter().any(|server| feasible(server, &request).is_ok());
        match (&entry.policy, choose(&request)) {
            // That is said of the server; who serves the VM is not known.
            (ProxyPolicy::Prefer { servers: preferred, .. }, _)
                if !own && may_come(preferred, &servers, infrastructure) => {}
            (ProxyPolicy::Prefer { .. }, Some(_)) if !own => {
                backup_server.push(entry.vm.name.clone());
            }
            (_, Some(_)) => {}
            (ProxyPolicy::Prefer { fallback: Fallback::None, .. }, None) if infrastructure.licence.admits_proxies() => {
                nobody.push(entry.vm.name.clone());
            }
            (_, None) => findings.warnings.push(JobWarning::NobodyServes {
                vm: entry.vm.name.clone(),
                reason: nearest_reason(&servers, &request),
            }),
        }
    }
    if !nobody.is_empty() {
        findings.errors.push(JobError::NobodyCanServe { vms: nobody });
    }
    if !backup_server.is_empty() {
        findings.warnings.push(JobWarning::BackupServerTakesOver { vms: backup_server });
    }
    unable(&scope, &servers, infrastructure, findings);
}

fn in_scope<'a>(job: &Job, infrastructure: &Infrastructure<'a>, findings: &mut Findings) -> Vec<InScope<'a>> {
    let mut seen = BTreeSet::new();
    let mut said = BTreeSet::new();
    let mut scope = Vec::new();
    let known: BTreeMap<VmId, &Vm> = infrastructure.vms.iter().map(|vm| (vm.id, vm)).collect();
    for id in &job.vms {
        let Some(vm) = known.get(id).copied() else {
            continue;
        };
        if seen.insert(*id) {
            scope.push(InScope {
                vm,
                policy: job.settings_for(*id).proxies,
                credential: credential_kind(job, vm, infrastructure),
            });
        } else if said.insert(*id) {
            findings.warnings.push(JobWarning::ListedTwice { vm: vm.name.clone() });
        }
    }
    scope
}

/// The Windows VMs that have nobody, if there are any.
fn windows_guests(
    scope: &[InScope],
    servers: &[ManagedServer],
    infrastructure: &Infrastructure,
    findings: &mut Findings,
) -> BTreeSet<VmId> {
    let has_windows_server = servers.iter().any(|server| server.platform == Platform::Windows && server.role_enabled);
    if has_windows_server || infrastructure.rules.windows_guests_from == WindowsGuestsFrom::AnyProxy {
        return BTreeSet::new();
    }
    let vms: Vec<&Vm> = scope
        .iter()
        .filter(|entry| entry.vm.guest_os_with(entry.credential) == Some(Platform::Windows))
        .map(|entry| entry.vm)
        .collect();
    if !vms.is_empty() {
        let names = vms.iter().map(|vm| vm.name.clone()).collect();
        findings.errors.push(JobError::NoWindowsServer { vms: names });
    }
    vms.into_iter().map(|vm| vm.id).collect()
}

/// Every policy of the job and its overrides: servers that are gone, empty lists, a licence without a choice.
fn policies(job: &Job, servers: &[ManagedServer], infrastructure: &Infrastructure, findings: &mut Findings) {
    let preferred: Vec<&Vec<ServerId>> = std::iter::once(&job.guest_processing.proxies)
        .chain(job.overrides.values().filter_map(|over| over.proxies.as_ref()))
        .filter_map(|policy| match policy {
            ProxyPolicy::Prefer { servers, .. } => Some(servers),
            ProxyPolicy::Automatic => None,
        })
        .collect();
    if preferred.is_empty() {
        return;
    }
    if let Some(because) = infrastructure.licence.choose_disabled_because() {
        findings.errors.push(JobError::LicenceForbidsChoice { because });
        return;
    }
    if preferred.iter().any(|list| list.is_empty()) {
        findings.errors.push(JobError::NoPreferredServers);
    }
    let gone: BTreeSet<ServerId> =
        preferred.into_iter().flatten().filter(|id| !servers.iter().any(|server| server.id == **id)).copied().collect();
    if !gone.is_empty() {
        findings.errors.push(JobError::PreferredServersGone { servers: gone.into_iter().collect() });
    }
}

/// Preferred servers that cannot serve a single VM for which they are preferred.
fn unable(scope: &[InScope], servers: &[ManagedServer], infrastructure: &Infrastructure, findings: &mut Findings) {
    if !infrastructure.licence.admits_proxies() {
        return;
    }
    let memory = FailureMemory::default();
    for server in servers {
        let mut against: Option<(String, Rejection)> = None;
        let mut preferring = scope.iter().filter(
            |entry| matches!(&entry.policy, ProxyPolicy::Prefer { servers, .. } if servers.contains(&server.id)),
        );
        if server.state == ServerState::NeverConnected {
            if preferring.next().is_some() {
                findings.warnings.push(JobWarning::PreferredServerNeverConnected { server: server.name.clone() });
            }
            continue;
        }
        let mut able = false;
        for entry in preferring {
            match feasible(server, &request(entry, servers, infrastructure, &memory)) {
                Ok(_) => able = true,
                Err(reason) => {
                    against.get_or_insert((entry.vm.name.clone(), reason));
                }
            }
        }
        if let (false, Some((vm, reason))) = (able, against) {
            findings.warnings.push(JobWarning::PreferredServerUnable { server: server.name.clone(), vm, reason });
        }
    }
}

fn request<'r>(
    entry: &'r InScope,
    servers: &'r [ManagedServer],
    infrastructure: &Infrastructure,
    memory: &'r FailureMemory,
) -> Request<'r> {
    Request {
        vm: entry.vm,
        credential: entry.credential,
        policy: &entry.policy,
        // Which hosts a server reaches is known only while it is connected.
        at_hypervisor: false,
        licence: infrastructure.licence,
        rules: infrastructure.rules,
        servers,
        failures: memory,
        tried: &[],
        // Nothing remembered and nothing offline: the instant does not matter.
        now: Timestamp::UNIX_EPOCH,
    }
}

/// Whether a preferred server, once it connects, may turn out to be able.
fn may_come(preferred: &[ServerId], servers: &[ManagedServer], infrastructure: &Infrastructure) -> bool {
    let unknown = |server: &ManagedServer| server.role_enabled && server.state == ServerState::NeverConnected;
    infrastructure.licence.admits_proxies()
        && servers.iter().any(|server| unknown(server) && preferred.contains(&server.id))
}

/// The reason that is most about the VM: a proxy's missing channel says more than that another server is out of use, and that more
/// than who was not asked for.
fn nearest_reason(servers: &[ManagedServer], request: &Request) -> String {
    let against = |server| match feasible_as_fallback(server, request) {
        Err(Rejection::NotPreferred) => feasible(server, request).err(),
        judged => judged.err(),
    };
    let nearness = |(_, reason): &(&ManagedServer, Rejection)| match reason {
        Rejection::Disabled | Rejection::Revoked | Rejection::Incompatible { .. } | Rejection::NoSlots => 1,
        Rejection::RoleDisabled => 2,
        Rejection::NeverConnected => 3,
        Rejection::NotPreferred | Rejection::NotLicensed { .. } => 4,
        _ => 0,
    };
    let nearest = servers.iter().filter_map(|server| Some((server, against(server)?))).min_by_key(nearness);
    nearest.map_or("no server was added to the backup infrastructure".into(), |(server, reason)| {
        format!("{}: {reason}", server.name)
    })
}
