//! Jobs from run to end, with everything that a proxy can report.

use crate::fake::Fake;
use crate::harness::{Place, Server, furnish, kinds, one_vm, problem};
use lull_api::infrastructure::{AcceptHostKey, Credential, CredentialChange, RestorePoint, Vm};
use lull_api::job::GuestSettings;
use lull_api::session::{EventKind, Session};
use lull_engine::failover::FailureClass;
use lull_engine::timeline::Step;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_leaves_a_restore_point_with_its_level_and_proof() {
    let (place, fake, server) = one_vm().await;
    let session = server.run("j").await;
    assert_eq!(session.summary.state, "running");
    let session = server.finished(session.summary.id).await;
    let task = &session.tasks[0];
    assert_eq!((session.summary.result.as_deref(), task.result.as_deref()), (Some("success"), Some("success")));
    assert_eq!(task.level.as_deref(), Some("application"));
    assert_eq!(task.freeze_window_us, Some(12_345));
    assert_eq!(task.inventory.as_ref().unwrap()["os"], "Debian GNU/Linux 12");
    let receipt = task.receipt.as_ref().unwrap();
    assert!(receipt.guest_checked && receipt.left_in_guest.is_empty());
    assert_eq!(task.proxy.as_ref().unwrap().chosen.as_deref(), Some("backup-server"));
    assert!(task.steps.iter().all(|step| step.state == "ok"), "{:#?}", task.steps);
    assert_eq!(task.steps.iter().find(|step| step.step == "copy").unwrap().took_us, Some(1_000));

    let points: Vec<RestorePoint> = server.client.get("/restore-points?vm=db").await.unwrap();
    assert_eq!(points.len(), 1);
    assert_eq!((Some(points[0].id), points[0].level.as_str()), (task.restore_point, "application"));
    assert_eq!((points[0].vm.as_str(), points[0].repository.as_str()), ("db", "r"));

    let order = &fake.orders()[0];
    let guest = order.guest.as_ref().unwrap();
    assert_eq!((guest.endpoints[0].host.as_str(), guest.endpoints[0].port), ("192.0.2.10", 22));
    assert_eq!(order.epoch, 1);
    let events = server.events(session.summary.id).await;
    assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=events.len() as u64).collect::<Vec<_>>());
    let kinds = kinds(&events);
    assert_eq!(kinds[..3], ["session-started", "proxy-chosen", "connect…"]);
    assert_eq!(kinds[kinds.len() - 2..], ["task success", "session success"]);
    assert_eq!(session.last_event, events.len() as u64);
    assert!(fake.recoveries().is_empty());

    // The second run owes the first one's bitmap and knows the guest's key.
    server.finished(server.run("j").await.summary.id).await;
    let Some(lull_proxy_wire::v1::task_order::Work::Backup(work)) = &fake.orders()[1].work else { panic!() };
    assert_eq!(work.bitmaps_owed.len(), 1);
    assert!(points[0].directory.ends_with(&work.bitmaps_owed[0]), "{} {:?}", points[0].directory, work.bitmaps_owed);
    assert_eq!(fake.orders()[1].guest.as_ref().unwrap().host_keys[0].fingerprint, "SHA256:first");
    drop(place);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_names_hop_cause_and_remedy_and_is_not_failed_over_where_it_cannot_help() {
    let (_place, fake, server) = one_vm().await;
    let classes = [
        (Step::Deploy, FailureClass::GuestSide),
        (Step::PreScript, FailureClass::Script),
        (Step::Quiesce, FailureClass::Application),
        (Step::Freeze, FailureClass::FileSystem),
        (Step::Snapshot, FailureClass::Hypervisor),
        (Step::Copy, FailureClass::Repository),
    ];
    for (step, class) in classes {
        fake.set(|script| script.fail_at = Some((step, class)));
        let session = server.finished(server.run("j").await.summary.id).await;
        let task = &session.tasks[0];
        let failure = task.failure.as_ref().unwrap();
        assert_eq!((task.result.as_deref(), failure.step.as_str()), (Some("failed"), step.name()));
        assert_eq!(failure.hop, "proxy-to-guest");
        assert!(failure.text.contains("change the script") && failure.text.contains("the script says so"));
        assert_eq!((task.restore_point, task.level.as_deref()), (None, None));
        assert_eq!(task.steps.iter().find(|s| s.step == step.name()).unwrap().state, "failed");
    }
    assert_eq!(fake.orders().len(), classes.len());
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    assert_eq!(points, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_credential_is_tried_once_and_rests_for_the_jobs_other_vms() {
    let place = Place::new();
    let mut fake = Fake::embedded();
    fake.slots = 1;
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db", "web"], GuestSettings::default()).await;
    fake.set(|script| script.fail_at = Some((Step::Connect, FailureClass::RefusedCredential)));
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(fake.orders().len(), 1, "the second VM's account must not be tried");
    let texts: Vec<_> = session.tasks.iter().map(|task| task.failure.as_ref().unwrap().text.clone()).collect();
    assert!(texts.iter().any(|text| text.contains("the credential rests: db refused it")), "{texts:?}");
    assert!(fake.recoveries().is_empty(), "a recovery would be a second attempt");

    // Neither another run nor a test tries it again on that VM.
    server.finished(server.run("j").await.summary.id).await;
    let test: Session = server.client.post("/vms/db/test", &()).await.unwrap();
    let test = server.finished(test.summary.id).await;
    let text = &test.tasks[0].failure.as_ref().unwrap().text;
    assert!(text.contains("was not tried") && text.contains("lull credential set c"), "{text}");
    assert_eq!((fake.orders().iter().filter(|o| o.vm_name == "db").count(), fake.tests.lock().unwrap().len()), (1, 0));
    let credential: Credential = server.client.get("/credentials/c").await.unwrap();
    assert!(credential.refused_by.contains(&"db".to_string()));

    // Corrected, it is tried again.
    fake.set(|script| script.fail_at = None);
    let change = CredentialChange { password: Some("better".into()), ..Default::default() };
    let credential: Credential = server.client.patch("/credentials/c", &change).await.unwrap();
    assert_eq!(credential.refused_by, Vec::<String>::new());
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_host_key_waits_for_a_person() {
    let (_place, fake, server) = one_vm().await;
    server.finished(server.run("j").await.summary.id).await;
    let vm: Vm = server.client.get("/vms/db").await.unwrap();
    assert_eq!(vm.host_key.as_deref(), Some("SHA256:first"));

    fake.set(|script| script.host_key = "SHA256:second".into());
    let session = server.finished(server.run("j").await.summary.id).await;
    assert!(session.tasks[0].notes.iter().any(|n| n.contains("SHA256:second") && n.contains("SHA256:first")));
    let vm: Vm = server.client.get("/vms/db").await.unwrap();
    assert_eq!(vm.host_key.as_deref(), Some("SHA256:first"), "a new key is never pinned by itself");
    assert_eq!(vm.refused_host_key.as_deref(), Some("SHA256:second"));

    let accept = |fingerprint: &str| AcceptHostKey { fingerprint: fingerprint.into() };
    let other = problem(server.client.post::<Vm>("/vms/db/accept-host-key", &accept("SHA256:third")).await);
    assert_eq!((other.status, other.code.as_str()), (409, "other-host-key"));
    let vm: Vm = server.client.post("/vms/db/accept-host-key", &accept("SHA256:second")).await.unwrap();
    assert_eq!((vm.host_key.as_deref(), vm.refused_host_key), (Some("SHA256:second"), None));
    let vm: Vm = server.client.post("/vms/db/accept-host-key", &accept("SHA256:second")).await.unwrap();
    assert_eq!(vm.host_key.as_deref(), Some("SHA256:second"));
    let none = problem(server.client.post::<Vm>("/vms/web/accept-host-key", &accept("SHA256:x")).await);
    assert!(none.remedy.unwrap().contains("lull vm test web"));
}

async fn two_proxies() -> (Place, Fake, Fake, Server) {
    let place = Place::new();
    let (own, mut near) = (Fake::embedded(), Fake::named("near", false));
    near.networks = vec!["192.0.2.0/24".into()];
    let server = Server::start(&place.state, &[own.clone(), near.clone()]).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    // The backup server's own answers first; the other's first heartbeat follows.
    let since = std::time::Instant::now();
    loop {
        let explained: lull_api::infrastructure::ProxyExplanation =
            server.client.get("/vms/db/proxy-explain").await.unwrap();
        if explained.chosen.as_deref() == Some("near") {
            assert_eq!(explained.tier, Some(1));
            assert!(explained.candidates.iter().any(|c| c.name == "backup-server" && !c.reason.is_empty()));
            return (place, own, near, server);
        }
        assert!(since.elapsed() < crate::harness::PATIENCE, "{explained:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_cannot_reach_the_guest_loses_the_task_to_the_next() {
    let (_place, own, near, server) = two_proxies().await;
    near.set(|script| script.fail_at = Some((Step::Connect, FailureClass::GuestUnreachable)));
    let session = server.finished(server.run("j").await.summary.id).await;
    let task = &session.tasks[0];
    assert_eq!(task.result.as_deref(), Some("success"));
    assert_eq!((near.orders().len(), own.orders().len()), (1, 1));
    assert!(own.orders()[0].epoch > near.orders()[0].epoch);
    assert_eq!(task.proxy.as_ref().unwrap().chosen.as_deref(), Some("backup-server"));
    let chosen = server.events(session.summary.id).await;
    let chosen = chosen.iter().filter(|e| matches!(e.event, EventKind::ProxyChosen { .. })).count();
    assert_eq!(chosen, 2);
    // The failed pair is remembered: the next run begins with the other one.
    server.finished(server.run("j").await.summary.id).await;
    assert_eq!((near.orders().len(), own.orders().len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_dies_with_the_guest_frozen_loses_the_task_and_the_guest_is_recovered_first() {
    let (_place, own, near, server) = two_proxies().await;
    near.set(|script| script.die_at = Some(Step::Snapshot));
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_eq!(own.orders().len(), 1);
    let guest: Vec<_> = near.recoveries().into_iter().chain(own.recoveries()).filter(|r| r.guest.is_some()).collect();
    assert_eq!(guest.len(), 1);
    assert!(guest[0].maybe_frozen);
    assert!(guest[0].epoch > near.orders()[0].epoch && own.orders()[0].epoch > guest[0].epoch - 1);
    assert!(!near.world.frozen.load(Ordering::SeqCst) && !near.world.deployed.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_proxy_is_offline_after_ten_seconds_and_loses_the_task() {
    let (_place, own, near, server) = two_proxies().await;
    near.set(|script| script.hang_after = Some(6));
    let session = server.run("j").await;
    server.until(session.summary.id, "the proxy works on it", |s| s.tasks[0].steps.len() >= 2).await;
    near.silent.store(true, Ordering::SeqCst);
    let session = server.finished(session.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_eq!(own.orders().len(), 1);
    assert!(own.recoveries().iter().any(|r| r.guest.is_some()), "the silent proxy cannot recover its guest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_that_finds_something_is_swept_before_the_task_is_closed() {
    let (_place, fake, server) = one_vm().await;
    fake.set(|script| {
        script.left_in_guest = vec!["/run/lull-x".into()];
        script.recoveries_fail = 2;
    });
    let session = server.finished(server.run("j").await.summary.id).await;
    let task = &session.tasks[0];
    assert_eq!(task.result.as_deref(), Some("success"));
    assert_eq!(fake.recoveries().len(), 3);
    assert_eq!(task.receipt.as_ref().unwrap().left_in_guest, Vec::<String>::new());
    assert!(task.notes.iter().any(|note| note.contains("not yet")), "{:?}", task.notes);
    assert!(task.restore_point.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_refused_late_in_a_task_is_not_followed_by_another() {
    let (_place, fake, server) = one_vm().await;
    fake.set(|script| {
        script.left_in_guest = vec!["/run/lull-x".into()];
        script.refused = "login: db refuses the login of root".into();
    });
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.tasks[0].result.as_deref(), Some("warning"), "{session:#?}");
    assert!(session.tasks[0].restore_point.is_some());
    assert_eq!(fake.recoveries().iter().filter(|r| r.guest.is_some()).count(), 0, "it would log in again");
    let credential: Credential = server.client.get("/credentials/c").await.unwrap();
    assert_eq!(credential.refused_by, ["db"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_brings_the_guest_back_and_a_second_cancel_says_so() {
    let (_place, fake, server) = one_vm().await;
    for hang_after in [1, 7, 12, 20] {
        fake.set(|script| script.hang_after = Some(hang_after));
        let id = server.run("j").await.summary.id;
        server.until(id, "steps run", |s| !s.tasks[0].steps.is_empty()).await;
        let _: Session = server.client.post(&format!("/sessions/{id}/cancel"), &()).await.unwrap();
        let session = server.finished(id).await;
        let outcome = (session.summary.result.as_deref(), session.tasks[0].result.as_deref());
        assert_eq!(outcome, (Some("cancelled"), Some("cancelled")));
        assert!(!fake.world.frozen.load(Ordering::SeqCst) && !fake.world.deployed.load(Ordering::SeqCst));
        assert!(session.tasks[0].steps.iter().all(|step| step.state != "running"));
        // A step whose end nobody told ended with its task: its time stands still.
        assert!(session.tasks[0].steps.iter().all(|step| step.took_us.is_some()), "{:#?}", session.tasks[0].steps);
        assert_eq!(server.session(id).await.tasks[0].steps, session.tasks[0].steps);
        let again = problem(server.client.post::<Session>(&format!("/sessions/{id}/cancel"), &()).await);
        assert_eq!((again.status, again.code.as_str()), (409, "finished"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_in_one_session_at_a_time() {
    let (_place, fake, server) = one_vm().await;
    fake.set(|script| script.hang_after = Some(6));
    let first = server.run("j").await.summary.id;
    let other = serde_json::json!({"name": "k", "vms": ["db"], "repository": "r"});
    let _: serde_json::Value = server.client.post("/jobs", &other).await.unwrap();
    let second = problem(server.client.post::<Session>("/jobs/k/run", &()).await);
    assert_eq!((second.status, second.code.as_str()), (409, "vm-busy"));
    assert!(second.what.contains(&format!("db is in session {first}")), "{}", second.what);
    let deleted = problem(server.client.get::<()>("/hosts/nope").await);
    assert_eq!(deleted.status, 404);
    let in_use = server.client.delete("/hosts/h").await.unwrap_err();
    assert!(in_use.to_string().contains(&format!("session {first}")), "{in_use}");
    let _: Session = server.client.post(&format!("/sessions/{first}/cancel"), &()).await.unwrap();
    server.finished(first).await;
    fake.set(|script| script.hang_after = None);
    let again = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(again.summary.result.as_deref(), Some("success"));
}

/// Also where one of its VMs is done already. Other work on that VM is nobody's overlap.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_runs_is_not_begun_by_hand() {
    let place = Place::new();
    let mut fake = Fake::embedded();
    fake.slots = 1;
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db", "web"], GuestSettings::default()).await;
    fake.set(|script| script.pause_ms = 60);
    let first = server.run("j").await.summary.id;
    let one_is_done = |s: &Session| s.tasks.iter().filter(|task| task.result.is_some()).count() == 1;
    let session = server.until(first, "one is done", one_is_done).await;
    let done = session.tasks.iter().find(|task| task.result.is_some()).unwrap().vm.clone();
    let refused = problem(server.client.post::<Session>("/jobs/j/run", &()).await);
    assert_eq!((refused.status, refused.code.as_str()), (409, "job-running"), "{refused:?}");
    assert!(refused.what.contains(&format!("job j is running: session {first}")), "{refused:?}");
    assert!(refused.remedy.unwrap().contains(&format!("lull session follow {first}")));
    let held: Session = server.client.post(&format!("/vms/{done}/quiesce"), &serde_json::json!({})).await.unwrap();
    let _: Session = server.client.post(&format!("/sessions/{}/cancel", held.summary.id), &()).await.unwrap();
    server.finished(held.summary.id).await;
    let session = server.finished(first).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"));
    fake.set(|script| script.pause_ms = 0);
    assert_eq!(server.finished(server.run("j").await.summary.id).await.summary.result.as_deref(), Some("success"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_wait_for_a_free_slot() {
    let place = Place::new();
    let mut fake = Fake::embedded();
    fake.slots = 1;
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db", "web"], GuestSettings::default()).await;
    fake.set(|script| script.hang_after = Some(4));
    let id = server.run("j").await.summary.id;
    server.until(id, "one runs", |s| s.tasks.iter().any(|t| !t.steps.is_empty())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let states: Vec<_> = server.session(id).await.tasks.into_iter().map(|task| task.state).collect();
    assert_eq!((states, fake.orders().len()), (vec!["running".to_string(), "waiting".to_string()], 1));
    let _: Session = server.client.post(&format!("/sessions/{id}/cancel"), &()).await.unwrap();
    server.finished(id).await;
    assert_eq!(fake.orders().len(), 1, "a waiting task that is cancelled never reaches a proxy");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_guest_processing_no_credential_leaves_the_server_and_the_level_is_crash() {
    let (_place, fake, server) = one_vm().await;
    let change = serde_json::json!({"guest": {"application_aware": "disabled"}});
    let _: serde_json::Value = server.client.patch("/jobs/j", &change).await.unwrap();
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_eq!(session.tasks[0].level.as_deref(), Some("crash"));
    assert!(fake.orders()[0].guest.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_can_serve_the_vm_is_said_with_reasons() {
    let (_place, _fake, server) = one_vm().await;
    let change = serde_json::json!({"addresses": [], "connect": ""});
    let _: Vm = server.client.patch("/vms/db", &change).await.unwrap();
    let session = server.finished(server.run("j").await.summary.id).await;
    let task = &session.tasks[0];
    let failure = task.failure.as_ref().unwrap();
    assert!(failure.text.contains("no known address"), "{task:#?}");
    assert!(failure.remedy.contains(&format!("lull session show {} --why", session.summary.id)), "{failure:?}");
    assert_eq!(task.proxy.as_ref().unwrap().chosen, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_and_a_test_leave_no_restore_point() {
    let (_place, fake, server) = one_vm().await;
    let request = lull_api::session::QuiesceRequest::default();
    let session: Session = server.client.post("/vms/db/rehearse", &request).await.unwrap();
    let session = server.finished(session.summary.id).await;
    assert_eq!((session.summary.kind.as_str(), session.summary.result.as_deref()), ("rehearse", Some("success")));
    assert_eq!(session.tasks[0].freeze_window_us, Some(12_345));
    assert!(fake.orders()[0].hypervisor.is_none());
    let session: Session = server.client.post("/vms/db/test", &()).await.unwrap();
    let session = server.finished(session.summary.id).await;
    assert_eq!((session.summary.kind.as_str(), session.summary.result.as_deref()), ("test", Some("success")));
    assert_eq!(fake.tests.lock().unwrap().len(), 1);
    fake.set(|script| script.hang_after = Some(1));
    let session: Session = server.client.post("/vms/db/test", &()).await.unwrap();
    let id = session.summary.id;
    server.until(id, "it runs", |s| !s.tasks[0].steps.is_empty()).await;
    let _: Session = server.client.post(&format!("/sessions/{id}/cancel"), &()).await.unwrap();
    assert_eq!(server.finished(id).await.summary.result.as_deref(), Some("cancelled"));
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    assert_eq!(points, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_cancels_what_runs_and_leaves_nothing_open() {
    let (place, fake, server) = one_vm().await;
    fake.set(|script| script.hang_after = Some(12));
    let id = server.run("j").await.summary.id;
    server.until(id, "it is frozen", |s| s.tasks[0].steps.iter().any(|step| step.step == "freeze")).await;
    server.stop().await.unwrap();
    assert!(!fake.world.frozen.load(Ordering::SeqCst));
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    assert_eq!(server.ready.recovering_tasks, 0);
    assert_eq!(server.session(id).await.summary.result.as_deref(), Some("cancelled"));
}
