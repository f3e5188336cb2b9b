//! What a person is told when a job is saved.

use crate::job::{credential, job};
use crate::world::{
    any_credential, any_licence, any_policy, any_rules, any_servers, any_vm, at_ms, backup_server, job_id, now, proxy,
    server_id, vm, vm_id, windows_vm,
};
use Platform::{Linux, Windows};
use lull_engine::failover::FailureMemory;
use lull_engine::infrastructure::{Credential, CredentialKind, ManagedServer, Platform, ServerState, Vm};
use lull_engine::job::{BackupAction, Job};
use lull_engine::licence::{Edition, Licence};
use lull_engine::selection::{Request, SelectionRules, WindowsGuestsFrom, choose};
use lull_engine::settings::{Fallback, Overrides, ProxyPolicy};
use lull_engine::validation::{Infrastructure, JobError, JobWarning, validate_job};
use proptest::prelude::*;

#[derive(Debug)]
struct Site {
    servers: Vec<ManagedServer>,
    vms: Vec<Vm>,
    credentials: Vec<Credential>,
    licence: Licence,
    rules: SelectionRules,
}

/// VMs 1 (Linux) and 2 (Windows) with credentials, and these servers.
fn site(servers: Vec<ManagedServer>) -> Site {
    let credentials = vec![credential(1, CredentialKind::SshKey), credential(2, CredentialKind::WindowsPassword)];
    Site {
        servers,
        vms: vec![
            Vm { credential: Some(credentials[0].id), ..vm(1, 1) },
            Vm { credential: Some(credentials[1].id), ..windows_vm(2, 1) },
        ],
        credentials,
        licence: Licence::Universal,
        rules: SelectionRules::default(),
    }
}

/// Saving the job must yield these errors (`E`) and warnings (`W`).
fn check(job: &Job, site: &Site, expected: &[&str]) {
    let findings = validate_job(
        job,
        &Infrastructure {
            servers: &site.servers,
            vms: &site.vms,
            credentials: &site.credentials,
            licence: site.licence,
            rules: site.rules,
        },
    );
    let errors = findings.errors.iter().map(|error| format!("E {error}"));
    let warnings = findings.warnings.iter().map(|warning| format!("W {warning}"));
    let got: Vec<String> = errors.chain(warnings).collect();
    assert_eq!(got, expected);
    assert_eq!(findings.can_be_saved(), !expected.iter().any(|line| line.starts_with('E')));
    let text = serde_json::to_string(&findings).expect("JSON");
    assert_eq!(serde_json::from_str::<lull_engine::validation::Findings>(&text).expect("the same"), findings);
}

fn prefer(job: Job, servers: &[u128], fallback: Fallback) -> Job {
    let mut job = job;
    let servers = servers.iter().map(|n| server_id(*n)).collect();
    job.guest_processing.proxies = ProxyPolicy::Prefer { servers, fallback };
    job
}

#[test]
fn a_sound_job_has_no_findings() {
    check(&job(&[1, 2]), &site(vec![backup_server(), proxy(1, Windows)]), &[]);
}

#[test]
fn windows_vms_need_a_windows_server_with_the_role() {
    let needs = "E no Windows server has the role guest interaction proxy, and a Linux proxy cannot access the Windows \
                 guests of vm-2: add a Microsoft Windows server to the backup infrastructure";
    let without_role = ManagedServer { role_enabled: false, ..proxy(1, Windows) };
    let mut site = site(vec![backup_server(), without_role]);
    check(&job(&[1, 2]), &site, &[needs]);
    check(&job(&[1]), &site, &[]);
    // Lifting the rule lifts the error; what is missing then is said of the VM.
    site.rules.windows_guests_from = WindowsGuestsFrom::AnyProxy;
    check(&job(&[2]), &site, &["W no server can serve vm-2: backup: it has no channel to Windows guests"]);
}

