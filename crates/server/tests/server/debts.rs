//! What is owed to a guest is paid whoever died meanwhile: the post-thaw script, and what a closed task could not undo.

use crate::fake::Fake;
use crate::harness::{Place, Server, furnish};
use lull_api::job::GuestSettings;
use lull_api::session::Session;
use lull_engine::timeline::Step;
use sqlx::{ConnectOptions, Connection, Row};

const PRE: &str = "#!/bin/sh\ntouch /tmp/stopped\n";
const POST: &str = "#!/bin/sh\nrm /tmp/stopped\n";

async fn with_scripts() -> (Place, Fake, Server) {
    let (place, fake) = (Place::new(), Fake::embedded());
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let guest = GuestSettings {
        pre_freeze_script: Some(PRE.into()),
        post_thaw_script: Some(POST.into()),
        script_timeout_s: Some(7),
        ..GuestSettings::default()
    };
    furnish(&server, &place, &["db"], guest).await;
    (place, fake, server)
}

fn has_begun(session: &Session, step: Step) -> bool {
    session.tasks[0].steps.iter().any(|seen| seen.step == step.name())
}

fn has_ended(session: &Session, step: Step) -> bool {
    session.tasks[0].steps.iter().any(|seen| seen.step == step.name() && seen.state == "ok")
}

