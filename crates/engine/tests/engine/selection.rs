//! Choosing the guest interaction proxy, scenario by scenario, with the explanation a person reads.

use crate::world::{World, at_ms, backup_server, failure, host_id, proxy, server_id, vm, windows_vm};
use Platform::{Linux, Windows};
use lull_engine::infrastructure::{ChannelKind, CredentialKind, ManagedServer, Platform, ServerState, Vm};
use lull_engine::licence::{Edition, Licence};
use lull_engine::selection::{Judgement, Note, Rejection, Tier, WindowsGuestsFrom, choose, select};
use lull_engine::settings::Fallback;

/// The rendered decision must read like this.
fn check(world: &World, expected: &str) {
    let expected: Vec<&str> = expected.trim().lines().map(str::trim_end).collect();
    let got = select(&world.request()).to_string();
    let got: Vec<&str> = got.lines().collect();
    assert_eq!(got, expected);
}

fn rejection(world: &World, name: &str) -> Rejection {
    let decision = select(&world.request());
    let verdict = decision.others.iter().find(|other| other.name == name).expect("a verdict on it");
    match &verdict.judgement {
        Judgement::Rejected { reason } => reason.clone(),
        other => panic!("{name} was not rejected: {other}"),
    }
}

/// Who gets the task when each server loses it in turn; one turn more than there are servers.
fn failover_order(world: &mut World) -> Vec<String> {
    let mut order = Vec::new();
    for _ in 0..=world.servers.len() {
        let Some(chosen) = select(&world.request()).chosen else { break };
        world.tried.push(chosen.server);
        order.push(chosen.name);
    }
    order
}

#[test]
fn the_nearest_comes_first_and_the_backup_server_after_proxies_as_near() {
    let both = |net: u8| ["10.1.0.0/16", "10.2.0.0/16"][usize::from(net) - 1].parse().expect("a network");
    let local_backup = ManagedServer { networks: vec![both(1)], ..backup_server() };
    check(
        &World::new(vm(1, 1), vec![local_backup, proxy(2, Linux), proxy(1, Windows), proxy(3, Windows)]),
        "vm-1: win-1 over SSH (tier 1: same network, not the backup server; 0 of 4 slots in use)
  backup: could serve it (tier 2), but it is the backup server, which comes after proxies as near
  lin-2: could serve it (tier 3), but it is not in the VM's network
  win-3: could serve it (tier 3), but it is not in the VM's network",
    );
}

#[test]
fn a_local_backup_server_comes_before_a_proxy_in_another_network() {
    let world = World::new(vm(1, 0), vec![proxy(1, Linux), backup_server()]);
    assert_eq!(select(&world.request()).chosen.expect("one").tier, Tier::LocalBackupServer);
}

#[test]
fn within_a_tier_the_fewest_running_tasks_win_then_the_smaller_id() {
    let busy = ManagedServer { running_tasks: 2, ..proxy(1, Linux) };
    let idle = |n| ManagedServer { running_tasks: 1, networks: proxy(1, Linux).networks, ..proxy(n, Linux) };
    check(
        &World::new(vm(1, 1), vec![busy, idle(3), idle(2)]),
        "vm-1: lin-2 over SSH (tier 1: same network, not the backup server; 1 of 4 slots in use)
  lin-3: could serve it (tier 1), but it is as good; the smaller id decides
  lin-1: could serve it (tier 1), but it runs 2 tasks, the chosen one 1",
    );
}

#[test]
fn a_full_local_proxy_is_still_the_one_to_wait_for() {
    let full = ManagedServer { running_tasks: 4, ..proxy(1, Linux) };
    let decision = select(&World::new(vm(1, 1), vec![full, proxy(2, Linux)]).request());
    assert_eq!(decision.chosen.expect("one").name, "lin-1");
}

#[test]
fn a_pair_that_failed_ranks_last_for_fifteen_minutes() {
    let mut world = World::new(vm(1, 1), vec![proxy(1, Linux), backup_server()]);
    world.failures.remember(failure(world.vm.id, server_id(1), at_ms(-60_000)));
    check(
        &world,
        "vm-1: backup over SSH (tier 4: another network, the backup server; 0 of 4 slots in use)
  lin-1: could serve it (tier 1), but it failed with this VM at 2030-01-01T11:59:00Z (no route to host) and ranks last for 15 minutes",
    );
    world.failures = vec![failure(world.vm.id, server_id(1), at_ms(-15 * 60_000))].into();
    assert_eq!(select(&world.request()).chosen.expect("one").name, "lin-1");
}

