//! From job to tasks: settings, overrides, credentials, and stored forms.

use crate::world::{job_id, task_id, vm, vm_id, windows_vm};
use lull_engine::ids::{CredentialId, RepositoryId, SessionId};
use lull_engine::infrastructure::{Credential, CredentialKind, Platform, Vm};
use lull_engine::job::{BackupAction, Job, credential_for, plan};
use lull_engine::settings::{
    ApplicationAware, Checkpoint, Fallback, GuestProcessing, GuestScripts, Indexing, Overrides, ProxyPolicy,
    ScriptMode, Setting, SettingError, TransactionLogs, resolve,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use uuid::Uuid;

pub fn credential(n: u128, kind: CredentialKind) -> Credential {
    Credential { id: CredentialId(Uuid::from_u128(n)), name: format!("cred-{n}"), kind, revision: 1 }
}

pub fn job(vms: &[u128]) -> Job {
    Job {
        id: job_id(1),
        name: "nightly".into(),
        vms: vms.iter().map(|n| vm_id(*n)).collect(),
        action: BackupAction::Backup { repository: RepositoryId(Uuid::nil()), full_every: 14 },
        guest_processing: GuestProcessing::default(),
        overrides: BTreeMap::new(),
    }
}

#[test]
fn defaults_are_the_products() {
    let settings = GuestProcessing::default();
    assert_eq!(settings.application_aware, ApplicationAware::RequireSuccess);
    assert_eq!(settings.scripts.linux.mode, ScriptMode::RequireSuccess);
    assert_eq!(settings.scripts.windows.timeout_ms, 10 * 60 * 1_000);
    assert_eq!(settings.proxies, ProxyPolicy::Automatic);
    assert_eq!((settings.lease_ms, settings.freeze_budget_ms), (5_000, 30_000));
    assert!(settings.checkpoint.enabled);
    assert_eq!(settings.transaction_logs, TransactionLogs::LeaveAlone);
    assert_eq!(settings.validate(), []);
    let empty: GuestProcessing = serde_json::from_str("{}").expect("all defaults");
    assert_eq!(empty, settings);
    let prefer: ProxyPolicy = serde_json::from_str(r#"{"kind":"prefer","servers":[]}"#).expect("a policy");
    assert_eq!(prefer, ProxyPolicy::Prefer { servers: Vec::new(), fallback: Fallback::BackupServer });
}

#[test]
fn a_misspelt_setting_is_named_and_not_taken_for_the_default() {
    let error = serde_json::from_str::<GuestProcessing>(r#"{"lease":1}"#).expect_err("unknown").to_string();
    assert!(error.contains("unknown field `lease`") && error.contains("`lease_ms`"), "{error}");
}

/// Settings with this change must be refused in these words.
fn check(change: impl FnOnce(&mut GuestProcessing), expected: &[&str]) {
    let mut settings = GuestProcessing::default();
    change(&mut settings);
    let errors: Vec<String> = settings.validate().iter().map(SettingError::to_string).collect();
    assert_eq!(errors, expected);
}

#[test]
fn settings_out_of_bounds_name_field_value_and_bound() {
    check(|s| s.lease_ms = 1_999, &["lease_ms is 1999: it must lie between 2000 and 60000"]);
    check(|s| s.freeze_budget_ms = 60_001, &["freeze_budget_ms is 60001: it must lie between 1000 and 60000"]);
    check(|s| s.freeze_budget_ms = 60_000, &[]);
    check(
        |s| {
            s.checkpoint = Checkpoint { enabled: false, timeout_ms: 0 };
            s.scripts.windows.timeout_ms = u64::MAX;
        },
        &[
            "scripts.windows.timeout_ms is 18446744073709551615: it must lie between 1000 and 3600000",
            "checkpoint.timeout_ms is 0: it must lie between 1000 and 600000",
        ],
    );
    check(
        |s| s.excluded_mount_points = vec!["/srv".into(), "scratch".into(), "D:\\".into()],
        &["excluded_mount_points[1] is \"scratch\": a mount point is an absolute path such as /srv/scratch or D:\\"],
    );
    check(
        |s| s.scripts.linux.pre = Some("echo\u{1b}[2J hello".into()),
        &["scripts.linux.pre is \"echo [2J hello\": a script for Linux begins with #! and its interpreter, such as \
             #!/bin/sh"],
    );
    check(|s| s.scripts.linux.pre = Some("#!/bin/sh\ntrue\n".into()), &[]);
    check(
        |s| s.scripts.windows.post = Some("x".repeat(65_537)),
        &["scripts.windows.post (bytes) is 65537: it must lie between 1 and 65536"],
    );
}

#[test]
fn what_this_release_cannot_do_is_refused_and_not_ignored() {
    check(
        |s| s.transaction_logs = TransactionLogs::Truncate,
        &["transaction_logs is \"truncate\", which this release cannot do yet: leave it at \"leave-alone\""],
    );
}

#[test]
fn files_are_indexed_unless_the_settings_say_otherwise() {
    let mut settings = GuestProcessing::default();
    assert_eq!(settings.indexing_in_effect(), Indexing::EverythingExceptNoise);
    for indexing in [Indexing::EverythingExceptNoise, Indexing::Everything, Indexing::Disabled] {
        settings.indexing = Some(indexing.clone());
        assert_eq!((settings.indexing_in_effect(), settings.validate()), (indexing, vec![]));
    }
}

#[test]
fn folders_to_index_are_absolute_and_not_too_many() {
    let only = |paths: &[&str]| Some(Indexing::Only { paths: paths.iter().map(ToString::to_string).collect() });
    check(|s| s.indexing = only(&["/srv", "D:\\Data"]), &[]);
    check(|s| s.indexing = only(&["/srv"; 256]), &[]);
    check(|s| s.indexing = only(&["/srv"; 257]), &["indexing.paths (how many) is 257: it must lie between 1 and 256"]);
    check(|s| s.indexing = only(&[]), &["indexing.paths (how many) is 0: it must lie between 1 and 256"]);
    let relative = "a folder to index is an absolute path such as /srv or D:\\Data";
    check(
        |s| s.indexing = only(&["/srv", "home", "", "/a\0b"]),
        &[
            &format!("indexing.paths[1] is \"home\": {relative}"),
            &format!("indexing.paths[2] is \"\": {relative}"),
            &format!("indexing.paths[3] is \"/a b\": {relative}"),
        ],
    );
    // What a guest's kernel would not take is said now and not in each run.
    check(
        |s| s.indexing = only(&[&format!("/{}", "x".repeat(4_096))]),
        &["indexing.paths[0] (bytes) is 4097: it must lie between 1 and 4096"],
    );
}

#[test]
fn an_override_changes_only_what_it_sets() {
    let job = GuestProcessing { excluded_mount_points: vec!["/scratch".into()], ..GuestProcessing::default() };
    assert_eq!(resolve(&job, None), job);
    assert_eq!(resolve(&job, Some(&Overrides::default())), job);
    let over = Overrides { lease_ms: Some(8_000), excluded_mount_points: Some(Vec::new()), ..Overrides::default() };
    assert_eq!(
        resolve(&job, Some(&over)),
        GuestProcessing { lease_ms: 8_000, excluded_mount_points: Vec::new(), ..job }
    );
}

#[test]
fn every_setting_that_may_be_overridden_has_a_name_and_is_taken_back_alone() {
    let all = Overrides {
        application_aware: Some(ApplicationAware::Try),
        scripts: Some(GuestScripts::default()),
        proxies: Some(ProxyPolicy::Automatic),
        credential: Some(CredentialId(Uuid::nil())),
        lease_ms: Some(5_000),
        freeze_budget_ms: Some(30_000),
        checkpoint: Some(Checkpoint::default()),
        excluded_mount_points: Some(Vec::new()),
        indexing: Some(Indexing::Disabled),
        transaction_logs: Some(TransactionLogs::LeaveAlone),
    };
    // Also those that are as the job's: they stay when the job changes.
    assert_eq!(all.overridden(), Setting::ALL);
    assert_eq!(Overrides::default().overridden(), []);
    for setting in Setting::ALL {
        assert_eq!(setting.name().parse(), Ok(setting));
        let mut over = all.clone();
        over.take_back(setting);
        let rest: Vec<Setting> = Setting::ALL.into_iter().filter(|other| *other != setting).collect();
        assert_eq!(over.overridden(), rest);
    }
    let error = "leese".parse::<Setting>().expect_err("no setting");
    assert!(error.contains("\"leese\"") && error.contains("lease, freeze-budget"), "{error}");
}

#[test]
fn the_nearest_credential_is_used() {
    let known = [
        credential(1, CredentialKind::SshKey),
        credential(2, CredentialKind::WindowsPassword),
        credential(3, CredentialKind::SshPassword),
        credential(4, CredentialKind::SshKey),
    ];
    let mut job = job(&[1, 2]);
    job.guest_processing.credentials.linux = Some(known[0].id);
    job.guest_processing.credentials.windows = Some(known[1].id);
    let used = |job: &Job, vm: &Vm| credential_for(job, vm, &known).map(|credential| credential.name.clone());
    assert_eq!(used(&job, &vm(1, 1)).as_deref(), Some("cred-1"));
    assert_eq!(used(&job, &windows_vm(1, 1)).as_deref(), Some("cred-2"));
    // Two defaults and an unknown guest: no guess, since a wrong one could lock an account.
    assert_eq!(used(&job, &Vm { guest_os: None, ..vm(1, 1) }), None);
    let own = Vm { credential: Some(known[2].id), ..vm(1, 1) };
    assert_eq!(used(&job, &own).as_deref(), Some("cred-3"));
    job.overrides.insert(vm_id(1), Overrides { credential: Some(known[3].id), ..Overrides::default() });
    assert_eq!(used(&job, &own).as_deref(), Some("cred-4"));
    job.guest_processing.credentials.windows = None;
    assert_eq!(used(&job, &Vm { guest_os: None, ..vm(2, 1) }).as_deref(), Some("cred-1"));
}

#[test]
fn a_session_has_one_task_for_each_vm_and_names_those_that_are_gone() {
    let mut job = job(&[3, 1, 9, 3, 2]);
    job.overrides.insert(vm_id(1), Overrides { lease_ms: Some(9_000), ..Overrides::default() });
    let vms = [vm(1, 1), Vm { guest_os: None, ..vm(2, 1) }, vm(3, 1)];
    let mut ids = (1..).map(task_id);
    let plan = plan(&job, SessionId(5), &vms, &[], || ids.next().expect("endless"));
    let tasks: Vec<_> =
        plan.tasks.iter().map(|task| (task.id, task.vm_name.as_str(), task.settings.lease_ms)).collect();
    assert_eq!(tasks, [(task_id(1), "vm-3", 5_000), (task_id(2), "vm-1", 9_000), (task_id(3), "vm-2", 5_000)]);
    assert_eq!(plan.gone, [vm_id(9)]);
    assert_eq!(plan.tasks[1].guest_os, Some(Platform::Linux));
    assert_eq!(plan.tasks[2].guest_os, None);
}

#[test]
fn a_job_survives_json_and_says_what_it_does_not_know() {
    let mut job = job(&[1]);
    job.overrides.insert(vm_id(1), Overrides { indexing: Some(Indexing::Disabled), ..Overrides::default() });
    let text = serde_json::to_string(&job).expect("JSON");
    assert_eq!(serde_json::from_str::<Job>(&text).expect("the same"), job);
    let error = serde_json::from_str::<BackupAction>(r#"{"kind":"copy"}"#).expect_err("unknown").to_string();
    assert!(error.contains("`backup`") && error.contains("`command`"), "{error}");
}

proptest! {
    #[test]
    fn any_bounds_that_pass_are_safe_in_the_guest(lease_ms in 0u64..100_000, freeze_budget_ms in 0u64..100_000) {
        let settings = GuestProcessing { lease_ms, freeze_budget_ms, ..GuestProcessing::default() };
        if settings.validate().is_empty() {
            prop_assert!((2_000..=60_000).contains(&lease_ms) && (1_000..=60_000).contains(&freeze_budget_ms));
        } else {
            prop_assert!(!(2_000..=60_000).contains(&lease_ms) || !(1_000..=60_000).contains(&freeze_budget_ms));
        }
    }

    #[test]
    fn a_plan_holds_each_vm_once_and_loses_none(
        scope in prop::collection::vec(0u128..8, 0..20),
        known in prop::sample::subsequence((0..8).collect::<Vec<u128>>(), 0..=8).prop_shuffle(),
    ) {
        let mut numbers = 1..;
        let vms: Vec<Vm> = known.iter().map(|n| vm(*n, 1)).collect();
        let job = job(&scope);
        let plan = plan(&job, SessionId(7), &vms, &[], || task_id(numbers.next().expect("endless")));
        let mut once = Vec::new();
        for id in &job.vms {
            if !once.contains(id) {
                once.push(*id);
            }
        }
        let (there, gone): (Vec<_>, Vec<_>) = once.into_iter().partition(|id| vms.iter().any(|vm| vm.id == *id));
        prop_assert_eq!(plan.tasks.iter().map(|task| task.vm).collect::<Vec<_>>(), there);
        prop_assert_eq!(&plan.gone, &gone);
        let ids: Vec<_> = plan.tasks.iter().map(|task| task.id).collect();
        prop_assert_eq!(ids, (1..=plan.tasks.len() as u128).map(task_id).collect::<Vec<_>>(), "an id for each, used once");
    }
}
