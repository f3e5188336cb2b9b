//! Which guest interaction proxy works on a VM, and why that one: feasibility, rank, choice. Knows nothing of slots and
//! queues, which are [`crate::dispatch`]'s: a full proxy is still the right one to wait for.
//!
//! Three steps. *Feasible?* Each server is admitted or rejected with a reason ([`Rejection`]). *Rank*: one tuple
//! comparison ([`Rank`]). *Pick*: the first. [`choose`] does only that; [`select`] also explains every other server.

use crate::failover::FailureMemory;
use crate::ids::{ServerId, VmId};
use crate::infrastructure::{CredentialKind, ManagedServer, Vm};
use crate::licence::Licence;
use crate::settings::{Fallback, ProxyPolicy};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

mod explain;
mod feasible;

pub use explain::{Behind, Chosen, Decision, Judgement, Note, Verdict, nobody_without_guest, select};
pub use feasible::{Rejection, feasible, feasible_as_fallback, feasible_without_guest};

/// Which proxies may access Windows guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowsGuestsFrom {
    /// Windows proxies only.
    #[default]
    WindowsProxies,
    /// Any proxy that carries a channel to Windows guests.
    AnyProxy,
}

/// Settings of the backup infrastructure that govern every choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SelectionRules {
    /// Which proxies may access Windows guests.
    pub windows_guests_from: WindowsGuestsFrom,
}

/// Everything a choice depends on.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// The kind of the credential that will be used, if there is one.
    pub credential: Option<CredentialKind>,
    /// The job's policy for this VM.
    pub policy: &'a ProxyPolicy,
    /// The task works at the VM's hypervisor too: a backup does, a test of the guest does not.
    pub at_hypervisor: bool,
    /// The licence in force.
    pub licence: Licence,
    /// The infrastructure's rules.
    pub rules: SelectionRules,
    /// Every managed server, with its present load.
    pub servers: &'a [ManagedServer],
    /// Remembered failures.
    pub failures: &'a FailureMemory,
    /// Servers that this task has tried already.
    pub tried: &'a [ServerId],
    /// The present instant.
    pub now: Timestamp,
}

impl Request<'_> {
    /// The policy as far as the licence lets it count: without proxies there is nothing to choose from.
    pub fn policy_in_force(&self) -> &ProxyPolicy {
        if self.licence.admits_proxies() { self.policy } else { &ProxyPolicy::Automatic }
    }

    /// Whether the backup server stands in where the job's own servers cannot.
    pub fn backup_server_may_stand_in(&self) -> bool {
        matches!(self.policy_in_force(), ProxyPolicy::Prefer { fallback: Fallback::BackupServer, .. })
    }
}

/// How near a server is to a VM; 1 is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Tier {
    /// 1: same network as the VM, not the backup server.
    LocalProxy,
    /// 2: same network as the VM, the backup server.
    LocalBackupServer,
    /// 3: another network, not the backup server.
    RemoteProxy,
    /// 4: another network, the backup server.
    RemoteBackupServer,
}

impl Tier {
    /// All tiers, best first.
    pub const ALL: [Self; 4] = [Self::LocalProxy, Self::LocalBackupServer, Self::RemoteProxy, Self::RemoteBackupServer];

    /// From its two components.
    pub fn of(same_network: bool, is_backup_server: bool) -> Self {
        match (same_network, is_backup_server) {
            (true, false) => Self::LocalProxy,
            (true, true) => Self::LocalBackupServer,
            (false, false) => Self::RemoteProxy,
            (false, true) => Self::RemoteBackupServer,
        }
    }

    /// 1 to 4.
    pub fn number(self) -> u8 {
        self as u8 + 1
    }
}

impl From<Tier> for u8 {
    fn from(tier: Tier) -> Self {
        tier.number()
    }
}

impl TryFrom<u8> for Tier {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|tier| tier.number() == number)
            .ok_or_else(|| format!("tier {number}: it must lie between 1 and 4"))
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::LocalProxy => "same network, not the backup server",
            Self::LocalBackupServer => "same network, the backup server",
            Self::RemoteProxy => "another network, not the backup server",
            Self::RemoteBackupServer => "another network, the backup server",
        };
        write!(f, "tier {}: {words}", self.number())
    }
}

/// A feasible server's place in the order; the smallest is chosen. The fields compare in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rank {
    /// It failed with this VM within the last 15 minutes.
    pub recently_failed: bool,
    /// It is not in the VM's network.
    pub other_network: bool,
    /// It is the backup server.
    pub is_backup_server: bool,
    /// How many tasks it runs.
    pub running_tasks: u32,
    /// Its id, so that the order is total.
    pub id: ServerId,
}

impl Rank {
    /// The tier, which says nothing about failures and load.
    pub fn tier(&self) -> Tier {
        Tier::of(!self.other_network, self.is_backup_server)
    }
}

/// A server's rank for this VM. Says nothing about whether it is feasible.
pub fn rank(server: &ManagedServer, request: &Request) -> Rank {
    Rank {
        recently_failed: recently_failed(server.id, request.vm.id, request),
        other_network: !server.shares_network_with(request.vm),
        is_backup_server: server.is_backup_server,
        running_tasks: server.running_tasks,
        id: server.id,
    }
}

/// Every server that can make a backup that leaves the guest alone, best first: the backup server, then who runs the fewest tasks.
pub fn able_without_guest<'a>(request: &Request<'a>) -> Vec<&'a ManagedServer> {
    let able = |server: &&ManagedServer| feasible_without_guest(server, request).is_ok();
    let mut able: Vec<&ManagedServer> = request.servers.iter().filter(able).collect();
    able.sort_by_key(|server| (!server.is_backup_server, server.running_tasks, server.id));
    able
}

fn recently_failed(server: ServerId, vm: VmId, request: &Request) -> bool {
    request.failures.recent(vm, server, request.now).is_some()
}

/// The best server's index in `request.servers` and its rank, or `None` where none can serve the VM. The same choice
/// as [`select`]'s, without the reasons.
pub fn choose(request: &Request) -> Option<(usize, Rank)> {
    let best = |admitted: &dyn Fn(&ManagedServer) -> bool| {
        request
            .servers
            .iter()
            .enumerate()
            .filter(|(_, server)| admitted(server))
            .map(|(index, server)| (index, rank(server, request)))
            .min_by_key(|(_, rank)| *rank)
    };
    best(&|server| feasible(server, request).is_ok())
        .or_else(|| best(&|server| feasible_as_fallback(server, request).is_ok()))
}
