//! Properties of proxy selection over random infrastructures, against an independent telling of the rules.

use crate::world::{World, any_server, any_world, now};
use lull_engine::infrastructure::{ChannelKind, ManagedServer, Platform, ServerState};
use lull_engine::licence::{Edition, Licence};
use lull_engine::selection::{Decision, Judgement, Tier, WindowsGuestsFrom, choose, select};
use lull_engine::settings::{Fallback, ProxyPolicy};
use proptest::prelude::*;
use std::net::IpAddr;

/// product.md's rules told once more, as naively as possible.
fn can_reach(world: &World, server: &ManagedServer) -> bool {
    let os = match (world.vm.guest_os, world.credential) {
        (Some(os), _) => os,
        (None, Some(credential)) => credential.guest_os(),
        (None, None) => return false,
    };
    let lifted = world.rules.windows_guests_from == WindowsGuestsFrom::AnyProxy;
    if os == Platform::Windows && server.platform == Platform::Linux && !lifted {
        return false;
    }
    let addressed = !world.vm.addresses.is_empty() || world.vm.connect.is_some();
    let on_host = server.network_less_hosts.contains(&world.vm.host);
    server.channels.iter().any(|channel| match channel {
        ChannelKind::Ssh => {
            os == Platform::Linux && addressed && world.credential.is_some_and(|c| c.guest_os() == Platform::Linux)
        }
        ChannelKind::WinRm => {
            os == Platform::Windows && addressed && world.credential.is_some_and(|c| c.guest_os() == Platform::Windows)
        }
        ChannelKind::PowerShellDirect => {
            os == Platform::Windows && on_host && world.credential.is_some_and(|c| c.guest_os() == Platform::Windows)
        }
        ChannelKind::GuestAgent => on_host,
    })
}

fn is_ready(world: &World, server: &ManagedServer) -> bool {
    let standard = world.licence == Licence::Socket { edition: Edition::Standard };
    server.role_enabled
        && server.state == ServerState::Online
        && server.slots > 0
        && !world.tried.contains(&server.id)
        && (server.is_backup_server || !standard)
        && can_reach(world, server)
        && (!world.at_hypervisor || server.hosts_reached.contains(&world.vm.host))
}

fn candidates(world: &World) -> Vec<&ManagedServer> {
    let ready: Vec<&ManagedServer> = world.servers.iter().filter(|server| is_ready(world, server)).collect();
    let standard = world.licence == Licence::Socket { edition: Edition::Standard };
    let ProxyPolicy::Prefer { servers, fallback } = &world.policy else {
        return ready;
    };
    if standard {
        return ready;
    }
    let preferred: Vec<_> = ready.iter().copied().filter(|server| servers.contains(&server.id)).collect();
    if preferred.is_empty() && *fallback == Fallback::BackupServer {
        return ready.into_iter().filter(|server| server.is_backup_server).collect();
    }
    preferred
}

fn is_local(world: &World, server: &ManagedServer) -> bool {
    world.vm.addresses.iter().any(|address| {
        let address = address.to_canonical();
        let counts = match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && (v6.segments()[0] & 0xffc0) != 0xfe80,
        };
        counts && server.networks.iter().any(|net| net.prefix_len() > 0 && net.contains(&address))
    })
}

fn has_failed(world: &World, server: &ManagedServer) -> bool {
    world.failures.iter().any(|failure| {
        let age_s = now().duration_since(failure.at).as_secs_f64();
        failure.vm == world.vm.id && failure.server == server.id && age_s < 900.0
    })
}

/// The order by repeated elimination instead of a tuple.
fn expected(world: &World) -> Option<&ManagedServer> {
    let mut left = candidates(world);
    let eliminations: [&dyn Fn(&ManagedServer) -> bool; 3] =
        [&|server| !has_failed(world, server), &|server| is_local(world, server), &|server| !server.is_backup_server];
    for better in eliminations {
        if left.iter().any(|server| better(server)) {
            left.retain(|server| better(server));
        }
    }
    let fewest = left.iter().map(|server| server.running_tasks).min();
    left.into_iter().filter(|server| Some(server.running_tasks) == fewest).min_by_key(|server| server.id)
}

