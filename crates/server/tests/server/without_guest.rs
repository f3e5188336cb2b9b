//! Backups that leave their guest alone: who makes them, in the preview as in the run, and that limits hold for them.

use crate::fake::Fake;
use crate::harness::{Place, Server, furnish};
use lull_api::infrastructure::{Host, Proxy, ProxyExplanation, Vm};
use lull_api::job::{GuestSettings, SavedJob};
use lull_api::proxy_tier::{JobPreview, VmPreview};
use lull_api::session::{Session, Task};
use serde_json::json;
use std::time::Duration;

const VMS: [&str; 5] = ["v1", "v2", "v3", "v4", "v5"];

/// The backup server's own proxy and two others, with many slots; what is given stays given.
async fn three(application_aware: &str) -> (Place, Vec<Fake>, Server) {
    let place = Place::new();
    let mut fakes = vec![Fake::embedded(), Fake::named("site-a", false), Fake::named("site-b", false)];
    for fake in &mut fakes {
        fake.slots = 8;
        *fake.vms.lock().unwrap() = VMS.map(str::to_string).to_vec();
        fake.set(|script| script.hang_after = Some(2));
    }
    let server = Server::start(&place.state, &fakes).await;
    let guest = GuestSettings { application_aware: Some(application_aware.into()), ..GuestSettings::default() };
    furnish(&server, &place, &VMS, guest).await;
    (place, fakes, server)
}

async fn foreseen(server: &Server) -> Vec<VmPreview> {
    server.client.get::<JobPreview>("/jobs/j/preview").await.unwrap().vms
}

fn chosen(task: &Task) -> Option<&str> {
    task.proxy.as_ref()?.chosen.as_deref()
}

fn running(session: &Session) -> usize {
    session.tasks.iter().filter(|task| task.state == "running").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_without_guest_processing_is_what_then_happens() {
    let (_place, _fakes, server) = three("disabled").await;
    let own = foreseen(&server).await;
    assert!(own.iter().all(|vm| vm.proxy.as_deref() == Some("backup-server")), "{own:#?}");

    // Without it a server that the job prefers makes them, and both say why.
    let _: Proxy = server.client.patch("/proxies/backup-server", &json!({"state": "disabled"})).await.unwrap();
    let prefer = json!({"guest": {"guest_interaction_proxy": "prefer", "preferred_servers": ["site-b"]}});
    let _: SavedJob = server.client.patch("/jobs/j", &prefer).await.unwrap();
    let seen = foreseen(&server).await;
    let why = "no proxy is needed to reach the guest: guest processing is disabled; the backup server's own proxy cannot make it: \
               an administrator disabled it";
    for vm in &seen {
        let (proxy, tier, turn) = (vm.proxy.as_deref(), vm.tier, vm.turn);
        assert_eq!((proxy, tier, vm.why.as_str()), (Some("site-b"), None, why));
        assert_eq!(turn, if ["v1", "v2", "v3", "v4"].contains(&vm.vm.as_str()) { 1 } else { 2 }, "the host takes 4");
    }
    let explained: ProxyExplanation = server.client.get("/vms/v1/proxy-explain?job=j").await.unwrap();
    assert_eq!((explained.chosen.as_deref(), explained.summary.as_str()), (Some("site-b"), why));
    let others: Vec<&str> = explained.candidates[1..].iter().map(|other| other.reason.as_str()).collect();
    assert_eq!(others, ["cannot: an administrator disabled it", "cannot: the job prefers other servers"]);
    let id = server.run("j").await.summary.id;
    let session = server.until(id, "the host is full", |session| running(session) == 4).await;
    for task in session.tasks.iter().filter(|task| task.state == "running") {
        assert_eq!((chosen(task), task.proxy.as_ref().unwrap().summary.as_str()), (Some("site-b"), why));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_without_guest_processing_that_nobody_may_make_fails_as_foreseen() {
    let (_place, _fakes, server) = three("disabled").await;
    for name in ["backup-server", "site-b"] {
        let _: Proxy = server.client.patch(&format!("/proxies/{name}"), &json!({"state": "disabled"})).await.unwrap();
    }
    let prefer = json!({"guest": {"guest_interaction_proxy": "prefer", "preferred_servers": ["site-b"]}});
    let _: SavedJob = server.client.patch("/jobs/j", &prefer).await.unwrap();
    let seen = foreseen(&server).await;
    assert_eq!((seen[0].proxy.as_deref(), seen[0].turn), (None, 0));
    assert_eq!(seen[0].why, "guest processing is disabled, and no server can make the backup");
    let against = [
        "backup-server: cannot: an administrator disabled it",
        "site-a: cannot: the job prefers other servers",
        "site-b: cannot: an administrator disabled it",
    ];
    assert_eq!(seen[0].reasons, against);
    let session = server.finished(server.run("j").await.summary.id).await;
    assert_eq!(session.summary.result.as_deref(), Some("failed"));
    let failure = session.tasks[0].failure.as_ref().unwrap();
    assert!(against.iter().all(|reason| failure.cause.contains(reason)), "{}", failure.cause);
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_that_go_on_without_their_guests_are_held_back_by_limits_too() {
    let (_place, _fakes, server) = three("try").await;
    for vm in VMS {
        let _: Vm = server.client.patch(&format!("/vms/{vm}"), &json!({"addresses": []})).await.unwrap();
    }
    let _: Host = server.client.patch("/hosts/h", &json!({"max_tasks": 2})).await.unwrap();
    let turns: Vec<u32> = foreseen(&server).await.iter().map(|vm| vm.turn).collect();
    assert_eq!(turns, [1, 1, 2, 2, 3]);
    let id = server.run("j").await.summary.id;
    server.until(id, "two run", |session| running(session) == 2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let session = server.session(id).await;
    assert_eq!(running(&session), 2);
    for task in &session.tasks {
        assert!(task.notes.iter().any(|note| note.contains("no known address")), "{task:#?}");
    }
    let _: Host = server.client.patch("/hosts/h", &json!({"max_tasks": 0})).await.unwrap();
    let session = server.until(id, "all run", |session| running(session) == VMS.len()).await;
    assert!(session.tasks.iter().all(|task| chosen(task) == Some("backup-server")));
}
