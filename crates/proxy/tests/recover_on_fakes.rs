//! Recoveries of a guest in memory: what an interrupted task left there is undone, its post-thaw script included.

use lull_proxy::cancel::Cancel;
use lull_proxy::carried::Image;
use lull_proxy::fake::FakeConnector;
use lull_proxy::fake::guest::{Behaviour, FakeGuest, State};
use lull_proxy::order;
use lull_proxy::recover::{self, Recovery};
use lull_proxy::reporter::Reporter;
use lull_proxy_wire::v1;
use lull_proxy_wire::v1::task_event::Event;

/// Of the recovery's order.
const FENCE: u64 = 17;
const COMPONENT: &[u8] = b"not really a program";

/// Recovers a guest whose component and watchdog were killed while it was frozen. How it ended, how the script's step
/// ended, and the guest.
async fn recovered(behaviour: Behaviour, script: bool) -> (v1::Finished, Option<String>, State) {
    let guest = FakeGuest::new(COMPONENT.len(), behaviour);
    guest.set(|state| (state.frozen, state.lock) = (true, true));
    let connector = FakeConnector::new(guest.clone());
    let image = Image::new(COMPONENT);
    let (reporter, mut events) = Reporter::new();
    let owed = v1::OwedScript { body: "#!/bin/sh\n".into(), timeout_ms: 5_000 };
    let recovery = Recovery {
        fence: FENCE,
        vm_name: "fake1".into(),
        connector: Some(&connector),
        maybe_frozen: true,
        excluded_mount_points: vec![],
        image: &image,
        post_script: script.then(|| order::owed_script(owed)),
        hypervisor: None,
    };
    let finished = recover::run(recovery, reporter, Cancel::default()).await;
    let mut ended = None;
    while let Some(event) = events.recv().await {
        if let Some(Event::StepEnded(step)) = event.unwrap().event
            && step.step == "post-script"
        {
            ended = Some(step.outcome);
        }
    }
    (finished, ended, guest.state())
}

#[tokio::test(start_paused = true)]
async fn an_owed_script_runs_once_the_guest_is_thawed_and_leaves_nothing() {
    let (finished, ended, guest) = recovered(Behaviour::default(), true).await;
    assert_eq!((finished.outcome.as_str(), ended.as_deref()), ("success", Some("ok")), "{finished:?}");
    // A frozen guest refuses scripts.
    assert_eq!(guest.commands, ["post-script", "bye"]);
    let receipt = finished.receipt.unwrap();
    assert!(receipt.guest_checked && receipt.left_in_guest.is_empty() && receipt.thaw_confirmed, "{receipt:?}");
    assert!(!guest.frozen && !guest.component && !guest.lock);
}

#[tokio::test(start_paused = true)]
async fn without_one_no_component_is_put_there() {
    let (finished, ended, guest) = recovered(Behaviour::default(), false).await;
    assert_eq!((finished.outcome.as_str(), ended, guest.commands.len()), ("success", None, 0));
    assert!(!guest.frozen);
}

#[tokio::test(start_paused = true)]
async fn a_script_that_fails_has_run_and_one_whose_component_dies_has_not() {
    let failing = Behaviour { script_exit: 3, ..Behaviour::default() };
    let (finished, ended, _) = recovered(failing, true).await;
    assert_eq!((finished.outcome.as_str(), ended.as_deref()), ("warning", Some("warning")));
    let dying = Behaviour { dies_at: Some("post-script"), ..Behaviour::default() };
    let (finished, ended, guest) = recovered(dying, true).await;
    assert_eq!((finished.outcome.as_str(), ended.as_deref()), ("failed", Some("failed")));
    assert!(!guest.frozen);
}

#[tokio::test(start_paused = true)]
async fn a_guest_without_fsfreeze_is_thawed_by_the_component() {
    let (finished, _, guest) = recovered(Behaviour { no_fsfreeze: true, ..Behaviour::default() }, false).await;
    assert_eq!((finished.outcome.as_str(), guest.frozen, guest.lock), ("success", false, false), "{finished:?}");
}

/// What a recovery finds that is newer or older than the component in the guest.
async fn found(change: impl FnOnce(&mut State)) -> (v1::Finished, State) {
    let guest = FakeGuest::new(COMPONENT.len(), Behaviour::default());
    guest.set(change);
    let connector = FakeConnector::new(guest.clone());
    let image = Image::new(COMPONENT);
    let recovery = Recovery {
        fence: FENCE,
        vm_name: "fake1".into(),
        connector: Some(&connector),
        maybe_frozen: true,
        excluded_mount_points: vec![],
        image: &image,
        post_script: None,
        hypervisor: None,
    };
    let finished = recover::run(recovery, Reporter::new().0, Cancel::default()).await;
    (finished, guest.state())
}

#[tokio::test(start_paused = true)]
async fn a_newer_task_s_freeze_is_left_alone() {
    let (finished, guest) =
        found(|guest| (guest.newer, guest.component, guest.frozen, guest.lock) = (true, false, true, true)).await;
    assert_eq!(finished.outcome, "failed");
    assert!(finished.failure_json.contains("a newer task holds the guest"), "{finished:?}");
    assert!(guest.frozen && guest.lock && guest.disturbed.is_empty(), "{:?}", guest.disturbed);
    assert!(!finished.receipt.unwrap().thaw_confirmed);
}

#[tokio::test(start_paused = true)]
async fn an_older_task_s_component_is_asked_to_go_at_once() {
    let began = tokio::time::Instant::now();
    let (finished, guest) = found(|guest| (guest.component, guest.frozen, guest.lock) = (true, true, true)).await;
    assert_eq!(finished.outcome, "success", "{finished:?}");
    assert!(!guest.component && !guest.frozen);
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "nobody waits for its lease: {:?}", began.elapsed());
}
