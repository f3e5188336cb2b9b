//! The stored infrastructure as the engine's rules see it. Decides nothing.

use crate::server::Server;
use crate::store::StoreError;
use crate::store::credentials::CredentialRow;
use crate::store::infrastructure::VmRow;
use jiff::Timestamp;
use lull_engine::failover::FailureMemory;
use lull_engine::ids::{CredentialId, HostId, VmId};
use lull_engine::infrastructure::{Credential, CredentialKind, ManagedServer, Platform, Vm};
use lull_engine::licence::Licence;
use lull_engine::selection::SelectionRules;

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
    /// The licence in force. Licence files come with remote proxies; until then it is the built-in one.
    pub licence: Licence,
    /// Rules of the infrastructure.
    pub rules: SelectionRules,
    /// The moment.
    pub now: Timestamp,
}

/// The infrastructure now.
pub async fn snapshot(server: &Server) -> Result<Snapshot, StoreError> {
    let now = Timestamp::now();
    let credentials = server.store.credentials().await?;
    Ok(Snapshot {
        servers: server.proxies.managed_servers(),
        vms: server.store.vms().await?.iter().map(vm).collect(),
        credentials: credentials.iter().map(credential).collect(),
        failures: server.store.failures(now).await?,
        licence: Licence::default(),
        rules: SelectionRules::default(),
        now,
    })
}

/// A VM.
pub fn vm(row: &VmRow) -> Vm {
    Vm {
        id: VmId(row.id),
        name: row.name.clone(),
        host: HostId(row.host),
        guest_os: row.guest_os,
        // Only addresses are ever stored.
        addresses: row.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
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
