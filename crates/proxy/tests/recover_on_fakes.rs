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
