//! Servers, VMs and instants for tests: builders for scenarios, strategies for properties. Checks nothing.

use jiff::{SignedDuration, Timestamp};
use lull_engine::failover::{FailureClass, FailureMemory, RememberedFailure};
use lull_engine::ids::{HostId, JobId, RepositoryId, ServerId, TaskId, VmId};
use lull_engine::infrastructure::{ChannelKind, CredentialKind, ManagedServer, Platform, ServerState, Vm};
use lull_engine::licence::{Edition, Licence};
use lull_engine::selection::{Request, SelectionRules, WindowsGuestsFrom};
use lull_engine::settings::{Fallback, ProxyPolicy};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use uuid::Uuid;

pub fn now() -> Timestamp {
    "2030-01-01T12:00:00Z".parse().expect("a timestamp")
}

pub fn at_ms(ms: i64) -> Timestamp {
    now() + SignedDuration::from_millis(ms)
}

pub fn server_id(n: u128) -> ServerId {
    ServerId(Uuid::from_u128(0x5e00 + n))
}

pub fn vm_id(n: u128) -> VmId {
    VmId(Uuid::from_u128(0x7700 + n))
}

pub fn task_id(n: u128) -> TaskId {
    TaskId(Uuid::from_u128(0x7a00_0000 + n))
}

pub fn job_id(n: u128) -> JobId {
    JobId(Uuid::from_u128(0x1000 + n))
}

pub fn host_id(n: u128) -> HostId {
    HostId(Uuid::from_u128(0x4000 + n))
}

pub fn repository_id(n: u128) -> RepositoryId {
    RepositoryId(Uuid::from_u128(0x6000 + n))
}

/// A proxy that is online with four free slots, in 10.`n`.0.0/16.
pub fn proxy(n: u8, platform: Platform) -> ManagedServer {
    let channels = match platform {
        Platform::Linux => vec![ChannelKind::Ssh],
        Platform::Windows => vec![ChannelKind::Ssh, ChannelKind::WinRm],
    };
    ManagedServer {
        id: server_id(n.into()),
        name: format!("{}-{n}", if platform == Platform::Linux { "lin" } else { "win" }),
        platform,
        is_backup_server: false,
        role_enabled: true,
        state: ServerState::Online,
        networks: vec![format!("10.{n}.0.0/16").parse().expect("a network")],
        channels,
        network_less_hosts: Vec::new(),
        hosts_reached: vec![host_id(0)],
        slots: 4,
        running_tasks: 0,
    }
}

/// The backup server: Linux, in 10.0.0.0/16.
pub fn backup_server() -> ManagedServer {
    ManagedServer { name: "backup".into(), is_backup_server: true, ..proxy(0, Platform::Linux) }
}

/// A Linux VM with the address 10.`net`.0.9.
pub fn vm(n: u128, net: u8) -> Vm {
    Vm {
        id: vm_id(n),
        name: format!("vm-{n}"),
        host: host_id(0),
        guest_os: Some(Platform::Linux),
        addresses: vec![format!("10.{net}.0.9").parse().expect("an address")],
        connect: None,
        credential: None,
    }
}

pub fn windows_vm(n: u128, net: u8) -> Vm {
    Vm { guest_os: Some(Platform::Windows), ..vm(n, net) }
}

pub fn failure(vm: VmId, server: ServerId, at: Timestamp) -> RememberedFailure {
    RememberedFailure { vm, server, at, class: FailureClass::GuestUnreachable, cause: "no route to host".into() }
}

/// What a [`Request`] borrows from.
#[derive(Debug, Clone)]
pub struct World {
    pub vm: Vm,
    pub credential: Option<CredentialKind>,
    pub policy: ProxyPolicy,
    pub at_hypervisor: bool,
    pub licence: Licence,
    pub rules: SelectionRules,
    pub servers: Vec<ManagedServer>,
    pub failures: FailureMemory,
    pub tried: Vec<ServerId>,
}

impl World {
    /// Automatic selection among these servers, with the credential that fits the guest.
    pub fn new(vm: Vm, servers: Vec<ManagedServer>) -> Self {
        let credential = match vm.guest_os {
            Some(Platform::Windows) => Some(CredentialKind::WindowsPassword),
            Some(Platform::Linux) => Some(CredentialKind::SshKey),
            None => None,
        };
        Self {
            vm,
            credential,
            policy: ProxyPolicy::Automatic,
            at_hypervisor: true,
            licence: Licence::Universal,
            rules: SelectionRules::default(),
            servers,
            failures: FailureMemory::default(),
            tried: Vec::new(),
        }
    }

    pub fn prefer(mut self, servers: &[ServerId], fallback: Fallback) -> Self {
        self.policy = ProxyPolicy::Prefer { servers: servers.to_vec(), fallback };
        self
    }

    pub fn request(&self) -> Request<'_> {
        Request {
            vm: &self.vm,
            credential: self.credential,
            policy: &self.policy,
            at_hypervisor: self.at_hypervisor,
            licence: self.licence,
            rules: self.rules,
            servers: &self.servers,
            failures: &self.failures,
            tried: &self.tried,
            now: now(),
        }
    }
}

