//! A task from dispatch to its end: the good way, and every kind of interruption.

use crate::task::{CLEAN, Task, dispatch, dispatch_with, restarted};
use crate::world::{at_ms, server_id};
use lull_engine::failover::FailureClass;
use lull_engine::ids::{RestorePointId, TaskId};
use lull_engine::session::{
    Action, Ending, FinalAccount, Hop, Ignored, Left, Outcome, Owed, ProxyReport, RECOVERY_ATTEMPTS_MAX, RecoveryPart,
    TaskEvent, TaskFailure, TaskState,
};
use lull_engine::timeline::Step;
use uuid::Uuid;

fn failed(class: FailureClass) -> Ending {
    Ending::Failed {
        failure: TaskFailure {
            step: Some(Step::Connect),
            hop: Hop::ProxyToGuest,
            cause: "no route to host 10.1.0.9.".into(),
            remedy: "check the VM's address".into(),
            class,
        },
    }
}

#[test]
fn a_task_that_goes_well_ends_with_nothing_owed() {
    let mut task = Task::running(Step::Receipt);
    let epoch = task.epoch();
    task.send(TaskEvent::RestorePointRecorded { epoch, restore_point: RestorePointId(Uuid::nil()) });
    task.finish(Ending::Success, CLEAN);
    assert_eq!(task.last, [Action::ForgiveProxy { proxy: server_id(1) }, Action::TaskClosed]);
    assert_eq!(
        task.state,
        TaskState::Finished {
            ending: Ending::Success,
            at: at_ms(task.clock_ms),
            still_owed: Owed::default(),
            epoch: 1,
            restore_point: Some(RestorePointId(Uuid::nil())),
        }
    );
}

#[test]
fn at_dispatch_everything_is_owed_before_the_proxy_is_told() {
    let task = Task::dispatched();
    assert_eq!(task.last, [Action::SendTask { proxy: server_id(1), epoch: 1 }]);
    assert_eq!(task.state.owed(), Owed::everything(Some("/repo/vm-1.qcow2".into())));
}

#[test]
fn progress_clears_no_debt_but_evidence_does() {
    let mut task = Task::running(Step::Thaw);
    assert_eq!(task.state.owed(), Owed::everything(Some("/repo/vm-1.qcow2".into())));
    task.report(ProxyReport::Thawed { freeze_id: 8 });
    assert!(task.state.owed().frozen, "the thaw of another freeze proves nothing");
    task.report(ProxyReport::Thawed { freeze_id: 7 });
    assert!(!task.state.owed().frozen);
    task.report(ProxyReport::ReceiptClean);
    assert!(!task.state.owed().guest);
    task.report(ProxyReport::Swept);
    let left = Owed { partial_file: Some("/repo/vm-1.qcow2".into()), ..Owed::default() };
    assert_eq!(task.state.owed(), left);
    let epoch = task.epoch();
    task.send(TaskEvent::RestorePointRecorded { epoch, restore_point: RestorePointId(Uuid::nil()) });
    assert!(task.state.owed().is_empty());
}

#[test]
fn a_clean_receipt_is_no_proof_of_a_thaw() {
    let mut task = Task::running(Step::Snapshot);
    task.report(ProxyReport::ReceiptClean);
    assert!(task.state.owed().frozen);
    let mut confirmed = Task { state: task.state.clone(), ..Task::new() };
    task.finish(failed(FailureClass::Hypervisor), FinalAccount { thaw_confirmed: false, ..CLEAN });
    assert_eq!(task.state.name(), "recovering");
    assert_eq!(task.last, [Action::RecoverGuest { epoch: 2, last_proxy: server_id(1), after_ms: 0 }]);
    // Nor need a thaw have been seen in the window: the ladder's word is enough.
    confirmed.finish(failed(FailureClass::Hypervisor), CLEAN);
    assert_eq!(confirmed.state.name(), "finished");
}