#[test]
fn an_unknown_guest_with_a_windows_credential_is_a_windows_guest() {
    let mut site = site(vec![backup_server()]);
    site.vms[1].guest_os = None;
    let findings = "E no Windows server has the role guest interaction proxy, and a Linux proxy cannot access the \
                    Windows guests of vm-2: add a Microsoft Windows server to the backup infrastructure";
    check(&job(&[2]), &site, &[findings]);
}

#[test]
fn a_server_that_is_only_offline_is_no_finding() {
    let offline = ManagedServer { state: ServerState::Offline { since: Some(at_ms(-1)) }, ..proxy(1, Windows) };
    check(&prefer(job(&[1, 2]), &[1], Fallback::None), &site(vec![offline]), &[]);
}

#[test]
fn a_revoked_server_is_not_silently_preferred() {
    let apart = ServerState::Incompatible { version: "0.1.0".into(), server_version: "0.4.0".into(), newer: false };
    let apart_words = "it runs release 0.1.0, the backup server 0.4.0, which is too far apart: upgrade it";
    let revoked_words = "it was revoked: to be used again it has to join anew, with a new token";
    for (state, words) in [(ServerState::Revoked, revoked_words), (apart, apart_words)] {
        let site = site(vec![backup_server(), ManagedServer { state, ..proxy(1, Linux) }]);
        let unable = format!("W preferred server lin-1 cannot serve any VM in scope: for vm-1, {words}");
        let nobody = "E none of the preferred servers can serve vm-1, and the backup server may not take over: tick another \
                      server or allow the fallback";
        check(&prefer(job(&[1]), &[1], Fallback::None), &site, &[nobody, &unable]);
        let takes_over = "W none of the preferred servers can serve vm-1: the backup server will take over";
        check(&prefer(job(&[1]), &[1], Fallback::BackupServer), &site, &[takes_over, &unable]);
    }
}

/// It joined and told nothing yet.
fn never_connected(n: u8) -> ManagedServer {
    let (channels, networks, hosts_reached) = (Vec::new(), Vec::new(), Vec::new());
    let state = ServerState::NeverConnected;
    ManagedServer { state, channels, networks, hosts_reached, slots: 0, ..proxy(n, Linux) }
}

#[test]
fn a_preferred_server_that_never_connected_is_said_to_be_unknown_and_not_unable() {
    let site = site(vec![backup_server(), never_connected(1)]);
    let unknown = "W preferred server lin-1 has not connected yet: whether it can serve the VMs in scope is not known";
    for fallback in [Fallback::None, Fallback::BackupServer] {
        check(&prefer(job(&[1]), &[1], fallback), &site, &[unknown]);
    }
    check(&job(&[1]), &site, &[]);
}

#[test]
fn a_server_that_never_connected_does_not_hide_why_the_others_cannot() {
    let disabled = |server: ManagedServer| ManagedServer { state: ServerState::Disabled, ..server };
    let mut site = site(vec![never_connected(3), disabled(backup_server()), disabled(proxy(1, Linux))]);
    check(
        &prefer(job(&[1]), &[1], Fallback::BackupServer),
        &site,
        &[
            "W no server can serve vm-1: backup: an administrator disabled it",
            "W preferred server lin-1 cannot serve any VM in scope: for vm-1, an administrator disabled it",
        ],
    );
    check(&job(&[1]), &site, &["W no server can serve vm-1: backup: an administrator disabled it"]);
    site.servers.truncate(1);
    let yet = "it has not connected yet: see whether its proxy runs and reaches the backup server";
    check(&job(&[1]), &site, &[&format!("W no server can serve vm-1: lin-3: {yet}")]);
}

#[test]
fn preferred_servers_that_are_gone_are_named() {
    let gone = server_id(9);
    let expected = format!(
        "E preferred servers that are no longer in the backup infrastructure: {gone}: take them off the list or add \
         them again"
    );
    check(
        &prefer(job(&[1]), &[1, 9], Fallback::BackupServer),
        &site(vec![backup_server(), proxy(1, Linux)]),
        &[&expected],
    );
}

