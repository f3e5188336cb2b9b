//! The server is killed between any two events: the next one finds what is owed, sees to the guest, and closes the
//! task with the truth.

use crate::fake::Fake;
use crate::harness::{PATIENCE, Place, Server, furnish};
use lull_api::infrastructure::{AcceptHostKey, CredentialChange, RestorePoint, Vm};
use lull_api::job::GuestSettings;
use lull_api::session::Session;
use lull_engine::failover::FailureClass;
use std::sync::atomic::Ordering;

/// Events of a whole task in the fake's script, its end included.
const EVENTS: usize = 34;
/// So many of them there are once the restore point is told of.
const RECORDED: usize = 31;

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_any_event_the_task_is_recovered_and_closed_with_the_truth() {
    let place = Place::new();
    let fake = Fake::embedded();
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    let private_key = Some("-----BEGIN OPENSSH PRIVATE KEY-----\n".to_string());
    let key = CredentialChange { private_key, ..Default::default() };
    let _: serde_json::Value = server.client.patch("/credentials/c", &key).await.unwrap();
    server.stop().await.unwrap();
    for hang_after in 0..EVENTS {
        killed_after(&place, &fake, hang_after).await;
    }
    // Uninterrupted, everything is as it was, and the database has no open end.
    fake.set(|script| script.hang_after = None);
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"));
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    assert_eq!(points.len(), 1 + EVENTS - RECORDED, "what was told of is recorded, and nothing else is");
}

