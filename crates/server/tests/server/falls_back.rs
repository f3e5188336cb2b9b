//! *Try, ignore failures*: a VM that cannot be brought to rest is backed up all the same, and its session says how well and
//! why; what is final for a credential stays final.

use crate::fake::Fake;
use crate::harness::{Place, Server, furnish};
use lull_api::infrastructure::{Credential, Proxy, RestorePoint, Vm};
use lull_api::job::GuestSettings;
use lull_api::session::Session;
use lull_engine::failover::FailureClass;
use lull_engine::timeline::Step;
use serde_json::json;

async fn trying(fakes: &[Fake], vms: &[&str]) -> (Place, Server) {
    let place = Place::new();
    let server = Server::start(&place.state, fakes).await;
    let guest = GuestSettings { application_aware: Some("try".into()), ..GuestSettings::default() };
    furnish(&server, &place, vms, guest).await;
    (place, server)
}

/// The session has a warning, and every VM a crash-consistent restore point for this reason.
async fn assert_fell_back(server: &Server, session: &Session, because: &str) {
    assert_eq!(session.summary.result.as_deref(), Some("warning"), "{session:#?}");
    for task in &session.tasks {
        assert_eq!(task.level.as_deref(), Some("crash"), "{task:#?}");
        let reason = &task.level_reasons[0];
        let says_why = reason.starts_with("nothing was frozen in the guest: ") && reason.contains(because);
        assert!(says_why && !reason.contains('\n'), "{because}: {reason}");
        assert!(task.notes.iter().any(|note| note.contains("only crash-consistent") && note.contains(because)));
        let point: RestorePoint =
            server.client.get(&format!("/restore-points/{}", task.restore_point.unwrap())).await.unwrap();
        assert_eq!((point.level.as_str(), &point.level_reasons), ("crash", &task.level_reasons));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_resting_credential_the_backup_goes_on_without_the_guest_and_nobody_logs_in() {
    let fake = Fake::embedded();
    let (_place, server) = trying(std::slice::from_ref(&fake), &["db"]).await;
    fake.set(|script| script.refused_at_login = true);
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_fell_back(&server, &session, "login: no").await;
    let credential: Credential = server.client.get("/credentials/c").await.unwrap();
    assert_eq!(credential.refused_by, ["db"], "a refusal is final for the credential");

    let session = server.finished(server.run("j").await.summary.id).await;
    assert_fell_back(&server, &session, "credential c (account root) was not tried").await;
    let with_guest = fake.orders().iter().filter(|order| order.guest.is_some()).count();
    assert_eq!((with_guest, fake.orders().len(), fake.recoveries().len()), (1, 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_after_a_refusal_in_try_mode_does_not_log_in_again() {
    let fake = Fake::embedded();
    let (place, server) = trying(std::slice::from_ref(&fake), &["db"]).await;
    fake.set(|script| (script.refused_at_login, script.hang_after) = (true, Some(7)));
    let id = server.run("j").await.summary.id;
    server.until(id, "the backup goes on", |s| s.tasks[0].steps.iter().any(|step| step.step == "snapshot")).await;
    server.kill().await;
    let server = Server::start(&place.state, std::slice::from_ref(&fake)).await;
    let session = server.finished(id).await;
    assert_eq!(session.summary.result.as_deref(), Some("failed"));
    assert!(fake.recoveries().iter().all(|recovery| recovery.guest.is_none()), "{:?}", fake.recoveries());
    assert!(!session.tasks[0].notes.iter().any(|note| note.contains("fsfreeze")), "nothing is owed to the guest");
    let credential: Credential = server.client.get("/credentials/c").await.unwrap();
    assert_eq!(credential.refused_by, ["db"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_no_proxy_can_serve_is_backed_up_by_the_backup_server() {
    let fake = Fake::embedded();
    let (_place, server) = trying(std::slice::from_ref(&fake), &["db"]).await;
    let change = json!({"addresses": [], "connect": ""});
    let _: Vm = server.client.patch("/vms/db", &change).await.unwrap();
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_fell_back(&server, &session, "no known address").await;
    let proxy = session.tasks[0].proxy.clone().unwrap();
    assert_eq!(proxy.chosen.as_deref(), Some("backup-server"));
    assert!(proxy.summary.contains("no known address"), "{}", proxy.summary);
    assert!(fake.orders()[0].guest.is_none() && fake.orders()[0].left_alone_because.contains("no known address"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_last_proxy_may_give_an_unreachable_guest_up() {
    let (embedded, other) = (Fake::embedded(), Fake::named("proxy-a", false));
    let fakes = [embedded.clone(), other.clone()];
    let (_place, server) = trying(&fakes, &["db"]).await;
    for fake in &fakes {
        fake.set(|script| script.fail_at = Some((Step::Connect, FailureClass::GuestUnreachable)));
    }
    server.finished(server.run("j").await.summary.id).await;
    let last = |fake: &Fake| fake.orders().iter().map(|order| order.last_proxy).collect::<Vec<_>>();
    let mut told = [last(&embedded), last(&other)].concat();
    told.sort();
    assert_eq!(told, [false, true], "the first of the two must leave the guest to the second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_guest_processing_that_nobody_can_make_says_what_to_do() {
    let fake = Fake::embedded();
    let (_place, server) = trying(std::slice::from_ref(&fake), &["db"]).await;
    server.change("j", json!({"guest": {"application_aware": "disabled"}})).await;
    let _: Proxy = server.client.patch("/proxies/backup-server", &json!({"state": "disabled"})).await.unwrap();
    let session = server.finished(server.run("j").await.summary.id).await;
    let failure = session.tasks[0].failure.clone().unwrap();
    let cause =
        "no server can make the backup, which needs none in the guest: backup-server: an administrator disabled it";
    assert_eq!(failure.cause, cause);
    assert!(failure.remedy.contains("do away with what stands against one of these servers"), "{failure:?}");
}
