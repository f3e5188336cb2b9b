//! A newer task's component comes into the guest in the middle of a task.

use super::*;

/// Of the newer task nothing is disturbed: neither its freeze nor its component, whatever this one still owes.
#[tokio::test(start_paused = true)]
async fn an_evicted_task_stops_wherever_it_is_and_does_nothing_more_in_the_guest() {
    for command in COMMANDS {
        for aware in [ApplicationAware::RequireSuccess, ApplicationAware::Try] {
            let mut scene = Scene::default().with_scripts();
            scene.behaviour.evicted_at = Some(command);
            scene.settings.application_aware = aware;
            scene.snapshotter.snapshot_takes = Duration::from_secs(3);
            let played = scene.play().await;
            let scene = format!("evicted at {command}, {aware:?}\n{}", played.words());
            assert!(played.guest.newer && played.guest.disturbed.is_empty(), "{:?}, {scene}", played.guest.disturbed);
            assert_eq!(played.guest.commands.last(), Some(&command), "{scene}");
            assert_eq!(played.logins, 1, "{scene}");
            assert!(!played.words().contains("run this"), "no person is told to thaw: {scene}");
            let receipt = played.finished.receipt.as_ref().unwrap();
            assert!(!receipt.guest_checked && receipt.left_in_guest.is_empty() && receipt.thaw_confirmed, "{scene}");
            // At the goodbye the restore point was done.
            let late = command == "bye";
            assert_eq!(played.finished.outcome, if late { "warning" } else { "cancelled" }, "{scene}");
            assert_eq!(played.snapshotter.finished, late, "{scene}");
            assert!(!played.snapshotter.holds_something, "{scene}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_component_that_a_newer_task_killed_leaves_what_is_frozen_to_that_one() {
    for command in ["freeze", "thaw"] {
        let mut scene = Scene::default();
        (scene.behaviour.evicted_at, scene.behaviour.evicted_in_silence) = (Some(command), true);
        let played = scene.play().await;
        let words = played.words();
        assert!(played.guest.disturbed.is_empty() && played.logins == 1, "{:?}\n{words}", played.guest.disturbed);
        assert!(words.contains("by whoever ended the component: a newer task holds the guest"), "{words}");
        assert!(!played.snapshotter.holds_something && !words.contains("run this"), "{words}");
    }
}

/// Who stood still for so long that its connection is gone comes back: the script that it owes is run by whoever has the task next.
#[tokio::test(start_paused = true)]
async fn after_the_leases_end_nobody_goes_in_again_to_run_what_is_owed() {
    let mut scene = Scene::default().with_scripts();
    scene.lease_ends_at = Some("quiesce");
    scene.behaviour.dies_at = Some("quiesce");
    let played = scene.play().await;
    let words = played.words();
    assert_eq!(played.guest.scripts, [ScriptStage::PreFreeze], "{words}");
    assert_eq!(played.logins, 1, "{words}");
    assert!(!played.guest.frozen && !played.snapshotter.holds_something, "{words}");
    assert!(!played.finished.receipt.as_ref().unwrap().guest_checked, "{words}");
}
