//! How long one plan takes for a hundred thousand waiting VMs among a thousand proxies, on one core.
//! Prints one line for each situation; asserts only that the plan is complete. Goal: below 1 s.

use jiff::Timestamp;
use lull_engine::dispatch::{SPILL_AFTER_MS, Situation, WaitingTask, dispatch};
use lull_engine::failover::FailureMemory;
use lull_engine::ids::{HostId, JobId, ServerId, TaskId, VmId};
use lull_engine::infrastructure::{ChannelKind, CredentialKind, ManagedServer, Platform, ServerState, Vm};
use lull_engine::licence::Licence;
use lull_engine::selection::SelectionRules;
use lull_engine::settings::ProxyPolicy;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;
use uuid::Uuid;

const SERVERS: u128 = 1_000;
const VMS: u128 = 100_000;
const JOBS: u128 = 200;
const SITES: u128 = 250;

fn site_address(site: u128, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, site as u8, (site >> 8) as u8, host)
}

fn servers(running_tasks: u32) -> Vec<ManagedServer> {
    (0..SERVERS)
        .map(|n| ManagedServer {
            id: ServerId(Uuid::from_u128(n)),
            name: format!("proxy-{n}"),
            platform: if n % 2 == 0 { Platform::Linux } else { Platform::Windows },
            is_backup_server: n == 0,
            role_enabled: true,
            state: ServerState::Online,
            networks: vec![format!("{}/24", site_address(n % SITES, 0)).parse().expect("a network")],
            channels: vec![ChannelKind::Ssh, ChannelKind::WinRm],
            network_less_hosts: Vec::new(),
            slots: 8,
            running_tasks,
        })
        .collect()
}

fn vms() -> Vec<Vm> {
    (0..VMS)
        .map(|n| Vm {
            id: VmId(Uuid::from_u128(n)),
            name: String::new(),
            host: HostId(Uuid::from_u128(n % 500)),
            guest_os: Some(if n % 3 == 0 { Platform::Windows } else { Platform::Linux }),
            addresses: vec![IpAddr::V4(site_address(n % SITES, 7))],
            connect: None,
            credential: None,
        })
        .collect()
}

fn main() {
    let now = Timestamp::UNIX_EPOCH;
    let vms = vms();
    for (name, running_tasks, waited_ms) in [
        ("all slots free", 0, 0),
        ("all slots free, every tier open", 0, 4 * SPILL_AFTER_MS),
        ("one slot free on each", 7, 4 * SPILL_AFTER_MS),
        ("all slots taken", 8, SPILL_AFTER_MS),
    ] {
        let servers = servers(running_tasks);
        let waiting_since = Timestamp::from_millisecond(-(waited_ms as i64)).expect("an instant");
        let queue: Vec<WaitingTask> = vms
            .iter()
            .zip(0u128..)
            .map(|(vm, n)| WaitingTask {
                task: TaskId(Uuid::from_u128(n)),
                job: JobId(Uuid::from_u128(n % JOBS)),
                vm,
                credential: Some(match vm.guest_os {
                    Some(Platform::Windows) => CredentialKind::WindowsPassword,
                    _ => CredentialKind::SshKey,
                }),
                policy: &ProxyPolicy::Automatic,
                tried: &[],
                waiting_since,
            })
            .collect();
        let situation = Situation {
            servers: &servers,
            licence: Licence::Universal,
            rules: SelectionRules::default(),
            failures: &FailureMemory::default(),
            running_per_job: &BTreeMap::new(),
            spill_after_ms: SPILL_AFTER_MS,
        };
        let begun = Instant::now();
        let plan = dispatch(&situation, &queue, now);
        let took_ms = begun.elapsed().as_millis();
        assert_eq!(plan.assignments.len() + plan.waiting.len() + plan.unservable.len(), queue.len());
        println!("{name}: {took_ms} ms, {} assigned, {} wait", plan.assignments.len(), plan.waiting.len());
    }
}
