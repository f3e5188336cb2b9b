//! Who is there: sites with their networks and hosts, VMs in them, proxies beside them. Everything from the seed.

use crate::chance::Chance;
use crate::proxy::Proxy;
use crate::server::Server;
use crate::site::{Guest, Hypervisor};
use crate::{Fleet, Rule, Totals, World, check};
use ipnet::{IpNet, Ipv4Net};
use lull_engine::dispatch::Limits;
use lull_engine::ids::{HostId, JobId, ServerId, TaskId, VmId};
use lull_engine::infrastructure::{ChannelKind, ManagedServer, Platform, ServerState, Vm};
use lull_guest_wire::lease::Lease;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use uuid::Uuid;

/// Hypervisor hosts of each site.
const HOSTS_PER_SITE: usize = 2;
/// Jobs among which the VMs are divided.
const JOBS: usize = 3;

pub(crate) fn server_id(proxy: usize) -> ServerId {
    ServerId(Uuid::from_u128(proxy as u128))
}

pub(crate) fn task_id(task: usize) -> TaskId {
    TaskId(Uuid::from_u128(task as u128))
}

pub(crate) fn job_of(vm: usize) -> JobId {
    JobId(Uuid::from_u128((vm % JOBS) as u128))
}

fn host_id(host: usize) -> HostId {
    HostId(Uuid::from_u128(host as u128))
}

impl World {
    pub(crate) fn site_of_vm(&self, vm: usize) -> usize {
        vm % self.fleet.sites
    }

    pub(crate) fn vm_of_task(&self, task: usize) -> usize {
        task % self.fleet.vms
    }
}

/// The proxy a managed server's id names.
pub(crate) fn proxy_of(server: ServerId) -> usize {
    server.0.as_u128() as usize
}

fn network(site: usize) -> (Ipv4Addr, Ipv4Net) {
    let [high, low] = (site as u16).to_be_bytes();
    let prefix = Ipv4Addr::new(10, high, low, 0);
    (Ipv4Addr::new(10, high, low, 9), Ipv4Net::new_assert(prefix, 24))
}

fn hosts_of(site: usize) -> impl Iterator<Item = HostId> {
    (0..HOSTS_PER_SITE).map(move |n| host_id(site * HOSTS_PER_SITE + n))
}

pub(crate) fn build(seed: u64, fleet: Fleet, broken: Option<Rule>) -> World {
    let mut chance = Chance::new(seed);
    let unlimited = chance.per_mille(300);
    let slots_max = 2 + fleet.vms as u64 / fleet.proxies as u64;
    let listed: Vec<ManagedServer> = (0..fleet.proxies)
        .map(|proxy| {
            let site = proxy % fleet.sites;
            // Some proxies stand in two sites, and reach the hosts of both.
            let second = chance.per_mille(300).then(|| chance.index(fleet.sites));
            let sites = [Some(site), second].into_iter().flatten();
            let reached: Vec<usize> = if proxy == 0 { (0..fleet.sites).collect() } else { sites.clone().collect() };
            ManagedServer {
                id: server_id(proxy),
                name: format!("proxy-{proxy}"),
                platform: Platform::Linux,
                is_backup_server: proxy == 0,
                role_enabled: true,
                state: ServerState::Online,
                networks: sites.map(|site| IpNet::V4(network(site).1)).collect(),
                channels: vec![ChannelKind::Ssh],
                network_less_hosts: Vec::new(),
                hosts_reached: reached.into_iter().flat_map(hosts_of).collect(),
                slots: if unlimited { u32::MAX } else { chance.between(1, slots_max) as u32 },
                running_tasks: 0,
            }
        })
        .collect();
    let vms = (0..fleet.vms)
        .map(|vm| {
            let site = vm % fleet.sites;
            Vm {
                id: VmId(Uuid::from_u128(vm as u128)),
                name: format!("vm-{vm}"),
                host: host_id(site * HOSTS_PER_SITE + vm / fleet.sites % HOSTS_PER_SITE),
                guest_os: Some(Platform::Linux),
                addresses: vec![network(site).0.into()],
                connect: None,
                credential: None,
            }
        })
        .collect();
    let busiest = (fleet.vms / (fleet.sites * HOSTS_PER_SITE)).max(2) as u64;
    let limits = Limits {
        per_host: (!unlimited && chance.per_mille(500)).then(|| chance.between(1, busiest) as u32),
        per_repository: (!unlimited && chance.per_mille(300)).then(|| chance.between(2, fleet.vms as u64) as u32),
        ..Limits::default()
    };
    let guests = (0..fleet.vms).map(|_| Guest { skew_ms: chance.between(0, 1 << 40), ..Guest::default() }).collect();
    let proxies = (0..fleet.proxies).map(|_| Proxy::new(chance.between(0, 1 << 40))).collect();
    let mut world = World {
        fleet,
        broken,
        now_ms: 0,
        queue: Default::default(),
        scheduled: 0,
        server: Server::new(fleet, limits, unlimited),
        proxies,
        listed,
        vms,
        guests,
        hypervisors: vec![Hypervisor::default(); fleet.vms],
        server_cut_ms: vec![0; fleet.proxies],
        site_cut_ms: BTreeMap::new(),
        calm_ms: 0,
        loss_per_mille: [0, 5, 50][chance.index(3)],
        freeze_lease: Lease::default(),
        check: check::Ledger::default(),
        totals: Totals::default(),
        violation: None,
        trace: None,
        digest: seed,
        chance,
    };
    for vm in 0..fleet.vms {
        let now = world.server_time();
        world.server.tasks[vm].begin(now);
    }
    world
}