#[test]
fn a_linux_proxy_cannot_access_a_windows_guest_unless_the_rule_is_lifted() {
    let mut with_winrm = proxy(1, Linux);
    with_winrm.channels.push(ChannelKind::WinRm);
    let mut world = World::new(windows_vm(1, 1), vec![with_winrm, proxy(2, Windows)]);
    check(
        &world,
        "vm-1: win-2 over WinRM (tier 3: another network, not the backup server; 0 of 4 slots in use)
  lin-1: cannot: a Linux proxy cannot access a Windows guest",
    );
    world.rules.windows_guests_from = WindowsGuestsFrom::AnyProxy;
    assert_eq!(select(&world.request()).chosen.expect("one").name, "lin-1");
    // The lifted rule does not conjure up a channel.
    world.servers[0].channels = vec![ChannelKind::Ssh];
    assert_eq!(rejection(&world, "lin-1"), Rejection::NoChannel { guest_os: Windows });
}

#[test]
fn a_windows_proxy_can_access_both() {
    for guest in [vm(1, 1), windows_vm(1, 1)] {
        let world = World::new(guest, vec![proxy(1, Windows)]);
        assert_eq!(select(&world.request()).chosen.expect("one").name, "win-1");
    }
}

#[test]
fn every_server_that_cannot_says_why() {
    let local = |n, change: fn(&mut ManagedServer)| {
        let mut server = proxy(n, Linux);
        change(&mut server);
        server
    };
    fn apart(newer: bool) -> ServerState {
        let (old, new) = ("0.1.0".to_owned(), "0.4.0".to_owned());
        let (version, server_version) = if newer { (new, old) } else { (old, new) };
        ServerState::Incompatible { version, server_version, newer }
    }
    let servers = vec![
        local(1, |s| s.role_enabled = false),
        local(2, |s| s.state = ServerState::Offline { since: Some(at_ms(-29_877)) }),
        local(3, |s| s.state = ServerState::Draining),
        local(4, |s| s.state = ServerState::Disabled),
        local(5, |s| s.slots = 0),
        local(6, |s| s.channels.clear()),
        local(7, |s| s.channels = vec![ChannelKind::GuestAgent]),
        local(8, |s| s.hosts_reached = vec![host_id(1)]),
        local(9, |s| s.state = apart(false)),
        local(10, |s| s.state = apart(true)),
        local(11, |s| s.state = ServerState::Revoked),
        local(12, |s| s.state = ServerState::Offline { since: None }),
        local(13, |s| s.state = ServerState::NeverConnected),
    ];
    check(
        &World::new(vm(1, 1), servers),
        "vm-1: no server can serve it
  lin-1: cannot: it does not have the role guest interaction proxy
  lin-10: cannot: it runs release 0.4.0, the backup server 0.1.0, which is too far apart: upgrade the backup server
  lin-11: cannot: it was revoked: to be used again it has to join anew, with a new token
  lin-12: cannot: it is offline: it has not connected since the backup server started
  lin-13: cannot: it has not connected yet: see whether its proxy runs and reaches the backup server
  lin-2: cannot: it is offline since 2030-01-01T11:59:30Z
  lin-3: cannot: it is draining: it finishes its tasks and takes no new ones
  lin-4: cannot: an administrator disabled it
  lin-5: cannot: it has no task slots
  lin-6: cannot: it has no channel to Linux guests
  lin-7: cannot: it does not reach the VM's hypervisor host, which QEMU guest agent needs
  lin-8: cannot: it does not reach the VM's hypervisor host, where the snapshot is taken
  lin-9: cannot: it runs release 0.1.0, the backup server 0.4.0, which is too far apart: upgrade it",
    );
}

