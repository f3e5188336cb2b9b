//! The stored infrastructure as the engine's rules see it. Decides nothing.

use crate::addresses;
use crate::resolver::Resolver;
use crate::runner::limits;
use crate::server::Server;
use crate::store::StoreError;
use crate::store::credentials::CredentialRow;
use crate::store::duties::Duty;
use crate::store::infrastructure::VmRow;
use jiff::Timestamp;
use lull_engine::dispatch::Limits;
use lull_engine::failover::FailureMemory;
use lull_engine::ids::{CredentialId, HostId, VmId};
use lull_engine::infrastructure::{Credential, CredentialKind, ManagedServer, Platform, Vm};
use lull_engine::licence::Licence;
use lull_engine::selection::SelectionRules;
use std::sync::PoisonError;

/// What the rules are asked about, as of one moment.
pub struct Snapshot {
    /// Managed servers with their load.
    pub servers: Vec<ManagedServer>,
    /// VMs.
    pub vms: Vec<Vm>,
    /// Credentials.
    pub credentials: Vec<Credential>,
    /// Remembered failures.
    pub failures: FailureMemory,
    /// The licence in force.
    pub licence: Licence,
    /// How many backups may run at once, by host and by repository.
    pub limits: Limits,
    /// Rules of the infrastructure.
    pub rules: SelectionRules,
    /// The moment.
    pub now: Timestamp,
}

/// The infrastructure now.
pub async fn snapshot(server: &Server) -> Result<Snapshot, StoreError> {
    snapshot_with(server, |_| true).await
}

/// The infrastructure now, with these VMs only.
pub async fn snapshot_with(server: &Server, wanted: impl Fn(&VmRow) -> bool) -> Result<Snapshot, StoreError> {
    let now = Timestamp::now();
    let credentials = server.store.credentials().await?;
    let vms = server.store.vms().await?;
    let vms = || vms.iter().filter(|row| wanted(row));
    server.resolver.freshen(addresses::names(vms())).await;
    let duties = server.store.server_duties().await?;
    let mut servers = server.proxies.managed_servers();
    let drained = server.drained.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for server in &mut servers {
        let mut said = duties.get(&server.id.0).copied().unwrap_or_default();
        if said.duty == Duty::Enabled && drained.contains(&server.id.0) {
            said.duty = Duty::Draining;
        }
        said.apply(server);
    }
    Ok(Snapshot {
        servers,
        vms: vms().map(|row| vm(row, &server.resolver)).collect(),
        credentials: credentials.iter().map(credential).collect(),
        failures: server.store.failures(now).await?,
        licence: server.licence.in_force(),
        limits: limits::limits(&server.store.task_limits().await?),
        rules: SelectionRules::default(),
        now,
    })
}

/// A VM, with the addresses that are known of its guest now.
pub fn vm(row: &VmRow, resolver: &Resolver) -> Vm {
    Vm {
        id: VmId(row.id),
        name: row.name.clone(),
        host: HostId(row.host),
        guest_os: row.guest_os,
        addresses: addresses::known(row, resolver).addresses.into_iter().map(|(address, _)| address).collect(),
        connect: row.connect.clone(),
        credential: row.credential.map(CredentialId),
    }
}

/// A credential. All of them are for SSH until there is another channel.
pub fn credential(row: &CredentialRow) -> Credential {
    let kind = if row.private_key.is_some() { CredentialKind::SshKey } else { CredentialKind::SshPassword };
    Credential { id: CredentialId(row.id), name: row.name.clone(), kind, revision: row.revision }
}

/// `linux` or `windows`.
pub fn platform_name(platform: Platform) -> &'static str {
    match platform {
        Platform::Linux => "linux",
        Platform::Windows => "windows",
    }
}
