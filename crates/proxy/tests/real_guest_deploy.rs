//! The deployment on guests that make it hard: noisy, noexec, full.

#[path = "support/guest.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod guest;

use guest::Guest;
use lull_guest_wire::Command;
use lull_proxy::access::Elevation;
use lull_proxy::channel::{FailureKind, GuestChannel, Hop};
use lull_proxy::{carried, deploy, receipt, ssh};
use std::time::Duration;

async fn deploy_and_leave(channel: &dyn GuestChannel) -> deploy::Deployed {
    let image = carried::linux_x86_64().unwrap();
    let mut deployed = deploy::deploy(channel, &image, 0).await.unwrap_or_else(|e| panic!("{e}; {}", e.remedy));
    assert!(deployed.hello.leftovers.is_empty(), "{:?}", deployed.hello);
    deployed.client.call(Command::Bye, Duration::from_secs(10)).await.unwrap();
    let left = loop {
        let look = receipt::look(channel).await.unwrap();
        if look.processes.is_empty() {
            break look.left();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(left.is_empty(), "{left:?}");
    deployed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_systemd_a_banner_and_a_noisy_profile() {
    let guest = Guest::boot("systemd", "noisy");
    let ways = [
        guest.root(),
        guest.access("admin", Some("lull-test"), Elevation::Sudo(Some("lull-test".into()))),
        guest.access("ops", None, Elevation::Sudo(None)),
        guest.access("plain", Some("lull-test"), Elevation::Su("lull-root".into())),
    ];
    for access in ways {
        let channel = ssh::connect(&access).await.unwrap_or_else(|e| panic!("{}: {e}", access.user));
        deploy_and_leave(&channel).await;
        channel.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_forbid_programs_or_are_full_are_passed_over_and_named() {
    let guest = Guest::boot("pg", "folders");
    let channel = ssh::connect(&guest.root()).await.unwrap();
    let folders = deploy::FOLDERS;

    // What an earlier task left is swept, what only looks like it stays.
    guest.ssh("mkdir -m 700 /run/lull-00c0ffee00c0ffee /run/lull-mine; touch /run/lull-00c0ffee00c0ffee/lull-runtime");
    let deployed = deploy_and_leave(&channel).await;
    assert_eq!(deployed.swept, ["/run/lull-00c0ffee00c0ffee"]);
    assert!(deployed.folder.starts_with("/run/lull-"), "{}", deployed.folder);
    guest.ssh("rmdir /run/lull-mine");

    // Mounted by one login, since the last of these folders holds the key that lets us in.
    let cover = |options: &str, which: &[&str]| {
        let each =
            which.iter().map(|folder| format!("mkdir -p {folder} && mount -t tmpfs -o {options} cover {folder}"));
        // sshd wants its own folder below the first one for every new login.
        let again = "mkdir -p /run/sshd".to_string();
        guest.ssh(&each.chain([again]).collect::<Vec<_>>().join(" && "))
    };
    cover("mode=755,noexec", &folders[..1]);
    cover("mode=755,size=256k", &folders[1..2]);
    let deployed = deploy_and_leave(&channel).await;
    assert!(deployed.folder.starts_with("/tmp/lull-"), "{}", deployed.folder);

    // Programs are forbidden there, and no mount of that name says so.
    guest.ssh("mkdir /x && mount -t tmpfs -o mode=755,noexec x /x && mv /tmp /tmp.before && ln -s /x /tmp");
    let deployed = deploy_and_leave(&channel).await;
    assert!(deployed.folder.starts_with("/var/tmp/lull-"), "{}", deployed.folder);
    assert_eq!(guest.ssh("ls /x").trim(), "");
    guest.ssh("rm /tmp && mv /tmp.before /tmp");

    cover("mode=755,noexec", &folders[2..]);
    let image = carried::linux_x86_64().unwrap();
    let error = deploy::deploy(&channel, &image, 0).await.unwrap_err();
    assert_eq!((error.hop, error.kind), (Hop::Deploy, FailureKind::GuestSide));
    for (folder, reason) in [("/run", "noexec"), ("/dev/shm", "No space"), ("/tmp", "noexec"), ("/srv", "noexec")] {
        let named = error.what.split(", ").any(|part| part.contains(&format!("{folder} (")) && part.contains(reason));
        assert!(named, "{folder} with {reason}: {error}");
    }
    assert!(receipt::look(&channel).await.unwrap().left().is_empty());
}
