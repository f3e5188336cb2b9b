//! The component in a real guest that boots systemd with PAM, journald and logind: what a test host on the machine's kernel hides.
//!
//! Speaks to it over OpenSSH, with a login that prints noise. The guest comes from testbed/guest; needs root and QEMU.

#[path = "../freeze_loop/client.rs"]
#[allow(dead_code, reason = "shared with freeze_loop, which uses more of it")]
mod client;
mod guest;

use client::Component;
use guest::{Guest, Prober};
use lull_guest_wire::*;
use std::time::{Duration, Instant};

const LEASE_MS: u64 = 3_000;
/// The promise is lease + 1 s; half a second more for an emulated guest's answer to get here.
const THAW_WITHIN: Duration = Duration::from_millis(LEASE_MS + 1_500);

struct Frozen {
    component: Component,
    armed: Armed,
    prober: Prober,
}

/// The guest with its root frozen, seen by a prober that cannot write any more.
fn freeze(guest: &Guest, user: &str) -> Frozen {
    let mut prober = guest.prober();
    prober.writes_again(Instant::now(), Duration::from_secs(10));
    let mut component = guest.component(user);
    assert!(component.hello.leftovers.is_empty(), "{:?}", component.hello.leftovers);
    let armed = component.arm(1, LEASE_MS, 30_000);
    component.freeze(1);
    prober.stops();
    Frozen { component, armed, prober }
}

fn row(fault: &str, took: Duration, told: &str) {
    println!("{fault:<50} {:>12}  {told}", took.as_millis());
}

#[test]
fn a_guest_with_systemd_always_comes_back() {
    let guest = Guest::boot("systemd");
    println!("a new login takes {} ms", guest.login_takes().as_millis());
    println!("{:<50} {:>12}  what happened", "fault", "to thaw (ms)");
    inventory(&guest);
    ordered(&guest);
    expired(&guest);
    session_terminated(&guest);
    sudo_killed(&guest);
    main_killed(&guest);
    connection_killed(&guest);
    both_killed(&guest);
}

#[test]
fn a_guest_with_lvm_xfs_and_an_esp_freezes_all_but_the_esp() {
    let guest = Guest::boot("full");
    let mut component = guest.component("root");
    let Ok(Answer::Inventory(found)) = component.ask(Command::Inventory) else { panic!("no inventory") };
    let at = |place: &str| {
        let here = |fs: &&FileSystem| fs.mount_points.iter().any(|point| point == place);
        found
            .file_systems
            .iter()
            .find(here)
            .unwrap_or_else(|| panic!("nothing at {place}: {:?}", found.file_systems))
            .clone()
    };
    let disks = |place: &str| (at(place).disks.join(" "), at(place).on_vm_disks);
    assert_eq!(disks("/"), ("vda".into(), true));
    assert_eq!(disks("/srv"), ("vdb".into(), true), "through LVM");
    assert_eq!(disks("/srv/data"), ("vdb".into(), true));
    assert_eq!(disks("/boot/efi"), ("vdb".into(), true), "through a partition");
    assert_eq!(at("/srv/data").superblock, at("/mnt/bind").superblock, "a bind mount is no second file system");
    assert!(matches!(at("/boot/efi").freezable, Freezable::No(why) if why.starts_with("vfat")));
    let armed = component.arm(1, 10_000, 30_000);
    assert_eq!(armed.plan, ["/srv/data", "/srv", "/"].map(|place| at(place).superblock));
    let frozen = component.freeze(1);
    guest.sh("for f in /probe /srv/probe /srv/data/probe; do touch $f & done; touch /boot/efi/probe; sleep 1");
    assert_eq!(guest.sh("ls /probe /srv/probe /srv/data/probe 2>/dev/null; ls /boot/efi/probe"), "/boot/efi/probe");
    let thawed = component.thaw(1);
    assert!(thawed.no_gap, "{:?}", thawed.gaps);
    assert_eq!(guest.sh("wait; ls /probe /srv/probe /srv/data/probe").lines().count(), 3, "written after the thaw");
    component.bye();
    guest.nothing_left();
    let each: Vec<_> = frozen.superblocks.iter().map(|(superblock, us)| format!("{superblock} {us} us")).collect();
    println!("frozen for {} ms; FIFREEZE: {}", thawed.frozen_us / 1_000, each.join(", "));
}

fn inventory(guest: &Guest) {
    let mut component = guest.component("root");
    let Ok(Answer::Inventory(found)) = component.ask(Command::Inventory) else { panic!("no inventory") };
    assert_eq!((found.os.id.as_str(), found.os.host_name.as_str()), ("debian", "guest"));
    let root = found.file_systems.iter().find(|fs| fs.is_root).expect("a root");
    assert_eq!(
        (root.disks.as_slice(), root.on_vm_disks, &root.freezable),
        (["vda".to_string()].as_slice(), true, &Freezable::Yes)
    );
    let [cluster] = found.applications.as_slice() else { panic!("one cluster: {:?}", found.applications) };
    assert!(cluster.key.starts_with("postgresql:/var/lib/postgresql/"), "{cluster:?}");
    assert_eq!((cluster.places[0].what.as_str(), cluster.places[0].superblock), ("data", root.superblock));
    let order = QuiesceOrder { checkpoint: true, checkpoint_timeout_ms: 60_000, connect_timeout_ms: 20_000 };
    let Ok(Answer::Quiesced(quiesced)) = component.ask(Command::Quiesce(order)) else { panic!("not quiesced") };
    assert_eq!((quiesced.len(), &quiesced[0].key), (1, &cluster.key));
    let facts = quiesced[0].result.as_ref().unwrap_or_else(|e| panic!("{e}"));
    assert!(
        facts.iter().any(|(name, _)| name == "checkpoint_ms") && facts.contains(&("fsync".into(), "on".into())),
        "{facts:?}"
    );
    assert_eq!(component.ask(Command::Release), Ok(Answer::Done));
    component.bye();
    guest.nothing_left();
    println!("found and brought to a checkpoint: {}", cluster.name);
}