#[test]
fn a_network_less_channel_needs_neither_credential_nor_address_but_the_host() {
    let mut agent = proxy(1, Linux);
    agent.channels = vec![ChannelKind::Ssh, ChannelKind::GuestAgent];
    agent.network_less_hosts = vec![host_id(0)];
    let mut world = World::new(Vm { addresses: Vec::new(), ..vm(1, 1) }, vec![agent]);
    world.credential = None;
    assert_eq!(select(&world.request()).chosen.expect("one").channel, ChannelKind::GuestAgent);
    world.vm.host = host_id(1);
    world.servers[0].hosts_reached = vec![host_id(1)];
    assert_eq!(rejection(&world, "lin-1"), Rejection::HostNotReached { channel: ChannelKind::GuestAgent });
}

#[test]
fn a_task_in_the_guest_alone_needs_no_way_to_the_hypervisor() {
    let far = ManagedServer { hosts_reached: Vec::new(), ..proxy(1, Linux) };
    let mut world = World::new(vm(1, 1), vec![far, backup_server()]);
    assert_eq!(rejection(&world, "lin-1"), Rejection::HypervisorNotReached { host: host_id(0) });
    assert_eq!(select(&world.request()).chosen.expect("one").name, "backup");
    world.at_hypervisor = false;
    assert_eq!(select(&world.request()).chosen.expect("one").name, "lin-1");
}

#[test]
fn the_same_network_is_any_address_in_any_interfaces_subnet_of_either_family() {
    let with = |n, networks: &[&str]| {
        let networks = networks.iter().map(|net| net.parse().expect("a network")).collect();
        ManagedServer { networks, ..proxy(n, Linux) }
    };
    let nearest = |addresses: &[&str], servers: &[ManagedServer]| {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        let world = World::new(Vm { addresses, ..vm(1, 1) }, servers.to_vec());
        let chosen = select(&world.request()).chosen.expect("one");
        (chosen.name, chosen.tier.number())
    };
    let elsewhere = with(1, &["192.0.2.0/24", "2001:db8:9::/64"]);
    let second_nic = with(2, &["198.51.100.0/24", "10.7.0.0/16"]);
    let v6 = with(3, &["198.51.100.0/24", "2001:db8:1::/64"]);
    let servers = [elsewhere, second_nic, v6];
    assert_eq!(nearest(&["10.7.1.1"], &servers), ("lin-2".into(), 1));
    assert_eq!(nearest(&["2001:db8:1::7"], &servers), ("lin-3".into(), 1));
    assert_eq!(nearest(&["203.0.113.1", "2001:db8:1::7"], &servers), ("lin-3".into(), 1), "its second address");
    // Overlapping ranges: both hold the address; how narrow they are says nothing about who is nearer.
    assert_eq!(nearest(&["10.7.1.1"], &[with(5, &["10.7.1.0/24"]), with(4, &["10.0.0.0/8"])]), ("lin-4".into(), 1));
    assert_eq!(nearest(&["203.0.113.1"], &servers), ("lin-1".into(), 3));
}

#[test]
fn the_credential_has_to_fit() {
    let mut world = World::new(vm(1, 1), vec![proxy(1, Linux)]);
    world.credential = None;
    assert_eq!(rejection(&world, "lin-1"), Rejection::NoCredential { guest_os: Linux });
    world.credential = Some(CredentialKind::WindowsPassword);
    assert_eq!(rejection(&world, "lin-1").to_string(), "a Windows password does not fit its channels to Linux guests");
    world.credential = Some(CredentialKind::SshPassword);
    world.vm.addresses.clear();
    assert_eq!(rejection(&world, "lin-1"), Rejection::NoAddress { channel: ChannelKind::Ssh });
}

#[test]
fn an_unknown_guest_os_is_taken_from_the_credential_and_never_guessed() {
    let mut world = World::new(Vm { guest_os: None, ..vm(1, 1) }, vec![proxy(1, Linux)]);
    assert_eq!(rejection(&world, "lin-1"), Rejection::GuestOsUnknown);
    world.credential = Some(CredentialKind::SshKey);
    assert!(select(&world.request()).chosen.is_some());
    world.credential = Some(CredentialKind::WindowsPassword);
    assert_eq!(rejection(&world, "lin-1"), Rejection::LinuxProxyWindowsGuest);
}

