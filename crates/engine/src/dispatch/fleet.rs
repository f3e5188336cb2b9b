//! The servers, prepared for a hundred thousand questions: by network prefix, and by kind of task. Assigns nothing.

use super::{Situation, WaitingTask};
use crate::ids::HostId;
use crate::infrastructure::{CredentialKind, ManagedServer, Platform, Vm, covers};
use crate::selection::{Request, feasible, feasible_as_fallback, feasible_without_guest};
use crate::settings::ProxyPolicy;
use ipnet::IpNet;
use jiff::Timestamp;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

/// All that decides which servers can serve a task. Tasks with equal keys share one [`Kind`].
#[derive(PartialEq, Eq, Hash)]
struct KindKey<'a> {
    guest_os: Option<Platform>,
    credential: Option<CredentialKind>,
    has_endpoint: bool,
    /// Hosts that the same servers reach are as good as one.
    host: HostClass,
    in_guest: bool,
    at_hypervisor: bool,
    policy: &'a ProxyPolicy,
}

/// Which servers reach a host, as a number; 0: none.
type HostClass = usize;

/// The class of each host that some server reaches.
fn classes(servers: &[&ManagedServer]) -> HashMap<HostId, HostClass> {
    let mut reached_by: HashMap<HostId, Vec<(usize, bool)>> = HashMap::new();
    for (index, server) in servers.iter().enumerate() {
        for host in &server.network_less_hosts {
            reached_by.entry(*host).or_default().push((index, true));
        }
        for host in &server.hosts_reached {
            reached_by.entry(*host).or_default().push((index, false));
        }
    }
    let mut known: HashMap<Vec<(usize, bool)>, HostClass> = HashMap::new();
    reached_by
        .into_iter()
        .map(|(host, by)| {
            let next = known.len() + 1;
            (host, *known.entry(by).or_insert(next))
        })
        .collect()
}

/// Servers by their index in [`Fleet::servers`].
pub(super) struct Kind {
    /// Whether the server can serve such a task.
    pub(super) feasible: Vec<bool>,
    /// Those that can, ascending.
    pub(super) members: Vec<usize>,
    /// Who stands in where none of them may any more.
    pub(super) fallback: Vec<usize>,
    /// None of the members has a free slot. Slots are only taken while one plan is made, so it stays so.
    pub(super) full: bool,
}

/// The servers in the order of their ids, with the load that the plan adds.
pub(super) struct Fleet<'a> {
    pub(super) servers: Vec<&'a ManagedServer>,
    /// Running tasks, the assignments of this plan among them.
    pub(super) load: Vec<u32>,
    pub(super) kinds: Vec<Kind>,
    kind_of: HashMap<KindKey<'a>, usize>,
    by_network: HashMap<IpNet, Vec<usize>>,
    prefixes_v4: BTreeSet<u8>,
    prefixes_v6: BTreeSet<u8>,
    hosts: HashMap<HostId, HostClass>,
}

impl<'a> Fleet<'a> {
    pub(super) fn new(servers: &'a [ManagedServer]) -> Self {
        let mut servers: Vec<&ManagedServer> = servers.iter().collect();
        servers.sort_by_key(|server| server.id);
        let mut fleet = Self {
            load: servers.iter().map(|server| server.running_tasks).collect(),
            kinds: Vec::new(),
            kind_of: HashMap::new(),
            by_network: HashMap::new(),
            prefixes_v4: BTreeSet::new(),
            prefixes_v6: BTreeSet::new(),
            hosts: classes(&servers),
            servers,
        };
        for (index, server) in fleet.servers.iter().enumerate() {
            for net in &server.networks {
                let members = fleet.by_network.entry(net.trunc()).or_default();
                if members.last() != Some(&index) {
                    members.push(index);
                }
                match net {
                    IpNet::V4(_) => fleet.prefixes_v4.insert(net.prefix_len()),
                    IpNet::V6(_) => fleet.prefixes_v6.insert(net.prefix_len()),
                };
            }
        }
        fleet
    }

    /// The servers in the VM's network, ascending; the same answer as [`ManagedServer::shares_network_with`].
    pub(super) fn local_to(&self, vm: &Vm) -> Vec<usize> {
        let mut local = Vec::new();
        for address in vm.network_addresses() {
            let prefixes = match address {
                IpAddr::V4(_) => &self.prefixes_v4,
                IpAddr::V6(_) => &self.prefixes_v6,
            };
            for prefix in prefixes {
                let Ok(net) = IpNet::new(address, *prefix) else {
                    continue;
                };
                if let Some(members) = self.by_network.get(&net.trunc()).filter(|_| covers(&net, address)) {
                    local.extend(members);
                }
            }
        }
        local.sort_unstable();
        local.dedup();
        local
    }

    pub(super) fn has_free_slot(&self, server: usize) -> bool {
        self.load[server] < self.servers[server].slots
    }

    /// The index of the task's kind in [`Self::kinds`].
    pub(super) fn kind(&mut self, task: &WaitingTask<'a>, situation: &Situation, now: Timestamp) -> usize {
        let key = KindKey {
            guest_os: task.vm.guest_os_with(task.credential),
            credential: task.credential,
            has_endpoint: task.vm.has_endpoint(),
            host: self.hosts.get(&task.vm.host).copied().unwrap_or_default(),
            in_guest: task.in_guest,
            at_hypervisor: task.at_hypervisor,
            policy: task.policy,
        };
        if let Some(index) = self.kind_of.get(&key) {
            return *index;
        }
        // A request that stands for every task of this kind: who was tried is asked for each task.
        let request = Request {
            vm: task.vm,
            credential: task.credential,
            policy: task.policy,
            at_hypervisor: task.at_hypervisor,
            licence: situation.licence,
            rules: situation.rules,
            servers: situation.servers,
            failures: situation.failures,
            tried: &[],
            now,
        };
        let able = |server: &ManagedServer| match task.in_guest {
            true => feasible(server, &request).is_ok(),
            false => feasible_without_guest(server, &request).is_ok(),
        };
        let feasible: Vec<bool> = self.servers.iter().map(|server| able(server)).collect();
        let fallback = (0..self.servers.len())
            .filter(|i| task.in_guest && !feasible[*i] && feasible_as_fallback(self.servers[*i], &request).is_ok())
            .collect();
        let members = (0..self.servers.len()).filter(|i| feasible[*i]).collect();
        self.kinds.push(Kind { feasible, members, fallback, full: false });
        self.kind_of.insert(key, self.kinds.len() - 1);
        self.kinds.len() - 1
    }
}