pub fn any_platform() -> impl Strategy<Value = Platform> {
    select(vec![Platform::Linux, Platform::Windows])
}

pub fn any_licence() -> impl Strategy<Value = Licence> {
    prop_oneof![
        3 => Just(Licence::Universal),
        1 => Just(Licence::Socket { edition: Edition::Standard }),
        1 => Just(Licence::Socket { edition: Edition::Enterprise }),
    ]
}

fn any_state() -> impl Strategy<Value = ServerState> {
    prop_oneof![
        6 => Just(ServerState::Online),
        1 => Just(ServerState::Offline { since: Some(at_ms(-60_000)) }),
        1 => Just(ServerState::NeverConnected),
        1 => Just(ServerState::Draining),
        1 => Just(ServerState::Disabled),
        1 => Just(ServerState::Incompatible { version: "0.1.0".into(), server_version: "0.4.0".into(), newer: false }),
        1 => Just(ServerState::Revoked),
    ]
}

/// Networks and addresses come from few values, so that they meet.
const NETWORKS: [&str; 8] = [
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.2.0.0/16",
    "10.2.0.7/32",
    "fd00:1::/64",
    "127.0.0.0/8",
    "0.0.0.0/0",
    "fe80::/10",
];
const ADDRESSES: [&str; 8] =
    ["10.1.2.3", "10.1.9.9", "10.2.0.7", "192.0.2.1", "fd00:1::5", "127.0.0.1", "fe80::1", "::ffff:10.1.2.3"];

prop_compose! {
    /// The server with this index; the first is the backup server.
    pub fn any_server(index: u8)(
        platform in any_platform(),
        role_enabled in prop::bool::weighted(0.9),
        state in any_state(),
        networks in subsequence(NETWORKS.to_vec(), 0..4),
        channels in subsequence(ChannelKind::ALL.to_vec(), 0..=4),
        hosts in subsequence(vec![host_id(0), host_id(1)], 0..=2),
        hosts_reached in subsequence(vec![host_id(0), host_id(1)], 0..=2),
        slots in 0u32..4,
        running_tasks in 0u32..5,
    ) -> ManagedServer {
        ManagedServer {
            is_backup_server: index == 0,
            role_enabled,
            state,
            networks: networks.iter().map(|net| net.parse().expect("a network")).collect(),
            channels,
            network_less_hosts: hosts,
            hosts_reached,
            slots,
            running_tasks,
            ..proxy(index, platform)
        }
    }
}

/// Up to seven servers in any order; the backup server is among them more often than not.
pub fn any_servers() -> impl Strategy<Value = Vec<ManagedServer>> {
    let all: Vec<_> = (0..7).map(any_server).collect();
    all.prop_flat_map(|all| subsequence(all, 0..=7)).prop_shuffle()
}

prop_compose! {
    pub fn any_vm(n: u128)(
        guest_os in prop::option::weighted(0.8, any_platform()),
        addresses in subsequence(ADDRESSES.to_vec(), 0..3),
        connect in prop::option::of(Just("127.0.0.1:2222".to_owned())),
        host in select(vec![host_id(0), host_id(1)]),
    ) -> Vm {
        Vm {
            guest_os,
            addresses: addresses.iter().map(|address| address.parse().expect("an address")).collect(),
            connect,
            host,
            ..vm(n, 1)
        }
    }
}

pub fn any_credential() -> impl Strategy<Value = Option<CredentialKind>> {
    prop::option::weighted(
        0.85,
        select(vec![CredentialKind::SshPassword, CredentialKind::SshKey, CredentialKind::WindowsPassword]),
    )
}

pub fn any_policy() -> impl Strategy<Value = ProxyPolicy> {
    let ids: Vec<ServerId> = (0..8).map(server_id).collect();
    prop_oneof![
        Just(ProxyPolicy::Automatic),
        (subsequence(ids, 0..=8), select(vec![Fallback::BackupServer, Fallback::None]))
            .prop_map(|(servers, fallback)| ProxyPolicy::Prefer { servers, fallback }),
    ]
}

pub fn any_rules() -> impl Strategy<Value = SelectionRules> {
    select(vec![WindowsGuestsFrom::WindowsProxies, WindowsGuestsFrom::AnyProxy])
        .prop_map(|windows_guests_from| SelectionRules { windows_guests_from })
}

/// Failures of VMs 0 to 3, some of them forgotten by now.
pub fn any_failures() -> impl Strategy<Value = FailureMemory> {
    prop::collection::vec((0u128..4, 0u128..7, -1_800_000i64..0), 0..6).prop_map(|failures| {
        let failures: Vec<_> =
            failures.into_iter().map(|(vm, server, ms)| failure(vm_id(vm), server_id(server), at_ms(ms))).collect();
        failures.into()
    })
}

prop_compose! {
    pub fn any_world()(
        vm in any_vm(0),
        credential in any_credential(),
        policy in any_policy(),
        at_hypervisor in any::<bool>(),
        licence in any_licence(),
        rules in any_rules(),
        servers in any_servers(),
        failures in any_failures(),
        tried in subsequence((0..7).map(server_id).collect::<Vec<_>>(), 0..3),
    ) -> World {
        World { vm, credential, policy, at_hypervisor, licence, rules, servers, failures, tried }
    }
}
