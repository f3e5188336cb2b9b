//! `selection`: one plan for a hundred thousand waiting tasks among a thousand proxies, on one core: how long it takes, and how even the
//! load is that comes of it. No task ends meanwhile, and reasons are put into words only where somebody asks.
//!
//! Knows nothing of wires and stores: this is the engine's share of a dispatch.

use super::figure::{Figure, Goal};
use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use lull_engine::dispatch::{Limits, Plan, SPILL_AFTER_MS, Situation, WaitingTask, dispatch};
use lull_engine::failover::FailureMemory;
use lull_engine::ids::{HostId, JobId, RepositoryId, ServerId, TaskId, VmId};
use lull_engine::infrastructure::{ChannelKind, CredentialKind, ManagedServer, Platform, ServerState, Vm};
use lull_engine::licence::Licence;
use lull_engine::selection::{Request, SelectionRules, select};
use lull_engine::settings::ProxyPolicy;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use uuid::Uuid;

const SERVERS: u128 = 1_000;
const VMS: u128 = 100_000;
const JOBS: u128 = 200;
const SITES: u128 = 250;
const HOSTS: u128 = 500;
/// What one plan may take of one core.
const PLAN_MS_MAX: f64 = 1_000.0;
/// Explanations that are timed.
const EXPLAINED: usize = 50;

/// Where the VMs are.
#[derive(Clone, Copy, PartialEq)]
enum Vms {
    /// Each in the network of its site's four proxies, of which two run Windows; their hosts are reached from there alone.
    AtSites,
    /// In networks that no proxy has, on hosts that all reach.
    Elsewhere,
}

/// One plan for all VMs.
struct Planned {
    took_ms: f64,
    plan: Plan,
}

/// # Errors
/// When a plan is not what these situations must come to.
pub fn measure() -> Result<Vec<Figure>> {
    let local = planned(Vms::AtSites, u32::MAX, 0)?;
    let remote = planned(Vms::Elsewhere, u32::MAX, 0)?;
    for planned in [&local, &remote] {
        ensure!(
            planned.plan.assignments.len() == VMS as usize,
            "a task was not given away although every slot is free"
        );
    }
    let busy = planned(Vms::AtSites, 0, SPILL_AFTER_MS)?;
    ensure!(busy.plan.assignments.is_empty(), "a task was given to a full proxy");
    let timed = |name: &str, planned: &Planned| {
        Figure::new(name, "ms", planned.took_ms).goal(Goal::ValueAtMost(PLAN_MS_MAX), true)
    };
    Ok(vec![
        timed("plan, every VM local", &local),
        timed("plan, every VM remote", &remote),
        timed("plan, every slot taken", &busy),
        Figure::new("heaviest proxy above even, tier 1", "tasks", above_even(&local.plan, Vms::AtSites))
            .goal(Goal::ValueAtMost(1.0), true),
        Figure::new("heaviest proxy above even, tier 3", "tasks", above_even(&remote.plan, Vms::Elsewhere))
            .goal(Goal::ValueAtMost(1.0), true),
        Figure::new("one choice with all its reasons", "ms", explained_ms()?),
    ])
}

fn site_address(site: u128, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, site as u8, (site >> 8) as u8, host)
}

fn host_id(n: u128) -> HostId {
    HostId(Uuid::from_u128(0x4000_0000 + n))
}

/// The site of a proxy or a VM.
fn site_of(id: Uuid) -> u128 {
    id.as_u128() % SITES
}

fn servers(vms: Vms, free_slots: u32) -> Result<Vec<ManagedServer>> {
    (0..SERVERS)
        .map(|n| {
            let reaches = |host: &u128| vms == Vms::Elsewhere || host % SITES == n % SITES;
            Ok(ManagedServer {
                id: ServerId(Uuid::from_u128(n)),
                name: format!("proxy-{n}"),
                platform: if (n / SITES).is_multiple_of(2) { Platform::Linux } else { Platform::Windows },
                is_backup_server: n == 0,
                role_enabled: true,
                state: ServerState::Online,
                networks: vec![IpNet::new(site_address(n % SITES, 0).into(), 24).context("a network")?],
                channels: vec![ChannelKind::Ssh, ChannelKind::WinRm],
                network_less_hosts: Vec::new(),
                hosts_reached: (0..HOSTS).filter(reaches).map(host_id).collect(),
                slots: free_slots.max(1),
                running_tasks: if free_slots == 0 { 1 } else { 0 },
            })
        })
        .collect()
}

fn vms(place: Vms) -> Vec<Vm> {
    (0..VMS)
        .map(|n| Vm {
            id: VmId(Uuid::from_u128(n)),
            name: String::new(),
            host: host_id(n % HOSTS),
            // By site as well, so that every site has both kinds.
            guest_os: Some(if (n / SITES).is_multiple_of(3) { Platform::Windows } else { Platform::Linux }),
            addresses: vec![IpAddr::V4(match place {
                Vms::AtSites => site_address(n % SITES, 7),
                Vms::Elsewhere => Ipv4Addr::new(192, 0, 2, 7),
            })],
            connect: None,
            credential: None,
        })
        .collect()
}