/// Runs the job until the fake hangs after this event, kills the server, and starts it again.
async fn killed(
    place: &Place,
    fake: &Fake,
    server: Server,
    hang_after: usize,
    there: impl Fn(&Session) -> bool,
) -> (Server, i64) {
    fake.set(|script| script.hang_after = Some(hang_after));
    let id = server.run("j").await.summary.id;
    server.until(id, "the proxy hangs", there).await;
    server.kill().await;
    fake.set(|script| script.hang_after = None);
    (Server::start(&place.state, std::slice::from_ref(fake)).await, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_between_the_scripts_has_the_post_thaw_script_run_when_it_is_back() {
    let (place, fake, server) = with_scripts().await;
    // In the middle of the pre-freeze script, and frozen.
    let mut server = server;
    for (hang_after, step) in [(8, Step::PreScript), (12, Step::Freeze)] {
        let ran = fake.world.scripts.lock().unwrap().len();
        let (again, id) = killed(&place, &fake, server, hang_after, |s| has_begun(s, step)).await;
        let session = again.finished(id).await;
        assert_eq!(session.summary.result.as_deref(), Some("failed"));
        assert_eq!(fake.world.scripts.lock().unwrap()[ran..], [POST.to_string()], "killed at {step}");
        assert!(has_ended(&session, Step::PostScript), "the session shows it: {:?}", session.tasks[0].steps);
        let order = fake.recoveries().into_iter().rfind(|order| order.guest.is_some()).unwrap();
        assert_eq!(order.post_script.unwrap().timeout_ms, 7_000);
        server = again;
    }
    // Before the pre-freeze script began, and after the post-thaw script ran, none is owed.
    for (hang_after, there) in [(6, Step::Inventory), (23, Step::PostScript)] {
        let ran = fake.world.scripts.lock().unwrap().len();
        let (again, id) = killed(&place, &fake, server, hang_after, |s| {
            has_ended(s, there) || there < Step::PreScript && has_begun(s, there)
        })
        .await;
        again.finished(id).await;
        assert_eq!(fake.world.scripts.lock().unwrap().len(), ran, "killed at {there}");
        server = again;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_thaw_script_that_fails_is_told_and_one_that_could_not_run_is_tried_again() {
    let (place, fake, server) = with_scripts().await;
    fake.set(|script| script.script_outcome = "failed");
    let (server, id) = killed(&place, &fake, server, 12, |s| has_begun(s, Step::Freeze)).await;
    let not_run = |s: &Session| s.tasks[0].notes.iter().any(|note| note.contains("did not run the post-thaw script"));
    server.until(id, "it could not run", not_run).await;
    fake.set(|script| script.script_outcome = "warning");
    let session = server.finished(id).await;
    let tried = fake.world.scripts.lock().unwrap().len();
    assert!(tried >= 2, "{tried}");
    assert!(session.tasks[0].steps.iter().any(|step| step.step == "post-script" && step.state == "warning"));
    // The one that failed was the last.
    server.finished(server.run("j").await.summary.id).await;
    assert_eq!(fake.world.scripts.lock().unwrap().len(), tried);
}

/// Has a finished session's task have left its guest frozen and its script not run, as after ten attempts in vain.
async fn leave_frozen(place: &Place, session: i64) {
    let mut db =
        sqlx::sqlite::SqliteConnectOptions::new().filename(place.state.join("lull.db")).connect().await.unwrap();
    let sql = "UPDATE tasks SET state = json_set(state, '$.still_owed', json_object('guest', json('true'), 'frozen', \
               json('true'), 'post_script', id)) WHERE session = $1 RETURNING id";
    let row = sqlx::query(sql).bind(session).fetch_one(&mut db).await.unwrap();
    assert!(!row.get::<String, _>(0).is_empty());
    db.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_closed_task_left_is_paid_before_the_next_one_begins() {
    let (place, fake, server) = with_scripts().await;
    let first = server.finished(server.run("j").await.summary.id).await.summary.id;
    server.stop().await.unwrap();
    leave_frozen(&place, first).await;
    // The next one has other settings: the script is the one of the task that owes it.
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let change = serde_json::json!({"guest": {"post_thaw_script": "", "pre_freeze_script": ""}});
    let _: serde_json::Value = server.client.patch("/jobs/j", &change).await.unwrap();
    fake.set(|script| script.recoveries_fail = 1);

    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"), "{session:#?}");
    let said = "an earlier task on this VM left something, which is seen to first: the guest may still be frozen";
    assert!(session.tasks[0].notes.iter().any(|note| note.starts_with(said)), "{:?}", session.tasks[0].notes);
    let recoveries: Vec<_> = fake.recoveries().into_iter().filter(|order| order.guest.is_some()).collect();
    assert!(recoveries.len() == 2 && recoveries.iter().all(|order| order.maybe_frozen), "{recoveries:?}");
    assert!(recoveries[1].epoch < fake.orders()[1].epoch, "first the debt, then the task");
    assert_eq!(fake.world.scripts.lock().unwrap().as_slice(), [POST]);

    // Paid is paid.
    server.finished(server.run("j").await.summary.id).await;
    assert_eq!((fake.recoveries().len(), fake.orders().len()), (2, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debt_outlives_tasks_that_did_not_work_in_the_guest() {
    let (place, fake, server) = with_scripts().await;
    let first = server.finished(server.run("j").await.summary.id).await.summary.id;
    server.stop().await.unwrap();
    leave_frozen(&place, first).await;
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let aware = async |mode: &str| {
        let change = serde_json::json!({"guest": {"application_aware": mode}});
        let _: serde_json::Value = server.client.patch("/jobs/j", &change).await.unwrap();
    };
    aware("disabled").await;
    server.finished(server.run("j").await.summary.id).await;
    assert!(fake.recoveries().is_empty() && fake.orders()[1].guest.is_none(), "it does not touch the guest");
    aware("require-success").await;
    // Nor does one that finds no proxy.
    let reach = async |address: &str| {
        let change = serde_json::json!({"addresses": if address.is_empty() { vec![] } else { vec![address] }});
        let _: serde_json::Value = server.client.patch("/vms/db", &change).await.unwrap();
    };
    reach("").await;
    let nobody = server.finished(server.run("j").await.summary.id).await;
    assert_eq!((nobody.summary.result.as_deref(), fake.recoveries().len()), (Some("failed"), 0));
    reach("192.0.2.10").await;
    server.finished(server.run("j").await.summary.id).await;
    assert_eq!(fake.recoveries().iter().filter(|order| order.maybe_frozen).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_whose_thaw_nobody_confirmed_is_seen_to_however_clean_the_guest_looks() {
    let (_place, fake, server) = with_scripts().await;
    fake.set(|script| script.thaw_unconfirmed = true);
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("failed"), "{session:#?}");
    let recoveries = fake.recoveries();
    assert_eq!(recoveries.iter().filter(|order| order.guest.is_some() && order.maybe_frozen).count(), 1);
}