#[test]
fn the_post_thaw_script_is_owed_from_the_beginning_of_the_pre_freeze_script_until_it_ran() {
    let id = TaskId(Uuid::from_u128(9));
    let run_until = |last: Step, post_script| {
        let mut task = Task::new();
        task.send(dispatch_with(1, post_script, None));
        for step in Step::ALL.into_iter().filter(|step| *step <= last) {
            task.report(ProxyReport::StepStarted { step });
            if step < last {
                task.report(ProxyReport::StepEnded { step });
            }
        }
        task
    };
    for step in Step::ALL {
        let task = run_until(step, Some(id));
        let owed = (Step::PreScript..=Step::PostScript).contains(&step).then_some(id);
        assert_eq!(task.state.owed().post_script, owed, "at {step}");
        assert_eq!(run_until(step, None).state.owed().post_script, None, "there is none to run");
    }

    // Neither a thaw nor a clean guest pays it: the task is closed only once it ran.
    let mut task = run_until(Step::Quiesce, Some(id));
    task.finish(failed(FailureClass::Application), CLEAN);
    assert_eq!(task.state.owed(), Owed { post_script: Some(id), ..Owed::default() });
    let epoch = task.epoch();
    assert_eq!(task.last, [Action::RecoverGuest { epoch, last_proxy: server_id(1), after_ms: 0 }]);
    task.send(TaskEvent::PostScriptRan { epoch });
    let rest = Owed { guest: true, ..Owed::default() };
    assert_eq!(task.state.owed(), rest, "the component that ran it is not known to be gone");
    // The rest of that attempt failed: the next one owes no script.
    task.send(TaskEvent::RecoveryFailed {
        epoch,
        part: RecoveryPart::Guest,
        class: FailureClass::GuestUnreachable,
        cause: "no route".into(),
    });
    assert_eq!(task.state.owed(), rest);
    task.send(TaskEvent::GuestRecovered { epoch });
    assert_eq!(task.ending().outcome(), Outcome::Failed);
    assert!(task.state.owed().is_empty());
}

#[test]
fn what_the_last_task_left_is_paid_before_the_next_one_begins() {
    let (earlier, id) = (TaskId(Uuid::from_u128(8)), TaskId(Uuid::from_u128(9)));
    let still_owed = Owed { post_script: Some(earlier), ..Owed::everything(Some("/repo/vm-1.qcow2".into())) };
    let left = Left::of(earlier, &still_owed).expect("it is frozen");
    assert_eq!(left.owed, Owed { hypervisor: false, partial_file: None, ..still_owed });
    assert_eq!(Left::of(earlier, &Owed { frozen: false, post_script: None, ..still_owed }), None, "swept on the way");

    let mut task = Task::new();
    let again = dispatch_with(1, Some(id), Some(left.clone()));
    task.send(again.clone());
    assert_eq!(task.last, [Action::RecoverGuest { epoch: 1, last_proxy: server_id(1), after_ms: 0 }]);
    assert_eq!(task.state.owed(), left.owed);
    let mut helpless = Task { state: task.state.clone(), ..Task::new() };
    let mut cancelled = Task { state: task.state.clone(), ..Task::new() };

    // Paid: it is sent to the same proxy, and not paid for a second time.
    task.send(TaskEvent::GuestRecovered { epoch: 1 });
    assert_eq!((task.state.name(), task.last.as_slice()), ("waiting", [Action::Requeue].as_slice()));
    task.send(again.clone());
    assert_eq!(task.last, [Action::SendTask { proxy: server_id(1), epoch: 2 }]);
    // Another proxy after it does not begin anew either.
    task.send(TaskEvent::NotDelivered { epoch: 2, cause: "connection refused".into() });
    task.send(dispatch_with(2, Some(id), Some(left.clone())));
    assert_eq!(task.last, [Action::SendTask { proxy: server_id(2), epoch: 3 }]);

    // Given up: nothing was begun, and the one after it owes the same.
    for _ in 0..RECOVERY_ATTEMPTS_MAX {
        helpless.send(TaskEvent::RecoveryFailed {
            epoch: 1,
            part: RecoveryPart::Guest,
            class: FailureClass::GuestUnreachable,
            cause: "no route".into(),
        });
    }
    let Ending::Failed { failure } = helpless.ending() else { panic!("not failed") };
    assert!(failure.cause.starts_with("nothing was begun, since what an earlier task left could not be undone"));
    assert_eq!(Left::of(id, &helpless.state.owed()).expect("still frozen").owed, left.owed);

    // Cancelled meanwhile: the guest is seen to all the same.
    cancelled.send(TaskEvent::CancelRequested);
    assert_eq!(cancelled.state.name(), "recovering");
    cancelled.send(TaskEvent::GuestRecovered { epoch: 1 });
    assert_eq!(cancelled.ending(), &Ending::Cancelled);
}