#[test]
fn a_preferred_server_that_can_serve_nothing_in_scope_is_named_with_the_reason() {
    let windows_only =
        ManagedServer { channels: vec![lull_engine::infrastructure::ChannelKind::WinRm], ..proxy(3, Windows) };
    check(
        &prefer(job(&[1]), &[1, 3], Fallback::BackupServer),
        &site(vec![backup_server(), proxy(1, Linux), windows_only.clone()]),
        &["W preferred server win-3 cannot serve any VM in scope: for vm-1, it has no channel to Linux guests"],
    );
    check(
        &prefer(job(&[1]), &[3], Fallback::BackupServer),
        &site(vec![backup_server(), windows_only.clone()]),
        &[
            "W none of the preferred servers can serve vm-1: the backup server will take over",
            "W preferred server win-3 cannot serve any VM in scope: for vm-1, it has no channel to Linux guests",
        ],
    );
    check(
        &prefer(job(&[1]), &[3], Fallback::None),
        &site(vec![backup_server(), windows_only]),
        &[
            "E none of the preferred servers can serve vm-1, and the backup server may not take over: tick another \
             server or allow the fallback",
            "W preferred server win-3 cannot serve any VM in scope: for vm-1, it has no channel to Linux guests",
        ],
    );
}

#[test]
fn an_empty_list_of_preferred_servers_is_refused() {
    check(
        &prefer(job(&[1]), &[], Fallback::BackupServer),
        &site(vec![backup_server()]),
        &[
            "E the job prefers certain servers, but none is on the list: tick one or choose automatic selection",
            "W none of the preferred servers can serve vm-1: the backup server will take over",
        ],
    );
}

#[test]
fn a_licence_without_proxies_disables_choose_and_says_why() {
    let mut site = site(vec![backup_server(), proxy(1, Linux)]);
    site.licence = Licence::Socket { edition: Edition::Standard };
    check(
        &prefer(job(&[1]), &[1], Fallback::None),
        &site,
        &["E servers cannot be chosen: guest interaction proxies need a universal licence or a socket licence of \
           edition enterprise or higher; under the socket/standard licence the backup server does all guest \
           interaction itself"],
    );
    check(&job(&[1]), &site, &[]);
}

#[test]
fn a_vm_without_a_credential_is_named() {
    let mut site = site(vec![backup_server()]);
    site.vms[0].credential = None;
    check(
        &job(&[1]),
        &site,
        &["W no server can serve vm-1: backup: its channels to Linux guests need a credential, and the VM has none"],
    );
}

#[test]
fn what_does_not_exist_is_named() {
    let mut job = job(&[1, 8]);
    job.name = " ".into();
    job.overrides.insert(vm_id(2), Overrides { lease_ms: Some(1), ..Overrides::default() });
    job.guest_processing.credentials.linux = Some(credential(7, CredentialKind::SshKey).id);
    let unknown_vm = format!("E VMs that are not in the infrastructure: {}", vm_id(8));
    let unknown_credential = format!("E credentials that do not exist: {}", credential(7, CredentialKind::SshKey).id);
    check(
        &job,
        &site(vec![backup_server()]),
        &[
            "E the job has no name: give it one",
            "E override for vm-2: lease_ms is 1: it must lie between 2000 and 60000",
            &unknown_vm,
            "E overrides for vm-2, which the job does not contain: add it to the scope or remove the overrides",
            &unknown_credential,
        ],
    );
}

