//! A guest at rest for a command on the caller's side.

use crate::harness::{one_vm, problem};
use lull_api::session::{HoldEnd, QuiesceRequest, Session};
use std::sync::atomic::Ordering;
use std::time::Duration;

fn ready(session: &Session) -> bool {
    session.tasks[0].steps.iter().any(|step| step.step == "freeze" && step.state == "ok")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_hold_lasts_until_its_command_ends() {
    let (_place, fake, server) = one_vm().await;
    fake.set(|script| script.hold_silence_ms = 2_000);
    let session: Session = server.client.post("/vms/db/quiesce", &QuiesceRequest::default()).await.unwrap();
    let id = session.summary.id;
    server.until(id, "the guest is at rest", ready).await;
    for _ in 0..4 {
        let _: () = server.client.post(&format!("/sessions/{id}/renew"), &()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(fake.world.frozen.load(Ordering::SeqCst));
    }
    assert_eq!(fake.world.renewals.load(Ordering::SeqCst), 4);
    let end = HoldEnd { succeeded: true, detail: "exit code 0".into() };
    let _: () = server.client.post(&format!("/sessions/{id}/end"), &end).await.unwrap();
    let session = server.finished(id).await;
    assert_eq!(session.summary.result.as_deref(), Some("success"));
    assert!(!fake.world.frozen.load(Ordering::SeqCst));
    assert!(fake.orders()[0].hypervisor.is_none(), "the caller's own tool needs the hypervisor's socket");
    let over = problem(server.client.post::<()>(&format!("/sessions/{id}/renew"), &()).await);
    assert_eq!((over.status, over.code.as_str()), (409, "no-hold"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_falls_silent_loses_the_hold() {
    let (_place, fake, server) = one_vm().await;
    let request = serde_json::json!({"guest": {"lease_ms": 2000}});
    let session: Session = server.client.post("/vms/db/quiesce", &request).await.unwrap();
    let id = session.summary.id;
    server.until(id, "the guest is at rest", ready).await;
    assert!(fake.world.frozen.load(Ordering::SeqCst));
    let session = server.finished(id).await;
    assert_eq!(session.summary.result.as_deref(), Some("cancelled"));
    // This proxy does not end it by itself; the server does, a little after the lease.
    assert!(session.tasks[0].notes.iter().any(|note| note.contains("did not renew")), "{session:#?}");
    assert!(!fake.world.frozen.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_for_a_hold_is_refused() {
    let (_place, _fake, server) = one_vm().await;
    for (guest, says) in [
        (serde_json::json!({"application_aware": "disabled"}), "nothing to do"),
        (serde_json::json!({"copy_limit_bytes_per_s": 5}), "nothing is copied"),
        (serde_json::json!({"freeze_budget_ms": 3_600_000}), "60"),
    ] {
        let body = serde_json::json!({"guest": guest});
        let problem = problem(server.client.post::<Session>("/vms/db/quiesce", &body).await);
        assert_eq!(problem.status, 422);
        assert!(problem.what.contains(says), "{}", problem.what);
    }
    let none = problem(server.client.post::<()>("/sessions/7/renew", &()).await);
    assert_eq!((none.status, none.why.as_deref()), (404, Some("no session has run yet")));
}