#[test]
fn an_index_beside_the_copy_moves_nothing_back() {
    let at = |task: &Task| match &task.state {
        TaskState::Running { step, .. } => *step,
        other => panic!("{other:?}"),
    };
    // Whichever is begun first, the copy is what the task is at.
    for first in [Step::Index, Step::Copy] {
        let second = if first == Step::Index { Step::Copy } else { Step::Index };
        let mut task = Task::running(Step::PostScript);
        task.report(ProxyReport::StepStarted { step: first });
        task.report(ProxyReport::StepStarted { step: second });
        assert_eq!(at(&task), Step::Copy);
        task.report(ProxyReport::StepEnded { step: Step::Copy });
        task.report(ProxyReport::StepStarted { step: Step::Verify });
        task.report(ProxyReport::StepEnded { step: Step::Verify });
        // The index goes on beyond the backup.
        task.report(ProxyReport::StepEnded { step: Step::Index });
        assert_eq!(at(&task), Step::Verify);
        task.report(ProxyReport::StepStarted { step: Step::Remove });
        assert_eq!(at(&task), Step::Remove);
    }
}

#[test]
fn a_restarted_server_thaws_and_sweeps_before_it_closes_the_task_with_the_truth() {
    for step in Step::ALL {
        let mut task = Task::running(step);
        task.send(restarted());
        let frozen = step < Step::Release;
        assert_eq!(task.state.owed().frozen, frozen, "at {step}");
        assert_eq!(
            task.last,
            [
                Action::RecoverGuest { epoch: 2, last_proxy: server_id(1), after_ms: 0 },
                Action::SweepHypervisor { epoch: 2, partial_file: Some("/repo/vm-1.qcow2".into()), after_ms: 0 },
            ]
        );
        task.recovered();
        assert_eq!(task.last, [Action::TaskClosed]);
        let Ending::Failed { failure } = task.ending() else { panic!("not failed") };
        assert_eq!(
            failure.to_string(),
            format!(
                "failed on the backup server (step {step}): the backup server stopped while the task was open; run it \
                 again"
            )
        );
    }
}

#[test]
fn a_restart_remembers_at_which_step_a_password_may_have_been_tried() {
    for step in Step::ALL {
        let mut task = Task::running(step);
        task.send(restarted());
        assert_eq!(task.cut_at(), Some(step));
        // The recovery that is cut says nothing new: it logged in with what this task knew of.
        task.send(restarted());
        assert_eq!(task.cut_at(), Some(step));
    }
    let mut lost = Task::running(Step::Copy);
    lost.send(TaskEvent::ProxyLost { epoch: 1, cause: "silent".into() });
    assert_eq!(lost.cut_at(), None);
}

#[test]
fn a_restart_after_the_restore_point_was_recorded_does_not_lose_it() {
    let mut task = Task::running(Step::Remove);
    let restore_point = RestorePointId(Uuid::nil());
    task.send(TaskEvent::RestorePointRecorded { epoch: 1, restore_point });
    task.send(restarted());
    assert!(matches!(&task.last[1], Action::SweepHypervisor { partial_file: None, .. }), "the file stays");
    task.recovered();
    assert_eq!(task.ending().outcome(), Outcome::Warning);
    assert!(matches!(task.state, TaskState::Finished { restore_point: Some(_), .. }));
}

#[test]
fn a_recorded_restore_point_stays_whatever_its_task_comes_to() {
    let restore_point = RestorePointId(Uuid::nil());
    for ending in [failed(FailureClass::GuestSide), failed(FailureClass::ProxyLost), Ending::Cancelled] {
        let mut task = Task::running(Step::Index);
        task.send(TaskEvent::RestorePointRecorded { epoch: 1, restore_point });
        task.finish(ending.clone(), CLEAN);
        assert_eq!(task.ending().outcome(), Outcome::Warning, "{ending:?}");
        assert!(matches!(task.state, TaskState::Finished { restore_point: Some(_), .. }), "{ending:?}");
    }
}

#[test]
fn a_restart_in_the_middle_of_a_recovery_begins_it_anew_under_its_own_number() {
    let mut task = Task::running(Step::Freeze);
    task.send(TaskEvent::ProxyLost { epoch: 1, cause: "silent".into() });
    task.send(restarted());
    assert_eq!(task.epoch(), 3);
    assert_eq!(task.last.len(), 2);
    let late = task.try_send(&TaskEvent::GuestRecovered { epoch: 2 }).expect("harmless");
    assert_eq!(late.ignored, Some(Ignored::StaleEpoch));
    task.recovered();
    assert_eq!(task.ending().outcome(), Outcome::Failed, "no proxy takes over after a restart");
}

