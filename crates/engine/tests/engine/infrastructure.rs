//! Networks, channels, heartbeats, ids and licences.

use crate::world::{any_server, any_vm, at_ms, now, proxy, vm};
use lull_engine::ids::{ServerId, SessionId, VmId};
use lull_engine::infrastructure::{ChannelKind, CredentialKind, Platform, ServerState, Vm};
use lull_engine::licence::{Edition, Licence};
use proptest::prelude::*;

fn same_network(server_networks: &[&str], vm_addresses: &[&str]) -> bool {
    let mut server = proxy(1, Platform::Linux);
    server.networks = server_networks.iter().map(|net| net.parse().expect("a network")).collect();
    let vm = Vm { addresses: vm_addresses.iter().map(|a| a.parse().expect("an address")).collect(), ..vm(1, 1) };
    server.shares_network_with(&vm)
}

#[test]
fn a_vm_is_in_the_network_of_a_server_whose_subnet_holds_its_address() {
    for (networks, addresses, expected) in [
        (&["10.1.0.0/16"][..], &["10.1.2.3"][..], true),
        (&["10.1.0.5/16"], &["10.1.2.3"], true),
        (&["10.1.0.0/16"], &["10.2.2.3"], false),
        (&["10.1.0.0/16", "fd00:1::/64"], &["192.0.2.1", "fd00:1::9"], true),
        (&["fd00:1::/64"], &["fd00:2::9"], false),
        (&["10.1.0.0/16"], &["::ffff:10.1.2.3"], true),
        (&["127.0.0.0/8"], &["127.0.0.1"], false),
        (&["::1/128"], &["::1"], false),
        (&["169.254.0.0/16", "fe80::/10"], &["169.254.1.1", "fe80::1"], false),
        (&["0.0.0.0/0", "::/0"], &["10.1.2.3", "fd00:1::9"], false),
        (&[], &["10.1.2.3"], false),
        (&["10.1.0.0/16"], &[], false),
    ] {
        assert_eq!(same_network(networks, addresses), expected, "{networks:?} {addresses:?}");
    }
}

#[test]
fn a_channel_fits_its_guests_and_credentials() {
    use ChannelKind::{GuestAgent, PowerShellDirect, Ssh, WinRm};
    let fits: Vec<(ChannelKind, Platform, &str)> = ChannelKind::ALL
        .into_iter()
        .flat_map(|channel| [Platform::Linux, Platform::Windows].map(|os| (channel, os)))
        .filter(|(channel, os)| channel.serves(*os))
        .map(|(channel, os)| {
            let names = [
                (None, "none "),
                (Some(CredentialKind::SshPassword), "ssh-password "),
                (Some(CredentialKind::SshKey), "ssh-key "),
                (Some(CredentialKind::WindowsPassword), "windows "),
            ];
            let bits = names.map(|(credential, _)| channel.accepts(credential));
            let text = match bits {
                [false, true, true, false] => "ssh",
                [false, false, false, true] => "windows",
                [true, true, true, true] => "any",
                _ => "unexpected",
            };
            (channel, os, text)
        })
        .collect();
    let expected = [
        (Ssh, Platform::Linux, "ssh"),
        (WinRm, Platform::Windows, "windows"),
        (GuestAgent, Platform::Linux, "any"),
        (GuestAgent, Platform::Windows, "any"),
        (PowerShellDirect, Platform::Windows, "windows"),
    ];
    assert_eq!(fits, expected);
}

#[test]
fn a_server_is_offline_after_ten_seconds_of_silence() {
    assert_eq!(ServerState::from_heartbeat(at_ms(-10_000), now()), ServerState::Online);
    assert_eq!(
        ServerState::from_heartbeat(at_ms(-10_001), now()),
        ServerState::Offline { since: Some(at_ms(-10_001)) }
    );
    // A clock that was set back makes nobody offline.
    assert_eq!(ServerState::from_heartbeat(at_ms(60_000), now()), ServerState::Online);
}

#[test]
fn only_a_socket_licence_below_enterprise_has_no_proxies() {
    let socket = |edition| Licence::Socket { edition };
    for (licence, admits) in [
        (Licence::Universal, true),
        (socket(Edition::Standard), false),
        (socket(Edition::Enterprise), true),
        (socket(Edition::EnterprisePlus), true),
    ] {
        assert_eq!(licence.admits_proxies(), admits, "{licence}");
        assert_eq!(licence.choose_disabled_because().is_none(), admits, "{licence}");
    }
}

#[test]
fn ids_say_what_they_are_not() {
    assert_eq!("x".parse::<VmId>().expect_err("no id").to_string(), "\"x\" is not a vm id");
    assert_eq!("0".parse::<SessionId>().expect_err("no id").to_string(), "\"0\" is not a session id");
    assert_eq!("42".parse(), Ok(SessionId(42)));
    let id = ServerId::generate();
    assert_eq!(id.to_string().parse(), Ok(id));
}

#[test]
fn stored_names_stay_as_they_are() {
    // These stand in databases: a change here needs a migration.
    let json = |value: serde_json::Result<String>| value.expect("JSON");
    assert_eq!(json(serde_json::to_string(&ChannelKind::ALL)), r#"["ssh","winrm","guest-agent","powershell-direct"]"#);
    assert_eq!(
        json(serde_json::to_string(&ServerState::Offline { since: Some(now()) })),
        r#"{"state":"offline","since":"2030-01-01T12:00:00Z"}"#
    );
    assert_eq!(
        json(serde_json::to_string(&Licence::Socket { edition: Edition::EnterprisePlus })),
        r#"{"kind":"socket","edition":"enterprise-plus"}"#
    );
}

proptest! {
    #[test]
    fn infrastructure_survives_json(server in any_server(1), vm in any_vm(1)) {
        let text = serde_json::to_string(&(&server, &vm)).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<(_, _)>(&text).expect("the same"), (server, vm));
    }
}