fn ordered(guest: &Guest) {
    let Frozen { mut component, armed, mut prober } = freeze(guest, "root");
    assert!(armed.notes.iter().all(|note| !note.contains("watchdog")), "{:?}", armed.notes);
    let cgroup = guest.sh(&format!("cat /proc/{}/cgroup", armed.watchdog_pid));
    let fault = Instant::now();
    let thawed = component.thaw(1);
    assert!(thawed.no_gap, "{:?}", thawed.gaps);
    let took = prober.writes_again(fault, THAW_WITHIN);
    assert_eq!(cgroup, "0::/", "the watchdog left the login's cgroup");
    component.bye();
    guest.nothing_left();
    row("none: thaw ordered", took, "no gap; the open shell went on while frozen");
}

fn expired(guest: &Guest) {
    let Frozen { mut component, mut prober, .. } = freeze(guest, "root");
    let fault = Instant::now();
    component.renew(1).unwrap();
    let took = prober.writes_again(fault, THAW_WITHIN);
    assert!(took >= Duration::from_millis(LEASE_MS - 100));
    assert_eq!(component.renew(1).unwrap_err().kind, RefusalKind::Expired);
    assert!(!component.thaw(1).no_gap);
    component.bye();
    guest.nothing_left();
    row("no renewal", took, "main answers: expired");
}

/// logind ends the login's session and kills all that belongs to it.
fn session_terminated(guest: &Guest) {
    guest.sh("mkdir -p /run/systemd/logind.conf.d; printf '[Login]\\nKillUserProcesses=yes\\nKillExcludeUsers=\\n' >/run/systemd/logind.conf.d/kill.conf; systemctl restart systemd-logind");
    let mut prober = guest.prober();
    prober.writes_again(Instant::now(), Duration::from_secs(10));
    let mut component = guest.component("root");
    let session =
        guest.sh(&format!("sed -n 's/.*session-\\([0-9a-z]*\\).scope.*/\\1/p' /proc/{}/cgroup", component.hello.pid));
    assert!(!session.is_empty(), "the component runs in a session of logind's");
    // A service, started before: whatever happens to logins while frozen does not matter to it.
    guest.sh(&format!("systemd-run --quiet --collect sh -c 'sleep 4; loginctl terminate-session {session}'"));
    component.arm(1, 20_000, 60_000);
    component.freeze(1);
    prober.stops();
    assert!(component.channel_closes_within(Duration::from_secs(15)), "logind killed the login");
    let fault = Instant::now();
    let took = prober.writes_again(fault, THAW_WITHIN);
    guest.nothing_left();
    guest.sh("rm -r /run/systemd/logind.conf.d; systemctl restart systemd-logind");
    row("login session terminated by logind", took, "the watchdog had left it");
}

fn sudo_killed(guest: &Guest) {
    let Frozen { mut component, mut prober, .. } = freeze(guest, "ops");
    let fault = Instant::now();
    assert_eq!(guest.sh("pkill -KILL -x sudo && echo killed"), "killed", "sudo was there");
    // Renewed as long as anybody listens: a thaw within the lease, or after it, then comes from the dead channel alone.
    let closes_by = fault + THAW_WITHIN;
    while !component.channel_closes_within(Duration::from_millis(200)) {
        assert!(Instant::now() < closes_by, "the channel goes on without sudo");
        component.renew_if_alive();
    }
    let closed = fault.elapsed();
    let took = prober.writes_again(fault, THAW_WITHIN);
    drop(component);
    guest.nothing_left();
    assert!(closed < Duration::from_millis(LEASE_MS), "by then the lease may have ended: {closed:?}");
    row("sudo killed", took, "channel closed");
}

fn main_killed(guest: &Guest) {
    let Frozen { mut component, mut prober, .. } = freeze(guest, "root");
    let fault = Instant::now();
    guest.sh(&format!("kill -KILL {}", component.hello.pid));
    let took = prober.writes_again(fault, THAW_WITHIN);
    assert!(component.channel_closes_within(Duration::from_secs(5)));
    guest.nothing_left();
    row("SIGKILL of main", took, "by the watchdog");
}

fn connection_killed(guest: &Guest) {
    let Frozen { mut component, mut prober, .. } = freeze(guest, "root");
    let fault = Instant::now();
    component.process.kill().unwrap();
    let took = prober.writes_again(fault, THAW_WITHIN);
    guest.nothing_left();
    row("SSH client killed", took, "channel closed");
}

fn both_killed(guest: &Guest) {
    let Frozen { component, armed, mut prober } = freeze(guest, "root");
    let (main, watchdog) = (component.hello.pid, armed.watchdog_pid);
    guest.sh(&format!("kill -STOP {watchdog}; kill -KILL {main} {watchdog}"));
    let fault = Instant::now();
    prober.stays_stopped(Duration::from_millis(LEASE_MS + 1_000));
    let ladder = Instant::now();
    let said = guest.thaw_by_a_new_login("/");
    assert_eq!(said, "/: thawed");
    prober.writes_again(ladder, THAW_WITHIN);
    guest.nothing_left();
    row("SIGKILL of main and watchdog at once", fault.elapsed(), "frozen until a new login ran the thaw command");
}