#[test]
fn a_lost_proxy_loses_the_task_to_the_next_one_after_the_guest_is_safe() {
    let mut task = Task::running(Step::Copy);
    task.send(TaskEvent::ProxyLost { epoch: 1, cause: "lin-1 is silent for 10 s".into() });
    assert_eq!(
        task.last[0],
        Action::RememberFailure {
            proxy: server_id(1),
            class: FailureClass::ProxyLost,
            cause: "lin-1 is silent for 10 s".into()
        }
    );
    assert!(task.try_send(&dispatch(2)).expect_err("not yet").contains("debts are not paid"));
    task.recovered();
    assert_eq!(task.last, [Action::Requeue]);
    let again = task.try_send(&dispatch(1)).expect_err("it had its turn");
    assert!(again.contains("had its turn"), "{again}");
    task.send(dispatch(2));
    assert_eq!(task.last, [Action::SendTask { proxy: server_id(2), epoch: 3 }]);
    // The first proxy comes back with its story.
    let late = TaskEvent::Report {
        epoch: 1,
        report: ProxyReport::Finished { ending: Ending::Success, owed: Owed::default() },
    };
    let transition = task.try_send(&late).expect("harmless");
    assert_eq!((transition.state, transition.ignored), (task.state.clone(), Some(Ignored::StaleEpoch)));
}

#[test]
fn an_unreachable_guest_goes_to_the_next_proxy_at_once_since_nothing_was_done_there() {
    let mut task = Task::running(Step::Connect);
    task.finish(failed(FailureClass::GuestUnreachable), FinalAccount::default());
    assert_eq!(task.state.name(), "waiting");
    task.send(TaskEvent::NoProxy { cause: "all were tried in this task already".into(), remedy: "add a proxy".into() });
    let Ending::Failed { failure } = task.ending() else { panic!("not failed") };
    assert_eq!(
        failure.to_string(),
        "failed between proxy and guest (step connect): no route to host 10.1.0.9; check the VM's address"
    );
}

#[test]
fn a_task_that_nobody_can_serve_ends_with_the_cause_and_the_advice_that_were_found_for_it() {
    let mut task = Task::new();
    let (cause, remedy) = ("shop is in session 3".to_string(), "wait for its end".to_string());
    task.send(TaskEvent::NoProxy { cause, remedy });
    let Ending::Failed { failure } = task.ending() else { panic!("not failed") };
    assert_eq!((failure.cause.as_str(), failure.remedy.as_str()), ("shop is in session 3", "wait for its end"));
}

#[test]
fn a_task_that_never_reached_its_proxy_owes_nothing() {
    let mut task = Task::dispatched();
    task.send(TaskEvent::NotDelivered { epoch: 1, cause: "connection refused".into() });
    assert_eq!(task.state.name(), "waiting");
    let mut running = Task::running(Step::Connect);
    let event = TaskEvent::NotDelivered { epoch: 1, cause: "connection refused".into() };
    assert!(running.try_send(&event).is_err(), "the proxy has it");
}

#[test]
fn a_refused_credential_ends_the_task_and_rests() {
    let mut task = Task::running(Step::Connect);
    task.finish(failed(FailureClass::RefusedCredential), FinalAccount::default());
    assert_eq!(task.last, [Action::RestCredential { cause: "no route to host 10.1.0.9.".into() }, Action::TaskClosed]);
    assert_eq!(task.ending().outcome(), Outcome::Failed);
}

#[test]
fn cancelling_waits_for_the_proxy_to_leave_the_guest_as_it_was() {
    let mut waiting = Task::new();
    waiting.send(TaskEvent::CancelRequested);
    assert_eq!(waiting.ending(), &Ending::Cancelled);

    for step in Step::ALL {
        let mut task = Task::running(step);
        task.send(TaskEvent::CancelRequested);
        assert_eq!(task.last, [Action::CancelOnProxy { proxy: server_id(1), epoch: 1 }]);
        let twice = task.try_send(&TaskEvent::CancelRequested).expect("harmless");
        assert_eq!((twice.actions, twice.ignored), (Vec::new(), Some(Ignored::Duplicate)));
        task.report(ProxyReport::Thawed { freeze_id: 7 });
        task.finish(Ending::Cancelled, CLEAN);
        assert_eq!(task.ending(), &Ending::Cancelled, "at {step}");
    }
}