fn tier_of(world: &World, server: &ManagedServer) -> Tier {
    match (is_local(world, server), server.is_backup_server) {
        (true, false) => Tier::LocalProxy,
        (true, true) => Tier::LocalBackupServer,
        (false, false) => Tier::RemoteProxy,
        (false, true) => Tier::RemoteBackupServer,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_choice_is_the_one_the_rules_name(world in any_world()) {
        let chosen = select(&world.request()).chosen;
        let expected = expected(&world);
        prop_assert_eq!(chosen.as_ref().map(|c| c.server), expected.map(|server| server.id));
        if let (Some(chosen), Some(server)) = (chosen, expected) {
            prop_assert_eq!(chosen.tier, tier_of(&world, server));
            prop_assert!(server.channels.contains(&chosen.channel));
            prop_assert_eq!(chosen.recently_failed, has_failed(&world, server));
        }
    }

    #[test]
    fn every_server_is_accounted_for_exactly_once(world in any_world()) {
        let decision = select(&world.request());
        let mut named: Vec<_> = decision.others.iter().map(|other| other.server).collect();
        named.extend(decision.chosen.as_ref().map(|chosen| chosen.server));
        named.sort();
        let mut all: Vec<_> = world.servers.iter().map(|server| server.id).collect();
        all.sort();
        prop_assert_eq!(named, all);
        prop_assert_eq!(decision.to_string().lines().count(),
            1 + decision.others.len() + usize::from(decision.note.is_some()));
    }

    #[test]
    fn who_could_serve_too_is_exactly_who_would_be_next(world in any_world()) {
        let decision = select(&world.request());
        let feasible: Vec<_> = decision.others.iter()
            .filter(|other| matches!(other.judgement, Judgement::Feasible { .. }))
            .map(|other| other.server)
            .collect();
        prop_assert_eq!(feasible.len(), decision.next_in_line());
        // Taking the chosen out must choose the next feasible one of the explanation.
        if let (Some(chosen), Some(next)) = (&decision.chosen, feasible.first()) {
            let mut without = world.clone();
            without.tried.push(chosen.server);
            prop_assert_eq!(select(&without.request()).chosen.map(|c| c.server), Some(*next));
        }
    }

    #[test]
    fn the_choice_does_not_depend_on_the_order_of_servers(world in any_world()) {
        let mut reversed = world.clone();
        reversed.servers.reverse();
        let decision = select(&world.request());
        prop_assert_eq!(&decision, &select(&reversed.request()));
        let quick = choose(&world.request()).map(|(index, _)| world.servers[index].id);
        prop_assert_eq!(quick, decision.chosen.map(|chosen| chosen.server));
    }

    #[test]
    fn one_more_server_changes_the_choice_only_to_itself(world in any_world(), extra in any_server(9)) {
        // Except where the newcomer is the first preferred server that can, which it cannot be here: 9 is never preferred.
        let before = select(&world.request()).chosen.map(|chosen| chosen.server);
        let mut more = world.clone();
        more.servers.push(extra.clone());
        let after = select(&more.request()).chosen.map(|chosen| chosen.server);
        prop_assert!(after == before || after == Some(extra.id));
    }

    #[test]
    fn failover_ends(mut world in any_world()) {
        let servers = world.servers.len();
        for turn in 0..=servers {
            match select(&world.request()).chosen {
                Some(chosen) => world.tried.push(chosen.server),
                None => return Ok(()),
            }
            prop_assert!(turn < servers, "more turns than servers");
        }
    }

    #[test]
    fn a_decision_survives_json(world in any_world()) {
        let decision = select(&world.request());
        let text = serde_json::to_string(&decision).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<Decision>(&text).expect("the same"), decision);
    }
}
