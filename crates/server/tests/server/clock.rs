//! What the server does by itself: runs of schedules and retries, by a clock that the test sets.

use crate::harness::{Server, clock_at, one_vm_at, problem};
use lull_api::job::{Job, SavedJob};
use lull_api::session::{Session, SessionSummary};
use lull_api::timing::RetryOf;
use lull_engine::failover::FailureClass;
use lull_engine::timeline::Step;
use serde_json::{Value, json};

async fn job(server: &Server) -> Job {
    server.client.get("/jobs/j").await.unwrap()
}

async fn sessions(server: &Server) -> Vec<SessionSummary> {
    server.client.get("/sessions").await.unwrap()
}

fn nightly(run_missed: bool) -> Value {
    json!({"schedule": {"cron": "0 2 * * *", "time_zone": "UTC", "run_missed": run_missed}})
}

fn notes(session: &Session) -> String {
    session.notes.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_begins_its_run_in_time_and_once_also_when_the_clock_jumps() {
    let (_place, _fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    let saved = server.change("j", nightly(true)).await;
    assert_eq!(saved.job.next_run.as_deref(), Some("2026-03-02T02:00:00Z"));
    server.set_clock("2026-03-02T02:00:01Z");
    let first = server.begun(1).await;
    assert_eq!(first.summary.scheduled_for.as_deref(), Some("2026-03-02T02:00:00Z"));
    assert_eq!((first.summary.retry, first.notes), (None, Vec::<String>::new()));
    assert_eq!(job(&server).await.next_run.as_deref(), Some("2026-03-03T02:00:00Z"));
    for again in ["2026-03-02T02:00:30Z", "2026-03-02T01:59:59Z", "2026-03-02T02:00:05Z", "2026-03-01T12:00:00Z"] {
        server.set_clock(again);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    server.set_clock("2026-03-03T02:00:01Z");
    let second = server.begun(2).await;
    assert_eq!(second.summary.scheduled_for.as_deref(), Some("2026-03-03T02:00:00Z"), "none in between");
    assert_eq!(sessions(&server).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_taken_away_and_a_new_one_makes_up_for_nothing() {
    let (_place, _fake, server) = one_vm_at("2026-03-02T12:00:00Z").await;
    server.change("j", nightly(true)).await;
    let saved = server.change("j", json!({"schedule": null})).await;
    assert_eq!((saved.job.schedule, saved.job.next_run), (None, None));
    server.set_clock("2026-03-05T12:00:00Z");
    let saved = server.change("j", nightly(true)).await;
    assert_eq!(saved.job.next_run.as_deref(), Some("2026-03-06T02:00:00Z"));
    // Another zone is another time; what is not given stays.
    let saved = server.change("j", json!({"schedule": {"time_zone": "Asia/Tokyo"}})).await;
    assert_eq!(saved.job.next_run.as_deref(), Some("2026-03-05T17:00:00Z"));
    assert_eq!(saved.job.schedule.unwrap().cron.as_deref(), Some("0 2 * * *"));
    server.set_clock("2026-03-05T17:00:01Z");
    server.begun(1).await;
    assert_eq!(sessions(&server).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_were_missed_are_made_up_for_by_one_or_skipped_as_the_schedule_says() {
    let (place, fake, server) = one_vm_at("2026-03-01T12:00:00Z").await;
    server.change("j", nightly(true)).await;
    server.stop().await.unwrap();
    let back = |now: &str| Server::start_at(&place.state, std::slice::from_ref(&fake), clock_at(now));
    let server = back("2026-03-04T09:00:00Z").await.unwrap();
    let made_up = server.begun(1).await;
    assert_eq!(made_up.summary.scheduled_for.as_deref(), Some("2026-03-02T02:00:00Z"));
    assert!(notes(&made_up).contains("due at 2026-03-02 02:00 (UTC), when the backup server was not running"));
    let shown = job(&server).await;
    assert_eq!((shown.next_run.as_deref(), shown.last_skipped), (Some("2026-03-05T02:00:00Z"), None));

    server.change("j", nightly(false)).await;
    server.stop().await.unwrap();
    let server = back("2026-03-07T09:00:00Z").await.unwrap();
    let since = std::time::Instant::now();
    while job(&server).await.last_skipped.is_none() {
        assert!(since.elapsed() < crate::harness::PATIENCE, "no run was skipped");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    server.set_clock("2026-03-08T02:00:01Z");
    let next = server.begun(2).await;
    assert_eq!(next.summary.scheduled_for.as_deref(), Some("2026-03-08T02:00:00Z"), "nothing was made up for");
    let skipped = job(&server).await.last_skipped.unwrap();
    assert_eq!(skipped.due_at, "2026-03-05T02:00:00Z");
    assert!(skipped.because.contains("was not running"), "{skipped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_due_while_the_job_runs_is_skipped_and_people_see_it() {
    let (_place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    server.change("j", nightly(true)).await;
    fake.set(|script| script.hang_after = Some(8));
    server.set_clock("2026-03-02T02:00:01Z");
    let at_work = |session: &Session| !session.tasks[0].steps.is_empty();
    server.begins(1).await;
    server.until(1, "it is at work", at_work).await;
    server.set_clock("2026-03-03T02:00:01Z");
    let told = |session: &Session| notes(session).contains("which was due at 2026-03-03 02:00 (UTC), was skipped");
    server.until(1, "the skipped run is told", told).await;
    let skipped = job(&server).await.last_skipped.unwrap();
    assert_eq!(skipped.due_at, "2026-03-03T02:00:00Z");
    assert!(skipped.because.contains("still running: session 1"), "{skipped:?}");
    assert_eq!(sessions(&server).await.len(), 1);
    fake.set(|script| script.hang_after = None);
    let _: Session = server.client.post("/sessions/1/cancel", &()).await.unwrap();
    server.finished(1).await;
    server.set_clock("2026-03-04T02:00:01Z");
    assert_eq!(server.begun(2).await.summary.scheduled_for.as_deref(), Some("2026-03-04T02:00:00Z"));
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_tasks_are_tried_again_after_the_pause_also_after_a_restart() {
    let (place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    let mut change = nightly(true);
    change["retries"] = json!({"times": 2, "pause_s": 600});
    server.change("j", change).await;
    fake.set(|script| script.fail_at = Some((Step::Snapshot, FailureClass::Hypervisor)));
    server.set_clock("2026-03-02T02:00:01Z");
    let first = server.begun(1).await;
    assert_eq!(first.summary.result.as_deref(), Some("failed"));
    let told = |session: &Session| notes(session).contains("db (retry 1 of 2)");
    server.until(1, "the retry is told", told).await;
    server.kill().await;

    let proxies = [fake.clone()];
    let server = Server::start_at(&place.state, &proxies, clock_at("2026-03-02T02:05:00Z")).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(sessions(&server).await.len(), 1, "the pause is not over");
    server.set_clock("2026-03-02T02:11:00Z");
    let second = server.begun(2).await;
    assert_eq!(second.summary.retry, Some(RetryOf { attempt: 1, times: 2, session: 1 }));
    assert_eq!(second.summary.scheduled_for, None);
    server.until(2, "the next is told", |session| notes(session).contains("retry 2 of 2")).await;
    server.set_clock("2026-03-02T02:22:00Z");
    let third = server.begun(3).await;
    assert_eq!(third.summary.retry, Some(RetryOf { attempt: 2, times: 2, session: 1 }));
    // Twice was enough: the next session is the next night's.
    fake.set(|script| script.fail_at = None);
    server.set_clock("2026-03-02T12:00:00Z");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    server.set_clock("2026-03-03T02:00:01Z");
    let fourth = server.begun(4).await;
    assert_eq!((fourth.summary.retry, fourth.summary.result.as_deref()), (None, Some("success")));
}

/// Who stops the server means the server, not the job.
#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_run_that_was_cut_short_because_the_server_stopped_is_tried_again() {
    let (place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    server.change("j", nightly(true)).await;
    fake.set(|script| script.hang_after = Some(8));
    server.set_clock("2026-03-02T02:00:01Z");
    server.begins(1).await;
    server.until(1, "it is at work", |session| !session.tasks[0].steps.is_empty()).await;
    server.stop().await.unwrap();
    fake.set(|script| script.hang_after = None);
    let proxies = [fake.clone()];
    let server = Server::start_at(&place.state, &proxies, clock_at("2026-03-02T02:05:00Z")).await.unwrap();
    assert_eq!(server.session(1).await.summary.result.as_deref(), Some("cancelled"));
    server.until(1, "the retry is told", |session| notes(session).contains("db (retry 1 of 3)")).await;
    server.set_clock("2026-03-02T02:16:00Z");
    let second = server.begun(2).await;
    assert_eq!((second.summary.retry.unwrap().session, second.summary.result.as_deref()), (1, Some("success")));
    // One that a person cancels is not.
    fake.set(|script| script.hang_after = Some(8));
    server.set_clock("2026-03-03T02:00:01Z");
    server.begins(3).await;
    let _: Session = server.client.post("/sessions/3/cancel", &()).await.unwrap();
    server.finished(3).await;
    fake.set(|script| script.hang_after = None);
    server.set_clock("2026-03-03T12:00:00Z");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    server.set_clock("2026-03-04T02:00:01Z");
    assert_eq!(server.begun(4).await.summary.retry, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_refused_credential_nor_what_a_person_began_is_tried_again() {
    let (_place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    server.change("j", nightly(true)).await;
    fake.set(|script| script.fail_at = Some((Step::Snapshot, FailureClass::Hypervisor)));
    assert_eq!(server.finished(server.run("j").await.summary.id).await.summary.result.as_deref(), Some("failed"));
    fake.set(|script| script.fail_at = Some((Step::Connect, FailureClass::RefusedCredential)));
    server.set_clock("2026-03-02T02:00:01Z");
    assert_eq!(server.begun(2).await.summary.result.as_deref(), Some("failed"));
    server.set_clock("2026-03-02T23:00:00Z");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    server.set_clock("2026-03-03T02:00:01Z");
    let next = server.begun(3).await;
    assert_eq!(next.summary.scheduled_for.as_deref(), Some("2026-03-03T02:00:00Z"));
    assert_eq!(fake.orders().len(), 2, "and the credential that rests was not sent");
}

/// A retry is the same run: what one VM refused in it is not sent to another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_does_not_send_another_vm_what_was_refused_before() {
    let (_place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    let both = json!({"vms": ["db", "web"], "schedule": {"cron": "0 2 * * *", "time_zone": "UTC"}});
    let _: SavedJob = server.client.patch("/jobs/j", &both).await.unwrap();
    let web = json!({"addresses": ["192.0.2.11"], "credential": "c", "guest_os": "linux"});
    let _: Value = server.client.patch("/vms/web", &web).await.unwrap();
    let held: Session = server.client.post("/vms/web/quiesce", &json!({})).await.unwrap();
    server.until(held.summary.id, "it is held", |session| !session.tasks[0].steps.is_empty()).await;
    fake.set(|script| script.fail_at = Some((Step::Connect, FailureClass::RefusedCredential)));
    server.set_clock("2026-03-02T02:00:01Z");
    server.begun(2).await;
    server.until(2, "the retry is told", |session| notes(session).contains(": web (retry 1 of 3)")).await;
    let _: Session = server.client.post(&format!("/sessions/{}/cancel", held.summary.id), &()).await.unwrap();
    server.finished(held.summary.id).await;
    fake.set(|script| script.fail_at = None);
    let orders = fake.orders().len();
    server.set_clock("2026-03-02T02:11:00Z");
    let retry = server.begun(3).await;
    assert_eq!(retry.summary.vms, ["web"]);
    let why = &retry.tasks[0].failure.as_ref().unwrap().text;
    assert!(why.contains("was not tried"), "{why}");
    assert_eq!(fake.orders().len(), orders);
}

/// Also where every VM is taken: then there is a session that says so, and it is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_failed_is_tried_again_and_a_vm_in_another_session_is_waited_for() {
    let (_place, _fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    let both = json!({"vms": ["db", "web"], "schedule": {"cron": "0 2 * * *", "time_zone": "UTC"}});
    let _: SavedJob = server.client.patch("/jobs/j", &both).await.unwrap();
    let web = json!({"addresses": ["192.0.2.11"], "credential": "c", "guest_os": "linux"});
    let _: Value = server.client.patch("/vms/web", &web).await.unwrap();
    let hold = |vm: &str| format!("/vms/{vm}/quiesce");
    let held: Session = server.client.post(&hold("web"), &json!({})).await.unwrap();
    server.set_clock("2026-03-02T02:00:01Z");
    let first = server.begun(2).await;
    let result = |session: &Session, vm: &str| {
        session.tasks.iter().find(|task| task.vm == vm).and_then(|task| task.result.clone())
    };
    assert_eq!((result(&first, "db").as_deref(), result(&first, "web").as_deref()), (Some("success"), Some("failed")));
    server.until(2, "the retry is told", |session| notes(session).contains(": web (retry 1 of 3)")).await;
    server.set_clock("2026-03-02T02:11:00Z");
    let second = server.begun(3).await;
    assert_eq!(
        (second.summary.vms.clone(), second.summary.result.as_deref()),
        (vec!["web".to_string()], Some("failed"))
    );
    assert!(second.tasks[0].failure.as_ref().unwrap().text.contains("in session 1"), "{second:#?}");
    server.until(3, "the next is told", |session| notes(session).contains("web (retry 2 of 3)")).await;
    let _: Session = server.client.post(&format!("/sessions/{}/cancel", held.summary.id), &()).await.unwrap();
    server.finished(held.summary.id).await;
    server.set_clock("2026-03-02T02:22:00Z");
    let third = server.begun(4).await;
    assert_eq!((third.summary.vms, third.summary.result.as_deref()), (vec!["web".to_string()], Some("success")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_or_a_retention_that_cannot_be_is_refused_with_a_sentence() {
    let (_place, _fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    let before = job(&server).await;
    let check = async |change: Value, says: &str| {
        let refused = problem(server.client.patch::<SavedJob>("/jobs/j", &change).await);
        let text = format!("{} {}", refused.what, refused.why.unwrap_or_default());
        assert!(refused.status == 422 && text.contains(says), "{change}: {text}");
    };
    check(json!({"schedule": {"time_zone": "UTC"}}), "say when").await;
    check(json!({"schedule": {"cron": "0 2 * *"}}), "has 4 fields").await;
    check(json!({"schedule": {"cron": "61 2 * * *"}}), "cannot be read").await;
    check(json!({"schedule": {"cron": "0 2 * * *", "time_zone": "Europe/Atlantis"}}), "no time zone").await;
    check(json!({"schedule": {"cron": "0 2 30 2 *"}}), "never comes").await;
    check(json!({"schedule": {"when": "soon"}}), "when").await;
    check(json!({"retries": {"times": 21}}), "at most 20 times").await;
    check(json!({"retries": {"pause_s": 90_000}}), "86400").await;
    check(json!({"retention": {"last": 40_000}}), "last must be 1 to 36500").await;
    check(json!({"full_every": 0}), "between 1 and 365").await;
    check(json!({"full_every": 366}), "between 1 and 365").await;
    assert_eq!(job(&server).await, before);
    // No zone named: the answer says which one holds.
    let saved = server.change("j", json!({"schedule": {"cron": "0 2 * * *"}})).await;
    let zone = saved.job.schedule.unwrap().time_zone.unwrap();
    assert!(zone == "UTC" || zone.contains('/'), "{zone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_is_as_long_as_the_job_says() {
    let (_place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    server.change("j", json!({"full_every": 2})).await;
    for _ in 0..4 {
        server.finished(server.run("j").await.summary.id).await;
    }
    let is_full = |order: &lull_proxy_wire::v1::TaskOrder| match &order.work {
        Some(lull_proxy_wire::v1::task_order::Work::Backup(work)) => work.parent.is_none(),
        _ => panic!("{order:?}"),
    };
    assert_eq!(fake.orders().iter().map(is_full).collect::<Vec<_>>(), [true, false, true, false]);
}

/// A retry is for what is not backed up yet.
#[tokio::test(flavor = "multi_thread")]
async fn what_went_well_by_hand_meanwhile_is_not_tried_again() {
    let (_place, fake, server) = one_vm_at("2026-03-02T01:59:00Z").await;
    let both = json!({"vms": ["db", "web"], "schedule": {"cron": "0 2 * * *", "time_zone": "UTC"}});
    let _: SavedJob = server.client.patch("/jobs/j", &both).await.unwrap();
    let web = json!({"addresses": ["192.0.2.11"], "credential": "c", "guest_os": "linux"});
    let _: Value = server.client.patch("/vms/web", &web).await.unwrap();
    fake.set(|script| script.fail_at = Some((Step::Snapshot, FailureClass::Hypervisor)));
    server.set_clock("2026-03-02T02:00:01Z");
    server.begun(1).await;
    server.until(1, "the retry is told", |session| notes(session).contains(": db, web (retry 1 of 3)")).await;
    fake.set(|script| script.fail_at = None);
    let held: Session = server.client.post("/vms/web/quiesce", &json!({})).await.unwrap();
    let by_hand = server.finished(server.run("j").await.summary.id).await.summary.id;
    let told = |session: &Session| notes(session).contains("since it went well now: db");
    server.until(by_hand, "it is told", told).await;
    let _: Session = server.client.post(&format!("/sessions/{}/cancel", held.summary.id), &()).await.unwrap();
    server.finished(held.summary.id).await;
    fake.set(|script| script.fail_at = Some((Step::Snapshot, FailureClass::Hypervisor)));
    server.set_clock("2026-03-02T02:11:00Z");
    let retry = server.begun(4).await;
    assert_eq!((retry.summary.vms, retry.summary.retry.unwrap().attempt), (vec!["web".to_string()], 1));
    server.until(4, "the next is told", |session| notes(session).contains(": web (retry 2 of 3)")).await;
    // Both by hand: then nothing is left to be tried.
    fake.set(|script| script.fail_at = None);
    let by_hand = server.finished(server.run("j").await.summary.id).await.summary.id;
    server.until(by_hand, "it is told", |session| notes(session).contains("since it went well now: web")).await;
    server.set_clock("2026-03-02T12:00:00Z");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    server.set_clock("2026-03-03T02:00:01Z");
    let next = server.begun(by_hand + 1).await;
    assert_eq!((next.summary.retry, next.summary.scheduled_for.as_deref()), (None, Some("2026-03-03T02:00:00Z")));
}