#[test]
fn a_demo_over_loopback_is_tier_four_and_says_so() {
    let mut world = World::new(vm(1, 1), vec![backup_server()]);
    world.vm.addresses = vec!["127.0.0.1".parse().expect("an address")];
    world.servers[0].networks.push("127.0.0.0/8".parse().expect("a network"));
    check(&world, "vm-1: backup over SSH (tier 4: another network, the backup server; 0 of 4 slots in use)");
}

#[test]
fn only_preferred_servers_are_used_while_one_of_them_can() {
    let servers = vec![proxy(1, Linux), proxy(2, Linux), backup_server()];
    check(
        &World::new(vm(1, 1), servers).prefer(&[server_id(2)], Fallback::BackupServer),
        "vm-1: lin-2 over SSH (tier 3: another network, not the backup server; 0 of 4 slots in use)
  backup: cannot: the job prefers other servers; the backup server takes over only if none of them can serve the VM
  lin-1: cannot: the job prefers other servers",
    );
}

#[test]
fn the_backup_server_takes_over_where_no_preferred_server_can() {
    let offline = ManagedServer { state: ServerState::Offline { since: Some(at_ms(-20_000)) }, ..proxy(2, Linux) };
    let servers = vec![proxy(1, Linux), offline, backup_server()];
    let world = World::new(vm(1, 1), servers).prefer(&[server_id(2)], Fallback::BackupServer);
    check(
        &world,
        "vm-1: backup over SSH (tier 4: another network, the backup server; 0 of 4 slots in use)
  none of the preferred servers can serve it: the backup server takes over
  lin-1: cannot: the job prefers other servers
  lin-2: cannot: it is offline since 2030-01-01T11:59:40Z",
    );
    let none = world.prefer(&[server_id(2)], Fallback::None);
    assert_eq!(select(&none.request()).chosen, None);
    assert_eq!(rejection(&none, "backup"), Rejection::NotPreferred);
}

#[test]
fn the_fallback_does_not_lift_the_rule_for_windows_guests() {
    let world = World::new(windows_vm(1, 0), vec![backup_server()]).prefer(&[server_id(5)], Fallback::BackupServer);
    assert_eq!(select(&world.request()).chosen, None);
    assert_eq!(rejection(&world, "backup"), Rejection::LinuxProxyWindowsGuest);
}

#[test]
fn after_every_preferred_server_was_tried_the_backup_server_takes_over() {
    let servers = vec![proxy(1, Linux), proxy(2, Linux), backup_server()];
    let mut world = World::new(vm(1, 1), servers).prefer(&[server_id(1), server_id(2)], Fallback::BackupServer);
    let order = failover_order(&mut world);
    assert_eq!(order, ["lin-1", "lin-2", "backup"]);
}

#[test]
fn failover_follows_the_rank_with_the_backup_server_in_its_own() {
    let local_backup = ManagedServer { networks: proxy(1, Linux).networks, ..backup_server() };
    let mut world = World::new(vm(1, 1), vec![proxy(3, Linux), local_backup, proxy(2, Linux), proxy(1, Linux)]);
    let order = failover_order(&mut world);
    assert_eq!(order, ["lin-1", "backup", "lin-2", "lin-3"]);
}

#[test]
fn a_licence_without_proxies_leaves_the_backup_server_whatever_the_job_prefers() {
    let servers = vec![proxy(1, Linux), backup_server()];
    let mut world = World::new(vm(1, 1), servers).prefer(&[server_id(1)], Fallback::None);
    world.licence = Licence::Socket { edition: Edition::Standard };
    check(
        &world,
        "vm-1: backup over SSH (tier 4: another network, the backup server; 0 of 4 slots in use)
  the job's preferred servers do not count under the socket/standard licence
  lin-1: cannot: the socket licence of edition standard has no guest interaction proxies: only the backup server may do it",
    );
    world.licence = Licence::Socket { edition: Edition::Enterprise };
    let decision = select(&world.request());
    assert_eq!((decision.chosen.expect("one").name.as_str(), decision.note), ("lin-1", None));
}

#[test]
fn no_servers_at_all_is_an_answer_too() {
    let world = World::new(vm(1, 1), Vec::new());
    assert_eq!(choose(&world.request()), None);
    check(&world, "vm-1: no server can serve it");
    assert_ne!(select(&world.request()).note, Some(Note::BackupServerTookOver));
}