#[test]
fn a_cancelled_task_whose_proxy_is_lost_does_not_go_to_another() {
    let mut task = Task::running(Step::Copy);
    task.send(TaskEvent::CancelRequested);
    task.send(TaskEvent::ProxyLost { epoch: 1, cause: "silent".into() });
    task.recovered();
    assert_eq!(task.ending(), &Ending::Cancelled);

    let mut task = Task::running(Step::Copy);
    task.send(TaskEvent::ProxyLost { epoch: 1, cause: "silent".into() });
    task.send(TaskEvent::CancelRequested);
    task.recovered();
    assert_eq!(task.ending(), &Ending::Cancelled);
}

#[test]
fn a_success_that_left_something_is_a_warning_once_sweeping_was_given_up() {
    let mut task = Task::running(Step::Receipt);
    task.finish(Ending::Success, FinalAccount { guest_clean: false, ..CLEAN });
    let mut waits = Vec::new();
    for _ in 0..RECOVERY_ATTEMPTS_MAX {
        let epoch = task.epoch();
        task.send(TaskEvent::RecoveryFailed {
            epoch,
            part: RecoveryPart::Guest,
            class: FailureClass::GuestUnreachable,
            cause: "no route".into(),
        });
        waits.extend(task.last.iter().filter_map(|action| match action {
            Action::RecoverGuest { after_ms, .. } => Some(*after_ms),
            _ => None,
        }));
    }
    assert_eq!(waits, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
    assert_eq!(
        task.ending(),
        &Ending::Warning {
            messages: vec![
                "the guest may still hold the runtime component; the next task on this VM sees to it first".into()
            ]
        }
    );
    assert!(task.state.owed().guest, "what is left stays recorded");
}

#[test]
fn a_recovery_whose_credential_is_refused_is_not_tried_again() {
    let mut task = Task::running(Step::Freeze);
    task.send(restarted());
    let (class, cause) = (FailureClass::RefusedCredential, "db1 refuses the login of backup".to_owned());
    let refused =
        TaskEvent::RecoveryFailed { epoch: task.epoch(), part: RecoveryPart::Guest, class, cause: cause.clone() };
    task.send(refused.clone());
    assert_eq!(task.last, [Action::RestCredential { cause }]);
    let again = task.try_send(&refused).expect("harmless");
    assert_eq!((again.actions, again.ignored), (Vec::new(), Some(Ignored::Duplicate)));
    // The other half goes on, and what nobody could undo stays recorded.
    let hypervisor = TaskEvent::HypervisorSwept { epoch: task.epoch() };
    task.send(hypervisor);
    assert_eq!(task.last, [Action::TaskClosed]);
    let owed = task.state.owed();
    assert_eq!((owed.guest, owed.frozen, owed.hypervisor), (true, true, false));
}

#[test]
fn no_other_proxy_begins_where_the_last_ones_traces_could_not_be_undone() {
    let mut task = Task::running(Step::Freeze);
    task.send(TaskEvent::ProxyLost { epoch: 1, cause: "silent".into() });
    task.send(TaskEvent::HypervisorSwept { epoch: 2 });
    for _ in 0..RECOVERY_ATTEMPTS_MAX {
        task.send(TaskEvent::RecoveryFailed {
            epoch: 2,
            part: RecoveryPart::Guest,
            class: FailureClass::GuestUnreachable,
            cause: "no route".into(),
        });
    }
    assert_eq!(task.ending().outcome(), Outcome::Failed);
    let owed = task.state.owed();
    assert_eq!(owed.to_string(), "the guest may still be frozen, the guest may still hold the runtime component");
}

#[test]
fn an_event_that_contradicts_the_state_is_a_bug_and_named() {
    let mut task = Task::dispatched();
    for (event, expected) in [
        (dispatch(2), "a dispatched task cannot take this event: a proxy holds it"),
        (
            TaskEvent::Report { epoch: 9, report: ProxyReport::Accepted },
            "a dispatched task cannot take this event: it belongs to dispatch or recovery 9, and the last one was 1",
        ),
        (TaskEvent::GuestRecovered { epoch: 1 }, "a dispatched task cannot take this event: no recovery was asked for"),
    ] {
        assert_eq!(task.try_send(&event).expect_err("illegal"), expected);
    }
}

#[test]
fn a_failure_is_one_printable_sentence_whatever_the_guest_said() {
    let failure = TaskFailure {
        step: None,
        hop: Hop::Elevation,
        cause: "sudo said:\n  \u{1b}[31mSorry, user\tlull may not run.  ".into(),
        remedy: "allow it in /etc/sudoers;".into(),
        class: FailureClass::RefusedCredential,
    };
    assert_eq!(
        failure.to_string(),
        "failed at the elevation in the guest: sudo said: [31mSorry, user lull may not run; allow it in /etc/sudoers"
    );
}
