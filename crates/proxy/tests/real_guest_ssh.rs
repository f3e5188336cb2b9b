//! The SSH channel against a real guest: every way in, every refusal, counted in the guest's own log.

#[path = "support/contract.rs"]
mod contract;
#[path = "support/guest.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod guest;

use guest::Guest;
use lull_proxy::access::{Elevation, HostKey};
use lull_proxy::channel::{FailureKind, GuestChannel, Hop};
use lull_proxy::ssh;

#[tokio::test(flavor = "multi_thread")]
async fn every_way_in_keeps_the_contract() {
    let guest = Guest::boot("pg", "ways");
    let ways = [
        guest.root(),
        guest.access("admin", Some("lull-test"), Elevation::Sudo(Some("lull-test".into()))),
        guest.access("ops", None, Elevation::Sudo(None)),
        guest.access("plain", Some("lull-test"), Elevation::Su("lull-root".into())),
    ];
    for access in ways {
        let channel = ssh::connect(&access).await.unwrap_or_else(|e| panic!("{}: {e}", access.user));
        contract::holds(&channel).await;
        channel.close().await;
    }
    assert_eq!(guest.log_count("Failed password"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_final_and_tried_exactly_once() {
    let guest = Guest::boot("pg", "refusals");

    let wrong = guest.access("admin", Some("wrong"), Elevation::None);
    let error = ssh::connect(&wrong).await.err().expect("refused");
    assert_eq!((error.hop, error.kind), (Hop::Login, FailureKind::Refused), "{error}");
    assert!(error.what.contains("admin") && error.what.contains("tried once"), "{error}");
    assert_eq!(guest.log_count("Failed password for admin"), 1);

    let refused = |access| async move {
        let channel = ssh::connect(&access).await.unwrap();
        let error = channel.open_elevated(&lull_proxy::channel::Script::new("test", "id")).await.unwrap_err();
        assert_eq!((error.hop, error.kind), (Hop::Elevation, FailureKind::Refused), "{error}");
        channel.close().await;
        error.what
    };
    let said = refused(guest.access("admin", Some("lull-test"), Elevation::Sudo(Some("wrong".into())))).await;
    assert!(said.contains("sudo refused the password of admin"), "{said}");
    let attempts = guest.ssh("grep -o '[0-9]* incorrect password attempt' /var/log/syslog; true");
    assert_eq!(attempts, "1 incorrect password attempt");
    assert_eq!(guest.log_count("pam_unix(sudo:auth): authentication failure"), 1);

    let said = refused(guest.access("plain", Some("lull-test"), Elevation::Su("wrong".into()))).await;
    assert!(said.contains("su refused the password of root"), "{said}");
    assert_eq!(guest.log_count("FAILED SU"), 1);

    let said = refused(guest.access("plain", None, Elevation::Sudo(None))).await;
    assert!(said.contains("sudo did not let plain become root"), "{said}");
    let said = refused(guest.access("plain", None, Elevation::None)).await;
    assert!(said.contains("plain is not root"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hop_that_fails_is_named() {
    let guest = Guest::boot("pg", "hops");
    let channel = ssh::connect(&guest.root()).await.unwrap();
    let seen = channel.host_key().clone();
    assert!(seen.first_contact && seen.key.fingerprint.starts_with("SHA256:"), "{seen:?}");
    channel.close().await;

    let mut pinned = guest.root();
    pinned.host_keys = vec![seen.key.clone()];
    let again = ssh::connect(&pinned).await.unwrap();
    assert!(!again.host_key().first_contact);
    again.close().await;

    let other = HostKey { fingerprint: "SHA256:other".into(), ..seen.key.clone() };
    pinned.host_keys = vec![other];
    let error = ssh::connect(&pinned).await.err().expect("changed");
    assert_eq!(error.kind, FailureKind::HostKey);
    assert!(error.what.contains("SHA256:other") && error.what.contains(&seen.key.fingerprint), "{error}");

    let mut closed = guest.root();
    closed.endpoints[0].port = 1;
    let error = ssh::connect(&closed).await.err().expect("closed");
    assert_eq!((error.hop, error.kind), (Hop::Port, FailureKind::Unreachable), "{error}");

    let mut second = guest.root();
    second.endpoints.insert(0, closed.endpoints[0].clone());
    ssh::connect(&second).await.unwrap().close().await;

    let mut nameless = guest.root();
    nameless.endpoints[0].host = "no-such-guest.invalid".into();
    let error = ssh::connect(&nameless).await.err().expect("no such name");
    assert_eq!(error.hop, Hop::Name, "{error}");
}