async fn killed_after(place: &Place, fake: &Fake, hang_after: usize) {
    fake.set(|script| script.hang_after = Some(hang_after));
    let orders = fake.orders().len();
    let recoveries = fake.recoveries().len();
    let server = Server::start(&place.state, std::slice::from_ref(fake)).await;
    let id = server.run("j").await.summary.id;
    // Killed when all that the proxy said is written down: every step's beginning and end that it told.
    let since = std::time::Instant::now();
    while fake.orders().len() == orders || fake.world.said.load(Ordering::SeqCst) < hang_after {
        assert!(since.elapsed() < PATIENCE, "the proxy did not say {hang_after} events");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let told = fake.world.steps_said.load(Ordering::SeqCst);
    let written = |s: &Session| {
        let steps = s.tasks.iter().flat_map(|task| &task.steps);
        steps.map(|step| 1 + usize::from(step.state != "running")).sum::<usize>()
    };
    let recorded = hang_after >= RECORDED;
    let stored = |s: &Session| written(s) == told && s.tasks[0].restore_point.is_some() == recorded;
    server.until(id, "all that was said is stored", stored).await;
    server.kill().await;

    let server = Server::start(&place.state, std::slice::from_ref(fake)).await;
    assert_eq!(server.ready.recovering_tasks, 1, "after {hang_after} events");
    let session = server.finished(id).await;
    let task = &session.tasks[0];
    let result = if recorded { "warning" } else { "failed" };
    assert_eq!(task.result.as_deref(), Some(result), "after {hang_after} events: {session:#?}");
    let text = if recorded { task.notes.join("; ") } else { task.failure.as_ref().unwrap().text.clone() };
    assert!(text.contains("the backup server stopped while the task was open"), "{text}");
    assert_eq!(task.restore_point.is_some(), recorded);
    let since = &fake.recoveries()[recoveries..];
    assert_eq!(since.iter().filter(|r| r.guest.is_some()).count(), 1, "after {hang_after} events: {since:?}");
    let order = fake.orders()[orders].clone();
    assert!(since.iter().all(|r| r.epoch > order.epoch), "the recovery must win over the task");
    let Some(lull_proxy_wire::v1::task_order::Work::Backup(work)) = order.work else { panic!() };
    let swept: Vec<_> = since.iter().filter(|r| r.hypervisor.is_some()).collect();
    let unrecorded = if recorded { "" } else { work.restore_point_id.as_str() };
    assert!(swept.iter().all(|r| r.restore_point_id == unrecorded), "{swept:?}");
    for (what, left) in
        [("frozen", &fake.world.frozen), ("deployed", &fake.world.deployed), ("partial", &fake.world.partial)]
    {
        assert!(!left.load(Ordering::SeqCst), "after {hang_after} events the guest is still {what}");
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_a_restore_point_was_recorded_its_files_are_not_swept() {
    let place = Place::new();
    let fake = Fake::embedded();
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    // The task is over but for what it left in guest and hypervisor, which cannot be reached for a while.
    fake.set(|script| {
        script.left_in_guest = vec!["/run/lull-1".into()];
        script.left_in_hypervisor = vec!["filter lull-1".into()];
        script.recoveries_fail = u32::MAX;
    });
    let id = server.run("j").await.summary.id;
    let recorded = |s: &Session| s.tasks[0].state == "recovering" && s.tasks[0].restore_point.is_some();
    let point = server.until(id, "the restore point is recorded", recorded).await.tasks[0].restore_point;
    server.kill().await;

    let recoveries = fake.recoveries().len();
    fake.set(|script| script.recoveries_fail = 0);
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let session = server.finished(id).await;
    let task = &session.tasks[0];
    assert_eq!((task.result.as_deref(), task.restore_point), (Some("success"), point), "{session:#?}");
    let since = &fake.recoveries()[recoveries..];
    assert!(since.iter().any(|r| r.guest.is_some()) && since.iter().any(|r| r.hypervisor.is_some()), "{since:?}");
    assert!(since.iter().all(|r| r.restore_point_id.is_empty()), "its files would be removed: {since:?}");
    let points: Vec<RestorePoint> = server.client.get("/restore-points").await.unwrap();
    assert_eq!(points.iter().map(|known| Some(known.id)).collect::<Vec<_>>(), [point]);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_a_password_is_tried_only_the_next_task_sends_it_again() {
    let place = Place::new();
    let fake = Fake::embedded();
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    // The login has begun, and no answer came.
    fake.set(|script| script.hang_after = Some(1));
    let id = server.run("j").await.summary.id;
    server.until(id, "it logs in", |s| !s.tasks[0].steps.is_empty()).await;
    server.kill().await;

    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let session = server.finished(id).await;
    let logins = || fake.recoveries().iter().filter(|r| r.guest.is_some()).count();
    assert_eq!(logins(), 0, "{session:#?}");
    let told = |words: &str| session.tasks[0].notes.iter().any(|note| note.contains(words));
    assert!(told("nobody knows whether its password was refused"), "{session:#?}");
    assert!(told("the next task on this VM sees to it first"), "{session:#?}");
    // It was not refused as far as anybody knows, so it does not rest.
    fake.set(|script| script.hang_after = None);
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    assert_eq!(logins(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_cannot_be_reached_stays_visible_and_new_work_waits_for_it() {
    let place = Place::new();
    let fake = Fake::embedded();
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    fake.set(|script| script.hang_after = Some(12));
    let id = server.run("j").await.summary.id;
    server.until(id, "it is frozen", |s| s.tasks[0].steps.iter().any(|step| step.step == "freeze")).await;
    server.kill().await;

    fake.set(|script| {
        script.hang_after = None;
        script.recoveries_fail = 6;
    });
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let command = |s: &Session| s.tasks[0].notes.iter().any(|note| note.contains("fsfreeze --unfreeze"));
    let session = server.until(id, "the operator is told the command", command).await;
    assert_eq!((session.tasks[0].state.as_str(), session.summary.state.as_str()), ("recovering", "running"));
    let next = server.run("j").await.summary.id;
    let waits = |s: &Session| s.tasks[0].notes.iter().any(|note| note.contains(&format!("session {id}")));
    let waiting = server.until(next, "it says what it waits for", waits).await;
    assert_eq!(waiting.tasks[0].state, "waiting");
    assert_eq!(server.finished(id).await.summary.result.as_deref(), Some("failed"));
    assert_eq!(server.finished(next).await.summary.result.as_deref(), Some("success"));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_recovering_it_recovers_again_under_a_new_number() {
    let place = Place::new();
    let fake = Fake::embedded();
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let exclude_mount_points = Some(vec!["/scratch".to_string()]);
    furnish(&server, &place, &["db"], GuestSettings { exclude_mount_points, ..GuestSettings::default() }).await;
    fake.set(|script| script.hang_after = Some(12));
    let id = server.run("j").await.summary.id;
    server.until(id, "it is frozen", |s| s.tasks[0].steps.iter().any(|step| step.step == "freeze")).await;
    server.kill().await;
    fake.set(|script| script.recoveries_fail = 3);
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let failed = |s: &Session| s.tasks[0].notes.iter().any(|n| n.contains("not yet: the guest is thawed"));
    server.until(id, "the recovery of the guest failed", failed).await;
    server.kill().await;
    fake.set(|script| script.recoveries_fail = 0);
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let session = server.finished(id).await;
    assert_eq!(session.summary.result.as_deref(), Some("failed"));
    let of_guest: Vec<_> = fake.recoveries().into_iter().filter(|r| r.guest.is_some()).collect();
    let epochs: Vec<u64> = of_guest.iter().map(|r| r.epoch).collect();
    assert!(epochs.last() > epochs.first(), "{epochs:?}");
    // What the task did not freeze is not its recovery's to thaw.
    assert!(of_guest.iter().all(|r| r.excluded_mount_points == ["/scratch"]), "{of_guest:?}");
    assert!(!fake.world.frozen.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_key_that_a_recovery_meets_can_be_accepted() {
    let place = Place::new();
    let fake = Fake::embedded();
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    fake.set(|script| script.hang_after = Some(12));
    let id = server.run("j").await.summary.id;
    server.until(id, "it is frozen", |s| s.tasks[0].steps.iter().any(|step| step.step == "freeze")).await;
    server.kill().await;
    fake.set(|script| {
        script.host_key = "SHA256:second".into();
        script.recoveries_fail = 1;
    });
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    server.finished(id).await;
    let accept = AcceptHostKey { fingerprint: "SHA256:second".into() };
    let vm: Vm = server.client.post("/vms/db/accept-host-key", &accept).await.unwrap();
    assert_eq!(vm.host_key.as_deref(), Some("SHA256:second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_is_refused_logs_in_once_and_says_what_stays_owed() {
    let place = Place::new();
    let fake = Fake::embedded();
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    furnish(&server, &place, &["db"], GuestSettings::default()).await;
    fake.set(|script| script.hang_after = Some(12));
    let id = server.run("j").await.summary.id;
    server.until(id, "it is frozen", |s| s.tasks[0].steps.iter().any(|step| step.step == "freeze")).await;
    server.kill().await;
    fake.set(|script| {
        script.hang_after = None;
        script.recoveries_fail = 100;
        script.recoveries_fail_with = Some(FailureClass::RefusedCredential);
    });
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let session = server
        .until(id, "the login is refused", |s| {
            s.tasks[0].notes.iter().any(|n| n.contains("not tried again: the guest"))
        })
        .await;
    // The hypervisor's half is refused by the same knob; it logs in nowhere.
    let logins = || fake.recoveries().iter().filter(|r| r.guest.is_some()).count();
    assert_eq!(logins(), 1, "{session:#?}");
    let session = server.finished(id).await;
    let notes = &session.tasks[0].notes;
    assert!(notes.iter().any(|note| note.contains("the next task on this VM sees to it first")), "{notes:?}");
    assert!(notes.iter().any(|note| note.contains("fsfreeze --unfreeze")), "{notes:?}");
    // It rests: the next run would first have to see to what is owed, and does not send it again.
    let session = server.finished(server.run("j").await.summary.id).await;
    let text = &session.tasks[0].failure.as_ref().unwrap().text;
    assert!(text.contains("what an earlier task left could not be undone"), "{text}");
    assert!(session.tasks[0].notes.iter().any(|note| note.contains("was not tried")), "{session:#?}");
    assert_eq!((logins(), fake.orders().len()), (1, 1));
}