#[test]
fn an_empty_scope_a_path_as_command_and_endless_chains_are_refused() {
    let site = site(vec![backup_server()]);
    let empty = Job { vms: Vec::new(), id: job_id(2), ..job(&[1]) };
    check(&empty, &site, &["E the job has no VMs in scope: add at least one"]);
    for program in ["", "..", "/bin/sh", "a/b", "a\\b"] {
        let action = BackupAction::Command { program: program.into() };
        let said =
            format!("E command \"{program}\": name a program in the backup server's folder commands, without a path");
        check(&Job { action, ..job(&[1]) }, &site, &[&said]);
    }
    let action = BackupAction::Backup { repository: lull_engine::ids::RepositoryId(uuid::Uuid::nil()), full_every: 0 };
    check(&Job { action, ..job(&[1]) }, &site, &["E full_every is 0: it must lie between 1 and 365"]);
}

#[test]
fn a_vm_listed_three_times_is_said_once() {
    check(&job(&[1, 1, 1]), &site(vec![backup_server()]), &["W vm-1 is listed more than once and is worked on once"]);
}

prop_compose! {
    /// VMs 0 to 2 with whatever credentials, and whatever servers.
    fn any_site()(
        vms in (any_vm(0), any_vm(1), any_vm(2)),
        kinds in prop::collection::vec(any_credential(), 3),
        servers in any_servers(),
        licence in any_licence(),
        rules in any_rules(),
    ) -> Site {
        let credentials: Vec<Credential> =
            (0..).zip(&kinds).filter_map(|(n, kind)| Some(credential(n, (*kind)?))).collect();
        let own = |n: u128| credentials.iter().map(|c| c.id).find(|id| id.0.as_u128() == n);
        let vms = [vms.0, vms.1, vms.2].into_iter().zip(0..).map(|(vm, n)| Vm { credential: own(n), ..vm }).collect();
        Site { servers, vms, credentials, licence, rules }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// What is said when a job is saved agrees with what is chosen when it runs and everybody is there.
    #[test]
    fn a_vm_is_named_exactly_if_no_server_that_is_there_to_stay_could_be_chosen(site in any_site(), policy in any_policy()) {
        let mut job = job(&[0, 1, 2]);
        job.guest_processing.proxies = policy.clone();
        let findings = |servers: &[ManagedServer]| {
            let Site { vms, credentials, licence, rules, .. } = &site;
            validate_job(&job, &Infrastructure { servers, vms, credentials, licence: *licence, rules: *rules })
        };
        let online = |server: &ManagedServer| match server.state {
            ServerState::Offline { .. } | ServerState::Draining => {
                ManagedServer { state: ServerState::Online, ..server.clone() }
            }
            _ => server.clone(),
        };
        let online: Vec<ManagedServer> = site.servers.iter().map(online).collect();
        let found = findings(&site.servers);
        prop_assert_eq!(&found, &findings(&online), "who is away just now changes nothing");
        for vm in &site.vms {
            let credential = site.credentials.iter().find(|c| Some(c.id) == vm.credential).map(|c| c.kind);
            let chosen = choose(&Request {
                vm,
                credential,
                policy: &policy,
                at_hypervisor: false,
                licence: site.licence,
                rules: site.rules,
                servers: &online,
                failures: &FailureMemory::default(),
                tried: &[],
                now: now(),
            });
            let refused = found.errors.iter().any(|error| match error {
                JobError::NoWindowsServer { vms } | JobError::NobodyCanServe { vms } => vms.contains(&vm.name),
                _ => false,
            });
            let warned = found
                .warnings
                .iter()
                .any(|warning| matches!(warning, JobWarning::NobodyServes { vm: name, .. } if *name == vm.name));
            prop_assert!(chosen.is_none() || !(refused || warned), "{}: {:?}", vm.name, found);
            // What a preferred server that never connected could do is not known, and that is said of the server.
            let unknown = found.warnings.iter().any(|w| matches!(w, JobWarning::PreferredServerNeverConnected { .. }));
            prop_assert!(chosen.is_some() || refused || warned || unknown, "{}: {:?}", vm.name, found);
            prop_assert!(!(refused && warned), "said once");
        }
    }
}