fn credential(vm: &Vm) -> Option<CredentialKind> {
    Some(match vm.guest_os {
        Some(Platform::Windows) => CredentialKind::WindowsPassword,
        _ => CredentialKind::SshKey,
    })
}

/// One plan, timed by what this thread takes of its core.
fn planned(place: Vms, free_slots: u32, waited_ms: u64) -> Result<Planned> {
    let (servers, vms) = (servers(place, free_slots)?, vms(place));
    let now = Timestamp::UNIX_EPOCH + SignedDuration::from_millis(i64::try_from(waited_ms)?);
    let queue: Vec<WaitingTask> = vms
        .iter()
        .zip(0u128..)
        .map(|(vm, n)| WaitingTask {
            task: TaskId(Uuid::from_u128(n)),
            job: JobId(Uuid::from_u128(n % JOBS)),
            vm,
            credential: credential(vm),
            policy: &ProxyPolicy::Automatic,
            in_guest: true,
            at_hypervisor: true,
            repository: Some(RepositoryId(Uuid::nil())),
            tried: &[],
            waiting_since: Timestamp::UNIX_EPOCH,
            held_up_at: None,
        })
        .collect();
    let situation = Situation {
        servers: &servers,
        licence: Licence::Universal,
        rules: SelectionRules::default(),
        failures: &FailureMemory::default(),
        running_per_job: &BTreeMap::new(),
        limits: &Limits::default(),
        running_per_host: &BTreeMap::new(),
        running_per_repository: &BTreeMap::new(),
        spill_after_ms: SPILL_AFTER_MS,
    };
    let begun_ms = core_ms();
    let plan = dispatch(&situation, &queue, now);
    let took_ms = core_ms() - begun_ms;
    let all = plan.assignments.len() + plan.waiting.len() + plan.unservable.len();
    ensure!(all == queue.len(), "{all} of {} tasks are in the plan", queue.len());
    ensure!(plan.unservable.is_empty(), "a task was called unservable");
    Ok(Planned { took_ms, plan })
}

/// By how many tasks the heaviest proxy exceeds ceil(tasks / eligible), in the worst of the groups that share their tasks: a site, or all.
fn above_even(plan: &Plan, place: Vms) -> f64 {
    let group = |id: Uuid| if place == Vms::AtSites { site_of(id) } else { 0 };
    let mut eligible: BTreeMap<u128, u32> = BTreeMap::new();
    // The backup server has a tier of its own.
    for server in (1..SERVERS).map(Uuid::from_u128) {
        *eligible.entry(group(server)).or_default() += 1;
    }
    let (mut tasks, mut load): (BTreeMap<u128, u32>, BTreeMap<Uuid, u32>) = Default::default();
    for assignment in &plan.assignments {
        *tasks.entry(group(assignment.server.0)).or_default() += 1;
        *load.entry(assignment.server.0).or_default() += 1;
    }
    let above = load.iter().map(|(server, load)| {
        let group = group(*server);
        f64::from(*load) - f64::from(tasks[&group].div_ceil(eligible[&group]))
    });
    above.fold(f64::NEG_INFINITY, f64::max).max(0.0)
}

/// What one choice takes that names every proxy's reason, in milliseconds.
fn explained_ms() -> Result<f64> {
    let (servers, vms) = (servers(Vms::AtSites, u32::MAX)?, vms(Vms::AtSites));
    let begun_ms = core_ms();
    for vm in vms.iter().take(EXPLAINED) {
        let decision = select(&Request {
            vm,
            credential: credential(vm),
            policy: &ProxyPolicy::Automatic,
            at_hypervisor: true,
            licence: Licence::Universal,
            rules: SelectionRules::default(),
            servers: &servers,
            failures: &FailureMemory::default(),
            tried: &[],
            now: Timestamp::UNIX_EPOCH,
        });
        let lines = decision.to_string().lines().count();
        ensure!(lines == servers.len(), "{lines} of {} proxies are explained", servers.len());
    }
    Ok((core_ms() - begun_ms) / EXPLAINED as f64)
}

/// What this thread has taken of its core, in milliseconds.
fn core_ms() -> f64 {
    let taken = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    taken.tv_sec as f64 * 1e3 + taken.tv_nsec as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use lull_engine::dispatch::Assignment;
    use lull_engine::selection::Tier;

    #[test]
    fn an_uneven_plan_is_seen() {
        let to = |server: u128| Assignment {
            task: TaskId(Uuid::nil()),
            server: ServerId(Uuid::from_u128(server)),
            tier: Some(Tier::LocalProxy),
            recently_failed: false,
        };
        // Site 3 has the proxies 3, 253, 503 and 753.
        let even = Plan { assignments: vec![to(3), to(253), to(503), to(753), to(3)], ..Plan::default() };
        assert_eq!(above_even(&even, Vms::AtSites), 0.0);
        let uneven = Plan { assignments: vec![to(3), to(3), to(3), to(753), to(4)], ..Plan::default() };
        assert_eq!(above_even(&uneven, Vms::AtSites), 2.0);
    }
}
