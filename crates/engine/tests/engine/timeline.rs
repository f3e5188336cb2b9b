//! What still runs after a failure at each step.

use lull_engine::timeline::{Progress, Step, Undo, still_to_run};
use proptest::prelude::*;
use proptest::sample::subsequence;

/// After a failure at this step of a task with everything in it, these still run.
fn check(failed: Step, without: &[Step], expected: &str) {
    let mut progress = Progress::failed_at(failed, without);
    // The backup file is created with the snapshot's preparation and is whole once it is verified.
    progress.partial_file = (Step::Inventory < failed && failed <= Step::Verify).then(|| "vm-1.qcow2".into());
    let got: Vec<String> = still_to_run(&progress).iter().map(Undo::to_string).collect();
    assert_eq!(got.join(", "), expected, "after {failed}");
}

#[test]
fn a_failure_at_any_step_undoes_what_was_begun() {
    for (failed, expected) in [
        (Step::Connect, ""),
        (Step::Deploy, "remove, receipt"),
        (Step::Inventory, "sweep hypervisor, remove, receipt"),
        (Step::PreScript, "post-script, sweep hypervisor, discard partial file, remove, receipt"),
        (Step::Quiesce, "release, post-script, sweep hypervisor, discard partial file, remove, receipt"),
        (Step::Freeze, "thaw, release, post-script, sweep hypervisor, discard partial file, remove, receipt"),
        (Step::Snapshot, "thaw, release, post-script, sweep hypervisor, discard partial file, remove, receipt"),
        (Step::Thaw, "thaw, release, post-script, sweep hypervisor, discard partial file, remove, receipt"),
        (Step::Release, "release, post-script, sweep hypervisor, discard partial file, remove, receipt"),
        (Step::PostScript, "sweep hypervisor, discard partial file, remove, receipt"),
        (Step::Index, "sweep hypervisor, discard partial file, remove, receipt"),
        (Step::Copy, "sweep hypervisor, discard partial file, remove, receipt"),
        (Step::Verify, "sweep hypervisor, discard partial file, remove, receipt"),
        (Step::Remove, "sweep hypervisor, remove, receipt"),
        (Step::Receipt, "sweep hypervisor, receipt"),
    ] {
        check(failed, &[], expected);
    }
}

#[test]
fn what_the_settings_leave_out_is_not_undone() {
    let without = [Step::PreScript, Step::PostScript, Step::Quiesce, Step::Release];
    check(Step::Snapshot, &without, "thaw, sweep hypervisor, discard partial file, remove, receipt");
}

#[test]
fn a_complete_task_leaves_nothing_to_run() {
    let mut progress = Progress::failed_at(Step::Receipt, &[]);
    progress.done.insert(Step::Receipt);
    progress.hypervisor_swept = true;
    assert_eq!(still_to_run(&progress), []);
}

#[test]
fn names_are_those_of_the_json() {
    for step in Step::ALL {
        assert_eq!(serde_json::to_string(&step).expect("JSON"), format!("\"{}\"", step.name()));
    }
    assert!(Step::ALL.is_sorted());
}

fn any_progress() -> impl Strategy<Value = Progress> {
    let steps = || subsequence(Step::ALL.to_vec(), 0..=Step::ALL.len());
    (steps(), steps(), any::<bool>(), any::<bool>()).prop_map(|(begun, done, hypervisor_swept, file)| {
        let begun: std::collections::BTreeSet<Step> = begun.into_iter().collect();
        Progress {
            done: done.into_iter().filter(|step| begun.contains(step)).collect(),
            begun,
            hypervisor_swept,
            partial_file: file.then(|| "f".into()),
        }
    })
}

proptest! {
    #[test]
    fn whatever_was_begun_is_undone_or_was_undone(progress in any_progress()) {
        let owed = still_to_run(&progress);
        for step in &progress.begun {
            let Some(undo) = step.undone_by() else { continue };
            let undone = match undo {
                Undo::SweepHypervisor => progress.hypervisor_swept,
                Undo::DiscardPartialFile => progress.partial_file.is_none(),
                // Run at most once.
                Undo::PostScript => progress.begun.contains(&Step::PostScript),
                undo => undo.step().is_some_and(|step| progress.done.contains(&step)),
            };
            prop_assert_eq!(owed.contains(&undo), !undone, "{} of {}", undo, step);
        }
    }

    #[test]
    fn the_guest_comes_before_hypervisor_and_repository_and_the_receipt_last(progress in any_progress()) {
        let owed = still_to_run(&progress);
        prop_assert!(owed.is_sorted());
        prop_assert!(Undo::Thaw < Undo::Release && Undo::PostScript < Undo::SweepHypervisor);
        prop_assert!(owed.iter().all(|undo| *undo <= Undo::Receipt));
    }

    #[test]
    fn nothing_is_undone_that_was_not_begun(progress in any_progress()) {
        for undo in still_to_run(&progress) {
            let cause = Step::ALL.into_iter().any(|step| {
                progress.begun.contains(&step) && (step.undone_by() == Some(undo) || step == Step::Copy)
            });
            let known = match undo {
                Undo::Receipt => progress.done.contains(&Step::Connect),
                Undo::DiscardPartialFile => progress.partial_file.is_some(),
                _ => cause,
            };
            prop_assert!(known, "{} without a cause", undo);
        }
    }
}
