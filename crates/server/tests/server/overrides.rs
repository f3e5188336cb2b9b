//! What single VMs of a job have otherwise than the job: set, shown, in force, taken back.

use crate::fake::Fake;
use crate::harness::{Place, Server, furnish, problem};
use lull_api::infrastructure::Credential;
use lull_api::job::{GuestSettings, Job, SavedJob};
use lull_api::vm_settings::{JobVm, SavedVmSettings, VmSettings};
use lull_engine::settings::{ApplicationAware, GuestProcessing, Indexing};
use serde_json::{Value, json};

const OF_DB: &str = "/jobs/j/vms/db/settings";

async fn two_vms() -> (Place, Fake, Server) {
    let (place, fake) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let guest = GuestSettings { lease_ms: Some(7_000), ..GuestSettings::default() };
    furnish(&server, &place, &["db", "web"], guest).await;
    let other = json!({"name": "other", "user": "backup", "password": "s3cret-other"});
    let _: Credential = server.client.post("/credentials", &other).await.unwrap();
    (place, fake, server)
}

/// Settings and account that a proxy gets for each VM.
async fn ordered(server: &Server, fake: &Fake, vm: &str) -> (GuestProcessing, String) {
    fake.orders.lock().unwrap().clear();
    server.finished(server.run("j").await.summary.id).await;
    let order = fake.orders().into_iter().find(|order| order.vm_name == vm).unwrap();
    let user = order.guest.and_then(|guest| guest.credential).map(|credential| credential.user);
    (serde_json::from_str(&order.settings_json).unwrap(), user.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_setting_may_be_otherwise_for_one_vm_and_is_taken_back() {
    let (_place, fake, server) = two_vms().await;
    let before: VmSettings = server.client.get(OF_DB).await.unwrap();
    assert_eq!((before.guest.lease_ms, before.credential.as_deref()), (Some(7_000), Some("c")));
    assert!(before.from.iter().all(|(name, from)| from == if name == "credential" { "vm" } else { "job" }));
    assert_eq!(before.guest.copy_limit_bytes_per_s, None, "that is the job's");

    let everything = json!({"credential": "other", "guest": {
        "application_aware": "try", "pre_freeze_script": "#!/bin/sh\n", "scripts": "ignore-failures",
        "checkpoint_timeout_s": 60, "lease_ms": 9_000, "freeze_budget_ms": 20_000, "exclude_mount_points": ["/scratch"],
        "indexing": "only", "index_paths": ["/srv"], "guest_interaction_proxy": "prefer",
        "preferred_servers": ["backup-server"]}});
    let saved: SavedVmSettings = server.client.patch(OF_DB, &everything).await.unwrap();
    assert!(saved.settings.from.values().all(|from| from == "override"), "{:?}", saved.settings.from);
    assert_eq!(saved.settings, server.client.get::<VmSettings>(OF_DB).await.unwrap());

    let (settings, user) = ordered(&server, &fake, "db").await;
    assert_eq!(
        (settings.application_aware, settings.lease_ms, user.as_str()),
        (ApplicationAware::Try, 9_000, "backup")
    );
    assert_eq!(settings.scripts.linux.pre.as_deref(), Some("#!/bin/sh\n"));
    assert_eq!(settings.indexing, Some(Indexing::Only { paths: vec!["/srv".into()] }));
    assert_eq!(settings.excluded_mount_points, ["/scratch"]);
    let (settings, user) = ordered(&server, &fake, "web").await;
    assert_eq!((settings.application_aware, settings.lease_ms), (ApplicationAware::RequireSuccess, 7_000));
    assert_eq!((settings.scripts.linux.pre, user.as_str()), (None, "root"));

    // What the job changes reaches the VM only where it has nothing of its own.
    let change = json!({"guest": {"lease_ms": 8_000, "indexing": "disabled"}});
    let _: SavedJob = server.client.patch("/jobs/j", &change).await.unwrap();
    let cleared = json!({"clear": ["lease"]});
    let saved: SavedVmSettings = server.client.patch(OF_DB, &cleared).await.unwrap();
    let VmSettings { guest, from, .. } = saved.settings;
    assert_eq!((guest.lease_ms, from["lease"].as_str()), (Some(8_000), "job"));
    assert_eq!((guest.indexing.as_deref(), from["indexing"].as_str()), (Some("only"), "override"));
    let job: Job = server.client.get("/jobs/j").await.unwrap();
    assert_eq!(job.overrides.len(), 1);
    assert_eq!(job.overrides[0].vm, "db");
    assert!(!job.overrides[0].overrides.contains(&"lease".into()) && job.overrides[0].overrides.len() == 8);
    let vms: Vec<JobVm> = server.client.get("/jobs/j/vms").await.unwrap();
    assert_eq!(vms, [job.overrides[0].clone(), JobVm { vm: "web".into(), overrides: vec![] }]);

    let saved: SavedVmSettings = server.client.delete_and_read(OF_DB).await.unwrap();
    assert!(saved.settings.from.iter().all(|(name, from)| from == if name == "credential" { "vm" } else { "job" }));
    let (settings, user) = ordered(&server, &fake, "db").await;
    assert_eq!((settings.lease_ms, settings.scripts.linux.pre, user.as_str()), (8_000, None, "root"));
    assert_eq!(settings.indexing, Some(Indexing::Disabled));
}

#[tokio::test(flavor = "multi_thread")]
async fn overrides_are_validated_as_if_the_job_were_saved_and_a_refused_one_changes_nothing() {
    let (_place, _fake, server) = two_vms().await;
    let before: VmSettings = server.client.get(OF_DB).await.unwrap();
    let check = async |change: Value, status: u16, says: &str| {
        let problem = problem(server.client.patch::<SavedVmSettings>(OF_DB, &change).await);
        let text = format!("{} {:?} {:?}", problem.what, problem.why, problem.remedy);
        assert_eq!(problem.status, status, "{text}");
        assert!(text.contains(says), "{text}");
    };
    check(json!({"guest": {"lease_ms": 1}}), 422, "override for db: lease_ms is 1: it must lie between").await;
    check(json!({"guest": {"indexing": "only"}}), 422, "override for db: indexing.paths (how many) is 0").await;
    check(json!({"guest": {"scripts": "sometimes"}}), 422, "guest.scripts").await;
    check(json!({"guest": {"copy_limit_bytes_per_s": 5}}), 422, "the limit of the copy is the job's").await;
    check(json!({"credential": "nobody"}), 422, "there is no credential \"nobody\"").await;
    check(json!({"clear": ["leese"]}), 422, "there is no setting \"leese\"; there is: application-aware, scripts")
        .await;
    check(json!({"lease_ms": 9_000}), 422, "lease_ms").await;
    assert_eq!(server.client.get::<VmSettings>(OF_DB).await.unwrap(), before);

    let elsewhere = problem(server.client.get::<VmSettings>("/jobs/j/vms/nobody/settings").await);
    assert_eq!((elsewhere.status, elsewhere.code.as_str()), (404, "unknown-vm"));
    let change = json!({"vms": ["web"]});
    let _: SavedJob = server.client.patch("/jobs/j", &change).await.unwrap();
    let outside = problem(server.client.get::<VmSettings>(OF_DB).await);
    assert_eq!((outside.status, outside.code.as_str()), (404, "vm-not-in-job"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_leaves_the_scope_takes_its_overrides_along_and_a_credential_in_use_stays() {
    let (_place, _fake, server) = two_vms().await;
    let over = json!({"credential": "other", "guest": {"lease_ms": 9_000}});
    let _: SavedVmSettings = server.client.patch(OF_DB, &over).await.unwrap();
    let in_use = problem(server.client.delete("/credentials/other").await);
    assert_eq!(in_use.code, "in-use");
    assert!(in_use.what.contains("db in job j"), "{in_use:?}");

    for vms in [json!({"vms": ["web"]}), json!({"vms": ["web", "db"]})] {
        let _: SavedJob = server.client.patch("/jobs/j", &vms).await.unwrap();
    }
    let settings: VmSettings = server.client.get(OF_DB).await.unwrap();
    assert_eq!((settings.guest.lease_ms, settings.credential.as_deref()), (Some(7_000), Some("c")));
    server.client.delete("/credentials/other").await.unwrap();
}
